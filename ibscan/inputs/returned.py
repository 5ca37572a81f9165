"""What a callable returns as a probe, to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ibscan.boundary import foreign, is_out_of_memory
from ibscan.errors import InputError, UsageError
from ibscan.inputs.choice import chosen, wanted_keys
from ibscan.inputs.code import called, named_callable
from ibscan.inputs.named import brief
from ibscan.types import Array

__all__ = ["as_numpy", "probe_from_code"]

EXPECTED = "expected x, a tuple (x, y), or a mapping with x and y"


def probe_from_code(spec: str, selection: str, *, run_script: bool = False) -> tuple[Array, Array | None]:
    """Call what a spec names, without arguments, and return its inputs and labels.

    Args:
        spec: `module:callable` or `path.py:callable`. This runs it.
        selection: `x=KEY,y=KEY` for a callable that returns a mapping, or empty.
        run_script: Also run code that trains or writes files when it is imported.

    Returns:
        Copies of x and y; y is None where there are no labels.

    Raises:
        UsageError: Several arrays of a mapping may be meant, or something is picked from what is no mapping.
        InputError: The callable cannot be had, fails, or returns something else.
    """
    where = f"--probe {spec}"
    value = called(named_callable(spec, "--probe", run_script=run_script), {}, where)
    with foreign(f"{where}:", "reading what it returned raised"):
        return _arrays(value, spec, selection, where)


def _arrays(value: Any, spec: str, selection: str, where: str) -> tuple[Array, Array | None]:  # noqa: ANN401
    if isinstance(value, Mapping):
        shapes = {str(key): _shape(part) for key, part in value.items() if part is not None}
        if not shapes:
            raise InputError(f"{where}: returned an empty mapping; {EXPECTED}.")
        x, y = chosen(shapes, wanted_keys(selection, spec), spec)
        parts = {str(key): part for key, part in value.items()}
        return _array(parts[x], "x", where), None if y is None else _array(parts[y], "y", where)
    if selection:
        raise UsageError(f"{where}#{selection}: it returns no mapping, so nothing is picked by '#'; leave it out.")
    # A tuple is a pair; a list is rows.
    if isinstance(value, tuple):
        if not 1 <= len(value) <= 2:
            raise InputError(f"{where}: returned a tuple of {len(value)}; {EXPECTED}.")
        labels = value[1] if len(value) == 2 else None
        return _array(value[0], "x", where), None if labels is None else _array(labels, "y", where)
    if not (isinstance(value, list) or hasattr(value, "__array__")):
        raise InputError(f"{where}: returned something of type {type(value).__name__}; {EXPECTED}.")
    return _array(value, "x", where), None


def _shape(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - as the code returned it
    shape = getattr(value, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else (len(value),) if isinstance(value, list) else ()


def _array(value: Any, role: str, where: str) -> Array:  # noqa: ANN401 - as the code returned it
    # numpy and torch raise ValueError, TypeError, RuntimeError, ... of what is no array.
    try:
        array = np.array(_numbers(value))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{where}: its {role} is no array ({brief(error)}); {EXPECTED}, as arrays.") from error
    return array


def _numbers(value: Any) -> Any:  # noqa: ANN401 - as the code returned it
    if isinstance(value, torch.Tensor):
        return as_numpy(value)
    if isinstance(value, list | tuple) and any(isinstance(part, torch.Tensor | list | tuple) for part in value):
        return [_numbers(part) for part in value]
    return value


def as_numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as an array on the CPU, outside of any graph."""
    tensor = tensor.detach().cpu()
    # numpy has neither bfloat16 nor the 8-bit floats; float32 holds all of them exactly.
    small = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    array: Array = (tensor.float() if small else tensor).resolve_conj().resolve_neg().numpy()
    return array
