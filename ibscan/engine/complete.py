"""Plan a scan, or say at once all that its request lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from ibscan.core.records import Series
from ibscan.engine.hints import check_name, ordered_chain
from ibscan.engine.model_spec import stated_model
from ibscan.engine.plan import Plan, ResolvedInputs, plan_of, probe_of, resolved_inputs
from ibscan.engine.request import Reporter, Request
from ibscan.engine.series import series_of
from ibscan.errors import IbscanError, InputError, UsageError

__all__ = ["planned"]

T = TypeVar("T")
# Options without which nothing more could be found out, and the fields of a request that they set.
FIRST = {"--weights": "weights", "--state-key": "state_key", "--probe": "probe"}


def planned(request: Request, reporter: Reporter) -> Plan:
    """Read and check everything a request names; `reporter` hears what was skipped, sampled or left out.

    Raises:
        UsageError: The request contradicts itself or the inputs, or the output may not be written. Its message has all
            that is missing, and its options what would complete the command line.
        InputError: An input cannot be used, or probe and model do not fit; likewise.
        NothingMatched: An empty folder or a filter that matches nothing.
    """
    faults: list[IbscanError] = []
    resolved, request = _tried(resolved_inputs, request, faults)
    series, request = _tried(lambda r: series_of(r, resolved.manifest, exclude=resolved.exclude), request, faults)
    for step in (lambda: _check_model(request, resolved, series), lambda: probe_of(request, resolved)):
        try:
            found = step()
        except (UsageError, InputError) as error:
            faults.append(error)
    if faults:
        raise _all_of(faults)
    assert found is not None
    return plan_of(request, reporter, resolved, series, found)


def _tried(step: Callable[[Request], T], request: Request, faults: list[IbscanError]) -> tuple[T, Request]:
    """Return what a step finds, and the request; where it lacks an option that the error names, as if it had it."""
    try:
        return step(request), request
    except (UsageError, InputError) as error:
        pairs = zip(error.options[::2], error.options[1::2], strict=True)
        fields: dict[str, Any] = {FIRST[flag]: value for flag, value in pairs if flag in FIRST}
        if not fields:
            raise
        fault, completed = error, dataclasses.replace(request, **fields)
    try:
        found = step(completed)
    except (UsageError, InputError):
        raise fault from None
    faults.append(fault)
    return found, completed


def _check_model(request: Request, resolved: ResolvedInputs, series: Series) -> None:
    """Check that a model is stated in a form that can be found, and the order of a plain chain's layers known."""
    first = series.checkpoints[0]
    sources = request.model, request.model_arg, resolved.manifest, series.checkpoints
    stated = stated_model(*sources, trust=request.trust, chain=request.chain)
    kind = stated.spec.partition(":")[0]
    if kind == "mlp":
        ordered_chain(first, stated.chain)
    elif kind != "hf" and isinstance(request.model, str):
        check_name(request.model, first)


def _all_of(faults: list[IbscanError]) -> IbscanError:
    """Return one error for several, of the kind of the first."""
    if len(faults) == 1:
        return faults[0]
    kind = UsageError if isinstance(faults[0], UsageError) else InputError
    return kind(
        *(sentence for fault in faults for sentence in fault.args),
        options=[word for fault in faults for word in fault.options],
        lines=[line for fault in faults for line in fault.lines],
    )
