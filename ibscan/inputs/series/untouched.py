"""Guard the files of a run while user code runs: stop with a message if the code changed any."""

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

# Most files looked at, and most named in a message.
MOST_FILES, MOST_NAMED = 20_000, 5
# Files that a running training does not rewrite, besides numbered checkpoints.
LASTING_SUFFIXES = (".py", ".toml", ".npz", ".npy", ".ipynb")
# A live progress line writes fewer bytes a second to the terminal.
TERMINAL_BYTES = 4096
# Audit events by which a process starts another.
CHILDREN = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.forkpty")
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class _Stamp:
    """Numbers of the file system that change with a file's content."""

    inode: int
    size: int
    modified: int


@contextlib.contextmanager
def untouched(paths: Sequence[Path], spec: str, option: str, *, growing: bool, proven: bool = False) -> Iterator[None]:
    """Compare the files beside user code and in the run's folders before and after the code runs in the block.

    A training that goes on in the folder changes files too; the bytes that this process wrote meanwhile, where the
    system reports them, tell the two apart.

    Args:
        paths: The run's folders, or files in them.
        spec: `module:callable` or `path.py:callable`; anything else needs no guard.
        option: The option that named the spec, for messages.
        growing: Checkpoints are awaited: ignore files that come and go.
        proven: Blame the code only for what this process was seen to do, for code that runs for minutes: files opened
            for writing, moved and deleted, by Python's audit events, and files no larger than the bytes written, for
            libraries that write without Python.

    Raises:
        InputError: Files were changed, deleted or added; with the code's own error, if any.
    """
    if not is_code(spec) or spec.startswith("mlp:"):
        yield
        return
    # The code may change to another directory.
    paths = [path.absolute() for path in paths]
    folders = {path if path.is_dir() else path.parent: True for path in paths}
    source = spec.rpartition(":")[0]
    files = [Path(source)] if source.endswith(".py") else [file for _, file in files_of(source)]
    folders = {**{file.absolute().parent: False for file in files}, **folders}
    before, written, started = _stamps(folders), _written(), time.monotonic()
    own_written = _written("thread-self")
    log = _write_log()

    def changes() -> str:
        bytes_written = _since(written, _written())
        if proven:
            beyond_terminal = (bytes_written or 0) - int(TERMINAL_BYTES * (time.monotonic() - started))
            bytes_written = max(beyond_terminal, _since(own_written, _written("thread-self")) or 0, 0)
        # What a child process does, only its parent could be asked.
        logged = frozenset(log.paths) if proven and not log.has_children else None
        return _message(
            _changes(before, _stamps(folders), bytes_written, growing=growing, logged=logged), f"{option} {spec}"
        )

    try:
        with log.watched():
            yield
    except IbscanError as error:
        if message := changes():
            kind = InputError if isinstance(error, InputError) else type(error)
            raise kind(f"{error} {message}") from error
        raise
    if message := changes():
        raise InputError(message)


def _message(changes: Mapping[str, Sequence[str]], where: str) -> str:
    parts = []
    for change, names in changes.items():
        if names:
            parts.append(f"{listed(names, MOST_NAMED)} {'was' if len(names) == 1 else 'were'} {change}")
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
    bytes_written: int | None,
    *,
    growing: bool,
    logged: frozenset[str] | None,
) -> dict[str, list[str]]:
    """Return the names of files changed, deleted and added, where this process may have done it.

    `bytes_written` is None if unknown. If `logged` is given (files that this process opened for writing, moved or
    deleted), only these and the bytes written count.
    """

    def is_ours(path: Path, was: _Stamp, now: _Stamp) -> bool:
        # Logs grow at their end; a checkpoint is written whole.
        has_grown = now.size > was.size and now.inode == was.inode and not is_claimed(path.name)
        least = now.size - was.size if has_grown else now.size
        if logged is not None:
            return os.path.realpath(path) in logged or 0 < least <= (bytes_written or 0)
        is_lasting = (is_claimed(path.name) and not repeats(path.name)) or path.suffix in LASTING_SUFFIXES
        if bytes_written is None or (is_lasting and not growing):
            return is_lasting or not growing
        return bytes_written >= least

    found: dict[str, list[str]] = {"changed": [], "deleted": [], "added": []}
    for path, now in sorted(after.items()):
        was = before.get(path)
        if was is None:
            if logged is not None:
                found["added"] += [path.name] if is_ours(path, now, now) else []
            elif not growing and (bytes_written is None or bytes_written >= now.size):
                found["added"].append(path.name)
        elif was != now and is_ours(path, was, now):
            found["changed"].append(path.name)
    gone = sorted(path for path in before.keys() - after.keys() if not TEMPORARY.search(path.name))
    if logged is not None:
        gone = [path for path in gone if os.path.realpath(path) in logged]
    found["deleted"] = [] if growing and logged is None else [path.name for path in gone]
    return found


def _stamps(folders: Mapping[Path, bool]) -> dict[Path, _Stamp]:
    """Return the stamps of files in folders, and in their subfolders where asked: a checkpoint may be a folder."""
    found: dict[Path, _Stamp] = {}
    pending = list(folders.items())
    while pending and len(found) < MOST_FILES:
        folder, with_subfolders = pending.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.endswith(".parts") or entry.name == "__pycache__":
                    continue
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        pending += [(Path(entry.path), False)] if with_subfolders else []
                    elif entry.is_file():
                        stat = entry.stat()
                        found[Path(entry.path)] = _Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


@dataclass
class _WriteLog:
    """A log of the real paths of files that this process opens for writing, moves or deletes, and of children."""

    paths: set[str] = field(default_factory=set)
    has_children: bool = False
    watching: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Log anew until the block ends."""
        self.paths.clear()
        self.has_children = False
        self.watching += 1
        try:
            yield
        finally:
            self.watching -= 1

    def record(self, event: str, arguments: Sequence[object]) -> None:
        """Log one of Python's audit events."""
        if self.watching and event in CHILDREN:
            self.has_children = True
        if not self.watching or event not in ("open", "os.remove", "os.rename", "os.truncate", "os.link"):
            return
        flags = arguments[2] if event == "open" else WRITE_FLAGS
        if isinstance(flags, int) and flags & WRITE_FLAGS:
            named = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
            paths = [path for path in named if isinstance(path, str | bytes | os.PathLike)]
            with contextlib.suppress(OSError, ValueError):
                self.paths.update(os.path.realpath(os.fsdecode(path)) for path in paths)


@functools.cache
def _write_log() -> _WriteLog:
    """Return the only log of this process: an audit hook cannot be removed."""
    log = _WriteLog()
    sys.addaudithook(log.record)
    return log


def _since(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else now - before


def _written(of: str = "self") -> int | None:
    """Return the bytes that this process (or thread) and its reaped children wrote, or None if unknown."""
    try:
        lines = Path(f"/proc/{of}/io").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
