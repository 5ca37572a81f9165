"""Local rank, binned and noisy-channel mutual information, and clustering of saved checkpoints.

Importing the package is cheap: torch comes in with the first name that needs it.
"""

# No other library is imported here: under `python -m ibscan` the working folder, which may hold a file of its name,
# is first on the path until __main__ has removed it.
import importlib

from ibscan._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ibscan.errors import IbscanError
    from ibscan.face.files import opened
    from ibscan.face.run import Run
    from ibscan.face.runs import Runs
    from ibscan.face.scan import cluster, mi, rank, scan
    from ibscan.training.noisy import noisy
    from ibscan.training.save import save

    open = opened  # no part of a star import, where it would replace the builtin

__all__ = ["IbscanError", "Run", "Runs", "__version__", "cluster", "mi", "noisy", "rank", "save", "scan"]

_HOMES = dict.fromkeys(("cluster", "mi", "rank", "scan"), "ibscan.face.scan") | {
    "IbscanError": "ibscan.errors",
    "Run": "ibscan.face.run",
    "Runs": "ibscan.face.runs",
    "noisy": "ibscan.training.noisy",
    "open": "ibscan.face.files",
    "save": "ibscan.training.save",
}


def __getattr__(name: str) -> "Any":  # noqa: ANN401 - a module's attribute may be anything
    if name not in _HOMES:
        raise AttributeError(f"module 'ibscan' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), {"open": "opened"}.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])
