"""The rows of the conv2d table and the families they are summed up in, each with its targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from bench.shapes import BATCHES, CONV_LAYERS, LAYOUTS, ConvLayer

# torch's float16, and its bfloat16 on CPUs without instructions for it, are 50 to 500 times slower
# than its float32: larger rows take minutes.
HALF_FLOPS = 1.5e8
BFLOAT16_FLOPS = float("inf") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else HALF_FLOPS
EVERY_LAYOUT = ""  # the layout of a target that does not tell layouts apart

Target = tuple[float, float]  # geometric mean of the ratios, and the least one


@dataclass(frozen=True)
class Row:
    """One measurement: a layer's pass. The runners beside torch are `sides`."""

    what: str  # forward, input_grad, weight_grad or backward
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
    """Rows whose ratios are summed up together.

    Targets are keyed by layout, or by EVERY_LAYOUT where one holds for all rows.
    """

    name: str
    title: str
    what: str
    kind: Callable[[ConvLayer], bool]
    dtype: str = "float32"
    side: str = "frozen"
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    targets: dict[str, Target] = field(default_factory=dict)
    most_flops: float = float("inf")

    def rows(self) -> Iterator[Row]:
        """Yield the rows, whole networks one after the other."""
        for name, layer in CONV_LAYERS.items():
            for batch in BATCHES:
                for layout in self.layouts:
                    if self.kind(layer) and layer.flops(batch) <= self.most_flops:
                        yield Row(self.what, name, batch, self.dtype, layout)


def is_dense(layer: ConvLayer) -> bool:
    """Every output channel sees every input channel."""
    return layer.groups == 1


def is_depthwise(layer: ConvLayer) -> bool:
    """Every output channel sees one input channel."""
    return layer.groups == layer.C > 1


def is_grouped(layer: ConvLayer) -> bool:
    """Between dense and depthwise."""
    return 1 < layer.groups < layer.C


def is_three_by_three(layer: ConvLayer) -> bool:
    """Dense, with a 3x3 window that moves by one: Winograd's layers."""
    return is_dense(layer) and layer.window == 3 and layer.stride == 1


def is_other_dense(layer: ConvLayer) -> bool:
    """Dense, but none of Winograd's."""
    return is_dense(layer) and not is_three_by_three(layer)


def _by_layout(channels_last: Target, nchw: Target) -> dict[str, Target]:
    return {"channels_last": channels_last, "nchw": nchw}


FAMILIES = {
    family.name: family
    for family in (
        Family("3x3", "3x3 s1 float32", "forward", is_three_by_three,
               targets=_by_layout((2.0, 1.4), (2.3, 1.4))),
        Family("dense", "other dense float32", "forward", is_other_dense,
               targets=_by_layout((1.1, 0.95), (1.6, 1.0))),
        Family("functional", "functional (not frozen), all dense", "forward", is_dense,
               side="functional", targets={EVERY_LAYOUT: (1.3, 0.9)}),
        Family("depthwise", "depthwise", "forward", is_depthwise,
               targets=_by_layout((1.4, 1.0), (2.5, 1.2))),
        Family("grouped", "grouped", "forward", is_grouped, targets={EVERY_LAYOUT: (4, 2)}),
        Family("dense-backward", "dense backward", "backward", is_dense, side="functional",
               targets=_by_layout((1.4, 1.0), (1.6, 1.0))),
        Family("depthwise-backward", "depthwise backward", "backward", is_depthwise,
               side="functional", targets={EVERY_LAYOUT: (6, 2)}),
        Family("grouped-backward", "grouped backward", "backward", is_grouped, side="functional",
               targets={EVERY_LAYOUT: (4, 2)}),
        Family("bfloat16", "bfloat16 dense, channels_last", "forward", is_dense, dtype="bfloat16",
               layouts=("channels_last",), targets={"channels_last": (1.0, 0.9)},
               most_flops=BFLOAT16_FLOPS),
        Family("float16", "float16", "forward", lambda _: True, dtype="float16",
               targets={EVERY_LAYOUT: (30, 10)}, most_flops=HALF_FLOPS),
        *(
            Family(f"{kind}-{what.replace('_', '-')}", f"{kind} {what}", what, of_kind,
                   side="functional")
            for what in ("input_grad", "weight_grad")
            for kind, of_kind in (
                ("3x3", is_three_by_three),
                ("dense", is_dense),
                ("depthwise", is_depthwise),
                ("grouped", is_grouped),
            )
        ),
    )
}  # fmt: skip
