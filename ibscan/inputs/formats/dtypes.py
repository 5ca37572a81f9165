"""Number formats of tensors by torch's names, known without torch: listing a file does not load it."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ITEM_SIZES"]

_BY_SIZE = {
    1: (
        "bool uint8 int8 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 "
        "qint8 quint8 quint4x2 quint2x4 bits8 bits1x8 bits2x4 bits4x2 "
        "int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7"
    ),
    2: "float16 bfloat16 int16 uint16 bits16",
    4: "float32 int32 uint32 qint32 complex32",
    8: "float64 int64 uint64 complex64",
    16: "complex128",
}
# Bytes an element takes.
ITEM_SIZES: Mapping[str, int] = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
