"""The table of recurrent layers: torch.nn against fastconv.nn, in inference and in training.

python -m bench.recurrent_table --family lstm            # its sequences, in inference
python -m bench.recurrent_table -k "H1024" --budget 1

One process, the same parameters and inputs, interleaved; ratios are torch's time over fastconv's. A
training step is a forward pass and `torch.autograd.grad` by all parameters and the input. Answers
are held against torch's own. `packed` races fastconv alone: lengths uniform in [T/4, T] against the
padded full run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastconv
from bench.interleave import keep_memory, race
from bench.table import geometric_mean

ROUNDS = (5, 31)
# N, T, I, H: one stream, small batches of many steps, large ones; sizes that no vector fills.
SEQUENCES = (
    *((1, 50, 64, 64), (1, 100, 256, 256), (1, 20, 512, 1024), (1, 1, 256, 256)),
    *((8, 50, 128, 128), (16, 100, 256, 256), (32, 30, 32, 512), (64, 20, 1024, 512)),
    *((128, 10, 512, 1024), (128, 50, 32, 32), (20, 35, 200, 200), (3, 60, 40, 100)),
)
# N, I, H
CELLS = (
    *((1, 32, 32), (1, 256, 256), (1, 1024, 1024), (8, 128, 128), (16, 512, 512)),
    *((32, 64, 256), (64, 256, 256), (128, 32, 64), (128, 1024, 1024), (20, 200, 200)),
)


@dataclass(frozen=True)
class Row:
    """One module and one call."""

    module: str
    what: str  # inference, training, packed
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """How the row is shown."""
        letters = "NIH" if len(self.sizes) == 3 else "NTIH"
        sizes = " ".join(f"{a}{b}" for a, b in zip(letters, self.sizes, strict=True))
        return f"{self.module} {self.what} {sizes}"


@dataclass(frozen=True)
class Family:
    """Rows with common targets: the geometric mean and the least ratio."""

    rows: tuple[Row, ...]
    mean: float | None
    least: float


def _families() -> Iterator[tuple[str, Family]]:
    kinds = {"cells": ("LSTMCell",), "cells of gru and rnn": ("GRUCell", "RNNCell")}
    for name, modules in kinds.items():
        rows = tuple(Row(module, "inference", sizes) for module in modules for sizes in CELLS)
        yield name, Family(rows, *((3.0, 1.5) if modules == ("LSTMCell",) else (1.4, 1.0)))
    for what in ("inference", "training"):
        for name, modules in {"lstm": ("LSTM",), "gru": ("GRU",), "rnn": ("RNN",)}.items():
            rows = tuple(Row(module, what, sizes) for module in modules for sizes in SEQUENCES)
            yield f"{name}, {what}", Family(rows, 1.6 if name == "lstm" else 1.4, 1.0)
    long = tuple(sizes for sizes in SEQUENCES if sizes[0] > 1 and sizes[1] >= 20)
    yield "packed", Family(tuple(Row("LSTM", "packed", sizes) for sizes in long), None, 1 / 0.75)


FAMILIES = dict(_families())


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = result[:1] if hasattr(result, "batch_sizes") else result
    return [tensor for part in parts for tensor in _tensors(part)]


def _modules(row: Row) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, row.module)(*row.sizes[-2:])
    ours = getattr(fastconv, row.module)(*row.sizes[-2:])
    ours.load_state_dict(theirs.state_dict())
    return {"torch": theirs, "fastconv": ours}


def _inference(module: torch.nn.Module, *call: Any) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.inference_mode():
            return _tensors(module(*call))

    return run


def _training(module: torch.nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    leaves = [x.clone().requires_grad_(), *module.parameters()]

    def run() -> list[Tensor]:
        output = module(leaves[0])[0]
        return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    return run


def make_runners(row: Row) -> dict[str, Callable[[], list[Tensor]]]:
    """Return the calls by name; of `packed` the padded run stands for torch's."""
    modules = _modules(row)
    if len(row.sizes) == 3:
        N, inputs, H = row.sizes
        x, state = torch.randn(N, inputs), torch.randn(N, H)
        hx = (state, state) if row.module == "LSTMCell" else state
        return {name: _inference(module, x, hx) for name, module in modules.items()}
    N, T, inputs, _ = row.sizes
    x = torch.randn(T, N, inputs)
    if row.what == "packed":
        lengths = torch.linspace(T, T / 4, N).round().long()
        packed = pack_padded_sequence(x, lengths)
        ours = modules["fastconv"]
        return {"torch": _inference(ours, x), "fastconv": _inference(ours, packed)}
    make = _inference if row.what == "inference" else _training
    return {name: make(module, x) for name, module in modules.items()}


def check(runners: dict[str, Callable[[], list[Tensor]]]) -> str:
    """Return what is wrong with our answer; nothing if it is torch's."""
    for ours, theirs in zip(runners["fastconv"](), runners["torch"](), strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        if not error < 1e-4:
            return f"relative error {error:.1e}"
    return ""


def measure(row: Row, budget: float) -> tuple[float, float, float, str]:
    """Check and time one row: ratio, milliseconds of torch and of fastconv, what is wrong."""
    runners = make_runners(row)
    wrong = "" if row.what == "packed" else check(runners)
    timings = race(runners, budget=budget, rounds=ROUNDS)
    ratio = timings["torch"].over(timings["fastconv"])
    return ratio, 1e3 * timings["torch"].median, 1e3 * timings["fastconv"].median, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen families; returns 1 where an answer was wrong, whatever the times."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.recurrent_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--family", help=f"whose name holds this; of {', '.join(FAMILIES)}")
    parser.add_argument("-k", metavar="TEXT", help="rows whose name holds this, such as H1024")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds per row, after checks")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_memory()
    summary, failed = [], False
    for name, family in FAMILIES.items():
        rows = [row for row in family.rows if not options.k or options.k in row.name]
        if (options.family and options.family not in name) or not rows:
            continue
        found = []
        for row in rows:
            ratio, theirs, ours, wrong = measure(row, options.budget)
            failed = failed or bool(wrong)
            found.append((ratio, row))
            print(f"{ratio:6.2f}x {theirs:10.3f} {ours:10.3f} ms  {row.name}  {wrong}", flush=True)
        mean, (least, worst) = geometric_mean([r for r, _ in found]), min(found, key=lambda f: f[0])
        wanted = f" (>= {family.mean})" if family.mean else ""
        summary.append(
            f"{name}: geomean {mean:.2f}{wanted}, least {least:.2f} (>= {family.least:.2f},"
            f" {worst.name})"
        )
    print("\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
