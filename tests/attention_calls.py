"""attention's cases as calls: of the op, of the public function, of the reference."""

import pytest
import torch

import fastconv
from fastconv.reference import attention as reference
from fastconv.reference.attention_cases import ATTENTION_CASES as CASES

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
small_cases = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.query[2] * case.keys < 1500 and 0 not in case.query],
    ids=lambda case: case.name,
)


def laid(tensor, layout):
    """The same shape, other memory."""
    if layout == "queries first":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "features first":
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        larger = tensor.new_full([size + 3 for size in tensor.shape], 100)
        window = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
        return window.copy_(tensor)
    if layout == "expanded":
        return tensor[:, :1].expand(tensor.shape).detach()
    return tensor


def tensors_of(case, dtype, layout="heads first"):
    """query, key, value, mask, slopes, seed."""
    B, H, _, D = case.query
    shapes = {
        "query": case.query,
        "key": (B, case.heads, case.keys, D),
        "value": (B, case.heads, case.keys, case.features),
        "mask": case.mask,
        "slopes": (case.slopes, H) if case.slopes else None,
    }
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        tensors[name] = None
        if shape is not None:
            made = fastconv.testing.make_input(shape, dtype, seed=number)
            tensors[name] = laid(made, layout if name != "slopes" else "heads first")
    if case.boolean:
        tensors["mask"] = (tensors["mask"] > -0.5).to(torch.uint8)
    if case.slopes:
        tensors["slopes"] = tensors["slopes"].abs() / 8
    tensors["seed"] = torch.tensor([2**61 + 12345]) if case.dropout_p else None
    return tensors


def leaves_of(tensors):
    """The same tensors; those that have a gradient want it."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_floating_point() and name != "slopes":
            tensor.requires_grad_()
    return tensors


def op_arguments(case, tensors):
    return (*tensors.values(), *case.constants)


def public_arguments(case, tensors):
    """Without dropout, whose seed the public function draws."""
    mask = tensors["mask"]
    if case.boolean:
        mask = mask != 0
    arguments = {name: tensors[name] for name in ("query", "key", "value")}
    return arguments | {
        "attn_mask": mask,
        "is_causal": case.is_causal,
        "scale": case.scale,
        "enable_gqa": True,
        "window_size": case.window,
        "softcap": case.softcap,
        "alibi_slopes": tensors["slopes"],
    }


def length_of(case):
    """The longest sum of products, of the output or of a gradient."""
    return max(case.keys, case.query[1] // max(case.heads, 1) * case.query[2], *case.query[3:], 1)


def in_float64(tensor):
    if tensor is None:
        return None
    tensor = tensor.detach()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def truth(case, tensors):
    return reference.attention(*op_arguments(case, {k: in_float64(t) for k, t in tensors.items()}))


def truth_of_gradients(case, tensors, grad):
    arguments = op_arguments(case, {k: in_float64(t) for k, t in tensors.items()})
    given = (in_float64(grad), *arguments[:3], None, None, *arguments[3:])
    found = dict(zip(("query", "key", "value"), reference.attention_backward(*given), strict=True))
    if case.mask and not case.boolean:
        found["mask"] = reference.attention_mask_grad(*given)
    return found


def gradients(output, leaves, grad):
    wanted = {k: t for k, t in leaves.items() if t is not None and t.requires_grad}
    found = torch.autograd.grad(output, list(wanted.values()), grad)
    return dict(zip(wanted, found, strict=True))


def between_unreadable_pages():
    """Every case with every tensor before and behind memory that kills who reads it."""
    import guarded

    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            for at_end in (True, False):
                print(case.name, dtype, at_end, flush=True)
                tensors = {
                    name: None if t is None else guarded.guard(t, "contiguous", at_end)
                    for name, t in tensors_of(case, dtype).items()
                }
                leaves_of(tensors)
                output = torch.ops.fastconv.attention(*op_arguments(case, tensors))[0]
                gradients(output, tensors, torch.ones_like(output))
        guarded.KEPT.clear()
    print(len(CASES), "cases")
