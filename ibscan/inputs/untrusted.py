"""Check what a foreign file states before it is used: its JSON, and the sizes of its arrays."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

__all__ = ["decoded_json", "stated_sizes"]

# No array has more dimensions; a file may state any number of them.
MOST_SIZES = 64


def decoded_json(text: bytes) -> tuple[Any, list[str]]:
    """Decode JSON, and list names that stand twice in one table of it: readers differ in which of the two counts.

    Returns:
        The value, and such names.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested absurdly deep.
    """
    doubled: list[str] = []

    def collected(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            doubled.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return keys

    return json.loads(text.decode(), object_pairs_hook=collected), doubled


def stated_sizes(found: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - whatever the file states
    """Return the sizes of an array as a file states them, or None where they are not at most 64 sizes from 0 on.

    Example:
        >>> stated_sizes([2, 3]), stated_sizes((2, -1)), stated_sizes([True]), stated_sizes("2")
        ((2, 3), None, None, None)
    """
    plain = isinstance(found, tuple | list) and len(found) <= MOST_SIZES
    return tuple(found) if plain and all(type(size) is int and 0 <= size < 2**63 for size in found) else None
