"""Law: attention gives the formula's values and gradients, through every door and on every
instruction set.
"""

import contextlib
import math

import native
import numpy as np
import pytest
import torch
from attention_calls import (
    CASES,
    DTYPES,
    every_case,
    gradients,
    leaves_of,
    length_of,
    op_arguments,
    public_arguments,
    small_cases,
    tensors_of,
    truth,
    truth_of_gradients,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastconv
from fastconv.reference.attention_cases import AttentionCase
from fastconv.testing import assert_close, assert_whole_close

ours = fastconv.functional.scaled_dot_product_attention
torchs = torch.nn.functional.scaled_dot_product_attention
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LAYOUTS = ("heads first", "queries first", "features first", "sliced", "expanded")


def check(case, dtype, layout="heads first"):
    tensors = tensors_of(case, dtype, layout)
    context = f"{case.name}, {dtype}, {layout}"
    leaves = leaves_of(tensors)
    output, lse = torch.ops.fastconv.attention(*op_arguments(case, leaves))
    assert output.dtype == dtype
    expected, expected_lse = truth(case, tensors)
    assert_whole_close(output, expected, reduction_length=length_of(case), context=context)
    # A logarithm's absolute error is its argument's relative one.
    assert_close(lse, expected_lse, reduction_length=16 * length_of(case), context=context)
    grad = fastconv.testing.make_input(output.shape, dtype, seed=5)
    found = gradients(output, leaves, grad)
    for name, wanted in truth_of_gradients(case, tensors, grad).items():
        assert found[name].dtype == leaves[name].dtype
        if name == "mask" and case.mask[3] == 1:  # a softmax does not feel it
            bound = fastconv.testing.relative_bound(dtype, length_of(case))
            assert found[name].abs().max() <= 8 * bound * math.sqrt(case.keys), context
            continue
        assert_whole_close(
            found[name],
            wanted,
            reduction_length=length_of(case),
            context=f"{context}: gradient of {name}",
        )


@every_dtype
@every_case
def test_values_and_gradients(case, dtype):
    check(case, dtype)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@small_cases
def test_any_layout(case, layout):
    for dtype in (torch.float32, torch.bfloat16):
        check(case, dtype, layout)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "avx512_bf16", "neon"])
@every_case
def test_every_instruction_set(case, isa):
    core = native.core()
    if isa not in core.available_isas():
        pytest.skip(f"this build on this machine does not run {isa}")
    before = core.isa()
    core.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            check(case, dtype)
    finally:
        core.set_isa(before)


@pytest.mark.parametrize("backend", ["numba", "numpy", "torch"])
@every_case
def test_every_backend(case, backend):
    with fastconv.backend(backend):
        check(case, torch.float64)
        check(case, torch.bfloat16)


@every_case
def test_reference_agrees_with_torch(case):
    """The second witness, where torch has the arguments. Its gradients of a mask too."""
    if case.window != (-1, -1) or case.softcap or case.slopes or case.dropout_p:
        pytest.skip("torch has no such argument")
    if case.mask and case.is_causal:
        pytest.skip("torch's math path wants one of mask and is_causal")
    if case.keys == 0 or 0 in case.query:
        pytest.skip("torch's math path has no gradient of nothing")
    tensors = tensors_of(case, torch.float64)
    leaves = leaves_of(tensors)
    mask = leaves["mask"]
    with sdpa_kernel(SDPBackend.MATH):
        output = torchs(
            leaves["query"],
            leaves["key"],
            leaves["value"],
            mask.bool() if case.boolean else mask,
            is_causal=case.is_causal,
            scale=case.scale,
            enable_gqa=True,
        )
    np.testing.assert_allclose(output.detach(), truth(case, tensors)[0], atol=1e-12)
    grad = fastconv.testing.make_input(output.shape, torch.float64, seed=5)
    found = gradients(output, leaves, grad)
    for name, wanted in truth_of_gradients(case, tensors, grad).items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-11, err_msg=name)


@every_case
def test_numpy_arrays(case):
    tensors = tensors_of(case, torch.float32)
    arrays = {name: None if t is None else t.numpy() for name, t in tensors.items()}
    expected, expected_lse = truth(case, tensors)
    doors = [lambda *a: fastconv._arrays.call("attention", *a)]
    if native.is_present():
        doors.append(native.core().attention)
    for door in doors:
        output, lse = door(*op_arguments(case, arrays))
        assert type(output) is np.ndarray
        assert_whole_close(output, expected, reduction_length=length_of(case))
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)
    if not case.dropout_p:
        output = ours(**public_arguments(case, arrays))
        assert_whole_close(output, expected, reduction_length=length_of(case))


def test_array_gradients_of_the_core():
    core = native.core()
    case = next(case for case in CASES if case.name == "bias that heads share")
    tensors = tensors_of(case, torch.float32)
    arrays = {name: None if t is None else t.numpy() for name, t in tensors.items()}
    output, lse = core.attention(*op_arguments(case, arrays))
    grad = np.random.default_rng(1).standard_normal(output.shape).astype("float32")
    arguments = op_arguments(case, arrays)
    given = (grad, *arguments[:3], output, lse, *arguments[3:])
    found = dict(zip(("query", "key", "value"), core.attention_backward(*given), strict=True))
    found["mask"] = core.attention_mask_grad(*given)
    for name, wanted in truth_of_gradients(case, tensors, torch.from_numpy(grad)).items():
        assert_whole_close(found[name], wanted, reduction_length=length_of(case), context=name)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def everything(case, dtype):
    tensors = tensors_of(case, dtype)
    leaves = leaves_of(tensors)
    output, lse = torch.ops.fastconv.attention(*op_arguments(case, leaves))
    return [output, lse, *gradients(output, leaves, torch.ones_like(output)).values()]


@every_case
def test_same_bits_for_any_number_of_threads(case):
    for dtype in (torch.float32, torch.bfloat16):
        with threads(1):
            expected = everything(case, dtype)
        for count in (2, 3, 4):
            with threads(count):
                for first, second in zip(expected, everything(case, dtype), strict=True):
                    assert torch.equal(first, second), f"{count} threads, {dtype}"


def test_heads_do_not_know_of_each_other():
    """The bits of a head alone are those of the head among others, of whatever number."""
    q, k, v = (torch.randn(3, 5, n, 40) for n in (130, 300, 300))
    whole = ours(q, k, v, is_causal=True)
    for b, h in ((0, 0), (1, 3), (2, 4)):
        one = ours(*(t[b : b + 1, h : h + 1] for t in (q, k, v)), is_causal=True)
        assert torch.equal(one[0, 0], whole[b, h])


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_special_values_stay_where_they_are(special):
    """A query that is not finite spoils its own output alone."""
    q, k, v = (torch.randn(1, 2, n, 16) for n in (40, 300, 300))
    clean = ours(q, k, v)
    q[0, 1, 17, 3] = special
    output = ours(q, k, v)
    assert output[0, 1, 17].isnan().all()
    output[0, 1, 17] = clean[0, 1, 17]
    assert torch.equal(output, clean)


@pytest.mark.parametrize("L", [30, 100])
def test_large_logits(L):
    """Logits of +-80 and long rows: no worse than torch's own kernel."""
    q, k, v = (torch.randn(2, 8, n, 64) for n in (L, 2000, 2000))
    q *= 80 / (q @ k.mT).abs().max() * 8
    with sdpa_kernel(SDPBackend.MATH):
        exact = torchs(q.double(), k.double(), v.double())
    error = fastconv.testing.relative_error
    assert error(ours(q, k, v), exact) <= 1.5 * error(torchs(q, k, v), exact)


def test_nothing_outside_the_inputs_is_read():
    from subprocesses import check_python

    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import conftest, attention_calls
        attention_calls.between_unreadable_pages()
    """
    from pathlib import Path

    printed = check_python(code, str(Path(__file__).parent))
    assert printed.strip().splitlines()[-1] == f"{len(CASES)} cases"


def test_the_law_can_fail():
    case = AttentionCase("plain", (1, 2, 8, 8), 2, 9, 8)
    tensors = tensors_of(case, torch.float32)
    output = torch.ops.fastconv.attention(*op_arguments(case, tensors))[0]
    output[0, 1, 7, 7] += 0.01
    with pytest.raises(AssertionError):
        assert_whole_close(output, truth(case, tensors)[0], reduction_length=9)
