"""The network channel against prior replicas, and by itself: `python tests/benchmarks/network.py [--szt-noisy RUN]`.

Prints CPU seconds of ibscan and of the baseline (`replicas.py`: what Goldfeld et al. 2019 do) in the same run, their
ratio, what is demanded, and whether the values agree; then CPU seconds a checkpoint with what is demanded, and how many
cells stayed open. RUN is made by `fixtures/make_szt_noisy.py`. `--older CODE` compares the README's command with a
checkout of older code. With `--device cuda`: W2, on a GPU. Leaves with 1 where values disagree.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before torch is imported, and not where a test run merely looks at this file.
if __name__ == "__main__" and not any("cuda" in argument for argument in sys.argv):
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch
from safetensors.torch import load_file

from ibscan.core.estimate import Status
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.engine.scan import measure_layers
from ibscan.measures.network import NetworkInformation
from ibscan.networks.chain import Chain

FIXTURE = Path(__file__).parents[2] / "fixtures" / "szt-tanh"
# Noisy layers of both nets, whose output is not noisy; rows.
HIDDEN, ROWS = 5, 4096
# Noise of a run, epochs, and what is demanded of the ratio there, all layers after the first together.
NOISY, NOISY_EPOCHS, NOISY_DEMANDED = 0.005, (68, 515, 2099, 3000), 20.0
USUAL, USUAL_EPOCHS, USUAL_DEMANDED = 0.1, (38, 1000), 4.0
# Tolerances of ibscan there, the default first.
USUAL_TOLERANCES = (None, 0.02)
# Seconds a checkpoint at most: every layer of the noisy run, and 64 rows of the fixture; part of the older code's time.
NOISY_SECONDS, FEW_ROWS, FEW_SECONDS, PART = 60.0, 64, 0.3, 1 / 3
FIRST_EPOCH, FINE = 10, 0.02
# Standard errors that values may be apart, beside the gaps of their brackets.
APART = 4.0
# W2: noise, seconds for 100 checkpoints (performance.md section 5), half width.
W2_NOISE, W2_TARGET, W2_TOLERANCE = 0.1, 10.0, 0.02
RESOLVED = (Status.OK, Status.SATURATED, Status.DEAD)


# Runs ----------------------------------------------------------------------------------------------------------------


def epochs(run: Path) -> dict[int, Path]:
    return {int(path.stem.split("-")[1]): path for path in sorted(run.glob("epoch-*.safetensors"))}


def network(paths: list[Path], device: torch.device) -> Chain:
    from layers import series

    return series([path.name for path in paths], device, paths[0].parent)


def probe_of(run: Path, rows: int) -> Probe:
    from layers import inputs

    return inputs(rows, run)


@dataclass
class Timed:
    """A network that notes the CPU time whenever passes up to a layer are asked for: where its cell begins."""

    inner: Any
    begun: list[tuple[int, float]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def alone(self, checkpoint: int) -> Timed:
        return Timed(self.inner.alone(checkpoint), self.begun)

    def noisy_passes(self, x: Any, layer: int, *rest: Any) -> Any:
        self.begun.append((layer, time.process_time()))
        return self.inner.noisy_passes(x, layer, *rest)


@dataclass(frozen=True)
class Spent:
    """CPU seconds of all layers, of each after the first, and the estimates."""

    total: float
    of_layer: dict[int, float]
    found: Any

    @property
    def open(self) -> int:
        """Cells that are not resolved."""
        return int((~np.isin(self.found["mi_network_xt"].status[:, :HIDDEN], RESOLVED)).sum())


def ours(path: Path, probe: Probe, noise: float, tolerance: float | None = None) -> Spent:
    """Measure all layers of one checkpoint."""
    more: dict[str, Any] = {} if tolerance is None else {"tolerance": tolerance}
    timed = Timed(network([path], torch.device("cpu")))
    start = time.process_time()
    found = measure_layers(NetworkInformation(noise=(noise,), samples=None, **more), timed, probe, RandomStreams(0))
    end = time.process_time()
    stops = [*(at for _, at in timed.begun[1:]), end]
    return Spent(end - start, {k: stop - at for (k, at), stop in zip(timed.begun, stops, strict=True)}, found)


# Against replicas ----------------------------------------------------------------------------------------------------

COLUMNS = ("layer", "noise", "I(X;T)", "half", "ibscan s", "replicas s", "p(t|x)", "K", "Km", "rows", "draws", "ratio")
WIDTHS = (20, 6, 7, 7, 9, 11, 7, 8, 6, 5, 6, 8)


def line(*cells: object, last: str = "") -> str:
    return " ".join([*(f"{cell!s:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), last]).rstrip()


def against(run: Path, epoch: int, noise: float, tolerance: float | None, demanded: float, rows: int) -> bool:
    """Print a line a layer after the first, and one for all; return whether the values agree."""
    from replicas import Net, pilot_of

    path, probe = epochs(run)[epoch], probe_of(run, rows)
    spent = ours(path, probe, noise, tolerance)
    state = {name: array.double() for name, array in load_file(path).items()}
    layers = [(state[f"fc{k}.weight"], state[f"fc{k}.bias"]) for k in range(1, HIDDEN + 1)]
    xt = spent.found["mi_network_xt"]
    torch.manual_seed(0)
    totals, beyond, right = np.zeros(3), False, True
    for k in range(1, HIDDEN):
        value, low, high, error = (float(a[0, k, 0]) for a in (xt.value, xt.lower, xt.upper, xt.stderr))
        half = (high - low) / 2
        with torch.inference_mode():
            pilot = pilot_of(Net(layers[: k + 1], torch.from_numpy(probe.x).double(), noise), half)
        plan, (ends, theirs) = pilot.plan(half), pilot.best
        # Ends without their standard errors: gaps of both brackets, and errors of both.
        gaps = ends.gap + max(0.0, half - 1.96 * error)
        off = max(0.0, abs((ends.upper + ends.lower) / 2 - value) - gaps) / math.hypot(error, theirs)
        right &= off <= APART
        seconds = spent.of_layer[k]
        totals += seconds, plan.seconds, plan.inside
        beyond |= plan.extrapolated
        more = ">= " if plan.extrapolated else ""
        settled = "" if xt.status[0, k, 0] in RESOLVED else "OPEN; "
        print(
            line(
                *(f"SZT {epoch}, fc{k + 1}", f"{noise:g}", f"{value:.3f}", f"{half:.4f}", f"{seconds:.2f}"),
                *(f"{more}{plan.seconds:.1f}", f"{plan.inside:.1f}", f"{plan.replicas:.0f}", f"{plan.of_all:.0f}"),
                *(plan.rows, plan.draws, f"{more}{plan.seconds / seconds:.1f}"),
                last=f"{settled}{'agree' if off <= APART else 'WRONG'}; {off:.1f} se",
            ),
            flush=True,
        )
    mine, loop, inside = totals
    more = ">= " if beyond else ""
    head = f"SZT {epoch}, fc2 to 5", f"{noise:g}", "", "", f"{mine:.2f}", f"{more}{loop:.1f}", f"{inside:.1f}"
    print(line(*head, *("",) * 4, f"{more}{loop / mine:.1f}", last=f"demanded >= {demanded:g}"), flush=True)
    return right


# By itself -----------------------------------------------------------------------------------------------------------


def alone(name: str, run: Path, chosen: list[int], noise: float, demanded: float | None, **more: Any) -> None:
    """Print seconds a checkpoint and the number of open cells of some epochs of a run."""
    probe = probe_of(run, more.pop("rows", ROWS))
    seconds, left = [], 0
    for epoch in chosen:
        spent = ours(epochs(run)[epoch], probe, noise, **more)
        xt = spent.found["mi_network_xt"]
        values = " ".join(f"{v:.3f}" for v in xt.value[0, :HIDDEN, 0])
        seconds.append(spent.total)
        left += spent.open
        print(f"{name}, epoch {epoch:>4}: {spent.total:6.2f} s, {spent.open} open; I(X;T) {values}", flush=True)
    limit = "" if demanded is None else f", demanded <= {demanded:g}"
    mean, most = statistics.mean(seconds), max(seconds)
    print(
        f"{name}: {len(chosen)} checkpoints, mean {mean:.2f} s, most {most:.2f} s{limit}; {left} cells open, demanded 0"
    )


def command(code: Path) -> float:
    """Return CPU seconds of `ibscan mi --channel network` on the fixture, by the package in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = ("mi", str(FIXTURE), "--channel", "network", "-o", f"{folder}/a.h5")
        subprocess.run(
            [sys.executable, "-m", "ibscan", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(code)},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def readme(older: Path | None) -> None:
    """Print CPU seconds of the command, start and file included, beside those of older code."""
    mine = command(Path(__file__).parents[2])
    print(f"`ibscan mi fixtures/szt-tanh --channel network`: {mine:.1f} s", end="")
    if older is not None:
        theirs = command(older.resolve())
        print(f"; older code {theirs:.1f} s: {mine / theirs:.2f} of it, demanded <= {PART:.2f}", end="")
    print(flush=True)


# W2 on a GPU ---------------------------------------------------------------------------------------------------------


def exponential_rate(device: torch.device) -> float:
    """Return float64 exponentials a second, the best of three after one for nothing."""
    from timing import elapsed

    x = torch.full((2**20 if device.type == "cpu" else 2**27,), -1.0, dtype=torch.float64, device=device)
    out = torch.empty_like(x)
    return len(x) / min([elapsed(lambda: torch.exp(x, out=out), device) for _ in range(4)][1:])


def held_against_floor(rows: int, checkpoints: int, device: torch.device, repeats: int) -> None:
    """Run W2 and print its time, scaled to 100 checkpoints, beside target and floor.

    The floor is that of the passes alone: 2 operations a weight at the rate of a product, and an exponential a unit, of
    every path of every draw, of the replicas of every input visited, and one for every draw and every input.
    """
    from timing import elapsed, product_rate

    rate, exponentials = product_rate(device), exponential_rate(device)
    print(f"float64: {rate / 1e12:.3g} TFLOP/s of a product, {exponentials:.3g} exponentials/s on {device}", flush=True)
    files = list(epochs(FIXTURE).values())
    # Spread over the training, the last one among them.
    files = [files[-1 - k * len(files) // checkpoints] for k in range(min(checkpoints, len(files)))]
    series, probe = network(sorted(files), device), probe_of(FIXTURE, rows)
    measure = NetworkInformation(noise=(W2_NOISE,), tolerance=W2_TOLERANCE, samples=None)
    measure_layers(measure, series.alone(0), probe_of(FIXTURE, 64), RandomStreams(0))
    kept: dict[str, Any] = {}
    times = [
        elapsed(lambda: kept.update(measure_layers(measure, series, probe, RandomStreams(0))), device)
        for _ in range(repeats)
    ]
    spent, scale, found = statistics.median(times), 100 / len(files), kept["mi_network_xt"]
    draws, own, visited, paths = (
        np.nan_to_num(part[:, :HIDDEN, 0]) for part in (found.draws, found.replicas, found.inputs, found.paths)
    )
    passes = draws * (paths + 1) + visited * own + len(probe.x)
    passes[:, 0] = 0.0
    widths = np.array([probe.x[0].size, *(layer.width for layer in series.layers[:HIDDEN])])
    products, units = np.cumsum(widths[:-1] * widths[1:]), np.cumsum(widths[1:])
    floor = float((passes * (2 * products / rate + units / exponentials)).sum())
    states, numbers = np.unique(found.status[:, :HIDDEN], return_counts=True)
    print(f"W2 {len(probe.x)} rows, {HIDDEN} layers, {len(files)} checkpoints, noise {W2_NOISE:g}: {spent:.3f} s")
    print(
        f"    scaled to 100 checkpoints: {spent * scale:.1f} s; target {W2_TARGET:g} s at {ROWS} rows; floor "
        f"{floor * scale:.3g} s: {floor / spent:.1%}; {passes.sum() * scale:.2e} passes"
    )
    print(f"    cells by status: {dict(zip(states.tolist(), numbers.tolist(), strict=True))}", flush=True)


# Running -------------------------------------------------------------------------------------------------------------


def small(arguments: argparse.Namespace) -> bool:
    """Run the rows on the CPU; return whether all values agree."""
    from timing import chosen

    from ibscan.numerics.memory import keep_freed

    keep_freed()
    only, noisy, rows = arguments.only, arguments.szt_noisy, arguments.rows or ROWS
    chosen(only, ("few", "ratio", "noisy", "fine", "readme"))
    wanted, right = arguments.epochs or None, True
    # Once for nothing, so that no row pays for what torch does first.
    measure_layers(
        NetworkInformation(samples=None),
        network([epochs(FIXTURE)[1000]], torch.device("cpu")),
        probe_of(FIXTURE, 64),
        RandomStreams(0),
    )
    if only in (None, "few"):
        alone(f"{FEW_ROWS} rows", FIXTURE, wanted or list(epochs(FIXTURE)), USUAL, FEW_SECONDS, rows=FEW_ROWS)
    if only in (None, "ratio"):
        print(line(*COLUMNS))
        cases: list[Any] = [(FIXTURE, USUAL, USUAL_EPOCHS, at, USUAL_DEMANDED) for at in USUAL_TOLERANCES]
        cases += [(noisy, NOISY, NOISY_EPOCHS, None, NOISY_DEMANDED)] if noisy else []
        for run, noise, at, tolerance, demanded in cases:
            for epoch in (epoch for epoch in at if wanted is None or epoch in wanted):
                right &= against(run, epoch, noise, tolerance, demanded, rows)
    if noisy and only in (None, "noisy"):
        at = wanted or [epoch for epoch in epochs(noisy) if epoch >= FIRST_EPOCH]
        alone(f"noise {NOISY:g}, trained so", noisy, at, NOISY, NOISY_SECONDS, rows=rows)
    if only in (None, "fine"):
        alone(f"tolerance {FINE:g}", FIXTURE, wanted or list(epochs(FIXTURE)), USUAL, None, rows=rows, tolerance=FINE)
    if only in (None, "readme"):
        readme(arguments.older)
    print(
        f"""
CPU seconds, one thread, float64. half: half of ibscan's bracket, its standard errors included; the baseline's plan
reaches the same. replicas s: CPU seconds of a pass and of a distance, timed on the layer, times what the cheapest plan
needs: rows x K passes and rows x draws x K distances for p(t|x) (column p(t|x)), {ROWS} x Km passes and rows x draws x
{ROWS} x Km distances for p(t). >=: more passes than were run are needed, extrapolated as if gaps went with 1 / K.
The baseline's error is by ibscan's rule, its draws are no fewer than ibscan's least, without controls.
agree: the pilot's bracket and ibscan's overlap within {APART:g} combined standard errors."""
    )
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description="The network channel against prior replicas, and by itself")
    parser.add_argument("--szt-noisy", type=Path, help="run made by fixtures/make_szt_noisy.py")
    parser.add_argument("--older", type=Path, help="checkout of older code, for the README's command")
    parser.add_argument("--rows", type=int, help="rows, instead of all 4096")
    parser.add_argument("--epochs", type=int, nargs="*", help="epochs, instead of each row's own")
    parser.add_argument("--only", help="few, ratio, noisy, fine or readme")
    parser.add_argument("--device", default="cpu", help="cpu; cuda, cuda:1: W2 alone")
    parser.add_argument("--workloads", choices=("cpu", "gpu"), help="cpu ones on a CPU, gpu ones (W2) on a GPU")
    parser.add_argument("--checkpoints", type=int, default=20, help="of W2, whose time is scaled to 100")
    parser.add_argument("--repeats", type=int, default=3, help="runs of W2 to take the median of")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if arguments.workloads == "gpu" or (arguments.workloads is None and arguments.device != "cpu"):
        device = torch.device(arguments.device)
        held_against_floor(arguments.rows or ROWS, arguments.checkpoints, device, arguments.repeats)
        return 0
    return 0 if small(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
