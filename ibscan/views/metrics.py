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
    known = {name: _symbol(result, name) for name in _metrics(result)}
    found = []
    for name in names:
        # What was saved counts before what is measured here under the same name.
        fitting = [one for one, symbol in known.items() if name in (one, symbol)]
        if not fitting:
            has = f"it has {', '.join(dict.fromkeys(known.values()))}" if known else "it has none"
            raise UsageError(f"--with {name}: the result has no such metric; {has}.")
        found.append(next((one for one in fitting if one not in (_ACCURACY, _LOSS)), fitting[0]))
    return tuple(dict.fromkeys(found))


def metric_columns(view: View) -> Iterator[Column]:
    """Yield the columns that stand before all layers: accuracy, a loss where there is none, and the metrics asked for.

    The loss is that on the probe, else the first metric that is named so.
    """
    if is_measured(view, _ACCURACY, "checkpoint"):
        yield column(view, _ACCURACY, ("accuracy",), ceiling=1.0)
        found = []
    else:
        saved = _metrics(view.result)
        losses = [_LOSS, *(name for name in saved if "loss" in _symbol(view.result, name).lower())]
        found = [name for name in losses if is_measured(view, name, "checkpoint")][:1]
    shown = [name for name in dict.fromkeys((*found, *view.beside)) if name != _ACCURACY or found]
    symbols = [_symbol(view.result, name) for name in shown]
    for name, symbol in zip(shown, symbols, strict=True):
        # As it is stored where two have one symbol.
        yield column(view, name, (name_of(name if symbols.count(symbol) > 1 else symbol, view.unicode),))


def _metrics(result: Result) -> list[str]:
    """Return the names of the variables of checkpoints as a whole."""
    return [name for name in result.quantities if result[name].dims == ("checkpoint",)]


def _symbol(result: Result, name: str) -> str:
    return str(result[name].attrs.get("symbol", name))
