"""Train the classic CNN on handwritten digits twice, with fastconv's layers and with torch's.

What is compared: two networks that differ only in who computes Conv2d and MaxPool2d. They start
from the same weights and see the same batches in the same order, one step of each in turn, so that
noise of the machine hits both alike. Speed is the median over all steps; the images are
scikit-learn's own, nothing is downloaded.

    python examples/train_digits.py --epochs 20 --output demo.png
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

try:
    import matplotlib
    import numpy as np
    import torch
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch import Tensor, nn
    from torch.nn import functional as F

    import fastconv
except ImportError as error:
    sys.exit(f"train_digits.py: {error}; `make demo` installs all that this example needs")

matplotlib.use("Agg")  # no display is needed
from matplotlib import pyplot as plt

SIZE = 32  # pixels; the 8x8 originals are enlarged to what the classic network expects
WANTED_ACCURACY = 0.98
BACKENDS = ("native", "numba", "numpy", "torch")
COLORS = {"fastconv": "#c8501e", "torch": "#4a6fa5"}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message alone and leave with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def whole_number(low: int, high: int) -> object:
    """Return an argparse type: an integer in [low, high]."""

    def parse(text: str) -> int:
        value = int(text) if text.lstrip("+-").isdecimal() else None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"expected an integer from {low} to {high}, got {text!r}"
            )
        return value

    return parse


def learning_rate(text: str) -> float:
    """Parse a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return value


def picture_path(text: str) -> Path:
    """Parse the name of a picture that can be written; an existing one is not touched yet."""
    path = Path(text)
    known = sorted(plt.figure().canvas.get_supported_filetypes())
    plt.close()
    if path.suffix[1:].lower() not in known:
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in one of {', '.join(known)}; got {text!r}"
        )
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from error
    if not existed:
        path.unlink()
    return path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = Parser(
        description="Train a CNN on digits with fastconv's layers and with torch's, side by side."
    )
    parser.add_argument(
        "--epochs", type=whole_number(1, 1000), default=20, help="default: %(default)s"
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1, 1024), default=32, help="default: %(default)s"
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, cpus),
        default=1,
        help="default: 1; so small a network gains little from more, and waits for them when busy",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), default=0, help="default: %(default)s"
    )
    parser.add_argument(
        "--lr", type=learning_rate, default=0.002, help="peak learning rate; default: %(default)s"
    )
    parser.add_argument(
        "--output", type=picture_path, default="demo.png", help="the picture; default: %(default)s"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="keep images channels_last in memory"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="who computes fastconv's layers; default: the best built",
    )
    return parser.parse_args(arguments)


def load_images(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images [N, 3, 32, 32], test images, train labels [N] and test labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 8 - 1).unsqueeze(1)
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    images = images.expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target.astype(np.int64))
    chosen = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=seed
    )
    train, test = (torch.from_numpy(indices) for indices in chosen)
    return images[train], images[test], labels[train], labels[test]


def make_network(conv2d: type[nn.Conv2d], max_pool2d: type[nn.MaxPool2d]) -> nn.Sequential:
    """Build the classic network (LeNet-5 with ReLU and max pooling) from the given layers."""
    return nn.Sequential(
        conv2d(3, 6, kernel_size=5),
        nn.ReLU(),
        max_pool2d(kernel_size=2),
        conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        max_pool2d(kernel_size=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield shuffled index batches of equal size: the remainder sits out, times are comparable."""
    order = torch.randperm(count, generator=generator)
    batch_size = min(batch_size, count)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to 2 pixels, the only augmentation."""
    padded = F.pad(images, (2, 2, 2, 2), value=-1.0)
    offsets = torch.randint(0, 5, (len(images), 2), generator=generator).tolist()
    moved = [
        image[:, y : y + SIZE, x : x + SIZE] for image, (y, x) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(moved)


@dataclasses.dataclass
class Runner:
    """One of the two competitors and all that was measured on it."""

    name: str
    network: nn.Sequential
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    step_losses: list[float] = dataclasses.field(default_factory=list)
    epoch_losses: list[float] = dataclasses.field(default_factory=list)
    step_seconds: list[float] = dataclasses.field(default_factory=list)
    inference_seconds: list[float] = dataclasses.field(default_factory=list)
    accuracy: float = math.nan

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Do one training step on images [N, 3, 32, 32] and labels [N], and time it."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.schedule.step()
        self.step_losses.append(loss.item())

    @torch.inference_mode()
    def infer(self, images: Tensor) -> Tensor:
        """Classify images [N, 3, 32, 32], and time it; returns labels [N]."""
        start = time.perf_counter()
        scores = self.network(images)
        self.inference_seconds.append(time.perf_counter() - start)
        return scores.argmax(1)


def make_runners(options: argparse.Namespace, steps: int) -> list[Runner]:
    """Build both competitors with the same weights, optimiser and schedule."""
    torch.manual_seed(options.seed)
    start = make_network(nn.Conv2d, nn.MaxPool2d).state_dict()
    runners = []
    for name, layers in (
        ("fastconv", (fastconv.Conv2d, fastconv.MaxPool2d)),
        ("torch", (nn.Conv2d, nn.MaxPool2d)),
    ):
        network = make_network(*layers)
        network.load_state_dict(start)
        if options.channels_last:
            network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps)
        runners.append(Runner(name, network, optimizer, schedule))
    return runners


def train(
    options: argparse.Namespace, images: Tensor, labels: Tensor, console: Console
) -> list[Runner]:
    """Train both networks step by step in turn; who goes first alternates."""
    per_epoch = len(labels) // min(options.batch_size, len(labels))
    runners = make_runners(options, options.epochs * per_epoch)
    generator = torch.Generator().manual_seed(options.seed)
    columns = (
        TextColumn("training both"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]:.4f}, left"),
        TimeRemainingColumn(),
    )
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    # Not refreshed by a thread of its own, which would steal time from the steps that are measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=options.epochs * per_epoch, loss=math.nan)
        shown = 0.0
        for _ in range(options.epochs):
            for number, batch in enumerate(batches(len(labels), options.batch_size, generator)):
                inputs = shift(images[batch], generator).contiguous(memory_format=memory_format)
                targets = labels[batch]
                for runner in runners if number % 2 else runners[::-1]:
                    runner.step(inputs, targets)
                progress.update(task, advance=1, loss=runners[0].step_losses[-1])
                if time.monotonic() - shown > 0.2:
                    shown = time.monotonic()
                    progress.refresh()
            for runner in runners:
                runner.epoch_losses.append(statistics.fmean(runner.step_losses[-per_epoch:]))
                if not math.isfinite(runner.epoch_losses[-1]):
                    sys.exit(
                        f"train_digits.py: {runner.name}'s loss is not finite; try a smaller --lr"
                    )
    return runners


def evaluate(runners: list[Runner], images: Tensor, labels: Tensor, rounds: int = 30) -> None:
    """Measure test accuracy and inference speed on the whole test set, the competitors in turn."""
    for number in range(rounds):
        for runner in runners if number % 2 else runners[::-1]:
            runner.accuracy = (runner.infer(images) == labels).float().mean().item()


def largest_difference(runners: list[Runner]) -> float:
    """Return the largest difference between the two loss curves (means per epoch)."""
    first, second = (runner.epoch_losses for runner in runners)
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def speeds(runners: list[Runner], batch_size: int, test_size: int) -> dict[str, list[float]]:
    """Return images per second (median step) of both competitors, by phase."""
    return {
        "training": [batch_size / statistics.median(runner.step_seconds) for runner in runners],
        "inference": [
            test_size / statistics.median(runner.inference_seconds) for runner in runners
        ],
    }


def make_table(runners: list[Runner], rates: dict[str, list[float]]) -> Table:
    """Return the final table."""
    ours, theirs = runners
    table = Table(title="Same start, same batches; speeds are medians")
    table.add_column("", justify="left")
    for heading in (ours.name, theirs.name, "ratio"):
        table.add_column(heading, justify="right")
    table.add_row("test accuracy", f"{ours.accuracy:.2%}", f"{theirs.accuracy:.2%}", "")
    table.add_row(
        "loss, last epoch", f"{ours.epoch_losses[-1]:.5f}", f"{theirs.epoch_losses[-1]:.5f}", ""
    )
    for phase, (our_rate, their_rate) in rates.items():
        table.add_row(
            f"{phase}, images/s",
            f"{our_rate:,.0f}",
            f"{their_rate:,.0f}",
            f"{our_rate / their_rate:.2f}x",
        )
    return table


def draw(runners: list[Runner], rates: dict[str, list[float]], threads: int, path: Path) -> None:
    """Write the picture: loss curves and their difference on the left, speeds on the right."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 5.6), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
    grid = figure.add_gridspec(2, 3, height_ratios=(3, 1), width_ratios=(2.2, 1, 1))
    draw_curves(figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0]), runners)
    for column, (phase, values) in enumerate(rates.items(), start=1):
        draw_speeds(figure.add_subplot(grid[:, column]), phase, runners, values)
    accuracy = " and ".join(f"{runner.accuracy:.1%} ({runner.name})" for runner in runners)
    plural = "s" if threads > 1 else ""
    title = f"A CNN learns handwritten digits on {threads} CPU thread{plural}: {accuracy} correct"
    figure.suptitle(f"{title} of the test images\n", x=0.012, ha="left", fontsize=13)
    figure.savefig(path, dpi=150)


def draw_curves(curves: plt.Axes, gap: plt.Axes, runners: list[Runner]) -> None:
    """Draw torch's loss wide and pale, fastconv's upon it, and below the difference."""
    ours, theirs = runners
    epochs = range(1, len(ours.epoch_losses) + 1)
    pale = {"lw": 7, "alpha": 0.4, "marker": "o", "ms": 7, "solid_capstyle": "round"}
    fine = {"lw": 1.8, "marker": "o", "ms": 3.5}
    for runner, style in ((theirs, pale), (ours, fine)):
        color = COLORS[runner.name]
        curves.plot(epochs, runner.epoch_losses, color=color, label=runner.name, **style)
    curves.set(yscale="log", ylabel="training loss (cross-entropy)")
    curves.set_title("Same start, same batches", loc="left", weight="bold")
    curves.legend(frameon=False)
    curves.grid(alpha=0.25)
    curves.tick_params(labelbottom=False)
    difference = np.abs(np.array(ours.epoch_losses) - np.array(theirs.epoch_losses))
    gap.bar(epochs, difference, color="#777777", width=0.6)
    gap.set(xlabel="epoch", ylabel="|difference|", ylim=(0, 1.1 * max(difference.max(), 1e-9)))
    gap.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    gap.grid(alpha=0.25, axis="y")
    gap.set_axisbelow(True)
    for axis in (curves, gap):
        axis.set_xlim(0.3, len(epochs) + 0.7)
        axis.xaxis.get_major_locator().set_params(integer=True)


def draw_speeds(axis: plt.Axes, phase: str, runners: list[Runner], values: list[float]) -> None:
    """Draw the images per second of one phase as two bars."""
    names = [runner.name for runner in runners]
    bars = axis.bar(names, values, color=[COLORS[name] for name in names], width=0.62)
    axis.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3)
    title = f"{phase.capitalize()}: {values[0] / values[1]:.2f}x torch"
    axis.set_title(title, loc="left", weight="bold", fontsize=11)
    axis.set(ylabel="images per second", ylim=(0, 1.1 * max(values)), xlim=(-0.6, 1.6))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.grid(alpha=0.25, axis="y")
    axis.set_axisbelow(True)


def main(arguments: list[str] | None = None) -> int:
    """Run the example; returns the exit status: 0, or 1 where a network has not learned."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    with contextlib.ExitStack() as stack:
        if options.backend:
            try:
                stack.enter_context(fastconv.backend(options.backend))
            except (RuntimeError, ImportError) as error:
                print(f"train_digits.py: error: argument --backend: {error}", file=sys.stderr)
                return 2
        fastconv.show_config()
        train_images, test_images, train_labels, test_labels = load_images(options.seed)
        if options.channels_last:
            test_images = test_images.contiguous(memory_format=torch.channels_last)
        runners = train(options, train_images, train_labels, console)
        evaluate(runners, test_images, test_labels)
    rates = speeds(runners, min(options.batch_size, len(train_labels)), len(test_labels))
    console.print(make_table(runners, rates))
    console.print(
        f"largest difference between the two loss curves: {largest_difference(runners):.2e}"
    )
    draw(runners, rates, options.threads, options.output)
    console.print(f"picture: {options.output}")
    failed = [runner for runner in runners if not runner.accuracy >= WANTED_ACCURACY]
    for runner in failed:
        print(
            f"train_digits.py: {runner.name} reached {runner.accuracy:.2%} on the test images,"
            f" at least {WANTED_ACCURACY:.0%} was expected; try more --epochs or another --lr",
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
