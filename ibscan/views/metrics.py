"""Numbers of checkpoints as a whole: accuracy, loss, and the metrics saved with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.views.column import Column, column
from ibscan.views.view import View, is_measured, name_of

__all__ = ["metric_columns", "metrics_named"]

_ACCURACY, _LOSS = "probe_accuracy", "probe_loss"


def metrics_named(result: Result, names: Sequence[str]) -> tuple[str, ...]:
    """Return the variables of metrics, named as they were saved (`val_loss`) or as stored (`metric_val_loss`).

    Raises:
        UsageError: The result has none of that name.
    """
    known = _metrics(result)
    for name in names:
        if name not in known and name not in known.values():
            has = f"it has {', '.join(reversed(known))}" if known else "it has none"
            raise UsageError(f"--with {name}: the result has no such metric; {has}.")
    return tuple(dict.fromkeys(known.get(name, name) for name in names))


def metric_columns(view: View) -> Iterator[Column]:
    """Yield the columns that stand before all layers: accuracy, a loss where there is none, and the metrics asked for.

    The loss is that on the probe, else the first metric that is named so.
    """
    if is_measured(view, _ACCURACY, "checkpoint"):
        yield column(view, _ACCURACY, ("accuracy",), ceiling=1.0)
        found = []
    else:
        losses = [_LOSS, *(name for symbol, name in _metrics(view.result).items() if "loss" in symbol.lower())]
        found = [name for name in losses if is_measured(view, name, "checkpoint")][:1]
    for name in dict.fromkeys((*found, *view.beside)):
        if name != _ACCURACY or not is_measured(view, _ACCURACY, "checkpoint"):
            yield column(view, name, (name_of(_symbol(view.result, name), view.unicode),))


def _metrics(result: Result) -> dict[str, str]:
    """Return the names of the variables of checkpoints as a whole, by their symbols."""
    own = [name for name in result.quantities if result[name].dims == ("checkpoint",)]
    # A metric saved under the name of what is measured here stands behind it.
    return {_symbol(result, name): name for name in reversed(own)}


def _symbol(result: Result, name: str) -> str:
    return str(result[name].attrs.get("symbol", name))
