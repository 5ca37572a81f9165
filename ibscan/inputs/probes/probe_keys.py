"""Choose which array of a probe is x and which is y: by `#x=KEY,y=KEY` or by usual names; never a guess."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ibscan.core.text import listed
from ibscan.errors import UsageError
from ibscan.inputs.files import exists
from ibscan.inputs.probes.naming import fits, pairs, role_of

__all__ = ["INPUTS", "LABELS", "chosen", "left_out", "split_spec", "wanted_keys"]

INPUTS = ("x", "X", "inputs", "input", "images", "data", "features", "F", "x_probe", "X_probe")
LABELS = ("y", "Y", "labels", "label", "targets", "target", "classes", "class", "y_probe", "Y_probe")
# What transformers call the inputs of a model, and what goes beside them.
FED = ("pixel_values", "input_values", "input_features", "inputs_embeds", "input_ids")
BESIDE = re.compile(r"(.*_)?(mask|masks|lengths?|token_type_ids|position_ids|ids|weights?|index|indices)")
MOST_SUGGESTED, MOST_LISTED = 4, 12
# What a shell takes as it stands.
UNQUOTED = re.compile(r"[\w@%+=:,./#-]*")


def split_spec(spec: str) -> tuple[str, str]:
    """Return what stands before and after the last `#`; a path that exists is that path, whatever is in it.

    Example:
        >>> split_spec("probe.npz#x=a,y=b")
        ('probe.npz', 'x=a,y=b')
    """
    if "#" not in spec or exists(spec):
        return spec, ""
    file, _, selection = spec.rpartition("#")
    return file, selection


def wanted_keys(selection: str, file: str) -> dict[str, str]:
    """Return the keys of `x=KEY,y=KEY`, by role; an empty key says that there is none.

    Args:
        selection: What stands behind the `#`; may be empty.
        file: The probe as the user named it, for a message.

    Returns:
        `x` and `y` where they are named, and empty strings for arrays that are left out (`attention_mask=`).

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
    """Return the arrays that the user leaves out by `NAME=`."""
    return set(wanted) - {"x", "y"}


def chosen(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, str], file: str) -> tuple[str, str | None]:
    """Return which array is x and which is y, refusing to guess between several.

    Keys may be paths (`train/x`): the usual names count in a group where there is no array of that name outside of
    one, and labels are looked for beside the inputs first, in the group or by what else is in the name (`train`).

    Returns:
        The key of the inputs, and of the labels where there are any.

    Raises:
        UsageError: A key that is not there, or several that may be meant.
    """
    for key in (*(wanted[role] for role in ("x", "y") if role in wanted), *left_out(wanted)):
        if key and key not in shapes:
            raise UsageError(f"{file}: there is no array {key!r}; there is {_listed(shapes)}.")
    if wanted.get("x") == "":
        raise UsageError(f"{file}: x= names no array; there is {_listed(shapes)}.")
    free = [key for key in shapes if key not in wanted.values() and key not in left_out(wanted)]
    inputs = wanted.get("x")
    if not inputs:
        found = _inputs({key: shapes[key] for key in free})
        if len(found) != 1:
            raise _unclear("x", found, None, wanted, shapes, file)
        inputs = found[0]
    if "y" in wanted:
        return inputs, wanted["y"] or None
    labels = [key for key in _labels(inputs, free) if key != inputs]
    # Names of classes beside their indices: only one of the two has as many entries as there are rows.
    fitting = [key for key in labels if fits(shapes[inputs], shapes[key])]
    labels = fitting if len(fitting) == 1 else labels
    if len(labels) > 1:
        raise _unclear("y", labels, inputs, wanted, shapes, file)
    return inputs, labels[0] if labels else None


def _inputs(free: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what may be x: by its name, by a part of its name, or because all else has another name."""
    unlabelled = [key for key in free if _last(key) not in LABELS]
    return (
        [key for key in INPUTS if key in free]
        or [key for key in free if _last(key) in INPUTS]
        or [key for key in free if _last(key) in FED]
        or [key for key in free if role_of(key)[0] == "x" and len(free[key]) > 1]
        or [key for key in unlabelled if not BESIDE.fullmatch(_last(key))]
        or unlabelled
    )


def _labels(inputs: str, free: Sequence[str]) -> list[str]:
    """Return what may be y: in the inputs' group, named as they are otherwise, or by its name alone."""
    group = inputs.rpartition("/")[0]
    role, rest = role_of(inputs)
    return (
        [key for key in (f"{group}/{name}" for name in LABELS) if group and key in free]
        or [key for key in free if role == "x" and rest and role_of(key) == ("y", rest)]
        or [key for key in LABELS if key in free]
    )


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _unclear(
    role: str,
    found: Sequence[str],
    inputs: str | None,
    wanted: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    file: str,
) -> UsageError:
    """Return the error that says what there is, and what to write instead: only what would be taken."""
    suggested: list[str] = []
    for x, y in _suggestions(found, inputs, wanted, shapes):
        # A comma ends a key where it is picked.
        if "," not in x + y and len(suggested) < MOST_SUGGESTED:
            out = "".join(f",{key}=" for key in sorted(left_out(wanted)))
            spec = f"{file}#x={x},y={y}{out}"
            suggested.append(spec if UNQUOTED.fullmatch(spec) else f"'{spec}'")
    such = f", such as {' or '.join(dict.fromkeys(suggested))}" if suggested else ""
    return UsageError(f"{file}: which array is {role} is not clear from {_listed(shapes)}; add #x=KEY,y=KEY{such}.")


def _suggestions(
    found: Sequence[str],
    inputs: str | None,
    wanted: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, str]]:
    """Yield inputs with labels that may be theirs, an empty key for none."""
    if inputs is not None:
        yield from ((inputs, key) for key in found if fits(shapes[inputs], shapes[key]))
        yield inputs, ""
        return
    given = {key: shape for key, shape in shapes.items() if key not in left_out(wanted)}
    if "y" in wanted:
        known = wanted["y"]
        usable = [key for key in found or given if not known or fits(given[key], given[known])]
        yield from ((key, known) for key in usable if key != known)
        return
    paired = list(pairs(given))
    yield from paired
    alone = [key for key in found or given if len(given[key]) > 1 and key not in {x for x, _ in paired}]
    for key in sorted(alone, key=lambda key: -len(given[key])):
        labels = [other for other in _labels(key, list(given)) if other != key and fits(given[key], given[other])]
        yield from ((key, other) for other in labels or [""])


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return listed([f"{key} {shape}" for key, shape in shapes.items()], MOST_LISTED)
