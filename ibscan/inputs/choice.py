"""Which array of a probe is x and which is y: as `#x=KEY,y=KEY` says, or by their usual names; never a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ibscan.errors import UsageError
from ibscan.inputs.files import exists

__all__ = ["INPUTS", "LABELS", "chosen", "split_spec", "wanted_keys"]

INPUTS = ("x", "X", "inputs", "input", "images", "data", "features", "F", "x_probe", "X_probe")
LABELS = ("y", "Y", "labels", "label", "targets", "target", "classes", "class", "y_probe", "Y_probe")


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
        `x` and `y` where they are named.

    Raises:
        UsageError: It has another form.
    """
    wanted: dict[str, str] = {}
    for part in selection.split(",") if selection else []:
        role, equals, key = part.partition("=")
        if role.strip() not in ("x", "y") or not equals or role.strip() in wanted:
            raise UsageError(f"{file}#{selection}: {part!r} cannot be read; expected #x=KEY,y=KEY.")
        wanted[role.strip()] = key.strip()
    return wanted


def chosen(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, str], file: str) -> tuple[str, str | None]:
    """Return which array is x and which is y, refusing to guess between several.

    Keys may be paths (`train/x`): the usual names count in a group where there is no array of that name outside of
    one, and labels are looked for beside the inputs first.

    Args:
        shapes: What there is.
        wanted: As `wanted_keys` returned it.
        file: The probe as the user named it, for a message.

    Returns:
        The key of the inputs, and of the labels where there are any.

    Raises:
        UsageError: A key that is not there, or several that may be meant.
    """
    for key in wanted.values():
        if key and key not in shapes:
            raise UsageError(f"{file}: there is no array {key!r}; there is {_listed(shapes)}.")
    if wanted.get("x") == "":
        raise UsageError(f"{file}: x= names no array; there is {_listed(shapes)}.")
    free = [key for key in shapes if key not in wanted.values()]
    inputs = wanted.get("x") or _only(_inputs(free), "x", shapes, file)
    if "y" in wanted:
        return str(inputs), wanted["y"] or None
    group = str(inputs).rpartition("/")[0]
    beside = [f"{group}/{name}" for name in LABELS] if group else []
    labels = [key for key in beside if key in free] or [key for key in LABELS if key in free]
    return str(inputs), _only([key for key in labels if key != inputs], "y", shapes, file)


def _inputs(free: Sequence[str]) -> list[str]:
    """Return what may be x: by its name, by its name within a group, or because all else has a label's name."""
    return (
        [key for key in INPUTS if key in free]
        or [key for key in free if _last(key) in INPUTS]
        or [key for key in free if _last(key) not in LABELS]
    )


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _only(fitting: Sequence[str], role: str, shapes: Mapping[str, tuple[int, ...]], file: str) -> str | None:
    if len(fitting) > 1 or (role == "x" and not fitting):
        by_rank = sorted(shapes, key=lambda key: -len(shapes[key]))
        example = f"x={by_rank[0]}" + (f",y={by_rank[-1]}" if len(by_rank) > 1 else "")
        raise UsageError(
            f"{file}: which array is {role} is not clear from {_listed(shapes)}; add #x=KEY,y=KEY, such as "
            f"{file}#{example}."
        )
    return fitting[0] if fitting else None


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    more = f" and {len(shapes) - 12} more" if len(shapes) > 12 else ""
    return ", ".join(f"{key} {shape}" for key, shape in list(shapes.items())[:12]) + more
