"""Estimate cells of the network channel: one hidden layer of one noisy network at one noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from ibscan.core.estimate import Estimate, Status
from ibscan.core.measure import Layers, Measure
from ibscan.core.network import NoisyNetwork
from ibscan.core.records import Array, Probe
from ibscan.core.streams import RandomStreams
from ibscan.measures.driver import (
    ROUNDING,
    blank_estimates,
    failure_status,
    fill,
    is_saturated,
    label_status,
    labels_consistent,
    layer_status,
    layer_values,
)
from ibscan.measures.noisy_channel import Channel
from ibscan.measures.noisy_population import Budget, Population
from ibscan.measures.noisy_search import close_bracket
from ibscan.measures.readout_cells import draws_of, readout_cell
from ibscan.measures.spread import layer_spreads
from ibscan.numerics.channels.line import line_of_passes
from ibscan.numerics.channels.mixture import Mixture, gaussian_cap, principal_components

__all__ = ["network_estimates"]

# Beginnings of the keys of quantities over noise, and over relative noise.
ABSOLUTE, RELATIVE = "mi_network", "mi_network_rel"
# Draws of noise under which a layer must be the same for every input to be called independent of the input.
INDEPENDENT_REPLICAS, SURELY_INDEPENDENT_REPLICAS = 16, 1024
# Accuracy of quadrature beside the change at half the step, nats.
QUADRATURE = 1e-8
# Random numbers of one stage of a cell.
STAGE = 2**32
# Largest change of an integrated value at half the step, as a share of the tolerance, and in nats.
CHANGE_SHARE, MOST_CHANGE = 0.1, 1e-6


class NoisyMeasure(Measure, Protocol):
    """A measure of the noisy network: noise levels and the budget of replicas and draws."""

    @property
    def noise(self) -> tuple[float, ...]:
        """Standard deviations, activation units."""
        ...

    @property
    def rel_noise(self) -> tuple[float, ...]:
        """Standard deviations relative to each layer's root-mean-square distance from its mean."""
        ...

    @property
    def tolerance(self) -> float:
        """Half width, nats."""
        ...

    @property
    def max_replicas(self) -> int:
        """Replicas of an input, and weighted paths or pairs of a draw, at most."""
        ...

    @property
    def max_draws(self) -> int:
        """Draws of one cell at most."""
        ...

    @property
    def patient(self) -> bool:
        """Whether a cell spends its budget before it is called unresolved."""
        ...


@dataclass(frozen=True)
class NetworkCell:
    """One (checkpoint, layer, noise); `xt`, `ty` and `given` are (value, standard error, lower, upper end), nats."""

    status: Status
    xt: tuple[float, ...]
    ty: tuple[float, ...]
    given: tuple[float, ...]  # I(X; T) - I(T; Y)
    cap: float
    replicas: float
    draws: float
    inputs: float
    paths: float

    @staticmethod
    def constant(status: Status) -> NetworkCell:
        """Return the cell of a layer without information: zeros if it is dead, else NaN."""
        value, replicas = (0.0, 1.0) if status is Status.DEAD else (math.nan, math.nan)
        return NetworkCell(status, *((value,) * 4,) * 3, value, replicas, value, value, value)


@dataclass(frozen=True)
class _Level:
    """One noise level of one checkpoint: quantities whose keys begin with `name`, and every layer's noise, by index."""

    name: str
    place: int
    noise: tuple[float, ...]


def network_estimates(
    measure: NoisyMeasure, network: NoisyNetwork, probe: Probe, streams: RandomStreams, layers: Layers | None = None
) -> dict[str, Estimate]:
    """Return the estimates of every hidden layer at every noise level, by quantity key.

    Arrays are (C, L, noise) or (C, L, rel_noise). All layers are measured; `layers` says which is in hand.
    """
    population = Population.of(probe, network)
    budget = Budget(measure.tolerance, measure.max_replicas, measure.max_draws, measure.patient)
    found = blank_estimates(measure, network)
    for c, levels in enumerate(_levels(measure, network, population)):
        alone, wanted = network.alone(c), iter(layers or ())
        for index, layer in enumerate(network.layers):
            if layers is not None and index in layers:
                next(wanted)
            for level in () if layer.output else levels:
                try:
                    cell = _cell(measure.name, alone, population, index, level.noise, budget, streams)
                except (MemoryError, RuntimeError) as error:
                    cell = NetworkCell.constant(failure_status(error))
                estimates = _cell_estimates(level.name, cell, budget)
                if level.name == RELATIVE:
                    estimates[f"{ABSOLUTE}_noise_absolute"] = _noise_estimate(level.noise[index], cell.status)
                for key, estimate in estimates.items():
                    fill(found[key], (c, index, level.place), estimate)
    labelled = {"ty": probe.y is not None, "xt_given_y": labels_consistent(probe)}
    for name in (ABSOLUTE, RELATIVE):
        found |= _with_limits(found, name, network, labelled)
    return found


def _levels(measure: NoisyMeasure, network: NoisyNetwork, population: Population) -> list[list[_Level]]:
    """Return the noise levels of each checkpoint, those relative to its layers last."""
    absolute = [_Level(ABSOLUTE, k, (noise,) * len(network.layers)) for k, noise in enumerate(measure.noise)]
    if not measure.rel_noise:
        return [absolute] * network.size
    spreads = layer_spreads(network, population.distinct, population.share).tolist()
    return [
        absolute
        + [_Level(RELATIVE, k, tuple(share * spread for spread in own)) for k, share in enumerate(measure.rel_noise)]
        for own in spreads
    ]


def _cell(
    measure: str,
    network: NoisyNetwork,
    population: Population,
    layer: int,
    noise: tuple[float, ...],
    budget: Budget,
    streams: RandomStreams,
) -> NetworkCell:
    """Return the cell of a layer of one checkpoint, given every layer's noise."""
    own = noise[layer]
    if not own > 0 or math.isinf(own):
        # Relative noise of a layer that is constant, or not finite.
        return NetworkCell.constant(Status.DEAD if own == 0 else Status.NONFINITE)
    if network.layers[layer].first:
        return _readout_cell(network, population, layer, own, budget, streams)
    passes = network.noisy_passes(population.distinct, layer, noise)
    generators = partial(_generator, measure, streams, layer, network.device)
    return _propagated_cell(Channel(passes, population, own, generators, budget))


def _cell_estimates(name: str, cell: NetworkCell, budget: Budget) -> dict[str, Estimate]:
    """Return the estimates of one cell by quantity key; keys begin with `name`."""

    def estimate(numbers: tuple[float, ...], **more: Any) -> Estimate:  # noqa: ANN401 - single numbers
        value, error, lower, upper = (np.array(number) for number in numbers)
        return Estimate(value, np.array(cell.status), stderr=error, lower=lower, upper=upper, **more)

    allowed = float(budget.max_replicas) * budget.max_draws
    return {
        f"{name}_xt": estimate(
            cell.xt, draws=cell.draws, replicas=cell.replicas, budget=allowed, inputs=cell.inputs, paths=cell.paths
        ),
        f"{name}_ty": estimate(cell.ty),
        f"{name}_xt_given_y": estimate(cell.given),
        f"{name}_cap": Estimate(np.array(cell.cap), np.array(cell.status)),
    }


def _noise_estimate(noise: float, status: Status) -> Estimate:
    """Return the estimate of a cell's own noise, which is exact where the cell was measured."""
    usual = Status.OK if status in (Status.SATURATED, Status.UNRESOLVED) else status
    return Estimate(np.array(noise if usual in (Status.OK, Status.DEAD) else math.nan), np.array(usual))


def _with_limits(
    found: Mapping[str, Estimate], name: str, network: NoisyNetwork, labelled: Mapping[str, bool]
) -> dict[str, Estimate]:
    """Return the estimates held against their caps, and those about labels not measured if there are none.

    Keys begin with `name`; `labelled` says of each quantity about labels whether it can be measured.
    """
    xt, cap = found[f"{name}_xt"], found[f"{name}_cap"]
    assert xt.status is not None
    assert xt.stderr is not None
    if network.plain:
        # Data processing inequality: in a plain chain the cap of a layer holds for all layers after it.
        smallest = np.fmin.accumulate(cap.value, 1)
        cap = replace(cap, value=np.where(np.isnan(cap.value), np.nan, smallest))
    # A bracket around a value above a proven bound is wrong.
    above = xt.value - cap.value > 1.96 * xt.stderr + ROUNDING
    status = xt.status
    status[above & np.isin(status, (Status.OK, Status.SATURATED))] = Status.UNRESOLVED
    if network.plain:
        for key in (f"{name}_xt", *(f"{name}_{side}" for side in labelled)):
            _narrowed(found[key], cap.value, status == Status.UNRESOLVED)
    cap_status = np.where(np.isin(status, (Status.SATURATED, Status.UNRESOLVED)), Status.OK, status).astype(np.int8)
    about_labels = {}
    for side, measurable in labelled.items():
        key = f"{name}_{side}"
        about_labels[key] = replace(found[key], status=label_status(status, labelled=measurable))
        for array in () if measurable else (found[key].value, found[key].stderr, found[key].lower, found[key].upper):
            assert array is not None
            array[:] = np.nan
    return {f"{name}_xt": xt, **about_labels, f"{name}_cap": replace(cap, status=cap_status)}


def _narrowed(estimate: Estimate, cap: Array, is_open: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Move the ends of open brackets to caps and ends of other layers of a plain chain, in place; arrays (C, L, noise).

    No layer has more information than one before it, in all, about the label, or beyond the label (data processing).
    """
    assert estimate.lower is not None
    assert estimate.upper is not None
    upper = np.fmin(np.fmin.accumulate(estimate.upper, 1), cap)
    lower = np.fmax.accumulate(estimate.lower[:, ::-1], 1)[:, ::-1]
    # Ends of two layers may cross by their errors: then only the upper one counts.
    lower = np.where(lower <= upper, lower, 0.0)
    estimate.upper[is_open], estimate.lower[is_open] = upper[is_open], lower[is_open]
    estimate.value[is_open] = ((upper + lower) / 2)[is_open]


def _readout_cell(
    network: NoisyNetwork, population: Population, layer: int, noise: float, budget: Budget, streams: RandomStreams
) -> NetworkCell:
    """Return the cell of a layer without noise before it: that of the read-out channel, from the same draws."""
    values = layer_values(network, population.x, layer, "post")[0]
    state = layer_status(values)
    if state is not Status.OK:
        return NetworkCell.constant(state)
    cell = readout_cell(
        Mixture.of(values, population.rows),
        draws_of(streams, layer, values),
        noise,
        ceiling=population.ceiling,
        tolerance=budget.tolerance,
        max_draws=budget.max_draws,
    )
    xt, ty, given = (
        (value, error, value - 1.96 * error, value + 1.96 * error)
        for value, error in ((cell.xt, cell.xt_se), (cell.ty, cell.ty_se), (cell.xt - cell.ty, cell.given_se))
    )
    visited = min(population.size, max(2, budget.max_draws // 2))
    return NetworkCell(cell.status, xt, ty, given, cell.cap, 1, cell.draws, visited, 0)


def _propagated_cell(channel: Channel) -> NetworkCell:
    """Return the cell of a layer with noise before it, from noisy passes."""
    if channel.is_input_independent(INDEPENDENT_REPLICAS) and channel.is_input_independent(SURELY_INDEPENDENT_REPLICAS):
        return NetworkCell.constant(Status.DEAD)
    population, tolerance = channel.population, channel.budget.tolerance
    inner, most = channel.first_replicas()
    state = layer_status(inner.flatten(0, 1))
    if state is not Status.OK:
        return NetworkCell.constant(state)
    cell = _exact_cell(channel) if channel.units == channel.width == 1 else None
    if cell is not None:
        return cell
    end = close_bracket(channel, inner, most)
    found = end.found.bracket
    if not found.finite:
        return NetworkCell.constant(Status.NONFINITE)
    inner = end.effort.inner.centres
    weights = population.share.repeat(len(inner)) / len(inner)
    # In units of the noise.
    spread = gaussian_cap(principal_components(inner.flatten(0, 1), weights)[0], 1.0)
    xt, ty, given = zip(found.value, found.error, found.lower, found.upper, strict=True)
    resolved = end.reached and 1.96 * max(found.error[:2]) <= tolerance
    state = Status.SATURATED if is_saturated(xt[2], population.ceiling) else Status.OK
    cap = min(population.ceiling, spread)
    if not resolved:
        state = Status.UNRESOLVED
        xt, given = _within(xt, cap), _within(given, cap)
        ty = _within(ty, min(cap, population.entropies[1]))
    return NetworkCell(
        state,
        xt,
        ty,
        given,
        cap,
        end.effort.replicas,
        end.rows * end.draws,
        end.rows,
        end.effort.paths,
    )


def _within(cell: tuple[float, float, float, float], most: float) -> tuple[float, float, float, float]:
    """Return a cell that is not resolved with its ends moved into [0, most], and the middle of these."""
    _, error, lower, upper = cell
    lower, upper = (min(max(end, 0.0), most) for end in (lower, upper))
    return (lower + upper) / 2, error, lower, upper


def _exact_cell(channel: Channel) -> NetworkCell | None:
    """Return the cell of one unit behind one noisy unit by quadrature; None where it is not exact or too expensive."""
    population = channel.population
    found = line_of_passes(channel, population.joint, min(CHANGE_SHARE * channel.budget.tolerance, MOST_CHANGE))
    if found is None:
        return None
    cap = min(population.ceiling, 0.5 * math.log1p(found.variance))
    # Within rounding of its bounds, a value is not beyond them.
    xt = min(max(found.xt, 0.0), cap)
    ty = min(max(found.ty, 0.0), xt)
    state = Status.SATURATED if is_saturated(xt, population.ceiling) else Status.OK
    # The ends own up to what quadrature leaves.
    left = found.change + QUADRATURE
    exact = [(value, 0.0, value - left, value + left) for value in (xt, ty, xt - ty)]
    return NetworkCell(state, exact[0], exact[1], exact[2], cap, 1, 0, population.size, 0)


def _generator(
    measure: str, streams: RandomStreams, layer: int, device: torch.device, stage: int, draw: int
) -> torch.Generator:
    """Return the generator of one draw or tile of one stage of a layer's cells, the same at every noise.

    Numbers are made on the device: equal on equal devices alone.
    """
    seed = int(streams.generator(measure, layer, stage * STAGE + draw).integers(2**63))
    return torch.Generator(device).manual_seed(seed)
