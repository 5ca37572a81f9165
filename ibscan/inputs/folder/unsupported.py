"""Describe files and folders of formats that are not read, each with a way out."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

__all__ = ["UNREAD_SUFFIXES", "folder_kind", "refusal"]

# Suffixes of checkpoints of formats that are not read.
UNREAD_SUFFIXES = (".pt2", ".onnx", ".keras", ".distcp", ".weights.h5")

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
    "hdf5": "is an HDF5 file (Keras weights?), which is not read as a checkpoint; save its arrays under the names of "
    "the torch model with safetensors.numpy.save_file.",
    "npy": "is a numpy array, which is no checkpoint; save the arrays under their names with "
    "safetensors.numpy.save_file.",
    "mat": "is a MATLAB file, which is no checkpoint; save a single .safetensors file of the state dict.",
    "idx": "is an IDX data file, which is no checkpoint; give it as --probe if it is one.",
    "onnx": "is an ONNX graph, which is not read; save the state dict of the torch model it was exported from.",
}
BY_SUFFIX = {
    ".onnx": SENTENCES["onnx"],
    ".distcp": "is one part of a distributed checkpoint (DCP), which is not read; where you trust "
    "its folder, turn it into one file: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER "
    "FILE.pt`.",
    ".msgpack": "is a Flax file, which is not read; restore it with flax.serialization.msgpack_restore and save it "
    "under the names of the torch model with safetensors.flax.save_file.",
    ".pb": "is a TensorFlow file, which is not read; save its variables under the names of the torch model with "
    "safetensors.tensorflow.save_file.",
}
STATES = re.compile(r"((bf16_)?zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt$")
CONSOLIDATED = re.compile(r"consolidated\.\d+\.(pth|pt|safetensors)$")


def refusal(kind: str, path: Path, name: str, size: int) -> str:
    """Return the message for a file whose content is no checkpoint; `kind` is that of `content_kind`."""
    sentence = SENTENCES.get(kind) or BY_SUFFIX.get(path.suffix)
    if sentence:
        return f"{name}: {sentence}"
    if size < 16:
        return f"{name}: is truncated: it has {size} bytes, too few for any checkpoint; save or copy it again."
    return (
        f"{name}: its content is neither safetensors nor a torch file (expected a header length and '{{', a zip, "
        "or a pickle); it is damaged or of another kind."
    )


def folder_kind(names: Collection[str]) -> tuple[str, re.Pattern[str] | None]:
    """Recognise a folder that is one checkpoint of a kind that is not read, by the names in it.

    Returns:
        The message and the pattern of the names of its files; the empty string and None for any other folder.
    """
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return (
            "is a distributed checkpoint (DCP), whose .metadata is a pickle and is not read; where you trust it, turn "
            "it into one file: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt`."
        ), re.compile(r"\.metadata$|.*\.distcp$")
    if "saved_model.pb" in names:
        return (
            "is a TensorFlow SavedModel, which is not read; save its variables under the names of the torch model with "
            "safetensors.tensorflow.save_file."
        ), re.compile(r"saved_model\.pb$")
    if not {"_METADATA", "_CHECKPOINT_METADATA", "_sharding"}.isdisjoint(names):
        return (
            "is an Orbax checkpoint, which is not read; restore it with orbax and save it under the names of the torch "
            "model with safetensors.flax.save_file."
        ), re.compile(r"_METADATA$|_CHECKPOINT_METADATA$|_sharding$")
    states = [name for name in names if STATES.match(name)]
    if len(states) > 1 or any("zero_pp" in name for name in states):
        return (
            "is a DeepSpeed checkpoint whose weights are spread over several ranks, which is not read; merge them with "
            "the zero_to_fp32.py that DeepSpeed wrote beside it."
        ), STATES
    if sum(bool(CONSOLIDATED.match(name)) for name in names) > 1:
        return (
            "holds the consolidated.NN parts of a tensor-parallel checkpoint, each a slice of every weight, which are "
            "not read; merge them into one state dict with the converter of their model."
        ), CONSOLIDATED
    return "", None
