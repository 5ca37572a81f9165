"""Local rank beside what bounds it, at the last checkpoint: layers down, thresholds across."""

from __future__ import annotations

from rich.console import Group as Stack

from ibscan.views.frame import Frame, measured, terms
from ibscan.views.grid import Group
from ibscan.views.last import last_column, last_table

__all__ = ["bounds_table"]

_OVER_EPS = {
    "local_rank": "LR",
    "rank_bound_jacobian": "by J",
    "weight_rank": "W",
    "rank_bound_frobenius": "by F",
    "rank_limit_statement": "limit",
}
_ALONE = {"rank_bound_weights": ("least", "rank"), "weight_stable_rank": ("stable", "rank")}
_NOTE = (
    "LR: local rank. by J: mean number of singular values of the weight above {eps} over the norm of the Jacobian of "
    "what feeds the layer, which bounds LR of the same {rows} rows. W: the weight's singular values above {eps}. by F: "
    "their bound ||W||_F^2/{eps}^2. limit: 2 ||W||_2^2/{eps}^2, a statement about some layer of a minimum-norm "
    "solution as depth goes to infinity, and no bound on this network. least rank: the smallest rank of the weights up "
    "to the layer, which bounds LR as {eps} goes to 0. stable rank: ||W||_F^2/||W||_2^2."
)


def bounds_table(frame: Frame) -> Stack | None:
    """Return a table of local rank, the ranks of the weights, and the bounds and the statement that go with them.

    Args:
        frame: The result and how it is shown; only its last checkpoint is.

    Returns:
        The table; None where ranks of weights were not measured, or local rank is not that of the input Jacobian.
    """
    result = frame.result
    both = measured(frame, "local_rank", "eps") and measured(frame, "weight_rank", "eps")
    if not both or result["local_rank"].attrs.get("from", "input") != "input":
        return None
    sign = "ε" if frame.unicode else "eps"
    groups = []
    for place, eps in enumerate(result["eps"].values.tolist()):
        heads = {name: head for name, head in _OVER_EPS.items() if measured(frame, name, "eps")}
        columns = [last_column(frame, name, (head,), place) for name, head in heads.items()]
        groups.append(Group(f"{sign} {eps:g}", tuple(columns)))
    alone = [last_column(frame, name, heads) for name, heads in _ALONE.items() if measured(frame, name)]
    groups.append(Group("weights", tuple(alone)))
    rows = result["rank_bound_jacobian"].attrs.get("rows", 0) if "rank_bound_jacobian" in result else 0
    title = ("local rank and its bounds", terms(frame, "local_rank"))
    return last_table(frame, title, groups, [_NOTE.format(eps=sign, rows=rows)])
