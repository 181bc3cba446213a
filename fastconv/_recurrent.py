"""The functions of ``fastconv.functional`` that carry a state through a sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastconv import _arrays, _backend
from fastconv import _torch_private as private
from fastconv._torch_private import HAS_TORCH, torch
from fastconv.ops import recurrent as ops
from fastconv.ops._define import Op

if HAS_TORCH:
    from torch import Tensor

    _is_compiling = torch.compiler.is_dynamo_compiling
    _Parameter, _strided = torch.nn.Parameter, torch.strided
elif not TYPE_CHECKING:

    class Tensor:
        """Nothing is one."""


def lstm(*arguments: Any, **keywords: Any) -> Any:
    """Long short-term memory over a sequence, as ``torch.lstm``, which ``torch.nn.LSTM`` calls.

    Args:
        arguments: (input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
            batch_first), or (data, batch_sizes, hx, params, has_biases, num_layers, dropout, train,
            bidirectional) of a packed sequence; hx is (h, c).
        keywords: the same by name.

    Returns:
        The states of all steps of the last layer [T, N, P], [N, T, P] with ``batch_first`` or
        [S, P]; and the last state of every layer and direction [layers * directions, N, P] and
        [layers * directions, N, H].

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> params = [ones(20, 3), ones(20, 5), ones(20), ones(20)]
        >>> output, h, c = fastconv.functional.lstm(
        ...     ones(7, 2, 3), (ones(1, 2, 5), ones(1, 2, 5)), params, True, 1, 0.0, False, False,
        ...     False)
        >>> output.shape, c.shape
        ((7, 2, 5), (1, 2, 5))
    """
    return _layers(lstm, *arguments, **keywords)


def gru(*arguments: Any, **keywords: Any) -> Any:
    """Gated recurrent units over a sequence, as ``torch.gru``, which ``torch.nn.GRU`` calls.

    Args:
        arguments, keywords: as for :func:`lstm`; hx is h alone.

    Returns:
        The states of all steps of the last layer, and the last ones of all.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> output, h = fastconv.functional.gru(
        ...     ones(7, 2, 3), ones(1, 2, 5), [ones(15, 3), ones(15, 5)], False, 1, 0.0, False,
        ...     False, False)
        >>> output.shape, h.shape
        ((7, 2, 5), (1, 2, 5))
    """
    return _layers(gru, *arguments, **keywords)


def rnn_tanh(*arguments: Any, **keywords: Any) -> Any:
    """An Elman network over a sequence, as ``torch.rnn_tanh``, which ``torch.nn.RNN`` calls.

    Args:
        arguments, keywords: as for :func:`gru`.

    Returns:
        The states of all steps of the last layer, and the last ones of all.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> output, h = fastconv.functional.rnn_tanh(
        ...     ones(7, 2, 3), ones(1, 2, 5), [ones(5, 3), ones(5, 5)], False, 1, 0.0, False, False,
        ...     False)
        >>> output.shape, h.shape
        ((7, 2, 5), (1, 2, 5))
    """
    return _layers(rnn_tanh, *arguments, **keywords)


def rnn_relu(*arguments: Any, **keywords: Any) -> Any:
    """:func:`rnn_tanh` with ``max(x, 0)`` instead of tanh, as ``torch.rnn_relu``.

    Args:
        arguments, keywords: as for :func:`gru`.

    Returns:
        The states of all steps of the last layer, and the last ones of all.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> output, h = fastconv.functional.rnn_relu(
        ...     ones(2, 1, 3), ones(1, 1, 1), [ones(1, 3), ones(1, 1)], False, 1, 0.0, False, False,
        ...     False)
        >>> output.ravel().tolist()
        [4.0, 7.0]
    """
    return _layers(rnn_relu, *arguments, **keywords)


def lstm_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> tuple[Any, Any]:
    """One step of :func:`lstm`, as ``torch.lstm_cell``.

    Args:
        input: [N, I]; float32, float64, bfloat16 or float16.
        hx: the state (h, c), [N, H] each.
        w_ih, w_hh: [4H, I] and [4H, H].
        b_ih, b_hh: [4H], or None.

    Returns:
        The next state (h, c).

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTMCell.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> h, c = fastconv.functional.lstm_cell(
        ...     ones(2, 3), (ones(2, 5), ones(2, 5)), ones(20, 3), ones(20, 5))
        >>> h.shape, c.shape
        ((2, 5), (2, 5))
    """
    h, c = hx
    return _cell(lstm_cell, ops.lstm, input, hx, (h, c), (w_ih, w_hh, b_ih, b_hh))  # type: ignore[no-any-return]


def gru_cell(input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    """One step of :func:`gru`, as ``torch.gru_cell``.

    Args:
        input: [N, I]; float32, float64, bfloat16 or float16.
        hx: the state [N, H].
        w_ih, w_hh: [3H, I] and [3H, H].
        b_ih, b_hh: [3H], or None.

    Returns:
        The next state [N, H].

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRUCell.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> fastconv.functional.gru_cell(ones(2, 3), ones(2, 5), ones(15, 3), ones(15, 5)).shape
        (2, 5)
    """
    return _cell(gru_cell, ops.gru, input, hx, (hx,), (w_ih, w_hh, b_ih, b_hh))


def rnn_tanh_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    """One step of :func:`rnn_tanh`, as ``torch.rnn_tanh_cell``.

    Args:
        input: [N, I]; float32, float64, bfloat16 or float16.
        hx: the state [N, H].
        w_ih, w_hh: [H, I] and [H, H].
        b_ih, b_hh: [H], or None.

    Returns:
        The next state [N, H].

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Source of the formula: https://docs.pytorch.org/docs/stable/generated/torch.nn.RNNCell.html

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> fastconv.functional.rnn_tanh_cell(ones(2, 3), ones(2, 5), ones(5, 3), ones(5, 5)).shape
        (2, 5)
    """
    return _cell(rnn_tanh_cell, ops.rnn_tanh, input, hx, (hx,), (w_ih, w_hh, b_ih, b_hh))


def rnn_relu_cell(
    input: Any, hx: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    """One step of :func:`rnn_relu`, as ``torch.rnn_relu_cell``.

    Args:
        input, hx, w_ih, w_hh, b_ih, b_hh: as for :func:`rnn_tanh_cell`.

    Returns:
        The next state [N, H].

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.

    Example:
        >>> import numpy as np
        >>> import fastconv
        >>> ones = lambda *size: np.ones(size, "float32")
        >>> fastconv.functional.rnn_relu_cell(
        ...     ones(1, 3), ones(1, 1), ones(1, 3), ones(1, 1)).tolist()
        [[4.0]]
    """
    return _cell(rnn_relu_cell, ops.rnn_relu, input, hx, (hx,), (w_ih, w_hh, b_ih, b_hh))


# Those that torch.autocast runs in the lower precision; the state of the others keeps its own.
_LOWERED = frozenset({lstm, rnn_tanh, rnn_relu, rnn_tanh_cell, rnn_relu_cell})


def _cell(
    function: Callable[..., Any],
    op: Op,
    input: Any,
    hx: Any,
    states: tuple[Any, ...],
    weights: tuple[Any, ...],
) -> Any:
    tensors = (input, *states, *weights)
    if HAS_TORCH and any(isinstance(each, Tensor) for each in tensors):
        plain = not _is_compiling() and _are_plain(tensors)
        if torch.overrides.has_torch_function(tensors):
            arguments = (input, hx, *weights)
            return torch.overrides.handle_torch_function(function, tensors, *arguments)
        plain = plain and input.dtype in op.torch_dtypes and input.dim() == 2
        plain = plain and states[0].dim() == states[-1].dim() == 2
        if not plain and not _are_served(op, tensors, ranks=(2,) * (1 + len(states))):
            return getattr(torch, function.__name__)(input, hx, *weights)
        if private.autocast_is_active():
            tensors = _autocast(function, tensors)
        results = op.call(
            tensors[0].unsqueeze(0),
            *tensors[1:],
            *(None,) * (op.tensors - len(tensors)),
            False,
            _records(tensors),
        )
    else:
        for each in tensors:
            if each is not None:
                _arrays.expect_array(op.name, "every array", each)
        if len(input.shape) != 2:
            got = f"{op.name}: expected input of 2 dimensions, got {len(input.shape)}"
            raise RuntimeError(got)
        results = _array_call(op, input[None], *states, *weights)
    return results[1] if len(states) == 1 else (results[1], results[2])


def _layers(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """All layers and directions, one op each."""
    op: Op = getattr(ops, function.__name__)
    call = _Arguments(function, *arguments, **keywords)
    states = tuple(call.hx) if op is ops.lstm else (call.hx,)
    params = list(call.params)
    tensors = (call.input, *states, *params)
    is_torch = HAS_TORCH and any(isinstance(each, Tensor) for each in tensors)
    if is_torch:
        if torch.overrides.has_torch_function(tensors):
            return torch.overrides.handle_torch_function(function, tensors, *arguments, **keywords)
        rank = 3 if call.batch_sizes is None else 2
        ranks = (rank, *(3 for _ in states))
        directions = 2 if call.bidirectional else 1
        each = len(params) / max(call.num_layers * directions, 1)
        fits = len(states) == op.differentiable_outputs - 1 and each in call.weight_counts(op)
        fits = fits and call.num_layers >= 1
        if not fits or not _are_served(op, tensors, ranks):
            return getattr(torch, function.__name__)(*arguments, **keywords)
        if private.autocast_is_active():
            call.input, *rest = _autocast(function, tensors)
            states, params = tuple(rest[: len(states)]), rest[len(states) :]
    return _stack(op, call, states, params, is_torch)


class _Arguments:
    """The two argument lists of torch.lstm and its like."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        packed = "batch_sizes" in keywords or (
            len(arguments) > 3 and not isinstance(arguments[3], bool)
        )
        names = ["hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional"]
        names = ["data", "batch_sizes", *names] if packed else ["input", *names, "batch_first"]
        if len(arguments) > len(names) or not set(keywords) <= set(names[len(arguments) :]):
            law = f"{function.__name__}: expected ({', '.join(names)})"
            raise TypeError(f"{law}, got {len(arguments)} arguments and {sorted(keywords)}")
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        missing = [name for name in names if name not in given]
        if missing:
            raise TypeError(f"{function.__name__}: expected {', '.join(missing)}, got none")
        self.input = given["data" if packed else "input"]
        self.batch_sizes = given.get("batch_sizes")
        self.hx, self.params = given["hx"], given["params"]
        self.has_biases: bool = given["has_biases"]
        self.num_layers: int = given["num_layers"]
        self.dropout: float = given["dropout"] if given["train"] else 0.0
        self.bidirectional: bool = given["bidirectional"]
        self.batch_first: bool = given.get("batch_first", False)

    def weight_counts(self, op: Op) -> tuple[int, ...]:
        """Of a layer and direction; an lstm may have a projection."""
        count = 4 if self.has_biases else 2
        return (count, count + 1) if op is ops.lstm else (count,)


def _stack(
    op: Op, call: _Arguments, states: Sequence[Any], params: list[Any], is_torch: bool
) -> Any:
    x = call.input
    if call.batch_first:
        x = x.transpose(0, 1) if is_torch else x.swapaxes(0, 1)
    if call.batch_sizes is None and x.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    xp = torch if is_torch else _arrays.namespace_of(x)
    directions = (False, True) if call.bidirectional else (False,)
    count = len(params) // (call.num_layers * len(directions))
    optional = (None, None) if not call.has_biases else ()
    last: list[tuple[Any, ...]] = []
    for layer in range(call.num_layers):
        outputs = []
        for reverse in directions:
            number = len(last)
            weights = params[number * count : (number + 1) * count]
            projection = weights[4 - len(optional) :]
            given = [*weights[: 4 - len(optional)], *optional, *projection]
            given += [None] * (op.tensors - 2 - len(states) - len(given))
            first = (state[number] for state in states)
            arguments = (x, *first, *given, call.batch_sizes, reverse)
            output, *rest = (
                op.call(*arguments, _records(arguments))
                if is_torch
                else _array_call(op, *arguments)
            )
            outputs.append(output)
            last.append(tuple(rest[:-1]))
        x = outputs[0] if len(outputs) == 1 else _joined(xp, outputs)
        if is_torch and call.dropout and layer + 1 < call.num_layers:
            x = torch.dropout(x, call.dropout, True)
    if call.batch_first:
        x = x.transpose(0, 1) if is_torch else x.swapaxes(0, 1)
    return (x, *(xp.stack(list(kind)) for kind in zip(*last, strict=True)))


def _joined(xp: Any, outputs: list[Any]) -> Any:
    axis = len(outputs[0].shape) - 1
    if HAS_TORCH and xp is torch:
        return torch.cat(outputs, axis)
    return (xp.concatenate if hasattr(xp, "concatenate") else xp.concat)(outputs, axis=axis)


def _records(tensors: Sequence[Any]) -> bool:
    """Whether the op has to keep what the gradient needs."""
    return (
        torch.is_grad_enabled()
        and (_is_compiling() or not torch.is_inference_mode_enabled())
        and any(isinstance(each, Tensor) and each.requires_grad for each in tensors)
    )


def _are_plain(tensors: Sequence[Any]) -> bool:
    """What nearly every call is made of; runs in every call of a cell."""
    for each in tensors:
        if each is not None and not (
            (type(each) is Tensor or type(each) is _Parameter)
            and each.is_cpu
            and each.layout is _strided
        ):
            return False
    return True


def _are_served(op: Op, tensors: Sequence[Any], ranks: Sequence[int]) -> bool:
    """Whether fastconv's op computes it; else torch's own function does, or says what is wrong."""
    if not all(each is None or isinstance(each, Tensor) for each in tensors):
        return False
    first = tensors[0]
    if any(tensor.dim() != rank for tensor, rank in zip(tensors, ranks, strict=False)):
        return False
    return (
        first.dtype in op.torch_dtypes
        and all(each is None or each.layout is torch.strided for each in tensors)
        and first.device.type in ("cpu", "meta")
    )


def _autocast(function: Callable[..., Any], tensors: Sequence[Any]) -> tuple[Any, ...]:
    """As torch: in the lower precision, or where torch's own formula would end, in the state's."""
    device = tensors[0].device.type
    if device != "cpu" or not torch.is_autocast_enabled(device):
        return tuple(tensors)
    known = [each for each in tensors if each is not None and each.dtype != torch.float64]
    if len(known) < sum(each is not None for each in tensors):
        return tuple(tensors)
    dtype = torch.get_autocast_dtype(device)
    if function not in _LOWERED:
        state = tensors[2 if function is lstm_cell else 1]
        dtype = torch.promote_types(dtype, state.dtype)
    return tuple(None if each is None else each.to(dtype) for each in tensors)


def _array_call(op: Op, *arguments: Any) -> Any:
    arrays = tuple(None if each is None else each for each in arguments)
    core = _backend.array_core
    if core is not None and not _arrays.is_cupy(arrays[0]):
        return getattr(core, op.name)(*arrays)
    return _arrays.call(op.name, *arrays)


__all__ = sorted({each.__name__ for each in itertools.chain(_LOWERED, (gru, gru_cell, lstm_cell))})
