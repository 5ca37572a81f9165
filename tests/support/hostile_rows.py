"""The rows of test_hostile.py: what is put into a run folder, the command, its exit code and its words."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Finished
from safetensors.torch import save as safetensors_bytes

from ibscan.core.estimate import Status
from ibscan.results.store import read
from support import hostile as make

Builder = Callable[[Path], object]
RANK = "rank run --eps 0.1 --rel-eps 0.1 -o r.h5"
CLUSTER = "cluster run -o r.h5"
INFORMATION = "mi run --channel readout --bins 3 --tolerance 0.5 -o r.h5"


@dataclass(frozen=True)
class Row:
    """`build` gets the run folder (for a checkpoint: its own path); `words` stand in what is printed."""

    name: str
    build: Builder
    line: str
    code: int
    words: tuple[str, ...]
    patch: Callable[[pytest.MonkeyPatch], object] = lambda _: None
    check: Callable[[Finished, Path], object] = lambda _, __: None
    stdin: str = ""
    lost: tuple[str, ...] = ()


def stored(x: object, y: object = None) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, **({"x": np.asarray(x)} | ({} if y is None else {"y": np.asarray(y)})))
    return stream.getvalue()


X = np.random.default_rng(0).random((6, 4))
Y = [0, 1, 0, 1, 1, 0]
PROBE = stored(X, Y)


def checkpoint(tensors: Mapping[str, torch.Tensor], **metadata: str) -> bytes:
    """Return a safetensors file that states its model and step; a double underscore in a name stands for a dot."""
    named = {key.replace("__", "."): value for key, value in metadata.items()}
    return safetensors_bytes(dict(tensors), metadata={"ibscan.model": "mlp:tanh", "step": "1"} | named)


STATE = make.state()
GOOD = checkpoint(STATE)


# Builders


def written(blob: bytes | Callable[[], bytes]) -> Builder:
    return lambda path: path.write_bytes(blob if isinstance(blob, bytes) else blob())


def torch_file(content: Callable[[], object], *, zipped: bool = True) -> Builder:
    return lambda path: path.write_bytes(make.torch_bytes(content(), zipped=zipped))


def evil(zipped: bool, nested: bool) -> Builder:
    def build(path: Path) -> None:
        bad = make.Evil(path.parent / "canary")
        content = {"state_dict": make.state(), "optimizer": {"state": [bad]}} if nested else {"w": bad}
        path.write_bytes(make.torch_bytes(content, zipped=zipped))

    return build


def plain_evil(protocol: int) -> Builder:
    return lambda path: path.write_bytes(make.plain_pickle(make.Evil(path.parent / "canary"), protocol))


def without_block() -> bytes:
    blob = make.torch_bytes(make.state())
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
    kept = make.rezipped(blob)
    # Renamed in both the entry and the directory, same length.
    return kept.replace(name.encode(), name[:-1].encode() + b"z")


# name of the file, how it is made, words that must be in the sentence
DAMAGED: list[tuple[str, Builder, tuple[str, ...]]] = [
    ("zero.pt", written(b""), ("zero bytes",)),
    ("zero.safetensors", written(b""), ("zero bytes",)),
    ("short.safetensors", written(b"\x01\x02"), ("truncated",)),
    ("text.pt", written(b"epoch,loss\n1,0.5\n"), ("text file",)),
    ("lfs.pt", written(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), ("Git LFS", "git lfs pull")),
    ("random.pt", written(bytes(range(160, 256)) * 9), ("neither safetensors nor",)),
    ("cut.pt", written(lambda: make.torch_bytes(make.state())[:-300]), ("truncated", "zip")),
    ("cut-legacy.pt", written(lambda: make.torch_bytes(make.state(), zipped=False)[:-10]), ("truncated",)),
    ("cut-pickle.pt", written(lambda: make.torch_bytes(make.state(), zipped=False)[:200]), ("damaged",)),
    ("cut.safetensors", written(make.GOOD[:-5]), ("5 bytes are missing", "truncated")),
    ("padded.safetensors", written(make.GOOD + b"12345"), ("5 bytes too many",)),
    ("huge.safetensors", written(make.header_bytes({"a": make.F8}, b"8" * 8, length=2**63)), (str(2**63), "header")),
    (
        "overlap.safetensors",
        written(make.header_bytes({"a": make.F8, "b": make.entry(4, 12)}, b"8" * 12)),
        ("overlap", "'b'"),
    ),
    ("gap.safetensors", written(make.header_bytes({"a": make.F8, "b": make.entry(12, 20)}, b"8" * 20)), ("gap of 4",)),
    ("dtype.safetensors", written(make.header_bytes({"a": make.entry(0, 8, "F31")}, b"8" * 8)), ("'F31'", "not known")),
    (
        "size.safetensors",
        written(make.header_bytes({"a": {**make.F8, "shape": [3]}}, b"8" * 8)),
        ("span 8", "12 bytes"),
    ),
    ("negative.safetensors", written(make.header_bytes({"a": {**make.F8, "shape": [-2]}}, b"8" * 8)), ("'a'", "lacks")),
    (
        "twice.safetensors",
        written(make.header_bytes(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32"}}')),
        ("'a' twice",),
    ),
    ("json.safetensors", written(make.header_bytes(b'{"a":')), ("JSON",)),
    ("deep.safetensors", written(make.header_bytes(b'{"a":' + b"[" * 200_000)), ("JSON",)),
    ("meta.safetensors", written(make.header_bytes({"__metadata__": {"epoch": 3}})), ("metadata",)),
    ("none.safetensors", written(make.header_bytes({})), ("no tensors",)),
    ("names.safetensors", make.many_names, ("1500 tensors",)),
    (
        "flipped.pt",
        written(lambda: make.flipped(make.torch_bytes({"w.weight": torch.full((9,), 1.5)}), b"\x00\x00\xc0\x3f")),
        ("CRC",),
    ),
    ("evil-zip.pt", evil(True, False), ("posix.system", "not run")),
    ("evil-legacy.pt", evil(False, False), ("posix.system", "not run")),
    ("evil-nested.pt", evil(True, True), ("posix.system", "not run")),
    ("evil-nested-legacy.pt", evil(False, True), ("posix.system", "not run")),
    ("evil-plain-2.pt", plain_evil(2), ("posix.system", "not run")),
    ("evil-plain-4.pt", plain_evil(4), ("posix.system", "not run")),
    ("module.pt", make.whole_module, ("whole pickled module", "state_dict()")),
    ("plain.pt", written(make.plain_pickle({"a": 1})), ("plain pickle",)),
    ("stride.pt", make.stride_bomb, ("1000000000000 elements", "holds 1")),
    ("storage.pt", make.legacy_storage_bomb, ("8000000000 bytes", "left")),
    ("bytearray.pt", make.bytearray_bomb, ("bytearray", "not run")),
    ("numpy.pt", make.numpy_bomb, ("_reconstruct", "not run")),
    (
        "deflate.pt",
        written(lambda: make.rezipped(make.torch_bytes(make.state()), zipfile.ZIP_DEFLATED)),
        ("compressed",),
    ),
    ("entries.pt", make.many_entries, ("zip directory", "far beyond")),
    ("operations.pt", make.many_operations, ("pickle operations",)),
    ("deep.pt", make.deep_key, ("nested tuples",)),
    ("deep-type.pt", make.deep_call, ("not run",)),
    ("missing.pt", lambda path: path.write_bytes(without_block()), ("stored block", "missing")),
    (
        "complex.pt",
        torch_file(lambda: {"a.weight": torch.zeros(2, dtype=torch.complex64)}),
        ("'a.weight'", "complex64"),
    ),
    ("integer.pt", torch_file(lambda: {"a.weight": torch.zeros(2, dtype=torch.int8)}), ("'a.weight'", "int8")),
    ("quantised.pt", make.quantised, ("'fc.weight'", "quantised")),
    ("sparse.pt", torch_file(lambda: {"a.weight": torch.eye(2).to_sparse()}), ("'a.weight'", "sparse")),
    ("bare.pt", torch_file(lambda: torch.zeros(3)), ("bare tensor",)),
    ("list.pt", torch_file(lambda: [1, 2]), ("no named tensors",)),
    ("empty-dict.pt", torch_file(dict), ("no named tensors",)),
    ("two.pt", torch_file(lambda: {"model": make.state(), "net": make.state()}), ("several sets", "--state-key")),
    ("ema.pt", torch_file(lambda: {"model": make.state(), "ema": make.state()}), ("--weights raw", "--weights ema")),
    ("odd-key.pt", torch_file(lambda: {"generator": make.state()}), ("generator", "--state-key")),
    ("negative.pt", torch_file(lambda: {"model": make.state(), "step": -5}), ("step -5",)),
    ("large.pt", torch_file(lambda: {"model": make.state(), "step": 10**20}), (str(10**20),)),
    ("nan.pt", torch_file(lambda: {"model": make.state(), "epoch": float("nan")}), ("epoch nan",)),
    ("fraction.pt", torch_file(lambda: {"model": make.state(), "step": 1.5}), ("step 1.5",)),
    ("script.pt", lambda path: make.zip_of(path, "m/data.pkl", "m/constants.pkl", "m/code/a.py"), ("TorchScript",)),
    ("exported.pt2", lambda path: make.zip_of(path, "m/archive_format", "m/models/model.json"), ("exported program",)),
    (
        "net.keras",
        lambda path: make.zip_of(path, "config.json", "metadata.json", "model.weights.h5"),
        ("Keras", "safetensors.numpy.save_file"),
    ),
    ("array.pt", lambda path: make.zip_of(path, "a.npy"), (".npz",)),
    ("other.pt", lambda path: make.zip_of(path, "a.txt"), ("without the data.pkl",)),
    (
        "net.onnx",
        written(b"\x08\x07\x12\x07pytorch\x1a\x052.0.0" + b"\x00" * 40),
        ("ONNX", "state dict of the torch model"),
    ),
    ("net.weights.h5", make.hdf5_file, ("HDF5", "safetensors.numpy.save_file")),
    ("old.pt", make.tar_file, ("tar archive",)),
    ("packed.pt", written(b"\x1f\x8b\x08\x00" + b"\x00" * 30), ("gzip", "gunzip")),
    ("fifo.pt", os.mkfifo, ("named pipe", "not opened")),
    ("socket.pt", make.socket_file, ("socket", "not opened")),
    ("device.pt", lambda path: path.symlink_to("/dev/zero"), ("device", "not opened")),
    ("loop.pt", lambda path: path.symlink_to(path.name), ("cannot be read", "symbolic links")),
    ("dangling.pt", lambda path: path.symlink_to("nowhere"), ("link to nowhere",)),
]
# Checkpoints that cannot be used, each alone and beside a good one

MORE: list[tuple[str, Builder, tuple[str, ...]]] = [
    # Two readers, two answers: what was checked must be what is loaded.
    ("case.pt", make.other_case, ("twice under one name",)),
    ("before.pt", make.bytes_before, ("does not stand where the end says",)),
    # Quadratic time for a small file.
    ("colliding.pt", make.colliding_keys, ("integers beyond 61 bits",)),
    ("shared.pt", make.shared_tables, ("k0, k1", "--state-key")),
    ("class.pt", make.array_by_class, ("numpy.ndarray called with", "not run")),
    ("beside.pt", make.arguments_beside, ("pathlib.PosixPath", "not run")),
    ("evil-labels.pt", make.evil_object_array, ("posix.system", "not run")),
    ("minus.safetensors", lambda path: path.write_bytes(checkpoint(STATE, step="-4")), ("step", "-4")),
    ("fraction.safetensors", lambda path: path.write_bytes(checkpoint(STATE, step="1.5")), ("1.5",)),
    ("long.safetensors", lambda path: path.write_bytes(checkpoint(STATE, epoch="9" * 5000)), ("finite",)),
    ("new\nline.pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
    ("\x1b[31mred\x9b.pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
    ("[bold]x[x='y'].pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
    ("=cmd().pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
    ("-rf.pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
    ("a" * 252 + ".pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
    ("right\u202eleft.pt", lambda path: path.write_bytes(b""), ("zero bytes",)),
]


def smaller(patch: pytest.MonkeyPatch) -> None:
    """Lower the limits that a file would have to be large to reach."""
    patch.setattr("ibscan.inputs.formats.pickle_reader.MAX_OPERATIONS", 100_000)
    patch.setattr("ibscan.inputs.formats.safetensors.MAX_TENSORS", 1_000)


CHECKPOINTS = [Row(name, build, RANK, 3, words, smaller) for name, build, words in DAMAGED + MORE]


# Everything else


def nothing(_: Path) -> None:
    pass


def probe(x: object, y: object = None) -> Builder:
    return lambda run: (run / "probe.npz").write_bytes(stored(x, y))


def probe_file(name: str, build: Builder) -> Builder:
    def place(run: Path) -> None:
        (run / "probe.npz").unlink()
        build(run / name)

    return place


def manifest(text: str) -> Builder:
    def place(run: Path) -> None:
        (run / "ibscan.toml").write_text(text)
        (run / "evil.py").write_text("open('canary', 'w')\ndef probe(): return [[0.5] * 4]\nbuild = probe\n")
        (run.parent / "evil.py").write_bytes((run / "evil.py").read_bytes())
        (run.parent / "outside.npz").write_bytes(PROBE)
        (run / "link.npz").symlink_to("../outside.npz")

    return place


def saved(*tensors: Mapping[str, torch.Tensor], **metadata: str) -> Builder:
    """Replace the good checkpoint by these, at steps 1, 2, ..."""

    def place(run: Path) -> None:
        for step, one in enumerate(tensors, start=1):
            (run / f"step-{step}.safetensors").write_bytes(checkpoint(one, **({"step": str(step)} | metadata)))

    return place


def beside_good(name: str, blob: Callable[[], bytes]) -> Builder:
    return lambda run: (run / name).write_bytes(blob())


def shards(index: dict[str, str], outside: bool = False) -> Builder:
    def place(run: Path) -> None:
        folder = run / "sharded"
        folder.mkdir()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (run.parent / "x.safetensors").write_bytes(make.GOOD)
        if outside:
            (folder / "model-00001-of-00001.safetensors").symlink_to(run.parent / "x.safetensors")

    return place


NET = """
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self, kind):
        middle = nn.Dropout(0.5) if kind == "dropout" else nn.BatchNorm1d(3) if kind == "norm" else nn.Tanh()
        super().__init__(nn.Linear(4, 3), middle, nn.Linear(3, 2))
        self.kind = kind
    def forward(self, x):
        if self.kind == "prints": print("said in forward")
        if self.kind == "raises": raise ValueError("no forward")
        out = super().forward(x)
        if self.kind == "noise": out = out + torch.randn(out.shape, dtype=out.dtype)
        return (out, 1) if self.kind == "tuple" else {"logits": out} if self.kind == "dict" else out
def build(kind="plain"):
    if kind == "prints": print("said in build")
    if kind == "fails": raise ValueError("no build")
    return Net(kind)
"""


def coded(*change: Callable[[dict[str, torch.Tensor]], object]) -> Builder:
    def place(run: Path) -> None:
        (run.parent / "net.py").write_text(NET)
        tensors = dict(STATE)
        for one in change:
            one(tensors)
        (run / "step-1.safetensors").write_bytes(safetensors_bytes(tensors, metadata={"step": "1"}))

    return place


def normed(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"1.{name}": torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}
    tensors["1.num_batches_tracked"] = torch.tensor(1)


def code(kind: str) -> str:
    return f"{RANK} -m net.py:build --model-arg kind={kind}"


def result(change: Callable[[h5py.File], object] = nothing) -> Builder:
    """Put a result beside the run folder, changed and without its seal."""

    def place(run: Path) -> None:
        path = run.parent / "old.h5"
        path.write_bytes(make.result_bytes())
        if change is not nothing:
            with h5py.File(path, "r+") as file:
                change(file)

    return place


def set_attribute(name: str, value: object) -> Callable[[h5py.File], object]:
    return lambda file: file.attrs.__setitem__(name, value)


def damaged_result(change: Callable[[bytes], bytes]) -> Builder:
    return lambda run: (run.parent / "old.h5").write_bytes(change(make.result_bytes()))


def never_opened(patch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    patch.setattr(Path, "open", refuse)


def vanishing(patch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def vanish(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "step-2.safetensors":
            self.unlink(missing_ok=True)
        return opened(self, *args, **kwargs)

    patch.setattr(Path, "open", vanish)


def vanishing_once_listed(patch: pytest.MonkeyPatch) -> None:
    opened, times = Path.open, itertools.count()

    def vanish(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "step-1.safetensors" and next(times):
            self.unlink(missing_ok=True)
        return opened(self, *args, **kwargs)

    patch.setattr(Path, "open", vanish)


def beside_another(run: Path) -> None:
    coded()(run)
    (run / "step-2.safetensors").write_bytes(checkpoint(STATE, step="2"))


# Checks of what was measured


def same_as_clean(_: Finished, place: Path) -> None:
    from ibscan import rank

    (place / "clean").mkdir()
    (place / "clean" / "step-1.safetensors").write_bytes(GOOD)
    clean = rank(place / "clean", probe=str(place / "run" / "probe.npz"), eps=0.1, rel_eps=0.1)
    found = read(place / "r.h5")
    for name in ("local_rank", "effective_rank", "probe_loss"):
        np.testing.assert_allclose(found[name].values, np.broadcast_to(clean[name].values, found[name].values.shape))


def statuses(name: str, *expected: Status) -> Callable[[Finished, Path], None]:
    def check(_: Finished, place: Path) -> None:
        found = read(place / "r.h5").status(name)
        assert found is not None
        assert found.reshape(len(expected), -1).tolist() == [[one] * (found.size // len(expected)) for one in expected]

    return check


def at_most(rows: int) -> Callable[[Finished, Path], None]:
    """Information is never above the entropy of the distinct rows, by more than the errors told."""

    def check(_: Finished, place: Path) -> None:
        found = read(place / "r.h5")
        assert (found["mi_binned_xt"].values <= math.log(rows) + 1e-12).all()
        assert (found["mi_readout_xt"].values <= math.log(rows) + 4 * found["mi_readout_xt_se"].values + 1e-9).all()

    return check


def classes(*expected: str) -> Callable[[Finished, Path], None]:
    def check(done: Finished, place: Path) -> None:
        assert "label" not in done.err
        status = read(place / "r.h5").status("nc1")
        assert status is not None
        assert (status == Status.OK).all(), expected

    return check


def wrapped(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in STATE.items()}


def cast(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) for name, tensor in STATE.items()}


def filled(name: str, value: float) -> dict[str, torch.Tensor]:
    return STATE | {name: torch.full_like(STATE[name], value)}


def named(first: str, last: str) -> dict[str, torch.Tensor]:
    pairs = itertools.product((("0", first), ("2", last)), ("weight", "bias"))
    return {f"{new}.{part}": STATE[f"{old}.{part}"] for (old, new), part in pairs}


def emptied(run: Path) -> Path:
    for path in run.iterdir():
        path.unlink()
    return run


FOLDERS = [
    Row("an empty folder", emptied, RANK, 5, ("run", "saw nothing")),
    Row("only junk", lambda run: (emptied(run) / "notes.md").write_text("a"), RANK, 5, ("notes.md", ".safetensors")),
    Row("a missing path", nothing, "rank nowhere", 3, ("nowhere: does not exist",)),
    Row("no permission", nothing, RANK, 3, ("permission denied",), never_opened),
    Row(
        "deleted while read",
        saved(STATE, STATE),
        RANK,
        4,
        ("step-2", "deleted while"),
        vanishing,
        lost=("run/step-2.safetensors",),
    ),
    Row("one architecture", saved(STATE, make.state(5), STATE), RANK, 4, ("step-2.safetensors", "one architecture")),
    Row(
        "a step twice",
        beside_good("again.safetensors", lambda: checkpoint(STATE | {"2.bias": torch.ones(2)})),
        RANK,
        3,
        ("again.safetensors", "step 1"),
    ),
    Row("step 10^18", saved(STATE, step=str(10**18)), RANK, 0, (str(10**18),)),
    Row("step 1e3", saved(STATE, step="1e3"), RANK, 0, ("1000",)),
    Row("shard above", shards({"a": "../x.safetensors"}), RANK, 4, ("sharded",)),
    Row("shard absolute", shards({"a": "/x.safetensors"}), RANK, 4, ("sharded",)),
    Row("shard linked out", shards({"a": "model-00001-of-00001.safetensors"}, True), RANK, 4, ("sharded",)),
    Row("shard missing", shards({"a": "model-00001-of-00001.safetensors"}), RANK, 4, ("sharded",)),
    Row("no path on standard input", nothing, "rank -", 5, ("standard input",)),
    Row("a null byte on standard input", nothing, "ls -", 3, (r"\x00b", "is no path"), stdin="run/a\0b\n"),
    Row("5000 letters on standard input", nothing, "ls -", 3, ("is no path",), stdin="a" * 5000),
    Row("a name of bytes", lambda run: (run / "\udcff.pt").write_bytes(b""), RANK, 4, (r"\udcff.pt: has zero bytes",)),
    Row(
        "a link as output",
        lambda run: (run.parent / "r.h5").symlink_to("run/probe.npz"),
        "rank run -o r.h5",
        2,
        ("r.h5",),
    ),
    Row("odd paths on standard input", nothing, "ls -", 3, (r"\x1b[31m",), stdin="run/\x1b[31m\nx\n"),
    Row(
        "escapes in ls",
        saved(STATE, **{"ibscan__metric.\x1b[1m": "2", "ibscan__step\x1b": "3"}),
        "ls run --format table",
        0,
        ("step-1",),
    ),
    Row("escapes in a link", lambda run: (run / "a.pt").symlink_to("\x1b[31mnowhere"), "ls run", 4, (r"\x1b[31mnow",)),
]
WEIGHTS = [
    *(
        Row(f"prefix {prefix}", saved(wrapped(prefix)), RANK, 0, (), check=same_as_clean)
        for prefix in ("module.", "_orig_mod.module.", "module._fsdp_wrapped_module._checkpoint_wrapped_module.")
    ),
    *(
        Row(f"{dtype}", saved(cast(dtype)), RANK, 0, (), check=statuses("local_rank", Status.OK))
        for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
    ),
    Row("a layer without units", saved({"0.weight": torch.zeros(0, 4)}), RANK, 3, ("'0' has no units",)),
    Row("a NaN weight", saved(filled("2.weight", math.nan)), RANK, 4, ("nonfinite",)),
    Row("an infinite bias", saved(filled("2.bias", math.inf)), CLUSTER, 4, ("nonfinite",)),
    Row("a zero layer", saved(filled("0.weight", 0)), INFORMATION, 0, (), check=at_most(1)),
    Row("no slope", saved(filled("0.weight", 0)), RANK, 0, (), check=statuses("local_rank", Status.DEAD)),
    Row(
        "a constant layer",
        saved(filled("0.weight", 0)),
        INFORMATION,
        0,
        (),
        check=statuses("mi_binned_xt", Status.DEAD),
    ),
    Row(
        "layer names of escapes",
        saved(named("\x1b[31m\n[bold]/../=a", "@b")),
        f"{RANK} --format csv",
        0,
        (r"\x1b[31m\n[bold]/../=a", "'@b"),
    ),
    Row("layer names of formulas", saved(named("=a;b", "+b")), "ls run --format csv", 0, ("step-1",)),
    Row(
        "layer names in a table",
        saved(named("[x='y']\x9b", "\u202eb")),
        f"{RANK} --format table",
        0,
        (r"[x='y']\x9b", r"\u202eb"),
    ),
    Row(
        "metrics of escapes",
        saved(STATE, **{"ibscan__metric.\x1b[1m/x": "2", "ibscan__metric.": "nan"}),
        f"{RANK} --format jsonl",
        0,
        ("metric___1m_x",),
    ),
    Row("a model of code", saved(STATE, ibscan__model="net.py:build"), RANK, 3, ("net.py:build", "--trust")),
    Row("a model of escapes", saved(STATE, ibscan__model="\x1b[31m"), RANK, 3, (r"\x1b[31m",)),
    Row("harmless beside", beside_good("step-2.pt", make.harmless_extras), f"{RANK} -m mlp:tanh", 0, ()),
    Row("missing tensors", coded(lambda t: t.pop("2.bias")), code("plain"), 3, ("2.bias",)),
    Row("unexpected tensors", coded(lambda t: t.update({"3.weight": torch.ones(2)})), code("plain"), 3, ("3.weight",)),
    Row("other shapes", coded(lambda t: t.update({"0.bias": torch.ones(5)})), code("plain"), 3, ("(5,)", "(3,)")),
]
MODELS = [
    Row("model prints", coded(), code("prints"), 0, ("said in build", "said in forward")),
    Row("model fails", coded(), code("fails"), 3, ("ValueError: no build",)),
    Row("forward raises", coded(), code("raises"), 3, ("ValueError: no forward",)),
    Row("forward gives a tuple", coded(), code("tuple"), 0, ()),
    Row("forward gives a dict", coded(), code("dict"), 0, ()),
    Row("dropout", coded(), code("dropout"), 0, ()),
    Row(
        "the first deleted before it is a model",
        beside_another,
        code("plain"),
        4,
        ("skipped: step-1.safetensors: does not exist",),
        vanishing_once_listed,
        lost=("run/step-1.safetensors",),
    ),
    Row("batch norm", coded(normed), code("norm"), 0, ()),
    Row("random forward", coded(), code("noise"), 3, ("random",)),
]
PROBES = [
    Row("repeated rows", probe(np.repeat(X[:2], 5, axis=0), [0, 1] * 5), INFORMATION, 0, (), check=at_most(2)),
    Row("one row", probe(X[:1], [3]), INFORMATION, 0, (), check=at_most(1)),
    Row("one class", probe(X, [1] * 6), CLUSTER, 0, ()),
    Row("a class of one", probe(X, [0, 0, 0, 0, 0, 1]), CLUSTER, 0, ()),
    Row("labels as floats", probe(X, np.array(Y, float)), CLUSTER, 0, (), check=classes("0", "1")),
    Row("labels one-hot", probe(X, np.eye(2)[Y]), CLUSTER, 0, (), check=classes("0", "1")),
    Row("labels as strings", probe(X, np.array(["\x1b[31m", "=b"])[Y]), CLUSTER, 0, (), check=classes("0", "1")),
    Row("regression targets", probe(X, X[:, 0]), CLUSTER, 0, ("label quantities are not measured",)),
    Row("labels of vectors", probe(X, X), CLUSTER, 0, ("label quantities are not measured",)),
    Row("no labels", probe(X), CLUSTER, 0, ("no labels",)),
    Row("too few labels", probe(X, [0, 1]), RANK, 3, ("length 2", "length 6")),
    Row("too wide", probe(np.zeros((4, 9))), RANK, 3, ("9", "4")),
    Row("no rows", probe(np.zeros((0, 4))), RANK, 3, ("0 rows",)),
    Row("NaN", probe([[0, 1, 2, math.nan]]), RANK, 3, ("NaN or infinite",)),
    Row("pixels", probe(np.full((4, 4), 200, np.uint8)), RANK, 2, ("--probe-arg scale=255", "scale=1")),
    Row("objects", probe(np.array([[1, "a"]], object)), RANK, 3, ("Python objects", "never unpickled")),
    Row("objects that call", make.evil_npz, RANK, 3, ("Python objects", "never unpickled")),
    Row("a deflated bomb", make.deflated_npz, RANK, 3, ("takes 6442450944 bytes", "save fewer rows")),
    Row("another compression", lambda run: make.lzma_npz(run / "probe.npz"), RANK, 3, ("as numpy never does",)),
    Row("no probe", probe_file("probe.txt", nothing), RANK, 3, ("--probe",)),
    Row("a probe of torch that calls", probe_file("probe.pt", make.evil_probe), RANK, 3, ("posix.system", "not run")),
    Row("a probe in a fifo", probe_file("probe.npz", os.mkfifo), RANK, 3, ("named pipe",)),
    Row("an HDF5 link out", probe_file("probe.h5", make.linked_hdf5), RANK, 3, ("links are never followed",)),
    Row(
        "an array of numpy's version 9",
        probe_file("probe.npy", lambda path: path.write_bytes(b"\x93NUMPY\x09\x00" + bytes(9))),
        RANK,
        3,
        ("no readable numpy header", "(9, 0)"),
    ),
    Row("several probes", beside_good("probe.npy", lambda: b""), RANK, 2, ("probe.npy, probe.npz",)),
]
MANIFESTS = [
    Row(f"manifest: {text[:40]}", manifest(text), RANK, status, (word,))
    for text, status, word in (
        ('[model]\nspec = "evil.py:build"', 3, "--trust"),
        ('[model]\nspec = "evil:build"', 3, "--trust"),
        ('[model]\nspec = "mlp:\\u001b[31m"', 2, r"mlp:\x1b[31m"),
        ('[probe]\npath = "evil.py:probe"', 3, "is code"),
        ('[probe]\npath = "evil:probe"', 3, "is code"),
        ('[probe]\npath = "./evil.py:probe"', 3, "is code"),
        ('[probe]\npath = "../outside.npz"', 3, "outside the folder"),
        ('[probe]\npath = "/etc/hostname"', 3, "outside the folder"),
        ('[probe]\npath = "link.npz"', 3, "outside the folder"),
        ('[probe]\npath = "a/../../outside.npz"', 3, "outside the folder"),
        ('[probe]\npath = "\\u0000"', 3, "cannot be followed"),
        ('[probe]\nscale = nan', 2, "scale is nan"),
        ('[model', 2, "no readable TOML"),
        ('[modle]\nspec = "mlp:tanh"', 2, "[modle] is not known"),
        ('[model]\nspec = 3', 2, "a string was expected"),
        ('[series]\npattern = "{epoch}{epoch}"', 2, "each at most once"),
        ("a = " + "[" * 5000, 2, "no readable TOML"),
        ("#" * (1 << 20) + "#", 3, "at most 1048576"),
    )
]  # fmt: skip
RESULTS = [
    *(
        Row(f"{verb} of a result {kind}", build, f"{verb} old.h5", 3, words)
        for verb in ("show", "export")
        for kind, build, words in (
            ("that is cut", damaged_result(lambda blob: blob[:-200]), ("old.h5",)),
            ("flipped", damaged_result(lambda blob: make.flipped(blob, b"epoch")), ("SHA-256",)),
            ("of random bytes", damaged_result(lambda _: bytes(range(256)) * 9), ("no HDF5",)),
            ("that is missing", nothing, ("old.h5", "No such file")),
            ("that is newer", result(set_attribute("format_version", 2)), ("newer ibscan", "Upgrade")),
            ("that is foreign", lambda run: make.hdf5_file(run.parent / "old.h5"), ("not a result of ibscan",)),
            ("with a link", result(lambda f: f.__setitem__("z", h5py.ExternalLink("/x", "/"))), ("is a link",)),
        )
    ),
    Row("show a fifo", lambda run: os.mkfifo(run.parent / "old.h5"), "show old.h5", 3, ("not a regular file",)),
    Row("show a result of escapes", result(make.escapes_everywhere), "show old.h5 --format table", 0, (r"\x1b[31m",)),
    Row("export a result of escapes", result(make.escapes_everywhere), "export old.h5", 0, (r"\x1b[31m",)),
    Row("csv of a result of formulas", result(make.formulas_everywhere), "export old.h5 --format csv", 0, (",'=cmd",)),
    Row("no such variable", result(), "show old.h5 --variable local_rnak", 5, ("local_rank",)),
    Row("export as a table", result(), "export old.h5 --format table", 2, ("table",)),
]
OUTPUTS = [
    Row(f"-o {given}", build, f"rank run -o {given}", 2, words)
    for given, build, words in (
        ("run", nothing, ("run: is a folder",)),
        ("nowhere/r.h5", nothing, ("nowhere/r.h5",)),
        ("run/step-1.safetensors", nothing, ("run/step-1.safetensors", "not overwritten")),
        ("run/probe.npz", nothing, ("one of the inputs",)),
        ("old.h5", lambda run: make.hdf5_file(run.parent / "old.h5"), ("not a result of ibscan", "not overwritten")),
        ("old.h5", result(set_attribute("format_version", 2)), ("newer", "not overwritten")),
        ("old.h5", damaged_result(lambda _: bytes(4000)), ("not overwritten",)),
        ("old.h5", result(), ("old.h5",)),
        ("a" * 300, nothing, ("cannot be",)),
        ("/dev/null", nothing, ("/dev/null",)),
        ("/proc/r.h5", nothing, ("/proc/r.h5",)),
    )
]
OPTIONS = [
    Row(line, result() if "old.h5" in line else nothing, line, status, tuple(words))
    for line, status, *words in (
        ("mi run --noise 0", 2, "--noise 0"),
        ("mi run --noise nan", 2, "--noise nan"),
        ("mi run --noise inf", 2, "--noise inf"),
        ("mi run --noise -1", 2, "--noise -1"),
        ("mi run --noise 1_0", 2, "1_0"),
        ("mi run --rel-noise 0", 2, "--rel-noise 0"),
        ("mi run --bins 0", 2, "--bins 0"),
        ("mi run --bins 3.5", 2, "3.5"),
        ("mi run --bin-width 0", 2, "--bin-width"),
        ("mi run --bin-range 1:-1", 2, "--bin-range"),
        ("mi run --bin-range 1_0:2_0", 2, "LO:HI"),
        ("mi run --bin-range 1", 2, "LO:HI"),
        ("mi run --tolerance 0", 2, "--tolerance"),
        ("mi run --max-draws 0", 2, "--max-draws"),
        ("mi run --channel both", 2, "network or readout"),
        ("mi run --channel radio", 2, "radio"),
        ("mi run --max-replicas 1", 2, "whole number >= 2"),
        ("rank run --samples 0", 2, "--samples 0"),
        ("rank run --samples x", 2, "x"),
        ("rank run --samples 1_0", 2, "1_0"),
        ("rank run --eps 0", 2, "--eps"),
        ("rank run --eps 1e", 2, "1e"),
        ("rank run --at middle", 2, "--at middle"),
        ("rank run --seed -1", 2, "--seed"),
        ("rank run --dtype float16", 2, "float16"),
        ("rank run --device cuda:77", 2, "cpu"),
        ("rank run --device tpu", 2, "tpu"),
        ("rank run --device mps", 2, "later version"),
        ("rank run --epochs x", 2, "--epochs"),
        ("rank run --epochs 1_0", 2, "--epochs"),
        ("rank run --epochs 500:900", 5, "--epochs"),
        ("rank run --layers conv*", 5, "conv*"),
        ("rank run --model mlp:tahn", 2, "tanh"),
        ("rank run --model mlp", 2, "mlp:ACT"),
        ("rank run --model mymodels:build", 3, "no module 'mymodels'"),
        ("rank run --model nowhere.py:build", 3, "nowhere.py"),
        ("rank run --model-arg width=3", 2, "takes none"),
        ("rank run --weights both", 2, "both"),
        ("rank run --probe mymodels:build", 3, "no module 'mymodels'"),
        ("rank run --probe nothing.npz", 3, "nothing.npz"),
        ("rank run --probe-arg size=3", 2, "size"),
        ("rank run --probe-arg scale=0", 2, "scale"),
        ("rank run --nois 1", 2, "--nois"),
        ("ls run --layers conv*", 5, "conv*"),
        ("fly", 2, "fly"),
    )
]  # fmt: skip
OTHERS = [*FOLDERS, *WEIGHTS, *MODELS, *PROBES, *MANIFESTS, *RESULTS, *OUTPUTS, *OPTIONS]
