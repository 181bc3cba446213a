"""RNN and RNNCell: torch.nn's with fastconv's kernels."""

from __future__ import annotations

import torch

from fastconv.nn._recurrent import Compilable, with_kernels


class RNN(Compilable, torch.nn.RNN):
    """A drop-in for ``torch.nn.RNN``: same arguments, parameters, ``state_dict`` and errors.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout,
        bidirectional, device, dtype:
            as for ``torch.nn.RNN``.

    Shape: [T, N, I], [N, T, I] with ``batch_first``, [T, I] or a ``PackedSequence``, and a state,
    to the states of all steps and the last ones.

    Raises:
        ValueError: sizes that are out of range, an input of the wrong number of dimensions or type.
        RuntimeError: a state of the wrong shape.

    Example:
        >>> import torch
        >>> import fastconv
        >>> layer = fastconv.RNN(input_size=8, hidden_size=16, num_layers=2)
        >>> output, h = layer(torch.randn(5, 3, 8))
        >>> output.shape
        torch.Size([5, 3, 16])
    """

    forward = with_kernels(torch.nn.RNN.forward)


class RNNCell(torch.nn.RNNCell):
    """A drop-in for ``torch.nn.RNNCell``: same arguments, parameters, ``state_dict`` and errors.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype:
            as for ``torch.nn.RNNCell``.

    Shape: [N, I] or [I], and a state, to the next state.

    Raises:
        ValueError: an input or state of the wrong number of dimensions.
        RuntimeError: sizes that do not fit.

    Example:
        >>> import torch
        >>> import fastconv
        >>> cell = fastconv.RNNCell(8, 16)
        >>> h = cell(torch.randn(3, 8))
        >>> h.shape
        torch.Size([3, 16])
    """

    forward = with_kernels(torch.nn.RNNCell.forward)
