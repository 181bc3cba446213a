"""Law: whatever view of memory comes in, the values are right, nothing else is read, nothing else
is written.
"""

import dataclasses
import math
import os
from pathlib import Path

import native
import numpy as np
import pytest
import torch
from operations import every_case, every_operation, name_of
from operations.base import as_truth
from subprocesses import check_python, run_python


def view_of(tensor: torch.Tensor, how: str) -> torch.Tensor:
    """A tensor with the same values, elsewhere in memory."""
    if how == "contiguous":
        return tensor
    if how == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    if how == "axes reversed":
        return (
            tensor.permute(*reversed(range(tensor.ndim)))
            .contiguous()
            .permute(*reversed(range(tensor.ndim)))
        )
    if how == "offset":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if how == "middle of a larger one":
        larger = tensor.new_full([size + 3 for size in tensor.shape], 100)
        window = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
        window.copy_(tensor)
        return window
    if how == "every second element":
        larger = tensor.new_full([size * 2 for size in tensor.shape], 100)
        window = larger[tuple(slice(None, None, 2) for _ in tensor.shape)]
        window.copy_(tensor)
        return window
    raise ValueError(how)


VIEWS = (
    "contiguous",
    "channels_last",
    "axes reversed",
    "offset",
    "middle of a larger one",
    "every second element",
)


def viewed(tensors, how, names=None):
    return {
        name: tensor if tensor is None or (names and name not in names) else view_of(tensor, how)
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("how", VIEWS[1:])
@every_case()
def test_any_view_has_the_values_of_its_elements(operation, case, how):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = viewed(operation.tensors(case, dtype), how)
        expected = operation.truth(case, tensors)
        for name, door in operation.torch_doors(case).items():
            operation.check_outputs(case, door(**tensors), expected, f"{name}, {how}")


@pytest.mark.cuda
@pytest.mark.parametrize("how", VIEWS[1:])
@every_case("small")
def test_cuda_any_view_has_the_values_of_its_elements(operation, case, how):
    """Outputs, strides and gradients: inputs are views, and so is the gradient from above."""
    plain = operation.tensors(case, device="cuda")
    tensors = viewed(plain, how)
    outputs = operation.call(case, tensors)
    assert all(output.is_cuda for output in outputs)
    for output, witness in zip(outputs, operation.witness(case, tensors), strict=False):
        assert output.stride() == witness.stride()
    found = tuple(output.cpu() for output in outputs)
    operation.check_outputs(case, found, operation.truth(case, tensors), how)
    names = operation.present(plain)
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in tensors.items()}
    output = operation.call(case, leaves)[0]
    grad = view_of(torch.randn(output.shape, device="cuda"), how)
    gradients = torch.autograd.grad(output, [leaves[name] for name in names], grad)
    arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
    truth = operation.reference_gradients(case, arrays, as_truth(grad))
    for name, gradient in zip(names, gradients, strict=True):
        operation.check_gradient(case, name, gradient.cpu(), truth[name], how)


@pytest.mark.parametrize("how", VIEWS[1:])
@every_case("small")
def test_strides_of_results_follow_torch_for_any_view(operation, case, how):
    """One tensor at a time is the odd one."""
    plain = operation.tensors(case)
    for odd in plain:
        tensors = viewed(plain, how, [odd])
        witnesses = operation.witness(case, tensors)
        for name, door in operation.torch_doors(case).items():
            for output, witness in zip(door(**tensors), witnesses, strict=False):
                assert output.stride() == witness.stride(), (
                    f"{name}: {odd} {how}, shape {tuple(output.shape)}"
                )


@pytest.mark.parametrize("how", VIEWS)
@every_case("small")
def test_gradients_of_any_view(operation, case, how):
    """The inputs are views, and so is the gradient that arrives from above."""
    plain = operation.tensors(case)
    names = operation.present(plain)
    tensors = viewed(plain, how)
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in tensors.items()}
    output = operation.call(case, leaves)[0]
    grad = view_of(torch.randn(output.shape), how)
    gradients = torch.autograd.grad(output, [leaves[name] for name in names], grad)
    arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
    truth = operation.reference_gradients(case, arrays, as_truth(grad))
    for name, gradient in zip(names, gradients, strict=True):
        operation.check_gradient(case, name, gradient, truth[name], how)


@every_case("small")
def test_expanded_tensors(operation, case):
    """Along each axis in turn, and along all: strides of zero."""
    plain = operation.tensors(case)
    for odd, tensor in plain.items():
        if tensor is None:
            continue
        for axes in [*((axis,) for axis in range(tensor.ndim)), tuple(range(tensor.ndim))]:
            narrow = tensor
            for axis in axes:
                narrow = narrow.narrow(axis, 0, 1)
            tensors = plain | {odd: narrow.expand(tensor.shape)}
            expected = operation.truth(case, tensors)
            outputs = operation.call(case, tensors)
            operation.check_outputs(case, outputs, expected, f"{odd} expanded along {axes}")


@every_case("small")
def test_flipped_arrays(operation, case):
    """NumPy has negative strides; torch has not."""
    doors = [(n, d) for n, d in operation.torch_doors(case).items() if n.startswith("functional")]
    for odd, tensor in operation.tensors(case).items():
        if tensor is None:
            continue
        for axes in [*((axis,) for axis in range(tensor.ndim)), tuple(range(tensor.ndim))]:
            tensors = operation.tensors(case)
            arrays = {name: None if t is None else t.numpy() for name, t in tensors.items()}
            arrays[odd] = np.flip(arrays[odd], axes)
            tensors[odd] = torch.from_numpy(arrays[odd].copy())
            expected = operation.truth(case, tensors)
            for name, door in doors:
                operation.check_outputs(
                    case, door(**arrays), expected, f"{name}, {odd} flipped along {axes}"
                )


@every_case("small")
def test_every_tensor_may_share_one_memory(operation, case):
    """Inputs alias each other: all are views of the same elements."""
    shapes = {name: shape for name, shape in operation.shapes(case).items() if shape is not None}
    pool = torch.randn(max(math.prod(shape) for shape in shapes.values()))
    before = pool.clone()
    tensors = dict.fromkeys(operation.shapes(case)) | {
        name: pool[: math.prod(shape)].view(shape) for name, shape in shapes.items()
    }
    operation.check_outputs(
        case, operation.call(case, tensors), operation.truth(case, tensors), "shared memory"
    )
    assert torch.equal(pool, before)


@every_case("plain")
def test_result_shares_memory_with_nothing(operation, case):
    tensors = operation.tensors(case)
    for door in operation.torch_doors(case).values():
        pointers = [t.untyped_storage().data_ptr() for t in (*tensors.values(), *door(**tensors))]
        assert len(set(pointers)) == len(pointers)


@every_operation()
def test_empty_batch(operation):
    for case in operation.cases("small"):
        if len(case.input) != 4:
            continue
        empty = dataclasses.replace(case, input=(0, *case.input[1:]))
        for dtype in operation.dtypes:
            for layout in ("contiguous", "channels_last"):
                tensors = operation.tensors(empty, dtype, layout)
                outputs = operation.call(empty, tensors)
                for output, witness in zip(outputs, operation.witness(empty, tensors), strict=True):
                    assert output.shape == witness.shape
                    assert output.dtype == witness.dtype
        names = operation.present(operation.shapes(empty))
        tensors = operation.tensors(empty, requires_grad=names)
        operation.call(empty, tensors)[0].sum().backward()
        for name in names:
            gradient = tensors[name].grad
            assert gradient.shape == tensors[name].shape
            assert torch.equal(gradient, torch.zeros_like(gradient)), (
                f"{case.name}: the sum over nothing is zero"
            )


@every_case()
def test_every_element_is_written_even_where_the_sum_is_empty(operation, case):
    """Fresh outputs are NaN in tests (FASTCONV_POISON=1): inputs of ones leave no NaN behind."""
    tensors = {
        n: None if t is None else torch.ones_like(t) for n, t in operation.tensors(case).items()
    }
    names = operation.present(tensors)
    leaves = {n: t if t is None else t.requires_grad_(n in names) for n, t in tensors.items()}
    output = operation.call(case, leaves)[0]
    assert not output.isnan().any()
    for gradient in torch.autograd.grad(
        output, [leaves[n] for n in names], torch.ones_like(output)
    ):
        assert not gradient.isnan().any()


def test_outputs_are_born_nan():
    """The library that allocates for both doors knows the poison, else the law above is weak."""
    library = Path(native.core().__file__).with_name("libfastconv_kernels.so")
    assert b"FASTCONV_POISON" in library.read_bytes()
    assert os.environ["FASTCONV_POISON"] == "1"


@pytest.mark.parametrize("isa", ["default", "scalar", "avx2", "avx512", "avx512_bf16", "neon"])
@every_operation()
def test_nothing_outside_the_inputs_is_read(operation, isa):
    """Every input ends where an unreadable page begins, or begins where one ends: one step over
    kills the process.
    """
    if isa != "default" and isa not in native.core().available_isas():
        pytest.skip(f"this build on this machine does not run {isa}")
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import conftest, guarded
        guarded.run(sys.argv[2])
    """
    environment = {} if isa == "default" else {"FASTCONV_ISA": isa}
    printed = check_python(code, str(Path(__file__).parent), operation.name, **environment)
    last = printed.strip().splitlines()[-1]
    assert last == f"{len(operation.cases())} cases", last


def test_guard_itself_kills():
    """A read one element past the end does end the process; else the law above proves nothing."""
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import ctypes, numpy as np, guarded
        array = guarded.placed(np.ones((3, 5), np.float32), at_end=True)
        print(ctypes.c_float.from_address(array.ctypes.data + array.nbytes - 4).value, flush=True)
        ctypes.c_float.from_address(array.ctypes.data + array.nbytes).value
        print("survived")
    """
    result = run_python(code, str(Path(__file__).parent))
    assert "1.0" in result.stdout
    assert "survived" not in result.stdout
    assert result.returncode < 0, "killed by a signal"


@pytest.mark.slow
@every_operation()
def test_more_than_two_to_the_31_elements(operation):
    """Indices and offsets are 64 bits wide: only the last element differs from zero, and it is
    found.
    """
    case, dtype = operation.huge_case, operation.huge_dtype
    tensors = {
        name: None if shape is None else torch.ones(shape, dtype=dtype)
        for name, shape in operation.shapes(case).items()
    }
    tensors["input"] = torch.zeros(case.input, dtype=dtype)
    assert tensors["input"].numel() > 2**31, name_of(dtype)
    tensors["input"].view(-1)[-1] = 3
    output = operation.call(case, tensors)[0]
    witness = torch.zeros_like(output)
    witness.view(-1)[-1] = 3
    assert torch.equal(output, witness)
