"""How far Winograd's F(4x4, 3x3) strays from float64, by points of interpolation and channels.

python -m bench.winograd_points                  # the table, with the kernel's own error beside it
python -m bench.winograd_points --channels 64 --tiles 2000

The transforms interpolate in 0, +-a, +-b and infinity (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2015); a and b decide how much the rounding of float32 is stretched.
Every row is the relative L2 error against float64 of normal data with He-scaled weights, the
transforms and the sums in float32; the direct sum stands first, for comparison.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

import fastconv

Points = tuple[float, float]

POINTS: dict[str, Points] = {
    "0, +-1, +-2 (Lavin and Gray)": (1.0, 2.0),
    "0, +-1/2, +-1": (0.5, 1.0),
    "0, +-sqrt(1/2), +-sqrt(2)": (math.sqrt(0.5), math.sqrt(2.0)),
    "0, +-5/8, +-3/2 (the kernel's)": (0.625, 1.5),
    "0, +-2/3, +-3/2": (2 / 3, 1.5),
    "0, +-5/8, +-5/4": (0.625, 1.25),
}
CHANNELS = (16, 64, 256, 512, 1024)
WIDTH = 16  # output channels: they do not change the error


def transforms(points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A^T [4, 6], G [6, 3] and B^T [6, 6] in float64: output = A^T [(G g) * (B^T d)]."""
    a, b = points
    scale_a, scale_b = 1 / (2 * a**2 * (a**2 - b**2)), 1 / (2 * b**2 * (b**2 - a**2))
    products = np.array(
        [[1.0, *(point**power for point in (a, -a, b, -b)), 0.0] for power in range(4)]
    )
    products[1:, 0] = 0
    products[3, 5] = 1
    taps = np.array(
        [
            [1 / (a * b) ** 2, 0, 0],
            *([s, s * point, s * point**2] for s, point in ((scale_a, a), (scale_a, -a))),
            *([s, s * point, s * point**2] for s, point in ((scale_b, b), (scale_b, -b))),
            [0, 0, 1],
        ]
    )
    both, ends = (a * b) ** 2, -(a**2 + b**2)
    source = np.array(
        [
            [both, 0, ends, 0, 1, 0],
            *([0, -point * b**2, -(b**2), point, 1, 0] for point in (a, -a)),
            *([0, -point * a**2, -(a**2), point, 1, 0] for point in (b, -b)),
            [0, both, 0, ends, 0, 1],
        ]
    )
    return products, taps, source


def winograd(patches: np.ndarray, weight: np.ndarray, points: Points) -> np.ndarray:
    """Return the outputs [tile, k, 4, 4] of patches [tile, c, 6, 6], in their dtype."""
    dtype = patches.dtype
    products, taps, source = (matrix.astype(dtype) for matrix in transforms(points))
    data = (source @ patches @ source.T).reshape(*patches.shape[:2], 36)
    filters = (taps @ weight @ taps.T).reshape(*weight.shape[:2], 36)
    sums = np.matmul(data.transpose(2, 0, 1), filters.transpose(2, 1, 0))  # [36, tile, k]
    return products @ sums.transpose(1, 2, 0).reshape(*sums.shape[1:], 6, 6) @ products.T


def direct(patches: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the same by sums over channels and taps."""
    windows = np.lib.stride_tricks.sliding_window_view(patches, (3, 3), axis=(2, 3))
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, weight[0].size)
    sums = rows @ weight.reshape(len(weight), -1).T
    return sums.reshape(len(patches), 4, 4, -1).transpose(0, 3, 1, 2)


def error(actual: np.ndarray, exact: np.ndarray) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


def kernel_error(channels: int, tiles: int, rng: np.random.Generator) -> float:
    """Return the error of fastconv's own kernel, where it takes Winograd's algorithm."""
    side = 4 * max(2, round(math.sqrt(tiles)))
    image = torch.from_numpy(rng.standard_normal((1, channels, side + 2, side + 2), np.float32))
    scale = math.sqrt(2 / (9 * channels))
    weight = torch.from_numpy(rng.standard_normal((64, channels, 3, 3), np.float32)) * scale
    if fastconv.explain(image, weight).algorithm != "winograd":
        return math.nan
    exact = torch.nn.functional.conv2d(image.double(), weight.double())
    return error(fastconv.functional.conv2d(image, weight).double().numpy(), exact.numpy())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.winograd_points", description=__doc__)
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    parser.add_argument("--tiles", type=int, default=256, help="of 4x4 outputs by 16 channels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    names = ["direct sum", *POINTS, "fastconv's kernel"]
    errors: dict[str, list[float]] = {name: [] for name in names}
    for channels in arguments.channels:
        rng = np.random.default_rng(arguments.seed)
        patches = rng.standard_normal((arguments.tiles, channels, 6, 6))
        weight = rng.standard_normal((WIDTH, channels, 3, 3)) * math.sqrt(2 / (9 * channels))
        patches, weight = patches.astype(np.float32), weight.astype(np.float32)
        exact = direct(patches.astype(np.float64), weight.astype(np.float64))
        errors["direct sum"].append(error(direct(patches, weight), exact))
        for name, points in POINTS.items():
            errors[name].append(error(winograd(patches, weight, points), exact))
        errors["fastconv's kernel"].append(kernel_error(channels, arguments.tiles, rng))

    print("| relative L2 error by channels |" + "".join(f" {c} |" for c in arguments.channels))
    print("|---|" + "---|" * len(arguments.channels))
    for name, row in errors.items():
        cells = ("-" if math.isnan(value) else f"{value:.1e}" for value in row)
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
