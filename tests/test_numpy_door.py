"""Law: without torch the same functions serve NumPy and DLPack arrays, and give back the kind that
they were given.
"""

import re

import native
import numpy as np
import pytest
import torch
from exporter import Exporter, OldExporter
from operations import every_case_and_dtype, every_operation, name_of
from operations.base import as_truth
from subprocesses import check_python


def numpy_doors(operation, case):
    return [(n, d) for n, d in operation.torch_doors(case).items() if n.startswith("functional")]


def arrays_of(tensors):
    return {name: None if t is None else t.numpy() for name, t in tensors.items()}


@every_case_and_dtype()
def test_arrays_in_arrays_out(operation, case, dtype):
    if dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16: see the DLPack and ml_dtypes laws")
    for layout in ("contiguous", "channels_last"):
        tensors = operation.tensors(case, dtype, layout)
        expected = operation.truth(case, tensors)
        for name, door in numpy_doors(operation, case):
            outputs = door(**arrays_of(tensors))
            assert all(type(output) is np.ndarray for output in outputs), name
            assert outputs[0].dtype == arrays_of(tensors)["input"].dtype, name
            operation.check_outputs(case, outputs, expected, f"{name}, {layout}")


@every_case_and_dtype()
def test_core_agrees_with_the_reference(operation, case, dtype):
    core = native.core()
    if dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16: see the DLPack and ml_dtypes laws")
    for layout in ("contiguous", "channels_last"):
        tensors = operation.tensors(case, dtype, layout)
        arrays = arrays_of(tensors)
        expected = operation.truth(case, tensors)
        outputs = operation.native_outputs(core, case, arrays)
        assert all(type(output) is np.ndarray for output in outputs)
        operation.check_outputs(case, outputs, expected, f"_core, {layout}")
        if not dtype.is_floating_point:
            continue
        grad = np.ones(outputs[0].shape, arrays["input"].dtype)
        truth = operation.reference_gradients(
            case, {n: as_truth(t) for n, t in tensors.items()}, grad.astype(np.float64)
        )
        for name, gradient in operation.native_gradients(core, case, arrays, grad).items():
            assert gradient.dtype == grad.dtype
            operation.check_gradient(case, name, gradient, truth[name], f"_core, {layout}")


@every_operation()
def test_bfloat16_of_ml_dtypes(operation):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for case in operation.cases("small"):
        tensors = operation.tensors(case, torch.bfloat16)
        arrays = {
            name: None if t is None else t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            for name, t in tensors.items()
        }
        for name, door in numpy_doors(operation, case):
            outputs = door(**arrays)
            assert outputs[0].dtype == np.dtype(ml_dtypes.bfloat16), name
            bits = torch.from_numpy(outputs[0].view(np.int16)).view(torch.bfloat16)
            truth = operation.truth(case, tensors)
            operation.check_outputs(case, (bits, *outputs[1:]), truth, f"{name}, {case.name}")


def as_tensor(output) -> torch.Tensor:
    return torch.from_dlpack(output.array if isinstance(output, Exporter) else output)


@pytest.mark.parametrize("exporter", [Exporter, OldExporter])
@every_operation()
def test_core_takes_any_dlpack_array(operation, exporter):
    core = native.core()
    for dtype in operation.dtypes:
        for case in operation.cases("small"):
            tensors = operation.tensors(case, dtype)
            wrapped = {name: None if t is None else exporter(t) for name, t in tensors.items()}
            outputs = operation.native_outputs(core, case, wrapped)
            assert all(isinstance(output, Exporter) for output in outputs), "the same kind out"
            tensors_out = tuple(as_tensor(output) for output in outputs)
            assert tensors_out[0].dtype == dtype
            context = f"{case.name}, {name_of(dtype)}"
            operation.check_outputs(case, tensors_out, operation.truth(case, tensors), context)


@every_operation()
def test_exporters_memory_is_released(operation):
    """A DLPack capsule that is never given back leaks its array."""
    import gc
    import weakref

    core = native.core()
    case = operation.plain_case
    arrays = arrays_of(operation.tensors(case))
    watched = {name: array.copy() for name, array in arrays.items()}
    gone = [weakref.ref(array) for array in watched.values()]
    for _ in range(3):
        operation.native_outputs(
            core, case, {name: Exporter(array) for name, array in watched.items()}
        )
    del watched
    gc.collect()
    assert all(reference() is None for reference in gone)


@every_operation()
def test_subclasses_and_lists_of_arrays(operation):
    """np.matrix, masked arrays and memory maps are arrays; nested lists are not."""
    case = operation.plain_case
    arrays = arrays_of(operation.tensors(case))
    truth = operation.truth(case, operation.tensors(case))
    for _, door in numpy_doors(operation, case):
        seen = door(**arrays | {"input": arrays["input"].view(type("Sub", (np.ndarray,), {}))})
        operation.check_outputs(case, seen, truth, "subclass")
        with pytest.raises(TypeError):
            door(**arrays | {"input": arrays["input"].tolist()})


@every_operation()
def test_read_only_arrays_are_read(operation):
    case = operation.plain_case
    tensors = operation.tensors(case)
    arrays = arrays_of(tensors)
    for array in arrays.values():
        array.flags.writeable = False
    for name, door in numpy_doors(operation, case):
        outputs = door(**arrays)
        assert outputs[0].flags.writeable, name
        operation.check_outputs(case, outputs, operation.truth(case, tensors), name)


@every_operation()
def test_foreign_byte_order_is_right_or_refused(operation):
    case = operation.plain_case
    tensors = operation.tensors(case)
    arrays = arrays_of(tensors)
    for odd in arrays:
        swapped = arrays | {odd: arrays[odd].astype(arrays[odd].dtype.newbyteorder(">"))}
        for name, door in numpy_doors(operation, case):
            outputs, message = None, ""
            try:
                outputs = door(**swapped)
            except (TypeError, ValueError, RuntimeError) as error:
                message = str(error)
            if outputs is None:
                assert re.match(rf"{operation.name}\w*: expected", message), f"{name}: {message}"
            else:
                operation.check_outputs(case, outputs, operation.truth(case, tensors), name)


@every_operation()
def test_misaligned_arrays(operation):
    """A float32 array at an odd address: a field of a packed record, a slice of a file."""
    case = operation.plain_case
    tensors = operation.tensors(case)
    arrays = arrays_of(tensors)
    for odd, array in arrays.items():
        memory = np.zeros(array.nbytes + 1, np.uint8)
        moved = np.frombuffer(memory.data, array.dtype, array.size, offset=1).reshape(array.shape)
        moved[...] = array
        assert not moved.flags.aligned
        for name, door in numpy_doors(operation, case):
            outputs = door(**arrays | {odd: moved})
            operation.check_outputs(case, outputs, operation.truth(case, tensors), f"{name}, {odd}")


@every_operation()
def test_strides_that_are_no_multiple_of_the_element(operation):
    """One field of a packed record: 5 bytes from element to element."""
    case = operation.plain_case
    tensors = operation.tensors(case)
    arrays = arrays_of(tensors)
    record = np.zeros(arrays["input"].shape, np.dtype([("value", "f4"), ("flag", "u1")]))
    record["value"] = arrays["input"]
    for name, door in numpy_doors(operation, case):
        outputs = door(**arrays | {"input": record["value"]})
        operation.check_outputs(case, outputs, operation.truth(case, tensors), name)


WITHOUT = """
    import sys, warnings
    {block}
    import numpy as np
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import fastconv
        x = np.arange(2 * 3 * 6 * 6, dtype=np.float32).reshape(2, 3, 6, 6)
        for _ in range(2):
            pooled = fastconv.functional.max_pool2d(x, 2)
            conv = fastconv.functional.conv2d(x, np.ones((4, 3, 3, 3), np.float32), padding=1)
    ours = [str(w.message) for w in caught if "fastconv" in str(w.message)]
    assert type(pooled) is np.ndarray and pooled.tolist() == x[:, :, 1::2, 1::2].tolist()
    truth = fastconv.reference.conv2d.conv2d(x, np.ones((4, 3, 3, 3), np.float32), padding=1)
    assert type(conv) is np.ndarray and np.allclose(conv, truth)
    print(fastconv.backend(), len(ours), "torch" if sys.modules.get("torch") else "no torch")
    print(*ours)
"""


def test_without_torch():
    printed = check_python(WITHOUT.format(block='sys.modules["torch"] = None')).splitlines()
    expected = "native 0 no torch" if native.is_present() else "numba 1 no torch"
    assert printed[0] == expected, printed


def test_without_the_compiled_part_numba_serves_with_one_warning():
    block = 'sys.modules["fastconv._core"] = None'
    printed = check_python(WITHOUT.format(block=block)).splitlines()
    assert printed[0] == "numba 1 torch", printed
    assert "numba" in printed[1].lower(), "the warning says who serves instead"


def test_without_torch_and_the_compiled_part():
    block = 'sys.modules["fastconv._core"] = sys.modules["torch"] = None'
    printed = check_python(WITHOUT.format(block=block)).splitlines()
    assert printed[0] == "numba 1 no torch", printed
