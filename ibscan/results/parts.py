"""Keep finished checkpoints beside the output, under a lock that keeps a second run out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.core.atomic import stray_pattern, temporary_name, write_whole
from ibscan.core.records import Checkpoint
from ibscan.core.result import Result
from ibscan.errors import IbscanError, InputError, ResourceError, UsageError
from ibscan.results.axes import checkpoint_keys
from ibscan.results.contained import holds
from ibscan.results.packed import Part, opened, packed, unpacked
from ibscan.results.store import read, write_bytes

__all__ = ["Parts", "check_output", "parts"]

_PART = re.compile(r"([0-9a-f]{8})-[0-9a-f]{16}\.npz")
_RECORD = re.compile(r"run-([0-9a-f]{8})\.json")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Parts:
    """The finished blocks of checkpoints of one run, one small file each, in `FILE.parts/`.

    Made by `parts`, which holds the lock. `key` is the hash of everything that changes numbers, except the choice of
    checkpoints; a run reuses parts of its own key alone. `held` is what the output holds by now, and `series` the
    checkpoints of the command that wrote it: they decide which parts can be deleted. `known` lists the checkpoints of
    the parts this run has read or written, so that these need not be opened again.
    """

    folder: Path
    key: str
    held: Result | None = None
    series: tuple[Checkpoint, ...] = ()
    known: dict[Path, list[tuple[str, str]]] = field(default_factory=dict)

    def finished(self) -> list[Result]:
        """Read the valid parts of this key, in any order, and delete damaged ones."""
        found: list[Result] = []
        for path in self._own():
            result = unpacked(path, self.key)
            if result is None:
                _deleted(path)
            else:
                self.known[path] = checkpoint_keys(result)
                found.append(result)
        return found

    def add(self, result: Result, files: Sequence[Path] = ()) -> None:
        """Write finished checkpoints, read from `files`, as one part.

        Raises:
            ResourceError: The disk is full.
        """
        name = hashlib.sha256(repr([self.key, *checkpoint_keys(result)]).encode()).hexdigest()[:16]
        path = self.folder / f"{self._mark}-{name}.npz"
        write_bytes(packed(result, self.key, [file.absolute() for file in files]), path)
        self.known[path] = checkpoint_keys(result)

    def begun(self) -> list[list[tuple[str, str]]]:
        """Read which blocks earlier runs of this key were measuring, as (sha256, name) of their checkpoints."""
        try:
            read = json.loads(self._record.read_bytes())
            return [[(str(sha), str(name)) for sha, name in block] for block in read]
        except (OSError, ValueError, TypeError):
            # Without a valid record blocks are formed anew, as in a new run.
            return []

    def begin(self, blocks: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Record the blocks this run measures, so that a run that resumes forms the same ones and gives the same bits.

        Blocks of a single checkpoint need no record.
        """
        before = self.begun()
        fresh = [list(block) for block in blocks if len(block) > 1 and list(block) not in before]
        if not fresh:
            return
        # A lost record changes numbers by rounding alone: it is not worth waiting for the disk, nor an error.
        with contextlib.suppress(OSError):
            write_whole(self._record, json.dumps([*before, *fresh]).encode(), durable=False)

    def remove(self) -> None:
        """Delete the parts that no run can use: without `held` all of this key, else those whose numbers `held` has.

        Parts of other commands or checkpoints are finished work and stay until `held` has their numbers. Parts that are
        damaged, made by another version, or of checkpoints that were deleted or changed are of no use.
        """
        if self.held is None:
            for path in self._own():
                _deleted(path)
        else:
            self._remove_spent(self.held)
        kept = {match[1] for path in _entries(self.folder) if (match := _PART.fullmatch(path.name))}
        for path in _entries(self.folder):
            match = _RECORD.fullmatch(path.name)
            if match and match[1] not in kept:
                _deleted(path)

    def _remove_spent(self, held: Result) -> None:
        ours = {(checkpoint.sha256, checkpoint.name) for checkpoint in self.series}
        hashes = {str(checkpoint.path.absolute()): checkpoint.sha256 for checkpoint in self.series}
        for path in _entries(self.folder):
            if not _PART.fullmatch(path.name):
                continue
            # Parts of this run are known to be of this key.
            spent = path in self.known and ours.issuperset(self.known[path])
            if spent or _is_spent(opened(path), self.key, held, ours, hashes):
                _deleted(path)

    @property
    def _mark(self) -> str:
        return hashlib.sha256(self.key.encode()).hexdigest()[:8]

    @property
    def _record(self) -> Path:
        return self.folder / f"run-{self._mark}.json"

    def _own(self) -> list[Path]:
        """Return the parts of this key, and delete what an interrupted write left behind."""
        own = []
        for path in _entries(self.folder):
            match = _PART.fullmatch(path.name)
            if match and match[1] == self._mark:
                own.append(path)
            elif path.name.startswith(".ibscan-") and path.name.endswith(".tmp"):
                _deleted(path)
        return own


def _is_spent(
    part: Part | None, key: str, held: Result, ours: Collection[tuple[str, str]], hashes: Mapping[str, str]
) -> bool:
    """Tell whether no run could use a part, or the result has everything in it."""
    if part is None or part.result.attrs.get("ibscan_version") != held.attrs.get("ibscan_version"):
        return True
    if part.key == key and set(checkpoint_keys(part.result)) <= set(ours):
        return True
    return all(known or gone for known, gone in zip(holds(held, part.result), _gone(part, hashes), strict=True))


def _gone(part: Part, hashes: Mapping[str, str]) -> list[bool]:
    """Tell for each checkpoint of a part whether its file was deleted or changed."""
    keys = checkpoint_keys(part.result)
    if len(part.files) != len(keys):
        return [False] * len(keys)
    # A missing folder may be on another machine, or come back.
    return [
        hashes.get(str(path), sha) != sha or (not path.exists() and path.parent.is_dir())
        for path, (sha, _) in zip(part.files, keys, strict=True)
    ]


@contextmanager
def parts(output: Path, key: str) -> Iterator[Parts]:
    """Hold the lock of an output and its folder of parts, `FILE.parts/` beside it.

    Yields:
        The parts. They stay when the block ends by an exception, or without `remove`; an empty folder goes.

    Raises:
        ResourceError: Another run holds the lock, or the folder cannot be made for want of space.
        UsageError: The folder cannot be made.
    """
    target = Path(os.path.realpath(output))
    folder = target.parent / f"{target.name}.parts"
    lock = _locked(folder, output)
    try:
        for stray in target.parent.glob(stray_pattern(target)):
            _deleted(stray)
        yield Parts(folder, key)
    finally:
        # Still under the lock, so no other run can be using the folder.
        if all(path.name == "lock" for path in _entries(folder)):
            _deleted(folder / "lock")
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(lock)


def check_output(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse an output that could not be written in the end, or is one of the inputs, before anything is computed.

    Raises:
        UsageError: A folder, an input, something that is no result of ibscan, a newer one, or no place to write.
        ResourceError: The disk is full.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; expected the name of a file. Name one with -o.")
        exists = path.exists() or path.is_symlink()
        if exists and any(given.exists() and path.exists() and path.samefile(given) for given in inputs):
            raise UsageError(f"{path}: is one of the inputs and would be overwritten. Name another file with -o.")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be an output ({_reason(error)}). Name another file with -o.") from error
    if exists and path.exists():
        try:
            read(path)
        except InputError as error:
            raise UsageError(f"{error} It is not overwritten; name another file with -o.") from error
    target = Path(os.path.realpath(path))
    # Named like the output's temporary files: if the process is killed here, the next run deletes it.
    trial = temporary_name(target)
    try:
        # Try the output's own name too, which may be too long.
        _name_fits(target)
        trial.touch(exist_ok=False)
        trial.unlink()
    except (OSError, ValueError) as error:
        kind: type[IbscanError] = UsageError
        way_out = "Name a file in an existing, writable folder with -o."
        if isinstance(error, OSError) and error.errno in _FULL:
            kind, way_out = ResourceError, "Free space, or name another place with -o."
        raise kind(f"{path}: cannot be written ({_reason(error)}). {way_out}") from error


def _name_fits(target: Path) -> None:
    for name in (target, target.parent / f"{target.name}.parts"):
        with contextlib.suppress(FileNotFoundError):
            name.stat()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _locked(folder: Path, output: Path) -> int:
    """Return the descriptor that holds the lock until it is closed."""
    if folder.is_symlink():
        raise UsageError(
            f"{folder}: is a link, and parts are kept in a folder of their own. Name another place with -o."
        )
    while True:
        try:
            folder.mkdir(exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if not folder.parent.is_dir():
                raise UsageError(f"{output}: its folder does not exist. Name another place with -o.") from None
            continue  # an ending run has just removed the folder
        except OSError as error:
            kind: type[IbscanError] = ResourceError if error.errno in _FULL else UsageError
            raise kind(f"{folder}: cannot be made or used ({_reason(error)}). Name another place with -o.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(descriptor)
                raise ResourceError(
                    f"{output}: is being written by another run of ibscan, which holds {folder / 'lock'}. "
                    "Wait for it, or name another file with -o."
                ) from error
        with contextlib.suppress(OSError):
            # An ending run may have removed the file after we opened it.
            if os.fstat(descriptor).st_ino == (folder / "lock").stat().st_ino:
                return descriptor
        os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        # The folder was deleted meanwhile: its parts are lost, but the run can go on.
        return []


def _deleted(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
