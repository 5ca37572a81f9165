"""Noisy information against a loop in numpy: `python tests/benchmarks/mi.py`.

Prints CPU seconds of the loop and of ibscan in the same run, their ratio and whether the values agree, and the growth
with the number of rows; leaves with 1 where values disagree. `network.py` has the network channel.

The loop is what a careful user writes for I(X; T+Z) of a layer's n values s_i: draws t = s_i + z, one a value and pass;
squared distances from differences, in blocks of 2^18 (2 MB) or of one draw, the fastest of 1 to 512 draws at 3 to 512
units; log-sum-exp about the largest exponent of a draw; the plain mean of ln p(t|i) - ln p(t), in which |z|^2 cancels.
It runs until 1.96 sd / sqrt(draws), sd over all draws, is the half width that ibscan reached: the number of draws
follows from the sd, and what they cost from one pass. Two other loops stand beside it, of which nothing is demanded:
the same with scipy's `cdist`, and h(T+Z) - h(Z), the mean of -ln p(t) less a known number, the form that was published
(Goldfeld et al. 2019).

ibscan's time is that of the estimate and its error: normals, mixture and its tree, draws, with I(T+Z; Y) and the slope,
which the loop has not. `cell` is the ratio of the loop to all that a command finds there, the two pairwise bounds and
the cap too; the bounds have rows of their own.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

# Before torch is imported, and not where a test run merely looks at this file.
if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch
from scipy.spatial.distance import cdist

from ibscan.core.records import Array
from ibscan.core.streams import RandomStreams
from ibscan.measures.readout_cells import ReadoutCell, draws_of, readout_cell
from ibscan.numerics.channels.mixture import Mixture
from ibscan.numerics.channels.readout import UNSEEN, readout_information

if TYPE_CHECKING:  # a test run cannot find the file beside this one
    from layers import Values

# Checkpoints of the fixture: while the net learns, and at the end of its training.
EPOCHS = (38, 1000)
# Half width asked for; draws at most, as by default.
TOLERANCE, MOST_DRAWS = 0.02, 65536
# Noise, and what is demanded of the ratio there.
SZT, WIDE, BOUNDS = {0.005: 20.0, 0.05: 20.0, 0.2: 8.0}, (0.05, 40.0), (0.01, 8.0)
# Units of wide layers, of as many rows as the other layers have.
WIDTHS = (64, 512)
GROWTH, GROWTH_NOISE, GROWTH_WIDTH = (2000, 6000, 18_000, 50_000), (0.05, 0.2), 10
# Numbers a block of the loop holds: differences, or distances where scipy makes them.
BLOCK = 2**18
# Standard errors that values may be apart, and nats that bounds may.
APART, AGREEMENT = 4.0, 1e-9
COLUMNS = (
    *("workload", "noise", "loop s", "passes", "ibscan s", "ratio", "demanded", "cell", "at .02", "cdist"),
    *("h - h", "I(X;T+Z)", "half width", "of a pass", "results"),
)
BOUND_COLUMNS = ("pairwise bounds", "noise", "loop s", "ibscan s", "ratio", "demanded", "results")
Distances = Callable[[Array, Array], Array]


# Both sides ----------------------------------------------------------------------------------------------------------


def by_differences(t: Array, s: Array) -> Array:
    squared: Array = ((t[:, None, :] - s[None]) ** 2).sum(-1)
    return squared


def blocks(s: Array, numbers: int) -> Iterator[Array]:
    """Yield the values in blocks, for so many numbers a value."""
    size = max(1, BLOCK // numbers)
    return (s[start : start + size] for start in range(0, len(s), size))


def one_pass(s: Array, noise: float, rng: np.random.Generator, distances: Distances, numbers: int) -> Array:
    """Return ln p(t|i) - ln p(t) and -ln p(t) - h(Z) of one draw about every value, shape (2, n)."""
    scale, found = 0.5 / noise**2, []
    for own in blocks(s, numbers):
        t = own + noise * rng.standard_normal(own.shape)
        exponent = -scale * distances(t, s)
        top = exponent.max(1, keepdims=True)
        density = np.log(np.exp(exponent - top).sum(1)) + top[:, 0] - math.log(len(s))
        found.append((-scale * ((t - own) ** 2).sum(1) - density, -density - 0.5 * s.shape[1]))
    return np.concatenate(found, 1)


def pairwise(s: Array, noise: float) -> tuple[float, float]:
    """Return the lower and the upper pairwise bound, from differences."""
    found = []
    for own in blocks(s, s.size):
        exponent = by_differences(own, s) * (-0.5 / noise**2)
        found.append((np.log(np.exp(0.25 * exponent).mean(1)), np.log(np.exp(exponent).mean(1))))
    lower, upper = -np.concatenate(found, 1).mean(1)
    return float(lower), float(upper)


def own_bounds(values: Values, noise: float) -> tuple[float, float]:
    return Mixture.of(values.points, values.joint).bounds(noise)


def whole_cell(values: Values, noise: float) -> ReadoutCell:
    """Return what a command finds of one layer at one noise, from its values on."""
    return readout_cell(
        Mixture.of(values.points, values.joint),
        draws_of(RandomStreams(0), 0, values.points),
        noise,
        ceiling=values.ceiling,
        tolerance=TOLERANCE,
        max_draws=MOST_DRAWS,
    )


def sampling(values: Values, noise: float) -> Callable[[], object]:
    """Return the call that makes the estimate and its error, from the values on; the bounds are known."""
    cell = whole_cell(values, noise)

    def estimate() -> object:
        mixture, normals = Mixture.of(values.points, values.joint), draws_of(RandomStreams(0), 0, values.points)
        return readout_information(
            mixture,
            noise,
            mixture.chosen(normals),
            tolerance=TOLERANCE,
            max_draws=MOST_DRAWS,
            bounds=(cell.lower, cell.cap),
        )

    return estimate


# Comparing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """CPU seconds of the loops to ibscan's half width and (`asked`, `published`) to the one asked for; of ibscan."""

    loop: float
    asked: float
    scipy: float
    published: float
    cell: float
    sampling: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def line(*cells: object) -> str:
    widths = (22, 6, 8, 7, 9, 6, 9, 6, 7, 7, 7, 9, 11, 10, 20)
    return " ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def shown(name: str, noise: float, spent: Spent, demanded: float | None, found: tuple[str, ...] = ("",) * 5) -> None:
    passes, *rest = found
    asked = "" if demanded is None else f">= {demanded:g}"
    ratio, *others = (f"{s / spent.sampling:.1f}" for s in (spent.loop, spent.asked, spent.scipy, spent.published))
    seconds = f"{spent.loop:.2f}", passes, f"{spent.sampling:.3f}"
    print(
        line(name, f"{noise:g}", *seconds, ratio, asked, f"{spent.loop / spent.cell:.1f}", *others, *rest), flush=True
    )


def compared(values: Values, noise: float, repeats: int, demanded: float | None = None) -> tuple[Spent, bool]:
    """Print a line; return the seconds and whether the values agree."""
    from timing import interleaved

    s, rng = values.points.numpy(), np.random.default_rng(0)
    drawn: list[Array] = []
    calls: dict[str, Callable[[], Any]] = {
        "loop": lambda: drawn.append(one_pass(s, noise, rng, by_differences, s.size)),
        "scipy": lambda: one_pass(s, noise, rng, partial(cdist, metric="sqeuclidean"), len(s)),
        "cell": partial(whole_cell, values, noise),
        "sampling": sampling(values, noise),
    }
    found = interleaved(calls, repeats)
    loop, scipy, cell_seconds, sampling_seconds = (seconds for seconds, _ in found.values())
    cell: Any = found["cell"][1]
    terms = np.concatenate(drawn, 1)
    spread, published = terms.std(1, ddof=1)
    half, number = 1.96 * cell.xt_se, terms.shape[1]

    def passes(sd: float, width: float) -> float:
        return max(1.0, float(1.96 * sd / width) ** 2 / len(s))

    # Where rare events that were not met are most of the error, no fewer draws than ibscan's can say as much.
    unseen = half < 2 * 1.96 * UNSEEN / cell.draws
    needed = max(1.0, cell.draws / len(s)) if unseen else passes(spread, half)
    asked, in_entropies = passes(spread, TOLERANCE), passes(published, TOLERANCE)
    spent = Spent(loop * needed, loop * asked, scipy * needed, loop * in_entropies, cell_seconds, sampling_seconds)
    off = abs(terms[0].mean() - cell.xt) / math.hypot(cell.xt_se, spread / math.sqrt(number), UNSEEN / number)
    right = bool(off <= APART)
    widths = f"{half:.5f}", f"{1.96 * spread / math.sqrt(len(s)):.5f}"
    verdict = f"{'agree' if right else 'WRONG'}; {off:.1f} se"
    shown(values.name, noise, spent, demanded, (f"{needed:.1f}", f"{cell.xt:.4f}", *widths, verdict))
    return spent, right


def szt(rows: int | None, repeats: int) -> bool:
    """Compare layer by layer; what is demanded is demanded of all layers of a checkpoint together."""
    from layers import ROWS, szt_layers

    print(line(*COLUMNS))
    right: list[Any] = []
    for epoch in EPOCHS:
        layers = szt_layers(epoch, rows or ROWS)
        for noise, demanded in SZT.items():
            spent, fine = zip(*(compared(layer, noise, repeats) for layer in layers), strict=True)
            shown(f"SZT {epoch}, all layers", noise, sum(spent[1:], spent[0]), demanded)
            right += fine
    return all(right)


def wide(rows: int | None, repeats: int) -> bool:
    from layers import ROWS, clustered, plain

    print(line(*COLUMNS))
    noise, demanded = WIDE
    cases = (make(rows or ROWS, width) for width in WIDTHS for make in (plain, clustered))
    right = [compared(values, noise, repeats, demanded)[1] for values in cases]
    return all(right)


def bounds(rows: int | None, repeats: int) -> bool:
    """Compare the pairwise bounds of the same layers; they are exact on both sides."""
    from layers import ROWS, szt_layers
    from timing import interleaved

    noise, demanded = BOUNDS
    right = []

    def row(name: str, loop: object, spent: object, ratio: object, asked: str, results: str) -> None:
        print(f"{name:<22} {noise!s:<6} {loop:<8} {spent:<9} {ratio:<6} {asked:<9} {results}".rstrip(), flush=True)

    print("{:<22} {:<6} {:<8} {:<9} {:<6} {:<9} {}".format(*BOUND_COLUMNS))
    for epoch in EPOCHS:
        total = np.zeros(2)
        for values in szt_layers(epoch, rows or ROWS):
            calls = {
                "loop": partial(pairwise, values.points.numpy(), noise),
                "cell": partial(own_bounds, values, noise),
            }
            (loop, theirs), (spent, ours) = interleaved(calls, repeats).values()
            total += loop, spent
            off = float(np.abs(np.array(theirs) - np.array(ours)).max())
            right.append(off <= AGREEMENT)
            verdict = f"{'agree' if right[-1] else 'WRONG'}; off by {off:.0e} nats"
            row(values.name, f"{loop:.3f}", f"{spent:.4f}", f"{loop / spent:.1f}", "", verdict)
        loop, spent = total
        row(f"SZT {epoch}, all layers", f"{loop:.3f}", f"{spent:.4f}", f"{loop / spent:.1f}", f">= {demanded:g}", "")
    return all(right)


def growth(rows: int | None, repeats: int) -> bool:
    """Print seconds by the number of rows, and what the process has held at most."""
    from layers import plain
    from timing import interleaved

    names = ("rows", "noise", "draws", "I(X;T+Z)", "cell s", "us a row", "ns a pair", "peak memory MB")
    print("{:>7} {:>6} {:>7} {:>9} {:>8} {:>9} {:>10} {:>15}".format(*names))
    for count in (count for count in GROWTH if count <= (rows or max(GROWTH))):
        values = plain(count, GROWTH_WIDTH)
        for noise in GROWTH_NOISE:
            # The largest takes long enough to be told from one run.
            calls: dict[str, Callable[[], Any]] = {"cell": partial(whole_cell, values, noise)}
            found: tuple[float, Any] = interleaved(calls, repeats if count < max(GROWTH) else 1)["cell"]
            spent, cell = found
            # Draws and, for either bound, rows, each with every row.
            pairs = (cell.draws + 2 * count) * count
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
            start = f"{count:>7} {noise:>6g} {cell.draws:>7.0f} {cell.xt:>9.4f} {spent:>8.3f}"
            print(f"{start} {spent / count * 1e6:>9.1f} {spent / pairs * 1e9:>10.2f} {peak:>15.0f}", flush=True)
    return True


# Running -------------------------------------------------------------------------------------------------------------


def small(arguments: argparse.Namespace) -> bool:
    """Run what the loop can follow; return whether all values agree."""
    from timing import chosen

    parts = {"growth": growth, "bounds": bounds, "szt": szt, "wide": wide}  # growth while the memory is ibscan's alone
    chosen(arguments.only, parts)
    right = [part(arguments.rows, arguments.repeats) for name, part in parts.items() if arguments.only in (None, name)]
    print(
        f"""
CPU seconds, medians of {arguments.repeats}, one thread, all sides in turn, float64.
loop s: one pass over the rows was timed, and multiplied by the passes to ibscan's half width (1.96 standard errors):
extrapolated, not run. Where rare events that were not met (3 / draws) are most of it: as many draws as ibscan's.
ratio: loop s over ibscan s. cell: over the whole cell, bounds too. at .02: had the loop stopped at the half width asked
for. cdist: the loop with scipy's distances. h - h: the loop for h(T+Z) - h(Z), to 0.02.
agree: within {APART:g} combined standard errors, with 3 / draws of either side; bounds within {AGREEMENT:g} nats."""
    )
    return all(right)


def main() -> int:
    parser = argparse.ArgumentParser(description="Noisy information against a loop in numpy")
    parser.add_argument("--rows", type=int, help="rows, instead of each workload's own, and at most in the growth")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of")
    parser.add_argument("--only", help="szt, wide, bounds or growth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return 0 if small(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
