"""HDF5 probes: keys in groups, text, and hostile or damaged files."""

from __future__ import annotations

import dataclasses
import os
import random
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.hostile import matlab_file

from ibscan.errors import InputError, UsageError
from ibscan.inputs.probes import arrays, hdf5
from ibscan.inputs.probes.arrays import named_arrays
from ibscan.inputs.probes.child_arrays import arrays_by_child
from ibscan.inputs.probes.read import read_probe
from ibscan.inputs.series.discovery import found_in_folder

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
Y = np.array([2, 0, 2, 5])


def grouped(path: Path) -> str:
    with h5py.File(path, "w") as file:
        file["train/x"], file["train/y"] = X, Y
        file["test/x"], file["test/y"] = X[:2], Y[:2]
        file["train/again"] = file["train"]
    return str(path)


@pytest.mark.slow
def test_arrays_in_groups_are_read_by_their_paths(tmp_path: Path) -> None:
    spec = grouped(tmp_path / "a.h5")
    with pytest.raises(UsageError, match=r"train/x \(4, 3\).*#x="):
        read_probe(spec, {})
    for end in ("#x=test/x,y=test/y", "#x=test/x"):
        probe, _ = read_probe(spec + end, {})
        assert (probe.x == X[:2]).all()
        assert probe.labels == (0, 2)
    assert read_probe(f"{spec}#x=train/x,y=", {})[0].y is None
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["data/inputs"], file["data/labels"], file["data/other"] = X, Y, Y
    assert read_probe(str(tmp_path / "one.h5"), {})[0].labels == (0, 2, 5)


DTYPES = ["<f8", ">f8", "<f2", "i1", "u1", ">i4", "u8", "bool"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}])
def test_numbers_are_those_of_h5py(options: dict[Any, Any], tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 2, (5, 4, 2))
    with h5py.File(tmp_path / "a.h5", "w", libver="latest" if options else None) as file:
        for dtype in DTYPES:
            file.create_dataset(dtype, data=numbers.astype(dtype), **options)
    found = named_arrays(tmp_path / "a.h5", "a.h5", list)
    for dtype in DTYPES:
        assert found.picked[dtype].dtype == np.dtype(dtype).newbyteorder("=")
        assert (found.picked[dtype] == numbers).all()


def test_texts_of_every_kind_become_labels(tmp_path: Path) -> None:
    words = np.array(["cät", "ant", "", "cät"])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("varying", data=words.astype(object), dtype=h5py.string_dtype())
        fixed = h5py.string_dtype("utf-8", 8)
        file.create_dataset("fixed", data=np.char.encode(words, "utf-8").astype(fixed), dtype=fixed)
        file.create_dataset("column", data=words.astype(object)[:, None], chunks=(2, 1), compression="gzip")
        file["one"] = "word"
    found = named_arrays(tmp_path / "a.h5", "a.h5", list).picked
    assert found["varying"].tolist() == found["fixed"].tolist() == words.tolist()
    assert found["column"].tolist() == words[:, None].tolist()
    assert found["one"].tolist() == "word"


def test_matlab_arrays_keep_their_orientation(tmp_path: Path) -> None:
    cube = np.arange(24.0).reshape(2, 3, 4)
    letters = np.array([[ord(letter) for letter in word] for word in ("cat", "an ")], np.uint16)
    matlab_file(tmp_path / "a.mat", {"x": (cube, "double"), "y": (letters, "char"), "flag": (cube > 3, "logical")})
    with h5py.File(tmp_path / "a.mat", "r+") as file:
        file["#refs#/a"] = np.zeros(3)
        file["sparse/data"] = np.zeros(3)
        file["sparse"].attrs["MATLAB_sparse"] = 3
        empty = file.create_dataset("empty", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_class"], empty.attrs["MATLAB_empty"] = np.bytes_("double"), np.uint8(1)
    found = named_arrays(tmp_path / "a.mat", "a.mat", lambda _: ["x", "y", "flag"])
    assert set(found.shapes) == {"x", "y", "flag", "empty"}
    assert (found.picked["x"] == cube).all()
    assert found.picked["y"].tolist() == ["cat", "an"]
    assert found.picked["flag"].dtype == bool
    with pytest.raises(InputError, match="'empty' is empty"):
        named_arrays(tmp_path / "a.mat", "a.mat", lambda _: ["empty"])


# Files that lead astray: the picked array is refused, and what lies elsewhere is not touched.


def external_link(file: h5py.File, folder: Path) -> None:
    file["x"] = h5py.ExternalLink(str(folder / "secret.h5"), "x")


def soft_link_outside(file: h5py.File, folder: Path) -> None:
    file["out"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")
    file["x"] = h5py.SoftLink("/out/x")


def soft_link(file: h5py.File, _: Path) -> None:
    file["hidden"] = X
    file["x"] = h5py.SoftLink("/hidden")


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (4, 3))
    file.create_virtual_dataset("x", layout)


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("x", (4, 3), "f4", external=[(str(folder / "secret.bin"), 0, 48)])


def compound(file: h5py.File, _: Path) -> None:
    file["x"] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def references(file: h5py.File, _: Path) -> None:
    file["a"] = X
    file.create_dataset("x", data=np.array([file["a"].ref] * 2, object), dtype=h5py.ref_dtype)


def ragged(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (2,), h5py.vlen_dtype("f4"))


def opaque(file: h5py.File, _: Path) -> None:
    file["x"] = np.zeros(3, "V4")


def null(file: h5py.File, _: Path) -> None:
    file["x"] = h5py.Empty("f4")


def unknown_filter(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=np.arange(12).reshape(4, 3), chunks=(2, 3), scaleoffset=0)


def never_written(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (10**5, 10**4), "f4", chunks=(100, 100), compression="gzip")


def too_large(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (10**6, 10**6), "f4", chunks=(100, 100))


def overflowing(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", (2**32, 2**32, 2), "f4", chunks=(10, 10, 1))


def chunk_bomb(file: h5py.File, _: Path) -> None:
    one = file.create_dataset("x", (4, 3), "f4", chunks=(4, 3), compression="gzip")
    one.id.write_direct_chunk((0, 0), zlib.compress(bytes(200_000)))


def chunk_too_long(file: h5py.File, _: Path) -> None:
    one = file.create_dataset("x", (4, 3), "f4", chunks=(4, 3), compression="gzip")
    one.id.write_direct_chunk((0, 0), random.Random(0).randbytes(5000))


def long_texts(file: h5py.File, _: Path) -> None:
    file.create_dataset("x", data=["a" * 2_000_000, *"b" * 999])


ASTRAY = [
    (external_link, "links are never followed"),
    (soft_link_outside, "links are never followed"),
    (soft_link, "links are never followed"),
    (virtual, "other files, which are never opened"),
    (external_storage, "other files, which are never opened"),
    (compound, "compound"),
    (references, "references"),
    (ragged, "neither numbers nor text"),
    (opaque, "neither numbers nor text"),
    (null, "is empty"),
    (unknown_filter, "filter scaleoffset"),
    (never_written, "cannot hold"),
    (too_large, "at most 4294967296"),
    (overflowing, "at most 4294967296"),
    (chunk_bomb, "inflates beyond its 48 bytes"),
    (chunk_too_long, "chunk of 5000 bytes"),
    (long_texts, "more text than labels do"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "words"), ASTRAY, ids=[build.__name__ for build, _ in ASTRAY])
def test_arrays_outside_the_file_or_of_unread_kinds_are_refused(build: Any, words: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = X
    X.tofile(tmp_path / "secret.bin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        build(file, tmp_path)
    with pytest.raises(InputError, match=words) as raised:
        read_probe(f"{tmp_path / 'a.h5'}#x=x", {})
    assert str(raised.value).startswith(f"{tmp_path / 'a.h5'}: array ")


def test_arrays_that_are_not_picked_do_no_harm(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = X, Y
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "absent.h5"), "x")
        file["table"] = np.zeros(3, [("a", "f4")])
        file["loop"] = file["/"]
        file["nested/loop"] = file["/"]
    assert read_probe(str(tmp_path / "a.h5"), {})[0].labels == (0, 2, 5)


@pytest.mark.slow
def test_links_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        one = file.create_group("g")
        for k in range(10_001):
            file[str(k)] = one
    with pytest.raises(InputError, match="more than 10000"):
        read_probe(str(tmp_path / "a.h5"), {})


def test_a_file_without_arrays_or_rows_is_refused(tmp_path: Path) -> None:
    h5py.File(tmp_path / "a.h5", "w").close()
    with pytest.raises(InputError, match="without arrays"):
        read_probe(str(tmp_path / "a.h5"), {})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = X[:0]
    with pytest.raises(InputError, match="0 rows"):
        read_probe(str(tmp_path / "a.h5"), {})


ENDS = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", "broke down on it, signal 11"),
    ("os.kill(os.getpid(), signal.SIGXCPU)", "does not come to an end"),
    ("exit(3)", "exit code 3; check that h5py"),
]


@pytest.mark.parametrize(("code", "words"), ENDS)
def test_a_crash_of_the_hdf5_library_is_an_input_error(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(tmp_path / "a.h5")
    ending = dataclasses.replace(hdf5.HDF5, command=("-c", f"import os, signal; {code}"))
    monkeypatch.setitem(arrays.READERS, "hdf5", partial(arrays_by_child, ending))
    with pytest.raises(InputError, match=words):
        read_probe(str(tmp_path / "a.h5"), {})


def test_nothing_is_imported_from_the_working_folder(tmp_path: Path) -> None:
    grouped(tmp_path / "a.h5")
    for name in ("json.py", "h5py.py", "numpy.py"):
        (tmp_path / name).write_text("open('canary', 'w')")
    assert read_probe("a.h5#x=train/x", {})[0].labels == (0, 2, 5)
    assert not Path("canary").exists()


def test_a_large_file_is_read_from_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.inputs.files.SMALL_BYTES", 100)
    assert read_probe(f"{grouped(tmp_path / 'a.h5')}#x=train/x", {})[0].labels == (0, 2, 5)


@pytest.mark.slow
def test_results_are_told_from_other_files(tmp_path: Path) -> None:
    for name, value in (("a.h5", "ibscan"), ("b.h5", "ibscan-like"), ("c.h5", 3)):
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs["format"] = value
            file.attrs["other"] = "ibscan"
    (tmp_path / "d.h5").write_bytes(b"\x89HDF\r\n\x1a\nformat ibscan" + struct.pack("<40I", *range(40)))
    os.mkfifo(tmp_path / "e.h5")
    assert found_in_folder(tmp_path, []).others == ["b.h5", "c.h5", "d.h5", "e.h5"]
