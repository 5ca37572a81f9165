"""Check statements of an untrusted file before they are used: its JSON, and the sizes of its arrays."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

__all__ = ["decoded_json", "stated_sizes"]

# Of numpy; a file may state any number.
MOST_DIMENSIONS = 64


def decoded_json(text: bytes) -> tuple[Any, list[str]]:
    """Decode UTF-8 JSON, and list names that stand twice in one object: readers differ in which one counts.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested absurdly deep.
    """
    doubled: list[str] = []

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            doubled.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return keys

    return json.loads(text.decode(), object_pairs_hook=to_dict), doubled


def stated_sizes(found: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - whatever the file states
    """Return the shape that a file states, or None if it is not a list of at most 64 non-negative integers.

    Example:
        >>> stated_sizes([2, 3]), stated_sizes((2, -1)), stated_sizes([True]), stated_sizes("2")
        ((2, 3), None, None, None)
    """
    is_shape = isinstance(found, tuple | list) and len(found) <= MOST_DIMENSIONS
    return tuple(found) if is_shape and all(type(size) is int and 0 <= size < 2**63 for size in found) else None
