"""fastconv: convolution, pooling, recurrent layers and attention for PyTorch, NumPy and CuPy, as
you know them.

* ``fastconv.Conv2d``, ``fastconv.MaxPool2d``, ``fastconv.LSTM`` …: in place of torch.nn's.
* ``fastconv.accelerate(model)``: fastconv's layers in place of torch.nn's in a whole model.
* ``fastconv.enable()``: torch's own convolutions are fastconv's, in programs that do not know it.
* ``fastconv.functional``: in place of torch.nn.functional; takes NumPy and CuPy arrays too.
* ``fastconv.backend("numba")``: who computes; also a context manager.
* ``fastconv.freeze(module)``: weights arranged once, for inference.
* ``fastconv.explain(...)``, ``fastconv.allow_winograd(...)``: which algorithm, and why.
* ``fastconv.show_config()``: what is in use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastconv import _backend, _native
from fastconv._algorithm import allow_winograd, explain
from fastconv._backend import backend
from fastconv._config import show_config
from fastconv._torch_private import HAS_TORCH
from fastconv._version import __version__

_backend.start()

from fastconv import functional  # noqa: E402 (binds the ops that start() defines)

if TYPE_CHECKING:
    from fastconv import reference as reference
    from fastconv import testing as testing

if HAS_TORCH or TYPE_CHECKING:
    from fastconv import nn as nn
    from fastconv._accelerate import accelerate as accelerate
    from fastconv._accelerate import report as report
    from fastconv._accelerate import restore as restore
    from fastconv._enable import disable as disable
    from fastconv._enable import enable as enable
    from fastconv._freeze import freeze as freeze
    from fastconv._freeze import thaw as thaw
    from fastconv.nn import GRU as GRU
    from fastconv.nn import LSTM as LSTM
    from fastconv.nn import RNN as RNN
    from fastconv.nn import AdaptiveAvgPool2d as AdaptiveAvgPool2d
    from fastconv.nn import AdaptiveMaxPool2d as AdaptiveMaxPool2d
    from fastconv.nn import AvgPool2d as AvgPool2d
    from fastconv.nn import Conv2d as Conv2d
    from fastconv.nn import ConvTranspose2d as ConvTranspose2d
    from fastconv.nn import GRUCell as GRUCell
    from fastconv.nn import LPPool2d as LPPool2d
    from fastconv.nn import LSTMCell as LSTMCell
    from fastconv.nn import MaxPool2d as MaxPool2d
    from fastconv.nn import MaxUnpool2d as MaxUnpool2d
    from fastconv.nn import MultiheadAttention as MultiheadAttention
    from fastconv.nn import RNNCell as RNNCell

__all__ = [
    "__version__",
    "allow_winograd",
    "backend",
    "explain",
    "functional",
    "nn",
    "reference",
    "show_config",
]
_MODULES = (
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv2d",
    "ConvTranspose2d",
    "GRU",
    "GRUCell",
    "LPPool2d",
    "LSTM",
    "LSTMCell",
    "MaxPool2d",
    "MaxUnpool2d",
    "MultiheadAttention",
    "RNN",
    "RNNCell",
)
_OF_MODELS = ("accelerate", "disable", "enable", "freeze", "report", "restore", "thaw")
if HAS_TORCH:
    __all__ += [*_MODULES, *_OF_MODELS]

_native.warn_if_missing(_backend.fallback())


def __getattr__(name: str) -> Any:
    if name in ("reference", "testing"):  # not needed to compute
        return importlib.import_module(f"fastconv.{name}")
    if name in (*_MODULES, *_OF_MODELS, "nn") and not HAS_TORCH:
        raise ImportError(
            f"fastconv.{name} needs torch, which is not installed or disabled by FASTCONV_TORCH=0"
        )
    raise AttributeError(f"module 'fastconv' has no attribute {name!r}")
