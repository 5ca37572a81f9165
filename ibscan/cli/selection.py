"""Read results, and keep the layers and checkpoints that options name: what show, export and plot have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ibscan.core.text import listed, matches_glob, near_names
from ibscan.errors import NothingMatched

if TYPE_CHECKING:
    from ibscan.core.result import Result

__all__ = ["read_selected"]


def read_selected(path: Path, layers: Sequence[str] | None, epochs: str | None) -> Result:
    """Read a result and keep what `--layers` and `--epochs` name.

    Args:
        path: The file.
        layers: Globs; None or empty for all layers.
        epochs: A selection along the series' axis, as scans take it; None for all checkpoints.

    Raises:
        InputError: The file cannot be read.
        UsageError: A selection cannot be read.
        NothingMatched: A selection matches nothing; the nearest names or numbers are said.
    """
    from ibscan.results.axes import checkpoint_keys
    from ibscan.results.select import selected
    from ibscan.results.store import read

    result = read(path)
    kept = None
    if epochs is not None:
        keys = checkpoint_keys(result)
        kept = {keys[index] for index in _epochs(result, path, epochs)}
    names = [str(name) for name in result["layer"].values.tolist()]
    found = [name for name in names if matches_glob(name, layers or ())]
    if layers and not found:
        near = list(dict.fromkeys(_near(layers, names)))
        raise NothingMatched(
            f"--layers {' '.join(layers)}: {path} has no such layer; it has {listed(near or names, 8)}."
        )
    return selected(result, checkpoints=kept, coordinates={"layer": found} if layers else None)


def _near(globs: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for glob in globs:
        yield from near_names(glob, names, 3)


def _epochs(result: Result, path: Path, spec: str) -> list[int]:
    from ibscan.inputs.series.epochs import indices
    from ibscan.views.view import View

    view = View(result, "nats", every=True, width=1, unicode=True)
    values = view.axis_values
    numbers = list(map(float, range(view.size) if values is None else values.tolist()))
    kept, missing = indices(numbers, view.axis_name, spec)
    if missing or not kept:
        raise NothingMatched(f"{path}: {missing or f'--epochs {spec}: there is no checkpoint to choose from.'}")
    return kept
