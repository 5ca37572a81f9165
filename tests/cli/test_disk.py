"""A disk that becomes full at any moment: exit code 6, no finished block lost, the same bits after a restart."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run, binary_probe, chain

import ibscan
from ibscan.results.store import read

pytestmark = pytest.mark.slow

PAGE = 4096
# Measured one checkpoint at a time, so that there is a part for each.
NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if done.returncode != 0:
        pytest.skip(f"only a user who may mount can make a small disk: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def scan(tmp_path: Path) -> tuple[object, ...]:
    folder = tmp_path / "ckpts"
    folder.mkdir()
    for epoch in range(3):
        ibscan.save(folder, chain(6, 5, 4, 2, seed=epoch), epoch=epoch, spec="mlp:tanh")
    binary_probe(folder)
    (tmp_path / "net.py").write_text(NETWORK)
    return ("cluster", folder, "-m", f"{tmp_path / 'net.py'}:build")


def filled(disk: Path, what: str, left: int) -> None:
    """Fill a disk until only so many pages, or files, are free."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.mkdir()
    if what == "files":
        for k in range(free.f_ffree - 1 - left):
            (filler / str(k)).touch()
    else:
        (filler / "pages").write_bytes(bytes((free.f_bfree - left) * PAGE))


def same(one: Path, other: Path) -> bool:
    a, b = read(one), read(other)
    return all((a[name].values == b[name].values).all() or a[name].values.tobytes() == b[name].values.tobytes()
               for name in [*a.variables, *a.coordinates])  # fmt: skip


@pytest.mark.parametrize(
    ("what", "room", "parts"),
    # Nothing can be made; the first part, the second, the result cannot be written; nothing is wrong.
    [("pages", room, kept) for room, kept in ((0, 0), (0.5, 0), (1.5, 1), (3.5, 3), (9, None))]
    + [("files", room, kept) for room, kept in ((0, 0), (1, 0), (2, 0), (3, 1), (5, 3), (6, None))],
)
def test_a_full_disk_stops_the_run_and_says_so(
    command: Run,
    scan: tuple[object, ...],
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    room: float,
    parts: int | None,
) -> None:
    """The disk has room for so many parts or files; `parts` is how many can be written, None for all."""
    with monkeypatch.context() as patched:
        patched.setattr("ibscan.results.parts.Parts.remove", lambda _: None)
        assert command(*scan, "-o", tmp_path / "unbroken.h5").code == 0
    sizes = [-(-path.stat().st_size // PAGE) for path in tmp_path.glob("unbroken.h5.parts/*.npz")]
    filled(small_disk, what, int(room * max(sizes)) if what == "pages" else int(room))
    output = small_disk / "r.h5"
    done = command(*scan, "-o", output)
    if parts is None:
        assert done.code == 0
    else:
        assert done.code == 6, done.err
        assert done.out == ""
        assert len(done.err.splitlines()) == 1, done.err
        assert "No space left" in done.err
        assert not output.exists()
        assert len(list((small_disk / "r.h5.parts").glob("*.npz"))) == parts
    shutil.rmtree(small_disk / "filler")
    done = command(*scan, "-o", output)
    assert done.code == 0, done.err
    assert same(output, tmp_path / "unbroken.h5")
    assert [path.name for path in small_disk.iterdir()] == ["r.h5"]


def test_a_full_disk_leaves_the_old_result(
    command: Run, scan: tuple[object, ...], small_disk: Path, tmp_path: Path
) -> None:
    output = small_disk / "r.h5"
    assert command(*scan, "--epochs", "0,1", "-o", output).code == 0
    before = output.read_bytes()
    filled(small_disk, "pages", 8)
    assert command(*scan, "-o", output).code == 6
    assert output.read_bytes() == before
    shutil.rmtree(small_disk / "filler")
    assert command(*scan, "-o", output).code == 0
    assert command(*scan, "-o", tmp_path / "unbroken.h5").code == 0
    assert same(output, tmp_path / "unbroken.h5")
