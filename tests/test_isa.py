"""Law: every instruction set computes the same thing, and the one that is asked for is the one in
use.
"""

import contextlib

import native
import pytest
import torch
from operations import every_case, every_operation, name_of
from operations.base import as_truth
from subprocesses import check_python, run_python

NAMES = ("scalar", "avx2", "avx512", "avx512_bf16", "neon")


@contextlib.contextmanager
def forced(name: str):
    core = native.core()
    if name not in core.available_isas():
        pytest.skip(f"this build on this machine does not run {name}")
    before = core.isa()
    core.set_isa(name)
    try:
        assert core.isa() == name
        yield core
    finally:
        core.set_isa(before)


@pytest.mark.parametrize("isa", NAMES)
@every_case()
def test_forced_isa_agrees_with_the_reference(operation, case, isa):
    with forced(isa):
        for dtype in operation.dtypes:
            for layout in ("contiguous", "channels_last"):
                tensors = operation.tensors(case, dtype, layout)
                outputs = operation.call(case, tensors)
                context = f"{isa}, {name_of(dtype)}, {layout}"
                operation.check_outputs(case, outputs, operation.truth(case, tensors), context)


@pytest.mark.parametrize("isa", NAMES)
@every_case()
def test_forced_isa_has_the_gradients_of_the_reference(operation, case, isa):
    names = operation.present(operation.shapes(case))
    with forced(isa):
        for dtype in [dtype for dtype in operation.dtypes if dtype.is_floating_point]:
            for layout in ("contiguous", "channels_last"):
                tensors = operation.tensors(case, dtype, layout, requires_grad=names)
                output = operation.call(case, tensors)[0]
                grad = torch.randn(output.shape).to(dtype)
                arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
                truth = operation.reference_gradients(case, arrays, as_truth(grad))
                gradients = torch.autograd.grad(output, [tensors[name] for name in names], grad)
                for name, gradient in zip(names, gradients, strict=True):
                    context = f"{isa}, {name_of(dtype)}, {layout}"
                    operation.check_gradient(case, name, gradient, truth[name], context)


@pytest.mark.parametrize("isa", NAMES)
@every_operation()
def test_environment_forces_the_isa(operation, isa):
    core = native.core()
    case = operation.plain_case
    arrays = {n: None if t is None else t.numpy() for n, t in operation.tensors(case).items()}
    code = """
        import sys
        import numpy as np
        from fastconv import _core
        print(_core.isa())
    """
    if isa not in core.available_isas():
        result = run_python(code, FASTCONV_ISA=isa)
        assert result.returncode != 0, f"{isa} cannot run here, yet was accepted"
        assert isa in result.stderr
        return
    assert check_python(code, FASTCONV_ISA=isa).strip() == isa
    with forced(isa):
        outputs = operation.native_outputs(core, case, arrays)
    tensors = operation.tensors(case)
    operation.check_outputs(case, outputs, operation.truth(case, tensors), isa)


def test_lists_are_sane():
    core = native.core()
    assert "scalar" in core.available_isas(), "the scalar build runs everywhere"
    assert set(core.available_isas()) <= set(core.compiled_isas()) <= set(NAMES)
    assert core.isa() in core.available_isas()


@pytest.mark.parametrize("name", ["", "AVX2", "sse9", "avx2 ", "avx512_vnni"])
def test_unknown_name_raises(name):
    core = native.core()
    before = core.isa()
    with pytest.raises(ValueError, match=r"expected .+, got"):
        core.set_isa(name)
    assert core.isa() == before


@pytest.mark.parametrize("name", NAMES)
def test_unsupported_name_raises(name):
    core = native.core()
    if name in core.available_isas():
        pytest.skip(f"{name} runs here")
    with pytest.raises(ValueError, match=name):
        core.set_isa(name)


@pytest.mark.parametrize("wrong", [None, 1, ["avx2"]])
def test_name_of_a_wrong_type_raises(wrong):
    with pytest.raises(TypeError):
        native.core().set_isa(wrong)


def test_unknown_name_in_the_environment_raises():
    native.core()
    code = """
        import numpy as np, fastconv
        print(fastconv._core.isa())
    """
    result = run_python(code, FASTCONV_ISA="sse9")
    assert result.returncode != 0, "an unknown instruction set was accepted in silence"
    assert "sse9" in result.stderr
