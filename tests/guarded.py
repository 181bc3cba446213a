"""Inputs between unreadable pages. Run in a process of its own, for a wrong read ends it."""

import ctypes
import mmap

import native
import numpy as np
import torch
from operations import OPERATIONS, name_of

PAGE = mmap.PAGESIZE
PROT_NONE = 0
KEPT = []  # the maps stay alive as long as the process


def placed(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy whose last byte is the last before an unreadable page, or whose first is the first
    after one.
    """
    pages = -(-max(array.nbytes, 1) // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    KEPT.append(area)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + (pages + 1) * PAGE):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = PAGE + (pages * PAGE - array.nbytes if at_end else 0)
    copy = np.frombuffer(area, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def guard(tensor: torch.Tensor, layout: str, at_end: bool) -> torch.Tensor:
    """The same values between unreadable pages; halves travel as 16-bit integers, for NumPy lacks
    bfloat16.
    """
    if tensor.ndim == 4 and layout == "channels_last":
        return guard(tensor.permute(0, 2, 3, 1).contiguous(), "contiguous", at_end).permute(
            0, 3, 1, 2
        )
    bits = tensor.view(torch.int16) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return torch.from_numpy(placed(bits.numpy(), at_end)).view(tensor.dtype)


def run(operation_name: str) -> None:
    """Every case, dtype and layout, forward and backward; prints each before it runs: the last line
    names the culprit.
    """
    operation = OPERATIONS[operation_name]
    if native.is_present():
        from fastconv import _core

        print("isa", _core.isa())
    for case in operation.cases():
        for dtype in operation.dtypes:
            for layout in ("contiguous", "channels_last"):
                for at_end in (True, False):
                    print(
                        case.name, name_of(dtype), layout, "end" if at_end else "start", flush=True
                    )
                    check(operation, case, dtype, layout, at_end)
        KEPT.clear()
    print(len(operation.cases()), "cases")


def check(operation, case, dtype, layout, at_end) -> None:
    tensors = operation.tensors(case, dtype)
    inputs = {n: None if t is None else guard(t, layout, at_end) for n, t in tensors.items()}
    output = operation.call(case, inputs)[0]
    if layout == "contiguous" and at_end:
        expected = operation.truth(case, tensors)
        operation.check_outputs(case, (output,), expected, "between unreadable pages")
    if not dtype.is_floating_point:
        return
    names = operation.present(inputs)
    leaves = {n: None if t is None else t.detach().requires_grad_() for n, t in inputs.items()}
    output = operation.call(case, leaves)[0]
    grad = guard(torch.ones(output.shape, dtype=dtype), layout, at_end)
    torch.autograd.grad(output, [leaves[name] for name in names], grad)
