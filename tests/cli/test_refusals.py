"""Command lines and inputs that cannot be carried out: the exit code, the words, and nothing else touched."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, binary_probe, chain

import ibscan

Row = tuple[list[str], int, str]

COMMAND_LINES: list[Row] = [
    (["mi", "{series}", "--noise", "0"], 2, "--noise 0"),
    (["mi", "{series}", "--noise", "nan"], 2, "--noise nan"),
    (["mi", "{series}", "--noise", "inf"], 2, "--noise inf"),
    (["mi", "{series}", "--noise", "-1"], 2, "--noise -1"),
    (["mi", "{series}", "--noise", "1_0"], 2, "1_0"),
    (["mi", "{series}", "--bins", "0"], 2, "--bins 0"),
    (["mi", "{series}", "--bins", "3.5"], 2, "3.5"),
    (["mi", "{series}", "--bin-width", "0"], 2, "--bin-width"),
    (["mi", "{series}", "--bin-range", "1:-1"], 2, "--bin-range"),
    (["mi", "{series}", "--bin-range", "1"], 2, "LO:HI"),
    (["mi", "{series}", "--tolerance", "0"], 2, "--tolerance"),
    (["mi", "{series}", "--max-draws", "0"], 2, "--max-draws"),
    (["mi", "{series}", "--channel", "both"], 2, "network or readout"),
    (["mi", "{series}", "--channel", "radio"], 2, "radio"),
    (["mi", "{series}", "--max-replicas", "1"], 2, "whole number >= 2"),
    (["rank", "{series}", "--samples", "0"], 2, "--samples 0"),
    (["rank", "{series}", "--samples", "x"], 2, "x"),
    (["rank", "{series}", "--eps", "0"], 2, "--eps"),
    (["rank", "{series}", "--eps", "1e"], 2, "1e"),
    (["rank", "{series}", "--at", "middle"], 2, "--at middle"),
    (["rank", "{series}", "--dtype", "float16"], 2, "float16"),
    (["rank", "{series}", "--device", "cuda:7"], 2, "cpu"),
    (["rank", "{series}", "--device", "tpu"], 2, "tpu"),
    (["rank", "{series}", "--device", "mps"], 2, "later version"),
    (["rank", "{series}", "--epochs", "x"], 2, "--epochs"),
    (["rank", "{series}", "--epochs", "500:900"], 5, "--epochs"),
    (["rank", "{series}", "--layers", "conv*"], 5, "conv*"),
    (["rank", "{series}", "--model", "mlp:tahn"], 2, "tanh"),
    (["rank", "{series}", "--model", "mlp"], 2, "mlp:ACT"),
    (["rank", "{series}", "--model", "mymodels:build"], 3, "no module 'mymodels'"),
    (["rank", "{series}", "--model", "nowhere.py:build"], 3, "nowhere.py"),
    (["rank", "{series}", "--model-arg", "width=3"], 2, "takes none"),
    (["rank", "{series}", "--weights", "both"], 2, "both"),
    (["rank", "{series}", "--probe", "mymodels:build"], 3, "no module 'mymodels'"),
    (["rank", "{series}", "--probe", "nothing.npz"], 3, "nothing.npz"),
    (["rank", "{series}", "--probe-arg", "size=3"], 2, "size"),
    (["rank", "{series}", "--probe-arg", "scale=0"], 2, "scale"),
    (["rank", "{series}", "--nois", "1"], 2, "--nois"),
    (["rank", "nowhere"], 3, "nowhere"),
    (["rank", "empty"], 5, "empty"),
    (["rank", "{series}", "-o", "empty"], 2, "empty"),
    (["rank", "{series}", "-o", "nowhere/r.h5"], 2, "nowhere"),
    (["rank", "{series}", "-o", "{series}/epoch-00000.safetensors"], 2, "epoch-00000"),
    (["rank", "{series}", "-o", "{series}/probe.npz"], 2, "probe.npz"),
    (["rank", "{series}", "-o", "foreign.h5"], 2, "foreign.h5"),
    (["rank", "{series}", "-o", "noise.h5"], 2, "noise.h5"),
    (["rank", "-"], 5, "standard input"),
    (["ls", "{series}", "--layers", "conv*"], 5, "conv*"),
    (["show", "nowhere.h5"], 3, "nowhere.h5"),
    (["show", "foreign.h5"], 3, "foreign.h5"),
    (["show", "noise.h5"], 3, "noise.h5"),
    (["export", "noise.h5"], 3, "noise.h5"),
    (["export", "good.h5", "--format", "table"], 2, "table"),
    (["show", "good.h5", "--variable", "local_rnak"], 2, "local_rank"),
    (["fly"], 2, "fly"),
]


@pytest.fixture
def place(tmp_path: Path, series: Path) -> Path:
    import h5py

    (tmp_path / "empty").mkdir()
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1.0]
    (tmp_path / "noise.h5").write_bytes(np.random.default_rng(0).bytes(4000))
    ibscan.rank(series, epochs="last").to_hdf5(tmp_path / "good.h5")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "words"), COMMAND_LINES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_refused_in_a_sentence(command: Run, place: Path, series: Path, line: list[str], code: int, words: str) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    done = command(*(part.format(series=series) for part in line), inside=place)
    assert done.code == code, done.err
    assert words in done.err
    assert done.err.startswith("ibscan: ")
    assert done.out == ""
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def wide_probe(folder: Path) -> None:
    np.savez(folder / "probe.npz", x=np.zeros((4, 9)), y=np.arange(4))


def pixels(folder: Path) -> None:
    np.savez(folder / "probe.npz", x=np.full((4, 6), 200, dtype=np.uint8), y=np.arange(4))


def no_rows(folder: Path) -> None:
    np.savez(folder / "probe.npz", x=np.zeros((0, 6)))


def not_numbers(folder: Path) -> None:
    np.savez(folder / "probe.npz", x=np.full((4, 6), np.nan))


def labels_of_another_length(folder: Path) -> None:
    np.savez(folder / "probe.npz", x=np.zeros((4, 6)), y=np.arange(5))


def no_probe(folder: Path) -> None:
    (folder / "probe.npz").unlink()


def two_models(folder: Path) -> None:
    ibscan.save(folder, chain(6, 5, 4, 2), epoch=50, spec="mlp:relu")


def code_beside(folder: Path) -> None:
    (folder / "ibscan.toml").write_text('[model]\nspec = "evil:build"\n')


def broken_manifest(folder: Path) -> None:
    (folder / "ibscan.toml").write_text("[model\n")


def only_junk(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "notes.txt").write_text("nothing")


def all_broken(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])


def several_noises(folder: Path) -> None:
    ibscan.save(folder, chain(6, 5, 4, 2), epoch=50, noise=0.3)


FOLDERS: list[tuple[Callable[[Path], None], int, str]] = [
    (wide_probe, 3, "9"),
    (pixels, 2, "scale=255"),
    (no_rows, 3, "0 rows"),
    (not_numbers, 3, "probe.npz"),
    (labels_of_another_length, 3, "5"),
    (no_probe, 3, "--probe"),
    (two_models, 2, "--model"),
    (code_beside, 3, "--trust"),
    (broken_manifest, 2, "ibscan.toml"),
    (only_junk, 5, "safetensors"),
    (all_broken, 3, "epoch-00000"),
    (several_noises, 2, "--noise"),
]


@pytest.mark.parametrize(("spoil", "code", "words"), FOLDERS, ids=lambda v: getattr(v, "__name__", ""))
def test_folder_refused(
    command: Run, series: Path, tmp_path: Path, spoil: Callable[[Path], None], code: int, words: str
) -> None:
    spoil(series)
    done = command("mi", series, "-o", tmp_path / "r.h5")
    assert done.code == code, done.err
    assert words in done.err
    assert not (tmp_path / "r.h5").exists()
    assert not list(tmp_path.glob("*.parts"))


def test_probe_of_a_wrong_kind_is_taken_with_a_notice(command: Run, series: Path, tmp_path: Path) -> None:
    np.savez(series / "probe.npz", x=np.random.default_rng(0).random((9, 6)), y=np.linspace(0.1, 0.9, 9))
    done = command("mi", series, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    assert "label" in done.err


def test_one_row_and_one_class(command: Run, series: Path, tmp_path: Path) -> None:
    np.savez(series / "probe.npz", x=np.ones((1, 6)), y=np.array([1]))
    done = command("scan", series, "-o", tmp_path / "r.h5")
    assert done.code == 0, done.err
    np.savez(series / "probe.npz", x=np.eye(6), y=np.ones(6, dtype=int))
    done = command("scan", series, "-o", tmp_path / "s.h5")
    assert done.code == 0, done.err


def test_binary_probe_is_not_pixels(command: Run, series: Path, tmp_path: Path) -> None:
    binary_probe(series)
    assert command("rank", series, "-o", tmp_path / "r.h5").code == 0
