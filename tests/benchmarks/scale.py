"""Long series and large checkpoints: `python tests/benchmarks/scale.py`.

Prints, for growing numbers of checkpoints of a small net, the seconds of `ibscan rank` on 64 rows and how many of them
are not spent in measures, those of the same command again, of `ibscan ls`, and the peak of memory; then, for a series
of large files, how long listing takes against hashing alone, and what a scan costs. Every command runs in a process of
its own; imports count neither as time nor as memory. CPU seconds, and in brackets seconds by the clock, in which
waiting for the disk is seen. Large files are read once before, so that they come from memory and not from the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch is imported, and not where a test run merely looks at this file.
if __name__ in ("__main__", "__mp_main__"):
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch
from torch import nn

import ibscan
from ibscan.cli.entry import exit_code
from ibscan.engine import scan as scanning
from ibscan.inputs.files import SETTLED_NS
from ibscan.inputs.series.read import read_series

NARROW = (12, 10, 7, 5, 4, 3, 2)
ROWS, BYTES = 64, 4
REPEATS = 3
# Seconds that a thousand small checkpoints may cost beyond the measuring; what listing may take, in hashings.
BEYOND, OVER_HASHING = 20.0, 1.2
MEGABYTE = 2**20
SMALL_COLUMNS = ("checkpoints", "rank s", "measuring", "beyond", "again", "ls", "peak MB")
LARGE_COLUMNS = ("files", "hashing s", "ls", "ratio", "cluster s", "measuring", "peak MB", "peak MB of 2")


@dataclass(frozen=True)
class Spent:
    """CPU seconds and seconds by the clock."""

    cpu: float
    wall: float

    def __str__(self) -> str:
        return f"{self.cpu:.2f} ({self.wall:.2f})"

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.cpu - other.cpu, self.wall - other.wall)


@contextmanager
def stopwatch(found: list[Spent]) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    found.append(Spent(time.process_time() - cpu, time.perf_counter() - wall))


def peak() -> int:
    """Return the most bytes this process held; what getrusage tells is also its parent's from before it began."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# In a process of its own ---------------------------------------------------------------------------------------------


def command(arguments: list[str]) -> tuple[Spent, Spent, float]:
    """Run a command; return what it took, what of that was spent in measures, and the megabytes it came to hold."""
    # What a first call imports is no part of a series' length.
    import h5py  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401

    whole: list[Spent] = []
    measures: list[Spent] = []
    measure_layers = scanning.measure_layers

    def timed(*given: Any) -> Any:
        with stopwatch(measures):
            return measure_layers(*given)

    vars(scanning)["measure_layers"] = timed
    before = peak()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), stopwatch(whole):
        code = exit_code(arguments)
    assert code == 0, arguments
    grown = (peak() - before) / MEGABYTE
    inside = Spent(sum(one.cpu for one in measures), sum(one.wall for one in measures))
    return whole[0], inside, grown


def apart(arguments: list[object]) -> tuple[Spent, Spent, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(command, [str(argument) for argument in arguments]).result()


# Series --------------------------------------------------------------------------------------------------------------


def chain(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    modules = [m for inputs, outputs in itertools.pairwise(widths) for m in (nn.Linear(inputs, outputs), nn.Tanh())]
    return nn.Sequential(*modules[:-1])


def probe(folder: Path, inputs: int, classes: int) -> None:
    x = np.random.default_rng(0).standard_normal((ROWS, inputs)).astype(np.float32)
    np.savez(folder / "probe.npz", x=x, y=np.arange(ROWS) % classes)


def small_series(folder: Path, checkpoints: int) -> None:
    for epoch in range(checkpoints):
        ibscan.save(folder, chain(*NARROW, seed=epoch), epoch=epoch, metrics={"loss": 1 / (1 + epoch)})
    probe(folder, NARROW[0], NARROW[-1])


def large_series(folder: Path, kind: str, checkpoints: int, megabytes: int) -> None:
    """Write checkpoints of a net with two square layers and a narrow last one."""
    folder.mkdir()
    width = int((megabytes * MEGABYTE / BYTES / 2) ** 0.5)
    model: Any = chain(width, width, width, 10)
    for epoch in range(checkpoints):
        with torch.no_grad():
            model[0].weight.mul_(1.001)
        if kind == "safetensors":
            ibscan.save(folder, model, epoch=epoch)
        else:
            torch.save({"state_dict": model.state_dict(), "epoch": epoch}, folder / f"epoch-{epoch}.pt")
    probe(folder, width, 10)


# Tables --------------------------------------------------------------------------------------------------------------


def part_of(folder: Path, checkpoints: int) -> Path:
    """Return a folder with the first checkpoints and the probe, which take no room of their own."""
    part = folder.with_name(f"{folder.name}-{checkpoints}")
    part.mkdir()
    files = sorted(folder.glob("epoch-*"))[:checkpoints]
    for file in (*files, folder / "probe.npz"):
        (part / file.name).hardlink_to(file)
    return part


def small(folder: Path, most: int) -> None:
    small_series(folder, most)
    print("  ".join(SMALL_COLUMNS))
    for checkpoints in (most // 10, 3 * most // 10, most):
        part = part_of(folder, checkpoints)
        scan = ["rank", part, "--progress", "off", "--spectrum-rows", 4, "-o", folder / f"{checkpoints}.h5"]
        first, measuring, peak = apart(scan)
        again, listing = apart(scan)[0], apart(["ls", part])[0]
        row = (checkpoints, first, measuring, first - measuring, again, listing, f"{peak:.0f}")
        print("  ".join(map(str, row)), flush=True)
    over = (first - measuring).wall
    print(f"beyond the measuring {over:.1f} s by the clock, demanded at most {BEYOND:.0f}")


def hashed(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")


def median(calls: dict[str, Callable[[], object]]) -> dict[str, Spent]:
    """Return the median of every call, taken in turn."""
    found: dict[str, list[Spent]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            with stopwatch(found[name]):
                call()
    return {
        name: Spent(statistics.median(one.cpu for one in spent), statistics.median(one.wall for one in spent))
        for name, spent in found.items()
    }


def large(folder: Path, kind: str, checkpoints: int, megabytes: int) -> None:
    large_series(folder, kind, checkpoints, megabytes)
    files = sorted(folder.glob("epoch-*"))
    hashed(files)
    # A file just written is not taken for settled.
    time.sleep(2 * SETTLED_NS / 1e9)
    spent = median(
        {
            "hashing": lambda: hashed(files),
            "ls": lambda: read_series([folder], exclude=[folder / "probe.npz"]),
        }
    )
    ratio = spent["ls"].cpu / spent["hashing"].cpu
    two = part_of(folder, 2)
    options = ["--model", "mlp:tanh", "--layers", "4", "--progress", "off", "-o"]
    every, measuring, peak = apart(["cluster", folder, *options, folder / "all.h5"])
    peak_two = apart(["cluster", two, *options, folder / "two.h5"])[2]
    row = (f"{len(files)} {kind}", spent["hashing"], spent["ls"], f"{ratio:.2f}", every, measuring)
    print("  ".join(map(str, (*row, f"{peak:.0f}", f"{peak_two:.0f}"))), flush=True)
    # One series at a time: each takes gigabytes.
    shutil.rmtree(two)
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000, help="checkpoints of the small net; 0 for none")
    parser.add_argument("--large", type=int, default=20, help="large checkpoints; 0 for none")
    parser.add_argument("--megabytes", type=int, default=100, help="of a large checkpoint")
    parser.add_argument("--folder", type=Path, default=None, help="where to write them; default a temporary folder")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        if options.small:
            small(place / "small", options.small)
        if options.large:
            print("  ".join(LARGE_COLUMNS))
        for kind in ("safetensors", "torch zip") if options.large else ():
            large(place / "large", kind, options.large, options.megabytes)
        if options.large:
            print(f"listing safetensors files takes at most {OVER_HASHING} times what hashing does, by demand")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
