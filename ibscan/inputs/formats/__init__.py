"""List the checkpoint formats, one file each: to add one, declare a Format and name it in FORMATS."""

from __future__ import annotations

from ibscan.inputs.formats.format import Format
from ibscan.inputs.formats.safetensors import SAFETENSORS
from ibscan.inputs.formats.torch_file import TORCH_LEGACY, TORCH_ZIP

__all__ = ["FORMATS", "Format"]

# In the order in which they are tried.
FORMATS: tuple[Format, ...] = (TORCH_LEGACY, SAFETENSORS, TORCH_ZIP)
