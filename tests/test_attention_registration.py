"""Law: to torch attention is its own: derivatives of every order, transforms, compilers."""

import io
import math

import pytest
import torch
from attention_calls import CASES, leaves_of, op_arguments, tensors_of
from torch.func import functional_call, grad, jvp, vjp, vmap

import fastconv

ours = fastconv.functional.scaled_dot_product_attention
torchs = torch.nn.functional.scaled_dot_product_attention
TINY = [case for case in CASES if 0 < case.query[2] * case.keys < 1700 and 0 not in case.query
        and math.prod(case.query) < 5000 and case.features]  # fmt: skip
tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
FEW = ("one number", "bias that heads share", "queries share a head of keys", "dropout",
       "capped, biased and causal", "mask of keys", "window before alone")  # fmt: skip
few = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in FEW], ids=lambda case: case.name
)


def output_of(case, tensors):
    """The op as a function of the tensors that have a gradient, and these."""
    wanted = [name for name, t in tensors.items() if t is not None and t.requires_grad]

    def function(*given):
        swapped = tensors | dict(zip(wanted, given, strict=True))
        return fastconv.ops.attention.attention.call(*op_arguments(case, swapped))[0]

    return function, [tensors[name] for name in wanted]


# ---- Derivatives and transforms


@tiny
def test_first_and_second_derivative(case):
    function, leaves = output_of(case, leaves_of(tensors_of(case, torch.float64)))
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@few
def test_forward_mode(case):
    function, leaves = output_of(case, leaves_of(tensors_of(case, torch.float64)))
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
    _, tangent = jvp(function, tuple(t.detach() for t in leaves), tangents)
    step = 1e-6
    ahead, behind = (
        function(*(t.detach() + sign * step * d for t, d in zip(leaves, tangents, strict=True)))
        for sign in (1, -1)
    )
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@few
def test_vjp_and_vmap(case):
    function, leaves = output_of(case, leaves_of(tensors_of(case, torch.float64)))
    plain = tuple(t.detach() for t in leaves)
    output, pull = vjp(function, *plain)
    weights = torch.randn_like(output)
    expected = torch.autograd.grad(function(*leaves), leaves, weights)
    for actual, wanted in zip(pull(weights), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    if case.dropout_p:
        return
    stacks = [torch.stack([t, t.flip(0) + 1, t * 2]) for t in plain]
    for chosen in range(1, 2 ** len(stacks)):
        for axis in (0, -1):
            mapped = [bool(chosen >> i & 1) for i in range(len(stacks))]
            args = [s.movedim(0, axis) if m else s[0] for s, m in zip(stacks, mapped, strict=True)]
            actual = vmap(function, in_dims=tuple(axis if m else None for m in mapped))(*args)
            wanted = torch.stack(
                [function(*(s[i] if m else s[0] for s, m in zip(stacks, mapped, strict=True)))
                 for i in range(3)]
            )  # fmt: skip
            torch.testing.assert_close(actual, wanted)


@few
def test_vmap_of_gradients(case):
    """Gradients of a batch of calls at once, each of its own."""
    if case.dropout_p:
        pytest.skip("the calls of a batch have one seed, but other positions")
    function, leaves = output_of(case, leaves_of(tensors_of(case, torch.float64)))
    stacks = [torch.stack([t.detach(), t.detach() * 0.5]) for t in leaves]
    every = tuple(range(len(stacks)))
    loss = grad(lambda *t: function(*t).square().sum(), argnums=every)
    batched = vmap(loss)(*stacks)
    for i in range(2):
        for actual, wanted in zip(batched, loss(*(s[i] for s in stacks)), strict=True):
            torch.testing.assert_close(actual[i], wanted)


# ---- Compilers


@few
def test_opcheck(case):
    tensors = leaves_of(tensors_of(case, torch.float32))
    arguments = op_arguments(case, tensors)
    torch.library.opcheck(torch.ops.fastconv.attention.default, arguments)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    output, lse = torch.ops.fastconv.attention(*plain)
    given = (torch.ones_like(output), *plain[:3], output, lse, *plain[3:])
    torch.library.opcheck(torch.ops.fastconv.attention_backward.default, given)
    if case.mask and not case.boolean:
        torch.library.opcheck(torch.ops.fastconv.attention_mask_grad.default, given)


class Block(torch.nn.Module):
    """Heads, attention, and what it is usually surrounded by."""

    def __init__(self, **kwargs):
        super().__init__()
        torch.manual_seed(4)
        self.into, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
        self.kwargs = kwargs

    def forward(self, x, mask=None):
        B, L, _ = x.shape
        q, k, v = self.into(x).view(B, L, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return self.out(ours(q, k, v, mask, **self.kwargs).transpose(1, 2).reshape(B, L, 32))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    block = Block(is_causal=True)
    compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=True)
    for B, L in ((2, 9), (3, 14), (2, 33)):
        x, mask = torch.randn(B, L, 32), torch.randn(1, 1, L, L)
        results = []
        for run in (block, compiled):
            leaves = [t.clone().requires_grad_() for t in (x, mask)]
            output = run(*leaves)
            results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        for eager, fast in zip(*results, strict=True):
            torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-5)


def test_compiled_gradients_are_made_by_the_op():
    """Not by the matrix of scores."""
    seen = []

    def watch(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(Block(), backend=aot_autograd(fw_compiler=watch, bw_compiler=watch))
    compiled(torch.randn(2, 9, 32)).sum().backward()
    assert any("attention_backward" in name for name in seen)
    assert not any("bmm" in name or "softmax" in name for name in seen)


def test_export():
    block = Block().eval()
    x = torch.randn(2, 9, 32)
    batch, length = (
        torch.export.Dim("batch", min=1, max=8),
        torch.export.Dim("length", min=2, max=64),
    )
    program = torch.export.export(block, (x,), dynamic_shapes=({0: batch, 1: length},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for size in ((2, 9), (5, 17)):
        x = torch.randn(*size, 32)
        torch.testing.assert_close(loaded(x), block(x))


def test_per_sample_gradients():
    block = Block()
    parameters = {name: p.detach() for name, p in block.named_parameters()}
    samples = torch.randn(3, 9, 32)

    def loss(parameters, sample):
        return functional_call(block, parameters, (sample[None],)).square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        for name, wanted in grad(loss)(parameters, sample).items():
            torch.testing.assert_close(together[name][i], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast(low):
    tensors = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7)]
    mask = torch.randn(5, 7, requires_grad=True)
    with torch.autocast("cpu", low):
        expected, output = torchs(*tensors, mask), ours(*tensors, mask)
        assert output.dtype == expected.dtype == low
    for gradient in torch.autograd.grad(output.float().sum(), [*tensors, mask]):
        assert gradient.dtype == torch.float32


def test_only_needed_gradients_are_computed():
    q, k, v = (torch.randn(1, 2, n, 8) for n in (5, 7, 7))
    for mask_needs, needed in ((True, "attention_mask_grad"), (False, "attention_backward")):
        mask = torch.zeros(1, 1, 5, 7, requires_grad=mask_needs)
        output = ours(q.requires_grad_(not mask_needs), k, v, mask)
        with torch.profiler.profile() as profile:
            output.sum().backward()
        ran = {event.name for event in profile.events() if event.name.startswith("fastconv::")}
        assert ran == {f"fastconv::{needed}"}


def test_tensor_subclass_sees_the_call():
    seen = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", ""))
            return super().__torch_function__(function, types, args, kwargs or {})

    q = torch.randn(1, 2, 5, 8)
    output = ours(q.as_subclass(Watching), q, q, return_lse=False)
    assert "scaled_dot_product_attention" in seen
    assert isinstance(output, Watching)


def test_meta_and_foreign_tensors():
    q = torch.randn(1, 2, 5, 8, device="meta")
    assert ours(q, q, q).device.type == "meta"
    with pytest.raises(RuntimeError, match="softcap only with"):
        ours(*[torch.ones(1, 2, 5, 8).cfloat()] * 3, softcap=1.0)
