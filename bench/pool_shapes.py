"""The rows of the pool table: the poolings of networks that people run, and their families.

A new operation adds its layers to LAYERS and its families to FAMILIES; where its call needs more
than the image (max_unpool2d: the indices), a line in `pool_race.INPUTS` makes the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.shapes import BATCHES, LAYOUTS

LARGE_BYTES = 32 * 2**20  # beyond it, the memory's speed is the roof: no desktop's L3 holds more

Target = tuple[float, float]  # geometric mean of the ratios, and the least one


@dataclass(frozen=True)
class Layer:
    """A pooling of C channels of an image; options are those of torch.nn.functional's function."""

    op: str
    net: str
    C: int
    size: tuple[int, int]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Return a short name such as `max_pool2d resnet50 64@112 3 stride 2 padding 1`."""
        height, width = self.size
        image = f"{self.C}@{height}" if height == width else f"{self.C}@{height}x{width}"
        text = " ".join(
            f"{value}" if key in ("kernel_size", "output_size") else f"{key} {value}"
            for key, value in self.options
        )
        return f"{self.op} {self.net} {image} {text}".replace(" True", "")

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return the options as keyword arguments."""
        return dict(self.options)

    @property
    def window_elements(self) -> int:
        """Return how many elements of the input the largest window holds."""
        options = self.kwargs
        if "kernel_size" in options:
            return int(options["kernel_size"]) ** 2
        return math.prod(-(-size // options["output_size"]) + 1 for size in self.size)

    def tensor(self, batch: int, dtype: torch.dtype, layout: str) -> Tensor:
        """Return an input [N, C, H, W]; a third is zero, as behind a ReLU of sparse maps."""
        torch.manual_seed(0)
        x = torch.randn(batch, self.C, *self.size)
        x.view(-1)[::3] = 0
        return x.to(dtype).contiguous(memory_format=LAYOUTS[layout])


def _layers(op: str, net: str, *rows: tuple[int, int, dict[str, Any]]) -> list[Layer]:
    return [
        Layer(op, net, channels, (size, size), tuple(options.items()))
        for channels, size, options in rows
    ]


def _window(kernel: int, stride: int | None = None, **others: Any) -> dict[str, Any]:
    chosen = {"kernel_size": kernel, "stride": kernel if stride is None else stride}
    return chosen | others


_MAX, _AVG, _ADAPTIVE = "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"
_ADAPTIVE_MAX, _UNPOOL = "adaptive_max_pool2d", "max_unpool2d"
LAYERS = {
    layer.name: layer
    for layer in (
        *_layers(_MAX, "resnet50", (64, 112, _window(3, 2, padding=1))),
        *_layers(
            _MAX,
            "vgg16",
            *((channels, size, _window(2)) for channels, size in
              ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))),
        ),
        *_layers(
            _MAX,
            "googlenet",
            (192, 56, _window(3, 2, ceil_mode=True)),
            (192, 28, _window(3, 1, padding=1)),
            (480, 14, _window(3, 1, padding=1)),
            (832, 14, _window(2, ceil_mode=True)),
            (832, 7, _window(3, 1, padding=1)),
        ),
        *_layers(_MAX, "inception_v3", (64, 147, _window(3, 2)), (288, 35, _window(3, 2))),
        *_layers(
            _MAX,
            "squeezenet",
            (96, 109, _window(3, 2, ceil_mode=True)),
            (256, 54, _window(3, 2, ceil_mode=True)),
        ),
        *_layers(_MAX, "yolo_spp", *((512, 13, _window(k, 1, padding=k // 2)) for k in (5, 9, 13))),
        *_layers(_MAX, "yolo_sppf", (256, 20, _window(5, 1, padding=2))),
        *_layers(_AVG, "densenet121", *((c, size, _window(2)) for c, size in
                                        ((128, 56), (256, 28), (512, 14)))),
        *_layers(
            _AVG,
            "inception_v3",
            *((c, size, _window(3, 1, padding=1)) for c, size in
              ((192, 35), (768, 17), (1280, 8), (2048, 8))),
            (768, 17, _window(3, 1, padding=1, count_include_pad=False)),
        ),
        *_layers(_AVG, "shufflenet", *((c, size, _window(3, 2, padding=1)) for c, size in
                                       ((24, 56), (240, 28), (480, 14)))),
        *_layers(
            _AVG,
            "resnet50d",
            *((c, size, _window(2, 2, ceil_mode=True, count_include_pad=False)) for c, size in
              ((256, 56), (512, 28), (1024, 14))),
        ),
        *_layers(_AVG, "downsampling", (64, 224, _window(2)), (64, 112, _window(3, 2))),
        *_layers(_AVG, "global", (2048, 7, _window(7)), (2048, 8, _window(8))),
        *_layers(_AVG, "spp", *((512, 13, _window(k, 1, padding=k // 2)) for k in (5, 9, 13))),
        *_layers(_AVG, "box filter", (64, 56, _window(5, 1, padding=2)),
                 (3, 512, _window(31, 1, padding=15)), (3, 256, _window(11, 1))),
        *_layers(
            _ADAPTIVE,
            "global",
            *((c, size, {"output_size": 1}) for c, size in
              ((2048, 7), (1280, 7), (2048, 8), (672, 14), (240, 28), (144, 56), (32, 112))),
        ),
        *_layers(_ADAPTIVE, "alexnet", (256, 6, {"output_size": 6}), (256, 13, {"output_size": 6})),
        *_layers(_ADAPTIVE, "vgg16", (512, 7, {"output_size": 7}), (512, 14, {"output_size": 7})),
        *_layers(_ADAPTIVE, "pspnet",
                 *((2048, 60, {"output_size": bins}) for bins in (1, 2, 3, 6))),
        *_layers(_ADAPTIVE_MAX, "global",
                 *((c, size, {"output_size": 1}) for c, size in ((2048, 7), (512, 14), (64, 112)))),
        *_layers(_ADAPTIVE_MAX, "spp", *((256, 13, {"output_size": bins}) for bins in (2, 3, 6))),
        *_layers(_UNPOOL, "segnet", *((c, size, _window(2)) for c, size in
                                      ((64, 112), (128, 56), (256, 28), (512, 14)))),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measurement: a layer's pass."""

    what: str  # forward, indices (forward, and where the values were), backward
    layer: str
    batch: int
    dtype: str
    layout: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype itself."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True)
class Family:
    """Rows whose ratios are summed up together; targets are keyed by layout."""

    name: str
    title: str
    what: str
    kind: Callable[[Layer], bool]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    targets: dict[str, Target] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """Yield the rows, layer by layer."""
        for name, layer in LAYERS.items():
            if self.kind(layer):
                for batch in BATCHES:
                    for dtype in self.dtypes:
                        for layout in self.layouts:
                            yield Row(self.what, name, batch, dtype, layout)


def of(op: str) -> Callable[[Layer], bool]:
    """Return whether a layer is of that operation."""
    return lambda layer: layer.op == op


def wide(op: str) -> Callable[[Layer], bool]:
    """Return whether a layer of the operation has a window of 5 and more that moves by one: many
    windows hold each element.
    """

    def is_wide(layer: Layer) -> bool:
        options = layer.kwargs
        return layer.op == op and options["kernel_size"] >= 5 and options["stride"] == 1

    return is_wide


def narrow(op: str) -> Callable[[Layer], bool]:
    """Return whether a layer of the operation has another window."""
    is_wide = wide(op)
    return lambda layer: layer.op == op and not is_wide(layer)


_FORWARD: dict[str, Target] = {"nchw": (10, 2.5), "channels_last": (1.8, 1.0)}
_WIDE: dict[str, Target] = {"nchw": (30, 10)}
_BACKWARD: dict[str, Target] = {"nchw": (3, 1.0), "channels_last": (2, 1.0)}
FAMILIES = {
    family.name: family
    for family in (
        Family("max", "max_pool2d", "forward", narrow(_MAX), targets=_FORWARD),
        Family("max-wide", "max_pool2d, window >= 5, stride 1", "forward", wide(_MAX),
               targets=_FORWARD | _WIDE),
        Family("max-backward", "max_pool2d backward", "backward", of(_MAX), targets=_BACKWARD),
        Family("max-indices", "max_pool2d with indices", "indices", of(_MAX)),
        Family("avg", "avg_pool2d", "forward", narrow(_AVG), targets=_FORWARD),
        Family("avg-wide", "avg_pool2d, window >= 5, stride 1", "forward", wide(_AVG),
               targets=_FORWARD | _WIDE),
        Family("avg-backward", "avg_pool2d backward", "backward", of(_AVG), targets=_BACKWARD),
        Family("adaptive-avg", "adaptive_avg_pool2d", "forward", of(_ADAPTIVE), targets=_FORWARD),
        Family("adaptive-avg-backward", "adaptive_avg_pool2d backward", "backward", of(_ADAPTIVE),
               targets=_BACKWARD),
        Family("adaptive-max", "adaptive_max_pool2d", "forward", of(_ADAPTIVE_MAX),
               targets=_FORWARD),
        Family("adaptive-max-backward", "adaptive_max_pool2d backward", "backward",
               of(_ADAPTIVE_MAX), targets=_BACKWARD),
        Family("max-unpool", "max_unpool2d", "forward", of(_UNPOOL)),
        Family("max-unpool-backward", "max_unpool2d backward", "backward", of(_UNPOOL)),
        Family("max-other", "max_pool2d, float16 and float64", "forward", of(_MAX),
               dtypes=("float16", "float64")),
    )
}  # fmt: skip
