"""Guard the files of a run while user code runs: stop with a message if the code changed any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ibscan.core.text import listed
from ibscan.errors import IbscanError, InputError
from ibscan.inputs.code.load import is_code
from ibscan.inputs.code.sources import files_of
from ibscan.inputs.formats.recognise import is_claimed
from ibscan.inputs.series.discovery import TEMPORARY
from ibscan.inputs.series.process_watch import Counters, Evidence, Stamp, process_watch

__all__ = ["untouched"]

# Most files looked at, and most named in a message.
MOST_FILES, MOST_NAMED = 20_000, 5


@contextlib.contextmanager
def untouched(paths: Sequence[Path], spec: str, option: str, *, growing: bool) -> Iterator[None]:
    """Compare the files beside user code and in the run's folders before and after the code runs in the block.

    A training that goes on in the folder changes files too. What this process does is told apart by Python's audit
    events, also of threads that go on between blocks, and on Linux by file events, which also see libraries without
    Python. Where there are no file events (other systems, most containers, some file systems), a change that no audit
    event tells of may be the code's if it is no larger than the bytes that this process wrote, or if these are unknown;
    a deletion or an empty file always. Child processes of the code are seen by the bytes they wrote alone: beside them
    any change may be the code's.

    What may be the code's stops the command. If `growing`, it does not where file events are missing and the change is
    a deletion, an empty file, or one on a system that does not tell the bytes; nor where a child process moves a file
    here from elsewhere. Never seen: what threads do after the last block, and child processes after theirs if they have
    left this process or the block was the last; what libraries write by memory maps; and, without file events,
    libraries in a thread between blocks, and libraries that move files here or write into the middle of one.

    Args:
        paths: The run's folders, or files in them.
        spec: `module:callable` or `path.py:callable`; anything else needs no guard.
        option: The option that named the spec, for messages.
        growing: A training goes on: only what was seen of this process, or what the bytes written allow, is the code's.

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
    watch, now = process_watch(), _stamps(folders)
    before = watch.before(now, _places(now, folders))

    def changes(begun: Counters) -> str:
        after = _stamps(folders)
        evidence = watch.evidence(begun)
        watch.leave(after, _places(after, folders))
        found = _changes(before, after, evidence, growing=growing)
        return _message(found, f"{option} {spec}", _way_out(evidence, growing=growing))

    try:
        with watch.block() as begun:
            yield
    except IbscanError as error:
        if message := changes(begun):
            kind = InputError if isinstance(error, InputError) else type(error)
            raise kind(f"{error} {message}") from error
        raise
    if message := changes(begun):
        raise InputError(message)


def _message(changes: Mapping[str, Sequence[str]], where: str, way_out: str) -> str:
    parts = []
    for change, names in changes.items():
        if names:
            parts.append(f"{listed(names, MOST_NAMED)} {'was' if len(names) == 1 else 'were'} {change}")
    if not parts:
        return ""
    return (
        f"{where}: while this code ran, {'; '.join(parts)}. Code that is named here must leave the run's files as they "
        f'are, so this stopped: take the writing out of it, or put it under `if __name__ == "__main__":`.{way_out}'
    )


def _way_out(evidence: Evidence, *, growing: bool) -> str:
    """Return the sentence on a training that goes on, which may have been blamed in error."""
    if not growing:
        return " If it was a training that goes on, add --follow."
    if evidence.has_children:
        return " It started other processes, and what these do is not told apart from what a training does: start none."
    return ""


def _changes(
    before: Mapping[Path, Stamp], after: Mapping[Path, Stamp], evidence: Evidence, *, growing: bool
) -> dict[str, list[str]]:
    """Return the names of files changed, deleted and added, where the code may have done it."""

    def may_be_ours(path: Path) -> bool:
        was, now = before.get(path), after.get(path)
        if evidence.saw(path):
            return True
        if evidence.covers(path) and not evidence.has_children:
            return False
        if evidence.has_children and (now is None or not growing):
            return True
        if now is None or evidence.bytes_written is None:
            return not growing
        # Logs grow at their end; a checkpoint is written whole.
        has_grown = was is not None and now.size > was.size and now.inode == was.inode and not is_claimed(path.name)
        least = now.size - was.size if was is not None and has_grown else now.size
        if least == 0:
            return evidence.has_children or not growing
        return least <= evidence.bytes_written

    found: dict[str, list[str]] = {"changed": [], "deleted": [], "added": []}
    for path in sorted(before.keys() | after.keys()):
        change = "added" if path not in before else "deleted" if path not in after else "changed"
        if before.get(path) == after.get(path) or (change == "deleted" and TEMPORARY.search(path.name)):
            continue
        if may_be_ours(path):
            found[change].append(path.name)
    return found


def _places(stamps: Collection[Path], folders: Collection[Path]) -> frozenset[Path]:
    """Return the folders of files, and those looked at that may have none."""
    return frozenset(folders).union(path.parent for path in stamps)


def _stamps(folders: Mapping[Path, bool]) -> dict[Path, Stamp]:
    """Return the stamps of files in folders, and in their subfolders where asked: a checkpoint may be a folder."""
    found: dict[Path, Stamp] = {}
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
                        found[Path(entry.path)] = Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found
