"""lstm, gru, rnn_tanh and rnn_relu as torch ops: one layer in one direction over a whole sequence.

    d op(x, h0, weights) through time = <op>_backward: the gradients by the gates of all steps
    by x, weight_ih, weight_hh, bias  = one product each of those with weight_ih, x, h and 1

Where a graph of the derivative is wanted (double backward), and under torch.func and forward-mode
differentiation, the op is its formula in torch's own functions (ops/_recurrent_formula.py), of
which all derivatives exist.

Shapes: input [T, N, I], or [S, I] with batch_sizes [T]; hx [N, P], cx [N, H]; weights [G*H, I] and
[G*H, P], weight_hr [P, H]; gates of all steps [S, G*H].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fastconv._torch_private import torch
from fastconv.ops import _recurrent_formula as formula
from fastconv.ops._check import (
    FLOATING,
    Output,
    dtype_name,
    expect,
    expect_alike,
    expect_dtype,
    expect_rank,
    expect_shape,
)
from fastconv.ops._define import Grads, Op, define

if TYPE_CHECKING:
    from torch import Tensor


def _saved_dtype(like: Any) -> Any:
    name = "float64" if dtype_name(like) == "float64" else "float32"
    return getattr(torch, name) if torch else name


def _rows(sequence: Any) -> Any:
    """S, the number of rows of [T, N, ...] or [S, ...]."""
    return sequence.shape[0] if len(sequence.shape) == 2 else sequence.shape[0] * sequence.shape[1]


class _Recurrent(Op):
    """What all of them have in common."""

    family = "recurrent"
    dtypes = FLOATING
    transforms_by_torch = True
    gates: ClassVar[int]
    saved: ClassVar[int] = 0  # what the derivative needs, per unit

    def expect_sequence(
        self, name: str, sequence: Any, batch_sizes: Any, states: int, columns: int
    ) -> None:
        expect_rank(self.name, name, sequence.shape, 3 if batch_sizes is None else 2)
        expect_dtype(self.name, self.dtypes, sequence)
        shape = (*sequence.shape[:-1], columns)
        if batch_sizes is None:
            shape = (sequence.shape[0], states, columns)
        else:
            expect_rank(self.name, "batch_sizes", batch_sizes.shape, 1)
            dtype = dtype_name(batch_sizes)
            expect(dtype == "int64", self.name, "batch_sizes of dtype int64", dtype)
        expect_shape(self.name, name, sequence.shape, shape)

    def expect_all(self, first: tuple[str, Any], **others: tuple[Any, tuple[int, ...]]) -> None:
        """Every tensor that is there has its shape, and the type and device of the first."""
        for name, (tensor, shape) in others.items():
            if tensor is not None:
                expect_shape(self.name, name, tensor.shape, shape)
                expect_alike(self.name, name, tensor, *first)

    def sizes(self, weight_hh: Any, weight_hr: Any = None) -> tuple[int, int]:
        """(H, P)."""
        expect_rank(self.name, "weight_hh", weight_hh.shape, 2)
        rows, P = weight_hh.shape
        H = rows // self.gates
        law = f"weight_hh of shape [{self.gates} * hidden_size, size of the state]"
        legal = rows == H * self.gates and (weight_hr is not None or H == P) and H > 0 and P > 0
        expect(legal, self.name, law, list(weight_hh.shape))
        return H, P

    def vmap(self, batch: int, dims: Any, *arguments: Any) -> Any:
        def of_call(number: int) -> Any:
            return self.overload(
                *(
                    argument if dim is None else argument.select(dim, number)
                    for argument, dim in zip(arguments, dims, strict=True)
                )
            )

        calls = [of_call(number) for number in range(batch)]
        return tuple(torch.stack(results) for results in zip(*calls, strict=True))


class _Forward(_Recurrent):
    """gru, rnn_tanh, rnn_relu; lstm has a second state."""

    differentiable_outputs = 2
    integer_outputs: ClassVar[tuple[int, ...]] = (2,)
    arguments: ClassVar[str] = (
        "(Tensor input, Tensor hx, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih=None, "
        "Tensor? bias_hh=None, Tensor? batch_sizes=None, bool reverse=False, bool save=False) -> "
        "(Tensor, Tensor, Tensor)"
    )

    def outputs(
        self,
        input: Any,
        hx: Any,
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any = None,
        bias_hh: Any = None,
        batch_sizes: Any = None,
        reverse: bool = False,
        save: bool = False,
    ) -> tuple[Output, ...]:
        H, _ = self.sizes(weight_hh)
        expect_rank(self.name, "hx", hx.shape, 2)
        N, width, columns = hx.shape[0], input.shape[-1], self.gates * H
        self.expect_sequence("input", input, batch_sizes, N, width)
        self.expect_all(
            ("input", input),
            hx=(hx, (N, H)),
            weight_ih=(weight_ih, (columns, width)),
            weight_hh=(weight_hh, (columns, H)),
            bias_ih=(bias_ih, (columns,)),
            bias_hh=(bias_hh, (columns,)),
        )
        saved = (_rows(input), self.saved * H) if save and self.saved else (0, 0)
        return (
            Output((*input.shape[:-1], H)),
            Output((N, H)),
            Output(saved, dtype=_saved_dtype(input)),
        )

    def torch(self, *arguments: Any) -> Any:
        return getattr(formula, self.name)(*arguments)

    def remember(self, inputs: Any, result: Any) -> tuple[Sequence[Any], tuple[Any, ...]]:
        given = (*inputs, None, None, None, False)[: self.tensors + 1]
        return (*given[: self.tensors], result[0], result[-1]), (given[-1],)

    def backward(self, needs: Any, grad: Any, tensors: Any, constants: Any) -> Grads:
        *inputs, output, saved = tensors
        if torch.is_grad_enabled():  # somebody will differentiate this again
            results = formula.derivative(self.torch, (*inputs, *constants), grad, needs)
            return results[: self.tensors]
        if self.saved and saved.shape[1] == 0:  # the call did not expect to be differentiated
            saved = self.call(*inputs, *constants, True)[-1]
        shapes = [output.shape, *(state.shape for state in self.states(inputs))]
        grads = [
            output.new_zeros(shape) if each is None else each
            for each, shape in zip(grad, shapes, strict=True)
        ]
        return self.through_time(needs, grads, inputs, output, saved, *constants)

    def states(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return inputs[1:2]

    def through_time(
        self, needs: Any, grads: Any, inputs: Any, output: Any, saved: Any, reverse: bool
    ) -> Grads:
        x, hx, w_ih, w_hh, b_ih, b_hh, batch_sizes = inputs
        gates, grad_hx = self.gate_grads(grads, saved, output, hx, w_hh, batch_sizes, reverse)
        columns = w_hh.shape[0]
        of_input = [gates] if gates.shape[1] == columns else _split(gates, w_hh.shape[1])
        return (
            formula.input_grad(of_input, w_ih, x) if needs[0] else None,
            grad_hx if needs[1] else None,
            formula.weight_grad(of_input, x) if needs[2] else None,
            formula.weight_grad(
                [gates[:, :columns]], formula.states_before(hx, output, batch_sizes, reverse)
            )
            if needs[3]
            else None,
            torch.cat([each.sum(0) for each in of_input])
            if b_ih is not None and needs[4]
            else None,
            gates[:, :columns].sum(0) if b_hh is not None and needs[5] else None,
        )

    def gate_grads(self, grads: Any, saved: Any, output: Any, hx: Any, *rest: Any) -> Any:
        raise NotImplementedError

    def flops(self, x: Any, *arguments: Any, **_: Any) -> int:
        w_ih, w_hh = arguments[1:3]
        rows = x[0] * x[1] if len(x) == 3 else x[0]
        return int(2 * rows * w_ih[0] * (w_ih[1] + w_hh[1]))


def _split(gates: Tensor, H: int) -> list[Tensor]:
    """A gru's r, z and a[n], of r, z, b[n] and a[n]."""
    return [gates[:, : 2 * H], gates[:, 3 * H :]]


class _Backward(_Recurrent):
    """Through time: the gradients by the gates of all steps and by the first state."""

    differentiable_outputs = 2

    def results(self, grad_output: Any, columns: int, *shapes: Any) -> tuple[Output, ...]:
        return (Output((_rows(grad_output), columns)), *(Output(shape) for shape in shapes))

    def torch(self, *arguments: Any) -> Any:
        return getattr(formula, self.name)(*arguments)

    def backward(self, needs: Any, grad: Any, tensors: Any, constants: Any) -> Grads:
        return formula.derivative(self.torch, (*tensors, *constants), grad, needs)[: self.tensors]


class Lstm(_Forward):
    """Long short-term memory."""

    gates = 4
    saved = 5
    differentiable_outputs = 3
    integer_outputs: ClassVar[tuple[int, ...]] = (3,)
    schema = (
        "lstm(Tensor input, Tensor hx, Tensor cx, Tensor weight_ih, Tensor weight_hh, "
        "Tensor? bias_ih=None, Tensor? bias_hh=None, Tensor? weight_hr=None, "
        "Tensor? batch_sizes=None, bool reverse=False, bool save=False) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    )

    def outputs(  # type: ignore[override]
        self,
        input: Any,
        hx: Any,
        cx: Any,
        weight_ih: Any,
        weight_hh: Any,
        bias_ih: Any = None,
        bias_hh: Any = None,
        weight_hr: Any = None,
        batch_sizes: Any = None,
        reverse: bool = False,
        save: bool = False,
    ) -> tuple[Output, ...]:
        H, P = self.sizes(weight_hh, weight_hr)
        expect_rank(self.name, "hx", hx.shape, 2)
        N, width = hx.shape[0], input.shape[-1]
        self.expect_sequence("input", input, batch_sizes, N, width)
        self.expect_all(
            ("input", input),
            hx=(hx, (N, P)),
            cx=(cx, (N, H)),
            weight_ih=(weight_ih, (4 * H, width)),
            weight_hh=(weight_hh, (4 * H, P)),
            bias_ih=(bias_ih, (4 * H,)),
            bias_hh=(bias_hh, (4 * H,)),
            weight_hr=(weight_hr, (P, H)),
        )
        return (
            Output((*input.shape[:-1], P)),
            Output((N, P)),
            Output((N, H)),
            Output((_rows(input), 5 * H) if save else (0, 0), dtype=_saved_dtype(input)),
        )

    def states(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return inputs[1:3]

    def through_time(
        self, needs: Any, grads: Any, inputs: Any, output: Any, saved: Any, reverse: bool
    ) -> Grads:
        x, hx, cx, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes = inputs
        gates, grad_hx, grad_cx, projected = lstm_backward.call(
            *grads, saved, cx, w_hh, w_hr, batch_sizes, reverse
        )
        bias = (
            gates.sum(0)
            if (b_ih is not None and needs[5]) or (b_hh is not None and needs[6])
            else None
        )
        return (
            formula.input_grad([gates], w_ih, x) if needs[0] else None,
            grad_hx if needs[1] else None,
            grad_cx if needs[2] else None,
            formula.weight_grad([gates], x) if needs[3] else None,
            formula.weight_grad([gates], formula.states_before(hx, output, batch_sizes, reverse))
            if needs[4]
            else None,
            bias if b_ih is not None and needs[5] else None,
            # Not the same tensor twice: an optimizer may write to one of them.
            bias.clone() if bias is not None and b_hh is not None and needs[6] else None,
            formula.weight_grad([projected], formula.unprojected(saved).to(x.dtype))
            if w_hr is not None and needs[7]
            else None,
        )

    def flops(self, x: Any, *arguments: Any, **_: Any) -> int:
        return super().flops(x, *arguments[1:])


class Gru(_Forward):
    """Gated recurrent unit."""

    gates = 3
    saved = 4
    schema = f"gru{_Forward.arguments}"

    def gate_grads(self, grads: Any, saved: Any, output: Any, hx: Any, *rest: Any) -> Any:
        return gru_backward.call(*grads, saved, output, hx, *rest)


class RnnTanh(_Forward):
    """Elman network."""

    gates = 1
    schema = f"rnn_tanh{_Forward.arguments}"

    def gate_grads(self, grads: Any, saved: Any, output: Any, hx: Any, *rest: Any) -> Any:
        return rnn_tanh_backward.call(*grads, output, *rest)


class RnnRelu(_Forward):
    """Elman network with max(x, 0)."""

    gates = 1
    schema = f"rnn_relu{_Forward.arguments}"

    def gate_grads(self, grads: Any, saved: Any, output: Any, hx: Any, *rest: Any) -> Any:
        return rnn_relu_backward.call(*grads, output, *rest)


class LstmBackward(_Backward):
    """The gradient of lstm through time."""

    gates = 4
    saved = 5
    differentiable_outputs = 4
    schema = (
        "lstm_backward(Tensor grad_output, Tensor grad_hn, Tensor grad_cn, Tensor saved, "
        "Tensor cx, Tensor weight_hh, Tensor? weight_hr=None, Tensor? batch_sizes=None, "
        "bool reverse=False) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    )

    def outputs(
        self,
        grad_output: Any,
        grad_hn: Any,
        grad_cn: Any,
        saved: Any,
        cx: Any,
        weight_hh: Any,
        weight_hr: Any = None,
        batch_sizes: Any = None,
        reverse: bool = False,
    ) -> tuple[Output, ...]:
        H, P = self.sizes(weight_hh, weight_hr)
        expect_rank(self.name, "grad_hn", grad_hn.shape, 2)
        N = grad_hn.shape[0]
        self.expect_sequence("grad_output", grad_output, batch_sizes, N, P)
        expect_shape(self.name, "saved", saved.shape, (_rows(grad_output), 5 * H))
        self.expect_all(
            ("grad_output", grad_output),
            grad_hn=(grad_hn, (N, P)),
            grad_cn=(grad_cn, (N, H)),
            cx=(cx, (N, H)),
            weight_hh=(weight_hh, (4 * H, P)),
            weight_hr=(weight_hr, (P, H)),
        )
        projected = (0 if weight_hr is None else _rows(grad_output), P)
        return self.results(grad_output, 4 * H, (N, P), (N, H), projected)


class GruBackward(_Backward):
    """The gradient of gru through time."""

    gates = 3
    saved = 4
    schema = (
        "gru_backward(Tensor grad_output, Tensor grad_hn, Tensor saved, Tensor output, Tensor hx, "
        "Tensor weight_hh, Tensor? batch_sizes=None, bool reverse=False) -> (Tensor, Tensor)"
    )

    def outputs(
        self,
        grad_output: Any,
        grad_hn: Any,
        saved: Any,
        output: Any,
        hx: Any,
        weight_hh: Any,
        batch_sizes: Any = None,
        reverse: bool = False,
    ) -> tuple[Output, ...]:
        H, _ = self.sizes(weight_hh)
        expect_rank(self.name, "grad_hn", grad_hn.shape, 2)
        N = grad_hn.shape[0]
        self.expect_sequence("grad_output", grad_output, batch_sizes, N, H)
        expect_shape(self.name, "saved", saved.shape, (_rows(grad_output), 4 * H))
        self.expect_all(
            ("grad_output", grad_output),
            grad_hn=(grad_hn, (N, H)),
            output=(output, tuple(grad_output.shape)),
            hx=(hx, (N, H)),
            weight_hh=(weight_hh, (3 * H, H)),
        )
        return self.results(grad_output, 4 * H, (N, H))


class _RnnBackward(_Backward):
    """The gradient of rnn_tanh or rnn_relu through time."""

    gates = 1
    arguments: ClassVar[str] = (
        "(Tensor grad_output, Tensor grad_hn, Tensor output, Tensor weight_hh, "
        "Tensor? batch_sizes=None, bool reverse=False) -> (Tensor, Tensor)"
    )

    def outputs(
        self,
        grad_output: Any,
        grad_hn: Any,
        output: Any,
        weight_hh: Any,
        batch_sizes: Any = None,
        reverse: bool = False,
    ) -> tuple[Output, ...]:
        H, _ = self.sizes(weight_hh)
        expect_rank(self.name, "grad_hn", grad_hn.shape, 2)
        N = grad_hn.shape[0]
        self.expect_sequence("grad_output", grad_output, batch_sizes, N, H)
        self.expect_all(
            ("grad_output", grad_output),
            grad_hn=(grad_hn, (N, H)),
            output=(output, tuple(grad_output.shape)),
            weight_hh=(weight_hh, (H, H)),
        )
        return self.results(grad_output, H, (N, H))


class RnnTanhBackward(_RnnBackward):
    """Of rnn_tanh."""

    schema = f"rnn_tanh_backward{_RnnBackward.arguments}"


class RnnReluBackward(_RnnBackward):
    """Of rnn_relu."""

    schema = f"rnn_relu_backward{_RnnBackward.arguments}"


lstm_backward = define(LstmBackward)
gru_backward = define(GruBackward)
rnn_tanh_backward = define(RnnTanhBackward)
rnn_relu_backward = define(RnnReluBackward)
lstm = define(Lstm)
gru = define(Gru)
rnn_tanh = define(RnnTanh)
rnn_relu = define(RnnRelu)
