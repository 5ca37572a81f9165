"""The tables of the guide that are made from declarations: `python tests/support/guide_tables.py` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ibscan.cli.commands import app
from ibscan.cli.listing import COLUMNS as LISTED
from ibscan.cli.options import PRINTED
from ibscan.core.option import Setting
from ibscan.measures import MEASURES, dimensions, measure_settings, quantities
from ibscan.request import run_settings
from ibscan.results.axes import AUXILIARY, DESCRIPTIONS
from ibscan.results.export import COLUMNS as EXPORTED
from ibscan.types import Estimate

PAGES = Path(str(files("ibscan"))) / "guide"
REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SCAN_VERBS = ("rank", "mi", "cluster", "scan")


def written(text: str) -> str:
    """Return a page with each of its generated regions made anew."""
    return REGION.sub(lambda found: f"{found[1]}\n{REGIONS[found[2]]()}\n{found[3]}", text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def verbs() -> str:
    """Return what the command line can do: the first sentence of each command."""
    named = {(c.name or c.callback.__name__): c.callback.__doc__ for c in app.registered_commands if c.callback}
    return table(("verb", "meaning"), ((f"`{name}`", (text or "").partition("\n")[0]) for name, text in named.items()))


def options() -> str:
    """Return every option by its panel."""
    panels: dict[str, list[Setting]] = {}
    for setting in (*run_settings(), *measure_settings(), *PRINTED):
        panels.setdefault(setting.option.panel, []).append(setting)
    parts = []
    for panel, settings in panels.items():
        rows = ((_typed(one), _verbs(one.verbs), f"`{one.name}`", one.help) for one in settings)
        parts.append(f"## {panel}\n\n" + table(("option", "of", "in Python", "meaning"), rows))
    return "\n".join(parts)


def variables() -> str:
    """Return every variable, a section a measure."""
    parts = []
    for measure in MEASURES:
        found = [quantity for owner, quantity in quantities() if owner is measure]
        rows = ((_named(q), ", ".join(q.dims), q.unit, q.meaning, f"`{q.formula}`") for q in found)
        verb = f"`ibscan {measure.verb}` and `ibscan scan`" if measure.verb else "every verb"
        said = [f"## {measure.name}", f"Measured by {verb}. Source: {measure.source}."]
        said.append(table(("variable", "along", "unit", "meaning", "formula"), rows).rstrip())
        caveats: dict[str, list[str]] = {}
        for quantity in found:
            caveats.setdefault(quantity.caveat, []).append(f"`{quantity.key}`")
        said.append("What they do not say:")
        said.append("\n".join(f"- {', '.join(keys)}: {text}" for text, keys in caveats.items() if text))
        parts.append("\n\n".join(said) + "\n")
    return "\n".join(parts)


def dimension_table() -> str:
    """Return the dimensions of a file and the coordinates along them."""
    rows = []
    for name in ("checkpoint", "layer"):
        along = ", ".join(f"`{key}`" for key, dim in AUXILIARY.items() if dim == name)
        rows.append((f"`{name}`", along, DESCRIPTIONS[name]))
    return table(("dimension", "coordinates on it", "meaning"), (*rows, *((f"`{d.name}`", "", d.meaning) for d in dimensions())))


def coordinates() -> str:
    """Return what the coordinates of checkpoints and layers are."""
    return table(("coordinate", "meaning"), ((f"`{name}`", DESCRIPTIONS[name]) for name in ("checkpoint", "layer", *AUXILIARY)))


def companions() -> str:
    """Return what stands beside a variable."""
    rows = ((f"`NAME_{one.suffix}`", f"{one.long_name} NAME") for one in Estimate.COMPANIONS.values())
    return table(("companion", "meaning"), rows)


def rows() -> str:
    """Return the columns of rows."""
    return table(("row column", "meaning"), ((f"`{name}`", text) for name, text in EXPORTED.items()))


def listed() -> str:
    """Return the columns of ibscan ls."""
    return table(("ls column", "meaning"), ((f"`{name}`", text) for name, text in LISTED.items()))


def _typed(setting: Setting) -> str:
    flags = ", ".join(f"`{flag}`" for declared in setting.flags for flag in declared.split("/"))
    return f"{flags} `{setting.option.metavar}`" if setting.option.metavar else flags


def _verbs(named: Sequence[str]) -> str:
    if set(SCAN_VERBS) <= set(named):
        return ", ".join(("scan verbs", *(verb for verb in named if verb not in SCAN_VERBS)))
    return ", ".join(named)


def _named(quantity: object) -> str:
    key, suffixes = quantity.key, quantity.companions  # type: ignore[attr-defined]
    return ", ".join(f"`{name}`" for name in (key, *(Estimate.companion(key, suffix) for suffix in suffixes)))


REGIONS: Mapping[str, Callable[[], str]] = {
    "verbs": verbs,
    "options": options,
    "variables": variables,
    "dimensions": dimension_table,
    "coordinates": coordinates,
    "companions": companions,
    "rows": rows,
    "ls": listed,
}

if __name__ == "__main__":
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
