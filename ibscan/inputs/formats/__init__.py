"""The checkpoint formats: one file each, and one line here. To add one, write a Format and name it in FORMATS."""

from __future__ import annotations

from ibscan.inputs.formats.format import Format
from ibscan.inputs.formats.safetensors import SAFETENSORS
from ibscan.inputs.formats.torch_file import TORCH_LEGACY, TORCH_ZIP

__all__ = ["FORMATS", "Format"]

# Asked in this order.
FORMATS: tuple[Format, ...] = (
    TORCH_LEGACY,
    SAFETENSORS,
    TORCH_ZIP,
)
