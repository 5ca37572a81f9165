"""`ibscan report`: read results, and write them as one page of HTML with what declarations say of their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibscan._version import __version__
from ibscan.cli.commands import DEFAULT_OUTPUT, app
from ibscan.cli.glossary import explained
from ibscan.cli.options import REPORT, RESULTS, taking
from ibscan.cli.output import say
from ibscan.cli.plotting import results_of
from ibscan.errors import UsageError

if TYPE_CHECKING:
    from ibscan.core.result import Result
    from ibscan.views.report.page import Explained, Setting

__all__ = ["explained_names", "report"]

_PAGE = Path("report.html")
# What mail and reviewers' forms still take; Plotly is five of it.
MOST_BYTES = 8_000_000
# Checkpoints in figures, where all of them would be too many.
_FEWER = (200, 100, 50, 25, 12)


@app.command(add_help_option=False)
@taking(RESULTS, REPORT)
def report(**options: Any) -> int:  # noqa: ANN401 - the signature is made of the option groups
    """One page of HTML for a browser: summary, figures with values on hover, tables, settings, what words mean.

    Examples:
      ibscan report run.h5
      ibscan report run.h5 -o paper.html --layers 'fc[345]'
      ibscan report --run "seed 0"=a.h5 --run "seed 1"=b.h5 --band
    """
    from ibscan.results.store import write_bytes
    from ibscan.views.report.page import check_libraries

    check_libraries()
    place: Path = options["output"] or _PAGE
    if place.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {place}: a report is a page of HTML; expected a name that ends in .html.")
    write_bytes(_page(results_of(options, DEFAULT_OUTPUT), options), place)
    if not options["quiet"]:
        say(f"written to {place}")
    return 0


def _page(results: Mapping[str, Result], options: Mapping[str, Any]) -> bytes:
    """Return the page: figures show fewer checkpoints where all would make it too large.

    Raises:
        UsageError: It is too large even so.
    """
    from ibscan.views.report.page import page

    explained, size = explained_names(results), 0
    for most in (None, *_FEWER):
        drawn, note = (results, []) if most is None else _fewer(results, most)
        if most is not None and not note:
            continue
        content = page(
            results,
            explained,
            drawn=drawn,
            units=options["units"],
            band=options["band"],
            every=options["every"],
            notes=note,
        ).encode("utf-8", "backslashreplace")
        size = len(content)
        if size < MOST_BYTES:
            return content
    raise UsageError(
        f"the page would have {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}; report fewer layers (--layers), "
        "fewer checkpoints (--epochs, without --all) or fewer results."
    )


def _fewer(results: Mapping[str, Result], most: int) -> tuple[dict[str, Result], list[str]]:
    """Keep at most so many checkpoints of every result, and say of how many; say nothing where all are kept."""
    from ibscan.results.axes import checkpoint_keys
    from ibscan.results.select import selected
    from ibscan.views.view import View, thinned

    kept: dict[str, Result] = {}
    notes: list[str] = []
    for name, result in results.items():
        view = View(result, "nats", every=True, width=1, unicode=True)
        chosen = thinned(view.size if view.axis_values is None else view.axis_values, most)
        keys = checkpoint_keys(result)
        kept[name] = selected(result, checkpoints={keys[index] for index in chosen})
        if len(chosen) < view.size:
            said = f"Figures show {len(chosen)} of {view.size} checkpoints of {name}, so that the page stays small"
            notes.append(f"{said}; --epochs chooses others.")
    return kept, notes


def explained_names(results: Mapping[str, Result]) -> Explained:
    """Return what `ibscan explain` says of the names in results, and how they were set."""
    from ibscan.views.report.page import Explained

    keys = dict.fromkeys(key for result in results.values() for key in result.quantities)
    variables: list[tuple[str, Sequence[tuple[str, str]]]] = []
    caveats: dict[str, list[str]] = {}
    for key in keys:
        entry = next((one for one in explained(key) if one.names[0] == key and "variable" in one.kind), None)
        facts = [] if entry is None else [(label, text) for label, text in entry.facts if text]
        if facts:
            variables.append((key, facts))
        if caveat := dict(facts).get("caveat"):
            caveats.setdefault(caveat, []).append(key)
    settings = {name: list(_settings(result)) for name, result in results.items()}
    return Explained(settings, variables, list(caveats.items()), __version__)


def _settings(result: Result) -> Iterator[Setting]:
    """Yield how every measure was set, with what its option says."""
    from ibscan.core.option import settings_of
    from ibscan.measures import MEASURES
    from ibscan.views.console import escaped
    from ibscan.views.report.page import Setting, shown

    declared = {measure.name: {one.field: one for one in settings_of(measure)} for measure in MEASURES}
    stored = result.settings.get("measures")
    for measure, fields in (stored if isinstance(stored, dict) else {}).items():
        for field, value in (fields if isinstance(fields, dict) else {}).items():
            option = declared.get(measure, {}).get(field)
            flag, text = (escaped(field), "") if option is None else (option.flag, option.help)
            yield Setting(escaped(measure), flag, shown(value), text)
