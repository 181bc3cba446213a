"""lstm, gru and rnn in torch's own functions: what every derivative exists of, one step after the
other; and the products over all steps that end their gradients.

Argument lists are those of the ops in ops/recurrent.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastconv._torch_private import torch
from fastconv.ops._check import expect
from fastconv.ops.conv2d import conv2d, conv2d_weight_grad

if TYPE_CHECKING:
    from torch import Tensor

# ---- Which rows a step has


def _counts(sequence: Tensor, batch_sizes: Tensor | None, state: Tensor) -> list[int]:
    if batch_sizes is None:
        return [sequence.shape[1]] * sequence.shape[0]
    counts = [int(count) for count in batch_sizes.tolist()]
    law = f"batch_sizes that begin with {state.shape[0]}, as the state, and never increase"
    legal = counts == sorted(counts, reverse=True) and counts[:1] == [state.shape[0]]
    legal = legal and counts[-1] > 0 and sum(counts) == sequence.shape[0]
    expect(legal, "recurrent", law, counts)
    return counts


def _steps(counts: list[int], reverse: bool) -> Iterator[tuple[int, slice, int]]:
    """(t, rows, how many) of every step, as computed."""
    first = [0]
    for count in counts:
        first.append(first[-1] + count)
    steps = range(len(counts))
    for t in reversed(steps) if reverse else steps:
        yield t, slice(first[t], first[t + 1]), counts[t]


def _flat(sequence: Tensor) -> Tensor:
    rows = sequence.shape[0] if sequence.dim() == 2 else sequence.shape[0] * sequence.shape[1]
    return sequence.reshape(rows, sequence.shape[-1])


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(*like.shape[:-1], rows.shape[-1])


def _replaced(state: Tensor, new: Tensor) -> Tensor:
    """The state with its first rows replaced."""
    return new if new.shape[0] == state.shape[0] else torch.cat([new, state[new.shape[0] :]])


def _in_order(by_step: dict[int, Tensor], empty: Tensor) -> Tensor:
    return torch.cat([by_step[t] for t in sorted(by_step)]) if by_step else empty


def states_before(
    first: Tensor, states: Tensor, batch_sizes: Tensor | None, reverse: bool
) -> Tensor:
    """Row by row the state of the step before: [S, P] of [N, P] and [T, N, P] or [S, P]."""
    if batch_sizes is None:
        steps = states.shape[0]
        parts = [states[1:], first[None]] if reverse else [first[None], states[:-1]]
        return _flat(torch.cat(parts)[:steps])
    sizes = batch_sizes.to(states.device)
    rows, steps = states.shape[0], sizes.shape[0]
    begins = sizes.cumsum(0) - sizes
    t = torch.repeat_interleave(torch.arange(steps, device=states.device), sizes, output_size=rows)
    n = torch.arange(rows, device=states.device) - begins[t]
    other = t + 1 if reverse else t - 1
    inside = other.clamp(0, steps - 1)
    there = (other == inside) & (n < sizes[inside])
    index = torch.where(there, first.shape[0] + begins[inside] + n, n)
    return torch.cat([first, states]).index_select(0, index)


# ---- The products over all steps


def _image(rows: Tensor) -> Tensor:
    """Rows [S, C] as an image [1, C, 1, S], channels_last: pointwise convolutions are products."""
    return rows[None, None].permute(0, 3, 1, 2)


def _is_empty(*extents: int) -> bool:
    return any(extent == 0 for extent in extents)


def input_grad(gates: Sequence[Tensor], weight_ih: Tensor, like: Tensor) -> Tensor:
    """By the input: gates [S, G*H], in parts, times weight_ih."""
    begin, total = 0, None
    for part in gates:
        weight = weight_ih[begin : begin + part.shape[1]].t()
        if _is_empty(part.shape[0], weight.shape[0]):
            product = part @ weight.t()
        else:
            image = conv2d.call(_image(part), weight[:, :, None, None])
            product = image.permute(0, 2, 3, 1).reshape(part.shape[0], weight.shape[0])
        total = product if total is None else total + product
        begin += part.shape[1]
    assert total is not None
    return _shaped(total, like)


def weight_grad(gates: Sequence[Tensor], x: Tensor) -> Tensor:
    """By a weight: gates [S, G*H], in parts, transposed, times what met the weight."""
    rows = _flat(x)
    products = []
    for part in gates:
        size = (part.shape[1], rows.shape[1])
        if _is_empty(part.shape[0], rows.shape[1]):
            products.append(part.t() @ rows)
        else:
            product = conv2d_weight_grad.call(_image(part), _image(rows), (*size, 1, 1))
            products.append(product.reshape(size))
    return products[0] if len(products) == 1 else torch.cat(products)


def unprojected(saved: Tensor) -> Tensor:
    """o * tanh(c) of what lstm saved."""
    _, _, _, o, c = saved.chunk(5, 1)
    return o * torch.tanh(c)


# ---- The formulas


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _wide(x: Tensor) -> Tensor:
    """What an op saves: never narrower than float32."""
    return x if x.dtype == torch.float64 else x.float()


def lstm(
    input: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the op."""
    a = _affine(_flat(input), weight_ih, bias_ih)
    h, c = hx, cx
    outputs: dict[int, Tensor] = {}
    kept: dict[int, Tensor] = {}
    for t, rows, n in _steps(_counts(input, batch_sizes, hx), reverse):
        i, f, g, o = (a[rows] + _affine(h[:n], weight_hh, bias_hh)).chunk(4, 1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        new_c = f * c[:n] + i * g
        new_h = o * torch.tanh(new_c)
        if weight_hr is not None:
            new_h = _affine(new_h, weight_hr, None)
        h, c = _replaced(h, new_h), _replaced(c, new_c)
        outputs[t] = new_h
        if save:
            kept[t] = torch.cat([i, f, g, o, new_c], 1)
    output = _in_order(outputs, a.new_empty(0, hx.shape[1]))
    saved = _in_order(kept, a.new_empty(0, 5 * cx.shape[1] if save else 0))
    return _shaped(output, input), h.clone(), c.clone(), _wide(saved.detach())


def gru(
    input: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the op."""
    a = _affine(_flat(input), weight_ih, bias_ih)
    h = hx
    outputs: dict[int, Tensor] = {}
    kept: dict[int, Tensor] = {}
    for t, rows, n in _steps(_counts(input, batch_sizes, hx), reverse):
        a_r, a_z, a_n = a[rows].chunk(3, 1)
        b_r, b_z, b_n = _affine(h[:n], weight_hh, bias_hh).chunk(3, 1)
        r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
        new = torch.tanh(a_n + r * b_n)
        outputs[t] = (1 - z) * new + z * h[:n]
        h = _replaced(h, outputs[t])
        if save:
            kept[t] = torch.cat([r, z, new, b_n], 1)
    output = _in_order(outputs, a.new_empty(0, hx.shape[1]))
    saved = _in_order(kept, a.new_empty(0, 4 * hx.shape[1] if save else 0))
    return _shaped(output, input), h.clone(), _wide(saved.detach())


def _rnn(
    activation: Callable[[Tensor], Tensor],
    input: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    a = _affine(_flat(input), weight_ih, bias_ih)
    h = hx
    outputs: dict[int, Tensor] = {}
    for t, rows, n in _steps(_counts(input, batch_sizes, hx), reverse):
        outputs[t] = activation(a[rows] + _affine(h[:n], weight_hh, bias_hh))
        h = _replaced(h, outputs[t])
    output = _in_order(outputs, a.new_empty(0, hx.shape[1]))
    return _shaped(output, input), h.clone(), _wide(a.detach().new_empty(0, 0))


def rnn_tanh(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As the op."""
    return _rnn(torch.tanh, *arguments)


def rnn_relu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As the op."""
    return _rnn(torch.relu, *arguments)


# ---- Through time


def lstm_backward(
    grad_output: Tensor,
    grad_hn: Tensor,
    grad_cn: Tensor,
    saved: Tensor,
    cx: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As the op."""
    grad, dh, dc = _flat(grad_output), grad_hn, grad_cn
    kept = saved.to(grad.dtype)
    before = states_before(cx, _as_sequence(kept.chunk(5, 1)[4], grad_output), batch_sizes, reverse)
    gates: dict[int, Tensor] = {}
    projected: dict[int, Tensor] = {}
    for t, rows, n in reversed(list(_steps(_counts(grad_output, batch_sizes, grad_hn), reverse))):
        i, f, g, o, c = kept[rows].chunk(5, 1)
        total = projected[t] = grad[rows] + dh[:n]
        if weight_hr is not None:
            total = total @ weight_hr
        squashed = torch.tanh(c)
        by_c = dc[:n] + total * o * (1 - squashed * squashed)
        gates[t] = torch.cat(
            [
                by_c * g * i * (1 - i),
                by_c * before[rows] * f * (1 - f),
                by_c * i * (1 - g * g),
                total * squashed * o * (1 - o),
            ],
            1,
        )
        dh, dc = _replaced(dh, gates[t] @ weight_hh), _replaced(dc, by_c * f)
    by_projected = _in_order(projected, grad) if weight_hr is not None else grad[:0].clone()
    empty = grad.new_empty(0, weight_hh.shape[0])
    return _in_order(gates, empty), dh.clone(), dc.clone(), by_projected


def gru_backward(
    grad_output: Tensor,
    grad_hn: Tensor,
    saved: Tensor,
    output: Tensor,
    hx: Tensor,
    weight_hh: Tensor,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """As the op."""
    grad, dh, kept = _flat(grad_output), grad_hn, saved.to(grad_output.dtype)
    before = states_before(hx, output, batch_sizes, reverse)
    gates: dict[int, Tensor] = {}
    for t, rows, n in reversed(list(_steps(_counts(grad_output, batch_sizes, grad_hn), reverse))):
        r, z, new, b = kept[rows].chunk(4, 1)
        total = grad[rows] + dh[:n]
        by_new = total * (1 - z) * (1 - new * new)
        parts = [by_new * b * r * (1 - r), total * (before[rows] - new) * z * (1 - z), by_new * r]
        gates[t] = torch.cat([*parts, by_new], 1)
        dh = _replaced(dh, total * z + torch.cat(parts, 1) @ weight_hh)
    return _in_order(gates, grad.new_empty(0, kept.shape[1])), dh.clone()


def _rnn_backward(
    derivative: Callable[[Tensor], Tensor],
    grad_output: Tensor,
    grad_hn: Tensor,
    output: Tensor,
    weight_hh: Tensor,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    grad, dh, h = _flat(grad_output), grad_hn, _flat(output)
    gates: dict[int, Tensor] = {}
    for t, rows, n in reversed(list(_steps(_counts(grad_output, batch_sizes, grad_hn), reverse))):
        gates[t] = (grad[rows] + dh[:n]) * derivative(h[rows])
        dh = _replaced(dh, gates[t] @ weight_hh)
    return _in_order(gates, grad), dh.clone()


def rnn_tanh_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """As the op."""
    return _rnn_backward(lambda h: 1 - h * h, *arguments)


def rnn_relu_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """As the op."""
    return _rnn_backward(lambda h: torch.where(h <= 0, 0.0, 1.0).to(h.dtype), *arguments)


def _as_sequence(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(*like.shape[:-1], rows.shape[-1])


# ---- Every further derivative


def derivative(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Any],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradient of ``function`` by the arguments that need one, itself differentiable where
    gradients are enabled."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs, wanted = list(arguments), []
        for place, need in enumerate(needs):
            if need:
                given = arguments[place]
                # An alias, so that what is asked for is the gradient by this argument alone.
                inputs[place] = (
                    given.view_as(given)
                    if again and given.requires_grad
                    else given.detach().requires_grad_()
                )
                wanted.append(place)
        results = function(*inputs)
        used = [
            (result, grad)
            for result, grad in zip(results, grads, strict=False)
            if grad is not None and result.requires_grad
        ]
        found = (
            torch.autograd.grad(
                [result for result, _ in used],
                [inputs[place] for place in wanted],
                [grad for _, grad in used],
                create_graph=again,
                allow_unused=True,
            )
            if used
            else [None] * len(wanted)
        )
    by_place = dict(zip(wanted, found, strict=True))
    return tuple(by_place.get(place) for place in range(len(needs)))
