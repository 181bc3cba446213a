"""Laws of a device on which somebody waits: streams, graphs, no hidden synchronisation, no memory
but torch's, and what the operations are to torch there. pytest runs it from bench/gpu.sh.
"""

import os

import pytest
import torch

import fastconv.functional as FC
from bench.gpu.small_calls import LAYOUTS, Call, calls

pytestmark = pytest.mark.cuda

ALL = calls((torch.float32, torch.bfloat16))
# One for each operation, layout and dtype: the largest of the small ones.
PLAIN = list(
    {
        (c.operation, c.layout, c.dtype): c
        for c in sorted(
            ALL, key=lambda call: sum(torch.Size(shape).numel() for shape in call.shapes.values())
        )
    }.values()
)
each = pytest.mark.parametrize("call", ALL, ids=str)
each_plain = pytest.mark.parametrize("call", PLAIN, ids=str)


def settled(call: Call, tensors):
    """The answer; one call before, so that kernels are loaded and pools are made."""
    call.answer(tensors)
    answer = call.answer(tensors)
    torch.cuda.synchronize()
    return answer


def fill(tensors, values):
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


@each
def test_small_calls(call):
    tensors = call.tensors("cuda")
    answer = call.answer(tensors)
    assert all(a.is_cuda and a.dtype == call.dtype for a in answer)
    call.check(answer, call.truth(tensors))


@each_plain
def test_registration(call):
    """Schema, fake kernel and autograd of the custom op agree with what runs on the device."""
    op = getattr(torch.ops.fastconv, call.operation).default
    options = {name: () if v is None else v for name, v in call.case.kwargs.items()}
    outcome = torch.library.opcheck(op, tuple(call.tensors("cuda")), options, raise_exception=False)
    assert all(result == "SUCCESS" for result in outcome.values()), outcome


@each_plain
def test_compiled_calls_agree(call):
    def function(*tensors):
        return getattr(FC, call.operation)(*tensors, **call.case.kwargs)

    tensors = call.tensors("cuda")
    expected = function(*tensors)
    torch._dynamo.reset()
    actual = torch.compile(function, backend="aot_eager", fullgraph=True)(*tensors)
    assert actual.stride() == expected.stride()
    assert torch.equal(actual, expected)


@each_plain
def test_callers_stream_is_used(call):
    """The input arrives late on another stream: a launch on the default stream would miss it."""
    tensors, late = call.tensors("cuda"), call.tensors("cuda", seed=100)
    expected = settled(call, tensors)
    settled(call, late)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # 10 ms at 2 GHz
        fill(late, tensors)
        answer = call.answer(late)
    side.synchronize()
    for actual, wanted in zip(answer, expected, strict=True):
        assert torch.equal(actual, wanted)


@each_plain
def test_graphs_replay_with_new_inputs(call):
    tensors, fresh = call.tensors("cuda"), call.tensors("cuda", seed=100)
    expected = settled(call, fresh)
    side = torch.cuda.Stream()  # leaves and their backward on the stream that captures
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call.answer(tensors)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        answer = call.answer(tensors)
    fill(tensors, fresh)
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    for actual, wanted in zip(answer, expected, strict=True):
        assert torch.equal(actual, wanted)


@each_plain
def test_calls_return_before_the_device_is_done(call):
    tensors = call.tensors("cuda")
    settled(call, tensors)
    awake = torch.cuda.Event()
    torch.cuda._sleep(400_000_000)  # 0.2 s at 2 GHz
    awake.record()
    call.answer(tensors)
    waited = awake.query()
    torch.cuda.synchronize()
    assert not waited, "the call synchronised with the device"


@each_plain
def test_torch_sees_no_synchronisation(call):
    """What torch itself does on our behalf, copies to the host and the like, does not wait."""
    tensors = call.tensors("cuda")
    settled(call, tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call.answer(tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_plain
def test_nothing_is_allocated_beside_torchs_pool(call):
    """What the device has left after many calls is what torch's pool did not take."""
    tensors = call.tensors("cuda")
    settled(call, tensors)
    free, pool = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    for _ in range(50):
        call.answer(tensors)
    torch.cuda.synchronize()
    taken = torch.cuda.memory_reserved() - pool
    # Other processes on the device, of the same test run, come and go with megabytes of contexts.
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    assert not alone or free - torch.cuda.mem_get_info()[0] <= taken
    assert taken == 0, "fifty calls need no more of the pool than two"


@each_plain
def test_tensors_of_another_device_than_the_current_one(call):
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one CUDA device")
    with torch.cuda.device(0):
        tensors = call.tensors("cuda:1")
        answer = call.answer(tensors)
        assert torch.cuda.current_device() == 0
    assert all(part.device.index == 1 for part in answer)
    call.check(answer, call.truth(tensors))
    others = call.tensors("cuda:0")
    if len(tensors) > 1:
        with pytest.raises(RuntimeError, match=f"{call.operation}: expected .+ on the"):
            call.answer([tensors[0], *others[1:]])


@each_plain
def test_memory_comes_from_torchs_allocator(call):
    """A call takes from torch's pool, and what it takes is given back."""
    tensors = call.tensors("cuda")
    settled(call, tensors)
    before = torch.cuda.memory_allocated()
    answer = call.answer(tensors)
    size = sum(part.untyped_storage().nbytes() for part in answer)
    assert torch.cuda.memory_allocated() - before >= size
    del answer
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_leave_the_device_usable(layout):
    call = next(call for call in PLAIN if call.operation == "conv2d" and call.layout == layout)
    tensors = call.tensors("cuda")
    with pytest.raises(RuntimeError, match="conv2d"):
        FC.conv2d(tensors[0][:, :-1], *tensors[1:], **call.case.kwargs)
    with pytest.raises(RuntimeError):
        FC.conv2d(tensors[0].cpu(), *tensors[1:], **call.case.kwargs)
    with pytest.raises(RuntimeError, match="max_pool2d"):
        FC.max_pool2d(tensors[0], 1000)
    call.check(call.answer(tensors), call.truth(tensors))
