"""The table of local rank beside its bounds, at the last checkpoint: layers down, thresholds across."""

from __future__ import annotations

from collections.abc import Iterator

from ibscan.views.column import column
from ibscan.views.layout import Sheet, Table, by_layer, explained
from ibscan.views.view import View, is_measured, terms

__all__ = ["TABLE"]

_OVER_EPS = {
    "local_rank": "LR",
    "rank_bound_jacobian": "by J",
    "weight_rank": "W",
    "rank_bound_frobenius": "by F",
    "rank_limit_statement": "limit",
}
_ALONE = {"rank_bound_weights": ("least", "rank"), "weight_stable_rank": ("stable", "rank")}


def _sheets(view: View) -> Iterator[Sheet]:
    """Yield a sheet where ranks of weights and of the input Jacobian were measured."""
    result = view.result
    both = is_measured(view, "local_rank", "eps") and is_measured(view, "weight_rank", "eps")
    if not both or result["local_rank"].attrs.get("from", "input") != "input":
        return
    heads = {key: head for key, head in _OVER_EPS.items() if is_measured(view, key, "eps")}
    groups = [
        (f"{view.eps} {eps:g}", [column(view, key, (head,), index) for key, head in heads.items()])
        for index, eps in enumerate(result["eps"].values.tolist())
    ]
    groups.append(("weights", [column(view, key, heads) for key, heads in _ALONE.items() if is_measured(view, key)]))
    rows = result["rank_bound_jacobian"].attrs.get("rows", 0) if "rank_bound_jacobian" in result else 0
    note = explained(TABLE.heads).format(eps=view.eps, rows=rows)
    yield by_layer(view, (TABLE.title, terms(view, "local_rank")), groups, [note])


TABLE = Table(
    "local rank and its bounds",
    {
        "LR": "local rank.",
        "by J": "mean number of singular values of the weight above {eps} over the norm of the Jacobian of what feeds "
        "the layer, which bounds LR of the same {rows} rows.",
        "W": "the weight's singular values above {eps}.",
        "by F": "their bound ||W||_F^2/{eps}^2.",
        "limit": "2 ||W||_2^2/{eps}^2, a statement about some layer of a minimum-norm solution as depth goes to "
        "infinity, and no bound on this network.",
        "least rank": "the smallest rank of the weights up to the layer, which bounds LR as {eps} goes to 0.",
        "stable rank": "||W||_F^2/||W||_2^2.",
    },
    _sheets,
    {"weights": "Ranks of the weights alone, which do not depend on {eps}."},
)
