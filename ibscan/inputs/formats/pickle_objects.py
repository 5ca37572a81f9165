"""Describe the objects in a pickle (tensors, storages, calls), and tell which calls make plain data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ibscan.core.text import text_number
from ibscan.errors import CheckpointError
from ibscan.inputs.formats.dtypes import ITEM_SIZES
from ibscan.inputs.untrusted import stated_sizes

__all__ = [
    "Called",
    "Global",
    "Storage",
    "StoredTensor",
    "check_tensor",
    "is_harmless",
    "plain_number",
    "rebuilt_tensor",
    "stated_number",
]

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "UntypedStorage": "uint8",
}  # fmt: skip
STORAGE_GLOBALS = {
    f"{module}.{name}": dtype for name, dtype in STORAGES.items() for module in ("torch", "torch.storage", "torch.cuda")
}
DTYPE_GLOBALS = {f"torch.{name}": name for name in ITEM_SIZES}
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
NUMPY_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
DENSE = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
WRAPPERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
NOT_DENSE = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_nested_tensor": "nested",
}
# Training scripts keep their arguments in a Namespace; like a dictionary, it runs nothing.
PLAIN = (
    "collections.OrderedDict", "collections.Counter", "argparse.Namespace", "torch.Size", "torch.device",
    "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2", "torch.Tensor",
    "torch.per_tensor_affine", "torch.per_channel_affine", "_codecs.encode", "builtins.set", "builtins.complex",
    "builtins.bytearray", "numpy.dtype", "numpy.ndarray",
)  # fmt: skip
# A subset of torch's safe globals: anything else is refused before torch reads the file.
KNOWN = {*PLAIN, *NUMPY_SCALARS, *NUMPY_ARRAYS, *DENSE, *WRAPPERS, *NOT_DENSE, *STORAGE_GLOBALS, *DTYPE_GLOBALS}


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import."""

    name: str


@dataclass(frozen=True, eq=False)
class Called:
    """A call that the pickle would make, by name, with its arguments and the states set afterwards."""

    name: str
    args: tuple[Any, ...]
    state: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """A block of numbers stored beside the pickle."""

    key: str
    dtype: str
    elements: int

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return ITEM_SIZES[self.dtype]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as the pickle describes it; `kind` is dense, quantised, sparse, meta, nested or unreadable."""

    kind: str
    dtype: str
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None


def is_harmless(name: str, args: tuple[Any, ...]) -> bool:
    """Tell whether a call of a known global makes plain data, of a size that the file bounds."""
    if name == "builtins.bytearray":
        return not args or isinstance(args[0], bytes | str)
    if name in NUMPY_ARRAYS:
        return len(args) == 3 and args[1] == (0,) and args[0] == Global("numpy.ndarray")
    if name == "numpy.dtype":
        return bool(args) and isinstance(args[0], str) and bool(re.fullmatch(r"[<>|=]?[biufcSU]\d{0,4}", args[0]))
    # Called directly, these classes allocate any size that the argument states, as bytearray(10**12) does.
    classes = ("torch.Tensor", "numpy.ndarray")
    return name in KNOWN and name not in STORAGE_GLOBALS and name not in DTYPE_GLOBALS and name not in classes


def rebuilt_tensor(args: tuple[Any, ...]) -> StoredTensor:
    """Describe the dense tensor that torch's rebuild function makes of these arguments."""
    storage, offset, shape, stride = args[:4]
    shape, stride = _sizes(shape), _sizes(stride)
    if not isinstance(storage, Storage) or type(offset) is not int or shape is None or stride is None:
        return StoredTensor("unreadable", "unknown")
    override = next(
        (DTYPE_GLOBALS[part.name] for part in args[4:] if isinstance(part, Global) and part.name in DTYPE_GLOBALS), None
    )
    return StoredTensor("dense", override or storage.dtype, shape, stride, offset, storage)


def other_tensor(kind: str, args: tuple[Any, ...]) -> StoredTensor:
    """Describe a tensor that is not dense."""
    # A sparse tensor keeps its parts (indices, values, sizes) one tuple deeper.
    parts = [inner for part in args for inner in (part if isinstance(part, tuple) else (part,))]
    dtypes = [part.dtype for part in parts if isinstance(part, Storage | StoredTensor)]
    shape = next((sizes for part in (*args, *parts) if (sizes := _sizes(part))), ())
    return StoredTensor(kind, dtypes[-1] if dtypes else kind, shape)


def _sizes(found: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - from the file
    wrapped = isinstance(found, Called) and found.name == "torch.Size" and found.args
    return stated_sizes(found.args[0] if wrapped else found)


def plain_number(value: Any) -> int | float | None:  # noqa: ANN401 - a description
    """Return the number that a description holds (an int, a float, a numpy scalar or array of one), or None."""
    if isinstance(value, Called):
        return _numpy_number(value)
    # Python refuses to print integers of thousands of digits, and messages print this one.
    if isinstance(value, bool) or (isinstance(value, int) and value.bit_length() > 1024):
        return None
    return value if isinstance(value, int | float) else None


def _numpy_number(value: Called) -> int | float | None:
    if value.name in NUMPY_SCALARS and len(value.args) == 2:
        dtype, raw = value.args
    elif value.name in NUMPY_ARRAYS and value.state and isinstance(value.state[0], tuple) and len(value.state[0]) == 5:
        _, _, dtype, _, raw = value.state[0]
    else:
        return None
    if not (isinstance(dtype, Called) and isinstance(raw, bytes) and dtype.args):
        return None
    swapped = bool(dtype.state) and dtype.state[0][1] == ">"
    try:
        kind = np.dtype(str(dtype.args[0])).newbyteorder(">" if swapped else "<")
    except TypeError:
        return None
    if kind.kind not in "iuf" or kind.itemsize != len(raw):
        return None
    number = np.frombuffer(raw, kind)[0].item()
    return number if isinstance(number, int | float) else None


def stated_number(value: Any, read: Callable[[StoredTensor], int | float | None]) -> int | float | None:  # noqa: ANN401
    """Return the number that a described value states, as text, as a tensor of one element or in a list of one too.

    `read` returns the number in a tensor of one element.
    """
    if isinstance(value, list | tuple):
        return stated_number(value[0], read) if len(value) == 1 and not isinstance(value[0], list | tuple) else None
    if isinstance(value, StoredTensor):
        return read(value) if all(size == 1 for size in value.shape) else None
    return text_number(value) if isinstance(value, str) else plain_number(value)


def check_tensor(stored: str, tensor: StoredTensor, name: str) -> None:
    """Refuse a tensor, `stored` being its name, that is not dense or claims more elements than are stored.

    Raises:
        CheckpointError: A sparse or quantised tensor, or a 1.5 KB file that holds 10^12 elements of stride 0.
    """
    if tensor.kind != "dense" or tensor.storage is None:
        raise CheckpointError(
            f"{name}: {stored!r} is a {tensor.kind} tensor of dtype {tensor.dtype}; a dense one was expected. Save a "
            "plain copy (dequantised, dense) of the weights."
        )
    if len(tensor.stride) != len(tensor.shape):
        raise CheckpointError(
            f"{name}: {stored!r} has {len(tensor.shape)} sizes and {len(tensor.stride)} strides; the file is damaged."
        )
    count, last = 1, 1
    for size, stride in zip(tensor.shape, tensor.stride, strict=True):
        count, last = count * size, last + (size - 1) * stride
    held = tensor.storage.elements * tensor.storage.itemsize // ITEM_SIZES[tensor.dtype]
    if count and (count > held or tensor.offset < 0 or tensor.offset + last > held):
        raise CheckpointError(
            f"{name}: {stored!r} of shape {tensor.shape} claims {count} elements, but its storage holds {held}; "
            "refused."
        )
