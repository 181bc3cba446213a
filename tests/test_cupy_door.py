"""Law: CuPy arrays in, CuPy arrays out, computed on CuPy's current stream, whichever that is."""

import numpy as np
import pytest
import torch
from operations import every_case, every_case_and_dtype, every_operation
from operations.base import as_truth

import fastconv


def missing():
    """What this machine lacks for these laws, in words; None where it has everything."""
    core = fastconv._native.core
    if core is None or not core.cuda_archs():
        return "fastconv was built without CUDA"
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        found = 0
    return None if found else "this machine has no CUDA device that CuPy can use"


LACKS = missing()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(LACKS is not None, reason=f"needs CuPy and a GPU: {LACKS}"),
]

LAYOUTS = ("contiguous", "channels_last", "sliced")


@pytest.fixture
def cp():
    return pytest.importorskip("cupy")


@pytest.fixture
def stream(cp):
    """A current stream that does not wait for the default one."""
    with cp.cuda.Stream(non_blocking=True) as stream:
        yield stream


def to_cupy(cp, tensors):
    """CuPy arrays of the same strides, counted in elements of their own memory."""
    arrays = {}
    for name, tensor in tensors.items():
        if tensor is None:
            arrays[name] = None
            continue
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        memory = tensor.as_strided((max(span, 1),), (1,)) if tensor.numel() else tensor.flatten()
        held = cp.asarray(memory.numpy())
        strides = tuple(s * held.itemsize for s in tensor.stride())
        arrays[name] = cp.ndarray(tuple(tensor.shape), held.dtype, held.data, strides)
    return arrays


def doors(operation, case):
    return [(n, d) for n, d in operation.torch_doors(case).items() if n.startswith("functional")]


def check(cp, operation, case, outputs, expected, context):
    assert all(type(output) is cp.ndarray for output in outputs), context
    operation.check_outputs(case, tuple(cp.asnumpy(o) for o in outputs), expected, context)


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case_and_dtype()
def test_cupy_agrees_with_the_reference(cp, stream, operation, case, dtype, layout):
    if dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16 to compare with: see the laws through torch")
    tensors = operation.tensors(case, dtype, layout)
    arrays, expected = to_cupy(cp, tensors), operation.truth(case, tensors)
    for name, door in doors(operation, case):
        outputs = door(**arrays)
        assert outputs[0].dtype == arrays["input"].dtype, name
        stream.synchronize()
        check(cp, operation, case, outputs, expected, f"{name}, {layout}")


@every_case("smooth")
def test_cupy_gradients_agree_with_the_reference(cp, stream, operation, case):
    tensors = operation.tensors(case)
    arrays = to_cupy(cp, tensors)
    core = fastconv._native.core
    outputs = operation.native_outputs(core, case, arrays)
    grad = cp.ones(outputs[0].shape, outputs[0].dtype)
    actual = operation.native_gradients(core, case, arrays, grad)
    stream.synchronize()
    truth = operation.reference_gradients(
        case, {n: as_truth(t) for n, t in tensors.items()}, np.ones(grad.shape)
    )
    for name, gradient in actual.items():
        assert type(gradient) is cp.ndarray, name
        operation.check_gradient(case, name, cp.asnumpy(gradient), truth[name], "CuPy")


@every_operation()
def test_current_stream_is_used(cp, operation):
    """The input arrives late on a stream of its own: a launch on another stream would miss it."""
    case = operation.plain_case
    tensors = operation.tensors(case)
    arrays = to_cupy(cp, tensors)
    late = {name: cp.zeros_like(array) for name, array in arrays.items()}
    large = cp.ones((4096, 4096), cp.float32)
    name, door = doors(operation, case)[0]
    door(**late)
    cp.sqrt(large, out=large)
    cp.cuda.Device().synchronize()
    with cp.cuda.Stream(non_blocking=True) as stream:
        for _ in range(200):  # milliseconds of work before the copies
            cp.sqrt(large, out=large)
        for key, array in arrays.items():
            late[key][...] = array
        outputs = door(**late)
        stream.synchronize()
        check(cp, operation, case, outputs, operation.truth(case, tensors), name)


@every_operation()
def test_memory_comes_from_cupys_pool(cp, stream, operation):
    case = operation.plain_case
    arrays = to_cupy(cp, operation.tensors(case))
    pool = cp.get_default_memory_pool()
    _, door = doors(operation, case)[0]
    door(**arrays)
    before = pool.used_bytes()
    outputs = door(**arrays)
    assert pool.used_bytes() - before >= sum(output.nbytes for output in outputs)


@every_operation()
def test_kinds_of_arrays_do_not_mix(cp, stream, operation):
    case = operation.plain_case
    tensors = operation.tensors(case)
    arrays = to_cupy(cp, tensors)
    present = [name for name, array in arrays.items() if array is not None]
    for name in present if len(present) > 1 else []:
        for _, door in doors(operation, case):
            with pytest.raises((RuntimeError, TypeError), match=rf"{operation.name}: expected"):
                door(**arrays | {name: tensors[name].numpy()})
