"""Laws of a device on which somebody waits: streams, graphs, no hidden synchronisation, no memory
but torch's, and the operations' registration on CUDA. pytest runs it from bench/gpu.sh.
"""

import pytest
import torch
from operations import every_case, every_operation

DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last")

pytestmark = pytest.mark.cuda


def on_device(operation, case, dtype=torch.float32, layout="contiguous", seed=0):
    """Leaves on the device; those that are differentiable want their gradient."""
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, dtype, layout, seed=seed, device="cuda")
    return {
        n: t if t is None else t.detach().requires_grad_(n in names) for n, t in tensors.items()
    }


def gradients(operation, tensors, outputs):
    """The first output's gradients, for a gradient of ones."""
    leaves = [tensors[name] for name in operation.present(tensors)]
    return torch.autograd.grad(outputs[0], leaves, torch.ones_like(outputs[0]))


def settled(operation, tensors, case):
    """Outputs and gradients; one call before, so that kernels are loaded and pools are made."""
    for _ in range(2):
        outputs = operation.call(case, tensors)
        grads = gradients(operation, tensors, outputs)
        torch.cuda.synchronize()
    return outputs, grads


@every_case("small")
def test_registration_on_cuda(operation, case):
    """Schema, fake kernels and autograd of every custom op agree with what runs on the device."""
    tensors = operation.tensors(case, device="cuda")
    for name, (op, args, kwargs) in operation.op_calls(case, tensors).items():
        failures = torch.library.opcheck(op, args, kwargs, raise_exception=False)
        assert all(outcome == "SUCCESS" for outcome in failures.values()), f"{name}: {failures}"


@pytest.mark.parametrize("layout", LAYOUTS)
@every_operation()
def test_compiled_calls_agree(operation, layout):
    case = operation.plain_case
    tensors = on_device(operation, case, layout=layout)
    expected = operation.call(case, tensors)[0]
    compiled = torch.compile(
        lambda tensors: operation.call(case, tensors)[0], backend="aot_eager", fullgraph=True
    )
    actual = compiled(tensors)
    assert actual.stride() == expected.stride()
    assert torch.equal(actual, expected)


@every_case("smooth")
def test_callers_stream_is_used(operation, case):
    """The input is made late on another stream: a launch on the default stream would miss it."""
    tensors = on_device(operation, case)
    expected, expected_grads = settled(operation, tensors, case)
    source = {n: None if t is None else t.detach().clone() for n, t in tensors.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for tensor in tensors.values():
            if tensor is not None:
                tensor.zero_()
        torch.cuda._sleep(20_000_000)
        for name, tensor in tensors.items():
            if tensor is not None:
                tensor.copy_(source[name])
        with torch.enable_grad():
            outputs = operation.call(case, tensors)
            grads = gradients(operation, tensors, outputs)
    side.synchronize()
    for actual, truth in zip((*outputs, *grads), (*expected, *expected_grads), strict=True):
        assert torch.equal(actual, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@every_case("plain")
def test_graphs_replay_with_new_inputs(operation, case, layout, dtype):
    tensors = on_device(operation, case, dtype, layout)
    settled(operation, tensors, case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = operation.call(case, tensors)
        grads = gradients(operation, tensors, outputs)
    fresh = on_device(operation, case, dtype, layout, seed=1)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is not None:
                tensor.copy_(fresh[name])
    graph.replay()
    torch.cuda.synchronize()
    expected = operation.call(case, fresh)
    for actual, truth in zip(
        (*outputs, *grads), (*expected, *gradients(operation, fresh, expected)), strict=True
    ):
        assert torch.equal(actual, truth)


@every_case("plain")
def test_calls_return_before_the_device_is_done(operation, case):
    """A call that waits for the device would come back after the sleep."""
    tensors = on_device(operation, case)
    settled(operation, tensors, case)
    asleep = torch.cuda.Event()
    torch.cuda._sleep(400_000_000)  # 0.2 s at 2 GHz
    asleep.record()
    gradients(operation, tensors, operation.call(case, tensors))
    waited = asleep.query()
    torch.cuda.synchronize()
    assert not waited, "the call synchronised with the device"


@every_case("plain")
def test_memory_comes_from_torchs_allocator(operation, case):
    """Free memory of the device moves only as torch's reserved memory does, also in many calls."""
    tensors = on_device(operation, case)
    settled(operation, tensors, case)
    reserved, free = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    for _ in range(50):
        gradients(operation, tensors, operation.call(case, tensors))
    torch.cuda.synchronize()
    grown = torch.cuda.memory_reserved() - reserved
    # Other programs on the device may allocate too: a leak of 50 calls is what must show.
    assert free - torch.cuda.mem_get_info()[0] <= grown + 2**20


@every_operation()
def test_errors_name_the_operation(operation):
    """What torch refuses on the device, fastconv refuses, and the device works afterwards."""
    call = operation.right_call()
    call = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in call.items()}
    for wrong in operation.wrong_calls():
        mistaken = {
            n: v.cuda() if isinstance(v, torch.Tensor) else v
            for n, v in wrong.applied(call).items()
        }
        try:
            operation.functional(**mistaken)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError):
            torch.cuda.synchronize()  # raises where the error was the device's
    operation.functional(**call)
    torch.cuda.synchronize()
