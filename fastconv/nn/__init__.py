"""torch.nn's modules with fastconv's kernels: subclasses, same arguments, same ``state_dict``."""

from __future__ import annotations

from fastconv._torch_private import HAS_TORCH

if not HAS_TORCH:
    raise ImportError(
        "fastconv.nn needs torch, which is not installed or disabled by FASTCONV_TORCH=0"
    )

from fastconv.nn.adaptive_avg_pool2d import AdaptiveAvgPool2d
from fastconv.nn.adaptive_max_pool2d import AdaptiveMaxPool2d
from fastconv.nn.avg_pool2d import AvgPool2d
from fastconv.nn.conv2d import Conv2d
from fastconv.nn.conv_transpose2d import ConvTranspose2d
from fastconv.nn.gru import GRU, GRUCell
from fastconv.nn.lp_pool2d import LPPool2d
from fastconv.nn.lstm import LSTM, LSTMCell
from fastconv.nn.max_pool2d import MaxPool2d
from fastconv.nn.max_unpool2d import MaxUnpool2d
from fastconv.nn.multihead_attention import MultiheadAttention
from fastconv.nn.rnn import RNN, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv2d",
    "ConvTranspose2d",
    "GRUCell",
    "LPPool2d",
    "LSTMCell",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiheadAttention",
    "RNNCell",
]
