"""A checkpoint format is one object in FORMATS: a new one works in all commands."""

import dataclasses
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, binary_probe, chain
from safetensors.torch import save

from ibscan.core.records import TensorInfo
from ibscan.errors import CheckpointError
from ibscan.inputs import formats
from ibscan.inputs.files import Snapshot
from ibscan.inputs.folder.numbers import AxisNumbers
from ibscan.inputs.formats.dtypes import ITEM_SIZES
from ibscan.inputs.formats.format import Description, Format, Wanted
from ibscan.inputs.formats.recognise import accepted, content_kind, is_claimed, usual_suffixes
from ibscan.inputs.formats.state_dict import below_prefix, selected_tensors
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series.read import read_series
from ibscan.results.store import read

MAGIC = b"TOYS\x01"
QUICK = ["-m", "mlp:tanh", "-n", "8", "--channel", "readout", "--tolerance", "0.3", "--max-draws", "64"]


def toy(state: Mapping[str, torch.Tensor], step: int) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in state.items()}
    np.savez(stream, **arrays, step=np.array(step))
    return MAGIC + stream.getvalue()


def arrays(shot: Snapshot, name: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(shot.stream.read()[len(MAGIC) :]), allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{name}: is a damaged toy ({type(error).__name__}); build it again.") from None


def described(shot: Snapshot, name: str, wanted: Wanted) -> Description:
    found = arrays(shot, name)
    numbers = AxisNumbers(step=int(found.pop("step")), source="file")
    infos = {key: TensorInfo(array.shape, str(array.dtype)) for key, array in found.items()}
    return Description(selected_tensors(infos, wanted, name), numbers=numbers, state_key=wanted.state_key or "")


def loaded(shot: Snapshot, name: str, state_key: str) -> dict[str, torch.Tensor]:
    return below_prefix({key: torch.from_numpy(array) for key, array in arrays(shot, name).items()}, state_key)


TOY = Format("toy", "toy box", ((0, MAGIC),), (".toy",), described, loaded, accepted=((".toy",), ""))


@pytest.fixture
def with_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, TOY))


@pytest.mark.slow
@pytest.mark.usefixtures("with_toys")
def test_one_object_in_formats_adds_a_format(command: Run, tmp_path: Path) -> None:
    toys, known = tmp_path / "toys", tmp_path / "known"
    for folder in (toys, known):
        folder.mkdir()
        binary_probe(folder)
    for step in (2, 10):
        state = chain(6, 4, 2, seed=step).state_dict()
        (toys / f"run_{'b' if step == 2 else 'a'}.toy").write_bytes(toy(state, step))
        (known / f"step-{step}.safetensors").write_bytes(save(state))
    # Found by its content, whatever it is called.
    (toys / "run_a.toy").rename(toys / "weights")
    listed = command("ls", toys)
    assert listed.code == 0, listed.err
    assert [(row["step"], row["checkpoint"]) for row in listed.rows()] == [("2", "run_b.toy"), ("10", "weights")]
    for folder in (toys, known):
        done = command("scan", folder, *QUICK, "-o", f"{folder.name}.h5")
        assert done.code == 0, done.err
    found, expected = read(Path("toys.h5")), read(Path("known.h5"))
    assert found.variables.keys() == expected.variables.keys()
    for key, variable in expected.variables.items():
        np.testing.assert_array_equal(found.variables[key].values, variable.values, err_msg=key)
    assert inspect_checkpoint(toys / "weights", "weights").format == "toy box"
    assert set(load_tensors(inspect_checkpoint(toys / "weights", "weights"))) == set(chain(6, 4, 2).state_dict())


@pytest.mark.usefixtures("with_toys")
def test_a_damaged_file_of_a_new_format_is_skipped_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.toy").write_bytes(toy(chain(6, 4, 2).state_dict(), 1))
    (tmp_path / "b.toy").write_bytes(MAGIC + b"nothing")
    (tmp_path / "c.toy").write_bytes(b"\x01\x02 of no known kind")
    series = read_series([tmp_path])
    assert [one.step for one in series.checkpoints] == [1]
    assert "is a damaged toy" in series.skipped["b.toy"]
    assert "neither safetensors nor a torch file" in series.skipped["c.toy"]


@pytest.mark.usefixtures("with_toys")
def test_messages_and_names_come_from_the_declarations() -> None:
    assert accepted() == ".safetensors files, or .pt, .pth, .ckpt and .bin files of torch.save, or .toy files"
    assert usual_suffixes() == ".safetensors, .pt, .pth, .ckpt, .bin or .toy"
    assert is_claimed("a.TOY")
    assert content_kind(MAGIC) == "toy"


def test_kinds_and_names_of_formats_are_unique() -> None:
    for names in (("kind",), ("name",)):
        stated = [getattr(one, key) for one in formats.FORMATS for key in names]
        assert len(set(stated)) == len(stated)
    assert accepted() == ".safetensors files, or .pt, .pth, .ckpt and .bin files of torch.save"
    assert usual_suffixes() == ".safetensors, .pt, .pth, .ckpt or .bin"


@pytest.mark.parametrize("one", formats.FORMATS, ids=lambda one: one.name)
def test_a_format_is_recognised_by_what_it_declares(one: Format) -> None:
    for place, magic in one.magic:
        assert content_kind(b"\x01" * place + magic) == one.kind
    assert all(is_claimed(f"a{suffix}") and is_claimed(f"a{suffix.upper()}") for suffix in one.suffixes)
    assert all(re.fullmatch(r"(\.[a-z]+)+", suffix) for suffix in one.suffixes)
    assert dataclasses.replace(one) == one


def test_item_sizes_are_those_of_torch() -> None:
    known = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    assert dict(ITEM_SIZES) == {str(one).removeprefix("torch."): one.itemsize for one in known}
