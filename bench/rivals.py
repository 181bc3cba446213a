"""Who fastconv is compared with, each a function without arguments on the same inputs and threads.

Every builder returns such a function, or None where the rival has no such operation. What each pays
for is what its users pay: torch and fastconv get tensors and return a fresh one; ONNX Runtime and
OpenVINO run a compiled graph of the one layer, whose weights are constants (they may be re-packed
once, at no cost in these times).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import fastconv.functional as FC
from bench.interleave import Runner
from bench.shapes import ConvLayer, PoolLayer, TransposedLayer

OURS = "fastconv"
POOL_PAUSE = 3e-3  # seconds; for rivals that own a thread pool, see interleave.race


def _found(*modules: str) -> bool:
    """Say whether all modules can be imported."""
    return all(find_spec(module) for module in modules)


GRAPH_RUNTIMES = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}
NAMES = (OURS, "torch", *(name for name, needs in GRAPH_RUNTIMES.items() if _found(*needs)))


def applicable(dtype: str, layout: str) -> tuple[str, ...]:
    """Return the rivals of a forward row: the graph runtimes take float32 in NCHW."""
    return NAMES if (dtype, layout) == ("float32", "nchw") else (OURS, "torch")


def _inference(function: Callable[..., Tensor], *args: object, **kwargs: object) -> Runner:
    """Bind the arguments and run in inference mode."""

    def run() -> Tensor:
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


def conv2d_forward(
    layer: ConvLayer, x: Tensor, w: Tensor, b: Tensor | None, names: tuple[str, ...]
) -> dict[str, Runner]:
    """Return the forward runners by name."""
    builders: dict[str, Callable[[], Runner]] = {
        OURS: lambda: _inference(FC.conv2d, x, w, b, **layer.options),
        "torch": lambda: _inference(F.conv2d, x, w, b, **layer.options),
        "onnxruntime": lambda: _onnx_runner(
            x,
            "Conv",
            {"w": w, "b": b},
            layer.window,
            layer.stride,
            layer.padding,
            group=layer.groups,
        ),
        "openvino": lambda: _openvino_conv(layer, x, w, b),
    }
    return {name: builders[name]() for name in names}


def max_pool2d_forward(layer: PoolLayer, x: Tensor, names: tuple[str, ...]) -> dict[str, Runner]:
    """Return the runners of a forward pass that wants values only."""
    builders: dict[str, Callable[[], Runner]] = {
        OURS: lambda: _inference(FC.max_pool2d, x, **layer.options),
        "torch": lambda: _inference(F.max_pool2d, x, **layer.options),
        "onnxruntime": lambda: _onnx_runner(
            x, "MaxPool", {}, layer.window, layer.stride, layer.padding
        ),
        "openvino": lambda: _openvino_pool(layer, x),
    }
    return {name: builders[name]() for name in names}


def conv2d_backward(
    layer: ConvLayer, which: str, x: Tensor, w: Tensor, grad: Tensor
) -> dict[str, Runner]:
    """Return the runners of one gradient: `input_grad` or `weight_grad`."""
    pair = {name: (value, value) for name, value in layer.options.items() if name != "groups"}
    if which == "input_grad":
        ours, args = torch.ops.fastconv.conv2d_input_grad, (grad, w, x.shape)
    else:
        ours, args = torch.ops.fastconv.conv2d_weight_grad, (grad, x, w.shape)
    mask = [which == "input_grad", which == "weight_grad", False]
    theirs = torch.ops.aten.convolution_backward
    fixed = (pair["stride"], pair["padding"], (1, 1), False, (0, 0), layer.groups, mask)
    return {
        OURS: _inference(ours, *args, **pair, groups=layer.groups),
        "torch": _inference(lambda: theirs(grad, x, w, None, *fixed)[mask.index(True)]),
    }


def conv_transpose2d_forward(
    layer: TransposedLayer, x: Tensor, w: Tensor, b: Tensor | None
) -> dict[str, Runner]:
    """Return the forward runners by name."""
    return {
        OURS: _inference(FC.conv_transpose2d, x, w, b, **layer.options),
        "torch": _inference(F.conv_transpose2d, x, w, b, **layer.options),
    }


def conv_transpose2d_training(
    layer: TransposedLayer, x: Tensor, w: Tensor, b: Tensor | None, grad: Tensor
) -> dict[str, Runner]:
    """Return the runners of a step: the forward pass and all gradients, through autograd."""
    leaves = [tensor.requires_grad_() for tensor in (x, w, b) if tensor is not None]

    def step(function: Callable[..., Tensor]) -> Runner:
        return lambda: torch.autograd.grad(function(x, w, b, **layer.options), leaves, grad)

    return {OURS: step(FC.conv_transpose2d), "torch": step(F.conv_transpose2d)}


def max_pool2d_backward(
    layer: PoolLayer, x: Tensor, grad: Tensor, indices: Tensor
) -> dict[str, Runner]:
    """Return the runners of the gradient."""
    window, stride, padding = (
        (value, value) for value in (layer.window, layer.stride, layer.padding)
    )
    theirs = torch.ops.aten.max_pool2d_with_indices_backward
    return {
        OURS: _inference(torch.ops.fastconv.max_pool2d_backward, grad, indices, x.shape),
        "torch": _inference(theirs, grad, x, window, stride, padding, (1, 1), False, indices),
    }


def _onnx_runner(
    x: Tensor,
    operation: str,
    constants: dict[str, Tensor | None],
    window: int,
    stride: int,
    padding: int,
    **attributes: int,
) -> Runner:
    """Return ONNX Runtime on a graph of one node."""
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    helper, proto = onnx.helper, onnx.TensorProto
    weights = [
        onnx.numpy_helper.from_array(value.numpy(), name)
        for name, value in constants.items()
        if value is not None
    ]
    node = helper.make_node(
        operation,
        ["x", *(weight.name for weight in weights)],
        ["y"],
        kernel_shape=[window] * 2,
        strides=[stride] * 2,
        pads=[padding] * 4,
        **attributes,
    )
    source = helper.make_tensor_value_info("x", proto.FLOAT, list(x.shape))
    target = helper.make_tensor_value_info("y", proto.FLOAT, None)
    graph = helper.make_graph([node], operation, [source], [target], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino_conv(layer: ConvLayer, x: Tensor, w: Tensor, b: Tensor | None) -> Runner:
    """Return OpenVINO on one convolution."""
    openvino = importlib.import_module("openvino")
    ops = importlib.import_module("openvino.opset13")
    source = ops.parameter(list(x.shape), np.float32)
    strides, pads = [layer.stride] * 2, [layer.padding] * 2
    if layer.groups == 1:
        node = ops.convolution(source, ops.constant(w.numpy()), strides, pads, pads, [1, 1])
    else:
        grouped = w.unflatten(0, (layer.groups, -1)).numpy()
        node = ops.group_convolution(source, ops.constant(grouped), strides, pads, pads, [1, 1])
    if b is not None:
        node = ops.add(node, ops.constant(b.view(1, -1, 1, 1).numpy()))
    return _openvino_runner(openvino, node, source, x)


def _openvino_pool(layer: PoolLayer, x: Tensor) -> Runner:
    """Return OpenVINO on one max pooling."""
    openvino = importlib.import_module("openvino")
    ops = importlib.import_module("openvino.opset1")
    source = ops.parameter(list(x.shape), np.float32)
    pads = [layer.padding] * 2
    node = ops.max_pool(source, [layer.stride] * 2, pads, pads, [layer.window] * 2)
    return _openvino_runner(openvino, node, source, x)


def _openvino_runner(openvino: ModuleType, node: object, source: object, x: Tensor) -> Runner:
    """Compile a graph with one input and one output, in float32."""
    model = openvino.Model([node], [source], "layer")
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    array = x.numpy()
    request.set_input_tensor(openvino.Tensor(array, shared_memory=True))

    def run() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return run
