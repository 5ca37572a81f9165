"""Choose the arrays x and y of a probe, by `#x=KEY,y=KEY` or by usual names, without guessing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ibscan.core.text import listed
from ibscan.errors import UsageError
from ibscan.inputs.files import exists
from ibscan.inputs.probes.naming import Shapes, fits, pairs, role_of

__all__ = ["HELD", "INPUTS", "LABELS", "chosen_keys", "left_out", "split_spec", "wanted_keys"]

INPUTS = ("x", "X", "inputs", "input", "images", "data", "features", "F", "x_probe", "X_probe")
LABELS = ("y", "Y", "labels", "label", "targets", "target", "classes", "class", "y_probe", "Y_probe")
# Names that transformers give to the inputs of a model, and to the arrays beside them.
TRANSFORMER_INPUTS = ("pixel_values", "input_values", "input_features", "inputs_embeds", "input_ids")
AUXILIARY = re.compile(r"(.*_)?(mask|masks|lengths?|token_type_ids|position_ids|ids|weights?|index|indices)")
MOST_SUGGESTED, MOST_LISTED = 4, 12
# How the source of a probe begins that Python handed over: nothing is picked from it by '#'.
HELD = "probe="
# A shell needs no quotes around these characters.
UNQUOTED = re.compile(r"[\w@%+=:,./#-]*")


def split_spec(spec: str) -> tuple[str, str]:
    """Split a spec at the last `#`, unless it is a path that exists.

    Example:
        >>> split_spec("probe.npz#x=a,y=b")
        ('probe.npz', 'x=a,y=b')
    """
    if "#" not in spec or exists(spec):
        return spec, ""
    file, _, selection = spec.rpartition("#")
    return file, selection


def wanted_keys(selection: str, file: str) -> dict[str, str]:
    """Parse `x=KEY,y=KEY` of the probe `file` into keys by role; an empty key means no such array.

    Arrays to leave out (`attention_mask=`) have an empty key too.

    Raises:
        UsageError: It has another form.
    """
    wanted: dict[str, str] = {}
    for part in selection.split(",") if selection else []:
        role, equals, key = (word.strip() for word in part.partition("="))
        if not equals or not role or role in wanted or (key and role not in ("x", "y")):
            raise UsageError(
                f"{file}#{selection}: {part!r} cannot be read; expected #x=KEY,y=KEY, and NAME= for an array to leave "
                "out."
            )
        wanted[role] = key
    return wanted


def left_out(wanted: Mapping[str, str]) -> set[str]:
    """Return the names of the arrays that the user leaves out by `NAME=`."""
    return set(wanted) - {"x", "y"}


def chosen_keys(shapes: Shapes, wanted: Mapping[str, str], file: str) -> tuple[str, str | None]:
    """Return the keys of the inputs and of their labels or None, refusing to guess between several.

    Keys may be paths (`train/x`): usual names count in a group if no array outside of groups has one, and labels are
    searched first beside the inputs, in their group or by the other words of their name (`train`).

    Raises:
        UsageError: A missing key, or several possible ones.
    """
    for key in (*(wanted[role] for role in ("x", "y") if role in wanted), *left_out(wanted)):
        if key and key not in shapes:
            raise UsageError(f"{file}: there is no array {key!r}; there is {_listed(shapes)}.")
    if wanted.get("x") == "":
        raise UsageError(f"{file}: x= names no array; there is {_listed(shapes)}.")
    free = [key for key in shapes if key not in wanted.values() and key not in left_out(wanted)]
    inputs = wanted.get("x")
    if not inputs:
        found = _possible_inputs({key: shapes[key] for key in free})
        if len(found) != 1:
            raise _ambiguous("x", found, None, wanted, shapes, file)
        inputs = found[0]
    if "y" in wanted:
        return inputs, wanted["y"] or None
    labels = [key for key in _possible_labels(inputs, free) if key != inputs]
    # Of names of classes beside indices of classes only the indices have one entry a row.
    fitting = [key for key in labels if fits(shapes[inputs], shapes[key])]
    labels = fitting if len(fitting) == 1 else labels
    if len(labels) > 1:
        raise _ambiguous("y", labels, inputs, wanted, shapes, file)
    return inputs, labels[0] if labels else None


def _possible_inputs(free: Shapes) -> list[str]:
    """Return the keys that may be x: by name, by a part of the name, or because no other fits."""
    unlabelled = [key for key in free if _last(key) not in LABELS]
    return (
        [key for key in INPUTS if key in free]
        or [key for key in free if _last(key) in INPUTS]
        or [key for key in free if _last(key) in TRANSFORMER_INPUTS]
        or [key for key in free if role_of(key)[0] == "x" and len(free[key]) > 1]
        or [key for key in unlabelled if not AUXILIARY.fullmatch(_last(key))]
        or unlabelled
    )


def _possible_labels(inputs: str, free: Sequence[str]) -> list[str]:
    """Return the keys that may be y: in the inputs' group, with the same other words, or by a usual name."""
    group = inputs.rpartition("/")[0]
    role, rest = role_of(inputs)
    return (
        [key for key in (f"{group}/{name}" for name in LABELS) if group and key in free]
        or [key for key in free if role == "x" and rest and role_of(key) == ("y", rest)]
        or [key for key in LABELS if key in free]
    )


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _ambiguous(
    role: str, found: Sequence[str], inputs: str | None, wanted: Mapping[str, str], shapes: Shapes, file: str
) -> UsageError:
    """Return the error that lists the arrays and suggests specs that would be accepted."""
    if file.startswith(HELD):
        return UsageError(f"{file}: which array is {role} is not clear from {_listed(shapes)}; call it {role!r}.")
    suggested: list[str] = []
    for x, y in _suggestions(found, inputs, wanted, shapes):
        # A spec cannot hold a key with a comma.
        if "," not in x + y and len(suggested) < MOST_SUGGESTED:
            out = "".join(f",{key}=" for key in sorted(left_out(wanted)))
            spec = f"{file}#x={x},y={y}{out}"
            suggested.append(spec if UNQUOTED.fullmatch(spec) else f"'{spec}'")
    such = f", such as {' or '.join(dict.fromkeys(suggested))}" if suggested else ""
    return UsageError(f"{file}: which array is {role} is not clear from {_listed(shapes)}; add #x=KEY,y=KEY{such}.")


def _suggestions(
    found: Sequence[str], inputs: str | None, wanted: Mapping[str, str], shapes: Shapes
) -> Iterator[tuple[str, str]]:
    """Yield possible pairs of inputs and labels; an empty key means no labels."""
    if inputs is not None:
        yield from ((inputs, key) for key in found if fits(shapes[inputs], shapes[key]))
        yield inputs, ""
        return
    given = {key: shape for key, shape in shapes.items() if key not in left_out(wanted)}
    if "y" in wanted:
        label_key = wanted["y"]
        usable = [key for key in found or given if not label_key or fits(given[key], given[label_key])]
        yield from ((key, label_key) for key in usable if key != label_key)
        return
    paired = list(pairs(given))
    yield from paired
    alone = [key for key in found or given if len(given[key]) > 1 and key not in {x for x, _ in paired}]
    for key in sorted(alone, key=lambda key: -len(given[key])):
        labels = [
            other for other in _possible_labels(key, list(given)) if other != key and fits(given[key], given[other])
        ]
        yield from ((key, other) for other in labels or [""])


def _listed(shapes: Shapes) -> str:
    return listed([f"{key} {shape}" for key, shape in shapes.items()], MOST_LISTED)
