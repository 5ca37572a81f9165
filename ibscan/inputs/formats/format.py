"""Define Format, the declaration of a checkpoint format, and the descriptions that its functions exchange."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ibscan.core.records import TensorInfo
from ibscan.inputs.files import Snapshot
from ibscan.inputs.folder.numbers import AxisNumbers

if TYPE_CHECKING:
    import torch

__all__ = ["Description", "Format", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """Which of a file's sets of tensors to take: `--state-key` and `--weights`, None where not given."""

    state_key: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Description:
    """The contents of a file: tensors by stored name, strings, epoch and step, and the key of the chosen set."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    numbers: AxisNumbers = field(default_factory=AxisNumbers)
    state_key: str = ""


@dataclass(frozen=True)
class Format:
    """A checkpoint format: how its files are recognised, and the two functions that read one.

    Content counts before the name: a head (the first kilobyte) with `magic` is of this format whatever the name;
    `resembles` tests a head without the magic bytes of any format or other kind of file. The readers report every
    fault of a file as a CheckpointError, and run nothing in it.

    Attributes:
        kind: One word, as `content_kind` returns it.
        name: The name of the format in listings and results.
        magic: Offsets in the head with the bytes there; any one is enough.
        suffixes: Of files that are meant as checkpoints: an unreadable one is reported.
        describe: Lists the tensors of a snapshot without reading their numbers; takes the snapshot, the file's name
            for messages, and which set of tensors.
        load: Returns the tensors of a snapshot by stored name; takes the snapshot, the file's name for messages, and
            the `state_key` of its description.
        accepted: The suffixes that messages list, and the words after "files" there.
        usual: File names that libraries give the weights of a folder.
        claims: Matches further names of files that are meant as checkpoints.
        resembles: Whether a head without magic bytes is of this format.
        by_suffix: Whether to read a head of no known kind if the file has the first suffix, so that the reader reports
            its fault.
        is_whole: Whether a file of this kind whose name tells nothing is a checkpoint; takes head, name and size.
    """

    kind: str
    name: str
    magic: tuple[tuple[int, bytes], ...]
    suffixes: tuple[str, ...]
    describe: Callable[[Snapshot, str, Wanted], Description]
    load: Callable[[Snapshot, str, str], Mapping[str, torch.Tensor]]
    accepted: tuple[tuple[str, ...], str] = ((), "")
    usual: tuple[str, ...] = ()
    claims: re.Pattern[str] | None = None
    resembles: Callable[[bytes], bool] = lambda _: False
    by_suffix: Callable[[bytes], bool] = lambda _: False
    is_whole: Callable[[bytes, str, int], bool] = lambda *_: True
