"""Calibration: over many seeds, 95 % intervals hold in 95 of 100 cases, neither fewer nor all.

The short version runs by default; `pytest tests/measures/test_calibration.py -s --calibration-seeds 200` is the long
one, and prints its tables. Cases and truths are in tests/support/calibration.py, the oracle that made the truths
in tests/support/calibration_oracle.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from support.calibration import CASES, CHAINS, TRUTHS
from support.calibration_far import NETWORK as FAR_NETWORK
from support.calibration_far import READ_OUT as FAR_READ_OUT
from support.calibration_far import Grid, Line, identity_chain
from support.calibration_oracle import DRAWS, chain_truth, read_out_truth
from support.network_truth import FAMILIES
from support.oracles import network_of, probe_of

from ibscan.core.estimate import Status
from ibscan.core.streams import RandomStreams
from ibscan.measures.network import NetworkInformation
from ibscan.measures.readout import ReadoutInformation

pytestmark = pytest.mark.slow

# Of 200 seeds 180 to 199 intervals are to hold, of the brackets 93 in 100; in a short run, no fewer than a sound 95 %
# interval falls below but once in 10^4, and all may by luck.
LONG, LEAST, LEAST_BRACKETS, MOST, FALSE_ALARM = 200, 0.9, 0.93, 0.995, 1e-4
# A standard error under this is a claim of exactness, and the error is held to it.
EXACT = 1e-9
# The truth's own standard error, in those of the value under test.
TRUTH_SHARE = 0.1
# The network channel takes longer: a fifth of the seeds, at least so many.
NETWORK_SHARE, NETWORK_SEEDS = 5, 6
# A bracket wider than this many tolerances says nothing, and holds the truth for nothing.
VACUOUS = 4
SHORT_TRUTH = 128
QUANTITIES = ("xt", "ty")


@pytest.fixture(scope="module")
def seeds(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--calibration-seeds")


@pytest.fixture(scope="module")
def report() -> Iterator[dict[Any, Any]]:
    """Lines by table, printed when all cases have run."""
    tables: dict[str, list[str]] = {}
    yield tables
    for header, lines in tables.items():
        print("", header, *lines, sep="\n")


def fewest(count: int, share: float, seeds: int) -> int:
    from scipy.stats import binom  # half a second, and every process collects this file

    return math.floor(share * count) if seeds >= LONG else int(binom.ppf(FALSE_ALARM, count, 0.95))


def most(seeds: int) -> int:
    return math.floor(MOST * seeds) if seeds >= LONG else seeds


def ratio(errors: np.ndarray, values: np.ndarray) -> str:
    deviation = values.std(ddof=1)
    return f"{errors.mean() / deviation:.2f}" if deviation > EXACT else "-"


READ_OUT = (
    f"{'read-out channel':24}{'width':>6}{'noise':>7}{'n':>6}{'cov. xt':>9}{'cov. ty':>9}"
    f"{'se/sd xt':>10}{'se/sd ty':>10}{'bias xt':>9}{'bias ty':>9}{'se xt':>9}{'se ty':>9}{'draws':>8}"
)


@pytest.mark.parametrize("name", CASES)
def test_intervals_of_the_readout_hold_as_often_as_they_say(name: str, seeds: int, report: Any) -> None:
    case, truth = CASES[name], dict(zip(QUANTITIES, (TRUTHS[name][:2], TRUTHS[name][2:]), strict=True))
    measure = ReadoutInformation(noise=(case.noise,), tolerance=case.tolerance, max_draws=case.max_draws, samples=None)
    # A seed orders the rows and draws the noise, as in a command.
    results = [measure(case.network, case.probe.sampled(None, s), RandomStreams(s)) for s in range(seeds)]
    values, errors, held = {}, {}, {}
    for key in QUANTITIES:
        found = [result[f"mi_readout_{key}"] for result in results]
        values[key], errors[key] = (np.array([getattr(f, a)[0, 0, 0] for f in found]) for a in ("value", "stderr"))
        # Intervals narrower than the truth is known are held to their own mean, and that to the truth.
        fine = key in case.exact or errors[key].mean() * TRUTH_SHARE >= truth[key][1]
        centre, known = truth[key] if fine else (values[key].mean(), 0.0)
        held[key] = np.abs(values[key] - centre) <= 1.96 * np.hypot(errors[key], known)
    biases = {k: (values[k].mean() - truth[k][0]) / max(EXACT, values[k].std(ddof=1)) * seeds**0.5 for k in QUANTITIES}
    report.setdefault(READ_OUT, []).append(
        f"{name:24}{case.values.shape[1]:6}{case.noise:7}{len(case.values):6}"
        + "".join(f"{'exact' if errors[k].max() < EXACT else held[k].sum():>9}" for k in QUANTITIES)
        + "".join(f"{ratio(errors[k], values[k]):>10}" for k in QUANTITIES)
        + "".join(f"{biases[k]:9.1f}" for k in QUANTITIES)
        + "".join(f"{errors[k].mean():9.1e}" for k in QUANTITIES)
        + f"{np.median([result['mi_readout_xt'].draws[0, 0, 0] for result in results]):8.0f}"
    )
    # Both quantities are looked at before either is complained of.
    complaints = []
    for key in QUANTITIES:
        if key in case.exact:
            wrong = np.abs(values[key] - truth[key][0]).max()
            if not (errors[key].max() < EXACT and wrong < EXACT):
                complaints.append(f"{key} is to be exact: standard error {errors[key].max():.1e}, error {wrong:.1e}")
            continue
        off = abs(values[key].mean() - truth[key][0])
        if off > 4 * np.hypot(truth[key][1], values[key].std(ddof=1) / seeds**0.5):
            complaints.append(f"{key} is off by {off:.1e} in the mean")
        bounds = fewest(seeds, LEAST, seeds), seeds if key in case.rare else most(seeds)
        if not bounds[0] <= held[key].sum() <= bounds[1]:
            complaints.append(
                f"{key}: {held[key].sum()} of {seeds} intervals hold, not {bounds[0]} to {bounds[1]};"
                f" mean standard error over deviation {ratio(errors[key], values[key])}"
            )
    assert not complaints, complaints


NETWORK = (
    f"{'network channel':24}{'widths':>12}{'noise':>7}{'n':>6}{'seeds':>7}{'cov. xt':>9}{'cov. ty':>9}"
    f"{'half xt':>9}{'half ty':>9}{'replicas':>10}{'paths':>7}{'draws':>8}"
)
# Families whose truth quadrature knows: half of the seeds, and the tolerance.
BY_NAME, FAMILY_SHARE, TOLERANCE = {family.name: family for family in FAMILIES}, 2, 0.05


@pytest.mark.parametrize("name", [*CHAINS, *BY_NAME])
def test_brackets_of_the_network_channel_hold(name: str, seeds: int, report: Any) -> None:
    """And own >= value >= fresh, but for errors: the ends are 1.96 standard errors beyond the two means."""
    count = max(NETWORK_SEEDS, seeds // NETWORK_SHARE if name in CHAINS else seeds // FAMILY_SHARE)
    if name in CHAINS:
        case = CHAINS[name]
        network, probe = network_of([case.chain], case.activation), probe_of(case.x, case.labels)
        place, truth = (0, case.layer, 0), (case.truth[0], case.truth[2])
        widths: Sequence[int] = [len(weight) for weight in case.chain[0][:-1]]
        noise, tolerance = case.noise, case.tolerance
    else:
        family = BY_NAME[name]
        network, probe, place = family.network, family.probe, family.place
        truth, widths = (family.truth.xt, family.truth.ty), [len(weight) for weight in family.net.weights]
        noise, tolerance = family.net.noise, TOLERANCE
    measure = NetworkInformation(noise=(noise,), tolerance=tolerance, max_replicas=512, max_draws=2**13, samples=None)
    results = [measure(network, probe.sampled(None, s), RandomStreams(s)) for s in range(count)]
    held, half = {}, {}
    for key, exact in zip(QUANTITIES, truth, strict=True):
        found = [result[f"mi_network_{key}"] for result in results]
        value, error, lower, upper = (
            np.array([getattr(f, a)[place] for f in found]) for a in ("value", "stderr", "lower", "upper")
        )
        held[key] = ((lower - EXACT <= exact) & (exact <= upper + EXACT)).sum()
        half[key] = np.median(upper - lower) / 2
        # Own >= value >= fresh on average; draws may have it otherwise, hardly ever by more than their error.
        assert (upper - lower >= 2 * (1.96 - 1.5) * error - EXACT).all()
        np.testing.assert_allclose(value, (lower + upper) / 2, atol=1e-9)
    of_xt = [result["mi_network_xt"] for result in results]
    report.setdefault(NETWORK, []).append(
        f"{name:24}{'-'.join(map(str, (probe.x.shape[1], *widths))):>12}{noise:7}{len(probe.x):6}{count:7}"
        + "".join(f"{held[k]:9}" for k in QUANTITIES)
        + "".join(f"{half[k]:9.3f}" for k in QUANTITIES)
        + f"{np.median([found.replicas[place] for found in of_xt]):10.0f}"
        + f"{np.median([found.paths[place] for found in of_xt]):7.0f}"
        + f"{np.median([found.draws[place] for found in of_xt]):8.0f}"
    )
    for key in QUANTITIES:
        assert held[key] >= fewest(count, LEAST_BRACKETS, seeds), (key, held[key], count)
        assert half[key] <= VACUOUS * tolerance, (key, half[key])


# Few rows that matter -----------------------------------------------------------------------------------------------


FEW = (
    f"{'few rows that matter':30}{'width':>6}{'noise':>7}{'n':>6}{'seeds':>7}{'cov. xt':>9}{'cov. ty':>9}"
    f"{'half xt':>9}{'half ty':>9}{'draws':>8}"
)
# Quadrature of the truths.
TRUTH_ERROR = 1e-9
# In the short version.
FEW_SEEDS = 6


def count_of(grid: Grid | Line, seeds: int, few: int) -> int:
    """Return the number of seeds: as asked for in the long version, few in the short one, one for slow cases."""
    return seeds if seeds >= LONG // NETWORK_SHARE else 1 if grid.slow else few


def held_by(
    case: Grid | Line,
    kind: str,
    seeds: int,
    truth: tuple[float, float],
    ends: Sequence[tuple[np.ndarray, np.ndarray, float]],
    report: Any,
) -> list[float]:
    """Count the intervals that contain their truth, by (seed, quantity); fail if there are too few."""
    held = [sum(low[k] - TRUTH_ERROR <= truth[k] <= high[k] + TRUTH_ERROR for low, high, _ in ends) for k in (0, 1)]
    half = [np.median([high[k] - low[k] for low, high, _ in ends]) / 2 for k in (0, 1)]
    report.setdefault(FEW, []).append(
        f"{kind + case.name:30}{case.units:6}{case.noise:7}{len(case.values):6}{len(ends):7}"
        + "".join(f"{number:9}" for number in held)
        + "".join(f"{width:9.3f}" for width in half)
        + f"{np.median([draws for *_, draws in ends]):8.0f}"
    )
    least = fewest(len(ends), LEAST_BRACKETS, seeds)
    assert min(held) >= least, f"{held} of {len(ends)} hold, not {least}"
    return half


@pytest.mark.parametrize("name", FAR_READ_OUT)
def test_intervals_hold_where_few_rows_matter(name: str, seeds: int, report: Mapping[str, Sequence[str]]) -> None:
    """Intervals do not collapse either: where nearly all rows are visited, the usual number of draws resolves them."""
    grid = FAR_READ_OUT[name]
    case, place, ends = grid.case, (0, 0, 0), []
    measure = ReadoutInformation(noise=(case.noise,), tolerance=case.tolerance, max_draws=case.max_draws, samples=None)
    for s in range(count_of(grid, seeds, FEW_SEEDS)):
        result = measure(case.network, case.probe.sampled(None, s), RandomStreams(s))
        found = [result[f"mi_readout_{key}"] for key in QUANTITIES]
        value, error = (np.array([getattr(f, a)[place] for f in found]) for a in ("value", "stderr"))
        lower, upper, status = (getattr(found[0], a)[place] for a in ("lower", "upper", "status"))
        assert lower - TRUTH_ERROR <= value[0] <= upper + TRUTH_ERROR
        if case.max_draws >= 2 * len(case.values):
            assert status == Status.OK
            assert found[0].draws[place] <= 2 * max(2**13, 2 * len(case.values))
        elif status == Status.OK:
            assert 1.96 * error.max() <= case.tolerance
        ends.append((value - 1.96 * error, value + 1.96 * error, found[0].draws[place]))
    held_by(grid, "", seeds, grid.truth(), ends, report)


@pytest.mark.parametrize("name", FAR_NETWORK)
def test_brackets_hold_where_few_rows_matter(name: str, seeds: int, report: Mapping[str, Sequence[str]]) -> None:
    grid = FAR_NETWORK[name]
    place = (0, 1, 0)
    network, probe, ends = network_of([identity_chain(grid.units)], "identity"), probe_of(grid.values, grid.labels), []
    measure = NetworkInformation(noise=(grid.noise,), tolerance=grid.tolerance, max_draws=grid.max_draws, samples=None)
    for s in range(count_of(grid, seeds // NETWORK_SHARE, FEW_SEEDS // 2)):
        result = measure(network, probe.sampled(None, s), RandomStreams(s))
        found = [result[f"mi_network_{key}"] for key in QUANTITIES]
        lower, upper = (np.array([getattr(f, a)[place] for f in found]) for a in ("lower", "upper"))
        ends.append((lower, upper, found[0].draws[place]))
    half = held_by(grid, "network: ", seeds, grid.truth(grid.noise * math.sqrt(2)), ends, report)
    assert max(half) <= VACUOUS * grid.tolerance


# The truths --------------------------------------------------------------------------------------------------------


def draws_for(seeds: int) -> int:
    """Return the draws for the truths: as many as they were made of in the long version, fewer in the short one."""
    return DRAWS if seeds >= LONG else DRAWS // SHORT_TRUTH


def check_truth(found: tuple[float, float, float, float], kept: tuple[float, float, float, float]) -> None:
    """The same draws give the same number up to rounding; fewer give one within eight errors: t, and skewed terms."""
    for column in (0, 2):
        slack = 8 * math.hypot(found[column + 1], kept[column + 1]) + EXACT / 10
        assert abs(found[column] - kept[column]) <= slack, (found, kept)


@pytest.mark.parametrize("name", CASES)
def test_truths_of_the_readout_are_what_the_oracle_says(name: str, seeds: int) -> None:
    check_truth(read_out_truth(CASES[name], draws_for(seeds)), TRUTHS[name])


@pytest.mark.parametrize("name", CHAINS)
def test_truths_of_the_network_channel_are_what_the_oracle_says(name: str, seeds: int) -> None:
    check_truth(chain_truth(CHAINS[name], draws_for(seeds)), CHAINS[name].truth)
