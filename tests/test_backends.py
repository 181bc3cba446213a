"""Law: the backends are one function; which of them serves is the caller's choice, and the choice
ends where it should.
"""

import native
import pytest
import torch
from operations import every_case, every_operation
from operations.base import as_truth

import fastconv

NAMES = ("native", "numba", "numpy", "torch")


@pytest.fixture(autouse=True)
def restored():
    before = fastconv.backend()
    yield
    fastconv.backend(before)


def chosen(name):
    if name == "native":
        native.core()
    return fastconv.backend(name)


@pytest.mark.parametrize("name", NAMES)
@every_case()
def test_every_backend_agrees_with_the_reference(operation, case, name):
    names = operation.present(operation.shapes(case))
    for dtype in (torch.float32, torch.bfloat16):
        tensors = operation.tensors(case, dtype, requires_grad=names)
        arrays = {key: as_truth(tensor) for key, tensor in tensors.items()}
        if name == "torch" and dtype == torch.bfloat16 and not operation.is_usual(case):
            continue
        with chosen(name):
            outputs = operation.call(case, tensors)
            operation.check_outputs(
                case, [o.detach() for o in outputs], operation.truth(case, tensors), name
            )
            grad = torch.ones_like(outputs[0])
            if name == "torch" and not operation.is_seen(case):
                continue
            gradients = torch.autograd.grad(outputs[0], [tensors[n] for n in names], grad)
        truth = operation.reference_gradients(case, arrays, as_truth(grad))
        for key, gradient in zip(names, gradients, strict=True):
            assert gradient.dtype == dtype
            # Without instructions for bfloat16 torch adds up its gradients in bfloat16.
            if name == "torch" and dtype == torch.bfloat16:
                continue
            operation.check_gradient(case, key, gradient, truth[key], name)


@pytest.mark.parametrize("name", NAMES)
@every_case("plain")
def test_every_backend_serves_numpy(operation, case, name):
    tensors = operation.tensors(case)
    arrays = {key: None if t is None else t.numpy() for key, t in tensors.items()}
    with chosen(name):
        outputs = operation.call(case, arrays)
    assert all(type(output).__module__ == "numpy" for output in outputs)
    operation.check_outputs(case, outputs, operation.truth(case, tensors), name)


@pytest.mark.parametrize("name", NAMES)
@every_operation()
def test_every_backend_in_integers(operation, name):
    for dtype in [dtype for dtype in operation.dtypes if not dtype.is_floating_point]:
        for case in operation.cases("small"):
            tensors = operation.tensors(case, dtype)
            with chosen(name):
                outputs = operation.call(case, tensors)
            operation.check_outputs(
                case, outputs, operation.truth(case, tensors), f"{name}, {case.name}"
            )


@pytest.mark.parametrize("name", NAMES)
@every_case("plain")
def test_compile_under_every_backend(operation, case, name):
    with chosen(name):
        compiled = torch.compile(
            lambda tensors: operation.call(case, tensors)[0], backend="aot_eager", fullgraph=True
        )
        tensors = operation.tensors(case, requires_grad=operation.differentiable)
        output = compiled(tensors)
        output.sum().backward()
        operation.check_outputs(case, (output.detach(),), operation.truth(case, tensors), name)
        assert all(tensors[key].grad is not None for key in operation.differentiable)


def test_default_is_the_fastest_there_is():
    assert fastconv.backend() == native.backends()[0]


def test_context_manager_restores():
    before = fastconv.backend()
    with fastconv.backend("numpy"):
        assert fastconv.backend() == "numpy"
        with fastconv.backend("torch"):
            assert fastconv.backend() == "torch"
        assert fastconv.backend() == "numpy"
    assert fastconv.backend() == before


def test_context_manager_restores_after_an_exception():
    before = fastconv.backend()
    with pytest.raises(KeyError), fastconv.backend("numpy"):
        raise KeyError("inside")
    assert fastconv.backend() == before


def test_setter_stays():
    fastconv.backend("numpy")
    assert fastconv.backend() == "numpy"
    with fastconv.backend("torch"):
        pass
    assert fastconv.backend() == "numpy"


@pytest.mark.parametrize("wrong", ["cuda", "", "Numpy", "native "])
def test_unknown_backend_raises(wrong):
    before = fastconv.backend()
    with pytest.raises(ValueError, match=r"expected .+, got"):
        fastconv.backend(wrong)
    assert fastconv.backend() == before


def test_show_config_names_the_backend_and_the_versions(capsys):
    shown = str(fastconv.show_config()) + capsys.readouterr().out
    assert fastconv.__version__ in shown
    assert torch.__version__ in shown
    assert fastconv.backend() in shown
