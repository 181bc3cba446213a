"""Law: where the compiled part lacks a CUDA device, Numba's CUDA target computes the same, or a
RuntimeError says by the operation's name why it cannot. Kernels run on Numba's simulator here.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operations import OPERATIONS, every_operation

import fastconv
from fastconv import _backend
from fastconv.ops._define import OPS
from fastconv.ops._kernels import make_kernel

HERE = Path(__file__).resolve().parent
SERVED = [n for n in OPERATIONS if importlib.util.find_spec(f"fastconv.reference.{n}_cuda")]


def simulate(what: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(HERE / "simulated_cuda.py"), what],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return ran.stdout


@pytest.mark.parametrize("name", SERVED)
def test_every_case_on_the_simulator(name):
    """Forward and backward, in every dtype and layout in turn."""
    assert f"{len(OPERATIONS[name].cases())} cases of {name} passed" in simulate(name)


def test_halves_are_rounded_once():
    assert "halves passed" in simulate("halves")


def test_cupy_arrays_on_the_simulator():
    core = fastconv._native.core
    if core is not None and core.cuda_obstacle(0) is None:
        pytest.skip("the compiled part serves this machine's CUDA device")
    assert "CuPy arrays passed" in simulate("cupy")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@every_operation()
def test_without_a_device_the_error_names_the_operation(operation):
    case = operation.plain_case
    for op, args, kwargs in operation.op_calls(case, operation.tensors(case)).values():
        name = op.name().partition("::")[2]
        for backend in ("numba", "numpy"):
            kernel = make_kernel(OPS[name], backend, "CUDA")
            with pytest.raises(RuntimeError, match=f"^{name}: expected .+, got"):
                kernel(*args, *kwargs.values())


def test_tensors_on_two_devices_are_refused():
    for name, op in OPS.items():
        if op.tensors > 1:
            arguments = [torch.ones(1), *[torch.ones(1, device="meta")] * (op.tensors - 1)]
            with pytest.raises(RuntimeError, match=f"^{name}: expected all tensors on the device"):
                make_kernel(op, "numba", "CUDA")(*arguments)


def test_whether_a_device_is_served_is_a_constant_of_a_compiled_graph():
    def function(x):
        return x + 1 if _backend.serves_cuda(0) else x - 1

    x = torch.zeros(2)
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), function(x))


def test_a_device_is_asked_once(monkeypatch):
    asked = []

    class Core:
        def cuda_obstacle(self, device):
            asked.append(device)
            return None if device == 0 else "expected another"

    monkeypatch.setattr(fastconv._native, "core", Core())
    monkeypatch.setattr(_backend, "current", "native")
    _backend._obstacle.cache_clear()
    try:
        assert [_backend.serves_cuda(device) for device in (0, 1, 0, 1)] == [True, False] * 2
        assert asked == [0, 1]
    finally:
        _backend._obstacle.cache_clear()


def test_kernels_compile_for_a_device():
    """To PTX, by NVVM, which is part of CUDA; no device is needed."""
    code = (HERE / "numba_cuda_ptx.py").read_text()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "NvvmSupportError" in ran.stderr:
        pytest.skip("this machine has no libnvvm, with which Numba compiles for CUDA")
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "all kernels compiled" in ran.stdout


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_operation()
def test_numba_serves_cuda_tensors(operation, dtype):
    if operation.name not in SERVED:
        pytest.skip(f"Numba has no CUDA kernels for {operation.name}")
    from fastconv.reference._numba_cuda import obstacle

    if reason := obstacle():
        pytest.skip(f"Numba cannot use CUDA here: {reason}")
    names = operation.differentiable
    for case in operation.cases("smooth"):
        tensors = operation.tensors(case, dtype, device="cuda")
        leaves = {
            n: None if t is None else t.clone().requires_grad_(n in names)
            for n, t in tensors.items()
        }
        with fastconv.backend("numba"):
            outputs = operation.call(case, leaves)
            assert outputs[0].is_cuda
            wanted = [leaves[n] for n in operation.present(leaves)]
            gradients = torch.autograd.grad(outputs[0].sum(), wanted)
        found = tuple(output.detach().cpu() for output in outputs)
        operation.check_outputs(case, found, operation.truth(case, tensors), case.name)
        expected = torch.autograd.grad(
            operation.call(case, leaves)[0].sum(), wanted
        )  # of the compiled part, whose laws stand elsewhere
        for actual, other, name in zip(gradients, expected, operation.present(leaves), strict=True):
            operation.check_gradient(case, name, actual.cpu(), other.double().cpu(), "Numba")
