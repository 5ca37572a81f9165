"""Follow a folder that training still writes to: poll it, and plan to measure checkpoints once they are complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ibscan.core.hand import Hand
from ibscan.core.records import Checkpoint, Probe
from ibscan.engine.complete import planned as planned_once
from ibscan.engine.plan import Plan, ResolvedInputs, plan_of, probe_of, resolved_inputs
from ibscan.engine.request import IDLE_SECONDS, Reporter, Request
from ibscan.engine.series import series_of
from ibscan.errors import CheckpointError, InputError, NothingMatched, UsageError
from ibscan.inputs.files import file_head
from ibscan.inputs.folder.shards import is_index
from ibscan.inputs.formats.recognise import is_claimed, is_read
from ibscan.inputs.series.checkpoint import inspect_checkpoint
from ibscan.inputs.series.discovery import BESIDE, TEMPORARY, TRAINER
from ibscan.inputs.series.duplicates import repeats

__all__ = ["Poll", "polls"]

# Seconds between two polls; less if --idle is short, so that a file that is new is seen twice before the time is over.
PAUSE_SECONDS, PAUSES_AN_IDLE = 1.0, 4

# The stat of a file, or of all files of a folder that is one checkpoint: a change means other content.
Stamp: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Poll:
    """A plan of what there is to measure now, and its reporter; `last` if nothing new has come for --idle seconds."""

    plan: Plan
    last: bool
    reporter: Reporter


def polls(request: Request, reporter: Reporter) -> Iterator[Poll]:
    """Yield a plan whenever checkpoints of a folder are new or changed, and a last one at the end.

    A file counts once it was the same in two polls and can be read; until then it is ignored without a message. Copies
    (`last`, `best`) change all the time and wait for the last poll, which is that of a plain scan.

    Args:
        request: What the user asks for; its path is one folder.
        reporter: Hears each message once, and of unusable files only at the last poll.

    Returns:
        An iterator of polls. The time the caller spends on one counts towards --idle.

    Raises:
        UsageError: The path is no folder, or the output may not be written.
        InputError: There is no probe, or it cannot be used.
        NothingMatched: From the iterator: no checkpoint came.
    """
    if len(request.paths) != 1 or not request.paths[0].is_dir():
        raise UsageError(f"--follow watches one folder, and {request.paths[0]} is none; name the run's folder alone.")
    resolved = resolved_inputs(request)
    if resolved.probe is None:
        # Nothing can be measured: say what else is missing, if there is a checkpoint already.
        with contextlib.suppress(NothingMatched):
            planned_once(dataclasses.replace(request, follow=False, idle=None), reporter)
    # Read the probe first, to fail fast.
    return _polls(request, resolved, probe_of(request, resolved), _ReportOnce(reporter))


def _polls(
    request: Request, resolved: ResolvedInputs, probe: tuple[Probe, tuple[str, ...]], reporter: _ReportOnce
) -> Iterator[Poll]:
    idle = IDLE_SECONDS if request.idle is None else request.idle
    pause = min(PAUSE_SECONDS, idle / PAUSES_AN_IDLE)
    reporter.notice(
        f"{request.paths[0]} is followed until nothing new has come for {idle:g} s; an interrupt ends it sooner and "
        "keeps what is finished."
    )
    watched = _WatchedFolder(request.paths[0], resolved.exclude)
    plan: Plan | None = None
    planned: Mapping[str, Stamp] = {}
    last_change = time.monotonic()
    while True:
        if watched.poll():
            last_change = time.monotonic()
        last = time.monotonic() - last_change >= idle
        if last or watched.stable != planned:
            planned = watched.stable
            watched.final = reporter.final = last
            try:
                series = series_of(request, resolved.manifest, exclude=resolved.exclude, inspect=watched.inspect)
            except (InputError, NothingMatched) as error:
                # Nothing usable yet, or something that only a change in the folder can repair.
                if last and (plan is None or isinstance(error, InputError)):
                    raise
                if watched.readable and isinstance(error, InputError):
                    reporter.notice(f"{error} Waiting for the folder to change.")
            else:
                # A file that is skipped may still be being written.
                series = series if last else dataclasses.replace(series, skipped={}, notices=())
                try:
                    plan = plan_of(request, reporter, resolved, series, probe, plan)
                except CheckpointError:
                    # The only checkpoints were deleted or changed since they were listed: wait for the next poll.
                    if last:
                        raise
                else:
                    yield Poll(plan, last, reporter)
            if last and not watched.poll():
                return
        time.sleep(pause)


@dataclass
class _WatchedFolder:
    """A folder as of the last poll.

    `stable` has the entries that were the same in the last two polls, `readable` says whether any checkpoint could be
    read. Until the `final` poll all other entries, and copies, are refused.
    """

    folder: Path
    exclude: Sequence[Path]
    final: bool = False
    readable: bool = False
    stable: dict[str, Stamp] = field(default_factory=dict)
    _stamps: dict[str, Stamp] = field(default_factory=dict)
    _inspected: dict[str, tuple[Stamp, Checkpoint | CheckpointError]] = field(default_factory=dict)

    def poll(self) -> bool:
        """List the folder; return whether anything that is or may become a checkpoint is new, changed or gone."""
        now: dict[str, Stamp] = {}
        folder = self.folder.resolve()
        excluded = {path.name for path in self.exclude if path.resolve().parent == folder}
        # In a trainer's folder checkpoints are known by their names, and nothing else is opened.
        by_content = not (self.folder / TRAINER).exists()
        # A folder that is gone for a moment has nothing new.
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") or entry.name.endswith(".parts") or entry.name in excluded
                stamp = None if hidden else _stamp(Path(entry.path), by_content=by_content)
                if stamp is not None:
                    now[entry.name] = stamp
        before, self._stamps = self._stamps, now
        self.stable = {name: stamp for name, stamp in now.items() if before.get(name) == stamp}
        return now != before

    def inspect(self, path: Path, name: str, **choices: Any) -> Checkpoint:  # noqa: ANN401 - handed on
        """Read a checkpoint as `inspect_checkpoint` does, each content once.

        Raises:
            CheckpointError: It cannot be used, or not yet.
        """
        entry = path.relative_to(self.folder).parts[0]
        stamp = self.stable.get(entry)
        if not self.final and (stamp is None or repeats(name)):
            raise CheckpointError(f"{name}: is left for later.")
        before, known = self._inspected.get(name, (None, None))
        if known is None or before != stamp:
            try:
                known = inspect_checkpoint(path, name, **choices)
            except CheckpointError as error:
                known = error
            if stamp is not None:
                self._inspected[name] = stamp, known
        if isinstance(known, CheckpointError):
            raise known
        self.readable = True
        return known


def _stamp(path: Path, *, by_content: bool) -> Stamp | None:
    """Return the stamp of a file, or of the files of a folder; None if it is no checkpoint."""
    try:
        own = path.stat()
        if stat.S_ISREG(own.st_mode):
            # An index changes with any of its shards.
            shards = sorted(path.parent.iterdir()) if is_index(path.name) else []
            return (*_numbers(own), *_file_stamps(shards)) if shards or _may_be(path, by_content=by_content) else None
        return _file_stamps(sorted(path.iterdir())) or None if stat.S_ISDIR(own.st_mode) else None
    except OSError:  # deleted, or not readable
        return None


def _file_stamps(paths: Sequence[Path]) -> tuple[Stamp, ...]:
    named = [path for path in paths if _is_named(path.name) or path.name.endswith(".json")]
    if not any(_is_named(path.name) for path in named):
        return ()
    return tuple((path.name, *_numbers(path.stat())) for path in named)


def _is_named(name: str) -> bool:
    return is_claimed(name) or bool(TEMPORARY.search(name))


def _may_be(path: Path, *, by_content: bool) -> bool:
    """Return whether a file is, or may become, a checkpoint."""
    if BESIDE.match(path.name):
        return False
    return _is_named(path.name) or (by_content and is_read(file_head(path)))


def _numbers(found: os.stat_result) -> Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass
class _ReportOnce:
    """A reporter that passes every message on once, and problems only at the `final` poll: they may go away."""

    reporter: Reporter
    final: bool = False
    _reported: set[str] = field(default_factory=set)

    def notice(self, sentence: str) -> None:
        """Report a new message."""
        if sentence not in self._reported:
            self._reported.add(sentence)
            self.reporter.notice(sentence)

    def problem(self, sentence: str) -> None:
        """Report a new message about something that makes the result partial."""
        if self.final and sentence not in self._reported:
            self._reported.add(sentence)
            self.reporter.problem(sentence)

    def started(self, total: int) -> None:
        """Report that `total` more checkpoints are to be measured."""
        self.reporter.started(total)

    def advanced(self, name: str) -> None:
        """Report that a checkpoint is finished."""
        self.reporter.advanced(name)

    def working(self, hand: Hand) -> None:
        """Report what is in hand now."""
        self.reporter.working(hand)
