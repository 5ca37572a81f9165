"""Read the manifest `ibscan.toml` of a series."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ibscan.errors import InputError, UsageError
from ibscan.inputs.code.load import is_code
from ibscan.inputs.files import exists, small_text
from ibscan.inputs.folder.pattern import compiled_pattern
from ibscan.inputs.probes.arguments import KNOWN as PROBE_ARGUMENTS
from ibscan.inputs.probes.arguments import checked_arguments
from ibscan.inputs.probes.probe_keys import split_spec

__all__ = ["Manifest", "read_manifest"]

KEYS: dict[str, dict[str, type[Any]]] = {
    "model": {"spec": str, "args": dict, "chain": str},
    "probe": {"path": str, **dict.fromkeys(PROBE_ARGUMENTS, object)},
    "series": {"pattern": str, "axis": str},
}
WORDS: dict[type[Any], str] = {str: "a string", dict: "a table"}


@dataclass(frozen=True)
class Manifest:
    """The entries of `ibscan.toml`; absent ones are None or empty.

    `probe_path` is resolved and absolute, or `module:callable`; `probe_selection` is the text after its `#`.
    """

    path: Path
    model_spec: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    chain: str | None = None
    probe_path: Path | None = None
    probe_selection: str = ""
    probe_arguments: Mapping[str, Any] = field(default_factory=dict)
    pattern: str | None = None
    axis: str | None = None


def read_manifest(folder: Path, *, trust: bool) -> Manifest | None:
    """Read `ibscan.toml` of a run folder, or return None without one.

    With `trust` (`--trust`), a probe may be code, or lie outside the folder.

    Raises:
        UsageError: Unknown key, wrong type, broken TOML.
        InputError: The probe lies outside the folder or is code, or the file may not be read or has over 1 MiB.
    """
    path = folder / "ibscan.toml"
    if not path.exists() and not path.is_symlink():
        return None
    tables = _tables(path)
    model, probe, series = (tables.get(name, {}) for name in ("model", "probe", "series"))
    named = probe.get("path", "")
    file, selection = (named, "") if exists(str(folder / named)) else split_spec(named)
    if series.get("pattern") is not None:
        compiled_pattern(series["pattern"], str(path))
    if series.get("axis") in ("", "index"):
        raise UsageError(
            f"{path}: axis is {series['axis']!r}, but epoch, step, or the NAME of {{value:NAME}} was expected."
        )
    arguments = {key: value for key, value in probe.items() if key != "path"}
    return Manifest(
        path=path,
        model_spec=model.get("spec"),
        model_args=model.get("args", {}),
        chain=model.get("chain"),
        probe_path=_probe_path(folder, file, selection, path, trust=trust) if file else None,
        probe_selection=selection,
        probe_arguments=checked_arguments(arguments, f"{path}, [probe]"),
        pattern=series.get("pattern"),
        axis=series.get("axis"),
    )


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    text = small_text(path)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no readable TOML ({error}); mend it or move it away.") from None
    for name, table in tables.items():
        if name not in KEYS:
            raise UsageError(f"{path}: [{name}] is not known; known are {', '.join(f'[{known}]' for known in KEYS)}.")
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {name} is {table!r}, but a table [{name}] was expected.")
        for key, value in table.items():
            _check_entry(path, name, key, value)
    return tables


def _check_entry(path: Path, table: str, key: str, value: Any) -> None:  # noqa: ANN401 - decoded TOML
    if key not in KEYS[table]:
        raise UsageError(f"{path}: {key!r} in [{table}] is not known; known are {', '.join(KEYS[table])}.")
    wanted = KEYS[table][key]
    if not isinstance(value, wanted):
        raise UsageError(f"{path}: {key} in [{table}] is {value!r}, but {WORDS[wanted]} was expected.")


def _probe_path(folder: Path, file: str, selection: str, path: Path, *, trust: bool) -> Path:
    """Return the probe's path: a file in the folder; anything else, above all code, only with `trust`."""
    inside = folder / file
    # `module:callable` is no path, but `path.py:callable` holds one.
    if is_code(file) and not exists(str(inside)) and not file.rpartition(":")[0].endswith(".py"):
        found = Path(file)
    else:
        found = _inside(folder, file, path, trust=trust)
    # As it will be read later: no spelling of a path may turn out to be code.
    spec = split_spec(f"{found}#{selection}" if selection else str(found))[0]
    if not trust and (is_code(spec) or (is_code(file) and not exists(str(inside)))):
        raise InputError(
            f"{path}: the probe {file!r} is code, and code named by files is not run unasked; give it as --probe, or "
            "add --trust if you trust whoever wrote it."
        )
    return found


def _inside(folder: Path, file: str, path: Path, *, trust: bool) -> Path:
    try:
        resolved = (folder / file).resolve()
        outside = not resolved.is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: the probe path {file!r} cannot be followed ({error}).") from None
    if (outside or Path(file).is_absolute()) and not trust:
        raise InputError(
            f"{path}: the probe path {file!r} leads outside the folder, to {resolved}; "
            "give it as --probe, or allow it with --trust if you trust whoever wrote this file."
        )
    return resolved
