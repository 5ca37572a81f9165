"""Find the containers that the layers of a file are in: one may be a chain, several are never joined by guess."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

__all__ = ["common_module", "numbered_alike", "separate_parts"]

# Lists with one layer in each item (`layers.0.linear`) count as lists of layers.
SEQUENCES = ("layers", "layer", "blocks", "block", "hidden", "hidden_layers", "linears", "fcs", "stages")
# Items of lists with these names are alternatives, not a chain, even if each is a single layer.
SIDE_BY_SIDE = re.compile(
    r"(sub_?)?(models|nets|networks|mlps)|members?|ensembles?|estimators_?|(base_?)?learners|experts|heads|critics|actors|"
    r"agents|policies|branches|towers|replicas|copies|students|teachers|generators|discriminators|decoders|encoders|"
    r"probes|tasks|seeds|runs|folds|\w*_(models|nets|networks|heads|experts|critics|members)"
)
# So are layers numbered under one of these words: `q1` and `q2`, `q1_fc1` and `q2_fc1`, `head_0`, ...
NUMBERED = re.compile(
    r"(?:^|_)(models?|members?|estimators?|learners?|experts?|heads?|critics?|actors?|agents?|policy|branch|tower|replica|"
    r"student|teacher|generator|discriminator|task|qf?|q_?net)[_-]?(\d+)(?=_|$)"
)
# Names of parts that do not form a chain with each other.
ROLES = (
    {"actor", "critic"},
    {"policy", "value", "pi", "vf", "v", "advantage"},
    {"generator", "discriminator"},
    {"netg", "netd"},
    {"online", "target"},
    {"student", "teacher"},
    {"query", "key"},
    {"mu", "logvar", "sigma", "logstd", "var", "std"},
    {"mean", "logvar", "std", "var"},
)


def separate_parts(layers: Iterable[str]) -> list[str]:
    """Return the containers of a file's layers if they cannot be one chain, an empty list if they may be.

    Layers may be one chain if they are in one module and its parents: `layers.0`, `layers.2` and `out`; `model.net.0`,
    `model.net.2` and `model.head`.

    Args:
        layers: Dotted names, in the file's order.

    Example:
        >>> separate_parts(["layers.0", "layers.2", "out"])
        []
        >>> separate_parts(["members.0.0", "members.0.2", "members.1.0", "members.1.2"])
        ['members.0', 'members.1']
        >>> separate_parts(["backbone.layers.0", "backbone.layers.2", "head.0"])
        ['backbone', 'head']
    """
    paths = _merged([tuple(name.split(".")) for name in layers])
    parents = {path[:-1] for path in paths}
    deepest = max(parents, key=len, default=())
    if any(deepest[: len(parent)] != parent for parent in parents):
        return _below(_common(sorted(parents)), paths)
    for parent in sorted(parents, key=len):
        children = _below(parent, paths)
        alternatives = parent and SIDE_BY_SIDE.fullmatch(parent[-1].lower()) and not _spaced(children)
        if len(children) > 1 and (alternatives or _numbered(children)):
            return children
        if any(len(_roles_in(children, roles)) > 1 for roles in ROLES):
            return children
    return []


def numbered_alike(layers: Iterable[str]) -> bool:
    """Return whether the names of the layers' containers differ in numbers alone."""
    return len({re.sub(r"\d+", "#", name.rpartition(".")[0]) for name in layers}) == 1


def common_module(layers: Iterable[str]) -> str:
    """Return the innermost module that contains all layers (`model` of a LightningModule), '' for the network."""
    return ".".join(_common(sorted(tuple(name.split("."))[:-1] for name in layers)))


def _merged(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Shorten `layers.0.linear` to `layers.0` where it is the only layer in `layers.0`."""
    count: dict[tuple[str, ...], int] = {}
    for path in paths:
        for depth in range(len(path)):
            count[path[:depth]] = count.get(path[:depth], 0) + 1

    def alone(path: tuple[str, ...]) -> bool:
        return len(path) > 2 and path[-2].isdecimal() and path[-3].lower() in SEQUENCES and count[path[:-1]] == 1

    return [path[:-1] if alone(path) else path for path in paths]


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    first, last = paths[0], paths[-1]
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def _below(parent: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the dotted names of a module's children, in the order of the paths."""
    depth = len(parent)
    return list(dict.fromkeys(".".join(path[: depth + 1]) for path in paths if path[:depth] == parent))


def _spaced(names: Sequence[str]) -> bool:
    """Return whether numbers have gaps throughout (0, 2, 4), as in a chain with activations between the layers."""
    numbers = [name.rpartition(".")[2] for name in names]
    if not all(number.isdecimal() and len(number) < 10 for number in numbers):
        return False
    ordered = sorted(int(number) for number in numbers)
    return all(b - a > 1 for a, b in itertools.pairwise(ordered))


def _numbered(names: Sequence[str]) -> bool:
    """Return whether one of the words of `NUMBERED` has several numbers."""
    found: dict[str, set[str]] = {}
    for name in names:
        for word, number in NUMBERED.findall(name.rpartition(".")[2].lower()):
            found.setdefault(word, set()).add(number)
    return any(len(numbers) > 1 for numbers in found.values())


def _roles_in(names: Sequence[str], roles: set[str]) -> set[str]:
    """Return the roles that the last parts of names contain."""
    last = [name.rpartition(".")[2].lower() for name in names]
    words = [{word.replace("_", ""), *re.split(r"[_\-\d]+", word)} for word in last]
    return {role for found in words for role in roles & found}
