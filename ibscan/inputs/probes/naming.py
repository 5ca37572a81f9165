"""Recognise inputs, labels and splits (train, test, ...) by the names of arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

__all__ = ["Shapes", "argument_of", "fits", "pairs", "role_of"]

INPUT_WORDS = {"x", "xs", "input", "inputs", "image", "images", "img", "imgs", "data", "pixels"}
INPUT_WORDS |= {"feature", "features", "feats", "sample", "samples"}
LABEL_WORDS = {"y", "ys", "label", "labels", "lbl", "lbls", "target", "targets", "class", "classes"}
# Words for a split, by its name.
SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "te"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "va"), "val"),
    **dict.fromkeys(("dev", "eval", "holdout"), ""),
}
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
TOKEN = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_A-Za-z]+")


def argument_of(key: str, inputs: str) -> str:
    """Return the argument name of an array that belongs to `inputs`: its name without the words that both share.

    Example:
        >>> argument_of("train/mask", "train/x"), argument_of("mask_test", "x_test"), argument_of("mask_test", "x")
        ('mask', 'mask', 'mask_test')
    """
    group, _, last = key.rpartition("/")
    if group == inputs.rpartition("/")[0]:
        shared = role_of(inputs.rpartition("/")[2])[1]
        words = last.split("_")
        kept = [word for word in words if (SPLITS.get(word.lower()) or word.lower()) not in shared]
        if kept and len(words) - len(kept) == len(shared):
            return "_".join(kept)
        return last
    return key


def role_of(key: str) -> tuple[str, tuple[str, ...]]:
    """Return the role of a name or path (`x`, `y` or the empty string), and its other words, the same for x and its y.

    Example:
        >>> role_of("train_images"), role_of("Ytr"), role_of("test/labels"), role_of("lengths")
        (('x', ('train',)), ('y', ('train',)), ('y', ('test',)), ('', ('lengths',)))
    """
    tokens = [part for token in TOKEN.findall(key) for part in _split_token(token.lower())]
    rest = tuple(SPLITS.get(token) or token for token in tokens if token not in INPUT_WORDS | LABEL_WORDS)
    if LABEL_WORDS & set(tokens):
        return "y", rest
    return ("x" if INPUT_WORDS & set(tokens) else ""), rest


def _split_token(token: str) -> tuple[str, ...]:
    """Split a token that joins a role and a split (`xtr`, `testlabels`)."""
    for k in range(1, len(token)):
        first, second = token[:k], token[k:]
        roles = {first, second} & (INPUT_WORDS | LABEL_WORDS)
        if len(roles) == 1 and (first in SPLITS or second in SPLITS):
            return first, second
    return (token,)


def fits(inputs: tuple[int, ...], labels: tuple[int, ...]) -> bool:
    """Tell whether two shapes fit inputs and their labels: one label, or one row of labels, an input."""
    if len(inputs) < 2 or not inputs[0] or not 1 <= len(labels) <= 2:
        return False
    return labels[0] == inputs[0] or labels == (1, inputs[0])


def pairs(shapes: Shapes) -> Iterator[tuple[str, str]]:
    """Yield arrays named like inputs, each with the labels of the same split that have as many rows."""
    roles = {key: role_of(key) for key in shapes}
    for key, (role, rest) in roles.items():
        if role == "x":
            for other, known in roles.items():
                if known == ("y", rest) and fits(shapes[key], shapes[other]):
                    yield key, other
