"""Text: natural order, similar names, short lists, and numbers written as text."""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from ibscan.errors import UsageError

__all__ = [
    "by_name",
    "first_line",
    "is_initial",
    "listed",
    "matches_glob",
    "natural",
    "near_names",
    "text_number",
    "told_apart",
]

INITIAL = re.compile(
    r"init|inits|initial|initially|initiali[sz]ed|initiali[sz]ation|start|begin|beginning|untrained|random|scratch|before"
)
FINAL = re.compile(r"final|finished|last|latest|end|trained")
# Numbers as text, and as str() writes a tensor, a numpy scalar or a list of one.
WRITTEN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4})?", re.ASCII)
AROUND = re.compile(r"(?:tensor|array|(?:np|numpy)\.\w+)\((.*?)(?:, *(?:dtype|device)=.*)?\)")
LONGEST_NUMBER = 400


def is_initial(name: str) -> bool:
    """Tell whether the last two parts of a path name an untrained state.

    Example:
        >>> is_initial("init.pt"), is_initial("random-weights/model.safetensors"), is_initial("initrd.pt")
        (True, True, False)
    """
    return _says(name, INITIAL)


def by_name(name: str) -> tuple[int, tuple[object, ...]]:
    """Return a sort key: names of untrained states first, of final ones last, others between in natural order."""
    return 0 if is_initial(name) else 2 if _says(name, FINAL) else 1, natural(name)


def natural(text: str) -> tuple[object, ...]:
    """Return a sort key in which 10 comes after 2.

    Example:
        >>> sorted(["a10", "a2", "a02b"], key=natural)
        ['a2', 'a02b', 'a10']
    """
    parts = re.split(r"([0-9]+)", text)
    # Compared as (length, digits): int() refuses numbers of more than 4300 digits, which a foreign file may hold.
    numbers = [part.lstrip("0") for part in parts[1::2]]
    return tuple(
        part if place % 2 == 0 else (len(numbers[place // 2]), numbers[place // 2]) for place, part in enumerate(parts)
    )


def matches_glob(name: str, globs: Sequence[str]) -> bool:
    """Tell whether a name, such as a layer's, matches one of the globs; without globs every name does."""
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def near_names(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names most like a mistyped one, the most similar first; `cutoff` is the ratio of `difflib`.

    Example:
        >>> near_names("thanh", ["relu", "tanh"]), near_names("gelu6", ["tanh"])
        (['tanh'], [])
    """
    return difflib.get_close_matches(name, list(known), most, cutoff)


def listed(words: Sequence[str], most: int) -> str:
    """Return the first few words separated by commas, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], 2), listed(["a", "b"], 2)
        ('a, b and 1 more', 'a, b')
    """
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Return names of files: the ends of their paths without suffix, as long as tells each from the others.

    Raises:
        UsageError: One stands twice.

    Example:
        >>> told_apart([Path("a/run.h5"), Path("b/run.h5"), Path("b/other.h5")])
        ['a/run', 'b/run', 'other']
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links stay as they were typed
    if (twice := next((path for k, path in enumerate(paths) if absolute[k] in absolute[:k]), None)) is not None:
        raise UsageError(f"{twice}: stands twice among the results; give it once.")
    names = []
    for whole in absolute:
        others = [other.with_suffix("") for other in absolute if other != whole]
        parts = whole.with_suffix("").parts
        ends = (parts[-k:] for k in range(1, len(parts)))
        names.append(
            "/".join(next((end for end in ends if not any(o.parts[-len(end) :] == end for o in others)), parts))
        )
    return names


def first_line(error: BaseException, longest: int = 120) -> str:
    """Return the first line of an exception's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:longest]


def text_number(text: str) -> int | float | None:
    """Read a number, also as `str` writes a tensor or a list of one; return None where there is none.

    Example:
        >>> text_number(" 10"), text_number("3.0"), text_number("tensor([7], device='cuda:0')"), text_number("best")
        (10, 3.0, 7, None)
    """
    text = text[:LONGEST_NUMBER].strip()
    around = AROUND.fullmatch(text)
    bare = (around[1] if around else text).strip("[]( ,)")
    if not WRITTEN.fullmatch(bare):
        return None
    return int(bare) if bare.isdecimal() else float(bare)


def _says(name: str, words: re.Pattern[str]) -> bool:
    parts = PurePosixPath(name).parts[-2:]
    # Without the suffix, which is no word of a name: every .pt file would have one.
    stems = [*parts[:-1], *(part.partition(".")[0] for part in parts[-1:])]
    return any(words.fullmatch(word) for stem in stems for word in re.findall(r"[a-z]+", stem.lower()))
