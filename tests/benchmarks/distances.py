"""Distance histograms and binned information against plain code: `python tests/benchmarks/distances.py`.

Prints CPU seconds of the baseline and of ibscan in the same run, their ratio and whether the results agree, and the
growth with the number of rows; leaves with 1 where results disagree. With `--device cuda`: workload W3 of 50,000 rows.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

# Before torch is imported, and not where a test run merely looks at this file.
if __name__ == "__main__" and not any("cuda" in argument for argument in sys.argv):
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch
from scipy.spatial.distance import pdist

from ibscan.numerics.geometry.cells import CellEntropy, cell_entropy, equal_cells
from ibscan.numerics.geometry.distances import DistanceHistogram, distance_histogram

BINS, CELLS, CLASSES = 100, 30, 10
# Rows of the growth table; the demands are stated at 6000 and at 50,000 rows.
GROWTH = (2000, 6000, 18_000, 50_000)
# What the two sides may differ by: nats, and means relative to themselves.
AGREEMENT = 1e-12
# Widths of W3's layers, mean 200; seconds for 100 checkpoints, performance.md section 5.
LAYERS, W3_ROWS, FLOOR, TARGET = (400, 300, 200, 150, 100, 50), 50_000, 5.0, 8.0
COLUMNS = ("workload", "baseline", "baseline s", "ibscan s", "ratio", "demanded", "results")


@dataclass(frozen=True)
class Comparison:
    """A workload of one measure: both sides, what is demanded of their ratio, and what is wrong with the results."""

    name: str
    baseline_name: str
    baseline: Callable[[], object]
    ours: Callable[[], object]
    verdict: Callable[[object, object], tuple[bool, str]]
    demanded: float | None = None


def layer(rows: int, width: int, spread: float = 0.5, centres: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tanh units about centres, (rows, width), and labels: clusters, as a trained layer has them."""
    g = torch.Generator().manual_seed(rows + width)
    middle = torch.randn(centres, width, generator=g, dtype=torch.float64)
    member = torch.randint(centres, (rows,), generator=g)
    return (middle[member] + spread * torch.randn(rows, width, generator=g).double()).tanh_(), member % CLASSES


# Distances -----------------------------------------------------------------------------------------------------------


def euclidean() -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """Return scikit-learn's distances, or the same arithmetic in numpy where it is not installed."""
    try:
        from sklearn.metrics import euclidean_distances
    except ImportError:
        return "numpy: expanded squares", expanded
    return "scikit-learn", euclidean_distances


def expanded(x: np.ndarray) -> np.ndarray:
    squares = np.einsum("ij,ij->i", x, x)
    distance = x @ x.T
    distance *= -2.0
    distance += squares[:, None]
    distance += squares
    np.maximum(distance, 0.0, out=distance)
    np.fill_diagonal(distance, 0.0)
    return np.sqrt(distance, out=distance)


def by_pairs(distance: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances within classes and between them, as a list of pairs gives them."""
    i, j = np.triu_indices(len(y), 1)
    flat, same = distance[i, j], y[i] == y[j]
    return flat[same], flat[~same]


def by_masks(distance: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from masks of the whole matrix: the fastest of the plain forms."""
    upper, same = np.triu(np.ones(distance.shape, dtype=bool), 1), y[:, None] == y
    return distance[upper & same], distance[upper & ~same]


def histograms(
    x: np.ndarray, y: np.ndarray, distances: Callable[..., np.ndarray], parted: Callable[..., tuple[Any, ...]]
) -> list[np.ndarray]:
    parts = parted(distances(x), y)
    top = max(part.max() for part in parts)
    return [np.histogram(part, BINS, (0, top))[0] for part in parts] + [np.array([part.mean() for part in parts])]


def right_distances(
    x: np.ndarray, y: np.ndarray, theirs: list[np.ndarray], ours: DistanceHistogram
) -> tuple[bool, str]:
    """Hold the counts against float64 differences, pair by pair; say how many pairs the baseline misplaces."""
    distance = pdist(x)
    i, j = np.triu_indices(len(y), 1)
    same = y[i] == y[j]
    parts, inner = (distance[same], distance[~same]), ours.edges.numpy()[1:-1]
    true = [np.bincount(np.searchsorted(inner, part, side="right"), minlength=BINS) for part in parts]
    right = all(np.array_equal(a, b.numpy()) for a, b in zip(true, (ours.within, ours.between), strict=True))
    means = [part.mean() for part in parts]
    right &= np.allclose(means, [ours.within_mean, ours.between_mean], rtol=AGREEMENT, atol=0)
    misplaced = sum(int(np.abs(a - b).sum()) for a, b in zip(true, theirs[:2], strict=True)) // 2
    return right, f"baseline misplaces {misplaced} or more"


def distance_comparisons(rows: int) -> list[Comparison]:
    name, distances = euclidean()
    points, labels = layer(rows, 64)
    x, y = points.numpy(), labels.numpy()
    found = []
    # What is demanded is demanded over scikit-learn, whose checks and copies numpy alone is spared.
    wanted = 5.0 if name == "scikit-learn" else None
    for how, parted, demanded in (("pairs", by_pairs, wanted), ("masks", by_masks, None)):
        found.append(
            Comparison(
                f"distances {rows} x 64",
                f"{name} + histogram, {how}",
                partial(histograms, x, y, distances, parted),
                partial(distance_histogram, points, labels, BINS),
                partial(right_distances, x, y),
                demanded,
            )
        )
    return found


# Binning -------------------------------------------------------------------------------------------------------------


def unique_entropies(values: np.ndarray, y: np.ndarray) -> CellEntropy:
    """Return H(bin T) and I(bin T; Y) over [-1, 1] by np.unique of whole rows."""
    cells = np.clip(np.floor((values + 1.0) / 2.0 * CELLS), 0, CELLS - 1).astype(np.int64)
    counts = np.unique(cells, axis=0, return_counts=True)[1]
    joint = np.unique(np.column_stack((cells, y)), axis=0, return_counts=True)[1]
    h_cell, h_joint, h_label = (-(p * np.log(p)).sum() for p in (c / len(y) for c in (counts, joint, np.bincount(y))))
    return CellEntropy(h_cell, h_cell + h_label - h_joint, len(counts))


def binned(values: torch.Tensor, labels: torch.Tensor) -> CellEntropy:
    return cell_entropy(values, labels, CLASSES, partial(equal_cells, low=-1.0, high=1.0, bins=CELLS))


def right_entropies(theirs: CellEntropy, ours: CellEntropy) -> tuple[bool, str]:
    off = max(abs(theirs.entropy - ours.entropy), abs(theirs.label_information - ours.label_information))
    return off <= AGREEMENT and theirs.occupied == ours.occupied, f"{ours.occupied} cells, off by {off:.0e} nats"


def binning_comparisons(rows: int) -> list[Comparison]:
    wide, labels = layer(rows, 512)
    saturated, kinds = layer(rows, 512, 0.0, centres=300)
    narrow, marks = layer(rows, 10, 0.2)  # about half of the rows share a cell
    cases = (
        (f"binning {rows} x 10", narrow, marks, 12.0),
        (f"binning {rows} x 512", wide, labels, 12.0),
        ("... 300 patterns", saturated, kinds, None),
    )
    return [
        Comparison(
            name,
            "np.unique(axis=0)",
            partial(unique_entropies, values.numpy(), y.numpy()),
            partial(binned, values, y),
            cast("Callable[[object, object], tuple[bool, str]]", right_entropies),
            demanded,
        )
        for name, values, y, demanded in cases
    ]


# Running -------------------------------------------------------------------------------------------------------------


def line(*cells: object) -> str:
    widths = (24, 48, 11, 9, 6, 9, 40)
    return " ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def compared(comparison: Comparison, repeats: int) -> bool:
    """Print a line; return whether the results agree."""
    from timing import interleaved

    calls = {"baseline": comparison.baseline, "ibscan": comparison.ours}
    (base, theirs), (spent, ours) = interleaved(calls, repeats).values()
    right, said = comparison.verdict(theirs, ours)
    demanded = "" if comparison.demanded is None else f">= {comparison.demanded:g}"
    cells = (comparison.name, comparison.baseline_name, f"{base:.4f}", f"{spent:.4f}", f"{base / spent:.1f}", demanded)
    print(line(*cells, f"{'agree' if right else 'WRONG'}; {said}"), flush=True)
    return right


def growth(most: int, repeats: int) -> None:
    """Print seconds by the number of rows, and what the process has held at most."""
    from timing import interleaved

    print(f"{'rows':>7} {'distances x 64 s':>17} {'ns a pair':>10} {'binning x 10 s':>15} {'peak memory MB':>15}")
    for rows in (rows for rows in GROWTH if rows <= most):
        points, labels = layer(rows, 64)
        narrow, marks = layer(rows, 10)
        # The largest takes long enough to be told from one run.
        once = {"distances": partial(distance_histogram, points, labels, BINS)}
        spent = interleaved(once, repeats if rows < max(GROWTH) else 1)["distances"][0]
        cells = interleaved({"binning": partial(binned, narrow, marks)}, repeats)["binning"][0]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
        each = spent / (rows * (rows - 1) / 2) * 1e9
        print(f"{rows:>7} {spent:>17.3f} {each:>10.1f} {cells:>15.4f} {peak:>15.0f}", flush=True)


def held_against_floor(rows: int, checkpoints: int, device: torch.device, repeats: int) -> None:
    """Run W3 and print its time, scaled to 100 checkpoints, beside floor and target."""
    from timing import elapsed, product_rate

    rate = product_rate(device)
    print(f"float64 product: {rate / 1e12:.3g} TFLOP/s on {device}", flush=True)
    drawn = [layer(rows, width) for width in LAYERS]
    layers = [(points.to(device), labels.to(device)) for points, labels in drawn]

    def run() -> None:
        for points, labels in layers * checkpoints:
            distance_histogram(points, labels, BINS)

    few = layers[0][0][:1000], layers[0][1][:1000]
    distance_histogram(*few, BINS)
    spent = statistics.median(elapsed(run, device) for _ in range(repeats))
    scaled = spent * 100 / checkpoints * (W3_ROWS / rows) ** 2
    counted = rows * (rows - 1) * sum(LAYERS) * checkpoints / rate
    print(f"W3 {rows} rows, {len(LAYERS)} layers, {checkpoints} checkpoints: {spent:.3f} s")
    print(
        f"    scaled to 100 checkpoints of {W3_ROWS} rows: {scaled:.1f} s; target {TARGET:g} s, floor {FLOOR:g} s: "
        f"{FLOOR / scaled:.1%}; its products alone take {counted:.3g} s: {counted / spent:.1%} of the time",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Distance histograms and binned information against plain code")
    parser.add_argument("--rows", type=int, help="rows, instead of each workload's own, and at most in the growth")
    parser.add_argument("--repeats", type=int, default=5, help="runs to take the median of")
    parser.add_argument("--only", help="distances, binning or growth; W3 is --workloads gpu")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--workloads", choices=("cpu", "gpu"), help="cpu ones on a CPU, gpu ones (W3) on a GPU")
    parser.add_argument("--checkpoints", type=int, default=2, help="of W3, whose time is scaled to 100")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if arguments.workloads == "gpu" or (arguments.workloads is None and arguments.device != "cpu"):
        held_against_floor(
            arguments.rows or W3_ROWS, arguments.checkpoints, torch.device(arguments.device), arguments.repeats
        )
        return 0
    return 0 if small(arguments) else 1


def small(arguments: argparse.Namespace) -> bool:
    """Run what a baseline can follow; return whether all results agree."""
    from timing import chosen

    chosen(arguments.only, ("distances", "binning", "growth"))
    if arguments.only in (None, "growth"):  # first, while the memory is ibscan's alone
        growth(arguments.rows or max(GROWTH), arguments.repeats)
    wanted = {"distances": (distance_comparisons, 6000), "binning": (binning_comparisons, 50_000)}
    wanted = {name: made for name, made in wanted.items() if arguments.only in (None, name)}
    right = []
    if wanted:
        print(line(*COLUMNS))
    for build, rows in wanted.values():
        right += [compared(comparison, arguments.repeats) for comparison in build(arguments.rows or rows)]
    print(
        f"""
CPU seconds, medians of {arguments.repeats}, one thread, float64 on both sides, in turn. Distances: 100 bins within and
between {CLASSES} classes, and both means; agree: every pair in the cell of its float64 differences.
Binning: {CELLS} cells of [-1, 1], H(bin T) and I(bin T; Y); agree: within {AGREEMENT:g} nats, as many cells."""
    )
    return all(right)


if __name__ == "__main__":
    sys.exit(main())
