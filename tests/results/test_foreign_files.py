"""Files that look like a result and are none: refused with a sentence, never followed, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from ibscan.errors import InputError
from ibscan.results.store import read, write

SEAL = 73  # bytes behind the HDF5 content: "\\nibscan ", 64 hexadecimal digits, "\\n"


@pytest.fixture
def path(synthetic: ModuleType, tmp_path: Path) -> Path:
    write(synthetic.result(range(2)), tmp_path / "r.h5")
    return tmp_path / "r.h5"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_random_bytes_and_text_are_refused(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path)
    path.write_text("checkpoint\tepoch\n")
    refused(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + np.random.default_rng(0).bytes(5000))
    refused(path)


def test_flipped_bytes_never_trace_back(path: Path) -> None:
    content = path.read_bytes()
    draws = np.random.default_rng(1)
    for place in draws.integers(0, len(content) - SEAL, 40):
        changed = bytearray(content)
        changed[place] ^= int(draws.integers(1, 256))
        path.write_bytes(changed)
        assert "SHA-256" in refused(path)


def test_a_damaged_seal_is_damage_and_a_missing_one_is_none(path: Path, synthetic: ModuleType) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"x\n")
    refused(path)
    path.write_bytes(content[:-SEAL])
    synthetic.assert_equal(read(path), synthetic.result(range(2)))


def test_foreign_and_newer_files_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    assert "newer" in refused(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "other"
    assert "not a result" in refused(path)


def secret(folder: Path) -> Path:
    (folder / "secret").write_bytes(bytes(800))
    return folder / "secret"


def external_link(file: h5py.File, folder: Path) -> None:
    file["stolen"] = h5py.ExternalLink(str(secret(folder)), "/")


def soft_link(file: h5py.File, _folder: Path) -> None:
    file["again"] = h5py.SoftLink("/local_rank")


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("stolen", (100,), dtype="f8", external=[(str(secret(folder)), 0, 800)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((2,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(secret(folder)), "x", (2,))
    file.create_virtual_dataset("stolen", layout)


def bomb(file: h5py.File, _folder: Path) -> None:
    file.create_dataset("bomb", (10**12,), dtype="f8", chunks=(1000,), compression="gzip")


def bomb_of_one_chunk(file: h5py.File, _folder: Path) -> None:
    file.create_dataset("bomb", (10**9,), dtype="f8", chunks=(1000,), compression="gzip")[:1000] = 0


def twice_deflated(file: h5py.File, _folder: Path) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((1000,))
    creation.set_deflate(9)
    creation.set_deflate(9)
    h5py.h5d.create(file.id, b"bomb", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((1000,)), creation)


def group(file: h5py.File, _folder: Path) -> None:
    file.create_group("deeper")


def no_scale(file: h5py.File, _folder: Path) -> None:
    file["loose"] = np.ones(2)


def compound(file: h5py.File, _folder: Path) -> None:
    file["odd"] = np.zeros(2, dtype=[("a", "f8")])


def references(file: h5py.File, _folder: Path) -> None:
    file["odd"] = np.array([file["nc1"].ref, file["nc1"].ref], dtype=h5py.ref_dtype)


def bad_settings(file: h5py.File, _folder: Path) -> None:
    file.attrs["settings"] = "[" * 100_000


def settings_of_another_kind(file: h5py.File, _folder: Path) -> None:
    file.attrs["settings"] = "[]"


def seed_of_another_kind(file: h5py.File, _folder: Path) -> None:
    file.attrs["seed"] = "zero"


def array_attribute(file: h5py.File, _folder: Path) -> None:
    file.attrs["model"] = np.array(["a"] * 1000, dtype=h5py.string_dtype())


def no_epoch(file: h5py.File, _folder: Path) -> None:
    del file["epoch"]


def eps_as_text(file: h5py.File, _folder: Path) -> None:
    del file["eps"]
    file.create_dataset("eps", data=["a", "b"], dtype=h5py.string_dtype())


def epoch_as_integers(file: h5py.File, _folder: Path) -> None:
    del file["epoch"]
    file["epoch"] = np.arange(2)


def no_checkpoint(file: h5py.File, _folder: Path) -> None:
    del file["checkpoint"]


def bad_status(file: h5py.File, _folder: Path) -> None:
    file["local_rank_status"][...] = 77


def missing_status(file: h5py.File, _folder: Path) -> None:
    del file["local_rank_status"]


def broken_text(file: h5py.File, _folder: Path) -> None:
    file["checkpoint_name"][0] = b"\xff\xfe"


def shared_text(file: h5py.File, _folder: Path) -> None:
    """Elements that all point at one large string: more text than the file has bytes."""
    file["checkpoint_name"][0] = "x" * 2_000_000
    address = file["checkpoint_name"].id.get_offset()
    name = file.filename
    file.close()
    content = bytearray(Path(name).read_bytes())
    content[address + 16 : address + 32] = content[address : address + 16]
    Path(name).write_bytes(content)


DAMAGES = (
    external_link,
    soft_link,
    external_storage,
    virtual,
    bomb,
    bomb_of_one_chunk,
    twice_deflated,
    group,
    no_scale,
    compound,
    references,
    bad_settings,
    settings_of_another_kind,
    seed_of_another_kind,
    array_attribute,
    no_epoch,
    no_checkpoint,
    eps_as_text,
    epoch_as_integers,
    bad_status,
    missing_status,
    broken_text,
    shared_text,
)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused(path: Path, tmp_path: Path, damage: Callable[[h5py.File, Path], None]) -> None:
    with h5py.File(path, "r+") as file:
        damage(file, tmp_path)
    refused(path)
