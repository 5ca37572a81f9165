"""Convert a probe that code returns, or that Python handed over, to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ibscan.core.boundary import is_out_of_memory, user_code
from ibscan.core.records import Array
from ibscan.core.text import first_line
from ibscan.errors import InputError, UsageError
from ibscan.inputs.code.live import Live
from ibscan.inputs.code.load import called, named_callable
from ibscan.inputs.probes.probe_keys import HELD, INPUTS, chosen_keys, wanted_keys

if TYPE_CHECKING:
    import torch

__all__ = ["Returned", "as_numpy", "held", "probe_from_code", "probe_from_object"]

EXPECTED = "expected x, a tuple (x, y), or a mapping with x and y"


@dataclass(frozen=True)
class Returned:
    """Copies of x and y (None without labels), all parts of a mapping, and the keys of x and y in it."""

    x: Array
    y: Array | None
    where: str
    parts: Mapping[str, Any]
    inputs: str = "x"
    labels: str | None = "y"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all arrays in the mapping."""
        return {key: shape for key, part in self.parts.items() if (shape := _shape(part))}

    def read(self, key: str) -> Array:
        """Return one of the arrays beside x and y."""
        return _array(self.parts[key], repr(key), self.where)


def probe_from_code(spec: str, selection: str, *, run_script: bool = False) -> Returned:
    """Call the callable that a spec names, without arguments, and return its inputs and labels. This runs code.

    A tuple is (x,) or (x, y), and so is a list of arrays. A list of lists is rows, unless it is two parts of different
    shapes: then it is x and y.

    Args:
        spec: `module:callable` or `path.py:callable`.
        selection: `x=KEY,y=KEY` for a callable that returns a mapping, or empty.
        run_script: Also run code that trains or writes files when it is imported.

    Raises:
        UsageError: Ambiguous arrays in a mapping, or a selection from another result.
        InputError: The callable is missing, fails, or returns something else.
        ResourceError: Memory runs out.
    """
    return _from_callable(named_callable(spec, "--probe", run_script=run_script), spec, selection, f"--probe {spec}")


def held(value: Any) -> Live:  # noqa: ANN401 - whatever was handed over
    """Describe arrays that Python hands over as a probe: the name that messages and the result give them.

    Example:
        >>> str(held((1, 2))), str(held({"x": 1})), str(held([1, 2]))
        ('(x, y)', '{...}', 'list')
    """
    pair = isinstance(value, tuple) and len(value) == 2
    shown = "(x, y)" if pair else "{...}" if isinstance(value, Mapping) else type(value).__name__
    return Live(value, shown, f"{HELD}{shown}")


def probe_from_object(given: Live) -> Returned:
    """Return the inputs and labels of what Python handed over: arrays, or a function that returns them.

    Raises:
        UsageError: Ambiguous arrays in a mapping.
        InputError: It is something else, or a function of it fails.
        ResourceError: Memory runs out.
    """
    where = f"--probe {given}"
    if given.defined or callable(given.found):
        return _from_callable(given.found, given.spec, "", where)
    with user_code(f"{where}:", "reading it raised"):
        return _returned(given.found, given.spec, "", {}, where, "is")


def _from_callable(function: Callable[..., Any], spec: str, selection: str, where: str) -> Returned:
    value = called(function, {}, where)
    wanted = wanted_keys(selection, spec)
    with user_code(f"{where}:", "reading what it returned raised"):
        return _returned(value, spec, selection, wanted, where)


def _returned(
    value: Any,  # noqa: ANN401 - as the code returned it
    spec: str,
    selection: str,
    wanted: Mapping[str, str],
    where: str,
    verb: str = "returned",
) -> Returned:
    import torch

    if isinstance(value, torch.utils.data.TensorDataset):
        value = value.tensors
    fields = getattr(value, "_fields", ())
    if isinstance(value, tuple) and set(fields) & set(INPUTS):
        value = dict(zip(fields, value, strict=True))
    if isinstance(value, Mapping):
        # A user's own mapping may run code when it is read.
        parts = called(lambda: {str(key): part for key, part in value.items() if part is not None}, {}, where)
        if not parts:
            raise InputError(f"{where}: {verb} an empty mapping; {EXPECTED}.")
        x, y = chosen_keys({key: _shape(part) for key, part in parts.items()}, wanted, spec)
        labels = None if y is None else _array(parts[y], "y", where)
        return Returned(_array(parts[x], "x", where), labels, where, parts, x, y)
    if wanted and wanted != {"y": ""}:
        raise UsageError(f"{where}#{selection}: it returns no mapping, so nothing is picked by '#'; leave it out.")
    if isinstance(value, list) and _is_pair(value, where, verb):
        value = tuple(value)
    if isinstance(value, tuple):
        if not 1 <= len(value) <= 2:
            raise InputError(f"{where}: {verb} a tuple of {len(value)}; {EXPECTED}.")
        second = None if len(value) == 1 or wanted else value[1]
        return Returned(_array(value[0], "x", where), None if second is None else _array(second, "y", where), where, {})
    if not (isinstance(value, list) or hasattr(value, "__array__")):
        raise InputError(f"{where}: {verb} something of type {type(value).__name__}; {EXPECTED}{_remedy(value)}.")
    return Returned(_array(value, "x", where), None, where, {})


def _remedy(value: Any) -> str:  # noqa: ANN401 - as the code returned it
    """Return how to take arrays from what torch trains on, which would change from pass to pass; else nothing."""
    import torch

    if isinstance(value, torch.utils.data.DataLoader):
        return ". A loader may shuffle, and a probe is fixed rows: give one batch of it, x, y = next(iter(loader))"
    if isinstance(value, torch.utils.data.Dataset):
        return ". Give its arrays, such as those of one batch: x, y = next(iter(DataLoader(dataset, 1000)))"
    return ""


def _is_pair(value: list[Any], where: str, verb: str) -> bool:
    """Tell whether a list is [x, y] or [x], and not rows.

    Raises:
        UsageError: It may be either.
    """
    shapes = [_shape(part) for part in value]
    arrays = bool(value) and all(hasattr(part, "__array__") for part in value)
    if len(value) == 1:
        return arrays and len(shapes[0]) > 1
    if len(value) == 2 and (value[1] is None or (shapes[0] != shapes[1] and len(shapes[0]) > 1)):
        return True
    if len(value) == 2 and arrays and shapes[0] == shapes[1] and len(shapes[0]) > 1:
        raise UsageError(
            f"{where}: {verb} a list of two arrays of shape {shapes[0]}, which may be x and y or two rows; "
            f"{'give' if verb == 'is' else 'return'} a tuple (x, y), or the rows as one array."
        )
    return False


def _shape(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - as the code returned it
    """Return the shape of an array, or of the array that nested lists make."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return tuple(shape)
    if hasattr(value, "__array__"):  # pandas and the like
        return tuple(np.shape(value))
    if isinstance(value, list | tuple):
        return (len(value), *(_shape(value[0]) if len(value) else ()))
    return ()


def _array(value: Any, role: str, where: str) -> Array:  # noqa: ANN401 - as the code returned it
    # numpy and torch raise ValueError, TypeError, RuntimeError, ... on other objects.
    try:
        found = _numbers(value)
        array = np.array(found)
        if isinstance(found, np.ma.MaskedArray) and np.ma.is_masked(found):
            # Masked entries are missing, with arbitrary numbers underneath.
            array = array.astype(np.float64 if array.dtype.kind in "biuf" else np.object_)
            array[np.ma.getmaskarray(found)] = np.nan
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{where}: its {role} is no array ({first_line(error)}); {EXPECTED}, as arrays.") from error
    return array


def _numbers(value: Any) -> Any:  # noqa: ANN401 - as the code returned it
    import torch

    if isinstance(value, torch.Tensor):
        return as_numpy(value)
    if isinstance(value, list | tuple) and any(isinstance(part, torch.Tensor | list | tuple) for part in value):
        return [_numbers(part) for part in value]
    return value


def as_numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as a numpy array, detached and on the CPU."""
    import torch

    tensor = tensor.detach().cpu()
    # numpy has neither bfloat16 nor the 8-bit floats; float32 holds all of them exactly.
    small = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    array: Array = (tensor.float() if small else tensor).resolve_conj().resolve_neg().numpy()
    return array
