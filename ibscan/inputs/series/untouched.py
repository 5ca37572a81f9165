"""A run's folder while somebody's code runs: its files stay as they are, or the command stops and says what changed."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.core.text import listed
from ibscan.errors import IbscanError, InputError
from ibscan.inputs.code.load import is_code
from ibscan.inputs.code.sources import files_of
from ibscan.inputs.formats.recognise import is_claimed
from ibscan.inputs.series.discovery import TEMPORARY
from ibscan.inputs.series.duplicates import repeats

__all__ = ["untouched"]

# A folder of more files than that is not looked through to its end.
MOST_FILES, MOST_NAMED = 20_000, 5
# What a training that goes on does not rewrite, beside numbered checkpoints.
LASTING = (".py", ".toml", ".npz", ".npy", ".ipynb")
# What a live progress line writes to the terminal is far less than so many bytes a second.
TERMINAL_BYTES = 4096
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class _Stamp:
    """A file as the system has it; another one means other content."""

    inode: int
    size: int
    modified: int


@contextlib.contextmanager
def untouched(paths: Sequence[Path], spec: str, option: str, *, growing: bool, proven: bool = False) -> Iterator[None]:
    """Run the code that a spec names, if any, and hold files beside it and in the run's folders to what they were.

    Where a training goes on in the folder, it changes files too. It is told from the code by how much this process has
    written meanwhile, where the system says so.

    Args:
        paths: The run's folders, or files in them.
        spec: `module:callable` or `path.py:callable`; there is nothing to hold where it is something else.
        option: What named it, for a message.
        growing: Checkpoints are awaited: files that come and go are not the code's.
        proven: Blame the code for nothing but what this process is seen to do, since it runs for minutes, in which
            others may change the folder: files opened for writing, moved and deleted, as Python's audit events tell,
            and as many bytes written as a file holds, which is what libraries beside Python do.

    Raises:
        InputError: Files were changed, deleted or added, with what the code raised, if it did.
    """
    if not is_code(spec) or spec.startswith("mlp:"):
        yield
        return
    # The code may change to another directory.
    paths = [path.absolute() for path in paths]
    folders = {path if path.is_dir() else path.parent: True for path in paths}
    place = spec.rpartition(":")[0]
    files = [Path(place)] if place.endswith(".py") else [file for _, file in files_of(place)]
    folders = {**{file.absolute().parent: False for file in files}, **folders}
    before, written, began = _state(folders), _written(), time.monotonic()
    own_written = _written("thread-self")
    deeds = _deeds()

    def changes() -> str:
        wrote = _since(written, _written())
        if proven:
            spared = (wrote or 0) - int(TERMINAL_BYTES * (time.monotonic() - began))
            wrote = max(spared, _since(own_written, _written("thread-self")) or 0, 0)
        done = frozenset(deeds.paths) if proven else None
        return _told(_changes(before, _state(folders), wrote, growing=growing, done=done), f"{option} {spec}")

    try:
        with deeds.watched():
            yield
    except IbscanError as error:
        if said := changes():
            kind = InputError if isinstance(error, InputError) else type(error)
            raise kind(f"{error} {said}") from error
        raise
    if said := changes():
        raise InputError(said)


def _told(changes: Mapping[str, Sequence[str]], where: str) -> str:
    parts = []
    for how, names in changes.items():
        if names:
            parts.append(f"{listed(names, MOST_NAMED)} {'was' if len(names) == 1 else 'were'} {how}")
    if not parts:
        return ""
    return (
        f"{where}: while this code ran, {'; '.join(parts)}. Code that is named here must leave the run's files as they "
        'are, so this stopped: take the writing out of it, or put it under `if __name__ == "__main__":`. If it was a '
        "training that goes on, add --follow."
    )


def _changes(
    before: Mapping[Path, _Stamp],
    after: Mapping[Path, _Stamp],
    wrote: int | None,
    *,
    growing: bool,
    done: frozenset[str] | None,
) -> dict[str, list[str]]:
    """Return the names of files changed, deleted and added, where this process may have done it.

    Args:
        before: The files as they were.
        after: The files as they are.
        wrote: Bytes this process has written since, None where that is not known.
        growing: Files that come and go are not the code's.
        done: Files that this process opened for writing, moved or deleted, where nothing else is held against it but
            the bytes written.
    """

    def ours(path: Path, was: _Stamp, now: _Stamp) -> bool:
        if done is not None:
            return os.path.realpath(path) in done or 0 < now.size <= (wrote or 0)
        lasts = (is_claimed(path.name) and not repeats(path.name)) or path.suffix in LASTING
        if wrote is None or (lasts and not growing):
            return lasts or not growing
        # Logs grow at their end; a checkpoint is written whole.
        longer = now.size > was.size and now.inode == was.inode and not is_claimed(path.name)
        return wrote >= (now.size - was.size if longer else now.size)

    found: dict[str, list[str]] = {"changed": [], "deleted": [], "added": []}
    for path, now in sorted(after.items()):
        was = before.get(path)
        if was is None:
            if done is not None:
                found["added"] += [path.name] if ours(path, now, now) else []
            elif not growing and (wrote is None or wrote >= now.size):
                found["added"].append(path.name)
        elif was != now and ours(path, was, now):
            found["changed"].append(path.name)
    gone = sorted(path for path in before.keys() - after.keys() if not TEMPORARY.search(path.name))
    if done is not None:
        gone = [path for path in gone if os.path.realpath(path) in done]
    found["deleted"] = [] if growing and done is None else [path.name for path in gone]
    return found


def _state(folders: Mapping[Path, bool]) -> dict[Path, _Stamp]:
    """Return the files of folders, and of those directly in them where that is said: a checkpoint may be a folder."""
    found: dict[Path, _Stamp] = {}
    left = list(folders.items())
    while left and len(found) < MOST_FILES:
        folder, deeper = left.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith(".parts") or entry.name == "__pycache__":
                    continue
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        left += [(Path(entry.path), False)] if deeper else []
                    elif entry.is_file():
                        stat = entry.stat()
                        found[Path(entry.path)] = _Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


@dataclass
class _Deeds:
    """The files that this process opens for writing, moves or deletes while it is watched, by their real paths."""

    paths: set[str] = field(default_factory=set)
    watching: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take note until the block ends; the notes of a block before it go."""
        self.paths.clear()
        self.watching += 1
        try:
            yield
        finally:
            self.watching -= 1

    def note(self, event: str, arguments: Sequence[object]) -> None:
        """Take note of one of Python's audit events."""
        if not self.watching or event not in ("open", "os.remove", "os.rename", "os.truncate", "os.link"):
            return
        flags = arguments[2] if event == "open" else WRITING
        if isinstance(flags, int) and flags & WRITING:
            named = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
            paths = [path for path in named if isinstance(path, str | bytes | os.PathLike)]
            with contextlib.suppress(OSError, ValueError):
                self.paths.update(os.path.realpath(os.fsdecode(path)) for path in paths)


@functools.cache
def _deeds() -> _Deeds:
    """Return the one record of this process: an audit hook cannot be taken away again."""
    deeds = _Deeds()
    sys.addaudithook(deeds.note)
    return deeds


def _since(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else now - before


def _written(of: str = "self") -> int | None:
    """Return how many bytes this process, or thread, has written, to anything; and the children it waited for.

    None where the system does not say.
    """
    try:
        lines = Path(f"/proc/{of}/io").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
