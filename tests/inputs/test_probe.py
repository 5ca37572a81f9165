"""Probe files of every kind, with their arguments and labels, are read or refused."""

from __future__ import annotations

import dataclasses
import gzip
import os
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from support.hostile import Evil, flipped, matlab_file, rezipped, torch_bytes

from ibscan.errors import IbscanError, InputError, UsageError
from ibscan.inputs.probes.arguments import parse_model_arguments
from ibscan.inputs.probes.arrays import MATLAB, READERS, named_arrays
from ibscan.inputs.probes.child_arrays import arrays_by_child
from ibscan.inputs.probes.labels import class_indices
from ibscan.inputs.probes.read import find_probe, parse_arguments, read_probe
from ibscan.inputs.series.discovery import found_in_folder

X = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
Y = np.array([2, 0, 2, 5, 0])


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def idx(path: Path, array: np.ndarray, zipped: bool = False) -> Path:
    code = {"uint8": 8, "float32": 13}[array.dtype.name]
    blob = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    blob += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(blob) if zipped else blob)
    return path


def every_format(folder: Path) -> list[str]:
    npz(folder / "a.npz", x=X, y=Y)
    np.savez_compressed(folder / "b.npz", X=X, labels=Y)
    (folder / "c.safetensors").write_bytes(safetensors_bytes({"inputs": torch.tensor(X), "targets": torch.tensor(Y)}))
    (folder / "d.pt").write_bytes(torch_bytes({"x": torch.tensor(X), "y": torch.tensor(Y)}))
    (folder / "e.pt").write_bytes(torch_bytes((torch.tensor(X), torch.tensor(Y)), zipped=False))
    scipy.io.savemat(folder / "f.mat", {"F": X, "y": Y.astype(float)})
    scipy.io.savemat(folder / "g.mat", {"data": X, "label": Y[:, None]}, do_compression=True)
    with h5py.File(folder / "h.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(2, 3), compression="gzip", shuffle=True, fletcher32=True)
        file["y"] = Y
    matlab_file(folder / "i.mat", {"X": (X, "single"), "labels": (Y[:, None].astype(float), "double")})
    rows = [f"{','.join(map(repr, map(float, row)))},{label}" for row, label in zip(X, Y, strict=True)]
    (folder / "j.csv").write_text("a,b,c,target\n" + "\n".join(rows))
    (folder / "k.py").write_text(
        f"import numpy as np\ndef probe(): return np.load({str(folder / 'x.npy')!r}), {Y.tolist()}"
    )
    np.save(folder / "x.npy", X)
    files = ["a.npz", "b.npz", "c.safetensors", "d.pt", "e.pt", "f.mat", "g.mat", "h.h5", "i.mat", "j.csv"]
    return [*(str(folder / name) for name in files), f"{folder}/k.py:probe"]


def test_every_format_gives_the_same_probe(tmp_path: Path) -> None:
    probes = [read_probe(spec, {}) for spec in every_format(tmp_path)]
    assert len({probe.sha256 for probe, _ in probes}) == 1
    for probe, notices in probes:
        assert probe.x.dtype == np.float64
        assert probe.x.flags.c_contiguous
        assert (probe.x == X.astype(np.float64)).all()
        assert probe.labels == (0, 2, 5)
        assert probe.y is not None
        assert probe.y.tolist() == [1, 0, 1, 2, 0]
        assert notices == ()


MAT_DTYPES = ["float64", "float32", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", MAT_DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_matlab_files_give_their_plain_arrays(dtype: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    numbers = np.random.default_rng(0).integers(0, 2, (4, 3, 2)).astype(dtype)
    others = {
        "c": np.array([1, "a"], object),
        "s": {"field": 1},
        "z": np.eye(2) * 1j,
        "sparse": scipy.sparse.eye_array(3).tocsc(),
    }
    words = np.array(["cat", "ant", "cat", "zebra"])
    scipy.io.savemat(path, {"x": numbers, "y": words, "one": np.ones((1, 1)), **others}, do_compression=packed)
    expected = scipy.io.loadmat(path, chars_as_strings=True)
    found = named_arrays(path, "a.mat", list)
    assert set(found.shapes) == {"x", "y", "one", "z"}
    assert found.picked["x"].dtype == dtype
    assert (found.picked["x"] == expected["x"]).all()
    assert found.picked["y"].tolist() == words.tolist()
    assert found.picked["one"].shape == (1, 1)


def inflating(path: Path) -> None:
    """A MATLAB array of 2 x 3 numbers whose compressed content is 600 MB."""
    size = 600 << 20
    start = struct.pack("<IIIIII", 6, 8, 6, 0, 5, 8) + struct.pack("<iiIIII", 2, 3, 1 | 1 << 16, ord("x"), 9, size)
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    inner = packer.compress(struct.pack("<II", 14, len(start) + size) + start)
    inner += b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path.write_bytes(header + struct.pack("<II", 15, len(inner)) + inner)


MATLAB_ENDS = [
    ("os.kill(os.getpid(), signal.SIGBUS)", r"a damaged MATLAB file \(scipy broke down on it, signal 7\).*-v7"),
    ("os.kill(os.getpid(), signal.SIGXCPU)", "a damaged MATLAB file .*does not come to an end"),
    ("exit(3)", "process that reads MATLAB ended with exit code 3; check that scipy can be imported"),
]


@pytest.mark.parametrize(("code", "words"), MATLAB_ENDS)
def test_a_crash_of_the_matlab_reader_is_an_input_error(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": X})
    ending = dataclasses.replace(MATLAB, command=("-c", f"import os, signal; {code}"))
    monkeypatch.setitem(READERS, "mat", partial(arrays_by_child, ending))
    with pytest.raises(InputError, match=words):
        read_probe(str(tmp_path / "a.mat"), {})


def test_complex_numbers_of_matlab_are_refused_by_their_type(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": X + 1j})
    with pytest.raises(InputError, match="of type complex64, but real numbers were expected"):
        read_probe(str(tmp_path / "a.mat"), {})


def test_a_large_matlab_file_is_read_from_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"x": X, "y": Y[:, None]})
    monkeypatch.setattr("ibscan.inputs.files.SMALL_BYTES", 100)
    assert (read_probe(str(tmp_path / "a.mat"), {})[0].x == X).all()


def test_npy_has_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", np.asfortranarray(X))
    probe, notices = read_probe(str(tmp_path / "probe.npy"), {})
    assert (probe.x == X).all()
    assert probe.x.flags.c_contiguous
    assert probe.y is None
    assert probe.labels == ()
    assert "no labels" in notices[0]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
def test_idx_folders_give_the_named_split(zipped: bool, separator: str, tmp_path: Path) -> None:
    end = ".gz" if zipped else ""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for split, labels in (("train", [3, 1]), ("t10k", [7, 7])):
        idx(tmp_path / f"{split}-images{separator}idx3-ubyte{end}", pixels, zipped)
        idx(tmp_path / f"{split}-labels{separator}idx1-ubyte{end}", np.array(labels, np.uint8), zipped)
    with pytest.raises(UsageError, match=r"#train|#test"):
        read_probe(str(tmp_path), {"scale": 255})
    with pytest.raises(UsageError, match="no such split"):
        read_probe(f"{tmp_path}#validation", {"scale": 255})
    test, _ = read_probe(f"{tmp_path}#test", {"scale": 255})
    assert test.labels == (7,)
    train, _ = read_probe(f"{tmp_path}#train", {"scale": 255, "shape": [12]})
    assert train.labels == (1, 3)
    assert (train.x == pixels.reshape(2, 12) / 255).all()
    file, _ = read_probe(str(tmp_path / f"train-images{separator}idx3-ubyte{end}"), {"scale": 255, "shape": [12]})
    assert file.sha256 == train.sha256


def test_one_split_needs_no_name(tmp_path: Path) -> None:
    idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 2, 2), np.float32))
    probe, notices = read_probe(str(tmp_path), {})
    assert probe.x.shape == (2, 2, 2)
    assert "no labels" in notices[0]


def test_several_possible_arrays_are_refused(tmp_path: Path) -> None:
    spec = npz(tmp_path / "a#b.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    with pytest.raises(UsageError, match=r"x_train \(5, 3\).*#x="):
        read_probe(spec, {})
    probe, _ = read_probe(f"{spec}#x=x_test,y=y_test", {})
    assert len(probe.x) == 2
    assert probe.labels == (0, 2)
    with pytest.raises(UsageError, match="no array 'z'"):
        read_probe(f"{spec}#x=z", {})
    with pytest.raises(UsageError, match="expected #x=KEY,y=KEY"):
        read_probe(f"{spec}#train", {})
    both = npz(tmp_path / "both.npz", x=X, inputs=X, y=Y)
    with pytest.raises(UsageError, match="which array is x"):
        read_probe(both, {})
    unlabelled, notices = read_probe(f"{both}#x=x,y=", {})
    assert unlabelled.y is None
    assert "no labels" in notices[0]
    only = npz(tmp_path / "only.npz", strange=X, y=Y)
    assert read_probe(only, {})[0].labels == (0, 2, 5)


def suggested(error: Exception) -> list[str]:
    """Return the specs that an error suggests, split as a shell does."""
    offered = str(error).partition("such as ")[2].removesuffix(".").split(" or ")
    return [one.strip("'") for one in offered]


SPLIT_NAMES = [
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("Xtr", "Ytr", "Xte", "Yte"),
    ("train_x", "train_y", "valid_x", "valid_y"),
    ("trainX", "trainY", "testX", "testY"),
    ("XTrain", "YTrain", "XTest", "YTest"),
    ("train_data", "train_targets", "val_data", "val_targets"),
    ("training-inputs", "training-labels", "validation-inputs", "validation-labels"),
    ("images_train", "labels_train", "images_dev", "labels_dev"),
    ("xtrain", "ytrain", "xtest", "ytest"),
    ("trainimages", "trainlabels", "testimages", "testlabels"),
    ("train features", "train classes", "test features", "test classes"),
    ("fold1_x", "fold1_y", "fold2_x", "fold2_y"),
    ("train/x", "train/y", "test/x", "test/y"),
    ("images/train", "labels/train", "images/test", "labels/test"),
    ("a/train/X", "a/train/labels", "b/test/X", "b/test/labels"),
]


@pytest.mark.parametrize("names", SPLIT_NAMES, ids=[row[0] for row in SPLIT_NAMES])
@pytest.mark.parametrize("turned", [False, True])
def test_every_suggestion_pairs_a_split_with_itself_and_works(
    names: tuple[str, ...], turned: bool, tmp_path: Path
) -> None:
    first, second = Y[:4] % 2, Y + 1
    arrays = dict(zip(names, (X[:4], first, X, second[:, None]), strict=True))
    arrays = dict(sorted(arrays.items(), reverse=turned))
    spec = npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match="which array is x") as raised:
        read_probe(spec, {})
    found = [read_probe(one, {})[0] for one in suggested(raised.value)]
    assert sorted((len(probe.x), len(probe.labels)) for probe in found) == [(4, 2), (5, 3)]
    # The inputs alone are enough.
    assert [len(read_probe(f"{spec}#x={names[k]}", {})[0].labels) for k in (0, 2)] == [2, 3]


def test_suggestions_name_both_arrays_of_a_group(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for group, rows in (("test", 2), ("train", 5)):
            file[f"{group}/x"], file[f"{group}/y"] = X[:rows], Y[:rows]
    with pytest.raises(UsageError, match="which array is x") as raised:
        read_probe(f"{tmp_path}/a.h5", {})
    assert suggested(raised.value) == [f"{tmp_path}/a.h5#x={one}/x,y={one}/y" for one in ("test", "train")]
    assert len(read_probe(suggested(raised.value)[0], {})[0].x) == 2


def test_suggestions_work_for_arrays_with_other_names(tmp_path: Path) -> None:
    cases = [
        ({"x": X, "y": Y, "labels": Y}, ["x=x,y=y", "x=x,y=labels", "x=x,y="]),
        ({"x": X, "y": Y[:4], "labels": Y[:, None], "targets": Y}, ["x=x,y=labels", "x=x,y=targets", "x=x,y="]),
        ({"a": X, "b": X[:2], "y": Y}, ["x=a,y=y", "x=b,y="]),
        ({"a": X, "b": X[:, :2], "lengths": Y}, ["x=a,y=", "x=b,y="]),
        ({"a,b": X, "c": X, "y": Y}, ["x=c,y=y"]),
        ({"x_train": X, "x_test": X[:2], "y_test": Y[:2]}, ["x=x_test,y=y_test", "x=x_train,y="]),
    ]
    for arrays, expected in cases:
        spec = npz(tmp_path / "a.npz", **arrays)
        with pytest.raises(UsageError, match="is not clear") as raised:
            read_probe(spec, {})
        assert suggested(raised.value) == [f"{spec}#{one}" for one in expected]
        for one in suggested(raised.value):
            read_probe(one, {})
    spec = npz(tmp_path / "with space.npz", a=X, b=X, y=Y)
    with pytest.raises(UsageError, match=r"such as '.*#x=a,y=y' or '"):
        read_probe(spec, {})


def test_clear_names_need_no_selection(tmp_path: Path) -> None:
    mask = np.ones((5, 3), int)
    for arrays in (
        {"train_images": X, "train_labels": Y},
        {"Xtr": X, "ytr": Y, "feature_names": np.array(["a", "b", "c"]), "lengths": Y},
        {"embedding": X, "attention_mask": mask, "y": Y},
        {"pixel_values": X, "pixel_mask": mask, "labels": Y},
        {"x": X, "y": Y, "classes": np.array(["cat", "dog"])},
    ):
        probe, _ = read_probe(npz(tmp_path / "a.npz", **arrays), {})
        assert (probe.x == X).all()
        assert probe.labels == (0, 2, 5)


LISTS = [
    {"x": torch.tensor(X), "y": Y.tolist(), "classes": ["cat", "dog"], "note": "text", "epoch": 3},
    {"x": X, "y": Y},
    {"X": X, "labels": [str(label) for label in Y], "seeds": [1, 2]},
    (X, Y.tolist()),
    [torch.tensor(X), torch.tensor(Y)],
    [X, Y],
]


@pytest.mark.parametrize("value", LISTS, ids=range(len(LISTS)))
def test_lists_and_arrays_in_a_torch_file_are_a_probe(value: object, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(torch_bytes(value))
    probe, notices = read_probe(str(tmp_path / "a.pt"), {})
    assert (probe.x == X).all()
    assert probe.y is not None
    assert [str(probe.labels[k]) for k in probe.y] == [str(label) for label in Y]
    assert notices == ()


def test_lists_in_a_torch_file_that_are_no_rows_are_ignored_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(torch_bytes({"x": torch.tensor(X), "classes": ["cat", "dog"]}))
    assert read_probe(str(tmp_path / "a.pt"), {})[0].y is None
    (tmp_path / "a.pt").write_bytes(torch_bytes({"x": X, "y": np.array([None] * 5)}))
    with pytest.raises(InputError, match="not plain data"):
        read_probe(str(tmp_path / "a.pt"), {})
    (tmp_path / "a.pt").write_bytes(torch_bytes([X, X, X]))
    with pytest.raises(InputError, match="holds no tensors"):
        read_probe(str(tmp_path / "a.pt"), {})


def test_labels_beside_an_idx_file_are_left_out(tmp_path: Path) -> None:
    images = idx(tmp_path / "a-images-idx3-ubyte", np.zeros((2, 2, 2), np.float32))
    idx(tmp_path / "a-labels-idx1-ubyte", np.array([np.nan, 1], np.float32))
    with pytest.raises(InputError, match="row 0"):
        read_probe(str(images), {})
    assert read_probe(f"{images}#y=", {})[0].y is None


def test_arguments_are_applied_in_a_fixed_order(tmp_path: Path) -> None:
    spec = npz(tmp_path / "a.npz", x=np.arange(12, dtype=np.uint8).reshape(2, 6), y=np.array([0, 1]))
    with pytest.raises(UsageError, match=r"integers from 0 to 11.*scale=255.*scale=1"):
        read_probe(spec, {})
    plain, _ = read_probe(spec, {"scale": 1})
    assert plain.x.max() == 11
    probe, _ = read_probe(spec, {"shape": [2, 3], "std": 0.5, "mean": 0.1, "scale": 10})
    assert probe.x.shape == (2, 2, 3)
    assert np.allclose(probe.x.ravel(), (np.arange(12) / 10 - 0.1) / 0.5, rtol=1e-15)
    assert probe.sha256 != plain.sha256
    lists, _ = read_probe(spec, {"scale": 1, "mean": list(range(6))})
    assert (lists.x == [[0] * 6, [6] * 6]).all()
    with pytest.raises(UsageError, match="does not broadcast"):
        read_probe(spec, {"scale": 1, "mean": [1, 2]})
    with pytest.raises(UsageError, match="7 numbers a row"):
        read_probe(spec, {"scale": 1, "shape": [7]})


def test_small_integers_and_booleans_need_no_scale(tmp_path: Path) -> None:
    for x in (np.eye(3, dtype=np.int8), -np.eye(3, dtype=np.int64), np.eye(3, dtype=bool)):
        assert (read_probe(npz(tmp_path / "a.npz", x=x), {})[0].x == x).all()


@pytest.mark.parametrize(
    "item",
    [
        "scale",
        "scales=1",
        "scale=0",
        "scale=-1",
        "scale=nan",
        "std=0",
        "mean=NaN",
        "mean=abc",
        "scale=true",
        "shape=3",
        "shape=[0]",
        "shape=[]",
        "shape=[1.5]",
        "std=Infinity",
        "mean=[]",
    ],
)
def test_invalid_arguments_are_refused(item: str) -> None:
    with pytest.raises(UsageError):
        parse_arguments([item])


def test_probe_arguments_are_read_or_refused() -> None:
    items = ["scale=255", "mean=0.1307", "std=[0.1, 0.2]", "shape=[1,28,28]"]
    assert parse_arguments(items) == {"scale": 255, "mean": 0.1307, "std": [0.1, 0.2], "shape": [1, 28, 28]}
    with pytest.raises(UsageError, match="scale, mean, std, shape"):
        parse_arguments(["scal=1"])
    with pytest.raises(UsageError, match="twice"):
        parse_arguments(["scale=1", "scale=2"])


def test_model_arguments_are_read_or_refused() -> None:
    items = ["width=512", 'names=["a"]', "act=tanh", " deep = true", "text=", "formula=a=b"]
    expected = {"width": 512, "names": ["a"], "act": "tanh", "deep": True, "text": "", "formula": "a=b"}
    assert parse_model_arguments(items) == expected
    assert parse_model_arguments([]) == {}
    for items, words in ((["width"], "KEY=VALUE"), (["a=1", "a=2"], "twice"), (["a-b=1"], "'a-b'"), (["=1"], "''")):
        with pytest.raises(UsageError, match=words):
            parse_model_arguments(items)


# Probes that cannot be used: a row an input.

REFUSED = [
    ("rows", {"x": np.zeros((0, 3))}, InputError, ("0 rows", "(0, 3)")),
    ("nan", {"x": np.array([[1.0], [np.nan]])}, InputError, ("NaN", "row 1")),
    ("inf", {"x": np.array([[np.inf, 0.0]])}, InputError, ("infinite",)),
    ("length", {"x": X, "y": Y[:4]}, InputError, ("length 4", "length 5")),
    ("length-1n", {"x": X, "y": Y[None, :4]}, InputError, ("(1, 4)", "length 5")),
    ("scalar", {"x": X, "y": np.array(3)}, InputError, ("shape ()",)),
    ("flat", {"x": X[:, 0]}, InputError, ("(5,)", "shape=[1]")),
    ("complex", {"x": X.astype(complex)}, InputError, ("complex128",)),
    ("strings", {"x": np.array([["a"]])}, InputError, ("real numbers",)),
    ("objects", {"x": np.array([[1, "a"]], dtype=object)}, InputError, ("Python objects",)),
    ("pixels", {"x": np.full((2, 2), 255, np.uint8)}, UsageError, ("scale=255", "scale=1")),
    ("counts", {"x": np.full((2, 2), 2.0)}, UsageError, ("scale=1", "counts")),
    ("wide", {"x": np.full((2, 2), 4095, ">u2")}, UsageError, ("scale=65535", "scale=1")),
]


@pytest.mark.parametrize(("name", "arrays", "error", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_arrays_that_are_no_probe_are_refused(
    name: str, arrays: dict[str, np.ndarray], error: type[IbscanError], words: tuple[str, ...], tmp_path: Path
) -> None:
    np.savez(tmp_path / f"{name}.npz", allow_pickle=True, **arrays)
    with pytest.raises(error) as raised:
        read_probe(str(tmp_path / f"{name}.npz"), {})
    assert type(raised.value) is error
    for word in (f"{name}.npz", *words):
        assert word in str(raised.value)


def bomb(path: Path) -> None:
    """An npz that states 2^40 numbers in its header."""
    np.savez(path, x=np.zeros((2, 2)))
    with zipfile.ZipFile(path) as archive:
        blob = archive.read("x.npy").replace(b"(2, 2)", b"(1099511627776, 2)".ljust(18))
    path.write_bytes(rezipped(path.read_bytes(), **{"x.npy": blob}))


def cut_npz(path: Path) -> None:
    np.savez(path, x=X)
    path.write_bytes(path.read_bytes()[:-40])


def cut_npy(path: Path) -> None:
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-4])


def damaged(path: Path) -> None:
    np.savez(path, x=np.full((4, 4), 1.5))
    path.write_bytes(flipped(path.read_bytes(), b"\xf8\x3f"))


def evil_labels(path: Path) -> None:
    path.write_bytes(torch_bytes({"x": torch.zeros(2, 2), "y": Evil(path.parent / "canary")}))


def idx_bomb(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**10, 2**10)))


FILES = [
    ("zero.npz", lambda path: path.write_bytes(b""), InputError, ("zero bytes",)),
    ("text.npz", lambda path: path.write_text("x,y\n1,2\n"), InputError, ("text",)),
    ("lfs.npz", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), InputError, ("LFS",)),
    ("cut.npz", cut_npz, InputError, ("zip",)),
    ("crc.npz", damaged, InputError, ("damaged",)),
    ("bomb.npz", bomb, InputError, ("at most 4294967296",)),
    ("cut.npy", cut_npy, InputError, ("truncated",)),
    (
        "cut.mat",
        lambda path: (scipy.io.savemat(path, {"x": X}), path.write_bytes(path.read_bytes()[:-9])),
        InputError,
        ("damaged",),
    ),
    (
        "cut_behind.mat",
        lambda path: (scipy.io.savemat(path, {"x": X, "y": Y, "z": X}), path.write_bytes(path.read_bytes()[:-9])),
        InputError,
        ("truncated or damaged MATLAB file (at byte 344 of 455); save it again with -v7.",),
    ),
    ("bomb.mat", inflating, InputError, ("damaged MATLAB",)),
    (
        "structures.mat",
        lambda path: scipy.io.savemat(path, {"x": {"x": X}, "y": scipy.sparse.eye_array(3).tocsc()}),
        InputError,
        ("no plain numeric", "a probe is .npz"),
    ),
    (
        "cells.mat",
        lambda path: scipy.io.savemat(path, {"x": np.array([1, "a"], object)}),
        InputError,
        ("no plain numeric",),
    ),
    (
        "cut.safetensors",
        lambda path: path.write_bytes(safetensors_bytes({"x": torch.ones(3, 3)})[:-4]),
        InputError,
        ("truncated",),
    ),
    ("evil.pt", evil_labels, InputError, ("posix.system", "not run")),
    (
        "stride.pt",
        lambda path: path.write_bytes(torch_bytes({"x": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))})),
        InputError,
        ("claims",),
    ),
    ("none.pt", lambda path: path.write_bytes(torch_bytes({"a": 1})), InputError, ("no tensors",)),
    ("text.txt", lambda path: path.write_text("1,2\n"), InputError, (".csv",)),
    ("code.py", lambda path: path.write_text("x = 1\n"), InputError, ("Python code", "code.py:NAME")),
    ("wide.csv", lambda path: path.write_bytes("1;2\n".encode("utf-16")), InputError, ("UTF-8",)),
    ("start.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 90), InputError, ("damaged HDF5",)),
    (
        "start.mat",
        lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + b"\0" * 90),
        InputError,
        ("damaged HDF5",),
    ),
    ("a-images-idx3-ubyte.gz", idx_bomb, InputError, ("more than a file",)),
    (
        "b-images-idx3-ubyte",
        lambda path: path.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 9) + b"abc"),
        InputError,
        ("states shape",),
    ),
    ("x.gz", lambda path: path.write_bytes(gzip.compress(b"hello")), InputError, ("no IDX file",)),
    ("fifo.npz", os.mkfifo, InputError, ("named pipe",)),
]


# A second each for a process that reads MATLAB, or for 600 MB; their kinds have shorter examples.
SLOW_FILES = {"bomb.mat", "cut_behind.mat", "cells.mat", "start.mat"}


@pytest.mark.parametrize(
    ("name", "build", "error", "words"),
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] in SLOW_FILES)) for row in FILES],
)
def test_files_that_are_no_probe_are_refused(
    name: str, build: Any, error: type[IbscanError], words: tuple[str, ...], tmp_path: Path
) -> None:
    build(tmp_path / name)
    with pytest.raises(error) as raised:
        read_probe(str(tmp_path / name), {})
    assert type(raised.value) is error
    for word in (name, *words):
        assert word in str(raised.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("absent.npz", InputError, "does not exist"),
        ("a" * 10_000, InputError, "cannot be read"),
    ],
)
def test_specs_that_name_no_probe_are_refused(spec: str, error: type[IbscanError], words: str) -> None:
    with pytest.raises(error, match=words):
        read_probe(spec, {})


def test_the_probe_beside_checkpoints_is_found(tmp_path: Path) -> None:
    assert find_probe(tmp_path) is None
    assert find_probe(tmp_path / "absent") is None
    (tmp_path / "probe.py").write_text("")
    npz(tmp_path / "probe.npz", x=X)
    assert find_probe(tmp_path) == tmp_path / "probe.npz"
    np.save(tmp_path / "probe.npy", X)
    with pytest.raises(UsageError, match=r"probe\.npy, probe\.npz"):
        find_probe(tmp_path)


@pytest.mark.parametrize("name", ["probe.csv", "probe.h5", "probe.tsv", "probe.mat"])
def test_a_probe_of_every_kind_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("1,2\n")
    assert find_probe(tmp_path) == tmp_path / name
    assert found_in_folder(tmp_path, []).candidates == []


@pytest.mark.slow
def test_a_result_is_no_probe(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "probe.h5", "w") as file:
        file.attrs["format"] = "ibscan"
        file["x"] = X
    assert find_probe(tmp_path) is None
    with pytest.raises(InputError, match="a result of ibscan"):
        read_probe(str(tmp_path / "probe.h5"), {})
    npz(tmp_path / "probe.npz", x=X)
    assert find_probe(tmp_path) == tmp_path / "probe.npz"


# Labels through every format: what is stored, and the class of each row or None.

STORED = [
    (np.array([2, 0, 2]), (0, 2)),
    (np.array([2.0, 0.0, 2.0]), (0, 2)),
    (np.array([[2], [0], [2]]), (0, 2)),
    (np.array([True, False, True]), (0, 1)),
    (np.array([2, 0, 2], np.uint8), (0, 2)),
    (np.eye(3)[[2, 0, 2]], (0, 2)),
    (np.array([0.5, 1.5, 2.5]), None),
    (np.array([[0.3, 0.7], [0.1, 0.9], [0.2, 0.8]]), None),
    (np.array(["cat", "ant", "cat"]), ("ant", "cat")),
]


def stored_labels(folder: Path, x: np.ndarray, y: np.ndarray) -> list[str]:
    """The same probe in every format that can hold such labels."""
    specs = [npz(folder / "a.npz", x=x, y=y), f"{folder / 'b.py'}:probe"]
    (folder / "b.py").write_text(f"from numpy import load\ndef probe(): return dict(load({specs[0]!r}))")
    text = y.dtype.kind == "U"
    with h5py.File(folder / "c.h5", "w") as file:
        file["x"], file["y"] = x, y.astype(object) if text else y
    kinds = {"U": "char", "b": "logical"}
    column = y[:, None] if y.ndim == 1 else y
    letters = np.array([[ord(letter) for letter in word] for word in y], np.uint16) if text else column
    matlab_file(folder / "e.mat", {"x": (x, "double"), "y": (letters, kinds.get(y.dtype.kind, "double"))})
    scipy.io.savemat(folder / "f.mat", {"x": x, "y": y if text else column})
    specs += [str(folder / name) for name in ("c.h5", "e.mat", "f.mat")]
    if not text:
        torch.save({"x": torch.tensor(x), "y": torch.tensor(y)}, folder / "g.pt")
        (folder / "h.safetensors").write_bytes(safetensors_bytes({"x": torch.tensor(x), "y": torch.tensor(y)}))
        specs += [str(folder / name) for name in ("g.pt", "h.safetensors")]
    if y.ndim == 1 and y.dtype.kind != "b":
        rows = [[*map(repr, map(float, row)), str(label)] for row, label in zip(x, y, strict=False)]
        (folder / "i.csv").write_text("\n".join(map(",".join, [["a", "b", "y"], *rows])))
        specs.append(str(folder / "i.csv"))
    return specs


@pytest.mark.slow
@pytest.mark.parametrize(("y", "labels"), STORED, ids=[f"{y.dtype}-{y.shape}" for y, _ in STORED])
def test_every_format_gives_the_same_labels(
    y: np.ndarray, labels: tuple[int | str, ...] | None, tmp_path: Path
) -> None:
    x = np.array([[0.5, 0.25], [1.5, -1.0], [0.5, 2.0]])
    for spec in stored_labels(tmp_path, x, y):
        probe, notices = read_probe(spec, {})
        assert (probe.x == x).all()
        if labels is None:
            assert (probe.y, probe.labels) == (None, ())
            assert len(notices) == 1
            assert "label quantities are not measured" in notices[0]
        else:
            assert probe.y is not None
            assert (probe.y.tolist(), probe.labels, notices) == ([1, 0, 1], labels, ()), spec


@pytest.mark.slow
def test_labels_of_the_wrong_length_are_refused_in_every_format(tmp_path: Path) -> None:
    x, y = np.full((4, 2), 0.5), np.array([2, 0, 2])
    for spec in stored_labels(tmp_path, x, y):
        if not spec.endswith(".csv"):  # a table has one label a row by its form
            with pytest.raises(InputError, match=r"length (3|4).*length 4|\(3, 1\).*length 4"):
                read_probe(spec, {})


# Labels


LABELS = [
    ([3, 1, 3], [1, 0, 1], (1, 3)),
    ([3.0, 1.0, -3.0], [2, 1, 0], (-3, 1, 3)),
    ([[3], [1], [3]], [1, 0, 1], (1, 3)),
    ([[3, 1, 3]], [1, 0, 1], (1, 3)),
    ([True, False, True], [1, 0, 1], (0, 1)),
    (["cat", "ant", "cat"], [1, 0, 1], ("ant", "cat")),
    ([b"cat", b"ant", b"cat"], [1, 0, 1], ("ant", "cat")),
    ([[0, 0, 1], [1, 0, 0], [0, 0, 1]], [1, 0, 1], (0, 2)),
    ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [1, 0, 1], (0, 1)),
    ([["cat"], ["ant"], ["cat"]], [1, 0, 1], ("ant", "cat")),
    (np.array(["cat", "ant", "cat"], object), [1, 0, 1], ("ant", "cat")),
    (np.array([[3], [1], [3]], object), [1, 0, 1], (1, 3)),
    (np.array([3, 1.0, np.int8(3)], object), [1, 0, 1], (1, 3)),
    (np.array([True, False, True], object), [1, 0, 1], (0, 1)),
    (np.array([255, 0, 255], np.uint8), [1, 0, 1], (0, 255)),
    (np.array([2**64 - 1, 0, 1], np.uint64), [2, 0, 1], (0, 1, 2**64 - 1)),
    (np.array([3, 1, 3], np.float16), [1, 0, 1], (1, 3)),
    # As many classes as rows are classes all the same.
    ([30, 10, 20], [2, 0, 1], (10, 20, 30)),
]
NO_CLASSES = [
    [0.5, 1.0, 2.0],
    [[0.1, 0.9]] * 3,
    [[1, 1]] * 3,
    [1j, 2, 3],
    [1e300, 0, 1],
    np.array(["cat", 1.0, "ant"], object),
    np.array([2**70, 1, 2], object),
    np.array(["2024-01-01"] * 3, "datetime64[D]"),
    [[[0, 1]]] * 3,
]


@pytest.mark.parametrize(("found", "indices", "labels"), LABELS)
def test_labels_of_every_form_become_class_indices(
    found: list[Any], indices: list[int], labels: tuple[int | str, ...]
) -> None:
    y, values, notices = class_indices(np.array(found), 3, "p")
    assert y is not None
    assert (y.tolist(), values, notices) == (indices, labels, ())
    assert y.dtype == np.int64
    assert all(type(value) in (int, str) for value in values)


@pytest.mark.parametrize("found", NO_CLASSES)
def test_labels_that_are_no_classes_give_a_notice(found: list[Any]) -> None:
    y, values, notices = class_indices(np.array(found), 3, "p")
    assert y is None
    assert values == ()
    assert len(notices) == 1
    assert "not measured" in notices[0]


# What stands for no label, in four rows of which the third has none.
MISSING = [
    [2.0, 0.0, np.nan, 1.0],
    [2.0, 0.0, -np.inf, 1.0],
    [0.5, 0.25, np.nan, 0.1],
    np.array([2, 0, np.inf, 1], np.float16),
    np.array([2, 0, np.nan, 1], ">f4"),
    [[0.0, 1.0], [1.0, 0.0], [np.nan, 0.0], [1.0, 0.0]],
    [[0.3, 0.7], [0.3, 0.7], [0.3, np.inf], [0.1, 0.9]],
    [[2.0], [0.0], [np.nan], [1.0]],
    [1j, 2, complex("nan"), 4],
    np.array(["cat", "ant", None, "ant"], object),
    np.array([1.0, 2.0, float("nan"), 2.0], object),
    np.array([1, 2, np.float32("nan"), True], object),
    np.array(["cat", "ant", float("nan"), "ant"]),
    np.array([["cat"], ["ant"], [float("nan")], ["ant"]], object),
    ["cat", "ant", "", "ant"],
    ["cat", "ant", "None", "ant"],
    [b"cat", b"ant", b"NaN", b"ant"],
    np.array(["2024-01-01", "2024-01-01", "NaT", "2024-01-01"], "datetime64[D]"),
]


@pytest.mark.parametrize("found", MISSING, ids=range(len(MISSING)))
def test_missing_labels_are_refused_with_their_rows(found: list[Any]) -> None:
    with pytest.raises(InputError, match=r"row 2 \(counted from 0\).*missing"):
        class_indices(np.array(found), 4, "p")
    with pytest.raises(InputError, match="length"):
        class_indices(np.array(found), 5, "p")


def test_the_first_missing_labels_are_named_and_all_counted() -> None:
    y = np.arange(20.0)
    y[5:] = np.nan
    with pytest.raises(InputError, match=r"rows 5, 6, 7, 8, 9 \(counted from 0\) and 10 more, 15 in all"):
        class_indices(y[:, None], 20, "p")


@pytest.mark.slow
@pytest.mark.parametrize("y", [np.array([np.nan, 0.0, 1.0]), np.array([[1.0, 0.0], [np.inf, 0.0], [0.0, 1.0]])])
def test_missing_labels_are_refused_in_every_format(y: np.ndarray, tmp_path: Path) -> None:
    x = np.array([[0.5, 0.25], [1.5, -1.0], [0.5, 2.0]])
    for spec in stored_labels(tmp_path, x, y):
        with pytest.raises(InputError, match=r"row (0|1) \(counted from 0(; line (2|3))?\)"):
            read_probe(spec, {})


# Pixels, whatever they are stored in


FLOATS = ["float16", "float32", "float64", ">f2", ">f4", ">f8", "longdouble"]
PIXELS = np.array([[0, 128, 255], [7, 1, 0]])


@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", ">u2", "int32", "uint64"])
def test_pixels_need_a_scale_in_every_type(dtype: str, tmp_path: Path) -> None:
    for stored in (PIXELS.astype(dtype), np.asfortranarray(PIXELS.astype(dtype))):
        spec = npz(tmp_path / "a.npz", x=stored, y=np.array([0, 1]))
        for arguments in ({}, {"mean": 3.0}, {"std": 0.5, "shape": [3, 1]}):
            with pytest.raises(UsageError, match=r"from 0 to 255 and no scale.*scale=255.*scale=1 .*counts"):
                read_probe(spec, arguments)
        assert (read_probe(spec, {"scale": 255})[0].x == PIXELS / 255).all()
        assert (read_probe(spec, {"scale": 1})[0].x == PIXELS).all()


@pytest.mark.slow
def test_float_pixels_need_a_scale_in_every_format(tmp_path: Path) -> None:
    for spec in stored_labels(tmp_path, PIXELS[:, 1:].astype(float), np.array([2, 0])):
        with pytest.raises(UsageError, match="scale=255"):
            read_probe(spec, {})
        assert (read_probe(spec, {"scale": 255})[0].x == PIXELS[:, 1:] / 255).all()
    idx(tmp_path / "a-images-idx3-ubyte", PIXELS.astype(np.float32).reshape(2, 3, 1))
    np.save(tmp_path / "a.npy", PIXELS.astype(">f4"))
    (tmp_path / "half.pt").write_bytes(torch_bytes({"x": torch.tensor(PIXELS).bfloat16()}))
    (tmp_path / "half.safetensors").write_bytes(safetensors_bytes({"x": torch.tensor(PIXELS).bfloat16()}))
    (tmp_path / "whole.csv").write_text("0.0,128.0\n255.0,1e0\n")
    (tmp_path / "p.py").write_text("import torch\ndef probe(): return torch.full((3, 2), 7.0, requires_grad=True)\n")
    names = ["a-images-idx3-ubyte", "a.npy", "half.pt", "half.safetensors", "whole.csv", "p.py:probe"]
    for name in names:
        with pytest.raises(UsageError, match="scale=255"):
            read_probe(f"{tmp_path}/{name}", {})
        read_probe(f"{tmp_path}/{name}", {"scale": 1})


NO_PIXELS = [
    np.array([[-3, -1], [1, 3]]),
    np.array([[-3.0, -1.0], [1.0, 3.0]]),
    np.array([[-128, 127]], np.int8),
    np.array([[0.0, 1.0], [1.0, 0.0]]),
    np.array([[0, 1], [1, 0]], np.uint8),
    np.array([[False, True]]),
    np.array([[0.0, 255.0], [0.5, 1.0]]),
    np.array([[-0.0, 1.0]]),
    np.vstack([np.full((1000, 1), 2.0), [[2.5]]]),
]


@pytest.mark.parametrize("x", NO_PIXELS, ids=range(len(NO_PIXELS)))
def test_numbers_that_are_no_pixels_need_no_scale(x: np.ndarray, tmp_path: Path) -> None:
    assert (read_probe(npz(tmp_path / "a.npz", x=x), {})[0].x == x).all()


@given(st.lists(st.integers(-(2**50), 2**50), min_size=1))
def test_indices_point_at_the_labels(values: list[int]) -> None:
    for stored in (np.array(values), np.array(values, float)):
        y, labels, _ = class_indices(stored, len(values), "p")
        assert y is not None
        assert [labels[index] for index in y] == values
        assert list(labels) == sorted(set(values))
