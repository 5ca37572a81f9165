"""Local rank against `vmap(jacrev)` per layer and `svdvals`: `python tests/benchmarks/rank.py`.

Prints, for every workload and job, CPU seconds of the baseline and of ibscan in the same run, their ratio, and whether
the counts agree; leaves with 1 where one does not. With `--device cuda`: the large workloads, against their floor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

# Before torch is imported, and not where a test run merely looks at this file.
if __name__ == "__main__" and not any("cuda" in argument for argument in sys.argv):
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ibscan.core.estimate import Estimate
from ibscan.core.network import JacobianSpec
from ibscan.core.records import Probe
from ibscan.core.streams import RandomStreams
from ibscan.engine.scan import measure_layers
from ibscan.measures.local_rank import LocalRank
from ibscan.numerics.spectra.counting import Gram, gram_counts

if TYPE_CHECKING:  # a test run cannot find the file beside this one
    from workloads import Named, Workload

EPS = (0.001, 0.01, 0.1)
# A count may go either way where a singular value is as near to a threshold as this, relative to the largest.
DOUBT = 1e-8
# Numbers the baseline holds at the widest place, one for each output and row. Larger blocks are slower.
BASELINE_BUDGET = 2**20
# Seconds, performance.md section 5.
TARGET = {"W1": (3, "0.1-0.7"), "W4": (120, "25-35")}
Estimates = Mapping[str, Estimate]
COLUMNS = ("workload", "job", "rows", "baseline s", "ibscan s", "ratio", "demanded", "counts", "spectra off by")


def jobs(rows: int, *, whole: bool) -> dict[str, LocalRank]:
    """Return what is asked for: the default command, of whose 1024 rows 64 have spectra, and one threshold alone."""
    default = LocalRank(eps=EPS, rel_eps=EPS, samples=None, spectrum_rows=64 if whole else max(1, rows // 16))
    return {"default": default, "one eps": LocalRank(eps=(0.01,), rel_eps=(), samples=None, spectrum_rows=1)}


# Baseline ------------------------------------------------------------------------------------------------------------


def baseline(models: Any, x: np.ndarray) -> list[list[torch.Tensor]]:
    """Return singular values of every layer of every model, (N, k): one Jacobian a layer and row, and its SVD.

    Counts, effective and stable rank for both jobs are read off them here too: next to nothing beside the rest.
    """
    rows = torch.from_numpy(x)
    found = []
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no batching rule
        for model in models:
            widths = [value.numel() for value in model.pre(rows[:1])]
            widest = max(rows[0].numel(), *widths)
            blocks = [rows.split(max(1, BASELINE_BUDGET // (widest * width))) for width in widths]
            found.append([singular_values(model, layer, parts) for layer, parts in enumerate(blocks)])
    for sigma in (sigma for model in found for sigma in model):
        top = sigma[:, :1]
        share = sigma / sigma.sum(1, keepdim=True).clamp_min(1e-300)
        _ = [(sigma > eps).sum(1) for eps in EPS] + [(sigma > eps * top).sum(1) for eps in EPS]
        _ = sigma.mean(0), torch.special.entr(share).sum(1).exp(), (sigma / top).square().sum(1)
    return found


def singular_values(model: Named, layer: int, blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    def value(row: torch.Tensor) -> torch.Tensor:
        return next(islice(model.pre(row.unsqueeze(0)), layer, None)).flatten()

    jacobian = torch.func.vmap(torch.func.jacrev(value))
    return torch.cat([torch.linalg.svdvals(jacobian(rows).flatten(2)) for rows in blocks])


# Agreement -----------------------------------------------------------------------------------------------------------


def thresholds(measure: LocalRank) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return thresholds of a row as a function of its largest singular value, by quantity."""
    eps, relative = (torch.tensor(values, dtype=torch.float64) for values in (measure.eps, measure.rel_eps))
    limits = {"local_rank": lambda top: eps + 0 * top, "local_rank_rel": lambda top: relative * top}
    return {key: limit for (key, limit), asked in zip(limits.items(), (eps, relative), strict=True) if len(asked)}


def wrong_counts(measure: LocalRank, found: Any, sigma: Any) -> Iterator[str]:
    """Yield what disagrees: the sum over rows, the spread, the least or the largest count of a layer."""
    for key, limits in thresholds(measure).items():
        parts = [estimates[key] for estimates in found]
        value, error, least, most = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("value", "stderr", "minimum", "maximum")
        )
        for c, of_model in enumerate(sigma):
            for layer, of_layer in enumerate(of_model):
                top = of_layer[:, :1]
                limit = limits(top).unsqueeze(-1)
                counts = (of_layer.unsqueeze(1) > limit).sum(-1).double().numpy()
                near = (of_layer.unsqueeze(1) - limit).abs() <= DOUBT * top.unsqueeze(-1)
                doubtful = (near & (top > 0).unsqueeze(-1)).sum((0, 2)).numpy()
                where = c, layer
                sound = np.abs(value[where] * len(counts) - counts.sum(0)) <= doubtful + 1e-6
                spread = counts.std(0, ddof=1) / np.sqrt(len(counts)) if len(counts) > 1 else error[where]
                same = np.isclose(error[where], spread, atol=1e-9, equal_nan=True)
                same &= (least[where] == counts.min(0)) & (most[where] == counts.max(0))
                for k in np.flatnonzero(~(sound & (same | (doubtful > 0)))):
                    yield f"{key}[{k}] of model {c}, layer {layer}: {value[c, layer, k]}, not {counts[:, k].mean()}"


def spectral_error(measure: LocalRank, found: Any, sigma: Any) -> float:
    """Return the largest deviation of a mean spectrum, relative to its first value."""
    value = np.concatenate([estimates["singular_value"].value for estimates in found])
    worst = 0.0
    for of_model, spectra in zip(sigma, value, strict=True):
        for of_layer, spectrum in zip(of_model, spectra, strict=True):
            mean = of_layer[: measure.spectrum_rows].mean(0).numpy()
            worst = max(worst, float(np.abs(spectrum[: len(mean)] - mean).max() / max(mean[0], 1e-300)))
    return worst


# Timing --------------------------------------------------------------------------------------------------------------


def few_rows(workload: Workload) -> Workload:
    """Return two rows of the first network: what torch loads when first asked for is nobody's work."""
    return replace(workload, models=workload.models[:1], networks=workload.networks[:1], x=workload.x[:2])


def findings(workload: Workload, measure: LocalRank) -> list[Estimates]:
    """Return what ibscan finds, network by network, as a command would ask."""
    probe = Probe(workload.x, None, (), "0" * 64, "benchmark")
    return [measure_layers(measure, network, probe, RandomStreams(0)) for network in workload.networks]


def compared(workload: Workload, repeats: int) -> bool:
    """Print a line for each job; return whether all counts are right."""
    from timing import interleaved

    measures = jobs(len(workload.x), whole=workload.whole)
    few = few_rows(workload)
    baseline(few.models, few.x)
    for measure in measures.values():
        findings(few, measure)
    calls: dict[str, Callable[[], object]] = {"baseline": lambda: baseline(workload.models, workload.x)}
    calls |= {name: partial(findings, workload, measure) for name, measure in measures.items()}
    (base, sigma), *rest = interleaved(calls, repeats).values()
    right = True
    for (job, measure), (spent, found) in zip(measures.items(), rest, strict=True):
        wrong = list(wrong_counts(measure, found, sigma))
        right &= not wrong
        off = spectral_error(measure, found, sigma)
        agree = f"{len(wrong)} WRONG" if wrong else "agree"
        demanded = f">= {workload.demanded:g}"
        cells = (workload.name, job, len(workload.x), f"{base:.3f}", f"{spent:.3f}", f"{base / spent:.1f}", demanded)
        print(line(*cells, agree, f"{off:.0e}"), flush=True)
        print(*(f"    {one}" for one in wrong[:5]), sep="\n", end="\n" if wrong else "", flush=True)
    if workload.note:
        print(f"    {workload.note}", flush=True)
    return right


def line(*cells: object) -> str:
    widths = (15, 8, 5, 11, 9, 6, 9, 9, 15)
    return " ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


# Large workloads on a GPU --------------------------------------------------------------------------------------------


def held_against_floor(workload: Workload, measure: LocalRank, operations: float, rate: float, repeats: int) -> None:
    """Print the median time of a large workload, the target, and its share of the floor."""
    from timing import elapsed

    device = workload.networks[0].device
    findings(few_rows(workload), measure)
    seconds = statistics.median(elapsed(lambda: findings(workload, measure), device) for _ in range(repeats))
    target, floor = TARGET[workload.name]
    counted = operations / rate
    print(f"{workload.name} {workload.note}: {seconds:.3f} s; target {target} s, floor {floor} s at full size")
    print(f"    {operations:.2e} operations take {counted:.3g} s as one product: {counted / seconds:.1%} of the time")
    print(f"    route: {route(workload, measure)}", flush=True)


def route(workload: Workload, measure: LocalRank) -> str:
    """Return how the rows are counted: sizes of the Gram matrices, and how many are left to the SVD."""
    network, sizes, certain = workload.networks[0], set(), []

    def visit(_layer: int, gram: Gram, _rows: slice) -> None:
        held = gram.finite.shape[1]
        values, error = gram.values.expand(-1, held, -1, -1).flatten(0, 1), gram.error.expand(-1, held).flatten()
        eps = torch.tensor(measure.eps, dtype=torch.float64, device=values.device) / gram.scale.unsqueeze(-1)
        relative = torch.tensor(measure.rel_eps, dtype=torch.float64, device=values.device)
        counts = gram_counts(values, error, eps.expand(-1, held, -1).flatten(0, 1), relative)
        sizes.add(values.shape[-1])
        certain.append(counts.certain.double().mean().item())

    network.grams(workload.x[:32], visit, JacobianSpec(measure.at))
    return (
        f"Gram matrices of {min(sizes)} to {max(sizes)}, {1 - statistics.mean(certain):.2%} of the rows in doubt, "
        f"spectra of {min(len(workload.x), measure.spectrum_rows or len(workload.x))} rows by SVD"
    )


def large(arguments: argparse.Namespace) -> bool:
    """Run the large workloads that are wanted."""
    from timing import chosen, product_rate
    from workloads import WIDE, active_shares, chain_operations, large_residual, module_operations, wide_series

    chosen(arguments.only, TARGET)
    device = torch.device(arguments.device)
    rate = product_rate(device)
    print(f"float64 product: {rate / 1e12:.3g} TFLOP/s on {device}", flush=True)
    if arguments.only in (None, "W1"):
        workload = wide_series(arguments.rows or 2048, arguments.checkpoints, device)
        measure = LocalRank(eps=EPS, rel_eps=EPS, samples=None)
        x = torch.from_numpy(workload.x)
        number = sum(chain_operations(WIDE, len(2 * EPS), active_shares(model, x)) for model in workload.models)
        held_against_floor(workload, measure, number * len(x), rate, arguments.repeats)
    if arguments.only in (None, "W4"):
        side = arguments.side or (8 if device.type == "cpu" else 32)
        workload = large_residual(arguments.rows or 256, side, device)
        measure = LocalRank(eps=EPS, rel_eps=EPS, samples=None, spectrum_rows=1)
        row = torch.from_numpy(workload.x[:1]).to(device)
        number = module_operations(workload.models[0], row, len(2 * EPS))
        held_against_floor(workload, measure, number * len(workload.x), rate, arguments.repeats)
    return True


def small(arguments: argparse.Namespace) -> bool:
    """Run the workloads that a baseline can follow; return whether all counts are right."""
    from timing import chosen
    from workloads import ON_CPU

    chosen(arguments.only, ON_CPU)
    wanted = {name: made for name, made in ON_CPU.items() if arguments.only in (None, name)}
    print(line(*COLUMNS))
    right = [compared(build(arguments.rows or rows), arguments.repeats) for build, rows in wanted.values()]
    print(
        f"""
CPU seconds, medians of {arguments.repeats}, one thread, baseline and both jobs in turn. Baseline: per layer,
svdvals of vmap(jacrev) over rows in float64; it is the same for both jobs.
default: eps and rel_eps {EPS}, spectra on 1 of 16 rows (a command: 64 of 1024;
of the small stacked ones, which have 64 rows in all, on each).
one eps: eps 0.01 alone, spectra on one row. Counts: sum, spread, least and largest of every layer, rows with
a singular value within {DOUBT:g} of the largest from a threshold excepted.
What is done once for all rows (a chain's first layer) weighs more on so few rows than on 1024."""
    )
    return all(right)


def main() -> int:
    parser = argparse.ArgumentParser(description="Local rank against vmap(jacrev) per layer and svdvals")
    parser.add_argument("--rows", type=int, help="probe rows, instead of each workload's own")
    parser.add_argument("--repeats", type=int, default=3, help="runs to take the median of")
    parser.add_argument("--only", help="name of one workload, such as 'relu trained' or W4")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--workloads", choices=("cpu", "gpu"), help="cpu ones on a CPU, gpu ones (W1, W4) on a GPU")
    parser.add_argument("--checkpoints", type=int, default=100, help="of W1")
    parser.add_argument("--side", type=int, help="of W4's images: 32, and 8 on a CPU")
    arguments = parser.parse_args()
    on_gpu = arguments.workloads == "gpu" or (arguments.workloads is None and arguments.device != "cpu")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    return 0 if (large if on_gpu else small)(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
