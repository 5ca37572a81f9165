"""Strategies for test_fuzz.py: valid files of every format, then damaged by bytes or rebuilt with odd parts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import torch
from hypothesis import strategies as st

from ibscan.results.store import _seal
from support import hostile as make

Draw = Callable[[st.SearchStrategy[Any]], Any]
NAMES = st.sampled_from(
    ["x", "y", "0.weight", "model", "state_dict", "ema", "epoch", "step", "", "a/b", "\0", "\ud83d"]
)
TEXTS = st.one_of(NAMES, st.text(max_size=8), st.sampled_from(["mlp:tanh", "nan", "1e999", "9" * 5000, "\x1b[31m"]))
NUMBERS = st.one_of(
    st.integers(-3, 5), st.integers(-(2**70), 2**70), st.sampled_from([2**63, 2**64 - 1, 10**400]), st.floats()
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
SHAPES = st.lists(st.one_of(st.integers(0, 5), st.sampled_from([2**31, 2**62, -1])), max_size=4)
DTYPES = ["f8", "f4", "f2", ">f8", "i1", "u1", ">i4", "i8", "u8", "?", "c8", "S3", "U2", "M8[D]", "V4", "O"]


def damaged(draw: Draw, blob: bytes) -> bytes:
    """Change a few bytes, cut, repeat or leave out a piece."""
    found = bytearray(blob)
    for place, byte in draw(st.lists(st.tuples(st.integers(0, len(blob) - 1), st.integers(0, 255)), max_size=4)):
        found[place] = byte
    a, b = sorted((draw(st.integers(0, len(blob))), draw(st.integers(0, len(blob)))))
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "repeat", "leave out"]))
    return bytes(
        {"whole": found, "cut": found[:b], "repeat": found[:b] + found[a:], "leave out": found[:a] + found[b:]}[kind]
    )


# Valid files


def numpy_file(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


def hdf5(build: Callable[[h5py.File], object], userblock: int = 0) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=userblock) as file:
        build(file)
    return stream.getvalue()


def probe_hdf5(file: h5py.File) -> None:
    file.create_dataset("train/x", data=X, chunks=(2, 3), compression="gzip", shuffle=True, fletcher32=True)
    file["train/y"] = ["cat", "ant", "cat", "dog"]


X, Y = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), np.array([2, 0, 2, 5])
STATE = {"model": make.state(), "step": 3, "optimizer": {"state": {0: torch.ones(2)}}, "rng": np.float32(0.1)}
PAIR = {"x": torch.tensor(X), "y": torch.tensor(Y)}
CHECKPOINTS = {
    "a.safetensors": make.GOOD,
    "zip.pt": make.torch_bytes(STATE),
    "legacy.pt": make.torch_bytes(STATE, zipped=False),
}
IDX = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + bytes(range(24))
PROBES = {
    "a.npz": numpy_file(np.savez, x=X, y=Y),
    "b.npz": numpy_file(np.savez_compressed, x=X, y=np.array(["a", "b", "a", "c"])),
    "a.npy": numpy_file(np.save, X),
    "a.safetensors": make.safetensors_bytes(PAIR),
    "zip.pt": make.torch_bytes(PAIR),
    "legacy.pt": make.torch_bytes(tuple(PAIR.values()), zipped=False),
    "a.csv": b"a,b,label\n" + b"0.5,1e3,cat\n-1,.5,dog\n" * 3,
    "a.tsv": b"1\t2\t3\n" * 4,
    "a-images-idx3-ubyte": IDX,
    "b-images-idx3-ubyte.gz": gzip.compress(IDX),
}
MATLAB_PROBES = {
    "a.mat": numpy_file(scipy.io.savemat, {"x": X, "y": Y[:, None], "s": {"a": 1}}),
    "packed.mat": numpy_file(scipy.io.savemat, {"x": X, "y": ["a", "b", "a", "c"]}, do_compression=True),
}
SLOW_PROBES = {
    "a.h5": hdf5(probe_hdf5),
    "v73.mat": b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + hdf5(probe_hdf5, 512)[128:],
}


# Files rebuilt with odd parts


def odd_safetensors(draw: Draw) -> bytes:
    header: dict[str, Any] = {key: dict(value) for key, value in json.loads(make.GOOD[8 : 8 + make.GOOD[0]]).items()}
    for _ in range(draw(st.integers(1, 3))):
        entry = header.setdefault(draw(st.one_of(st.sampled_from(sorted(header)), TEXTS)), {})
        if isinstance(entry, dict):
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JSON)
    if draw(st.booleans()):
        keys = st.sampled_from(["epoch", "step", "ibscan.step", "ibscan.value", "ibscan.model", "activation", "format"])
        header["__metadata__"] = draw(st.one_of(JSON, st.dictionaries(keys, TEXTS)))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + make.GOOD[8 + make.GOOD[0] :]


def pieces(pickled: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(pickled)]
    return [pickled[a:b] for a, b in zip(places, [*places[1:], len(pickled)], strict=True)]


# Whatever a pickle may do: import, call, build, and take what was never put.
ODD_PIECES = [
    b"cposix\nsystem\n",
    b"X\x12\x00\x00\x00echo ran > canary ",
    *(bytes([code]) for code in b"R\x81\x92b()]}tlds.au0012e\x85\x86\x87\x93\x94\x8f\x90\x91N\x88oQ"),
    b"iposix\nsystem\n",
    b"\x82\x01",
    b"\x8a\xff" + b"\xff" * 255,
    b"\x8c\x06system",
    b"L9999L\n",
    b"g7\n",
    b"h\xff",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"ccollections\nOrderedDict\n",
    b"X\x01\x00\x00\x00\xed",
    b"I01\n",
    b"Vp\n",
    b"\x95\x00\x00\x00\x00\x00\x00\x00\x00",
]


def odd_pickle(draw: Draw, pickled: bytes) -> bytes:
    parts = pieces(pickled)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(1, len(parts) - 1))
        new = draw(st.one_of(st.sampled_from(ODD_PIECES), st.sampled_from(parts)))
        parts[place : place + draw(st.integers(0, 2))] = [new]
    return b"".join(parts) + b"."


def odd_zip(draw: Draw, blob: bytes) -> bytes:
    """Rebuild a file of torch: another pickle, entries gone, renamed, repeated, packed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl") and draw(st.booleans()):
                content = odd_pickle(draw, content)
            choice = draw(st.integers(0, 19))
            if choice == 0:
                continue
            renamed = name if choice > 1 else draw(st.one_of(TEXTS, st.just(name.upper()), st.just("/" + name)))
            packing = zipfile.ZIP_DEFLATED if choice == 2 else zipfile.ZIP_STORED
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name twice
                new.writestr(zipfile.ZipInfo(renamed.encode("utf-8", "replace").decode()), content, packing)
    return stream.getvalue()


def odd_legacy(draw: Draw, content: object) -> bytes:
    blob = make.torch_bytes(content, zipped=False)
    stream = io.BytesIO(blob)
    starts = [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        starts.append(stream.tell())
    parts = [blob[a:b] for a, b in zip(starts, [*starts[1:], len(blob)], strict=True)]
    place = draw(st.integers(0, 4))
    parts[place] = odd_pickle(draw, parts[place])
    return b"".join(parts)


OBJECTS = st.recursive(
    st.one_of(
        st.none(),
        NUMBERS.filter(lambda n: not isinstance(n, int) or abs(n) < 10**300),
        TEXTS,
        st.sampled_from([torch.zeros(2), torch.eye(2), torch.tensor(3), torch.zeros(0), np.float64(2), np.arange(3)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(TEXTS, st.integers(0, 3)), inner, max_size=4),
    ),
    max_leaves=10,
)


def odd_object(draw: Draw) -> bytes:
    return make.torch_bytes(draw(OBJECTS), zipped=draw(st.booleans()))


def odd_npy(draw: Draw) -> bytes:
    header: Any = {"descr": draw(st.sampled_from(DTYPES)), "fortran_order": False, "shape": tuple(draw(SHAPES))}
    for _ in range(draw(st.integers(0, 2))):
        header[draw(st.sampled_from(["descr", "fortran_order", "shape", "more"]))] = draw(JSON)
    text = (repr(header) if draw(st.booleans()) else draw(st.text(max_size=40))).encode("utf-8", "surrogatepass")
    version = draw(st.sampled_from([(1, "<H"), (2, "<I"), (3, "<I"), (9, "<I")]))
    body = draw(st.binary(max_size=100))
    return b"\x93NUMPY" + bytes([version[0], 0]) + struct.pack(version[1], len(text)) + text + body


def odd_npz(draw: Draw) -> bytes:
    stream = io.BytesIO()
    methods = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(stream, "w") as archive:
        for key in draw(st.lists(st.sampled_from(["x", "y", "inputs", "z"]), max_size=3, unique=True)):
            archive.writestr(f"{key}.npy", odd_npy(draw), draw(methods))
    return stream.getvalue()


def odd_matlab(draw: Draw) -> bytes:
    """Damage what lies under the compression."""
    blob = MATLAB_PROBES["packed.mat"]
    length = struct.unpack("<I", blob[132:136])[0]
    inner = zlib.compress(damaged(draw, zlib.decompress(blob[136 : 136 + length])))
    return blob[:132] + struct.pack("<I", len(inner)) + inner + blob[136 + length :]


def odd_table(draw: Draw) -> bytes:
    cells = st.one_of(st.sampled_from(["1", "-0.5", "nan", "1_0", "", '"', "label", "y", "\u0661", "1e999"]), TEXTS)
    lines = draw(st.lists(st.lists(cells, max_size=4), max_size=5))
    separator = draw(st.sampled_from(",;\t"))
    return "\n".join(separator.join(line) for line in lines).encode("utf-8", "surrogatepass")


def odd_idx(draw: Draw) -> bytes:
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 2**16, 2**32 - 1]), max_size=5))
    start = bytes([0, 0, draw(st.sampled_from([8, 9, 11, 12, 13, 14, 7])), draw(st.sampled_from([len(sizes), 0, 9]))])
    return start + struct.pack(f">{len(sizes)}I", *sizes) + draw(st.binary(max_size=30))


# Manifests

KEYS = {
    "model": ["spec", "args", "more"],
    "probe": ["path", "scale", "mean", "std", "shape", "x"],
    "series": ["pattern", "axis", "y"],
    "other": ["a"],
}
PATHS = ["probe.npz", "../x.npz", "/etc/passwd", "a:b", "p.py:f", "x.npz#x=a", "#", "{epoch}", "{value:n}{step}", "."]


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return str(value)
    return '""' if value is None else json.dumps(value)


def odd_manifest(draw: Draw) -> bytes:
    lines = []
    for table in draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=3)):
        lines.append(f"[{table}]")
        for key in draw(st.lists(st.sampled_from(KEYS[table]), max_size=3)):
            lines.append(f"{key} = {toml_value(draw(st.one_of(st.sampled_from(PATHS), JSON)))}")
    return "\n".join(lines).encode("utf-8", "replace")


# Results

VALUES = st.one_of(
    TEXTS.map(lambda text: text.encode("utf-8", "replace").decode().replace("\0", "")),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.sampled_from([b"\xff", np.zeros(0), np.arange(3), np.zeros(100), np.array(["a", "b"], "S1"), h5py.Empty("f4")]),
)
PARTS = [np.zeros(()), np.zeros((0,)), np.zeros((2,)), np.zeros((2, 2, 1)), np.arange(2), np.zeros(2, "i1")]
PARTS += [np.full(2, 99, "i1"), np.array([b"a", b"b"]), np.full((2, 2, 2), np.nan), np.zeros(2, "c8"), np.ones(3, "?")]
SETTINGS = st.dictionaries(st.sampled_from(["axis", "layers", "widths", "dtype", "at"]), JSON)


def odd_result(draw: Draw, path: Path) -> None:
    """Rebuild a result with odd attributes, types and shapes, and seal it as its writer would."""
    path.write_bytes(make.result_bytes()[: -len(_seal("0" * 64))])
    with h5py.File(path, "r+") as file:
        # Read before anything is odd: the next change may come upon what the one before has left.
        names, told = st.sampled_from(sorted(file)), json.loads(file.attrs["dimensions"])
        for _ in range(draw(st.integers(1, 3))):
            name = draw(names)
            match draw(st.integers(0, 7)):
                case 0:
                    file.pop(name, None)
                case 1:
                    file.pop(name, None)
                    file[name] = draw(st.sampled_from(PARTS))
                case 2:
                    other = draw(st.sampled_from(["metric_new", "local_rank_status_status", "a", "\x1b[31m", "eps2"]))
                    file.pop(other, None)
                    file[other] = draw(st.sampled_from(PARTS))
                case 3 if name in file:
                    keys = st.sampled_from([*file[name].attrs, "units", "shown", "rows", "from", "at", "symbol"])
                    attach(file[name], draw(keys), draw(VALUES))
                case 4:
                    attach(file, draw(st.sampled_from(sorted(file.attrs))), draw(VALUES))
                case 5:
                    file.attrs[draw(st.sampled_from(["skipped", "settings"]))] = json.dumps(
                        draw(st.one_of(JSON, SETTINGS))
                    )
                case 6:
                    told[name] = draw(st.one_of(JSON, st.lists(names, max_size=3)))
                    file.attrs["dimensions"] = json.dumps(told)
                case _ if name in file and file[name].dtype.kind == "f" and file[name].size:
                    file[name][...] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0, -1, 1e308, 5e-324]))
    content = path.read_bytes()
    path.write_bytes(content + _seal(hashlib.sha256(content).hexdigest()))


def attach(owner: h5py.File | h5py.Dataset, name: str, value: object) -> None:
    # What HDF5 itself cannot hold is no file that anybody could send.
    try:
        owner.attrs[name] = value
    except (ValueError, TypeError, UnicodeError):
        owner.attrs[name] = "odd"


def odd_hdf5_probe(draw: Draw) -> bytes:
    arrays = st.sampled_from([*PARTS, X, Y, np.array([b"cat", b"ant"]), np.float64(3)])

    def build(file: h5py.File) -> None:
        for key in draw(st.lists(st.sampled_from(["x", "y", "train/x", "labels", "a\x1b"]), max_size=3, unique=True)):
            file[key] = draw(arrays)
            if draw(st.booleans()):
                attach(file[key], draw(st.sampled_from(["MATLAB_class", "MATLAB_empty", "format"])), draw(VALUES))

    return hdf5(build)
