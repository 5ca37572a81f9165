"""The table of I(X;T): noisy channels and binning side by side."""

from __future__ import annotations

from functools import partial

from ibscan.views.channels import HEADS
from ibscan.views.information import information_courses, information_sheets
from ibscan.views.layout import Table

__all__ = ["TABLE"]

_TITLE = "mutual information I(X;T)"
TABLE = Table(
    _TITLE,
    HEADS,
    partial(information_sheets, side="xt", title=_TITLE),
    courses=partial(information_courses, side="xt"),
)
