"""Law: every door gives the formula's values, with torch's shape, dtype and strides."""

import numpy as np
import pytest
import torch
from operations import every_case, every_case_and_dtype, every_operation
from operations.base import as_truth

import fastconv.testing

LAYOUTS = ("contiguous", "channels_last")


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case_and_dtype()
def test_every_door_agrees_with_the_reference(operation, case, dtype, layout):
    tensors = operation.tensors(case, dtype, layout)
    expected = operation.truth(case, tensors)
    for name, door in operation.torch_doors(case).items():
        actual = door(**tensors)
        assert actual[0].dtype == dtype, name
        assert tuple(actual[0].shape) == expected[0].shape, name
        operation.check_outputs(case, actual, expected, f"{name}, {layout}")


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case()
def test_result_has_the_strides_of_torch(operation, case, layout):
    tensors = operation.tensors(case, torch.float32, layout)
    expected = operation.witness(case, tensors)
    for name, door in operation.torch_doors(case).items():
        for actual, witness in zip(door(**tensors), expected, strict=False):
            assert actual.shape == witness.shape, name
            if actual.numel():  # strides of nothing mean nothing
                assert actual.stride() == witness.stride(), f"{name}: shape {tuple(actual.shape)}"


@every_case()
def test_reference_agrees_with_torch(operation, case):
    """The second witness: the truth itself is checked against torch.nn.functional."""
    tensors = operation.tensors(case, torch.float64)
    expected = [np.asarray(output) for output in operation.witness(case, tensors)]
    operation.check_outputs(case, operation.truth(case, tensors), expected, "NumPy against torch")


@every_case()
def test_numba_twin_agrees_with_the_reference(operation, case):
    tensors = operation.tensors(case, torch.float32)
    expected = operation.truth(case, tensors)
    with fastconv.backend("numba"):
        actual = operation.call(case, tensors)
    operation.check_outputs(case, actual, expected, "numba")


@every_operation()
def test_inputs_are_left_alone(operation):
    for case in operation.cases():
        tensors = operation.tensors(case)
        before = {name: None if t is None else t.clone() for name, t in tensors.items()}
        for door in operation.torch_doors(case).values():
            door(**tensors)
        for name, tensor in tensors.items():
            if tensor is not None:
                assert torch.equal(tensor, before[name]), f"{case.name}: {name} was written to"
                assert tensor._version == 0, f"{case.name}: {name} was written to"


@every_operation()
def test_nan_and_infinity_spread_as_in_torch(operation):
    for special in (float("nan"), float("inf"), -float("inf")):
        for case in operation.cases("small"):
            tensors = operation.tensors(case)
            tensors["input"].view(-1)[:: max(1, tensors["input"].numel() // 3)] = special
            with np.errstate(invalid="ignore"):
                expected = operation.truth(case, tensors)
            operation.check_outputs(
                case, operation.call(case, tensors), expected, f"{case.name}, {special}"
            )


@every_operation()
def test_same_call_gives_the_same_bits(operation):
    for case in operation.cases():
        tensors = operation.tensors(case)
        first, second = (operation.call(case, tensors)[0] for _ in range(2))
        assert torch.equal(first, second), case.name


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@every_case_and_dtype()
def test_cuda_agrees_with_the_reference(operation, case, dtype, layout):
    tensors = operation.tensors(case, dtype, layout, device="cuda")
    expected = operation.truth(case, tensors)
    for name, door in operation.torch_doors(case).items():
        actual = door(**tensors)
        assert actual[0].is_cuda, name
        operation.check_outputs(case, tuple(output.cpu() for output in actual), expected, name)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(1.0, float("inf")), (float("inf"), -float("inf")), (float("nan"), 1.0)],
)
def test_comparison_tells_special_values_apart(actual, expected):
    with pytest.raises(AssertionError):
        fastconv.testing.assert_close(np.array([actual]), np.array([expected]), context="special")
    for same in (actual, expected):
        fastconv.testing.assert_close(np.array([same]), np.array([same]), context="special")


@every_operation()
def test_tolerance_can_fail(operation):
    """A law that cannot fail is none: one wrong element is found."""
    case = operation.plain_case
    tensors = operation.tensors(case)
    output = operation.call(case, tensors)[0].clone()
    output.view(-1)[-1] += 0.01 + output.view(-1)[-1].abs() * 0.01
    with pytest.raises(AssertionError):
        operation.check_outputs(
            case, (output,), operation.truth(case, tensors), "one wrong element"
        )
    assert as_truth(output).dtype == np.float64
