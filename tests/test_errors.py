"""Law: a wrong call raises what torch's own function raises, says what was expected and what came,
and never crashes.
"""

import dataclasses
import re

import native
import numpy as np
import pytest
import torch
from operations import OPERATIONS, every_operation
from operations.mistakes import exception_of, hypothesis, strategies

import fastconv

GRAMMAR = r"{name}\w*: expected .+, got .+"
HUGE = (2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, 2**63, -(2**31), -(2**63))

every_mistake = pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        pytest.param(operation, wrong, id=f"{operation.name}-{wrong}")
        for operation in OPERATIONS.values()
        for wrong in operation.wrong_calls()
    ],
)


def torchs_exception(operation, call, wrong=None) -> type[Exception]:
    if wrong is not None and wrong.raises:
        return wrong.raises
    error = exception_of(operation.torch_functional, **call)
    assert error is not None, f"torch does not mind {wrong}: say what fastconv raises"
    return type(error)


def check_message(operation, error: Exception, call) -> None:
    """By the grammar where fastconv speaks, torch's own words where torch does."""
    function = operation.torch_functional
    torchs = [str(exception_of(function, **call)), str(exception_of(function, *call.values()))]
    grammar = re.compile(GRAMMAR.format(name=operation.name), re.DOTALL)
    assert grammar.match(str(error)) or str(error) in torchs, f"{type(error).__name__}: {error}"


@every_mistake
def test_functional(operation, wrong):
    call = wrong.applied(operation.right_call())
    expected = torchs_exception(operation, call, wrong)
    error = exception_of(operation.functional, **call)
    assert error is not None, f"{wrong} went through"
    assert type(error) is expected, f"{type(error).__name__}: {error}"
    check_message(operation, error, call)


@every_mistake
def test_functional_with_gradients(operation, wrong):
    """The road that records a graph checks as much as the one that does not."""
    right = operation.right_call()
    for value in right.values():
        if isinstance(value, torch.Tensor):
            value.requires_grad_()
    call = wrong.applied(right)
    error = exception_of(operation.functional, **call)
    assert type(error) is torchs_exception(operation, call, wrong), repr(error)


@every_mistake
def test_op(operation, wrong):
    """Called directly, the dispatcher's own parser speaks first, and takes booleans for numbers.

    What is no mistake of type raises as everywhere, but from C++ as RuntimeError: no other type
    crosses the stable ABI.
    """
    call = wrong.applied(operation.right_call())
    expected = torchs_exception(operation, call, wrong)
    op = getattr(torch.ops.fastconv, operation.name)
    error = exception_of(op, **call)
    if error is None:
        assert expected is TypeError or operation.is_legal_for_op(call), f"{wrong} went through"
    elif f"fastconv::{operation.name}" not in str(error):
        assert type(error) in (expected, RuntimeError), repr(error)
        check_message(operation, error, call)


@every_mistake
def test_module(operation, wrong):
    call = wrong.applied(operation.right_call())
    arguments = operation.module_call(call)
    if not set(wrong.change) & {"input", *arguments}:
        pytest.skip("the module holds this tensor itself")
    raised = []
    for package in (fastconv, torch.nn):
        cls = getattr(package, operation.module)
        raised.append(exception_of(lambda cls=cls: cls(**arguments)(call["input"])))
    ours, torchs = raised
    if wrong.raises and ours is not None:
        assert type(ours) is wrong.raises
        return
    assert type(ours) is type(torchs), f"{ours!r} instead of {torchs!r}"


@every_mistake
def test_numpy(operation, wrong):
    call = wrong.applied(operation.right_call())
    expected = torchs_exception(operation, call, wrong)
    arrays = {}
    for name, value in call.items():
        if isinstance(value, torch.Tensor):
            if value.dtype == torch.bfloat16:
                pytest.skip("NumPy has no bfloat16")
            value = value.numpy()
        arrays[name] = value
    if all(not isinstance(value, np.ndarray) for value in arrays.values()):
        pytest.skip("no array is left in the call")
    error = exception_of(operation.functional, **arrays)
    assert error is not None, f"{wrong} went through"
    # What torch says of two dtypes at once is said of each alone here: NotImplementedError, a
    # RuntimeError too.
    assert type(error) is expected or (type(error), expected) == (
        NotImplementedError,
        RuntimeError,
    ), f"{type(error).__name__}: {error}"
    check_message(operation, error, call)


@every_mistake
def test_core(operation, wrong):
    core = native.core()
    call = wrong.applied(operation.right_call())
    arrays = {}
    for name, value in call.items():
        if isinstance(value, torch.Tensor):
            if value.dtype == torch.bfloat16:
                pytest.skip("NumPy has no bfloat16")
            value = value.numpy()
        arrays[name] = value
    error = exception_of(getattr(core, operation.name), **arrays)
    if error is None:
        assert operation.is_legal_for_op(call), f"{wrong} went through"
        return
    assert isinstance(error, (RuntimeError, TypeError, ValueError, NotImplementedError)), repr(
        error
    )
    assert "expected" in str(error) or "incompatible function arguments" in str(error), str(error)


@every_mistake
def test_compiled(operation, wrong):
    """What is refused in eager mode is refused in a fake kernel too: no graph of a wrong call."""
    call = wrong.applied(operation.right_call())
    tensors = {n: v for n, v in call.items() if isinstance(v, torch.Tensor)}
    if "input" not in tensors or wrong.raises:
        pytest.skip("nothing to trace")
    if torchs_exception(operation, call, wrong) is not RuntimeError:
        pytest.skip("a mistake of type, which never reaches the op")
    meta = {name: v.to("meta") if isinstance(v, torch.Tensor) else v for name, v in call.items()}
    if exception_of(operation.torch_functional, **meta) is None:
        pytest.skip("torch's own meta kernel does not mind")
    assert exception_of(operation.functional, **meta) is not None


@every_operation()
def test_the_right_call_is_right(operation):
    """Else every mistake above would be hidden by another."""
    call = operation.right_call()
    torch.testing.assert_close(operation.functional(**call), operation.torch_functional(**call))
    assert operation.functional(**call).shape == operation.output_size(call)
    arrays = {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in call.items()}
    assert operation.functional(**arrays).shape == operation.output_size(call)


@every_operation()
def test_kinds_do_not_mix(operation):
    """A torch tensor and a NumPy array in one call: refused, as torch refuses it."""
    call = operation.right_call()
    tensors = [name for name, value in call.items() if isinstance(value, torch.Tensor)]
    for name in tensors:
        if len(tensors) > 1:
            mixed = call | {name: call[name].numpy()}
            error = exception_of(operation.functional, **mixed)
            assert type(error) is torchs_exception(operation, mixed), repr(error)


@every_operation()
def test_unknown_missing_and_surplus_arguments(operation):
    call = operation.right_call()
    tensors = [value for value in call.values() if isinstance(value, torch.Tensor)]
    for function in (operation.functional, operation.torch_functional):
        with pytest.raises(TypeError):
            function(**call, kernel="square")
        with pytest.raises(TypeError):
            function()
        with pytest.raises(TypeError):
            function(*tensors, *[1] * 20)


@pytest.mark.parametrize("kind", ["O", "U3", "S2", "M8[s]", "m8[s]", "c8", "c16", "?", "V3"])
@every_operation()
def test_arrays_of_other_things(operation, kind):
    """Objects, strings, dates, records: refused with words, whatever they hold."""
    call = operation.right_call()
    arrays = {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in call.items()}
    for name in [name for name, value in arrays.items() if isinstance(value, np.ndarray)]:
        odd = arrays | {name: np.zeros(arrays[name].shape, kind)}
        error = exception_of(operation.functional, **odd)
        assert isinstance(error, (TypeError, RuntimeError, NotImplementedError, ValueError)), repr(
            error
        )
        assert re.match(GRAMMAR.format(name=operation.name), str(error), re.DOTALL), str(error)


@every_operation()
def test_integers_as_torch(operation):
    """Where torch computes in integers so does fastconv; where torch refuses, so does fastconv."""
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool):
        call = {
            name: (value * 3).to(dtype) if isinstance(value, torch.Tensor) else value
            for name, value in operation.right_call().items()
        }
        expected = exception_of(operation.torch_functional, **call)
        error = exception_of(operation.functional, **call)
        assert type(error) is type(expected), f"{dtype}: {error!r} instead of {expected!r}"
        if expected is None:
            assert torch.equal(operation.functional(**call), operation.torch_functional(**call)), (
                dtype
            )


@every_operation()
def test_layouts_that_are_not_strided(operation):
    """Sparse, quantized, conjugated and nested tensors: torch's exception or torch's result."""
    right = operation.right_call()
    odd_ones = [
        right["input"].to_sparse(),
        torch.quantize_per_tensor(right["input"], 0.1, 10, torch.quint8),
        torch.nested.nested_tensor([torch.ones(4, 8, 9), torch.ones(4, 8, 9)]),
        torch.complex(right["input"], right["input"]).conj(),
        torch.complex(right["input"], right["input"]).conj().imag,
        torch._efficientzerotensor(right["input"].shape),
    ]
    for odd in odd_ones:
        call = right | {"input": odd}
        expected = exception_of(operation.torch_functional, **call)
        error = exception_of(operation.functional, **call)
        if expected is not None:
            assert error is not None, f"torch raises {expected!r}"
        else:
            torch.testing.assert_close(
                operation.functional(**call), operation.torch_functional(**call)
            )


@every_operation()
def test_gradient_ops_refuse_wrong_sizes(operation):
    """The ops of the gradients are public too: sizes that do not fit raise, and read nothing.

    Those that belong to another operation are that one's business.
    """
    case = operation.plain_case
    calls = operation.op_calls(case, operation.tensors(case))
    for name in {op for op in operation.gradient_ops.values() if op in calls}:
        op, args, kwargs = calls[name]
        op(*args, **kwargs)
        for position, value in enumerate(args):
            if isinstance(value, torch.Tensor):
                wrongs = [
                    *([] if operation.any_gradient_fits else [value[..., : value.shape[-1] // 2]]),
                    value[0, 0],
                    value[None],
                    value[:, :0],
                    value.bool(),
                    value.cfloat(),
                ]
                wrongs += [value[:, : value.shape[1] - 1]] if value.shape[1] > 1 else []
            else:
                size = list(value)
                wrongs = [
                    size[:2],
                    [*size, 1],
                    [0] * len(size),
                    [-1, *size[1:]],
                    [2**62] * len(size),
                    [],
                ]
            for wrong in wrongs:
                changed = [*args[:position], wrong, *args[position + 1 :]]
                error = exception_of(op, *changed, **kwargs)
                sizes = tuple(wrong.shape) if isinstance(wrong, torch.Tensor) else wrong
                assert isinstance(error, (RuntimeError, NotImplementedError)), (
                    f"{name}, {position}: {sizes}"
                )


@pytest.mark.cuda
@every_operation()
def test_devices_do_not_mix(operation):
    call = operation.right_call()
    tensors = [name for name, value in call.items() if isinstance(value, torch.Tensor)]
    for name in tensors:
        if len(tensors) > 1:
            mixed = call | {name: call[name].cuda()}
            error = exception_of(operation.functional, **mixed)
            assert type(error) is torchs_exception(operation, mixed), repr(error)


@every_operation()
def test_random_calls(operation):
    """Whatever is wrong, and in whatever combination: torch's exception, or torch's result."""
    outcomes = {"raised": 0, "returned": 0}

    @hypothesis.settings(
        max_examples=1000, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(call=operation.random_calls())
    def law(call):
        expected = exception_of(operation.torch_functional, **call)
        error = exception_of(operation.functional, **call)
        if expected is None and error and operation.torch_functional(**call).numel() == 0:
            assert type(error) is RuntimeError, "torch looks away where there is nothing to compute"
            return
        # torch's IndexError is an accident, of a weight without elements or an image of few axes:
        # RuntimeError is right, unless torch itself was asked.
        same = {
            type(expected),
            RuntimeError if isinstance(expected, IndexError) else type(expected),
        }
        assert type(error) in same, f"{error!r} instead of {expected!r}"
        outcomes["raised" if expected else "returned"] += 1
        if expected is None:
            ours, torchs = operation.functional(**call), operation.torch_functional(**call)
            assert ours.stride() == torchs.stride() or ours.numel() == 0
            torch.testing.assert_close(ours, torchs, equal_nan=True)

    law()
    assert min(outcomes.values()) > 50, f"the strategy is lopsided: {outcomes}"


@every_operation()
def test_random_huge_numbers(operation):
    """Sizes overflow nowhere: a call raises, or gives what exact arithmetic says."""
    native.core()
    right = operation.right_call()
    names = [
        name
        for name, value in right.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]

    @hypothesis.settings(
        max_examples=400, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(
        changes=strategies.dictionaries(
            strategies.sampled_from(names), strategies.sampled_from(HUGE), min_size=1, max_size=3
        )
    )
    def law(changes):
        call = right | changes
        for kind in (lambda v: v, lambda v: v.numpy()):
            given = {n: kind(v) if isinstance(v, torch.Tensor) else v for n, v in call.items()}
            try:
                output = operation.functional(**given)
            except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError):
                continue
            assert tuple(output.shape) == tuple(operation.output_size(call))

    law()


@every_operation()
def test_backward_of_a_wrong_gradient_raises(operation):
    case = operation.plain_case
    tensors = operation.tensors(case, requires_grad=operation.differentiable)
    output = operation.call(case, tensors)[0]
    for wrong in (
        torch.ones(output.shape[1:])[..., :-1],
        torch.ones_like(output)[:, :0],
        "gradient",
    ):
        with pytest.raises((RuntimeError, TypeError)):
            output.backward(wrong)


@every_operation()
def test_empty_batch_is_no_error(operation):
    case = operation.plain_case
    empty = dataclasses.replace(case, input=(0, *case.input[1:]))
    tensors = operation.tensors(empty)
    assert operation.call(empty, tensors)[0].shape == operation.witness(empty, tensors)[0].shape
