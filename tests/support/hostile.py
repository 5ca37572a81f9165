"""Builders of hostile and damaged files, one a row of the table in test_hostile.py; all tiny and made on the spot."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes

import ibscan


def state(width: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "0.weight": torch.randn(width, 4, generator=generator),
        "0.bias": torch.zeros(width),
        "2.weight": torch.randn(2, width, generator=generator),
        "2.bias": torch.zeros(2),
    }


def torch_bytes(content: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


class Evil:
    """Pickles to a call of os.system that writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"echo ran > {self.canary}",)


def header_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4], "data_offsets": [begin, end]}


def rezipped(blob: bytes, compression: Any = zipfile.ZIP_STORED, **extra: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            if name not in extra:
                new.writestr(name, old.read(name))
        for name, content in extra.items():
            new.writestr(name, content)
    return stream.getvalue()


def flipped(blob: bytes, needle: bytes) -> bytes:
    place = blob.index(needle)
    return blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]


def many_entries(path: Path) -> None:
    """A zip whose directory claims a million entries, without a million entries."""
    blob = bytearray(torch_bytes(state()))
    wide = blob.rfind(b"PK\x06\x06")
    place = blob.rfind(b"PK\x05\x06")
    if wide >= 0:
        struct.pack_into("<Q", blob, wide + 32, 1_000_000)
    struct.pack_into("<I", blob, place + 12, 60 << 20)
    path.write_bytes(blob)


def many_names(path: Path) -> None:
    # One shared entry keeps the builder fast; the header is what is refused.
    text = "{" + ",".join(f'"t{i}":0' for i in range(1_500)) + "}"
    path.write_bytes(header_bytes(text.encode()))


def many_operations(path: Path) -> None:
    body = b"\x80\x02}" + b"K\x010" * 50_100 + b"."
    path.write_bytes(rezipped(torch_bytes(state()), **{"archive/data.pkl": body}))


def stride_bomb(path: Path) -> None:
    path.write_bytes(torch_bytes({"fc.weight": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}))


def legacy_storage_bomb(path: Path) -> None:
    blob = torch_bytes({"fc.weight": torch.zeros(77)}, zipped=False)
    # The element count stands in the pickle as BININT1 77: make it four bytes, 2 * 10^9.
    place = blob.index(b"K\x4d", blob.index(b"storage"))
    path.write_bytes(blob[:place] + b"J" + struct.pack("<i", 2_000_000_000) + blob[place + 2 :])


def bytearray_bomb(path: Path) -> None:
    body = b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85Rs."
    path.write_bytes(rezipped(torch_bytes(state()), **{"archive/data.pkl": body}))


def numpy_bomb(path: Path) -> None:
    body = (
        b"\x80\x02}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85c_codecs\nencode\nX\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87Rs."
    )
    path.write_bytes(rezipped(torch_bytes(state()), **{"archive/data.pkl": body}))


def with_pickle(body: bytes) -> bytes:
    return rezipped(torch_bytes(state()), **{"archive/data.pkl": b"\x80\x02" + body + b"."})


def deep_key(path: Path) -> None:
    path.write_bytes(with_pickle(b"})" + b"\x85" * 60_000 + b"K\x01s"))


def deep_call(path: Path) -> None:
    rebuild = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    # call(rebuild, type, (rebuild, type, (...))): every level asks for one more.
    path.write_bytes(with_pickle((rebuild + b"N") * 5_000 + b")" + b"\x87" * 4_999 + b"R"))


def socket_file(path: Path) -> None:
    # A socket's path is short by law, so it is bound by its name alone.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def tar_file(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO(b""))


def hdf5_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(3)


def matlab_file(path: Path, arrays: dict[str, tuple[np.ndarray, str]]) -> None:
    """A file as MATLAB 7.3 writes it: a header of its own before the HDF5, arrays transposed, their classes beside."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, (array, kind) in arrays.items():
            stored = array.astype(np.uint8) if kind == "logical" else array
            file.create_dataset(key, data=stored.T).attrs["MATLAB_class"] = np.bytes_(kind)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM")


def zip_of(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def whole_module(path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)


def quantised(path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"fc.weight": torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8)}, path)


def plain_pickle(content: object, protocol: int = 4) -> bytes:
    return pickle.dumps(content, protocol=protocol)


GOOD = safetensors_bytes(state())
F8 = entry(0, 8)


def other_case(path: Path) -> None:
    """Beside data.pkl a DATA.PKL, which torch would find first."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"w": Evil(path.parent / "canary")}))) as other:
        evil = other.read("archive/data.pkl")
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_bytes(state()))) as old, zipfile.ZipFile(stream, "w") as new:
        new.writestr("archive/DATA.PKL", evil)
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.write_bytes(stream.getvalue())


def bytes_before(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(60) + torch_bytes(state()))


def text_opcode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def colliding_keys(path: Path) -> None:
    """A dictionary whose keys all have the hash 0."""
    keys = [(k * (2**61 - 1)).to_bytes(10, "little") for k in range(1, 30_000)]
    path.write_bytes(with_pickle(b"}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in keys) + b"u"))


def shared_tables(path: Path) -> None:
    """A table of many tensors under as many names."""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x0ctQK\x00K\x03K\x04\x86K\x04K\x01\x86\x89}tR"
    )
    names = [text_opcode(f"k{k}") for k in range(10_000)]
    inner = b"}(" + names[0] + tensor + b"q\x01" + b"".join(name + b"h\x01" for name in names[1:]) + b"uq\x02"
    path.write_bytes(with_pickle(b"}(" + names[0] + inner + b"".join(name + b"h\x02" for name in names[1:]) + b"u"))


def array_by_class(path: Path) -> None:
    """numpy.ndarray((2**40,)): memory that nothing in the file stands for."""
    path.write_bytes(with_pickle(b"}X\x01\x00\x00\x00acnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85\x85Rs"))


def arguments_beside(path: Path) -> None:
    path.write_bytes(torch_bytes({"state_dict": state(), "args": argparse.Namespace(out=Path("x"))}))


def evil_object_array(path: Path) -> None:
    array = np.array([Evil(path.parent / "canary")], dtype=object)
    path.write_bytes(torch_bytes({"model": state(), "labels": array}))


def harmless_extras() -> bytes:
    """What training loops keep beside the weights, in a file of torch."""
    return torch_bytes(
        {
            "model": state(),
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float32(0.1)}]},
            "rng": np.random.default_rng(0).bit_generator.state,
            "numpy_rng": np.random.RandomState(0).get_state(),
            "torch_rng": torch.get_rng_state(),
            "step": np.int64(7),
            "names": {"a", "b"},
        }
    )


def evil_npz(run: Path) -> None:
    evil = np.array([[Evil(run / "canary")]], dtype=object)
    np.savez(run / "probe.npz", allow_pickle=True, x=evil)


def deflated_npz(run: Path) -> None:
    """A header that states 768 MiB of zeros, which deflate well and take 6 GiB as what they become."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (3 << 20, 256)})
    with (
        zipfile.ZipFile(run / "probe.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as entry,
    ):
        entry.write(stream.getvalue())
        for _ in range(3):
            entry.write(bytes(1 << 20))


def lzma_npz(path: Path) -> None:
    np.savez(path, x=np.zeros((3, 4)))
    path.write_bytes(rezipped(path.read_bytes(), zipfile.ZIP_LZMA))


def evil_probe(path: Path) -> None:
    path.write_bytes(torch_bytes({"x": torch.zeros(2, 4), "y": Evil(path.parent / "canary")}))


def linked_hdf5(path: Path) -> None:
    with h5py.File(path.parent.parent / "secret.h5", "w") as file:
        file["x"] = np.zeros((3, 4))
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("../secret.h5", "x")


@functools.cache
def result_bytes() -> bytes:
    """A small result, as a scan writes it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generator = np.random.default_rng(0)
        metadata = {"ibscan.model": "mlp:tanh", "ibscan.metric.loss": "0.5"}
        for step in (1, 2):
            (folder / f"s{step}.safetensors").write_bytes(safetensors_bytes(state(), {**metadata, "step": str(step)}))
        np.savez(folder / "probe.npz", x=generator.random((5, 4)), y=[0, 1, 0, 1, 1])
        ibscan.rank(folder, eps=0.1, rel_eps=0.1).to_hdf5(folder / "r.h5")
        return (folder / "r.h5").read_bytes()


def texts_everywhere(file: h5py.File, text: str) -> None:
    """Put a text before every string of a result that is not read by a program."""
    kept = {"format", "settings", "skipped", "dimensions", "ancillary_variables", "coordinates"}
    for owner in (file, *file.values()):
        for name, value in list(owner.attrs.items()):
            if isinstance(value, str) and name not in kept:
                owner.attrs[name] = text + value
    for name in ("checkpoint_name", "step_source", "layer", "layer_type"):
        file[name][...] = [text + word.decode() for word in file[name][...]]
    file.attrs["skipped"] = json.dumps({text: text})


def escapes_everywhere(file: h5py.File) -> None:
    texts_everywhere(file, "\x1b[31m\x9b\r\n\t[bold]x[/][x='y']\u202e\x07")


def formulas_everywhere(file: h5py.File) -> None:
    texts_everywhere(file, "=cmd()")
