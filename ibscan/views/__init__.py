"""Tables of a result, each one file and one line in `TABLES`, and the progress line.

To add a table, write `ibscan/views/NAME.py` with `TABLE = Table(title, heads, sheets)` (see `ibscan.views.layout`) and
add NAME below. It comes with `--full`, unless its `shown` says otherwise; what it declares as `courses` stands in the
summary, and the leading one in the usual table. Rows, panels, units, marks, thinning and encodings are the layout's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ibscan.views.layout import Table

__all__ = ["TABLES", "columns", "specs"]

# Modules of this package, in the order shown. Names, so that importing the package loads neither numpy nor rich.
TABLES: tuple[str, ...] = (
    "brief",
    "local_rank",
    "rank_bounds",
    "input_information",
    "distinguishable_inputs",
    "projected_information",
    "label_information",
    "information_slope",
    "clustering",
    "distances",
    "declared",
    "summary",
)


def specs() -> tuple[Table, ...]:
    """Load the specification of every table, in the order shown."""
    return tuple(import_module(f"ibscan.views.{name}").TABLE for name in TABLES)


def columns() -> Mapping[str, str]:
    """Return one sentence on every column head, and every name of a group of columns, of all tables.

    Heads are as printed, less their number: `noise 0.1 rms` consists of `noise` and `rms`. Heads that are the symbol of
    a quantity, such as `I(X; T+Z)`, are explained where the quantity is declared.
    """
    from ibscan.views.layout import HEADS

    declared = (HEADS, *(heads for table in specs() for heads in (table.heads, table.groups)))
    return {head: text.format(eps="eps", rows="probe") for heads in declared for head, text in heads.items()}
