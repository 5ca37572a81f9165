"""A command is stopped, others use its output, and it goes on: it takes up what it had finished, to the same bits."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain

import ibscan
from ibscan.core.records import Checkpoint
from ibscan.core.result import Result
from ibscan.engine import run as api
from ibscan.errors import Interrupted
from ibscan.results.store import read

pytestmark = pytest.mark.slow

EPOCHS, BLOCK = 9, 2


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make nine checkpoints, stacked in twos or alone: in float32 and with a wide layer bits depend on that."""
    folder = tmp_path_factory.mktemp("nets")
    for epoch in range(EPOCHS):
        ibscan.save(folder, chain(6, 40, 4, 2, seed=epoch), epoch=epoch, metrics={"loss": 1.0 / (1 + epoch)})
    binary_probe(folder)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.engine.scan.LARGEST_BLOCK", BLOCK)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    load = api.load_tensors

    def noted(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
        names.append(checkpoint.name)
        return load(checkpoint)

    monkeypatch.setattr(api, "load_tensors", noted)
    return names


@contextmanager
def stopped(blocks: int) -> Iterator[None]:
    """Interrupt the command run inside after so many finished blocks."""
    left, build = [None] * blocks, api.build

    def call(*arguments: Any, **options: Any) -> Result:
        if arguments[1] and not left:
            raise Interrupted(2)
        if arguments[1]:
            left.pop()
        return build(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "build", call)
        yield


def typed(nets: Path, *words: object) -> list[object]:
    return [words[0], nets, "--dtype", "float32", "--progress", "off", *words[1:]]


def assert_same(one: Path, other: Path) -> None:
    a, b = read(one), read(other)
    for name in [*a.coordinates, *a.variables]:
        assert a[name].values.tobytes() == b[name].values.tobytes() or (a[name].values == b[name].values).all(), name


# Commands between, with what of the nine the first has still to measure then; four of them are in its parts.
BETWEEN: dict[str, tuple[list[list[object]], int]] = {
    "nothing": ([], 5),
    "epochs that are still to come": ([["cluster", "--epochs", "5,8"]], 4),
    "epochs that are finished": ([["cluster", "--epochs", "1,2"]], 5),
    "epochs of both kinds": ([["cluster", "--epochs", "0,3,4,5,7"]], 3),
    "measured anew": ([["cluster", "--epochs", "8", "--no-resume"]], 4),
    "other rows, replaced": ([["cluster", "-n", "9", "--epochs", "0"], ["cluster", "--epochs", "0", "--force"]], 5),
    "another verb": ([["rank", "-n", "20", "--eps", "0.1"]], 5),
    "another verb, twice": ([["rank", "-n", "20"], ["mi", "-n", "20", "--channel", "readout"]], 5),
    "other layers": ([["cluster", "--layers", "0"]], 5),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_was_finished_is_taken_up(command: Run, nets: Path, tmp_path: Path, loaded: list[str], name: str) -> None:
    others, left = BETWEEN[name]
    whole, output = tmp_path / "whole.h5", tmp_path / "r.h5"
    first = typed(nets, "cluster")
    unbroken = command(*first, "-o", whole)
    assert unbroken.code == 0
    with stopped(2):
        assert command(*first, "-o", output).code == 130
    for words in others:
        assert command(*typed(nets, *words), "-o", output).code == 0
    loaded.clear()
    done = command(*first, "-o", output, *(["--force"] if name == "other rows, replaced" else []))
    assert done.code == 0
    # A block that is begun is measured whole, whatever of it others have measured meanwhile.
    assert left <= len(loaded) <= left + (BLOCK - 1) * 2
    assert done.out == unbroken.out
    assert_same(whole, output)
    assert not output.with_name("r.h5.parts").exists()


def test_measures_that_another_command_finished(command: Run, nets: Path, tmp_path: Path, loaded: list[str]) -> None:
    """A complete part is reused even if the file holds its local rank by then; rows are ordered as by one command."""
    first = typed(nets, "scan", "-n", "30", "--channel", "readout")
    unbroken = command(*first, "-o", tmp_path / "whole.h5")
    with stopped(3):
        assert command(*first, "-o", tmp_path / "r.h5").code == 130
    assert command(*typed(nets, "rank", "-n", "30"), "-o", tmp_path / "r.h5").code == 0
    loaded.clear()
    done = command(*first, "-o", tmp_path / "r.h5")
    assert (done.code, len(loaded)) == (0, EPOCHS - 3 * BLOCK)
    assert done.out.splitlines()[:1] == unbroken.out.splitlines()[:1]
    assert [line.split("\t")[6:9] for line in done.out.splitlines()] == [
        line.split("\t")[6:9] for line in unbroken.out.splitlines()
    ]
    for one, other in zip(done.rows(), unbroken.rows(), strict=True):
        # Stacked otherwise, rank may be another by rounding.
        if one["result"]:
            assert float(one["result"]) == pytest.approx(float(other["result"]), rel=1e-6, abs=1e-6)


def test_two_stopped_commands_do_not_get_in_each_others_way(
    command: Run, nets: Path, tmp_path: Path, loaded: list[str]
) -> None:
    output = tmp_path / "r.h5"
    commands = [typed(nets, "cluster"), typed(nets, "rank", "-n", "30"), typed(nets, "cluster", "--seed", "1")]
    for one in commands:
        with stopped(2):
            assert command(*one, "-o", output).code == 130
    assert len(list(output.with_name("r.h5.parts").glob("*.npz"))) == 6
    for one, after in zip(commands, (4, 2, 0), strict=True):
        loaded.clear()
        assert command(*one, "-o", output, *(["--force"] if "--seed" in one else [])).code == 0
        assert len(loaded) == EPOCHS - 2 * BLOCK
        folder = output.with_name("r.h5.parts")
        assert len(list(folder.glob("*.npz"))) == after
    assert not output.with_name("r.h5.parts").exists()


def four_deleted(nets: Path, _: Path) -> None:
    for k in range(4):
        (nets / f"epoch-0000{k}.safetensors").unlink()


STRAYS: dict[str, Callable[[Path, Path], object]] = {
    "a checkpoint is gone": four_deleted,
    "a checkpoint has changed": lambda nets, _: [
        ibscan.save(nets, chain(6, 40, 4, 2, seed=50 + k), epoch=k) for k in range(4)
    ],
    "damaged": lambda _, parts: [path.write_bytes(path.read_bytes()[:-9]) for path in parts.glob("*.npz")],
    "of another version": lambda _, parts: [
        path.write_bytes(path.read_bytes().replace(b'_version": "0.', b'_version": "7.'))
        for path in parts.glob("*.npz")
    ],
}


@pytest.mark.parametrize("name", STRAYS)
def test_parts_nobody_waits_for_do_not_pile_up(command: Run, nets: Path, tmp_path: Path, name: str) -> None:
    """A command that ends deletes the parts that no command can resume, and only those."""
    folder, output = tmp_path / "nets", tmp_path / "r.h5"
    shutil.copytree(nets, folder)
    with stopped(2):
        assert command(*typed(folder, "rank", "-n", "30"), "-o", output).code == 130
    STRAYS[name](folder, output.with_name("r.h5.parts"))
    assert command(*typed(folder, "cluster", "--epochs", "0:8"), "-o", output).code == 0
    assert not output.with_name("r.h5.parts").exists()


def test_parts_of_a_folder_that_is_away_wait(command: Run, nets: Path, tmp_path: Path, loaded: list[str]) -> None:
    folder, other, output = tmp_path / "nets", tmp_path / "moved", tmp_path / "r.h5"
    shutil.copytree(nets, folder)
    with stopped(2):
        assert command(*typed(folder, "cluster"), "-o", output).code == 130
    folder.rename(other)
    assert command(*typed(other, "cluster", "--epochs", "8"), "-o", output).code == 0
    loaded.clear()
    assert command(*typed(other, "cluster"), "-o", output).code == 0
    assert len(loaded) <= EPOCHS - 2 * BLOCK


def test_numbers_of_renamed_checkpoints_are_those_of_now(
    command: Run, nets: Path, tmp_path: Path, loaded: list[str]
) -> None:
    folder, output = tmp_path / "nets", tmp_path / "r.h5"
    shutil.copytree(nets, folder)
    with stopped(2):
        assert command(*typed(folder, "cluster"), "-o", output).code == 130
    (folder / "epoch-00001.safetensors").rename(folder / "again.safetensors")
    loaded.clear()
    assert command(*typed(folder, "cluster"), "-o", output).code == 0
    assert len(loaded) == EPOCHS - 2 * BLOCK
    assert "again.safetensors" in read(output)["checkpoint_name"].values.tolist()


def test_functions_take_up_what_commands_left(nets: Path, tmp_path: Path, loaded: list[str]) -> None:
    output = tmp_path / "r.h5"
    with stopped(2), pytest.raises(Interrupted):
        ibscan.cluster(nets, output=output)
    ibscan.cluster(nets, output=output, epochs=[7, 8])
    loaded.clear()
    ibscan.cluster(nets, output=output)
    assert 3 <= len(loaded) <= 5
    assert np.isfinite(read(output)["nc1"].values).any()
