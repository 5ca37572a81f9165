"""A folder that training still writes to: looked at again and again, each checkpoint taken up once it is whole."""

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

from ibscan.core.records import Checkpoint, Probe
from ibscan.engine.plan import Plan, ResolvedInputs, plan_of, probe_of, resolved_inputs, series_of
from ibscan.engine.request import IDLE_SECONDS, Reporter, Request
from ibscan.errors import CheckpointError, InputError, NothingMatched, UsageError
from ibscan.inputs.files import file_head
from ibscan.inputs.folder.shards import is_index
from ibscan.inputs.formats.recognise import is_claimed, is_read
from ibscan.inputs.series.checkpoint import inspect_checkpoint
from ibscan.inputs.series.discovery import BESIDE, TEMPORARY, TRAINER
from ibscan.inputs.series.duplicates import repeats

__all__ = ["Poll", "polls"]

# Between two looks at the folder; shorter where --idle is, so that what is new is seen before the time is over.
PAUSE_SECONDS, PAUSES_AN_IDLE = 1.0, 4

# What the system says of a file, or of all files of a folder that is one checkpoint: another one means other content.
Stamp: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Poll:
    """What there is to measure now, and whom to tell; `last` says that nothing new has come for --idle seconds."""

    plan: Plan
    last: bool
    reporter: Reporter


def polls(request: Request, reporter: Reporter) -> Iterator[Poll]:
    """Follow a folder: yield a plan whenever checkpoints have come or changed, and one more in the end.

    A file counts once two looks in a row found it the same, and it can be read; until then it is left alone, without a
    word. Copies (`last`, `best`) change all the time and are left for the last look, which is that of a plain scan.

    Args:
        request: What the user asks for; its path is one folder.
        reporter: Told each sentence once; of what cannot be used only at the last look.

    Returns:
        The looks. Time spent on one of them counts as time without news if there is none.

    Raises:
        UsageError: No folder, or the output may not be written.
        InputError: There is no probe, or it cannot be used.
        NothingMatched: From the iterator: no checkpoint came.
    """
    if len(request.paths) != 1 or not request.paths[0].is_dir():
        raise UsageError(f"--follow watches one folder, and {request.paths[0]} is none; name the run's folder alone.")
    resolved = resolved_inputs(request)
    # Nobody shall wait for an hour to hear that the probe is broken.
    return _polls(request, resolved, probe_of(request, resolved), _Once(reporter))


def _polls(
    request: Request, resolved: ResolvedInputs, probe: tuple[Probe, tuple[str, ...]], reporter: _Once
) -> Iterator[Poll]:
    idle = IDLE_SECONDS if request.idle is None else request.idle
    pause = min(PAUSE_SECONDS, idle / PAUSES_AN_IDLE)
    reporter.notice(
        f"{request.paths[0]} is followed until nothing new has come for {idle:g} s; an interrupt ends it sooner and "
        "keeps what is finished."
    )
    watched = _Watched(request.paths[0], resolved.exclude)
    plan: Plan | None = None
    taken: Mapping[str, Stamp] = {}
    news = time.monotonic()
    while True:
        if watched.poll():
            news = time.monotonic()
        last = time.monotonic() - news >= idle
        if last or watched.whole != taken:
            taken = watched.whole
            watched.patient = reporter.patient = not last
            try:
                series = series_of(request, resolved.manifest, exclude=resolved.exclude, inspect=watched.inspect)
            except (InputError, NothingMatched) as error:
                # Nothing usable yet; or, with usable ones there, what only a change in the folder can mend.
                if last and (plan is None or isinstance(error, InputError)):
                    raise
                if watched.readable and isinstance(error, InputError):
                    reporter.notice(f"{error} Waiting for the folder to change.")
            else:
                # What cannot be used yet may still become whole.
                series = series if last else dataclasses.replace(series, skipped={}, notices=())
                try:
                    plan = plan_of(request, reporter, resolved, series, probe, plan)
                except CheckpointError:
                    # Gone or changed since it was listed, and no other is there: the next look will tell.
                    if last:
                        raise
                else:
                    yield Poll(plan, last, reporter)
            if last and not watched.poll():
                return
        time.sleep(pause)


@dataclass
class _Watched:
    """A folder as it was at the last look.

    `whole` has the entries that two looks in a row found the same, `readable` says whether any of them could be used;
    while `patient`, all other files and copies are refused.
    """

    folder: Path
    exclude: Sequence[Path]
    patient: bool = True
    readable: bool = False
    whole: dict[str, Stamp] = field(default_factory=dict)
    _seen: dict[str, Stamp] = field(default_factory=dict)
    _inspected: dict[str, tuple[Stamp, Checkpoint | CheckpointError]] = field(default_factory=dict)

    def poll(self) -> bool:
        """Look again; return whether anything that is or may become a checkpoint is new, different or gone."""
        now: dict[str, Stamp] = {}
        place = self.folder.resolve()
        barred = {path.name for path in self.exclude if path.resolve().parent == place}
        # A trainer's own folder: its weights have telling names, and nothing else is opened.
        sniffed = not (self.folder / TRAINER).exists()
        # A folder that is gone for a moment has nothing new.
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") or entry.name.endswith(".parts") or entry.name in barred
                found = None if hidden else _stamp(Path(entry.path), sniffed=sniffed)
                if found is not None:
                    now[entry.name] = found
        before, self._seen = self._seen, now
        self.whole = {name: found for name, found in now.items() if before.get(name) == found}
        return now != before

    def inspect(self, path: Path, name: str, **choices: Any) -> Checkpoint:  # noqa: ANN401 - handed on
        """Read a checkpoint as `inspect_checkpoint` does, each content once.

        Raises:
            CheckpointError: It cannot be used, or not yet.
        """
        entry = path.relative_to(self.folder).parts[0]
        found = self.whole.get(entry)
        if self.patient and (found is None or repeats(name)):
            raise CheckpointError(f"{name}: is left for later.")
        before, known = self._inspected.get(name, (None, None))
        if known is None or before != found:
            try:
                known = inspect_checkpoint(path, name, **choices)
            except CheckpointError as error:
                known = error
            if found is not None:
                self._inspected[name] = found, known
        if isinstance(known, CheckpointError):
            raise known
        self.readable = True
        return known


def _stamp(path: Path, *, sniffed: bool) -> Stamp | None:
    """Return what the system says of a file, or of the files of a folder; None where they are no checkpoint."""
    try:
        own = path.stat()
        if stat.S_ISREG(own.st_mode):
            # A list of shards changes with any of them.
            listed = sorted(path.parent.iterdir()) if is_index(path.name) else []
            return (*_numbers(own), *_stamps(listed)) if listed or _may_be(path, sniffed=sniffed) else None
        return _stamps(sorted(path.iterdir())) or None if stat.S_ISDIR(own.st_mode) else None
    except OSError:  # gone, or not for us
        return None


def _stamps(paths: Sequence[Path]) -> tuple[Stamp, ...]:
    named = [path for path in paths if _is_named(path.name) or path.name.endswith(".json")]
    if not any(_is_named(path.name) for path in named):
        return ()
    return tuple((path.name, *_numbers(path.stat())) for path in named)


def _is_named(name: str) -> bool:
    return is_claimed(name) or bool(TEMPORARY.search(name))


def _may_be(path: Path, *, sniffed: bool) -> bool:
    if BESIDE.match(path.name):
        return False
    return _is_named(path.name) or (sniffed and is_read(file_head(path)))


def _numbers(found: os.stat_result) -> Stamp:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass
class _Once:
    """Says every sentence once, however often the folder is looked at; while `patient`, what failed may yet go well."""

    reporter: Reporter
    patient: bool = True
    _said: set[str] = field(default_factory=set)

    def notice(self, sentence: str) -> None:
        """Say something new."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.reporter.notice(sentence)

    def problem(self, sentence: str) -> None:
        """Say something new that makes the result partial."""
        if not self.patient and sentence not in self._said:
            self._said.add(sentence)
            self.reporter.problem(sentence)

    def started(self, total: int) -> None:
        """So many more are to be measured."""
        self.reporter.started(total)

    def advanced(self, name: str) -> None:
        """One more is finished."""
        self.reporter.advanced(name)
