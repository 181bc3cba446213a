"""Law: the number of threads changes the time, never the bits; many callers at once are safe."""

import threading

import native
import pytest
import torch
from operations import OPERATIONS, every_case, every_operation
from operations.base import Operation
from subprocesses import check_python

import fastconv


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(operation: Operation, case, dtype=torch.float32) -> list[torch.Tensor]:
    """Outputs and gradients of a case."""
    names = operation.present(operation.shapes(case)) if dtype.is_floating_point else ()
    tensors = operation.tensors(case, dtype, requires_grad=names)
    outputs = operation.call(case, tensors)
    if not names:
        return list(outputs)
    gradients = torch.autograd.grad(
        outputs[0], [tensors[name] for name in names], torch.ones_like(outputs[0])
    )
    return [output.detach() for output in outputs] + list(gradients)


def assert_same_bits(actual, expected, context):
    for ours, other in zip(actual, expected, strict=True):
        assert torch.equal(ours, other), context


@every_case()
def test_same_bits_for_any_number_of_threads(operation, case, restored_threads):
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_num_threads(1)
        expected = everything(operation, case, dtype)
        for count in (2, 3, 4):
            torch.set_num_threads(count)
            assert_same_bits(
                everything(operation, case, dtype), expected, f"{count} threads, {dtype}"
            )


def test_both_doors_obey_torch(restored_threads):
    core = native.core()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert core.num_threads() == count, "with torch loaded, its pool serves both doors"


def test_own_pool_without_torch():
    native.core()
    code = """
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from fastconv import _core
        assert _core.num_threads() >= 1
        x = np.linspace(-1, 1, 2 * 16 * 60 * 60, dtype=np.float32).reshape(2, 16, 60, 60)
        w = np.linspace(1, -1, 16 * 16 * 9, dtype=np.float32).reshape(16, 16, 3, 3)
        bits = set()
        for count in (1, 2, 4, 3):
            _core.set_num_threads(count)
            assert _core.num_threads() == count
            bits.add((_core.conv2d(x, w).tobytes(), _core.max_pool2d(x, 2).tobytes()))
        assert len(bits) == 1, "the bits depend on the number of threads"
        for wrong in (0, -1):
            try:
                _core.set_num_threads(wrong)
            except RuntimeError:  # as torch.set_num_threads
                continue
            raise AssertionError(f"set_num_threads({wrong}) was accepted")
        print("done")
    """
    assert check_python(code).strip() == "done"


@every_operation()
def test_eight_python_threads_at_once(operation):
    cases = operation.cases()
    expected = [everything(operation, case) for case in cases]
    mistakes: list[str] = []

    def work(start: int) -> None:
        try:
            for step in range(len(cases)):
                index = (start * 5 + step) % len(cases)
                for ours, other in zip(
                    everything(operation, cases[index]), expected[index], strict=True
                ):
                    if not torch.equal(ours, other):
                        mistakes.append(cases[index].name)
        except Exception as error:
            mistakes.append(repr(error))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert not mistakes


@every_operation()
def test_instruction_set_and_backend_of_other_threads_are_left_alone(operation):
    """A backend chosen in one thread's `with` must not leave the default behind in another for
    good.
    """
    before = fastconv.backend()

    def work() -> None:
        with fastconv.backend("numpy"):
            operation.call(operation.plain_case, operation.tensors(operation.plain_case))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fastconv.backend() == before


@pytest.mark.parametrize("name", OPERATIONS)
def test_after_fork(name):
    """A child of fork has none of its parent's threads: it must neither hang nor crash."""
    from pathlib import Path

    code = """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        import conftest, torch
        from operations import OPERATIONS
        operation = OPERATIONS[sys.argv[2]]
        case = operation.plain_case
        arrays = {n: None if t is None else t.numpy() for n, t in operation.tensors(case).items()}
        door = next(iter(operation.torch_doors(case).values()))
        expected = door(**arrays)[0]
        torch.set_num_threads(1)
        child = os.fork()
        if child == 0:
            same = (door(**arrays)[0] == expected).all()
            os._exit(0 if same else 3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        print("done")
    """
    assert check_python(code, str(Path(__file__).parent), name).strip() == "done"
