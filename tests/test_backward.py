"""Law: gradients of every order are the derivatives of the formula, and only those needed are
computed.
"""

import numpy as np
import pytest
import torch
from operations import every_case, every_case_and_dtype
from operations.base import as_truth
from torch.autograd import gradcheck, gradgradcheck

import fastconv.testing

LAYOUTS = ("contiguous", "channels_last")


def check_gradients(operation, case, dtype, layout, device="cpu"):
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, dtype, layout, device=device)
    arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
    for door_name, door in operation.torch_doors(case).items():
        leaves = {
            name: tensor.detach().requires_grad_(name in names) if tensor is not None else None
            for name, tensor in tensors.items()
        }
        output = door(**leaves)[0]
        assert output.requires_grad, door_name
        grad = fastconv.testing.make_input(output.shape, dtype, "contiguous", seed=77).to(device)
        gradients = torch.autograd.grad(output, [leaves[name] for name in names], grad)
        expected = operation.reference_gradients(case, arrays, as_truth(grad))
        for name, gradient in zip(names, gradients, strict=True):
            assert gradient.shape == leaves[name].shape, f"{door_name}: {name}"
            assert gradient.dtype == dtype, f"{door_name}: {name}"
            operation.check_gradient(
                case, name, gradient.cpu(), expected[name], f"{door_name}, {layout}"
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case_and_dtype(differentiable=True)
def test_gradients_agree_with_the_reference(operation, case, dtype, layout):
    check_gradients(operation, case, dtype, layout)


@pytest.mark.cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@every_case_and_dtype(differentiable=True)
def test_cuda_gradients_agree_with_the_reference(operation, case, dtype, layout):
    check_gradients(operation, case, dtype, layout, device="cuda")


@every_case("seen")
def test_reference_gradients_agree_with_torch(operation, case):
    """The second witness: the truth's own gradients are checked against torch's autograd."""
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, torch.float64, requires_grad=names)
    output = operation.witness(case, tensors)[0]
    grad = fastconv.testing.make_input(output.shape, torch.float64, "contiguous", seed=77)
    gradients = torch.autograd.grad(output, [tensors[name] for name in names], grad)
    arrays = {name: as_truth(tensor) for name, tensor in tensors.items()}
    truth = operation.reference_gradients(case, arrays, grad.numpy())
    for name, gradient in zip(names, gradients, strict=True):
        operation.check_gradient(case, name, truth[name], gradient.numpy(), "NumPy against torch")


@every_case("smooth")
def test_first_derivative(operation, case):
    leaves = [leaf.requires_grad_() for leaf in operation.leaves(case)]
    assert gradcheck(operation.first_output(case), leaves, fast_mode=True)


@every_case("smooth")
def test_second_derivative(operation, case):
    leaves = [leaf.requires_grad_() for leaf in operation.leaves(case)]
    assert gradgradcheck(operation.first_output(case), leaves, fast_mode=True)


@every_case("plain")
def test_derivatives_in_slow_mode(operation, case):
    """Once per operation, every column of the Jacobian instead of a random direction, forward mode
    too.
    """
    leaves = [leaf.requires_grad_() for leaf in operation.leaves(case)]
    assert gradcheck(operation.first_output(case), leaves, check_forward_ad=True)
    assert gradgradcheck(
        operation.first_output(case), leaves, fast_mode=True, check_fwd_over_rev=True
    )


@every_case("plain")
def test_third_derivative(operation, case):
    def nested(function):
        """The sum of squares of the derivative of the sum of squares of the derivative of the sum
        of cubes.
        """
        leaves = [leaf.requires_grad_() for leaf in operation.leaves(case)]
        value = (function(*leaves) ** 3).sum()
        for _ in range(2):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((gradient**2).sum() for gradient in gradients)
        return torch.autograd.grad(value, leaves)

    actual = nested(operation.first_output(case))
    expected = nested(operation.first_witness(case))
    assert any(gradient.abs().max() > 0 for gradient in expected)
    for ours, torchs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-9 * torchs.abs().max().item())


@every_case("plain")
def test_only_needed_gradients_are_computed(operation, case):
    for name in operation.differentiable:
        tensors = operation.tensors(case, requires_grad=(name,))
        output = operation.call(case, tensors)[0].sum()
        with torch.profiler.profile() as profile:
            output.backward()
        ran = {event.name for event in profile.events() if event.name.startswith("fastconv::")}
        needed = operation.gradient_ops[name]
        assert ran == ({f"fastconv::{needed}"} if needed else set()), (
            f"only {name} needs a gradient"
        )
        for other, tensor in tensors.items():
            assert (tensor.grad is not None) == (other == name), (
                f"{other}.grad, only {name} needs one"
            )


@every_case("plain")
def test_no_graph_without_need(operation, case):
    tensors = operation.tensors(case)
    names = operation.present(tensors)
    needing = {
        name: tensor.detach().requires_grad_(name in names) for name, tensor in tensors.items()
    }
    for door in operation.torch_doors(case).values():
        assert not door(**tensors)[0].requires_grad
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                output = door(**needing)[0]
            assert not output.requires_grad
            assert output.is_inference() == (context is torch.inference_mode)
        for extra in door(**needing)[1:]:
            assert not extra.requires_grad, "indices have no gradient"


@every_case("plain")
def test_gradient_of_an_expanded_output_gradient(operation, case):
    """`output.sum().backward()` hands over a gradient whose strides are all zero."""
    names = operation.present(operation.shapes(case))
    gradients = {}
    for which in ("expanded", "dense"):
        tensors = operation.tensors(case, torch.float64, requires_grad=names)
        output = operation.call(case, tensors)[0]
        grad = torch.ones((), dtype=torch.float64).expand(output.shape)
        output.backward(grad if which == "expanded" else grad.contiguous())
        gradients[which] = [tensors[name].grad for name in names]
    for ours, dense in zip(gradients["expanded"], gradients["dense"], strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-12, atol=1e-12)


@every_case("plain")
def test_gradient_never_comes_from_overwritten_values(operation, case):
    """Writing over an input after the forward pass either raises in backward or does not change the
    gradient.
    """
    names = operation.differentiable

    def gradients(overwrite: bool):
        leaves = operation.tensors(case, requires_grad=names)
        used = {name: leaf.clone() for name, leaf in leaves.items()}
        output = operation.call(case, used)[0]
        if overwrite:
            for tensor in used.values():
                tensor.mul_(2)
        return torch.autograd.grad(output.sum(), list(leaves.values()))

    try:
        overwritten = gradients(overwrite=True)
    except RuntimeError as error:
        if "inplace operation" in str(error):
            return
        raise
    for ours, clean in zip(overwritten, gradients(overwrite=False), strict=True):
        assert torch.equal(ours, clean)
