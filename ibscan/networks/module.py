"""Any nn.Module as a network: layers found by one recorded pass, values and Jacobians through torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ibscan.errors import InputError
from ibscan.networks.graph import Place, Taps
from ibscan.networks.loading import foreign
from ibscan.networks.passes import Reached, Tapper, attached, tapped
from ibscan.networks.recording import recorded
from ibscan.networks.trees import main_tensor
from ibscan.types import Array, At, Layer, Normals, Visit, VisitFactor

__all__ = ["Module", "recorded_taps"]

# Numbers a block of rows may hold: constants, not free memory, so that a run can be repeated bit for bit.
ACTIVATION_BUDGET = 2**22
NOISY_BUDGET = 2**22
FACTOR_BUDGET = 2**23
# Directions of the input carried through one pass.
TANGENTS = 256
# Two passes over the same rows, or one row alone and among others, may differ by rounding.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Module:
    """One checkpoint of an nn.Module that answers for every layer it calls.

    `model` is in eval mode, without gradients, on `device` in `dtype`; `taps` says where its layers are.
    """

    model: nn.Module
    taps: Taps
    device: torch.device
    dtype: torch.dtype

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers in the order of first call, then modules asked for by name."""
        return self.taps.layers

    @property
    def size(self) -> int:
        """One checkpoint."""
        return 1

    @property
    def output(self) -> str:
        """What follows the last layer."""
        return self.taps.output

    @property
    def plain(self) -> bool:
        """Whether every layer is fed by the one before it alone."""
        return self.taps.plain

    def alone(self, checkpoint: int) -> Module:
        """Return this network, the only one."""
        assert checkpoint == 0
        return self

    def walk(self, x: Array, visit: Visit) -> None:
        """Call visit(layer, pre, post, rows) for every block of rows, each layer as soon as its post is known.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Is given the layer's index, pre and post of shape (1, n, ...), float64, and the rows as a slice.
        """
        for rows, block in self._blocks(x, ACTIVATION_BUDGET // self._widest(x)):
            held: dict[int, torch.Tensor] = {}

            def keep(
                layer: int, value: torch.Tensor, rows: int = len(block), held: dict[int, torch.Tensor] = held
            ) -> torch.Tensor:
                held[layer] = _kept(value, rows)
                return value

            def tell(
                layer: int, value: torch.Tensor, rows: slice = rows, held: dict[int, torch.Tensor] = held
            ) -> torch.Tensor:
                visit(layer, held.pop(layer), _kept(value, rows.stop - rows.start), rows)
                return value

            self._pass(block, [*self._at(self.taps.pre, keep), *self._at(self.taps.post, tell)])

    def noisy_walk(
        self, x: Array, layer: int, noise: float, normals: Normals, replicas: range
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Yield (replicas, S) in blocks of replicas, S of shape (1, R, n, D): the layer's post before its own noise.

        Args:
            x: Probe rows, shape (n, ...).
            layer: Index of the layer wanted.
            noise: Standard deviation, activation units.
            normals: Standard normals (n, D) of (layer index, replica).
            replicas: Which replicas to make.

        Source:
            Goldfeld et al. 2019, section 2: T_l = f_l(T_{l-1}) + Z_l.
        """
        rows = torch.as_tensor(x).to(self.device, self.dtype)
        size = max(1, NOISY_BUDGET // (len(x) * self._widest(x)))
        for start in range(replicas.start, replicas.stop, size):
            block = range(start, min(start + size, replicas.stop))
            found: list[torch.Tensor] = []

            def add(index: int, value: torch.Tensor, block: range = block) -> torch.Tensor:
                z = np.stack([normals(index, replica) for replica in block])
                return value + noise * torch.as_tensor(z).to(value).reshape(value.shape)

            def keep(index: int, value: torch.Tensor, found: list[torch.Tensor] = found) -> torch.Tensor:  # noqa: ARG001
                found.append(value.to(torch.float64, copy=True))
                raise Reached

            others = [k for k in self.taps.noisy if k != layer]
            # The wanted layer first: another may have its post at the same place.
            wanted = [*self._at(self.taps.post, keep, [layer]), *self._at(self.taps.post, add, others)]
            # Every replica of every row is a row of one batch.
            self._pass(rows.expand(len(block), *rows.shape).flatten(0, 1), wanted)
            yield block, found[0].reshape(1, len(block), len(x), -1)

    def jacobians(self, x: Array, visit: VisitFactor, *, at: At) -> None:
        """Call visit(layer, J, rows) with J = d layer / d x of shape (1, n, D, d_in), float64.

        Forward mode: one pass carries a block of input directions to all layers at once. Rows are independent of one
        another, so a direction is the same for all rows of a block. The derivative is that of the function: what the
        model detaches for its training counts.

        Args:
            x: Probe rows, shape (N, ...).
            visit: Is given the layer's index, the Jacobian, and the rows as a slice.
            at: `pre` for the layer's own output, `post` for what follows it.

        Source:
            Patel and Shwartz-Ziv 2024, section 2.
        """
        places = self.taps.pre if at == "pre" else self.taps.post
        for group in self._groups(x[0].size):
            cost = x[0].size * sum(self.layers[layer].width for layer in group)
            for rows, block in self._blocks(x, FACTOR_BUDGET // cost):
                values = self._values(places, group, block)
                # The slope of relu at a NaN is 0, a number like any other: what is not finite must not end there.
                sound = [torch.isfinite(v).all(1) for v in self._values(self.taps.pre, group, block)]
                columns = partial(self._values, places, group)
                try:
                    found = _forward_mode(columns, block)
                except InputError:
                    # The values are there: an operation has no forward derivative, or none under vmap.
                    found = _reverse_mode(columns, block, values, ACTIVATION_BUDGET // (len(block) * self._widest(x)))
                for layer, jacobian, finite in zip(group, found, sound, strict=True):
                    whole = torch.where(finite[:, None, None], jacobian.to(torch.float64), torch.nan)
                    visit(layer, whole.unsqueeze(0), rows)

    def _groups(self, inputs: int) -> Iterator[list[int]]:
        """Yield layers whose Jacobians of one row fit the budget together."""
        group: list[int] = []
        for layer, one in enumerate(self.layers):
            if group and inputs * (one.width + sum(self.layers[k].width for k in group)) > FACTOR_BUDGET:
                yield group
                group = []
            group.append(layer)
        yield group

    def _values(self, places: Sequence[Place], group: Sequence[int], block: torch.Tensor) -> list[torch.Tensor]:
        """Return the layers' values, (n, D) each, differentiable in the block."""
        found: dict[int, torch.Tensor] = {}

        def keep(layer: int, value: torch.Tensor) -> torch.Tensor:
            found[layer] = value.clone().reshape(len(block), -1)
            if len(found) == len(group):
                raise Reached
            return value

        with attached():
            self._pass(block, self._at(places, keep, group))
        return [found[layer] for layer in group]

    def _at(
        self,
        places: Sequence[Place],
        tapper: Callable[[int, torch.Tensor], torch.Tensor],
        layers: Sequence[int] | None = None,
    ) -> list[tuple[Place, Tapper]]:
        return [(places[k], partial(tapper, k)) for k in (range(len(places)) if layers is None else layers)]

    def _pass(self, block: torch.Tensor, at: Sequence[tuple[Place, Tapper]]) -> torch.Tensor | None:
        """Run the model on a block of rows; None where a tapper has seen enough."""
        tappers: dict[Place, Tapper] = {}
        for place, tapper in at:
            tappers[place] = _in_turn(tappers[place], tapper) if place in tappers else tapper
        try:
            # Cloned: a model may change its input in place, and this one may be the probe itself.
            block = block.clone()
            tapping = tapped(self.taps.operations, self.model, block, tappers)
            with foreign("the model"), sdpa_kernel(SDPBackend.MATH), tapping:
                result = self.model(block)
            tapping.finish()
            return main_tensor(result)
        except Reached:
            return None

    def _widest(self, x: Array) -> int:
        return max(int(x[0].size), *(layer.width for layer in self.layers))

    def _blocks(self, x: Array, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        size = max(1, size)
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            yield rows, torch.as_tensor(x[rows]).to(self.device, self.dtype)


def recorded_taps(
    model: nn.Module, x: Array, extra: Sequence[str], *, device: torch.device, dtype: torch.dtype
) -> Module:
    """Run the model on a few rows, check that it is a function of each of them alone, and return it as a network.

    Args:
        model: Loaded, in eval mode.
        x: A few rows of the probe, shape (n, ...), at least one.
        extra: Paths of modules to measure beside the layers.
        device: Where.
        dtype: Of the forward pass.

    Raises:
        InputError: The model raises on these rows, is random, or mixes rows.
    """
    rows = torch.as_tensor(x)
    if len(rows) == 1:  # a row is seen to be independent of others beside another
        rows = torch.cat([rows, rows])
    with foreign("the model"):
        # Moved and not copied where it is there already.
        model = model.to(device)
    try:
        taps = _taps(model.to(dtype), rows.to(device, dtype), extra)
    except InputError as error:
        if dtype is torch.float64 and _runs(model.to(torch.float32), rows.to(device, torch.float32), extra):
            model.to(dtype)
            raise InputError(f"{error} It runs in float32: add --dtype float32.") from None
        raise
    network = Module(model, taps, device, dtype)
    _check_function(network, rows.to(device, dtype))
    return network


def _taps(model: nn.Module, rows: torch.Tensor, extra: Sequence[str]) -> Taps:
    with torch.no_grad(), foreign("the model"), sdpa_kernel(SDPBackend.MATH):
        return recorded(model, rows.clone(), extra)


def _runs(model: nn.Module, rows: torch.Tensor, extra: Sequence[str]) -> bool:
    try:
        _taps(model, rows, extra)
    except InputError:
        return False
    return True


def _check_function(network: Module, rows: torch.Tensor) -> None:
    def values(block: torch.Tensor) -> list[torch.Tensor]:
        """The output, then every layer's pre and post, a row for each row."""
        found: dict[tuple[str, int], torch.Tensor] = {}

        def keep(at: str, layer: int, value: torch.Tensor) -> torch.Tensor:
            found[at, layer] = value.clone()
            return value

        taps = network.taps
        wanted = [*network._at(taps.pre, partial(keep, "pre")), *network._at(taps.post, partial(keep, "post"))]
        with torch.no_grad():
            output = network._pass(block, wanted)
        assert output is not None
        return [output, *(found[at, layer] for layer in range(len(network.layers)) for at in ("pre", "post"))]

    once, again = values(rows), values(rows)
    if not all(_close(a, b, network.dtype) for a, b in zip(once, again, strict=True)):
        raise InputError(
            "two passes of the model over the same rows differ: its forward pass is random (dropout called with "
            "training=True?) although it is in eval mode. Only a deterministic network can be measured."
        )
    mixed = (
        "the model mixes the rows of a batch (batch statistics in eval mode?), or its tensors do not have the rows "
        "first (batch_first=False?). What is measured here is a function of each row alone."
    )
    try:
        alone = [values(row) for row in torch.split(rows, 1)]
    except InputError as error:
        raise InputError(f"a row cannot be run alone ({str(error).rstrip('.')}): {mixed}") from error
    for k, (whole, parts) in enumerate(zip(once, zip(*alone, strict=True), strict=True)):
        what = "the model's output" if k == 0 else f"'{network.layers[(k - 1) // 2].name}'"
        if whole.numel() != sum(part.numel() for part in parts):
            raise InputError(
                f"{what} has shape {tuple(whole.shape)} for {len(rows)} rows and {tuple(parts[0].shape)} for one; "
                "expected as many numbers for each row."
            )
        singly = torch.cat([part.reshape(1, -1) for part in parts])
        if not _close(whole.reshape(len(rows), -1), singly, network.dtype):
            raise InputError(f"{what} is not the same for a row alone and for the row among others: {mixed}")


def _close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    scale = float(torch.nan_to_num(a).abs().max()) if a.numel() else 0.0
    tolerance = ROUNDING[dtype]
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _forward_mode(values: Callable[[torch.Tensor], list[torch.Tensor]], block: torch.Tensor) -> list[torch.Tensor]:
    """Return J of every value, (n, D, d_in), from the images of the input's unit vectors."""
    inputs = block[0].numel()
    basis = torch.eye(inputs, dtype=block.dtype, device=block.device).view(inputs, 1, *block.shape[1:])

    def image(direction: torch.Tensor) -> list[torch.Tensor]:
        tangents: list[torch.Tensor] = torch.func.jvp(values, (block,), (direction.expand_as(block).clone(),))[1]
        return [tangent.flatten(1) for tangent in tangents]

    with warnings.catch_warnings():
        # Of torch's own rules, loaded when a forward derivative is first asked for.
        warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated", DeprecationWarning)
        parts = [torch.func.vmap(image)(part) for part in torch.split(basis, TANGENTS)]
    return [torch.cat(column).permute(1, 2, 0) for column in zip(*parts, strict=True)]


def _reverse_mode(
    values: Callable[[torch.Tensor], list[torch.Tensor]], block: torch.Tensor, like: Sequence[torch.Tensor], most: int
) -> list[torch.Tensor]:
    """Return the same from the gradients of the outputs' units, where an operation has no forward mode.

    Rows are repeated for every unit, `most` units at a time; vmap is left out, as torch's rules for it may be wrong for
    rare operations (cdist).
    """
    rows, found = len(block), []
    for k, value in enumerate(like):
        parts = []
        for units in torch.split(torch.eye(value.shape[1], dtype=value.dtype, device=value.device), max(1, most)):
            repeated = block.repeat(len(units), *[1] * (block.ndim - 1))
            pullback = torch.func.vjp(lambda x, k=k: values(x)[k], repeated)[1]
            pulled: torch.Tensor = pullback(units.repeat_interleave(rows, 0))[0]
            parts.append(pulled.view(len(units), rows, -1))
        found.append(torch.cat(parts).transpose(0, 1))
    return found


def _by_row(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a tensor of shape (n, ...), where parts of rows (words, patches) may be first, or units squeezed away."""
    return value if value.ndim > 1 and len(value) == rows else value.reshape(rows, -1)


def _kept(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a copy of shape (1, n, ...), float64: an in-place operation may overwrite the value."""
    return _by_row(value.to(torch.float64, copy=True), rows).unsqueeze(0)


def _in_turn(first: Tapper, then: Tapper) -> Tapper:
    return lambda value: then(first(value))
