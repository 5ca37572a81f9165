"""The tables of the guide that are made from declarations: `python tests/support/guide_tables.py` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ibscan.cli import explain as _explain  # noqa: F401 - one of the verbs
from ibscan.cli import reporting as _reporting  # noqa: F401 - one of the verbs
from ibscan.cli.commands import app
from ibscan.cli.glossary import default_of, settings, typed, verbs_of
from ibscan.cli.listing import COLUMNS as LISTED
from ibscan.core.estimate import Estimate, Status
from ibscan.core.option import INPUT, MEASURE, MODEL, OUTPUT, PRECISION, RARE, Setting
from ibscan.core.quantity import Quantity
from ibscan.measures import MEASURES, dimensions, quantities
from ibscan.results.axes import AUXILIARY, DESCRIPTIONS
from ibscan.results.export import COLUMNS as EXPORTED
from ibscan.views import columns
from ibscan.views.cells import mark
from ibscan.views.figures import specs
from ibscan.views.verdict import WORDS

PAGES = Path(str(files("ibscan"))) / "guide"
REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SCAN_VERBS = ("rank", "mi", "cluster", "scan")
INDICES = ("checkpoint", "layer")


def written(text: str) -> str:
    """Return a page with each of its generated regions made anew."""
    return REGION.sub(lambda found: f"{found[1]}\n{REGIONS[found[2]]()}\n{found[3]}", text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines) + "\n"


def escaped(cell: str) -> str:
    """Return a cell whose bars and stars are no Markdown; stars in code are none anyway."""
    starless = re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or "\\*", cell)
    return starless.replace("|", "\\|")


def verbs() -> str:
    """Return what the command line can do: the first sentence of each command."""
    named = {(c.name or c.callback.__name__): c.callback.__doc__ for c in app.registered_commands if c.callback}
    return table(("verb", "meaning"), ((f"`{name}`", (text or "").partition("\n")[0]) for name, text in named.items()))


def options() -> str:
    """Return every option by its panel."""
    panels: dict[str, list[Setting]] = {panel: [] for panel in (INPUT, MODEL, MEASURE, PRECISION, OUTPUT, RARE)}
    for setting in settings():
        panels[setting.option.panel].append(setting)
    return "\n".join(
        f"## {panel}\n\n" + table(("option", "of", "meaning"), (_row(setting) for setting in listed))
        for panel, listed in panels.items()
    )


def variables() -> str:
    """Return every variable, a section a measure."""
    parts = []
    for measure in MEASURES:
        found = [quantity for owner, quantity in quantities() if owner is measure]
        rows = ((_named(q), ", ".join(q.dims), _meaning(q)) for q in found)
        verb = f"`ibscan {measure.verb}` and `ibscan scan`" if measure.verb else "every verb"
        source = f" Source: {measure.source}." if measure.source else ""
        said = [f"## {measure.name}", f"Measured by {verb}.{source}"]
        said.append(table(("variable", "along", "meaning, unit, formula"), rows).rstrip())
        caveats: dict[str, list[str]] = {}
        for quantity in found:
            caveats.setdefault(quantity.caveat, []).append(f"`{quantity.key}`")
        said.append("What they do not say:")
        said.append("\n".join(f"- {', '.join(keys)}: {text}" for text, keys in caveats.items() if text))
        parts.append("\n\n".join(said) + "\n")
    return "\n".join(parts)


def dimension_table() -> str:
    """Return the dimensions of a file and the coordinates along them."""
    along = {name: ", ".join(f"`{key}`" for key, dim in AUXILIARY.items() if dim == name) for name in INDICES}
    rows = [(f"`{name}`", along[name], DESCRIPTIONS[name]) for name in INDICES]
    rows += [(f"`{dimension.name}`", "", dimension.meaning) for dimension in dimensions().values()]
    return table(("dimension", "coordinates on it", "meaning"), rows)


def coordinates() -> str:
    """Return what the coordinates of checkpoints and layers are."""
    return table(("coordinate", "meaning"), ((f"`{name}`", DESCRIPTIONS[name]) for name in (*INDICES, *AUXILIARY)))


def heads() -> str:
    """Return the words in the heads of tables; those that mean the same share a row."""
    words: dict[str, list[str]] = {}
    for head, meaning in columns().items():
        words.setdefault(meaning, []).append(f"`{head}`")
    return table(("table head", "meaning"), ((", ".join(same), meaning) for meaning, same in words.items()))


def words() -> str:
    """Return the words of the summary."""
    return table(("summary word", "meaning"), ((f"`{word.value}`", f"{text}.") for word, text in WORDS.items()))


def companions() -> str:
    """Return what stands beside a variable."""
    said = {suffix: f"{text.removesuffix(' the')} the value" for suffix, text in Estimate.MEANINGS.items()}
    rows = ((f"`NAME_{suffix}`", said[suffix]) for suffix in Estimate.COMPANIONS.values())
    return table(("companion", "meaning"), rows)


def statuses() -> str:
    """Return every status: its code and mark, what it says, and what to do."""
    rows = []
    for status in Status:
        signs = dict.fromkeys(mark(status, unicode=unicode) for unicode in (True, False))
        shown = ", ".join(f"`{sign}`" for sign in signs if sign)
        rows.append((f"`{status.name.lower()}`", str(int(status)), shown, status.meaning, status.remedy))
    return table(("status", "code", "mark", "meaning", "what to do"), rows)


def rows() -> str:
    """Return the columns of rows."""
    return table(("row column", "meaning"), ((f"`{name}`", text) for name, text in EXPORTED.items()))


def listed() -> str:
    """Return the columns of ibscan ls."""
    return table(("ls column", "meaning"), ((f"`{name}`", text) for name, text in LISTED.items()))


def figures() -> str:
    """Return the kinds of figures."""
    return table(("figure", "shows"), ((f"`{name}`", spec.title) for name, spec in specs().items()))


def _row(setting: Setting) -> tuple[str, str, str]:
    flags, value = typed(setting)
    shown = ", ".join(f"`{flag}`" for flag in flags) + (f" `{value}`" if value else "")
    verbs = verbs_of(setting)
    if set(SCAN_VERBS) <= set(verbs):
        verbs = ("scan verbs", *(verb for verb in verbs if verb not in SCAN_VERBS))
    default = default_of(setting)
    return shown, ", ".join(verbs), setting.help + (f" Default: {default}." if default else "")


def _named(quantity: Quantity) -> str:
    names = [Estimate.companion(quantity.key, suffix).removeprefix(quantity.key) for suffix in quantity.companions]
    return ", ".join(f"`{name}`" for name in (quantity.key, *names))


def _meaning(quantity: Quantity) -> str:
    unit = "" if quantity.unit == "1" else f" ({quantity.unit})"
    return f"{quantity.meaning}{unit}: `{quantity.formula}`"


REGIONS: Mapping[str, Callable[[], str]] = {
    "verbs": verbs,
    "options": options,
    "variables": variables,
    "dimensions": dimension_table,
    "coordinates": coordinates,
    "companions": companions,
    "heads": heads,
    "words": words,
    "statuses": statuses,
    "rows": rows,
    "ls": listed,
    "figures": figures,
}

if __name__ == "__main__":
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
