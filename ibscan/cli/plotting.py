"""`ibscan plot`: read results, select from them, and write their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ibscan.cli.selection import read_selected
from ibscan.core.text import listed, told_apart
from ibscan.errors import UsageError

if TYPE_CHECKING:
    from ibscan.core.result import Result
    from ibscan.views.figures.picture import Picture

__all__ = ["plotted", "results_of"]

_FOLDER = Path("ibscan-figures")


def plotted(options: Mapping[str, Any], default: Path) -> int:
    """Draw results as the options say, and say where the figures are.

    Args:
        options: Of the command, by name.
        default: The result drawn where none is named.

    Returns:
        The exit code.

    Raises:
        UsageError: The library for drawing is not installed, an option cannot be read, or a place cannot be written.
        InputError: A result cannot be read.
        NothingMatched: There is nothing to draw.
    """
    from ibscan.cli.output import say
    from ibscan.results.store import write_bytes
    from ibscan.views.figures import pictures
    from ibscan.views.figures.draw import check_library, encoded

    check_library()
    place: Path = options["output"] or _FOLDER
    single = place.suffix.lower().removeprefix(".") if _is_file(place) else ""
    results = results_of(options, default)
    kinds, variables = (tuple(options[name] or ()) for name in ("kind", "variable"))
    found = pictures(results, kinds=kinds, variables=variables, units=options["units"], band=options["band"])
    if single:
        _check_one(found, place)
    else:
        _make_folder(place)
    for picture in found:
        target = place if single else place / f"{_file_name(picture.name)}.{options['format']}"
        write_bytes(encoded(picture, single or options["format"], style=options["style"]), target)
    if not options["quiet"]:
        count = f"{len(found)} figure{'s' if len(found) > 1 else ''}"
        say(f"written to {place}" if single else f"{count} written to {place}")
    return 0


def results_of(options: Mapping[str, Any], default: Path) -> dict[str, Result]:
    """Read the results that options name, and keep what they select of them.

    Raises:
        UsageError: A name or a selection cannot be read.
        InputError: A result cannot be read.
        NothingMatched: A selection matches nothing.
    """
    paths = _named(options["results"] or [], options["run"] or [], default)
    return {name: read_selected(path, options["layers"], options["epochs"]) for name, path in paths.items()}


def _is_file(place: Path) -> bool:
    """Tell whether figures go to one file, by its suffix.

    Raises:
        UsageError: It looks like a file of another format.
    """
    from ibscan.views.figures.draw import FORMATS

    suffix = place.suffix.lower().removeprefix(".")
    if not suffix or place.is_dir():
        return False
    if suffix not in FORMATS:
        raise UsageError(f"-o {place}: .{suffix} is no format of figures; expected .png, .svg, .pdf, or a folder.")
    return True


def _check_one(found: Sequence[Picture], place: Path) -> None:
    """Check that one figure fits a request for one file.

    Raises:
        UsageError: Several do.
    """
    if len(found) > 1:
        kinds = list(dict.fromkeys(picture.kind for picture in found))
        if len(kinds) > 1:
            remedy = f"name one with --kind ({listed(kinds, 12)})"
        elif found[0].part and found[0].part not in found[0].variables:
            remedy = "draw one result alone"
        else:
            parts = [picture.part or picture.variables[0] for picture in found]
            remedy = f"name one with --variable ({listed(parts, 12)})"
        raise UsageError(f"-o {place}: {len(found)} figures fit; {remedy}, or give a folder.")


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"-o {place}: the folder cannot be made ({error.strerror or error}). Name another place."
        ) from error


def _file_name(name: str) -> str:
    """Return a name for a file: metrics may have any letters."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in name)[:200]


def _named(paths: Sequence[Path], named: Sequence[str], default: Path) -> dict[str, Path]:
    """Return results by the names that legends give them: the end of a path, as long as tells them apart.

    Raises:
        UsageError: A name cannot be read, or stands twice.
    """
    given: dict[str, Path] = {}
    for text in named:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or name in given:
            raise UsageError(f"--run {text}: expected NAME=FILE, with a name that no other has.")
        given[name] = Path(file)
    if not paths and not given:
        return {default.stem: default}
    for path, name in zip(paths, told_apart(paths), strict=True):
        given[name if name not in given else str(path)] = path
    return given
