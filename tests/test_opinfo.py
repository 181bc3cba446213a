"""Law: torch's own test data finds no difference: op_db and module_db samples, gradients and error
inputs.
"""

import itertools

import pytest
import torch
from operations import OPERATIONS, every_operation, name_of
from operations.mistakes import exception_of
from torch.testing._internal.common_dtype import floating_types_and
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import fastconv

HALF_AND_FULL = (torch.float32, torch.float64, torch.bfloat16)
REDUCED = (torch.float16, torch.bfloat16)
MANY = 100  # more samples than this are run in float32 alone


def entry(operation):
    (found,) = [info for info in op_db if info.name == operation.opinfo]
    return found


def samples(operation, dtype, requires_grad=False, most=None):
    found = entry(operation).sample_inputs("cpu", dtype, requires_grad=requires_grad)
    return list(itertools.islice(found, most))


def outputs_of(result):
    return result if isinstance(result, tuple) else (result,)


def leaves_of(sample):
    tensors = [sample.input, *sample.args, *sample.kwargs.values()]
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]


def precise(sample):
    """The sample that torch is asked: one of a reduced dtype is widened.

    On CPUs without instructions for a reduced dtype, torch rounds every step of a gradient to it
    and errs by more than the tolerance.
    """

    def widen(value):
        if isinstance(value, torch.Tensor) and value.dtype in REDUCED:
            return value.detach().double().requires_grad_(value.requires_grad)
        return value

    return sample.transform(widen) if sample.input.dtype in REDUCED else sample


def assert_near(ours, torchs, context):
    torch.testing.assert_close(ours, torchs.to(ours.dtype), msg=lambda text: f"{context}\n{text}")


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=name_of)
@every_operation()
def test_samples(operation, dtype):
    found = samples(operation, dtype, requires_grad=True)
    if len(found) > MANY and dtype != torch.float32:
        pytest.skip(f"{len(found)} samples: run in float32")
    assert found
    for number, sample in enumerate(found):
        context = f"sample {number}: {sample}"
        asked = precise(sample)
        expected = outputs_of(operation.torch_functional(asked.input, *asked.args, **asked.kwargs))
        actual = outputs_of(operation.functional(sample.input, *sample.args, **sample.kwargs))
        assert len(actual) == len(expected), context
        for ours, torchs in zip(actual, expected, strict=True):
            assert ours.dtype == (sample.input.dtype if ours.is_floating_point() else torchs.dtype)
            assert ours.stride() == torchs.stride(), context
            assert_near(ours, torchs, context)
        grad = torch.randn_like(actual[0])
        mine = torch.autograd.grad(actual[0], leaves_of(sample), grad, allow_unused=True)
        theirs = torch.autograd.grad(
            expected[0], leaves_of(asked), grad.to(expected[0].dtype), allow_unused=True
        )
        for ours, torchs in zip(mine, theirs, strict=True):
            assert_near(ours, torchs, context)


@every_operation()
def test_samples_in_every_listed_dtype(operation):
    """A few samples in all dtypes that torch lists for CPU: the same result, or the same type of
    exception.
    """
    for dtype in sorted(entry(operation).dtypes, key=str):
        for sample in samples(operation, dtype, most=6):
            context = f"{dtype}, {sample}"
            asked = precise(sample)
            expected = outputs_of(
                operation.torch_functional(asked.input, *asked.args, **asked.kwargs)
            )
            actual = outputs_of(operation.functional(sample.input, *sample.args, **sample.kwargs))
            for ours, torchs in zip(actual, expected, strict=True):
                assert_near(ours, torchs, context)


@every_operation()
def test_channels_last_and_scattered_samples(operation):
    for number, sample in enumerate(samples(operation, torch.float32, most=60)):
        if sample.input.ndim != 4:
            continue
        for view in (
            sample.input.contiguous(memory_format=torch.channels_last),
            torch.stack([sample.input, sample.input], -1)[..., 0],
        ):
            expected = outputs_of(operation.torch_functional(view, *sample.args, **sample.kwargs))
            actual = outputs_of(operation.functional(view, *sample.args, **sample.kwargs))
            for ours, torchs in zip(actual, expected, strict=True):
                torch.testing.assert_close(ours, torchs)
                assert ours.stride() == torchs.stride(), f"sample {number}: {sample}"


@every_operation()
def test_derivatives_of_samples(operation):
    """gradcheck and gradgradcheck in float64, over a spread of the samples."""
    found = [s for s in samples(operation, torch.float64, requires_grad=True) if s.input.numel()]
    for sample in found[:: max(1, len(found) // 12)]:
        leaves = leaves_of(sample)

        def function(*tensors, sample=sample, leaves=leaves):
            swap = dict(zip(map(id, leaves), tensors, strict=True))

            def of(value):
                return swap.get(id(value), value)

            args = [of(value) for value in sample.args]
            kwargs = {key: of(value) for key, value in sample.kwargs.items()}
            return outputs_of(operation.functional(of(sample.input), *args, **kwargs))[0]

        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@every_operation()
def test_error_inputs(operation):
    if entry(operation).error_inputs_func is None:
        pytest.skip("torch lists no error inputs for this function")
    found = list(entry(operation).error_inputs("cpu"))
    assert found
    for wrong in found:
        sample = wrong.sample_input
        torchs, ours = (
            exception_of(function, sample.input, *sample.args, **sample.kwargs)
            for function in (operation.torch_functional, operation.functional)
        )
        assert torchs is not None
        assert type(ours) is type(torchs), f"{sample}: {ours!r} instead of {torchs!r}"


def module_entry(operation):
    (found,) = [
        info for info in module_db if info.module_cls is getattr(torch.nn, operation.module)
    ]
    return found


@pytest.mark.parametrize("training", [True, False], ids=("train", "eval"))
@pytest.mark.parametrize("dtype", floating_types_and(), ids=name_of)
@every_operation()
def test_module_samples(operation, dtype, training):
    info, cls = module_entry(operation), getattr(fastconv, operation.module)
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    assert inputs
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        results = []
        for module_class in (cls, info.module_cls):
            torch.manual_seed(3)
            module = module_class(*args, **kwargs).to(dtype).train(training)
            output = outputs_of(module(*sample.forward_input.args, **sample.forward_input.kwargs))[
                0
            ]
            output.sum().backward()
            results.append([output, *(parameter.grad for parameter in module.parameters())])
        for ours, torchs in zip(*results, strict=True):
            torch.testing.assert_close(ours, torchs)


@every_operation()
def test_module_error_inputs(operation):
    info, cls = module_entry(operation), getattr(fastconv, operation.module)
    if info.module_error_inputs_func is None:
        pytest.skip("torch lists no error inputs for this module")
    for wrong in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        sample = wrong.module_error_input

        def call(module_class, sample=sample):
            made, given = sample.constructor_input, sample.forward_input
            return module_class(*made.args, **made.kwargs)(*given.args, **given.kwargs)

        torchs = exception_of(call, info.module_cls)
        assert torchs is not None
        assert type(exception_of(call, cls)) is type(torchs)


def test_every_operation_is_in_torchs_database():
    assert {operation.opinfo for operation in OPERATIONS.values()} <= {info.name for info in op_db}
