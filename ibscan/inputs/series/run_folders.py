"""Find the run folders inside a folder that holds no checkpoint itself."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ibscan.core.text import natural
from ibscan.errors import InputError
from ibscan.inputs.formats.recognise import is_claimed
from ibscan.inputs.series.discovery import BESIDE, found_in_folder

__all__ = ["run_folders"]

# Folders looked into, entries of one that are listed, and folders between the one named and a run.
MOST_FOLDERS, MOST_ENTRIES, DEEPEST = 500, 2000, 4
# Of environments and caches, which may hold files of weights that are no run.
ELSEWHERE = {"__pycache__", "node_modules", "site-packages", "venv", "env"}


def run_folders(folder: Path, most: int) -> list[Path]:
    """Return up to `most` folders inside a folder that hold checkpoints, in natural order, nearest first."""
    return list(islice(_found(folder), most))


def _found(folder: Path) -> Iterator[Path]:
    waiting = deque((one, 1) for one in _listed(folder)[0])
    looked = 0
    while waiting and looked < MOST_FOLDERS:
        looked += 1
        one, depth = waiting.popleft()
        inner, weights = _listed(one)
        # Names first: a folder of data may have any number of files, and each would be opened.
        if weights or any(_listed(path)[1] for path in inner[:MOST_FOLDERS]):
            try:
                if found_in_folder(one, ()).candidates:
                    yield one
                    continue
            except InputError:
                continue
        if depth < DEEPEST:
            waiting.extend((path, depth + 1) for path in inner)


def _listed(folder: Path) -> tuple[list[Path], bool]:
    """Return the folders in a folder, and whether it has files with names of weights."""
    folders, weights = [], False
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, MOST_ENTRIES):
                if entry.name.startswith(".") or entry.name.endswith(".parts") or entry.name in ELSEWHERE:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(folder / entry.name)
                else:
                    weights = weights or (is_claimed(entry.name) and not BESIDE.match(entry.name))
    except OSError:
        return [], False
    return sorted(folders, key=lambda path: natural(path.name)), weights
