"""The table of the slope of noisy information beside its limit, local rank, at the last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from ibscan.views.cells import number
from ibscan.views.channels import NOISY, channel_columns, largest_error, leading, noise_groups
from ibscan.views.column import column
from ibscan.views.layout import Sheet, Table, by_layer
from ibscan.views.view import View, measured_indices, terms

__all__ = ["TABLE"]

_NOTE = (
    "slope: -dI(X; T+Z)/d ln noise. Its limit for noise -> 0 is local rank at {eps} -> 0 where the network is "
    "piecewise linear and X has a density; on a probe of finitely many rows only while the noise is well above the "
    "spacing of the points, below which it goes to 0. {eps} counts singular values of the Jacobian J, noise softly "
    "those of J C^(1/2), C the covariance of X."
)


def _sheets(view: View) -> Iterator[Sheet]:
    """Yield a sheet where both were measured at the same place, and on the whole input."""
    ranks = measured_indices(view, "local_rank", "eps")
    attrs = view.result["local_rank"].attrs if ranks else {}
    # The slope at post does not tend to a rank at pre, from a layer, or on a subspace.
    whole = attrs.get("from", "input") == "input" and attrs.get("input_dims", 0) == 0
    found = [columns for channel in leading(view, NOISY) if (columns := channel_columns(view, channel, "slope"))]
    of = [view.result[columns[0].key].attrs for columns in found]
    alike = [k for k, one in enumerate(of) if attrs.get("at") and one.get("at") == attrs["at"]]
    if not alike or not whole:
        return
    found, rows = [found[k] for k in alike], of[alike[0]].get("rows")
    thresholds = view.result["eps"].values.tolist()
    groups = noise_groups(view, found, prefix="slope, ")
    groups.append(("local rank", [column(view, "local_rank", (view.eps, f"{thresholds[k]:g}"), k) for k in ranks]))
    other = f"local rank on {attrs['rows']}" if attrs.get("rows") and attrs["rows"] != rows else ""
    notes = [_NOTE.format(eps=view.eps)]
    error = largest_error(view, [one for columns in found for one in columns], last=True)
    notes += [f"Standard errors of the slope up to {number(error)}."] if error is not None else []
    under = ", ".join(part for part in (terms(view, found[0][0].key), other) if part)
    yield by_layer(view, (TABLE.title, under), groups, notes)


TABLE = Table(
    "slope of noisy information beside local rank",
    {},
    _sheets,
    {
        "slope": "-dI(X; T+Z)/d ln noise, of the channel named behind it.",
        "local rank": "Mean number of singular values of the Jacobian above {eps}.",
    },
)
