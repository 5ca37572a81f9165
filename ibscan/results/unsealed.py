"""Reads a result without a seal in a process of its own: `python -P -m ibscan.results.unsealed PATH`.

Of 1500 results with one to three damaged bytes and no seal, 7 made the HDF5 library end its process, which no `except`
catches. Here that costs a child process. Standard output: the packed result, or a line of JSON with what is wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py

from ibscan.errors import InputError
from ibscan.results.decode import decoded
from ibscan.results.packed import packed, unpacked
from ibscan.types import Result

__all__ = ["read_apart"]

MODULE = ("-P", "-m", "ibscan.results.unsealed")
# Far beyond any result; a damaged file may send the library round in circles, or ask for all memory.
SECONDS, BYTES = 60, 8 << 30


def read_apart(path: Path) -> Result:
    """Read a result in a child process, trusting nothing in it.

    Args:
        path: A regular file.

    Returns:
        The result.

    Raises:
        InputError: Damaged, foreign or newer.
    """
    # What this process imports from, the child shall import from; never from the working folder.
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, *MODULE, os.fspath(path.absolute()), os.fspath(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # No plugins: the filters they would bring are refused anyway.
        env={**os.environ, "PYTHONPATH": places, "HDF5_PLUGIN_PRELOAD": "::"},
        check=False,
        # An interrupt from the terminal is for this process.
        start_new_session=True,
    )
    if done.returncode == 0 and done.stdout.startswith(b"{"):
        raise InputError(json.loads(done.stdout)["error"])
    result = unpacked(io.BytesIO(done.stdout), "") if done.returncode == 0 else None
    if result is None:
        what = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        over = done.returncode == -getattr(signal, "SIGXCPU", 0)
        raise InputError(
            f"{path}: is no readable result file of ibscan ("
            f"{'reading it does not come to an end' if over else f'the HDF5 library broke down on it, {what}'})."
        )
    return result


def main() -> None:
    """Answer for the path in the arguments, which the second one names in messages."""
    _, path, where = sys.argv
    _limit()
    try:
        with h5py.File(path, "r", locking=False) as file:
            answer = packed(decoded(file, Path(path).stat().st_size, where), "")
    except InputError as error:
        answer = json.dumps({"error": str(error)}).encode()
    except Exception as error:  # noqa: BLE001 - the boundary to foreign HDF5: h5py raises nearly anything
        what = " ".join(str(error).split())[:200]
        told = f"{where}: is not a readable result file of ibscan ({what}); expected whole HDF5 with format='ibscan'."
        answer = json.dumps({"error": told}).encode()
    sys.stdout.buffer.write(answer)


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
