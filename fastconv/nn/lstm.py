"""LSTM and LSTMCell: torch.nn's with fastconv's kernels."""

from __future__ import annotations

import torch

from fastconv.nn._recurrent import Compilable, with_kernels


class LSTM(Compilable, torch.nn.LSTM):
    """A drop-in for ``torch.nn.LSTM``: same arguments, parameters, ``state_dict`` and errors.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
        proj_size, device, dtype:
            as for ``torch.nn.LSTM``.

    Shape: [T, N, I], [N, T, I] with ``batch_first``, [T, I] or a ``PackedSequence``, and a state,
    to the states of all steps and the last (h, c).

    Raises:
        ValueError: sizes that are out of range, an input of the wrong number of dimensions or type.
        RuntimeError: a state of the wrong shape.

    Example:
        >>> import torch
        >>> import fastconv
        >>> layer = fastconv.LSTM(input_size=8, hidden_size=16, num_layers=2)
        >>> output, (h, c) = layer(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])
    """

    forward = with_kernels(torch.nn.LSTM.forward)


class LSTMCell(torch.nn.LSTMCell):
    """A drop-in for ``torch.nn.LSTMCell``: same arguments, parameters, ``state_dict`` and errors.

    Args:
        input_size, hidden_size, bias, device, dtype:
            as for ``torch.nn.LSTMCell``.

    Shape: [N, I] or [I], and a state, to the next state.

    Raises:
        ValueError: an input or state of the wrong number of dimensions.
        RuntimeError: sizes that do not fit.

    Example:
        >>> import torch
        >>> import fastconv
        >>> cell = fastconv.LSTMCell(8, 16)
        >>> h, c = cell(torch.randn(3, 8))
        >>> h.shape
        torch.Size([3, 16])
    """

    forward = with_kernels(torch.nn.LSTMCell.forward)
