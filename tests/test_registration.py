"""Law: to torch the operations are its own: they compile, export, trace, vectorise and
differentiate like ATen's.
"""

import copy
import io

import pytest
import torch
from operations import every_case, every_operation
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastconv.testing


class Functional(torch.nn.Module):
    """The operation as a module whose other tensors are parameters: what exporters take."""

    def __init__(self, operation, case, tensors):
        super().__init__()
        self.operation, self.case = operation, case
        for name, tensor in tensors.items():
            if name != "input":
                self.register_parameter(
                    name, None if tensor is None else torch.nn.Parameter(tensor)
                )

    def forward(self, input):
        names = [name for name in self.operation.shapes(self.case) if name != "input"]
        others = {name: getattr(self, name) for name in names}
        return self.operation.functional(input, **others, **self.operation.options(self.case)) * 2


def functional_module(operation, case, layout="contiguous"):
    tensors = operation.tensors(case, layout=layout)
    return Functional(operation, case, tensors).eval(), tensors["input"]


def assert_same(actual, expected, reduction_length, context=""):
    """Same values, dtype, shape and strides."""
    assert actual.stride() == expected.stride(), f"strides {context}"
    assert actual.dtype == expected.dtype, f"dtype {context}"
    fastconv.testing.assert_close(
        actual,
        expected.detach().double().cpu().numpy(),
        reduction_length=reduction_length,
        context=context,
    )


# ---- opcheck ----


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@every_case("small")
def test_opcheck(operation, case, layout):
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, layout=layout, requires_grad=names)
    for op, args, kwargs in operation.op_calls(case, tensors).values():
        torch.library.opcheck(op, args, kwargs)


@every_case()
def test_fake_tells_the_truth(operation, case):
    """Shape, dtype and strides of every op's result are known without computing it, also in
    integers and halves.
    """
    for layout in ("contiguous", "channels_last"):
        for dtype in operation.dtypes:
            tensors = operation.tensors(case, dtype, layout)
            for name, (op, args, kwargs) in operation.op_calls(case, tensors).items():
                torch.library.opcheck(op, args, kwargs, test_utils="test_faketensor")
                real = op(*args, **kwargs)
                meta = op(
                    *(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args), **kwargs
                )
                for r, m in zip(tuple_of(real), tuple_of(meta), strict=True):
                    assert (r.shape, r.dtype, r.stride()) == (m.shape, m.dtype, m.stride()), name


def tuple_of(result):
    return result if isinstance(result, tuple) else (result,)


# ---- torch.compile ----


def check_compiled(operation, case, backend, layout="contiguous", dynamic=None, device="cpu"):
    names = operation.present(operation.shapes(case))
    function = torch.compile(
        lambda tensors: operation.call(case, tensors)[0] * 2,
        backend=backend,
        fullgraph=True,
        dynamic=dynamic,
    )
    lengths = operation.reduction_lengths(case)

    tensors = operation.tensors(case, layout=layout, device=device)
    with torch.no_grad():
        assert_same(
            function(tensors), operation.call(case, tensors)[0] * 2, lengths["output"], "evaluation"
        )

    results = []
    for run in (function, lambda tensors: operation.call(case, tensors)[0] * 2):
        tensors = operation.tensors(case, layout=layout, device=device)
        tensors = {n: t if t is None else t.requires_grad_(n in names) for n, t in tensors.items()}
        output = run(tensors)
        (output * output.detach()).sum().backward()
        results.append((output, {name: tensors[name].grad for name in names}))
    (compiled, compiled_grads), (eager, eager_grads) = results
    assert_same(compiled, eager, lengths["output"], "training")
    for name in names:
        fastconv.testing.assert_close(
            compiled_grads[name],
            eager_grads[name].double().cpu().numpy(),
            reduction_length=lengths[name] * lengths["output"],
            context=f"gradient of {name}",
        )


@every_case()
def test_compile_with_aot_eager(operation, case):
    check_compiled(operation, case, "aot_eager")


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@every_case("plain")
def test_cuda_compile(operation, case, layout, backend):
    check_compiled(operation, case, backend, layout, device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@every_case("plain")
def test_cuda_opcheck(operation, case, layout):
    tensors = operation.tensors(case, layout=layout, device="cuda")
    names = operation.present(tensors)
    tensors = {n: t if t is None else t.requires_grad_(n in names) for n, t in tensors.items()}
    for op, args, kwargs in operation.op_calls(case, tensors).values():
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@every_case("plain")
def test_compile_with_inductor(operation, case, layout):
    check_compiled(operation, case, "inductor", layout)


@every_case("plain")
def test_compile_with_inductor_and_symbolic_sizes(operation, case):
    check_compiled(operation, case, "inductor", dynamic=True)


@every_case("plain")
def test_compile_makes_few_graphs_for_many_shapes(operation, case):
    module, input = functional_module(operation, case)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    N, C, H, W = input.shape
    for batch, height, width in [
        (N + 1, H, W),
        (N + 2, H + 1, W + 2),
        (5, H + 3, W),
        (7, H, W + 5),
        (3, 31, 29),
    ]:
        x = fastconv.testing.make_input(
            (batch, C, height, width), torch.float32, "contiguous", seed=batch
        )
        assert torch.equal(compiled(x), module(x))
    assert counter.frame_count <= 3, (
        "a fake kernel that reads sizes as numbers makes a graph per shape"
    )


# ---- Export ----


@every_case("plain")
def test_export(operation, case):
    module, input = functional_module(operation, case)
    program = torch.export.export(module, (input,))
    assert any("fastconv" in str(node.target) for node in program.graph.nodes), (
        "the op stays one node"
    )
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    assert torch.equal(torch.export.load(stored).module()(input), module(input))


@every_case("plain")
def test_export_with_symbolic_sizes(operation, case):
    module, input = functional_module(operation, case)
    batch = torch.export.Dim("batch", min=1, max=64)
    height = torch.export.Dim("height", min=8, max=64)
    x = fastconv.testing.make_input(
        (2, input.shape[1], 16, 16), torch.float32, "contiguous", seed=1
    )
    program = torch.export.export(
        module, (x,), dynamic_shapes=({0: batch, 2: height},)
    ).run_decompositions()
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for size in [(1, 9), (2, 16), (5, 23)]:
        x = fastconv.testing.make_input(
            (size[0], input.shape[1], size[1], 16), torch.float32, "contiguous", seed=2
        )
        assert torch.equal(loaded(x), module(x)), f"batch {size[0]}, height {size[1]}"


@every_case("plain")
def test_compile_ahead_of_time_package(operation, case, tmp_path):
    module, input = functional_module(operation, case)
    x = torch.cat([input, input])
    program = torch.export.export(
        module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)
    for batch in (x, input, torch.cat([x, x, input])):
        torch.testing.assert_close(loaded(batch), module(batch), rtol=0, atol=0)


# ---- Autocast ----


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@every_case("plain")
def test_autocast_as_torch(operation, case, low):
    compiled = torch.compile(
        lambda tensors: operation.call(case, tensors)[0], backend="aot_eager", fullgraph=True
    )
    for dtype in (torch.float32, low, torch.float64):
        tensors = operation.tensors(case, dtype)
        with torch.autocast("cpu", low):
            expected = operation.witness(case, tensors)[0]
            for name, door in operation.torch_doors(case).items():
                assert door(**tensors)[0].dtype == expected.dtype, f"{name}, {dtype}"
            assert compiled(tensors).dtype == expected.dtype
        rounded = {k: t if t is None else t.to(expected.dtype) for k, t in tensors.items()}
        with torch.autocast("cpu", low):
            operation.check_outputs(
                case,
                operation.call(case, tensors)[:1],
                operation.truth(case, rounded),
                f"autocast, {dtype}",
            )


@every_case("plain")
def test_autocast_gradients_come_in_the_leaf_dtype(operation, case):
    names = operation.present(operation.shapes(case))
    tensors = operation.tensors(case, requires_grad=names)
    with torch.autocast("cpu", torch.bfloat16):
        output = operation.call(case, tensors)[0]
    output.float().sum().backward()
    for name in names:
        assert tensors[name].grad.dtype == torch.float32


@every_case("plain")
def test_mixed_dtypes_are_mended_by_autocast_only_where_torch_does(operation, case):
    tensors = operation.tensors(case)
    tensors["input"] = tensors["input"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected = operation.witness(case, tensors)[0].dtype
        assert operation.call(case, tensors)[0].dtype == expected


# ---- torch.func ----


@every_case("plain")
def test_vmap(operation, case):
    """Over every subset of the tensors, along the first and the last axis."""
    function = operation.first_output(case)
    stacks = [torch.stack([leaf, leaf.flip(0) + 1, leaf * 2]) for leaf in operation.leaves(case)]
    for chosen in range(1, 2 ** len(stacks)):
        for axis in (0, -1):
            mapped = [chosen >> i & 1 for i in range(len(stacks))]
            args = [s.movedim(0, axis) if m else s[0] for s, m in zip(stacks, mapped, strict=True)]
            actual = vmap(function, in_dims=tuple(axis if m else None for m in mapped))(*args)
            expected = torch.stack(
                [
                    function(*(s[i] if m else s[0] for s, m in zip(stacks, mapped, strict=True)))
                    for i in range(3)
                ]
            )
            assert actual.shape == expected.shape, f"mapped {mapped}, axis {axis}"
            torch.testing.assert_close(actual, expected)


@every_case("transformable")
def test_jvp_and_vjp(operation, case):
    leaves = operation.leaves(case)
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
    ours, torchs = operation.first_output(case), operation.first_witness(case)
    (value, tangent), expected = jvp(ours, leaves, tangents), jvp(torchs, leaves, tangents)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(tangent, expected[1])
    cotangent = torch.randn_like(value)
    torch.testing.assert_close(vjp(ours, *leaves)[1](cotangent), vjp(torchs, *leaves)[1](cotangent))


@every_case("plain")
def test_forward_mode_levels(operation, case):
    """Dual numbers without torch.func, one tensor at a time: the tangent of a constant is nothing,
    not garbage.
    """
    leaves = operation.leaves(case)
    for which in range(len(leaves)):
        tangents = []
        for function in (operation.first_output(case), operation.first_witness(case)):
            torch.manual_seed(1)
            with forward_ad.dual_level():
                args = [
                    forward_ad.make_dual(leaf, torch.randn_like(leaf)) if i == which else leaf
                    for i, leaf in enumerate(leaves)
                ]
                tangents.append(forward_ad.unpack_dual(function(*args)).tangent)
        torch.testing.assert_close(*tangents)


@every_case("plain")
def test_jacobians_and_hessian(operation, case):
    leaves = operation.leaves(case)
    slots = tuple(range(len(leaves)))
    ours, torchs = operation.first_output(case), operation.first_witness(case)
    tiny = tuple(leaf.clone() for leaf in leaves)
    expected = jacrev(torchs, slots)(*tiny)
    torch.testing.assert_close(jacrev(ours, slots)(*tiny), expected)
    torch.testing.assert_close(jacfwd(ours, slots)(*tiny), expected)

    def of_line(function):
        """A scalar function of one number per tensor: its Hessian is small."""
        return lambda scales: (
            function(*(leaf * scale for leaf, scale in zip(tiny, scales, strict=True))) ** 3
        ).mean()

    scales = torch.linspace(0.5, 1.5, len(tiny), dtype=torch.float64)
    torch.testing.assert_close(hessian(of_line(ours))(scales), hessian(of_line(torchs))(scales))


@every_case("plain")
def test_per_sample_gradients(operation, case):
    module, input = functional_module(operation, case)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    samples = torch.cat([input, input * 2 + 1, input.flip(0)])

    def loss(parameters, sample):
        return (functional_call(module, parameters, (sample[None],)) ** 2).sum()

    over_samples = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(parameters, samples)
    for i, sample in enumerate(samples):
        one_by_one = grad(loss, argnums=(0, 1))(parameters, sample)
        torch.testing.assert_close(over_samples[1][i], one_by_one[1])
        for name in parameters:
            torch.testing.assert_close(
                over_samples[0][name][i], one_by_one[0][name], rtol=1e-4, atol=1e-3
            )


# ---- Tracers, modes, subclasses ----


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@every_case("plain")
def test_make_fx(operation, case, mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    function, leaves = operation.first_output(case), operation.leaves(case)
    traced = make_fx(function, tracing_mode=mode)(*leaves)
    assert any("fastconv" in str(node.target) for node in traced.graph.nodes)
    assert torch.equal(traced(*leaves), function(*leaves))


@every_case("plain")
def test_symbolic_trace(operation, case):
    module, input = functional_module(operation, case)

    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = module

        def forward(self, x):
            return self.inside(x) + 1

    traced = torch.fx.symbolic_trace(Around())
    assert torch.equal(traced(input), module(input) + 1)


@every_case("plain")
def test_jit_trace(operation, case):
    import warnings

    module, input = functional_module(operation, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(module, (input,))
    assert "fastconv::" in str(traced.inlined_graph), "the traced program calls the op itself"
    other = torch.cat([input, input])
    assert torch.equal(traced(other), module(other))


@every_case()
def test_fake_tensor_mode(operation, case):
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors = operation.tensors(case)
    real = operation.call(case, tensors)
    with FakeTensorMode() as mode:
        fakes = {k: None if t is None else mode.from_tensor(t) for k, t in tensors.items()}
        for name, door in operation.torch_doors(case).items():
            for fake, value in zip(door(**fakes), real, strict=False):
                assert (fake.shape, fake.stride(), fake.dtype) == (
                    value.shape,
                    value.stride(),
                    value.dtype,
                ), name


@every_case("plain")
def test_checkpoint(operation, case):
    from torch.utils.checkpoint import checkpoint

    names = operation.present(operation.shapes(case))
    function = operation.first_output(case)
    results = []
    for run in (function, lambda *leaves: checkpoint(function, *leaves, use_reentrant=False)):
        leaves = list(operation.tensors(case, requires_grad=names).values())
        results.append(torch.autograd.grad(run(*leaves).square().sum(), leaves))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@every_case("plain")
def test_tensor_subclass_sees_the_call(operation, case):
    seen = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", str(function)))
            return super().__torch_function__(function, types, args, kwargs or {})

    tensors = operation.tensors(case)
    expected = operation.call(case, tensors)[0]
    watched = tensors | {"input": tensors["input"].as_subclass(Watching)}
    actual = operation.call(case, watched)[0]
    assert isinstance(actual, Watching)
    assert any(operation.name in name for name in seen), seen
    assert torch.equal(actual.as_subclass(torch.Tensor), expected)


@every_case("plain")
def test_deterministic_mode(operation, case):
    names = operation.present(operation.shapes(case))
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            tensors = operation.tensors(case, requires_grad=names)
            operation.call(case, tensors)[0].square().sum().backward()
            results.append([tensors[name].grad for name in names])
    finally:
        torch.use_deterministic_algorithms(False)
    for again in results[1:]:
        for first, second in zip(results[0], again, strict=True):
            assert torch.equal(first, second)


@every_case("plain")
def test_copies_of_results_are_plain_tensors(operation, case):
    output = operation.call(case, operation.tensors(case))[0]
    stored = io.BytesIO()
    torch.save(output, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored), output)
    assert torch.equal(copy.deepcopy(output), output)
    assert output.untyped_storage().resizable()


@every_operation()
def test_schemas_are_what_the_contract_says(operation):
    """Constant windows are int[2], which takes a plain int; sizes are SymInt[], which may be
    symbolic.
    """
    for op, _, _ in operation.op_calls(
        operation.plain_case, operation.tensors(operation.plain_case)
    ).values():
        for argument in op._schema.arguments:
            if argument.name.endswith("_size") and argument.name != "kernel_size":
                assert f"SymInt[] {argument.name}" in str(op._schema)
            elif argument.name in ("stride", "padding", "dilation", "kernel_size"):
                assert argument.N == 2, op
        assert not op._schema.is_mutable, op


@every_operation()
def test_compile_with_symbolic_arguments(operation):
    """Numbers that are arguments of the compiled function may arrive as symbols, as in torch."""
    call = operation.right_call()
    for function in (operation.torch_functional, operation.functional):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
        assert torch.equal(compiled(**call), function(**call))
