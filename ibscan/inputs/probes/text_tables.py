"""Read probes from text tables: lines of numbers, with or without a header, and a column of labels."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ibscan.core.records import Array
from ibscan.core.text import first_line
from ibscan.errors import InputError, UsageError
from ibscan.inputs.files import Snapshot, snapshot
from ibscan.inputs.probes.labels import check_missing
from ibscan.inputs.probes.named_arrays import MAX_ARRAY_BYTES
from ibscan.inputs.probes.probe_keys import LABELS

__all__ = ["SUFFIXES", "Table", "read_table"]

SUFFIXES = (".csv", ".tsv")
# Python's float also accepts 1_0 and digits of other scripts.
ASCII_NUMBERS = re.compile(r"[0-9eE+\-. ]*")
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)
TITLE = re.compile(r"(?!na$|n/a$|none$|null$)[^\W\d].*", re.IGNORECASE)
MOST_COLUMNS = 1_000_000
# Memory of a row besides its numbers while the table is read.
ROW_BYTES = 128


@dataclass(frozen=True)
class Table:
    """Inputs (N, D), int64 where all cells are whole numbers, else float64; labels (N,), numbers or strings, or None.

    `notices` name columns that were picked by number, `unused` those that were not used.
    """

    x: Array
    y: Array | None
    notices: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def read_table(path: Path, name: str, wanted: Mapping[str, str]) -> Table:
    """Read a table of comma, semicolon or tab separated values.

    The first line is a header unless it holds numbers. The column of labels is `wanted` as y, or the one with a usual
    name (`y`, `label`, ...); an empty y means no labels. All other columns are x, unless one is wanted. Without a
    header, columns are counted from 0, and there are labels only if wanted.

    Raises:
        InputError: Lines of unequal length, cells that are no numbers, missing labels, or more than is read.
        UsageError: A missing column, or several that may be the labels.
    """
    with snapshot(path, name) as shot:
        # csv.Error: a field of more than 128 KiB, or a quote that never ends.
        try:
            return _read(shot, name, wanted)
        except UnicodeDecodeError:
            raise InputError(f"{name}: is no UTF-8 text; save the table as UTF-8.") from None
        except csv.Error as error:
            raise InputError(f"{name}: cannot be read as a table ({first_line(error)}); check its quotes.") from None


@dataclass(frozen=True)
class _Columns:
    names: tuple[str, ...]
    headed: bool

    def described(self, column: int) -> str:
        """Describe a column in words."""
        return f"column {self.names[column]!r}" if self.headed else f"column {column} (counted from 0)"

    def index(self, key: str, name: str) -> int:
        """Return the index of the column that a key names."""
        indices = [k for k, column in enumerate(self.names) if column == key]
        if len(indices) == 1:
            return indices[0]
        if indices:
            raise UsageError(f"{name}: there are {len(indices)} columns {key!r}; give them names of their own.")
        count = len(self.names)
        listed = ", ".join(self.names[:12]) + (f" and {count - 12} more" if count > 12 else "")
        known = f"there is {listed}" if self.headed else f"without a header they are counted from 0 to {count - 1}"
        raise UsageError(f"{name}: there is no column {key!r}; {known}.")

    def label(self, wanted: Mapping[str, str], name: str) -> int | None:
        """Return the index of the column of labels, or None."""
        if "y" in wanted:
            return self.index(wanted["y"], name) if wanted["y"] else None
        fitting = [k for k, column in enumerate(self.names) if column in LABELS and column != wanted.get("x")]
        if len(fitting) > 1:
            raise UsageError(
                f"{name}: which column is y is not clear from {', '.join(self.names[k] for k in fitting[:8])}; add "
                f"#y=COLUMN, such as {name}#y={self.names[fitting[-1]]}, and the others are inputs."
            )
        return fitting[0] if fitting else None

    def notices(self, wanted: Mapping[str, str], name: str) -> tuple[str, ...]:
        """Name the columns that a number picked: it might have meant a name, or counted from 1."""
        found = []
        for role, word in (("x", "inputs"), ("y", "labels")):
            key = wanted.get(role, "")
            if NUMBER.fullmatch(key):
                named = f"the column named {key!r} in line 1, " if self.headed else ""
                index = self.index(key, name)
                found.append(f"{name}: the {word} are {named}column {index} of {len(self.names)}, counted from 0.")
        return tuple(found)


def _read(shot: Snapshot, name: str, wanted: Mapping[str, str]) -> Table:
    text = io.TextIOWrapper(shot.stream, encoding="utf-8-sig", newline="")
    try:
        lines = _lines(text)
        start = list(itertools.islice(lines, 2))
        if not start:
            raise InputError(f"{name}: is a table without lines; expected one row an input.")
        columns = _columns([cells for _, cells in start], wanted, name)
        unknown = next((key for key in wanted if key not in ("x", "y")), None)
        if unknown is not None:
            raise UsageError(f"{name}#{unknown}=: of a table every column is x but that of the labels; pick it by #x=.")
        label = columns.label(wanted, name)
        if "x" in wanted:
            inputs = [columns.index(wanted["x"], name)]
        else:
            inputs = [k for k in range(len(columns.names)) if k != label]
        x, y = _arrays(itertools.chain(start[columns.headed :], lines), columns, (inputs, label), name)
        rest = tuple(columns.described(k) for k in range(len(columns.names)) if k != label and k not in inputs)
        return Table(x, y, columns.notices(wanted, name), rest)
    finally:
        text.detach()  # the snapshot closes its stream


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of every line that is not blank."""
    first = text.readline()
    unquoted = re.sub(r'"[^"]*"', "", first)
    # Beside semicolons a comma may be a decimal comma.
    separator = next((one for one in "\t;" if one in unquoted), ",")
    reader = csv.reader(itertools.chain([first], text), delimiter=separator, strict=True)
    for cells in reader:
        if cells and not (len(cells) == 1 and not cells[0].strip()):
            yield reader.line_num, cells


def _columns(lines: Sequence[Sequence[str]], wanted: Mapping[str, str], name: str) -> _Columns:
    """Return the names of the columns, from the first line if it is a header."""
    # numpy.savetxt writes its header as a comment.
    names = (lines[0][0].lstrip("# ").strip(), *(cell.strip() for cell in lines[0][1:]))
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{name}: has {len(names)} columns, at most {MOST_COLUMNS} are read; is it another file?")
    if len(names) > 2 and names == tuple(str(k) for k in range(len(names))):
        raise InputError(
            f"{name}: line 1 reads 0, 1, 2, ..., which may be the columns' names or an input; give them names that "
            "are no numbers, or remove the line."
        )
    picked = {key for key in wanted.values() if key}
    known = {key for key in picked if not NUMBER.fullmatch(key)} | set(LABELS)
    # A picked number in line 1 is a column's name only if the other cells are words above numbers.
    titled = picked & set(names) and len(lines) > 1 and _is_title(names, lines[1])
    if any(map(_is_number, names)) and not known & set(names) and not titled:
        return _Columns(tuple(str(k) for k in range(len(names))), headed=False)
    if "" in names:
        raise InputError(
            f"{name}: column {names.index('') + 1} has no name in line 1 (an index, as pandas writes it?); name it, or "
            "save the table without it (index=False)."
        )
    return _Columns(names, headed=True)


def _is_title(names: Sequence[str], below: Sequence[str]) -> bool:
    """Tell whether every cell that is no number is a word above a number."""
    words = [(cell, under) for cell, under in zip(names, below, strict=False) if not _is_number(cell)]
    return bool(words) and all(TITLE.fullmatch(cell) and _is_number(under) for cell, under in words)


def _is_number(cell: str) -> bool:
    return bool(NUMBER.fullmatch(cell.strip()))


def _arrays(
    lines: Iterator[tuple[int, list[str]]], columns: _Columns, picked: tuple[list[int], int | None], name: str
) -> tuple[Array, Array | None]:
    inputs, label = picked
    rows: list[Array] = []
    labels: list[str] = []
    numbers: list[int] = []
    count = len(columns.names)
    most = MAX_ARRAY_BYTES // (8 * len(inputs) + ROW_BYTES)
    whole = inputs == list(range(count))
    for number, cells in lines:
        if len(cells) != count:
            raise InputError(
                f"{name}: line {number} has {len(cells)} cells, but line 1 has {count}; every line needs the same."
            )
        if len(rows) == most:
            raise InputError(f"{name}: has more than {most} lines of {len(inputs)} numbers; save fewer rows.")
        if label is not None:
            labels.append(cells[label].strip())
            numbers.append(number)
        rows.append(_numbers(cells if whole else [cells[k] for k in inputs], (number, inputs, columns), name))
    if not rows:
        return np.zeros((0, len(inputs))), None if label is None else np.zeros(0)
    x = np.stack(rows) if inputs else np.zeros((len(rows), 0))
    if label is None:
        return x, None
    y = _labels(labels)
    check_missing(y, f"{name}, {columns.described(label)}", numbers)
    return x, y


def _numbers(cells: Sequence[str], source: tuple[int, Sequence[int], _Columns], name: str) -> Array:
    """Return one row, as integers where all its cells are."""
    if ASCII_NUMBERS.fullmatch("".join(cells)):
        for kind in (int, float):
            try:
                return np.array(list(map(kind, cells)), dtype=np.int64 if kind is int else np.float64)
            except (ValueError, OverflowError):
                continue
    number, inputs, columns = source
    for cell, k in zip(cells, inputs, strict=True):
        if not _is_number(cell):
            found = f"holds {cell.strip()[:40]!r}, which is no number" if cell.strip() else "is empty"
            raise InputError(
                f"{name}: line {number}, {columns.described(k)} {found}; expected a number, or pick the column of "
                "labels with #y=COLUMN."
            )
    return np.array(list(map(float, cells)), dtype=np.float64)


def _labels(labels: Sequence[str]) -> Array:
    if all(map(_is_number, labels)):
        try:
            return np.array(list(map(int, labels)), dtype=np.int64)
        except (ValueError, OverflowError):
            return np.array(list(map(float, labels)), dtype=np.float64)
    return np.array(labels, dtype=np.str_)
