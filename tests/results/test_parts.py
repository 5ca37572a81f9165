from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import h5py
import pytest

from ibscan.errors import ResourceError, UsageError
from ibscan.results.parts import check_output, parts
from ibscan.results.store import write


def test_parts_come_back_after_an_exception(synthetic: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "r.h5"
    made = [synthetic.result([epoch]) for epoch in range(3)]

    def interrupted() -> None:
        with parts(output, "key") as kept:
            for one in made:
                kept.add(one)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with parts(output, "key") as kept:
        found = sorted(kept.finished(), key=lambda one: one["epoch"].values[0])
        for one, other in zip(found, made, strict=True):
            synthetic.assert_equal(one, other)
        kept.remove()
    assert not list(tmp_path.iterdir())


def test_the_same_checkpoint_is_one_part(synthetic: ModuleType, tmp_path: Path) -> None:
    with parts(tmp_path / "r.h5", "key") as kept:
        kept.add(synthetic.result([0]))
        kept.add(synthetic.result([0]))
        assert len(kept.finished()) == 1


def test_what_cannot_be_used_is_deleted(synthetic: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "r.h5"
    folder = tmp_path / "r.h5.parts"
    with parts(output, "other") as kept:
        kept.add(synthetic.result([0]))
    others = {path.name for path in folder.glob("*.npz")}
    with parts(output, "key") as kept:
        kept.add(synthetic.result([1]))
        mine = max(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
        content = mine.read_bytes()
        mark = mine.name.split("-")[0]
        (folder / f"{mark}-{0:016x}.npz").write_bytes(content[: len(content) // 2])
        (folder / f"{mark}-{1:016x}.npz").write_bytes(b"")
        (folder / f"{mark}-{2:016x}.npz").write_bytes(os.urandom(1000))
        (folder / ".ibscan-0-1.tmp").write_bytes(content)
        (folder / "notes.txt").write_text("the user's")
        assert len(kept.finished()) == 1
        assert sorted(path.name for path in folder.iterdir()) == sorted([mine.name, "lock", "notes.txt", *others])
        kept.remove()
    # What another command has finished stays for it.
    assert {path.name for path in folder.iterdir()} == {"lock", "notes.txt", *others}


def test_one_flipped_byte_spoils_a_part(synthetic: ModuleType, tmp_path: Path) -> None:
    with parts(tmp_path / "r.h5", "key") as kept:
        for place in range(50, 20_000, 997):
            kept.add(synthetic.result([0]))
            path = next((tmp_path / "r.h5.parts").glob("*.npz"))
            content = bytearray(path.read_bytes())
            if place >= len(content):
                break
            content[place] ^= 0x10
            path.write_bytes(content)
            for found in kept.finished():  # a byte that means nothing, say a date in the archive
                synthetic.assert_equal(found, synthetic.result([0]))


def test_an_empty_folder_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), parts(tmp_path / "r.h5", "key"):
        raise RuntimeError
    with parts(tmp_path / "r.h5", "key"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_lock_is_held(tmp_path: Path) -> None:
    with parts(tmp_path / "r.h5", "key"):
        with pytest.raises(ResourceError, match="another run"), parts(tmp_path / "r.h5", "key"):
            pass
        assert (tmp_path / "r.h5.parts" / "lock").exists()
    with parts(tmp_path / "r.h5", "key"):
        pass


@pytest.mark.slow
def test_a_killed_run_holds_no_lock(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from ibscan.results.parts import parts\n"
        "with parts(pathlib.Path(sys.argv[1]), 'key'):\n"
        "    os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "r.h5")], check=False)
    assert done.returncode == 9
    assert (tmp_path / "r.h5.parts" / "lock").exists()
    with parts(tmp_path / "r.h5", "key"):
        pass


def test_a_folder_taken_away_costs_parts_only(tmp_path: Path) -> None:
    with parts(tmp_path / "r.h5", "key") as kept:
        shutil.rmtree(tmp_path / "r.h5.parts")
        assert kept.finished() == []
        kept.remove()


def test_a_file_system_without_locks_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with parts(tmp_path / "r.h5", "key"):
        pass


def test_leftovers_of_killed_writes_are_cleaned(tmp_path: Path) -> None:
    from ibscan.core.atomic import stray_pattern

    stray = tmp_path / (stray_pattern(tmp_path / "r.h5")[:-1] + "0123.tmp")
    other = tmp_path / (stray_pattern(tmp_path / "other.h5")[:-1] + "0123.tmp")
    stray.touch()
    other.touch()
    with parts(tmp_path / "r.h5", "key"):
        assert not stray.exists()
        assert other.exists()


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.h5.parts").write_text("a file")
    with pytest.raises(UsageError, match="cannot be made"), parts(tmp_path / "r.h5", "key"):
        pass
    with pytest.raises(UsageError, match="does not exist"), parts(tmp_path / "no" / "r.h5", "key"):
        pass


def test_outputs_that_may_be_written(synthetic: ModuleType, tmp_path: Path) -> None:
    check_output(tmp_path / "new.h5", [tmp_path / "probe.npz"])
    write(synthetic.result([0]), tmp_path / "old.h5")
    check_output(tmp_path / "old.h5", [])
    assert [path.name for path in tmp_path.iterdir()] == ["old.h5"]
    check_output(tmp_path / ("x" * 240), [])


@pytest.mark.slow
def test_outputs_that_are_refused(synthetic: ModuleType, tmp_path: Path) -> None:
    write(synthetic.result([0]), tmp_path / "input.h5")
    (tmp_path / "link.h5").symlink_to(tmp_path / "input.h5")
    whole = (tmp_path / "input.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:5000])
    (tmp_path / "text.h5").write_text("mine")
    (tmp_path / "empty.h5").touch()
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1]
    write(synthetic.result([0]), tmp_path / "newer.h5")
    with h5py.File(tmp_path / "newer.h5", "r+") as file:
        file.attrs["format_version"] = 2
    (tmp_path / "folder").mkdir()
    names = ("input.h5", "link.h5", "cut.h5", "text.h5", "empty.h5", "pipe", "foreign.h5", "newer.h5", "folder")
    outputs = [tmp_path / name for name in (*names, "no/r.h5", "text.h5/r.h5", "x" * 252, "y" * 300)]
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for output in outputs:
        with pytest.raises(UsageError) as caught:
            check_output(output, [tmp_path / "input.h5"])
        assert str(output) in str(caught.value)
        assert "-o" in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(tmp_path / "closed" / "r.h5", [])


def test_a_linked_folder_of_parts_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "r.h5.parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link"), parts(tmp_path / "r.h5", "key"):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []
