"""Law: of a call on CUDA tensors, csrc/ makes the right launches, on the caller's stream, into
memory that the caller's framework gave; what goes wrong is said by the operation's name.

The rooms of csrc/ and the CUDA kernels run on the emulated device (cuda_emulator/), behind a door
that says of NumPy's memory that it is a CUDA device's.
"""

import ctypes

import cuda_emulator
import numpy as np
import pytest
import torch
from cuda_emulator import DTYPES, EmulationError
from cuda_emulator.problems import assert_same
from operations import every_case, every_operation

import fastconv

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="the emulator is compiled by GCC, which is not here"
)

STREAM = 0x5EA
MAX_DIMS, MAX_RESULTS = 8, 4


class Passed(ctypes.Structure):
    """cuda_emulator/rooms.cpp"""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("present", "dtype", "device", "ndim", "count")),
        *((name, ctypes.c_int64 * MAX_DIMS) for name in ("sizes", "strides", "ints")),
    )


def passed(value, device):
    if value is None:
        return Passed()
    if not isinstance(value, torch.Tensor):
        ints = tuple(map(int, value)) if isinstance(value, (tuple, list)) else (int(value),)
        return Passed(present=1, count=len(ints), ints=(ctypes.c_int64 * MAX_DIMS)(*ints))
    return Passed(
        *(value.data_ptr(), 1, DTYPES.index(str(value.dtype).removeprefix("torch."))),
        *(device, value.ndim, 0),
        *((ctypes.c_int64 * MAX_DIMS)(*of) for of in (value.shape, value.stride())),
    )


def array_of(result):
    """A copy of what lies in a result's memory, of the same strides."""
    dtype, ndim = np.dtype(DTYPES[result.dtype]), result.ndim
    sizes, strides = result.sizes[:ndim], [s * dtype.itemsize for s in result.strides[:ndim]]
    extent = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + dtype.itemsize
    memory = bytearray(ctypes.string_at(result.data, extent if 0 not in sizes else 0))
    return np.ndarray(sizes, dtype, memory, strides=strides)


def run(op, arguments, keywords, devices=None, allocations=-1, launches=-1):
    """The results, and how many launches it took; `launches` of them succeed."""
    given = dict(zip((a.name for a in op._schema.arguments), arguments, strict=False)) | keywords
    values = [given.get(a.name, a.default_value) for a in op._schema.arguments]
    tensors = [value.detach() for value in values if isinstance(value, torch.Tensor)]
    devices = iter(devices or [0] * len(tensors))
    each = [passed(v, next(devices) if isinstance(v, torch.Tensor) else 0) for v in values]
    results = (Passed * MAX_RESULTS)()
    emulator = cuda_emulator.library()
    before = emulator.emulator_launches()
    emulator.emulator_limit_launches(launches)
    try:
        cuda_emulator.call(
            "emulate_operation",
            *(op.name().partition("::")[2].encode(), (Passed * len(each))(*each), results),
            *(ctypes.c_void_p(STREAM), allocations),
            read=tuple(tensor.numpy() for tensor in tensors),
        )
        arrays = [array_of(result) for result in results if result.present]
    finally:
        emulator.emulator_limit_launches(-1)
        for result in results:
            emulator.emulate_free(ctypes.c_void_p(result.data))
    return arrays, emulator.emulator_launches() - before


def whole_numbers(operation, case):
    """Tensors of the case whose sums are exact, whatever their order."""
    tensors = operation.tensors(case)
    return {n: None if t is None else t.detach().mul(3).round() for n, t in tensors.items()}


def name_of(op):
    """As errors say it: torch's name for what a caller called."""
    name = op.name().partition("::")[2]
    return name.removesuffix("_with_indices").removesuffix("_with_taps")


def calls(operation, case):
    return operation.op_calls(case, whole_numbers(operation, case)).values()


@every_case()
def test_results_and_layouts_are_those_of_the_reference(operation, case):
    for op, arguments, keywords in calls(operation, case):
        with fastconv.backend("numpy"):
            expected = op(*arguments, **keywords)
        expected = expected if isinstance(expected, tuple) else (expected,)
        actual, launches = run(op, arguments, keywords)
        assert len(actual) == len(expected)
        assert launches > 0 or expected[0].numel() == 0
        for result, wanted in zip(actual, expected, strict=True):
            assert result.shape == tuple(wanted.shape)
            assert tuple(s // result.itemsize for s in result.strides) == wanted.stride()
            assert_same(result, wanted.detach().numpy())


@every_operation()
def test_a_launch_that_fails_names_the_operation(operation):
    for op, arguments, keywords in calls(operation, operation.plain_case):
        _, launches = run(op, arguments, keywords)
        law = f"^{name_of(op)}: CUDA error: invalid configuration"
        for good in range(launches):
            with pytest.raises(EmulationError, match=law):
                run(op, arguments, keywords, launches=good)


@every_operation()
def test_memory_that_cannot_be_had_names_the_operation(operation):
    for op, arguments, keywords in calls(operation, operation.plain_case):
        actual, _ = run(op, arguments, keywords)
        law = rf"^{name_of(op)}: expected memory on cuda:0 for a result of size .+, got out of m"
        for good in range(len(actual)):
            with pytest.raises(EmulationError, match=law):
                run(op, arguments, keywords, allocations=good)


@every_operation()
def test_tensors_on_different_devices_are_refused(operation):
    for op, arguments, keywords in calls(operation, operation.plain_case):
        tensors = sum(isinstance(value, torch.Tensor) for value in arguments)
        for other in range(1, tensors):
            for device, said in ((1, "cuda:1"), (-1, "cpu")):
                devices = [0] * tensors
                devices[other] = device
                law = rf"^{name_of(op)}: expected \w+ on the device of \w+, cuda:0"
                with pytest.raises(EmulationError, match=f"{law}, got {said}"):
                    run(op, arguments, keywords, devices=devices)
