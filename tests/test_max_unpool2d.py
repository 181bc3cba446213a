"""Law: max_unpool2d is torch's in values, gradients of every order, layouts, errors, at every door
and on every backend; an index outside of the output never writes.

It takes indices beside its image, which no other operation does: so its laws stand here.
"""

import inspect

import native
import numpy as np
import pytest
import torch
from operations.mistakes import exception_of
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv.reference import max_unpool2d as reference

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "expanded")
every_example = pytest.mark.parametrize("example", reference.EXAMPLES, ids=lambda e: e.name)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def tensors(example, dtype=torch.float32, layout="contiguous"):
    """An image and indices: places of a shuffled plane, each once."""
    image = fastconv.testing.make_input(example.input, dtype, layout)
    generator = torch.Generator().manual_seed(3)
    planes = image[..., 0, 0].numel()
    count, places = (int(np.prod(size)) for size in (example.input[-2:], example.output_size))
    rows = [torch.randperm(places, generator=generator)[:count] for _ in range(planes)]
    indices = torch.stack(rows) if rows else torch.zeros(0, dtype=torch.int64)
    indices = indices.reshape(example.input)
    if layout == "channels_last" and indices.dim() == 4:
        indices = indices.contiguous(memory_format=torch.channels_last)
    return image, indices


def truth(example, image, indices):
    return reference.max_unpool2d(image.double().numpy(), indices.numpy(), example.output_size)


def same(actual, expected, what=""):
    fastconv.testing.assert_close(actual, expected, context=what)


@every_layout
@every_example
def test_values_and_gradients_are_those_of_torch(example, layout):
    for dtype in FLOATING:
        image, indices = tensors(example, dtype, layout)
        results = []
        for package in (fastconv.functional, torch.nn.functional):
            leaf = image.detach().requires_grad_()
            output = package.max_unpool2d(leaf, indices, **example.kwargs)
            grad = fastconv.testing.make_input(output.shape, dtype, seed=5)
            (gradient,) = torch.autograd.grad(output, leaf, grad)
            results.append((output, gradient))
        (ours, our_gradient), (torchs, gradient) = results
        assert ours.dtype == dtype
        assert torch.equal(ours, torchs), dtype
        assert torch.equal(our_gradient, gradient), dtype
        if ours.numel():
            assert ours.stride() == torchs.stride()
        same(ours, truth(example, image, indices), f"{dtype}")


@pytest.mark.parametrize("backend", native.backends())
@every_example
def test_every_backend_and_door(example, backend):
    image, indices = tensors(example)
    expected = truth(example, image, indices)
    module = fastconv.MaxUnpool2d(*list(example.kwargs.values())[:3])
    op = torch.ops.fastconv.max_unpool2d
    with fastconv.backend(backend):
        same(fastconv.functional.max_unpool2d(image, indices, **example.kwargs), expected)
        same(module(image, indices, output_size=example.output_size), expected)
        same(op(image, indices, example.output_size), expected)
        arrays = image.numpy(), indices.numpy()
        output = fastconv.functional.max_unpool2d(*arrays, **example.kwargs)
        assert type(output) is np.ndarray
        same(output, expected)
        grad = torch.from_numpy(np.random.default_rng(0).standard_normal(expected.shape)).float()
        gradient = torch.ops.fastconv.max_unpool2d_backward(grad, indices)
        same(gradient, reference.max_unpool2d_backward(grad.double().numpy(), indices.numpy()))


@every_example
def test_core_threads_and_instruction_sets(example):
    core = native.core()
    image, indices = tensors(example)
    expected, before, threads = truth(example, image, indices), core.isa(), torch.get_num_threads()
    grad = np.ones(expected.shape, np.float32)
    try:
        for isa in core.available_isas():
            core.set_isa(isa)
            for count in (1, 3):
                torch.set_num_threads(count)
                output = core.max_unpool2d(image.numpy(), indices.numpy(), example.output_size)
                same(output, expected, isa)
                assert core.max_unpool2d_backward(grad, indices.numpy()).all(), isa
    finally:
        core.set_isa(before)
        torch.set_num_threads(threads)


SMALL = next(e for e in reference.EXAMPLES if e.name == "doubling with an odd rest")


def test_derivatives():
    image, indices = tensors(SMALL, torch.float64)

    def unpool(x):
        return fastconv.functional.max_unpool2d(x, indices, **SMALL.kwargs)

    leaf = image.requires_grad_()
    assert gradcheck(unpool, leaf, check_forward_ad=True)
    assert gradgradcheck(lambda x: unpool(x) ** 2, leaf, fast_mode=True)
    tangent = torch.randn_like(leaf)
    _, derivative = torch.func.jvp(unpool, (leaf.detach(),), (tangent,))
    same(derivative, unpool(tangent).detach())
    batch = torch.randn(4, *SMALL.input, dtype=torch.float64)
    each = torch.stack([unpool(x) for x in batch])
    same(torch.func.vmap(unpool)(batch), each)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: (unpool(x) ** 2).sum()))(batch)
    same(per_sample, 2 * batch)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_registration(layout):
    image, indices = tensors(SMALL, layout=layout)
    ops = torch.ops.fastconv
    image.requires_grad_()
    grad = torch.ones(*SMALL.input[:2], *SMALL.output_size).requires_grad_()
    torch.library.opcheck(ops.max_unpool2d.default, (image, indices, list(SMALL.output_size)))
    torch.library.opcheck(ops.max_unpool2d_backward.default, (grad, indices))
    for call in (
        lambda x, to: ops.max_unpool2d(x, to, SMALL.output_size),
        lambda x, to: ops.max_unpool2d_backward(x.new_ones(grad.shape), to),
    ):
        real, meta = call(image, indices), call(image.to("meta"), indices.to("meta"))
        assert (real.shape, real.stride()) == (meta.shape, meta.stride())
    module = fastconv.MaxUnpool2d(2)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for size in (None, SMALL.output_size):
        leaf = image.detach()[..., :3, :3].clone().requires_grad_()
        at = torch.arange(9).reshape(3, 3).expand(leaf.shape) * 3
        at, size = (at, None) if size is None else (at, (7, 7))
        output = compiled(leaf, at, size)
        torch.testing.assert_close(output, torch.nn.MaxUnpool2d(2)(leaf, at, size))
        output.sum().backward()
        assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_module_is_torchs():
    for arguments in ((2,), ((3, 2), 2, 1), (2, (2, 1))):
        ours, torchs = fastconv.MaxUnpool2d(*arguments), torch.nn.MaxUnpool2d(*arguments)
        assert isinstance(ours, torch.nn.MaxUnpool2d)
        assert repr(ours) == repr(torchs)
    signatures = [
        list(inspect.signature(cls).parameters)
        for cls in (fastconv.MaxUnpool2d, torch.nn.MaxUnpool2d)
    ]
    assert signatures[0] == signatures[1]
    x = torch.randn(2, 3, 9, 10)
    pooled = fastconv.MaxPool2d(2, return_indices=True)(x)
    torch.testing.assert_close(
        fastconv.MaxUnpool2d(2)(*pooled, output_size=x.shape),
        torch.nn.MaxUnpool2d(2)(
            *torch.nn.MaxPool2d(2, return_indices=True)(x), output_size=x.shape
        ),
    )


def test_of_equal_indices_the_last_counts_and_every_one_gets_the_gradient():
    """Which one counts in torch depends on its threads."""
    x, indices = torch.arange(4.0).view(1, 1, 2, 2), torch.full((1, 1, 2, 2), 5)
    gradients = []
    for package in (fastconv.functional, torch.nn.functional):
        leaf = x.clone().requires_grad_()
        output = package.max_unpool2d(leaf, indices, 2)
        gradients += torch.autograd.grad(output.sum(), leaf)
    assert torch.equal(*gradients)
    output = fastconv.functional.max_unpool2d(x, indices, 2).flatten()
    assert output.tolist() == [3.0 if place == 5 else 0.0 for place in range(16)]


# ---- errors

X, AT = torch.randn(2, 3, 4, 4), torch.arange(16).reshape(4, 4).expand(2, 3, 4, 4) * 4
MISTAKES = {
    "indices of int32": {"indices": AT.int()},
    "indices of float32": {"indices": AT.float()},
    "indices of booleans": {"indices": AT > 3},
    "indices of another size": {"indices": AT[:, :, :3]},
    "indices of another batch": {"indices": AT[:1]},
    "indices without a batch": {"indices": AT[0]},
    "indices that are no tensor": {"indices": [0]},
    "no indices": {"indices": None},
    "an index behind the end": {"indices": AT + 4},
    "an index before the beginning": {"indices": AT - 1},
    "an index far away": {"indices": AT + 2**40},
    "an index of 2^63 - 1": {"indices": AT.clone().index_fill_(3, torch.tensor(1), 2**63 - 1)},
    "integers": {"input": X.long()},
    "booleans": {"input": X > 0},
    "complex numbers": {"input": X.cfloat()},
    "two axes": {"input": X[0, 0], "indices": AT[0, 0]},
    "five axes": {"input": X[None], "indices": AT[None]},
    "no channels": {"input": X[:, :0], "indices": AT[:, :0]},
    "no rows": {"input": X[:, :, :0], "indices": AT[:, :, :0], "output_size": (1, 8)},
    "a size out of reach": {"output_size": (10, 8)},
    "a size below reach": {"output_size": (8, 6)},
    "a size of three numbers": {"output_size": (8, 8, 8)},
    "a size of one number": {"output_size": (8,)},
    "a size that is a number": {"output_size": 8},
    "a size of floats": {"output_size": (8.0, 8.0)},
    "a size of words": {"output_size": ("a", "b")},
    "a size that the indices exceed": {"output_size": (7, 7)},
    "a negative window": {"kernel_size": -1, "stride": 1},
    "a window that is a float": {"kernel_size": 2.0},
    "a window that is a word": {"kernel_size": "two"},
    "no window": {"kernel_size": None},
    "a stride of zero": {"stride": 0},
    "a negative stride": {"stride": -1},
    "padding that leaves too little": {"padding": 1},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_calls_raise_what_torch_raises(mistake):
    call = {"input": X, "indices": AT, "kernel_size": 2} | MISTAKES[mistake]
    expected = exception_of(torch.nn.functional.max_unpool2d, **call)
    assert expected is not None
    error = exception_of(fastconv.functional.max_unpool2d, **call)
    assert type(error) is type(expected), f"{error!r} instead of {expected!r}"
    assert "expected" in str(error) or str(error) == str(expected)
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    error = exception_of(fastconv.functional.max_unpool2d, **arrays)
    assert isinstance(error, (type(expected), NotImplementedError)), f"{error!r}"
    for backend in native.backends():
        with fastconv.backend(backend):
            error = exception_of(fastconv.functional.max_unpool2d, **call)
        assert type(error) is type(expected), f"{backend}: {error!r} instead of {expected!r}"


@pytest.mark.parametrize("bad", [-1, 25, 2**40, -(2**63), 2**63 - 1])
def test_an_index_outside_writes_nothing(bad):
    """The memory behind and before the output keeps its bytes."""
    core = native.core()
    image, indices = np.ones((1, 3, 2, 2)), np.zeros((1, 3, 2, 2), np.int64)
    indices[0, 1, 1, 1] = bad
    for call in (
        lambda: core.max_unpool2d(image, indices, (5, 5)),
        lambda: core.max_unpool2d_backward(np.ones((1, 3, 5, 5)), indices),
    ):
        with pytest.raises(RuntimeError, match=rf"expected indices in \[0, 25\), got {bad}$"):
            call()


def test_gradient_op_refuses_wrong_sizes():
    op, grad = torch.ops.fastconv.max_unpool2d_backward, torch.ones(2, 3, 8, 8)
    for wrong in (grad[:1], grad[:, :2], grad[0], grad[0, 0], grad[..., :4], grad.long()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            op(wrong, AT)
    with pytest.raises(RuntimeError):
        op(grad, AT.int())
