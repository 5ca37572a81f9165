"""Write the page of a report: summary, figures, tables, how it was measured, and what the words mean."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.errors import NothingMatched, UsageError
from ibscan.views import specs as tables
from ibscan.views.cells import mark
from ibscan.views.console import escaped
from ibscan.views.figures import pictures
from ibscan.views.figures import specs as figures
from ibscan.views.figures.picture import Picture
from ibscan.views.figures.signs import STATUS_MARKS, signs
from ibscan.views.figures.style import MARKERS
from ibscan.views.head import facts
from ibscan.views.layout import Shown
from ibscan.views.report.drawing import drawing
from ibscan.views.report.grids import Grid, grid
from ibscan.views.report.palette import MAP, SYMBOLS, dashes
from ibscan.views.summary import TABLE as SUMMARY
from ibscan.views.view import View, name_of

__all__ = ["Explained", "Setting", "check_libraries", "page", "shown"]

# Characters across an HTML table: what a sheet of paper has room for.
_WIDTH = 104
_OWN_ATTRIBUTES = ("settings", "skipped")


@dataclass(frozen=True)
class Setting:
    """How a measure was set: its name, the option as typed, the value, and the option's help."""

    measure: str
    option: str
    value: str
    help: str


@dataclass(frozen=True)
class Explained:
    """What declarations say of the names in results.

    Args:
        settings: How measures were set, by the name of the result.
        variables: Every variable, with labelled facts.
        caveats: What numbers do not say, with the variables it is said of.
        version: Of ibscan.
    """

    settings: Mapping[str, Sequence[Setting]]
    variables: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caveats: Sequence[tuple[str, Sequence[str]]]
    version: str


def check_libraries() -> None:
    """Check that the libraries for reports are there, before anything is read.

    Raises:
        UsageError: One is not.
    """
    try:
        import jinja2  # noqa: F401

        _plotly()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"report needs Jinja2 and plotly ({error}); install them with pip install 'ibscan[report]'."
        ) from None


def page(
    results: Mapping[str, Result],
    explained: Explained,
    *,
    drawn: Mapping[str, Result] | None = None,
    units: str = "nats",
    band: bool = False,
    every: bool = False,
    notes: Sequence[str] = (),
) -> str:
    """Return results as a page of HTML that needs nothing else.

    Args:
        results: By the names that tell them apart.
        explained: What is said of their names.
        drawn: The results as figures show them, where these have fewer checkpoints; None for the same.
        units: `nats`, or `bits` to convert what is in nat.
        band: Draw the mean over results and their standard deviation, instead of results side by side.
        every: Every checkpoint in the tables, instead of about twelve.
        notes: Said above the figures.

    Returns:
        The page, the same text for the same results. What comes from files is escaped, and only the scripts of the
        page itself run.

    Raises:
        UsageError: There is no such unit, results are along different axes, or too many are side by side.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    for result in results.values():
        result.check_shown(units)
    found = _pictures(results if drawn is None else drawn, units, band)
    scripts = [_plotly().read_text(encoding="utf-8"), _part("report.js")]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["coded"] = _coded
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.from_string(_part("report.html")).render(
        runs=[_run(name, result, explained, units, every) for name, result in results.items()],
        kinds=_kinds(found),
        data=_data(found, View(next(iter(results.values())), units, every, _WIDTH, unicode=True).axis[0]),
        notes=[name_of(note, unicode=True) for note in notes],
        statuses=[(one.name.lower(), mark(one, unicode=True), one.meaning, one.remedy) for one in Status],
        explained=explained,
        style=Markup(_part("report.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        plotly=scripts[0].partition("plotly.js ")[2].partition("\n")[0],
    )


def _plotly() -> Path:
    """Return Plotly's script, which its Python package has; the package itself is not loaded.

    Raises:
        ModuleNotFoundError: It is not installed, or holds no script.
    """
    spec = find_spec("plotly")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders if (path := Path(folder) / "package_data" / "plotly.min.js").is_file()]
    if not found:
        raise ModuleNotFoundError("No module named 'plotly'")
    return found[0]


def _part(name: str) -> str:
    return (files("ibscan.views.report") / name).read_text(encoding="utf-8")


def _coded(text: str) -> Any:  # noqa: ANN401 - Markup, of a library that need not be there
    """Return a text of ours with what stands in backquotes as code."""
    from markupsafe import Markup

    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if k % 2 else part for k, part in enumerate(parts))


def shown(value: Any) -> str:  # noqa: ANN401 - decoded JSON
    """Return a setting as one line."""
    if value is None or value in ([], ""):
        return "none"
    if isinstance(value, list) and not any(isinstance(one, list | dict) for one in value):
        return escaped(" ".join(map(str, value)))
    return escaped(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _hash(script: str) -> str:
    """Return how a page names a script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _pictures(results: Mapping[str, Result], units: str, band: bool) -> list[Picture]:
    try:
        return pictures(results, units=units, band=band, every=True)
    except NothingMatched:
        return []


def _data(found: Sequence[Picture], axis: str) -> dict[str, Any]:
    """Return what the script draws: pictures, and what they have in common, such as the name of the series' axis."""
    drawings = [drawing(picture) for picture in found]
    # A picture may be of one result alone.
    most = max((len(picture.runs) for picture in found), default=0)
    curves = [curve for one in drawings for panel in one["panels"] for curve in _curves(panel)]
    return {
        "pictures": drawings,
        "layers": list(dict.fromkeys(curve["layer"] for curve in curves)),
        "runs": next((picture.runs for picture in found if len(picture.runs) == most), ()),
        "band": next((picture.band.removeprefix("band: ") for picture in found if picture.band), "95 % interval"),
        "axis": axis,
        "statuses": {int(status): status.legend for status in Status},
        "marks": {int(status): SYMBOLS[form] for status, form in STATUS_MARKS.items()},
        "markers": [SYMBOLS[form] for form in MARKERS],
        "dashes": dashes(),
        "map": MAP,
    }


def _curves(panel: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*panel.get("curves", ()), *(curve for frame in panel.get("frames", ()) for curve in frame["curves"])]


def _kinds(found: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return the pictures by their kind, with what is said of them; `place` is that among all."""
    made: dict[str, dict[str, Any]] = {}
    for place, picture in enumerate(found):
        kind = made.setdefault(picture.kind, {"name": picture.kind, "title": "", "pictures": []})
        kind["title"] = figures()[picture.kind].title
        kind["pictures"].append(
            {
                "place": place,
                "title": picture.title,
                "notes": picture.notes,
                "signs": signs(picture),
                "slides": len(picture.places),
            }
        )
    return list(made.values())


def _run(name: str, result: Result, explained: Explained, units: str, every: bool) -> dict[str, Any]:
    """Return what the page says of one result beside figures."""
    view = View(result, units, every, _WIDTH, unicode=True)
    attributes = [
        (escaped(key), escaped(str(value))) for key, value in result.attrs.items() if key not in _OWN_ATTRIBUTES
    ]
    measured = {key: value for key, value in result.settings.items() if key != "measures"}
    return {
        "name": name_of(name, unicode=True),
        "facts": facts(view),
        "summary": [grid(sheet) for sheet in SUMMARY.sheets(view)],
        "tables": _tables(view),
        "attributes": attributes,
        "identity": [(key, shown(value)) for key, value in measured.items()],
        "settings": explained.settings.get(name, ()),
        "checkpoints": _checkpoints(view),
    }


def _tables(view: View) -> list[Grid]:
    return [grid(sheet) for table in tables() if table.shown is Shown.FULL for sheet in table.sheets(view)]


def _checkpoints(view: View) -> list[tuple[str, str, str]]:
    """Return place on the axis, name and hash of every checkpoint."""
    names, hashes = (view.result[key].values.tolist() for key in ("checkpoint_name", "checkpoint_sha256"))
    return [
        (label, name_of(str(name), unicode=True), escaped(str(digest)))
        for label, name, digest in zip(view.axis[1], names, hashes, strict=True)
    ]
