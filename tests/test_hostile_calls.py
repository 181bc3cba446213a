"""Law: nothing that a caller can pass crashes the process. Each test is a call that once did."""

import native
import numpy as np
import pytest
import torch
from subprocesses import check_python

import fastconv
from fastconv import functional

ONES = "import torch, numpy as np, fastconv; from fastconv import functional; ones = torch.ones\n"


@pytest.fixture(autouse=True)
def _native():
    native.core()


def survives(code: str) -> str:
    """What a process of its own prints: it must end by itself."""
    return check_python(ONES + code)


def test_window_whose_taps_wrap_64_bits():
    rows, columns = 2142470067, 1722007169  # 5 * rows * columns == 2**64 - 1
    result = functional.max_pool2d(
        torch.ones(1, 1, 1, 5), (rows, columns), 1, (rows // 2, columns // 2)
    )
    assert result.tolist() == [[[[1.0] * 5]]]


@pytest.mark.parametrize(
    "call",
    [
        "ones(1, 1, 1, 1).expand(1, 2**40, 1, 1), ones(1, 1, 1, 1).expand(2**22, 2**40, 1, 1)",
        "ones(1, 1, 1, 1), ones(1, 1, 1, 1).expand(1, 1, 2**20, 2**39), None, 2**40, 2**40",
    ],
    ids=["packed weight", "table of taps"],
)
def test_expanded_views_that_no_memory_holds_raise(call):
    assert "2^48" in survives(
        f"try: functional.conv2d({call})\nexcept RuntimeError as error: print(error)"
    )


def test_stride_far_beyond_the_image():
    x, w = torch.ones(1, 2, 6, 6), torch.ones(2, 1, 3, 3)
    result = functional.conv2d(x, w, None, 2**31 - 1, 1, 1, 2)
    assert result.flatten().tolist() == [4.0, 4.0]


def test_list_that_empties_itself_when_read():
    survives("""
class Evil:
    def __index__(self):
        values.clear()
        return 1
x, w = np.ones((1, 1, 4, 4), "f"), np.ones((1, 1, 3, 3), "f")
for _ in range(2000):
    values = [Evil()] + [object()] * 7
    try: fastconv._core.conv2d(x, w, None, values)
    except (TypeError, RuntimeError): pass
""")


def test_array_resized_by_a_later_argument():
    x, w = np.ones((1, 4, 8, 8), "f"), np.ones((1, 4, 3, 3), "f")

    class Evil:
        def __index__(self):
            x.resize((1, 4, 2, 2), refcheck=False)
            return 1

    with pytest.raises(RuntimeError, match="expected a window"):
        fastconv._core.conv2d(x, w, None, Evil())


def test_process_ends_while_a_thread_computes():
    survives("""
import threading, time
x, w = np.ones((8, 32, 64, 64), "f"), np.ones((32, 32, 3, 3), "f")
def work():
    while True: fastconv._core.conv2d(x, w)
for _ in range(2): threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
""")


def test_weight_size_that_wraps_raises():
    with pytest.raises(RuntimeError, match="conv2d_weight_grad: expected"):
        fastconv._core.conv2d_weight_grad(
            np.zeros((1, 4, 2, 2)), np.zeros((1, 4, 4, 4)), (4, 2**62 + 1, 3, 3), 1, 0, 1, 4
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinity_beside_the_depthwise_row_stays_there(dtype):
    x = np.ones((1, 2, 5, 11), dtype)
    x[0, 0, 2, 10] = np.inf  # only the last tap of each row reads this column
    grad = np.ones((1, 2, 3, 9), dtype)
    result = fastconv._core.conv2d_weight_grad(grad, x, (2, 1, 3, 3), 1, 0, 1, 2)
    assert result[0, 0].tolist() == [[27.0, 27.0, np.inf]] * 3


def test_second_derivative_under_autocast_keeps_its_dtype():
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, requires_grad=True)
    results = []
    for conv2d in (functional.conv2d, torch.nn.functional.conv2d):
        (grad,) = torch.autograd.grad(conv2d(x, w).square().sum(), x, create_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(torch.autograd.grad(grad.square().sum(), w)[0])
    assert results[0].dtype == torch.float32
    assert torch.allclose(*results, rtol=1e-4, atol=1e-3)


def test_inference_mode_with_gradients_enabled_inside():
    layer = fastconv.Conv2d(2, 3, 3)
    with torch.inference_mode(), torch.enable_grad():
        assert not layer(torch.ones(1, 2, 5, 5)).requires_grad
