"""How the benchmarks tell the time: CPU seconds in turn, a device by its own events."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from ibscan.numerics.memory import keep_freed


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, object]]:
    """Return the median CPU seconds of every call, taken in turn, and what the last one returned.

    Freed memory stays with the process, as in every command: it does so for all of them.
    """
    keep_freed()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    last: dict[str, object] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            before = time.process_time()
            last[name] = call()
            seconds[name].append(time.process_time() - before)
    return {name: (statistics.median(spent), last[name]) for name, spent in seconds.items()}


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Return seconds a call takes on a device: by its own events, or CPU seconds."""
    if device.type == "cpu":
        return next(iter(interleaved({"": call}, 1).values()))[0]
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop) / 1000


def product_rate(device: torch.device) -> float:
    """Return float64 operations a second of one large matrix product, the best of three after one for nothing."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, dtype=torch.float64, device=device)
    return 2 * size**3 / min([elapsed(lambda: a @ a, device) for _ in range(4)][1:])


def chosen(only: str | None, names: Iterable[str]) -> None:
    """Leave where --only names none of the workloads."""
    if only is not None and only not in names:
        sys.exit(f"--only {only!r}: expected one of {', '.join(names)}.")
