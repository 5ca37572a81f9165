"""What every name means: variables, options and dimensions as declared, other words as the guide's tables have them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Entry", "columns", "entries", "explained", "near", "pages", "sections"]

# Tables of the guide that explain words: the head of their first column, and what those words are. The words are the
# code spans of the first cell, or its text; a mark in a table means the same as its status.
_TABLES: Mapping[str, str] = {
    "status": "status",
    "coordinate": "coordinate in the result file",
    "attribute": "attribute of a variable in the result file",
    "exit code": "exit code",
    "row column": "column of rows and exports",
    "ls column": "column of ibscan ls",
    "verb": "verb",
}
_ALSO_NAMES = "mark"
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_CELL = re.compile(r"(?<!\\)\|")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")


@dataclass(frozen=True)
class Entry:
    """One meaning of a word: its names, what kind of thing it is, labelled facts, and the page that says more."""

    names: tuple[str, ...]
    kind: str
    facts: tuple[tuple[str, str], ...]
    page: str


@cache
def pages() -> Mapping[str, str]:
    """Return the pages of the guide, Markdown by topic."""
    found = {item.name.removesuffix(".md"): item for item in (files("ibscan") / "guide").iterdir()}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


@cache
def sections() -> Mapping[str, tuple[str, str]]:
    """Return the sections of the guide by heading, without its number: topic and Markdown."""
    found: dict[str, tuple[str, str]] = {}
    for topic, text in pages().items():
        for part in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
            heading = re.sub(r"^[0-9.]+ ", "", part.partition("\n")[0].removeprefix("## "))
            found.setdefault(heading, (topic, part))
    return found


@cache
def entries() -> tuple[Entry, ...]:
    """Return every word that is explained without a library of arrays: all but heads of tables."""
    return (*_variables(), *_dimensions(), *_options(), *_tabled())


@cache
def columns() -> tuple[Entry, ...]:
    """Return the heads of the tables that scans print, and the marks in them; imports numpy and rich."""
    from ibscan import views

    return tuple(
        Entry((head,), "word in a table's head", (("meaning", meaning),), "reading")
        for head, meaning in views.columns().items()
    )


def explained(name: str) -> list[Entry]:
    """Return what a name means: one entry a meaning, none where it is unknown.

    Args:
        name: As typed: case, blanks and leading dashes do not matter, nor whether words are joined by - or _.
    """
    name = name.strip()
    found = [entry for entry in entries() if name in entry.names]
    if not found:
        found = [entry for entry in entries() if _plain(name) in map(_plain, entry.names)]
    if name.startswith("--"):
        return [entry for entry in found if entry.kind == "option"]
    return found or _family(name) or _headed(name)


def near(name: str) -> list[str]:
    """Return up to five known names that look like one that is unknown."""
    known = {one for entry in (*entries(), *columns()) for one in entry.names} | {*pages(), *sections()}
    plain: dict[str, str] = {}
    for one in sorted(known):
        plain.setdefault(_plain(one), one)
    return [plain[one] for one in difflib.get_close_matches(_plain(name), plain, n=5, cutoff=0.5)]


def _plain(name: str) -> str:
    # A mark may be a dash alone.
    return re.sub(r"\s", "", name.lstrip("-") or name).replace("-", "_").casefold()


def _family(name: str) -> list[Entry]:
    """Return what a name means that is made from a pattern: metrics of checkpoints, exit codes in words."""
    metric = re.fullmatch(r"metric_(?P<own>[A-Za-z0-9_]+?)(?P<status>_status)?", name)
    if metric is not None:
        own, status = metric["own"], metric["status"]
        meaning = f"{own}, as the checkpoints state it in their metadata (ibscan.metric.{own})"
        facts = [("meaning", f"status of metric_{own}: {meaning}" if status else meaning)]
        facts += [("stored along", "checkpoint"), ("written by", f'ibscan.save(..., metrics={{"{own}": ...}})')]
        return [Entry((name,), "variable", tuple(facts), "training")]
    code = re.fullmatch(r"exit( code)? ([0-9]+)", name.casefold())
    return [entry for entry in entries() if code is not None and code[2] in entry.names]


def _headed(name: str) -> list[Entry]:
    """Return what the head of a table's column means; its number, as in `noise 0.1`, does not matter."""
    found = [entry for entry in columns() if _plain(name) in map(_plain, entry.names)]
    if found:
        return found
    words = [word for word in name.split() if not _NUMBER.fullmatch(word)]
    heads = {_plain(entry.names[0]): entry for entry in columns()}
    return [heads[_plain(word)] for word in words if _plain(word) in heads] if len(words) < len(name.split()) else []


def _variables() -> Iterator[Entry]:
    from ibscan.measures import quantities
    from ibscan.types import Estimate

    for measure, quantity in quantities():
        dims = (*(("checkpoint", "layer") if quantity.per_layer else ("checkpoint",)), *(d.name for d in quantity.dims))
        verbs = " and ".join(f"ibscan {verb}" for verb in dict.fromkeys((measure.verb or "every verb", "scan")))
        stored = ("stored along", ", ".join(dims)), ("measured by", verbs)
        more = (("source", quantity.source), ("what it does not say", quantity.caveat))
        meaning, unit = ("meaning", quantity.meaning), ("unit", quantity.unit)
        facts = (meaning, ("symbol", quantity.symbol), ("formula", quantity.formula), unit, *stored, *more)
        yield Entry((quantity.key, quantity.symbol), "variable", facts, "variables")
        for suffix in quantity.companions:
            companion = Estimate.companion(quantity.key, suffix)
            meaning = ("meaning", f"{Estimate.MEANINGS[suffix]} {quantity.meaning}")
            facts = (meaning, ("belongs to", quantity.key), unit, *stored, *more)
            yield Entry((companion,), "variable", facts, "variables")
        if not quantity.counted:
            meaning = ("meaning", f"status of {quantity.key}: what its value means, or why there is none")
            yield Entry((f"{quantity.key}_status",), "variable", (meaning, ("belongs to", quantity.key), *stored), "statuses")


def _dimensions() -> Iterator[Entry]:
    from ibscan.measures import dimensions

    for dimension in dimensions():
        option = f"--{dimension.option.replace('_', '-')}" if dimension.option else "the network"
        facts = (("meaning", dimension.meaning), ("unit", dimension.unit), ("set by", option))
        yield Entry((dimension.name,), "dimension of the result file", facts, "files")


def _options() -> Iterator[Entry]:
    from ibscan.cli.options import PRINTED
    from ibscan.measures import measure_settings
    from ibscan.request import run_settings

    for setting in (*run_settings(), *measure_settings(), *PRINTED):
        flags = tuple(flag for declared in setting.flags for flag in declared.split("/"))
        facts = (
            ("typed", ", ".join(setting.flags) + (f" {setting.metavar}" if setting.metavar else "")),
            ("meaning", setting.help),
            ("of", ", ".join(f"ibscan {verb}" for verb in setting.verbs)),
            ("in Python", f"{setting.name}=..."),
        )
        yield Entry((*flags, setting.name), "option", facts, "options")


def _tabled() -> Iterator[Entry]:
    for topic, text in pages().items():
        heads: list[str] = []
        for line in text.splitlines():
            if not line.startswith("|"):
                heads = []
            elif not heads:
                heads = _cells(line)
            elif heads[0] in _TABLES and not line.startswith("|-"):
                row = dict(zip(heads, _cells(line), strict=False))
                named = [row[heads[0]], row.get(_ALSO_NAMES, "")]
                names = tuple(name for cell in named for name in (_CODE.findall(cell) or [cell]) if name)
                facts = tuple((head, _text(cell)) for head, cell in list(row.items())[1:] if cell)
                yield Entry(names, _TABLES[heads[0]], facts, topic)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL.split(line.strip())[1:-1]]


def _text(cell: str) -> str:
    return _LINK.sub(r"\1", cell).replace("`", "")
