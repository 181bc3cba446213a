"""Law: while fastconv computes torch's own convolutions, torch is torch in everything but speed."""

import itertools
import threading

import native
import pytest
import torch
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db

import fastconv

ENTRIES = ("nn.functional.conv1d", "nn.functional.conv2d", "nn.functional.conv3d")
ENTRIES += ("nn.functional.conv_transpose2d",)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.fixture(autouse=True)
def needs_the_compiled_part():
    native.core()
    yield
    fastconv.disable()


def entry(name):
    (found,) = [info for info in op_db if info.name == name]
    return found


def leaves_of(sample):
    tensors = [sample.input, *sample.args, *sample.kwargs.values()]
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]


def results_of(info, sample):
    """The output and all gradients, for a gradient that is laid out as the output."""
    output = info.op(sample.input, *sample.args, **sample.kwargs)
    torch.manual_seed(0)
    grad = torch.randn_like(output)
    leaves = leaves_of(sample)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad, allow_unused=True)]


def views_of(sample):
    """The sample as it is, in channels_last, and with a gap behind every element."""
    yield sample
    if sample.input.ndim != 4:
        return
    for view in (
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.stack([t, t], -1)[..., 0],
    ):
        changed = view(sample.input.detach()).requires_grad_()
        yield type(sample)(changed, args=sample.args, kwargs=sample.kwargs)


def strides_of(tensor):
    """The strides that say something: compiled programs look at no others."""
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def assert_same(ours, torchs, context):
    for mine, other in zip(ours, torchs, strict=True):
        if other is None:
            assert mine is None, context
            continue
        assert mine.dtype == other.dtype, context
        assert strides_of(mine) == strides_of(other), context
        # torch makes a complex convolution of real ones, which cancel.
        bounds = {"rtol": 1e-5, "atol": 1e-4} if mine.is_complex() else {}
        torch.testing.assert_close(mine, other, msg=lambda text: f"{context}\n{text}", **bounds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ENTRIES)
def test_samples_and_their_gradients(name, dtype):
    info = entry(name)
    found = list(info.sample_inputs("cpu", dtype, requires_grad=True))
    assert found
    for number, sample in enumerate(found):
        for view in views_of(sample):
            torchs = results_of(info, view)
            with fastconv.enable():
                ours = results_of(info, view)
            assert_same(ours, torchs, f"sample {number}: {view}")


@pytest.mark.parametrize("name", ENTRIES)
def test_samples_in_every_listed_dtype(name):
    info = entry(name)
    for dtype in sorted(info.dtypes, key=str):
        for sample in itertools.islice(info.sample_inputs("cpu", dtype), 6):
            expected = info.op(sample.input, *sample.args, **sample.kwargs)
            with fastconv.enable():
                actual = info.op(sample.input, *sample.args, **sample.kwargs)
            assert_same([actual], [expected], f"{dtype}: {sample}")


@pytest.mark.parametrize("name", ENTRIES)
def test_derivatives(name):
    info = entry(name)
    found = list(info.sample_inputs("cpu", torch.float64, requires_grad=True))
    for sample in found[:: max(1, len(found) // 6)]:
        leaves = leaves_of(sample)
        if not all(leaf.numel() for leaf in leaves):
            continue

        def function(*tensors, sample=sample, leaves=leaves):
            swap = dict(zip(map(id, leaves), tensors, strict=True))

            def of(value):
                return swap.get(id(value), value)

            kwargs = {key: of(value) for key, value in sample.kwargs.items()}
            return info.op(of(sample.input), *map(of, sample.args), **kwargs)

        with fastconv.enable():
            assert torch.autograd.gradcheck(
                function, leaves, fast_mode=True, check_forward_ad=True, check_batched_grad=True
            )
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ENTRIES)
def test_errors_are_torchs(name):
    info = entry(name)
    if info.error_inputs_func is None:
        pytest.skip("torch lists no error inputs for this function")
    for wrong in info.error_inputs("cpu"):
        sample, said = wrong.sample_input, []
        for on in (False, True):
            if on:
                fastconv.enable()
            with pytest.raises(wrong.error_type) as raised:
                info.op(sample.input, *sample.args, **sample.kwargs)
            said.append(str(raised.value))
            fastconv.disable()
        assert said[0] == said[1]


def call(seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, 24, 17, 15), torch.randn(40, 24, 3, 3)


def test_it_is_fastconv_that_computes():
    image, weight = call()
    ours = fastconv.functional.conv2d(image, weight, stride=2)
    torchs = F.conv2d(image, weight, stride=2)
    assert not torch.equal(ours, torchs), "else this tells nothing"
    with fastconv.enable():
        assert torch.equal(F.conv2d(image, weight, stride=2), ours)
        layer = torch.nn.Conv2d(24, 40, 3, stride=2, bias=False)
        layer.weight.data = weight
        assert torch.equal(layer(image), ours)
    assert torch.equal(F.conv2d(image, weight, stride=2), torchs)


def test_blocks_nest_and_switches_are_idempotent():
    image, weight = call()
    torchs = F.conv2d(image, weight, stride=2)

    def is_on():
        return not torch.equal(F.conv2d(image, weight, stride=2), torchs)

    fastconv.disable()
    assert not is_on()
    with fastconv.enable():
        with fastconv.enable():
            assert is_on()
        assert is_on()
        fastconv.disable()
        assert not is_on()
        fastconv.enable()
    assert not is_on()
    fastconv.enable()
    fastconv.enable()
    assert is_on()
    with pytest.raises(ZeroDivisionError), fastconv.enable():
        raise ZeroDivisionError
    assert is_on(), "it was on before"
    fastconv.disable()
    assert not is_on()


@pytest.mark.parametrize("transform", ["vmap", "jvp", "hessian"])
def test_function_transforms(transform):
    image, weight = (tensor.double() for tensor in call())
    image, weight = image[:, :4, :6, :6], weight[:3, :4]

    def run():
        if transform == "vmap":
            images = torch.stack([image, image + 1])
            return torch.vmap(lambda x: F.conv2d(x, weight))(images)
        if transform == "jvp":
            return torch.func.jvp(lambda x: F.conv2d(x, weight), (image,), (image.cos(),))[1]
        loss = lambda w: F.conv2d(image, w).pow(3).mean()  # noqa: E731
        return torch.func.hessian(loss)(weight)

    expected = run()
    with fastconv.enable():
        torch.testing.assert_close(run(), expected)


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_compiled_training_and_autocast(fmt):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 1)
    ).to(memory_format=fmt)
    image = torch.randn(2, 3, 10, 10).contiguous(memory_format=fmt)

    def gradients(forward):
        model.zero_grad()
        forward(image).float().square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(model)
    with fastconv.enable():
        assert_same(gradients(model), expected, "eager")
        assert_same(gradients(torch.compile(model, backend="aot_eager")), expected, "compiled")
        with torch.autocast("cpu", torch.bfloat16):
            for mine, other in zip(gradients(model), rounded, strict=True):
                torch.testing.assert_close(mine, other, rtol=3e-2, atol=3e-3)


def test_gradients_that_are_laid_out_otherwise():
    """channels_last activations whose gradient comes contiguous, or expanded from a number."""
    image, weight = (tensor.double() for tensor in call())
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    for reduce in (lambda y: y.sum(), lambda y: (y.flatten(1) * y.flatten(1).detach()).sum()):
        expected = torch.autograd.grad(reduce(F.conv2d(image, weight)), image)
        with fastconv.enable():
            ours = torch.autograd.grad(reduce(F.conv2d(image, weight)), image)
        assert_same(ours, expected, "gradient")


def test_threads_may_call_while_it_is_switched():
    image, weight = (tensor.double() for tensor in call())
    expected, wrong, stop = F.conv2d(image, weight), [], threading.Event()

    def work():
        while not stop.is_set():
            try:
                torch.testing.assert_close(F.conv2d(image, weight), expected)
            except Exception as error:  # reported below, on the test's own thread
                wrong.append(error)
                return

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(50):
        with fastconv.enable():
            F.conv2d(image, weight)
    stop.set()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_build_without_the_compiled_part_says_so(monkeypatch):
    monkeypatch.setattr(fastconv._native, "torch_is_loaded", False)
    with pytest.raises(RuntimeError, match="enable: expected fastconv's compiled part"):
        fastconv.enable()
