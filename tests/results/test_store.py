from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.errors import InputError, ResourceError, UsageError
from ibscan.results.store import read, write, write_bytes

HOSTILE = (
    "a\nb",
    "\x1b[31mred",
    "[bold]x[/bold]",
    "[x='y']",
    "nul\0in",
    "caf\u00e9 \U0001f600",
    "sur\udce9",
    "a/b",
    "",
)


@pytest.mark.slow
def test_what_is_written_is_read_again(synthetic: ModuleType, tmp_path: Path) -> None:
    result = synthetic.result(range(3), (*synthetic.USUAL, "network", "slope", "relative", "projected"))
    synthetic.marked(result, "local_rank", (0, 0, 0), Status.NONFINITE, np.nan)
    write(result, tmp_path / "r.h5")
    synthetic.assert_equal(read(tmp_path / "r.h5"), result)
    assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]


def test_hostile_names_come_back_as_escapes(synthetic: ModuleType, tmp_path: Path) -> None:
    checkpoints = [synthetic.checkpoint(i, name=name) for i, name in enumerate(HOSTILE)]
    result = synthetic.result(checkpoints, names=HOSTILE, model=HOSTILE[1])
    write(result, tmp_path / "r.h5")
    found = read(tmp_path / "r.h5")
    synthetic.assert_equal(found, result)
    assert found["layer"].values[0] == "a\nb"
    assert found["layer"].values[4] == "nul\\x00in"


def test_large_arrays_are_compressed_and_checked(synthetic: ModuleType, tmp_path: Path) -> None:
    wide = synthetic.Fake("clustering", synthetic.CLUSTER, {"distance_bin": range(100)})
    result = synthetic.result(range(20), [wide])
    write(result, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file["distance_within"].compression == "gzip"
        assert file["distance_within"].fletcher32
        assert file["nc1"].compression is None
        for name in file:
            assert file[name].dtype.kind in "fiO"
            assert file[name].dtype != np.float16
            assert file[name].size
    synthetic.assert_equal(read(tmp_path / "r.h5"), result)


XARRAY = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np, xarray
with xarray.open_dataset(sys.argv[1], engine="h5netcdf") as found:
    assert found["local_rank"].dims == ("checkpoint", "layer", "eps"), found["local_rank"].dims
    assert found["mi_binned_xt"].dims == ("checkpoint", "layer", "binning")
    assert found["probe_accuracy"].dims == ("checkpoint",)
    assert found["layer"].values.tolist() == ["fc1", "fc2", "fc10", "out"]
    assert {"epoch", "step", "value", "checkpoint_name", "layer_type", "layer_width"} <= set(found.coords)
    assert found["local_rank"].attrs["units"] == "1"
    assert found.attrs["format"] == "ibscan"
    assert found["local_rank"].sel(layer="fc2", eps=0.01).values.shape == (3,)
    np.save(sys.argv[2], found["local_rank"].values)
"""
NETCDF = """
import sys
import numpy as np, netCDF4
with netCDF4.Dataset(sys.argv[1]) as found:
    assert found["local_rank"].dimensions == ("checkpoint", "layer", "eps")
    assert found["layer"][:].tolist() == ["fc1", "fc2", "fc10", "out"]
    assert found["local_rank_status"].flag_meanings.startswith("ok not_measured")
    assert found["distance_within"].dtype == np.int64
    assert found.format == "ibscan"
    assert "phony" not in " ".join(found.dimensions)
    np.save(sys.argv[2], np.ma.filled(found["local_rank"][:], np.nan))
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [XARRAY, NETCDF], ids=["xarray", "netCDF4"])
def test_other_readers_see_named_dimensions(synthetic: ModuleType, tmp_path: Path, program: str) -> None:
    # In a process of their own: netCDF4 brings a second HDF5 library.
    result = synthetic.result(range(3))
    write(result, tmp_path / "r.h5")
    arguments = [sys.executable, "-c", program, str(tmp_path / "r.h5"), str(tmp_path / "values.npy")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), result["local_rank"].values)


def test_an_interrupted_write_leaves_the_old_file(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = synthetic.result([0]), synthetic.result([1])
    write(old, tmp_path / "r.h5")

    def dies(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            write(new, tmp_path / "r.h5")
    synthetic.assert_equal(read(tmp_path / "r.h5"), old)
    assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]


@pytest.mark.slow
def test_a_killed_write_leaves_the_old_file(synthetic: ModuleType, tmp_path: Path) -> None:
    old = synthetic.result([0])
    write(old, tmp_path / "r.h5")
    program = (
        "import os, pathlib, sys\n"
        "from ibscan.results.store import read, write\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "found = read(path)\n"
        "pathlib.Path.replace = lambda self, target: os._exit(9)\n"
        "write(found, path)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "r.h5")], check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.glob(".ibscan-*.tmp"))) == 1
    synthetic.assert_equal(read(tmp_path / "r.h5"), old)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_a_resource(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"r\.h5: writing"):
        write(synthetic.result([0]), tmp_path / "r.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_limited_file_size_is_a_resource(tmp_path: Path) -> None:
    program = (
        "import pathlib, resource, sys\n"
        "from ibscan.errors import ResourceError\n"
        "from ibscan.results.store import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_bytes(bytes(5000), pathlib.Path(sys.argv[1]))\n"
        "except ResourceError:\n"
        "    sys.exit(6)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "r.h5")], check=False)
    assert done.returncode == 6
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_the_users(synthetic: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write(synthetic.result([0]), tmp_path / "no" / "r.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError):
        write(synthetic.result([0]), tmp_path / "folder")


def test_permissions_are_those_of_the_umask_and_links_are_followed(synthetic: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(tmp_path / "real.h5")
    before = os.umask(0o027)
    try:
        write(synthetic.result([0]), tmp_path / "link.h5")
    finally:
        os.umask(before)
    assert (tmp_path / "link.h5").is_symlink()
    assert stat.S_IMODE((tmp_path / "real.h5").stat().st_mode) == 0o640


def test_names_as_long_as_the_file_system_allows_are_written(synthetic: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / ("r" * 252 + ".h5")
    write(synthetic.result([0]), path)
    synthetic.assert_equal(read(path), synthetic.result([0]))


def test_bytes_are_replaced_whole(tmp_path: Path) -> None:
    write_bytes(b"old", tmp_path / "f")
    write_bytes(b"new", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.h5"):
        read(tmp_path / "no.h5")
    with pytest.raises(InputError):
        read(tmp_path)
    with pytest.raises(InputError):
        read(Path("nul\0"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular"):
        read(tmp_path / "pipe")
