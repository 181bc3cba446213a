"""The attention table: torch's scaled_dot_product_attention against fastconv's, on the CPU.

    python -m bench.attention_table                        # every row, some minutes
    python -m bench.attention_table --family float32 decode
    python -m bench.attention_table --output bench/results/attention-MACHINE-DATE-COMMIT

Rows are families of calls, by dtype and kind, over shapes from a vision transformer's to long
sequences; heads lie beside each other in memory, as a projection leaves them. Answers are held
against float64 first: an error larger than twice torch's own is an error of the row. Ratios are
torch's time over fastconv's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastconv
from bench import roofline
from bench.interleave import keep_memory, race
from bench.run import commit_name, machine_name
from bench.table import geometric_mean
from fastconv.testing import relative_bound, relative_error

# (batch, heads, queries, keys, features)
SHAPES = (
    (2, 12, 50, 50, 64),
    (1, 12, 197, 197, 64),
    (8, 12, 128, 128, 64),
    (1, 4, 512, 512, 64),
    (16, 12, 384, 384, 64),
    (1, 16, 1024, 1024, 64),
    (1, 16, 1024, 1024, 80),
    (1, 8, 2048, 2048, 128),
    (1, 4, 4096, 4096, 128),
)
DECODES = ((4, 12, 1, 200, 64), (1, 32, 1, 1024, 128), (8, 32, 1, 512, 64), (1, 8, 1, 4096, 128))
KINDS = ("full", "causal", "mask", "backward", "decode")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The least geometric mean and the least ratio that are aimed at, by dtype and kind.
TARGETS = {
    ("float32", "full"): (2.0, 1.4),
    ("float32", "causal"): (2.4, 1.5),
    ("float32", "mask"): (1.8, 1.2),
    ("bfloat16", "full"): (4.0, 2.5),
    ("bfloat16", "causal"): (4.0, 2.5),
    ("float32", "decode"): (1.3, 0.95),
    ("bfloat16", "decode"): (6.0, 3.0),
    ("float32", "backward"): (1.8, 1.2),
    ("bfloat16", "backward"): (1.8, 1.2),
}


@dataclass(frozen=True)
class Result:
    """What is known of a row."""

    dtype: str
    kind: str
    shape: tuple[int, ...]
    milliseconds: dict[str, float]
    ratio: float
    gflops: float
    percent_of_peak: float
    wrong: str = ""


def _flops(kind: str, shape: tuple[int, ...]) -> float:
    B, H, L, S, D = shape
    factor = {"causal": 0.5, "backward": 2.5}.get(kind, 1.0)
    return 4.0 * B * H * L * S * D * factor


def _inputs(kind: str, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Any, ...]:
    torch.manual_seed(0)
    B, H, L, S, D = shape
    tensors = [torch.randn(B, n, H, D).to(dtype).transpose(1, 2) for n in (L, S, S)]
    mask = torch.randn(B, 1, L, S).to(dtype) if kind == "mask" else None
    return (*tensors, mask)


def _runner(function: Any, kind: str, inputs: tuple[Any, ...]) -> Callable[[], Sequence[Tensor]]:
    q, k, v, mask = inputs
    if kind != "backward":

        def forward() -> Sequence[Tensor]:
            with torch.inference_mode():
                return (function(q, k, v, mask, is_causal=kind == "causal"),)

        return forward
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    output = function(*leaves)
    grad = torch.linspace(-1, 1, output.numel()).to(output.dtype).view(output.shape)
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)


def measure(dtype: str, kind: str, shape: tuple[int, ...], budget: float, peak: float) -> Result:
    """Check and time one row."""
    torchs = torch.nn.functional.scaled_dot_product_attention
    ours = fastconv.functional.scaled_dot_product_attention
    inputs = _inputs(kind, DTYPES[dtype], shape)
    runners = {"torch": _runner(torchs, kind, inputs), "fastconv": _runner(ours, kind, inputs)}
    wide = tuple(None if t is None else t.double() for t in inputs)
    wrong = ""
    answers = zip(
        _runner(torchs, kind, wide)(), runners["torch"](), runners["fastconv"](), strict=True
    )
    for truth, theirs, mine in answers:
        error, bound = relative_error(mine, truth), relative_bound(DTYPES[dtype], shape[3])
        if error > max(2 * relative_error(theirs, truth), bound):
            wrong = f"relative error {error:.1e}"
    timings = race(runners, budget=budget, rounds=(5, 31))
    gflops = 1e-9 * _flops(kind, shape) / timings["fastconv"].median
    return Result(
        dtype,
        kind,
        shape,
        {name: 1e3 * timing.median for name, timing in timings.items()},
        timings["torch"].over(timings["fastconv"]),
        gflops,
        100e9 * gflops / peak,
        wrong,
    )


def report(results: Sequence[Result]) -> list[str]:
    """The table, and every family beside its target."""
    lines = [
        f"{r.dtype:8} {r.kind:8} {'x'.join(map(str, r.shape)):20} "
        f"torch {r.milliseconds['torch']:9.3f} ms  fastconv {r.milliseconds['fastconv']:9.3f} ms  "
        f"{r.gflops:6.0f} GFLOP/s {r.percent_of_peak:4.0f} %  ratio {r.ratio:5.2f} {r.wrong}"
        for r in results
    ]
    for (dtype, kind), (mean, least) in TARGETS.items():
        ratios = [r.ratio for r in results if (r.dtype, r.kind) == (dtype, kind)]
        if ratios:
            lines.append(
                f"{dtype} {kind}: geometric mean {geometric_mean(ratios):.2f} (aim {mean}), least "
                f"{min(ratios):.2f} (aim {least})"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention_table", description=__doc__)
    parser.add_argument("--family", nargs="+", choices=[*KINDS, *DTYPES], default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds per row, after checks")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the record (.json, .md)")
    options = parser.parse_args(arguments)
    keep_memory()
    torch.set_num_threads(options.threads)
    roof = roofline.measure()
    results = []
    for dtype, kind in TARGETS:
        chosen = set(options.family)
        if (chosen & set(KINDS) and kind not in chosen) or (
            chosen & set(DTYPES) and dtype not in chosen
        ):
            continue
        for shape in DECODES if kind == "decode" else SHAPES:
            results.append(measure(dtype, kind, shape, options.budget, roof.peak(DTYPES[dtype])))
            print(report(results[-1:])[0], flush=True)
    text = report(results)
    print("\n".join(text[len(results) :]))
    if options.output is not None:
        machine = {"machine": machine_name(), "commit": commit_name(), "roof": roof.as_dict(),
                   "date": time.strftime("%Y-%m-%d"), "threads": options.threads}  # fmt: skip
        record = {"machine": machine, "rows": [asdict(r) for r in results]}
        options.output.with_suffix(".json").write_text(json.dumps(record, separators=(",", ":")))
        title = f"# Attention on CPU, torch's time / fastconv's\n\n{machine}\n\n```\n"
        options.output.with_suffix(".md").write_text(title + "\n".join(text) + "\n```\n")
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
