"""The Numba-CUDA kernels on Numba's simulator, in the place of the CPU kernels of the torch ops.

Run in a process of its own with NUMBA_ENABLE_CUDASIM=1: Numba reads it when it is imported.
"""

import importlib.util
import sys
import types

import numpy as np
import torch
from operations import OPERATIONS
from operations.base import as_truth

import fastconv
from fastconv._torch_private import KernelTable
from fastconv.ops._define import OPS
from fastconv.ops._kernels import make_kernel
from fastconv.reference import _numba_cuda


def served() -> list[str]:
    """The operations whose family has Numba-CUDA kernels."""
    return [n for n in OPERATIONS if importlib.util.find_spec(f"fastconv.reference.{n}_cuda")]


def check(operation, case, dtype, layout) -> None:
    """Outputs and gradients against the reference."""
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, dtype, layout)
    context = f"{case.name}, {dtype}, {layout}"
    outputs = operation.call(case, tensors)
    assert outputs[0].dtype == dtype
    operation.check_outputs(case, outputs, operation.truth(case, tensors), context)
    if not dtype.is_floating_point:
        return
    leaves = {k: None if t is None else t.detach().requires_grad_() for k, t in tensors.items()}
    output = operation.call(case, leaves)[0]
    grad = torch.randn(output.shape).to(dtype)
    gradients = torch.autograd.grad(output, [leaves[name] for name in names], grad)
    arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
    truth = operation.reference_gradients(case, arrays, as_truth(grad))
    for name, gradient in zip(names, gradients, strict=True):
        operation.check_gradient(case, name, gradient, truth[name], context)


def run(name: str) -> None:
    """Every case in float32 and, in turn, in another dtype and layout."""
    operation = OPERATIONS[name]
    table = KernelTable("fastconv")
    for op in OPS.values():
        if op.family == name:
            table.register(op.name, make_kernel(op, "numba", "CUDA"), "CPU")
    others = [dtype for dtype in operation.dtypes if dtype != torch.float32]
    layouts = ("channels_last", "sliced", "transposed")
    # A tap costs microseconds here.
    for number, case in enumerate(map(operation.with_few_channels, operation.cases())):
        print(case.name, flush=True)
        check(operation, case, torch.float32, "contiguous")
        layout = layouts[number % 3] if number % 2 else "contiguous"
        check(operation, case, others[number % len(others)], layout)
    special = operation.tensors(operation.plain_case, torch.bfloat16)
    special["input"].view(-1)[::5] = float("nan")
    special["input"].view(-1)[1::7] = float("inf")
    with np.errstate(invalid="ignore"):
        truth = operation.truth(operation.plain_case, special)
    outputs = operation.call(operation.plain_case, special)
    operation.check_outputs(operation.plain_case, outputs, truth, "NaN and infinity")
    table.close()
    print(f"{len(operation.cases())} cases of {name} passed")


def check_halves() -> None:
    """All bit patterns there and back; what lies between them goes to the nearest, of two to the
    even one."""
    import ml_dtypes

    for name, kind in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        load = _numba_cuda._load_half(*_numba_cuda.HALVES[name])
        store = _numba_cuda._store_half(*_numba_cuda.HALVES[name])
        bits = np.arange(2**16).astype(np.uint16).view(np.int16)
        with np.errstate(invalid="ignore"):
            expected = bits.view(kind).astype(np.float64)
        values = np.array([load(b) for b in bits])
        np.testing.assert_array_equal(values, expected)
        finite = np.isfinite(values)
        back = np.array([store(v) for v in values[finite]])
        np.testing.assert_array_equal(back, bits[finite])
        assert all(np.isnan(load(np.int16(store(v)))) for v in (np.nan, -np.nan))
        assert [load(np.int16(store(v))) for v in (np.inf, -np.inf)] == [np.inf, -np.inf]
        # Between neighbours: a float32 holds a quarter of the way, and half of it.
        low = np.sort(values[finite & (values >= 0)])[1:-1]
        for share in (0.25, 0.5, 0.75):
            between = (low[:-1] + share * (low[1:] - low[:-1])).astype(np.float32)
            wanted = between.astype(kind).view(np.int16)
            np.testing.assert_array_equal([store(float(v)) for v in between], wanted)
            np.testing.assert_array_equal(
                [load(np.int16(store(-float(v)))) for v in between],
                -wanted.view(kind).astype(np.float64),
            )
        largest = float(np.max(values[finite]))
        assert load(np.int16(store(largest * 1.0001))) == largest
        assert load(np.int16(store(largest * 2))) == np.inf
        assert load(np.int16(store(1e-300))) == 0
        # A number just above the middle is not the middle: one rounding, not two.
        one = load(np.int16(store(1.0)))
        unit = 2.0 ** -_numba_cuda.HALVES[name][0]
        assert load(np.int16(store(one + unit / 2 + 2.0**-50))) == one + unit
    print("halves passed")


class Device:
    """CuPy's cupy.cuda.Device."""

    id = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __eq__(self, other):
        return isinstance(other, Device)

    __hash__ = None


def stand_in_for_cupy() -> types.ModuleType:
    """As much of CuPy as fastconv asks for, on NumPy's memory."""
    cupy = types.ModuleType("cupy")
    members = {"__module__": "cupy", "device": property(lambda _: Device())}
    cupy.ndarray = type("ndarray", (np.ndarray,), members)
    cupy.empty = lambda shape, dtype: np.full(shape, 77, dtype).view(cupy.ndarray)
    cupy.zeros = lambda shape, dtype: np.zeros(shape, dtype).view(cupy.ndarray)
    stream = types.SimpleNamespace(ptr=0)
    cupy.cuda = types.SimpleNamespace(get_current_stream=lambda: stream)
    sys.modules["cupy"] = cupy
    return cupy


def raised(function, *arguments) -> str:
    """What a call says that must not go through."""
    try:
        function(*arguments)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("went through")


def check_cupy() -> None:
    """CuPy arrays on a device that the compiled part lacks come out of Numba, or raise in words."""
    cupy = stand_in_for_cupy()
    for name in served():
        operation = OPERATIONS[name]
        case = operation.with_few_channels(operation.plain_case)
        for dtype in (torch.float32, torch.float16):
            tensors = operation.tensors(case, dtype)
            arrays = {n: None if t is None else t.numpy() for n, t in tensors.items()}
            arrays = {n: None if a is None else a.view(cupy.ndarray) for n, a in arrays.items()}
            for door_name, door in operation.torch_doors(case).items():
                if not door_name.startswith("functional"):
                    continue
                outputs = door(**arrays)
                assert all(type(output) is cupy.ndarray for output in outputs), door_name
                plain = tuple(output.view(np.ndarray) for output in outputs)
                operation.check_outputs(case, plain, operation.truth(case, tensors), door_name)
    image = np.ones((1, 2, 4, 4), np.float32)
    conv2d, there = fastconv.functional.conv2d, image.view(cupy.ndarray)
    assert "RuntimeError: conv2d: expected CuPy arrays alone, got ndarray" in raised(
        conv2d, there, image
    )
    assert "NotImplementedError: conv2d: expected a dtype" in raised(
        conv2d, there.astype(np.int32), there.astype(np.int32)
    )
    assert "RuntimeError: conv2d: expected input with" in raised(conv2d, there, there[:, :1])
    with fastconv.backend("numpy"):
        assert "conv2d: expected the backend" in raised(conv2d, there, there)
    print("CuPy arrays passed")


if __name__ == "__main__":
    assert _numba_cuda.is_simulated()
    checks = {"halves": check_halves, "cupy": check_cupy}
    checks.get(sys.argv[1], lambda: run(sys.argv[1]))()
