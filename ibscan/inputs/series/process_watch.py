"""Tell what this process may have done to files: Python's audit events, file events, child processes, bytes written."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibscan.inputs.series.file_events import Listener, listener

__all__ = ["Counters", "Evidence", "Stamp", "Watch", "process_watch"]

# Audit events by which a process starts another, and by which it changes files, with the arguments that are paths.
CHILDREN = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn")
CHANGES = {
    "open": slice(0, 1),
    "os.link": slice(0, 2),
    "os.remove": slice(0, 1),
    "os.rename": slice(0, 2),
    "os.symlink": slice(1, 2),
    "os.truncate": slice(0, 1),
    "os.utime": slice(0, 1),
    "shutil.rmtree": slice(0, 1),
}
# Most paths kept.
MOST_PATHS = 100_000
# The module of the thread that keeps a live progress line up to date: it writes to the terminal alone.
LIVE_LINE = "rich.live"
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Stamp:
    """Numbers of the file system that change with a file's content."""

    inode: int
    size: int
    modified: int


@dataclass(frozen=True)
class Evidence:
    """What this process may have done to files while foreign code ran.

    `paths` (real ones) and `names` were seen to be touched. In the folders `covered` (real paths) whatever the process
    itself did was seen, memory maps of native libraries excepted; what its children did, only `has_children` and
    `bytes_written` tell (None if unknown).
    """

    paths: frozenset[str]
    names: frozenset[str]
    covered: frozenset[str]
    has_children: bool
    bytes_written: int | None

    def saw(self, path: Path) -> bool:
        """Tell whether this file, or the folder it is in, was seen to be touched."""
        return bool((_real(path) | _real(path.parent)) & self.paths or {path.name, path.parent.name} & self.names)

    def covers(self, path: Path) -> bool:
        """Tell whether it would have been seen if this process itself had touched the file."""
        return str(Path(os.path.realpath(path)).parent) in self.covered


@dataclass(frozen=True)
class Counters:
    """Bytes written by this process with its children, and of those by threads of ours; its children.

    `written` is None if unknown; `ours` has the bytes by thread. `busy` has the time that children of foreign code ran,
    in ns, None if unknown. `faults` are the page faults of children that ended.
    """

    written: int | None
    ours: Mapping[int, int]
    children: frozenset[int]
    busy: Mapping[int, int | None]
    faults: int


@dataclass
class Watch:
    """What was seen of this process since the command began, while foreign code ran and by its threads since.

    `paths` are the real paths of files opened for writing, moved or deleted: one that is opened now may be written to
    later. `own` are the names of files that the command's thread touched while no foreign code ran, `late` those of
    files touched by others then. `left` has the files of `known` folders as the last block of foreign code left them.
    `children` are its child processes that still run. `folders` are the real paths of those looked at.
    """

    paths: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    late: frozenset[str] = frozenset()
    left: dict[Path, Stamp] = field(default_factory=dict)
    known: set[Path] = field(default_factory=set)
    children: frozenset[int] = frozenset()
    has_children: bool = False
    folders: frozenset[str] = frozenset()
    events: Listener | None = None
    depth: int = 0
    thread: int = field(default_factory=threading.get_ident)

    def begin(self) -> None:
        """Forget what was seen: a command begins, in the thread that calls this."""
        if self.events is not None:
            self.events.close()
        self.paths, self.own, self.left, self.known, self.events = set(), set(), {}, set(), None
        self.late, self.folders, self.children, self.has_children = frozenset(), frozenset(), frozenset(), False
        self.thread = threading.get_ident()

    def before(self, stamps: Mapping[Path, Stamp], folders: Collection[Path]) -> dict[Path, Stamp]:
        """Return the stamps to compare with after a block: as they are, or as left if threads touched the file since.

        Args:
            stamps: Of the files, taken just now.
            folders: Where they lie.
        """
        # A thread of foreign code may have gone on after the last block.
        names = (self.events.names() if self.events is not None else None) or frozenset()
        self.late = names - self.own
        self.own.clear()
        found, known = dict(stamps), self.known & set(folders)
        if known and (self.late or self.paths):
            seen = Evidence(frozenset(self.paths), self.late, frozenset(), has_children=False, bytes_written=None)
            differing = (path for path in found.keys() | self.left.keys() if found.get(path) != self.left.get(path))
            touched = [path for path in differing if path.parent in known and seen.saw(path)]
            for path in touched:
                found.pop(path, None)
            found |= {path: self.left[path] for path in touched if path in self.left}
        self.folders = frozenset(os.path.realpath(folder) for folder in folders)
        if self.events is None:
            self.events = listener()
        if self.events is not None:
            self.events.mark(self.folders)
        return found

    def leave(self, stamps: Mapping[Path, Stamp], folders: Collection[Path]) -> None:
        """Remember the files of these folders as a block left them."""
        self.left = {path: stamp for path, stamp in self.left.items() if path.parent not in folders} | dict(stamps)
        self.known |= set(folders)

    @contextlib.contextmanager
    def block(self) -> Iterator[Counters]:
        """Watch foreign code in the block; yields what `evidence` is to be asked with."""
        self.children &= _children("self")
        self.depth += 1
        try:
            yield self._counters()
        finally:
            self.depth -= 1

    def evidence(self, since: Counters) -> Evidence:
        """Return what was seen since a block began."""
        self.children |= _children("self") - since.children
        now = self._counters()
        # One that slept all the time, as workers do that wait for work, has done nothing.
        has_run = any(busy is None or busy != since.busy.get(pid) for pid, busy in now.busy.items())
        has_children = self.has_children or has_run or now.faults != since.faults
        self.has_children = False
        written = None
        if now.written is not None and since.written is not None:
            ours = sum(count - since.ours.get(thread, 0) for thread, count in now.ours.items())
            written = max(0, now.written - since.written - ours)
        events = self.events
        names = None if events is None else events.names()
        covered = frozenset(events.marked) if events is not None and names is not None else frozenset()
        return Evidence(frozenset(self.paths), self.late.union(names or ()), covered, has_children, written)

    def record(self, event: str, arguments: Sequence[object]) -> None:
        """Note one of Python's audit events."""
        if event not in CHANGES and event not in CHILDREN:
            return
        is_foreign = self.depth > 0 or threading.get_ident() != self.thread
        if event in CHILDREN:
            self.has_children |= is_foreign
            return
        flags = arguments[2] if event == "open" else WRITE_FLAGS
        if not self.folders or not (isinstance(flags, int) and flags & WRITE_FLAGS):
            return
        # A file that is named by its number was opened by its name before.
        paths = [path for path in arguments[CHANGES[event]] if isinstance(path, str | bytes | os.PathLike)]
        with contextlib.suppress(OSError, ValueError):
            found = {real for path in paths for real in _real(Path(os.fsdecode(path)))}
            if not is_foreign:
                self.own |= {Path(path).name for path in found}
            elif len(self.paths) < MOST_PATHS:
                self.paths |= found

    def _counters(self) -> Counters:
        written = _written("self")
        if written is not None:
            # Of children that have ended, this process has the bytes.
            written += sum(_written(str(pid)) or 0 for pid in self.children | _descendants(self.children))
        threads = [thread.native_id or 0 for thread in threading.enumerate() if type(thread).__module__ == LIVE_LINE]
        ours = {thread: _written(f"self/task/{thread}") or 0 for thread in threads}
        busy = {pid: _time_run({pid} | _descendants({pid})) for pid in self.children}
        return Counters(written, ours, _children("self"), busy, _faults())


@functools.cache
def process_watch() -> Watch:
    """Return the only watch of this process: an audit hook cannot be removed."""
    watch = Watch()
    sys.addaudithook(watch.record)
    return watch


def _real(path: Path) -> set[str]:
    """Return the real path of a file, and of the link if it is one."""
    return {os.path.realpath(path), str(Path(os.path.realpath(path.parent), path.name))}


def _written(of: str) -> int | None:
    """Return the bytes that a process (with its reaped children) or thread of /proc wrote, or None if unknown."""
    try:
        lines = Path(f"/proc/{of}/io").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _children(of: str) -> frozenset[int]:
    """Return the pids of a process's children that run; none where the system does not say."""
    found: set[int] = set()
    for file in Path(f"/proc/{of}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found.update(map(int, file.read_text("ascii").split()))
    return frozenset(found)


def _descendants(pids: Collection[int]) -> frozenset[int]:
    """Return the pids of the children of processes, and of theirs."""
    found = frozenset[int]().union(*(_children(str(pid)) for pid in pids))
    return found | _descendants(found) if found else found


def _time_run(pids: Collection[int]) -> int | None:
    """Return the time that processes ran, in ns, or None if unknown."""
    try:
        files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return sum(int(file.read_text("ascii").split()[0]) for file in files) if files else None
    except (OSError, ValueError, IndexError):
        return None


def _faults() -> int:
    """Return the page faults of child processes that have ended and were waited for: each has some. 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
