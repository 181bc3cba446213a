"""The meaning of lstm, gru, rnn_tanh and rnn_relu: one layer, one direction, over a sequence.

    a = weight_ih @ x + bias_ih    b = weight_hh @ h + bias_hh    per gate, at every step

    lstm      i, f, o = sigmoid(a + b)   g = tanh(a + b)     gates in the order i f g o
              c = f * c + i * g          h = o * tanh(c)     then h = weight_hr @ h, if there is one
    gru       r, z = sigmoid(a + b)      n = tanh(a + r * b) gates in the order r z n
              h = (1 - z) * n + z * h
    rnn_tanh  h = tanh(a + b)            rnn_relu  h = max(a + b, 0)

T steps; N sequences; I input size; H hidden size; P size of h; S rows of a packed sequence: with
``batch_sizes`` the first batch_sizes[t] sequences have a step t, and their rows follow each other.
``reverse`` goes from each sequence's last step to its first. Arguments are taken to be legal.

The backward functions go through time: they give the gradient by a + b of every step (gru: by r, z,
b[n] and a[n]), from which those by weights and input are one product each; and by the first state.
Everything is computed in float64. NumPy's own products leave Numba nothing to win: its names are
the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastconv.reference._window import Array

Optional = Array | None


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``."""
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-x))
    return result


class _Timeline:
    """Which rows a step has, and where the state that it begins with is found."""

    def __init__(self, sequence: Array, batch_sizes: Optional, reverse: bool) -> None:
        if batch_sizes is None:
            batch_sizes = np.full(sequence.shape[0], sequence.shape[1])
        self.counts = [int(count) for count in batch_sizes]
        self.first = np.concatenate([[0], np.cumsum(self.counts)]).astype(int)
        self.rows = int(self.first[-1])
        self.reverse = reverse

    def __iter__(self) -> Iterator[tuple[slice, int]]:
        """(rows, how many) of every step, as computed."""
        steps = range(len(self.counts))
        for t in reversed(steps) if self.reverse else steps:
            yield slice(self.first[t], self.first[t + 1]), self.counts[t]

    def states_before(self, first_state: Array, states: Array) -> Array:
        """Row by row the state of the step before; [S, ...] of [N, ...] and [S, ...]."""
        current, before = first_state.copy(), np.empty_like(states)
        for rows, count in self:
            before[rows] = current[:count]
            current[:count] = states[rows]
        return before


def _float64(*arrays: Optional) -> list[Any]:
    return [None if array is None else np.asarray(array, np.float64) for array in arrays]


def _flat(sequence: Array) -> Array:
    return sequence.reshape(int(np.prod(sequence.shape[:-1])), sequence.shape[-1])


def _affine(x: Array, weight: Array, bias: Optional) -> Array:
    result: Array = x @ weight.T
    return result if bias is None else result + bias


def _shaped(rows: Array, like: Array) -> Array:
    """The rows [S, P] of a sequence with the outer axes and the type of another."""
    return rows.reshape(*like.shape[:-1], rows.shape[-1]).astype(like.dtype)


def _saved_dtype(dtype: Any) -> Any:
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def lstm(
    input: Array,
    hx: Array,
    cx: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Optional = None,
    bias_hh: Optional = None,
    weight_hr: Optional = None,
    batch_sizes: Optional = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Long short-term memory.

    Args:
        input: [T, N, I], or [S, I] with ``batch_sizes``.
        hx, cx: the first state, [N, P] and [N, H].
        weight_ih, weight_hh: [4H, I] and [4H, P].
        bias_ih, bias_hh: [4H], or None.
        weight_hr: [P, H], the projection, or None.
        batch_sizes: int64 [T], or None.
        reverse: go backwards in time.
        save: return what the gradient needs.

    Returns:
        The states of all steps [T, N, P] or [S, P], the last ones [N, P] and [N, H]; and i f g o c
        of all steps side by side [S, 5H], empty unless ``save``.
    """
    time = _Timeline(input, batch_sizes, reverse)
    x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr = _float64(
        _flat(input), hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr
    )
    h, c = h.copy(), c.copy()
    hidden = c.shape[1]
    a = _affine(x, w_ih, b_ih)
    output, saved = np.empty((time.rows, h.shape[1])), np.empty((time.rows, 5 * hidden))
    for rows, n in time:
        i, f, g, o = np.split(a[rows] + _affine(h[:n], w_hh, b_hh), 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c[:n] = f * c[:n] + i * g
        state = o * np.tanh(c[:n])
        h[:n] = state if w_hr is None else state @ w_hr.T
        output[rows] = h[:n]
        saved[rows] = np.concatenate([i, f, g, o, c[:n]], axis=1)
    kept = saved if save else np.empty((0, 0))
    return (
        _shaped(output, input),
        h.astype(input.dtype),
        c.astype(input.dtype),
        kept.astype(_saved_dtype(input.dtype)),
    )


def gru(
    input: Array,
    hx: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Optional = None,
    bias_hh: Optional = None,
    batch_sizes: Optional = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Array, Array, Array]:
    """Gated recurrent unit; arguments as for :func:`lstm`, with 3H rows in weights.

    Returns:
        The states of all steps, the last ones; and r z n b[n] of all steps [S, 4H].
    """
    time = _Timeline(input, batch_sizes, reverse)
    x, h, w_ih, w_hh, b_ih, b_hh = _float64(
        _flat(input), hx, weight_ih, weight_hh, bias_ih, bias_hh
    )
    h = h.copy()
    a = _affine(x, w_ih, b_ih)
    output, saved = np.empty((time.rows, h.shape[1])), np.empty((time.rows, 4 * h.shape[1]))
    for rows, n in time:
        a_r, a_z, a_n = np.split(a[rows], 3, axis=1)
        b_r, b_z, b_n = np.split(_affine(h[:n], w_hh, b_hh), 3, axis=1)
        r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
        new = np.tanh(a_n + r * b_n)
        h[:n] = (1 - z) * new + z * h[:n]
        output[rows] = h[:n]
        saved[rows] = np.concatenate([r, z, new, b_n], axis=1)
    kept = saved if save else np.empty((0, 0))
    return (
        _shaped(output, input),
        h.astype(input.dtype),
        kept.astype(_saved_dtype(input.dtype)),
    )


def _rnn(
    activation: Callable[[Array], Array],
    input: Array,
    hx: Array,
    weight_ih: Array,
    weight_hh: Array,
    bias_ih: Optional = None,
    bias_hh: Optional = None,
    batch_sizes: Optional = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Array, Array, Array]:
    time = _Timeline(input, batch_sizes, reverse)
    x, h, w_ih, w_hh, b_ih, b_hh = _float64(
        _flat(input), hx, weight_ih, weight_hh, bias_ih, bias_hh
    )
    h = h.copy()
    a = _affine(x, w_ih, b_ih)
    output = np.empty((time.rows, h.shape[1]))
    for rows, n in time:
        h[:n] = activation(a[rows] + _affine(h[:n], w_hh, b_hh))
        output[rows] = h[:n]
    return (
        _shaped(output, input),
        h.astype(input.dtype),
        np.empty((0, 0), _saved_dtype(input.dtype)),
    )


def rnn_tanh(*arguments: Any) -> tuple[Array, Array, Array]:
    """Elman network; arguments as for :func:`gru`, with H rows in weights.

    Returns:
        The states of all steps, the last ones; and nothing, for the gradient needs no more.
    """
    return _rnn(np.tanh, *arguments)


def rnn_relu(*arguments: Any) -> tuple[Array, Array, Array]:
    """:func:`rnn_tanh` with ``max(x, 0)`` instead of tanh."""
    return _rnn(lambda x: np.maximum(x, 0), *arguments)


def lstm_backward(
    grad_output: Array,
    grad_hn: Array,
    grad_cn: Array,
    saved: Array,
    cx: Array,
    weight_hh: Array,
    weight_hr: Optional = None,
    batch_sizes: Optional = None,
    reverse: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """The gradient of :func:`lstm` through time.

    Returns:
        The gradients by a + b [S, 4H], by hx and cx, and by every h before its projection is undone
        [S, P]; that is empty without one.
    """
    time = _Timeline(grad_output, batch_sizes, reverse)
    grad, dh, dc, kept, c0, w_hh, w_hr = _float64(
        _flat(grad_output), grad_hn, grad_cn, saved, cx, weight_hh, weight_hr
    )
    i, f, g, o, c = np.split(kept, 5, axis=1)
    before = time.states_before(c0, c)
    gates, projected = np.empty((time.rows, w_hh.shape[0])), np.empty(grad.shape)
    dh, dc = dh.copy(), dc.copy()
    for rows, n in reversed(list(time)):
        total = grad[rows] + dh[:n]
        projected[rows] = total
        if w_hr is not None:
            total = total @ w_hr
        squashed = np.tanh(c[rows])
        by_c = dc[:n] + total * o[rows] * (1 - squashed**2)
        gates[rows] = np.concatenate(
            [
                by_c * g[rows] * i[rows] * (1 - i[rows]),
                by_c * before[rows] * f[rows] * (1 - f[rows]),
                by_c * i[rows] * (1 - g[rows] ** 2),
                total * squashed * o[rows] * (1 - o[rows]),
            ],
            axis=1,
        )
        dc[:n] = by_c * f[rows]
        dh[:n] = gates[rows] @ w_hh
    dtype = grad_output.dtype
    kept_projected = projected if w_hr is not None else projected[:0]
    return gates.astype(dtype), dh.astype(dtype), dc.astype(dtype), kept_projected.astype(dtype)


def gru_backward(
    grad_output: Array,
    grad_hn: Array,
    saved: Array,
    output: Array,
    hx: Array,
    weight_hh: Array,
    batch_sizes: Optional = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """The gradient of :func:`gru` through time.

    Returns:
        The gradients by r, z, b[n] and a[n] [S, 4H], and by hx.
    """
    time = _Timeline(grad_output, batch_sizes, reverse)
    grad, dh, kept, h, h0, w_hh = _float64(
        _flat(grad_output), grad_hn, saved, _flat(output), hx, weight_hh
    )
    r, z, new, b = np.split(kept, 4, axis=1)
    before = time.states_before(h0, h)
    gates, dh = np.empty((time.rows, 4 * h.shape[1])), dh.copy()
    for rows, n in reversed(list(time)):
        total = grad[rows] + dh[:n]
        by_new = total * (1 - z[rows]) * (1 - new[rows] ** 2)
        gates[rows] = np.concatenate(
            [
                by_new * b[rows] * r[rows] * (1 - r[rows]),
                total * (before[rows] - new[rows]) * z[rows] * (1 - z[rows]),
                by_new * r[rows],
                by_new,
            ],
            axis=1,
        )
        dh[:n] = total * z[rows] + gates[rows][:, : w_hh.shape[0]] @ w_hh
    return gates.astype(grad_output.dtype), dh.astype(grad_output.dtype)


def _rnn_backward(
    derivative: Callable[[Array], Array],
    grad_output: Array,
    grad_hn: Array,
    output: Array,
    weight_hh: Array,
    batch_sizes: Optional = None,
    reverse: bool = False,
) -> tuple[Array, Array]:
    time = _Timeline(grad_output, batch_sizes, reverse)
    grad, dh, h, w_hh = _float64(_flat(grad_output), grad_hn, _flat(output), weight_hh)
    gates, dh = np.empty(h.shape), dh.copy()
    for rows, n in reversed(list(time)):
        gates[rows] = (grad[rows] + dh[:n]) * derivative(h[rows])
        dh[:n] = gates[rows] @ w_hh
    return gates.astype(grad_output.dtype), dh.astype(grad_output.dtype)


def rnn_tanh_backward(*arguments: Any) -> tuple[Array, Array]:
    """The gradient of :func:`rnn_tanh` through time.

    Returns:
        The gradients by a + b [S, H], and by hx.
    """
    return _rnn_backward(lambda h: 1 - h**2, *arguments)


def rnn_relu_backward(*arguments: Any) -> tuple[Array, Array]:
    """The gradient of :func:`rnn_relu` through time; where h is NaN it passes, as in torch."""
    return _rnn_backward(lambda h: np.where(h <= 0, 0.0, 1.0), *arguments)


lstm_numba, gru_numba, rnn_tanh_numba, rnn_relu_numba = lstm, gru, rnn_tanh, rnn_relu
lstm_backward_numba, gru_backward_numba = lstm_backward, gru_backward
rnn_tanh_backward_numba, rnn_relu_backward_numba = rnn_tanh_backward, rnn_relu_backward
