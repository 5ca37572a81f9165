"""One sentence for every kind of file that is no checkpoint here: what it is, and the way out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["folder_kind", "is_part", "refusal"]

LATER = "comes in a later version; save a single .safetensors file of the state dict"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin|pt|pth)$")
SENTENCES = {
    "lfs": "is a Git LFS pointer, not the weights themselves; run `git lfs pull` in its folder.",
    "empty": "has zero bytes: the save was cut short or the disk was full; save or copy it again.",
    "text": "is a text file, but a safetensors or torch checkpoint was expected; check what was saved under this name.",
    "tar": "is a tar archive (or a torch file of before version 0.4), which is not read; unpack it, or save a "
    ".safetensors file.",
    "gzip": "is compressed with gzip; unpack it first (gunzip).",
    "bzip2": "is compressed with bzip2; unpack it first (bunzip2).",
    "xz": "is compressed with xz; unpack it first (unxz).",
    "zstd": "is compressed with zstd; unpack it first (unzstd).",
    "hdf5": f"is an HDF5 file (Keras weights?); reading it as a checkpoint {LATER}.",
    "npy": f"is a numpy file; reading it as a checkpoint {LATER}.",
    "mat": "is a MATLAB file, which is no checkpoint; save a single .safetensors file of the state dict.",
    "idx": "is an IDX data file, which is no checkpoint; give it as --probe if it is one.",
    "onnx": f"is an ONNX graph; reading it as a checkpoint {LATER}.",
}
BY_SUFFIX = {
    ".onnx": SENTENCES["onnx"],
    ".distcp": f"is a shard of a distributed checkpoint (DCP); DCP {LATER}.",
    ".msgpack": f"is a Flax file; reading it as a checkpoint {LATER}.",
    ".pb": f"is a TensorFlow file; reading it as a checkpoint {LATER}.",
}


def refusal(kind: str, path: Path, name: str, size: int) -> str:
    """Return the sentence for a file whose content is no checkpoint.

    Args:
        kind: What `content_kind` says of its first bytes.
        path: The file, for its suffix.
        name: What to call it in the sentence.
        size: Its length in bytes.

    Returns:
        The sentence.
    """
    if kind == "unknown" and path.suffix in BY_SUFFIX:
        return f"{name}: {BY_SUFFIX[path.suffix]}"
    if kind in SENTENCES:
        return f"{name}: {SENTENCES[kind]}"
    if size < 16:
        return f"{name}: is truncated: it has {size} bytes, too few for any checkpoint; save or copy it again."
    return (
        f"{name}: its content is neither safetensors nor a torch file (expected a header length and '{{', a zip, "
        "or a pickle); it is damaged or of another kind."
    )


def is_part(path: Path, paths: Sequence[Path]) -> bool:
    """Tell whether a file is a shard, or named by an index beside it."""
    return bool(SHARD.search(path.name)) or path.suffix == ".distcp" or Path(f"{path}.index.json") in paths


def folder_kind(paths: Sequence[Path]) -> str:
    """Return the sentence for a folder that is one checkpoint of a kind not read yet, or the empty string."""
    names = {path.name for path in paths}
    if any(name.endswith((".safetensors.index.json", ".bin.index.json")) for name in names):
        index = next(name for name in sorted(names) if name.endswith(".index.json"))
        return f"{index} names the shards of a sharded checkpoint; reading shards {LATER}."
    if any(SHARD.search(name) for name in names):
        return f"holds shards of a sharded checkpoint without their index; reading shards {LATER}."
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return f"is a distributed checkpoint (DCP), whose .metadata is a pickle; DCP {LATER}."
    if "saved_model.pb" in names:
        return f"is a TensorFlow SavedModel; reading it {LATER}."
    if names & {"_METADATA", "_CHECKPOINT_METADATA", "_sharding"}:
        return f"is an Orbax checkpoint; Orbax {LATER}."
    if any(name.endswith("model_states.pt") and name.startswith(("mp_rank", "zero_pp", "bf16_zero")) for name in names):
        return f"is a DeepSpeed checkpoint of several ranks; reading it {LATER} (zero_to_fp32.py does)."
    return ""
