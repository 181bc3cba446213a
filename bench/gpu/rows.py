"""The rows of the GPU benches: what is compared, in the order in which it matters.

A run has minutes: rows are sorted so that what is cut off at the end is what says least.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench import rivals
from bench.gpu import duels
from bench.gpu.duels import Duel
from bench.pool_shapes import LAYERS as POOL_LAYERS
from bench.shapes import CONV_LAYERS, LAYOUTS, TRANSPOSED_LAYERS, ConvLayer, TransposedLayer

NETS = ("resnet50", "convnext_t", "resnext50", "mobilenetv2")
BATCHES = (32, 1)
# name: dtype, whether torch may use tf32, and how early the mode comes
MODES = {
    "bfloat16": (torch.bfloat16, False, 0),
    "float32": (torch.float32, False, 0),
    "float32 tf32": (torch.float32, True, 1),
    "float16": (torch.float16, False, 2),
}
# The largest |answer - truth| / |truth| (norms over the whole answer) of a rival's answer: a few
# roundings of operands; cuDNN may choose algorithms that round between transforms.
NORM_ERROR = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 2e-5, "float32 tf32": 4e-3}


@dataclass(frozen=True)
class Family:
    """Operations that are measured in one part of a run."""

    layers: Mapping[str, Any]
    tiny: tuple[Any, ...]  # layers for a machine without a device
    passes: tuple[str, ...]
    build: Callable[[Any, str, int, torch.dtype, str], Duel]
    quick: Callable[[Any], bool] = lambda layer: layer.quick
    modes: tuple[str, ...] = tuple(MODES)


def _first_of_each() -> dict[str, Any]:
    """Return one pooling layer of every operation."""
    return {layer.op: layer for layer in reversed(POOL_LAYERS.values())}


FAMILIES = {
    "pool": Family(
        POOL_LAYERS,
        tuple(replace(layer, C=4, size=(9, 9)) for layer in _first_of_each().values()),
        ("forward", "backward"),
        duels.pool,
        quick=lambda layer: layer in _first_of_each().values(),
        modes=("bfloat16", "float32", "float16"),
    ),
    "conv_transpose2d": Family(
        TRANSPOSED_LAYERS,
        (TransposedLayer("tiny", 4, 6, 5, 4, 2, 1, bias=True),),
        ("forward",),
        duels.conv_transpose2d,
    ),
    "conv2d": Family(
        {name: layer for name, layer in CONV_LAYERS.items() if layer.net in NETS},
        (ConvLayer("tiny", 4, 6, 9, 3, 2, 1, 2),),
        ("forward", "input_grad", "weight_grad"),
        duels.conv2d,
    ),
}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    family: str
    which: str
    layer: Any
    batch: int
    mode: str
    layout: str

    @property
    def name(self) -> str:
        """Return all that tells rows apart."""
        return f"{self.which}, {self.layer.name}, batch {self.batch}, {self.mode}, {self.layout}"

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the tensors."""
        return MODES[self.mode][0]

    @property
    def is_quick(self) -> bool:
        """Say whether the layer is one of the few that stand for all."""
        return FAMILIES[self.family].quick(self.layer)

    @property
    def lateness(self) -> int:
        """Return how late the row comes: the sum of what makes it less telling."""
        late = 2 * (not self.is_quick) + 2 * (self.batch == 1) + MODES[self.mode][2]
        return late + (self.which != "forward")

    def duel(self, device: str) -> Duel:
        """Build inputs, runners and truth on a device."""
        build = FAMILIES[self.family].build
        with torch.device(device):  # for building alone: while it is active, every call costs more
            return build(self.layer, self.which, self.batch, self.dtype, self.layout)

    def check(self, duel: Duel, name: str, answer: torch.Tensor) -> float:
        """Return the error of an answer; raise where it is too large: ours by the laws too."""
        error = duel.check(name, answer, self.dtype, NORM_ERROR[self.mode])
        if name == rivals.OURS and self.mode != "float32 tf32":
            duel.check_elements(answer)
        return error


def plan(family: str) -> list[Row]:
    """Return all rows of a family, the most telling first."""
    made = FAMILIES[family]
    kinds = itertools.product(BATCHES, made.layers.values(), made.modes, LAYOUTS, made.passes)
    rows = [
        Row(family, which, layer, batch, mode, layout)
        for batch, layer, mode, layout, which in kinds
    ]
    return sorted(rows, key=lambda row: row.lateness)


def rehearsal(family: str) -> Iterator[Row]:
    """Yield rows small enough for a machine without a device: every pass, mode and layout."""
    made = FAMILIES[family]
    for layer, which, mode, layout in itertools.product(
        made.tiny, made.passes, made.modes, LAYOUTS
    ):
        yield Row(family, which, layer, 2, mode, layout)
