"""Explain every name: variables, options and dimensions from their declarations, others from the guide's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypeAlias

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from ibscan.cli.commands import app
from ibscan.cli.options import FILED, PLOTTED, PRINTED, REPORTED
from ibscan.core.estimate import Estimate
from ibscan.core.option import Setting
from ibscan.core.text import near_names
from ibscan.engine.request import run_settings
from ibscan.measures import VERBS, dimensions, measure_settings, quantities

__all__ = [
    "Entry",
    "commands",
    "default_of",
    "entries",
    "explained",
    "near",
    "pages",
    "sections",
    "settings",
    "typed",
    "verbs_of",
]

# Tables of the guide that explain words, by the head of their first column, and the kind of these words. The words are
# the code spans of the first cell, or else its text; a mark is another name of its status.
HEAD = "word in a table's head"
_TABLES: Mapping[str, str] = {
    "table head": HEAD,
    "summary word": "word of the summary",
    "status": "status",
    "symbol": "symbol in formulas",
    "coordinate": "coordinate in the result file",
    "attribute": "attribute of a variable in the result file",
    "exit code": "exit code",
    "row column": "column of rows and exports",
    "ls column": "column of ibscan ls",
    "verb": "verb",
    "figure": "kind of figure",
}
_ALSO_NAMES = "mark"
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_CELL = re.compile(r"(?<!\\)\|")
# A symbol such as I(X; T) is one word.
_WORD = re.compile(r"[^\s,()]*\([^)]*\)|[^\s,]+")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")


Facts: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Entry:
    """One meaning of a word: its names, its kind, labelled facts, and the page of the guide on it."""

    names: tuple[str, ...]
    kind: str
    facts: Facts
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
    """Return every word that is explained; of the same words, facts and page once, as of several kinds."""
    kinds: dict[tuple[tuple[str, ...], Facts, str], list[str]] = {}
    for entry in (*_variables(), *_dimensions(), *_options(), *_tabled()):
        kinds.setdefault((entry.names, entry.facts, entry.page), []).append(entry.kind)
    return tuple(Entry(names, ", ".join(kind), facts, page) for (names, facts, page), kind in kinds.items())


def explained(name: str) -> list[Entry]:
    """Return the entries of a name, one for each meaning; none where it is unknown.

    Args:
        name: As typed: case, blanks and leading dashes do not matter, nor whether words are joined by - or _. Heads of
            tables may have their number (`noise 0.1`), or be a part of one (`mean err`).
    """
    name = name.strip()
    found = _called(name, entries())
    if name.startswith("-") and name != "-":
        return [entry for entry in found if entry.kind == "option"]
    # Entries that have the name as a symbol or mark come last.
    found.sort(key=lambda entry: name not in entry.names[:1])
    return found or _made(name) or _in_words(name)


def near(name: str) -> list[str]:
    """Return up to five known names similar to an unknown one."""
    known = {one for entry in entries() for one in entry.names} | {*pages(), *sections()}
    if name.startswith("-"):
        known = {one for one in known if one.startswith("-")}
    plain: dict[str, str] = {}
    for one in sorted(known):
        plain.setdefault(_plain(one), one)
    return [plain[one] for one in near_names(_plain(name), plain, most=5, cutoff=0.5)]


def _plain(name: str) -> str:
    # A mark may be a dash alone.
    return re.sub(r"\s", "", name.lstrip("-") or name).replace("-", "_").casefold()


def _called(name: str, among: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in among if _plain(name) in map(_plain, entry.names)]


def _made(name: str) -> list[Entry]:
    """Explain names that follow a pattern: metrics of checkpoints, exit codes in words."""
    metric = re.fullmatch(r"metric_(?P<own>[A-Za-z0-9_]+?)(?P<status>_status)?", name)
    if metric is not None:
        meaning = f"{metric['own']}, as checkpoints state it in their metadata (ibscan.metric.{metric['own']})"
        facts = (("meaning", f"status of {meaning}" if metric["status"] else meaning), ("dimensions", "checkpoint"))
        return [Entry((name,), "variable", facts, "training")]
    code = re.fullmatch(r"exit( code)? ([0-9]+)", name.casefold())
    return [] if code is None else _called(code[2], entries())


def _in_words(name: str) -> list[Entry]:
    """Explain the words of a table's head one by one, numbers aside; none where one of them is unknown."""
    words = [word for word in _WORD.findall(name) if not _NUMBER.fullmatch(word)]
    found = _part(" ".join(words))
    if found or words in ([], [name]):
        return found
    each = [_called(word, entries()) or _part(word) for word in words]
    return [entry for part in each for entry in part] if all(each) else []


def _part(words: str) -> list[Entry]:
    """Return the heads of tables, else the variables, that contain these words."""

    def padded(text: str) -> str:
        return f" {' '.join(re.findall('[a-z0-9]+', text.casefold()))} "

    wanted = padded(words)
    found = [entry for entry in entries() if wanted.strip() and wanted in padded(entry.names[0])]
    heads = [entry for entry in found if entry.kind == HEAD]
    return heads or [entry for entry in found if "symbol" in dict(entry.facts)]


def _variables() -> Iterator[Entry]:
    for measure, quantity in quantities():
        dims = (*(("checkpoint", "layer") if quantity.per_layer else ("checkpoint",)), *quantity.dims)
        verbs = (*([measure.verb] if measure.verb else VERBS), "scan")
        stored = ("dimensions", ", ".join(dims)), ("measured by", ", ".join(f"ibscan {verb}" for verb in verbs))
        said = (("source", quantity.source), ("caveat", quantity.caveat))
        beside = {suffix: Estimate.companion(quantity.key, suffix) for suffix in quantity.companions}
        status = "" if quantity.counted else Estimate.companion(quantity.key, "status")
        listed = ("companions", ", ".join(name for name in (*beside.values(), status) if name))
        own: Facts = (("meaning", quantity.meaning), ("symbol", quantity.symbol), ("formula", quantity.formula))
        facts = (*own, ("unit", quantity.unit), *stored, listed, *said)
        yield Entry((quantity.key, quantity.symbol), "variable", facts, "variables")
        for suffix, name in beside.items():
            own = (("meaning", f"{Estimate.MEANINGS[suffix]} {quantity.meaning}"), ("belongs to", quantity.key))
            unit = "1" if suffix in Estimate.UNITLESS else quantity.unit
            yield Entry((name,), "variable", (*own, ("unit", unit), *stored, *said), "variables")
        if status:
            own = (("meaning", "what the value means, or why there is none"), ("belongs to", quantity.key))
            yield Entry((status,), "variable", (*own, *stored), "statuses")


def _dimensions() -> Iterator[Entry]:
    for dimension in dimensions().values():
        chosen = dimension.flags or "the measure or the network"
        facts = (("meaning", dimension.meaning), ("unit", dimension.unit), ("set by", chosen))
        yield Entry((dimension.name,), "dimension of the result file", facts, "files")


def settings() -> tuple[Setting, ...]:
    """Return every option of the command line."""
    return (*run_settings(), *measure_settings(), *PRINTED, *FILED, *PLOTTED, *REPORTED)


def typed(setting: Setting) -> tuple[tuple[str, ...], str]:
    """Return the flags of an option, the long one first, and the placeholder of its value."""
    flags = sorted((flag for declared in setting.flags for flag in declared.split("/")), key=lambda f: f[:2] != "--")
    return tuple(flags), setting.metavar


def default_of(setting: Setting) -> str:
    """Return the default of an option; empty for switches, and where there is none or the help says it."""
    silent = setting.option.several or not setting.option.shown or isinstance(setting.default, bool | None)
    return "" if silent else str(setting.default)


@cache
def commands() -> Mapping[str, TyperCommand]:
    """Return the commands by their verbs, in the order of the help."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {name: command for name, command in group.commands.items() if isinstance(command, TyperCommand)}


def verbs_of(setting: Setting) -> tuple[str, ...]:
    """Return the commands that have an option, in the order of the help; another may have its flag and mean another."""
    return tuple(
        name
        for name, command in commands().items()
        if any(
            setting.flag in parameter.opts and getattr(parameter, "help", None) == setting.help
            for parameter in command.params
        )
    )


def _options() -> Iterator[Entry]:
    for setting in settings():
        flags, value = typed(setting)
        facts = (
            ("typed", f"{', '.join(flags)} {value}"),
            ("meaning", setting.help),
            ("default", default_of(setting)),
            ("repeatable", "yes" if setting.option.several else ""),
            ("commands", ", ".join(f"ibscan {verb}" for verb in verbs_of(setting))),
            ("in Python", "" if setting in (*PRINTED, *FILED, *PLOTTED, *REPORTED) else f"{setting.name}=..."),
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
            elif heads[0] in _TABLES and not set(line) <= set("|- "):
                row = dict(zip(heads, _cells(line), strict=False))
                named = [row[heads[0]], row.get(_ALSO_NAMES, "")]
                names = tuple(name for cell in named for name in (_CODE.findall(cell) or [cell]) if name)
                facts = tuple((head, _text(cell)) for head, cell in list(row.items())[1:] if cell)
                yield Entry(names, _TABLES[heads[0]], facts, topic)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELL.split(line.strip())[1:-1]]


def _text(cell: str) -> str:
    return _LINK.sub(r"\1", cell).replace("`", "").replace("\\*", "*")
