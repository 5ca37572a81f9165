"""Declare what a checkpoint format is: how its files are recognised, and the functions that read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from ibscan.core.records import TensorInfo
from ibscan.inputs.files import Snapshot
from ibscan.inputs.folder.numbers import AxisNumbers

__all__ = ["Description", "Format", "Wanted"]

Head: TypeAlias = bytes


@dataclass(frozen=True)
class Wanted:
    """Which of a file's sets of tensors to take: `--state-key` and `--weights`, None where not given."""

    state_key: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Description:
    """What a file says of itself: tensors by stored name, strings, epoch and step, and the key of the set taken."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    numbers: AxisNumbers = field(default_factory=AxisNumbers)
    state_key: str = ""


def _never(_: Head) -> bool:
    return False


def _always(_head: Head, _name: str, _size: int) -> bool:
    return True


@dataclass(frozen=True)
class Format:
    """A checkpoint format: how its files are recognised, and the two functions that read one.

    Content counts before the name: a head (the first kilobyte) with `magic` is of this format whatever the file is
    called; `resembles` is asked about a head that has the magic bytes of no format and no other kind of file. The
    readers turn whatever is wrong with a file into a CheckpointError, and run nothing in it.

    Attributes:
        kind: One word, that `content_kind` returns.
        name: What listings and results call the format.
        magic: Places in the head, each with the bytes there; any one is enough.
        suffixes: A file so named is meant as a checkpoint: one that cannot be read is reported.
        describe: Lists the tensors of a snapshot without reading their numbers. Takes the snapshot, what to call the
            file in messages, and which set of tensors.
        load: Returns the tensors of a snapshot by stored name. Takes the snapshot, what to call the file, and the
            `state_key` of its description.
        accepted: The suffixes that messages list, and what follows "files" there.
        usual: File names that libraries give the weights of a folder.
        claims: Names, beside those with a suffix of the format, that are meant as a checkpoint.
        resembles: Whether a head without magic bytes is of this format.
        by_suffix: Whether a head of no known kind is read all the same where the file has the first suffix, so that the
            reader says what is wrong with it.
        is_whole: Whether a file of this kind but without a telling name is a checkpoint; takes head, name and size.
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
    resembles: Callable[[Head], bool] = _never
    by_suffix: Callable[[Head], bool] = _never
    is_whole: Callable[[Head, str, int], bool] = _always
