"""What a file's name says of its place where no number does, and the order of names."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

__all__ = ["by_name", "is_initial", "natural"]

INITIAL = re.compile(
    r"init|inits|initial|initially|initiali[sz]ed|initiali[sz]ation|start|begin|beginning|untrained|random|scratch|before"
)
FINAL = re.compile(r"final|finished|last|latest|end|trained")


def is_initial(name: str) -> bool:
    """Tell whether a path's last two parts say that nothing was learned yet.

    Example:
        >>> is_initial("init.pt"), is_initial("random-weights/model.safetensors"), is_initial("initrd.pt")
        (True, True, False)
    """
    return _says(name, INITIAL)


def by_name(name: str) -> tuple[int, tuple[object, ...]]:
    """Return a sort key: what says it is the start comes first, what says it is the end last, 10 after 2."""
    return 0 if is_initial(name) else 2 if _says(name, FINAL) else 1, natural(name)


def natural(text: str) -> tuple[object, ...]:
    """Return a sort key in which 10 comes after 2."""
    parts = re.split(r"([0-9]+)", text)
    # Compared as (length, digits): int() refuses numbers of more than 4300 digits, which a foreign file may hold.
    numbers = [part.lstrip("0") for part in parts[1::2]]
    return tuple(
        part if place % 2 == 0 else (len(numbers[place // 2]), numbers[place // 2]) for place, part in enumerate(parts)
    )


def _says(name: str, words: re.Pattern[str]) -> bool:
    parts = PurePosixPath(name).parts[-2:]
    # The suffix is no word of a name: every .pt file would be one.
    stems = [*parts[:-1], *(part.partition(".")[0] for part in parts[-1:])]
    return any(words.fullmatch(word) for stem in stems for word in re.findall(r"[a-z]+", stem.lower()))
