"""A result as tidy rows, and rows as tsv, csv or jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TextIO

import numpy as np

from ibscan.core.estimate import Estimate, Status
from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.results.axes import fill_value, is_fill

__all__ = ["COLUMNS", "rows", "write_rows"]

COLUMNS: Mapping[str, str] = {
    "checkpoint": "Path of the checkpoint relative to its series.",
    "epoch": "Epoch of the checkpoint; missing where unknown.",
    "step": "Optimiser step of the checkpoint; missing where unknown.",
    "value": "Coordinate of the checkpoint in a sweep; missing where the series is none.",
    "layer": "Dotted name of the layer; missing for what belongs to the whole network.",
    "at": "Where the layer was measured: pre or post, before or after its activation.",
    "variable": "Name of the variable, as in the file.",
    "parameter": "Dimension the variable runs along beyond checkpoint and layer, such as eps or noise.",
    "parameter_value": "Value of that parameter: the threshold, the noise or the kind of cells.",
    "result": "The number; missing where there is none, and status says why.",
    "se": "Standard error of the number; missing where it has none.",
    "lower": "Lower end for the number; missing where it has none.",
    "upper": "Upper end for the number; missing where it has none.",
    "unit": "Unit of result, se, lower and upper; 1 for plain numbers.",
    "status": "What the number means, or why there is none: ok, not_measured, saturated, dead, ...",
}
# Starts of a formula in a spreadsheet; some accept the full-width forms of East Asian keyboards too.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# What stands for a missing field in tsv: an empty one would shift the columns of `column -t`, `-` is no number.
_MISSING = "NaN"
# Fields of Estimate that have a column of their own, and those that are variables of their own.
_COLUMN_FIELDS = ("stderr", "lower", "upper")
_ROW_FIELDS = ("minimum", "maximum")
_STATUS_NAMES = {int(status): status.name.lower() for status in Status}


def rows(result: Result, *, units: str = "nats", variables: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield one row for each number, in the columns of `COLUMNS`; what is missing is None.

    Args:
        result: What to lay out.
        units: `nats`, or `bits` to convert every value in nat with its errors and bounds.
        variables: Any variables, with their cells that were not measured. By default the scalars of every
            layer and checkpoint that were measured, with `se`, `lower`, `upper` beside them.

    Yields:
        Rows by checkpoint, then by variable, layer and parameter.

    Raises:
        UsageError: There is no such unit.
        NothingMatched: There is no such variable.
    """
    result.check_shown(units, variables)
    return _rows(result, units, variables)


def write_rows(
    rows: Iterable[Mapping[str, Any]], format: str, stream: TextIO, columns: Iterable[str] = COLUMNS
) -> None:
    """Write rows, in a header line and one line each (tsv, csv), or as one JSON object a line.

    In tsv a missing field is written NaN: none is empty, so that columns stay aligned in any program, and pandas,
    numpy, R and gnuplot take it for what it is. In csv it is empty, in JSON null.

    Control characters in names are written as escapes, so a row is a line. In csv a text that a spreadsheet would take
    for a formula gets a leading apostrophe. Characters the stream cannot encode become escapes.

    Args:
        rows: Mappings; a column that is absent, None or NaN is missing; in tsv and csv an empty text too.
        format: `tsv`, `csv` or `jsonl`.
        stream: Where to; its OSError and BrokenPipeError pass through.
        columns: Columns in order.

    Raises:
        UsageError: There is no such format.
    """
    if format not in ("tsv", "csv", "jsonl"):
        raise UsageError(f"format {format!r}: expected tsv, csv or jsonl.")
    encoding = getattr(stream, "encoding", None) or "utf-8"

    def put(line: str) -> None:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")

    if format == "jsonl":
        for row in rows:
            put(json.dumps({name: _json_value(row.get(name)) for name in columns}, allow_nan=False))
        return
    separator: Literal["\t", ","] = "\t" if format == "tsv" else ","
    cell = _tsv_cell if format == "tsv" else _csv_cell
    put(separator.join(columns))
    for row in rows:
        put(separator.join(cell(row.get(name)) for name in columns))


def _rows(result: Result, units: str, variables: Sequence[str]) -> Iterator[dict[str, Any]]:
    blocks = [_block(result, name, units, everything=bool(variables)) for name in variables or _shown(result)]
    names = result["checkpoint_name"].values.tolist()
    epochs, steps, values = (result[key].values.tolist() for key in ("epoch", "step", "value"))
    for row, (name, epoch, step, value) in enumerate(zip(names, epochs, steps, values, strict=True)):
        # A whole epoch is a count and is printed as one.
        whole = int(epoch) if epoch.is_integer() else _known(epoch)
        lead = {"checkpoint": name, "epoch": whole, "step": None if step < 0 else step, "value": _known(value)}
        for block in blocks:
            for cells in _cells(block, row):
                yield {**lead, **cells}


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _shown(result: Result) -> list[str]:
    """List the quantities shown by default, each followed by its extremes."""
    listed: list[str] = []
    for key in result.quantities:
        if result[key].attrs.get("shown", 1):
            extremes = [Estimate.companion(key, Estimate.COMPANIONS[field]) for field in _ROW_FIELDS]
            listed += [key, *(name for name in extremes if name in result[key].ancillary)]
    return listed


@dataclass(frozen=True)
class _Block:
    """One variable, prepared for reading row by row; arrays are (C, ...)."""

    arrays: Mapping[str, Array]
    status: Array | None
    hidden: Array
    empty: Array
    layers: Sequence[str | None]
    parameters: Sequence[Sequence[Any]]
    fixed: Mapping[str, Any]


def _block(result: Result, name: str, units: str, *, everything: bool) -> _Block:
    found, status, companions = result[name], result.status(name), result.companions(name)
    unit = str(found.attrs.get("units", ""))
    empty = is_fill(found.values, fill_value(found.values.dtype))
    missing = empty if status is None else status == Status.NOT_MEASURED
    arrays = {"result": found.values}
    arrays |= {Estimate.COMPANIONS[f]: companions[f].values for f in _COLUMN_FIELDS if f in companions}
    in_bits = unit == "nat" and units == "bits"
    if in_bits:
        arrays = {key: values / math.log(2) for key, values in arrays.items()}
    own = [dim for dim in found.dims if dim not in ("checkpoint", "layer")]
    fixed = {
        "at": found.attrs.get("at"),
        "variable": name,
        "parameter": ",".join(own) or None,
        "unit": "bit" if in_bits else unit or None,
    }
    layers = result["layer"].values.tolist() if "layer" in found.dims else [None]
    parameters = [result[dim].values.tolist() for dim in own]
    return _Block(arrays, status, missing & (not everything), empty, layers, parameters, fixed)


def _cells(block: _Block, row: int) -> Iterator[dict[str, Any]]:
    """Yield the cells of a variable at one checkpoint."""
    columns = {key: values[row].ravel().tolist() for key, values in block.arrays.items()}
    status = None if block.status is None else block.status[row].ravel().tolist()
    hidden, empty = block.hidden[row].ravel().tolist(), block.empty[row].ravel().tolist()
    for index, (layer, *parameters) in enumerate(product(block.layers, *block.parameters)):
        if hidden[index]:
            continue
        yield {
            "layer": layer,
            **block.fixed,
            "parameter_value": _parameter(parameters),
            **{key: values[index] for key, values in columns.items()},
            **({"result": None} if empty[index] else {}),
            "status": None if status is None else _STATUS_NAMES[status[index]],
        }


def _parameter(values: Sequence[Any]) -> Any:  # noqa: ANN401 - a number, a name or nothing
    if len(values) > 1:
        return ",".join(map(str, values))
    return values[0] if values else None


def _json_value(value: Any) -> Any:  # noqa: ANN401 - a cell
    if isinstance(value, np.generic):
        value = value.item()
    # NaN and Infinity are no JSON; the status says what they were.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:  # noqa: ANN401 - a cell
    """Return a cell as text on one line, empty where it is missing."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = repr(value) if isinstance(value, float) else str(value)
    if text.isprintable() and "\\" not in text:
        return text
    # The backslash too: otherwise a name could look like an escape.
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def _tsv_cell(value: Any) -> str:  # noqa: ANN401 - a cell
    return _text(value) or _MISSING


def _csv_cell(value: Any) -> str:  # noqa: ANN401 - a cell
    text = _text(value)
    if isinstance(value, str) and text.startswith(_FORMULA):
        text = f"'{text}"
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if any(c in text for c in ',"') else text
