"""A folder that training writes to while it is scanned: files cut short, rewritten in place, deleted, replaced."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, binary_probe, chain

import ibscan
from ibscan.core.records import Array
from ibscan.core.result import Result
from ibscan.inputs.formats import safetensors
from ibscan.results.store import read

pytestmark = pytest.mark.slow

EPOCHS = 5
SCANS = 12


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return several contents for each file name, of equal and of different lengths."""
    folder = tmp_path_factory.mktemp("contents")
    return {
        f"epoch-{epoch:05d}.safetensors": [
            ibscan.save(folder, chain(6, 5, 4, 2, seed=seed), epoch=epoch, metrics={"note": 10.0**seed}).read_bytes()
            for seed in (3 * epoch, 3 * epoch + 1, 3 * epoch + 2)
        ]
        for epoch in range(EPOCHS)
    }


def values(result: Result | ibscan.Run) -> dict[str, Array]:
    """Return the measured values of each content, by its hash."""
    shas = result["checkpoint_sha256"].values
    return {sha: result["distance_within_mean"].values[row] for row, sha in enumerate(shas)}


@pytest.fixture(scope="module")
def truth(contents: dict[str, list[bytes]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Return the values of every content as a scan measures them while nothing is written."""
    found: dict[str, Array] = {}
    for version in range(3):
        quiet = tmp_path_factory.mktemp("quiet")
        binary_probe(quiet)
        for name, versions in contents.items():
            (quiet / name).write_bytes(versions[version])
        found |= values(ibscan.cluster(quiet))
    return found


def assert_true(path: Path, truth: dict[str, Array]) -> None:
    for sha, value in values(read(path)).items():
        np.testing.assert_allclose(value, truth[sha], rtol=1e-9)


def train(folder: Path, contents: dict[str, list[bytes]], stop: threading.Event) -> None:
    """Write files in place, in pieces, truncated and deleted; in the end all of them complete."""
    draws = random.Random(0)
    while not stop.is_set():
        name = draws.choice(list(contents))
        content, path = draws.choice(contents[name]), folder / name
        match draws.randrange(4):
            case 0:
                with path.open("wb") as stream:
                    for start in range(0, len(content), 400):
                        stream.write(content[start : start + 400])
                        stream.flush()
                        time.sleep(draws.random() * 0.002)
            case 1 if path.exists():
                with path.open("r+b") as stream:
                    stream.truncate(draws.randrange(len(content)))
                    time.sleep(draws.random() * 0.01)
                    stream.truncate(0)
                    stream.seek(0)
                    stream.write(content)
            case 2:
                path.unlink(missing_ok=True)
            case _:
                (folder / "new.tmp").write_bytes(content)
                (folder / "new.tmp").replace(path)
    for name, versions in contents.items():
        (folder / name).write_bytes(versions[0])


@contextmanager
def training(folder: Path, contents: dict[str, list[bytes]]) -> Iterator[threading.Event]:
    """Write to the folder in a thread until the event is set or the block ends; the files are complete then."""
    stop = threading.Event()
    writer = threading.Thread(target=train, args=(folder, contents, stop))
    writer.start()
    try:
        yield stop
    finally:
        stop.set()
        writer.join()


def test_every_number_is_of_the_content_it_names(
    command: Run, folder: Path, contents: dict[str, list[bytes]], truth: dict[str, Array]
) -> None:
    measured = 0
    with training(folder, contents):
        for scan in range(SCANS):
            done = command("cluster", folder, "-o", f"r{scan}.h5")
            assert done.code in (0, 3, 4, 5), done.err
            if done.code in (0, 4):
                assert_true(Path(f"r{scan}.h5"), truth)
                measured += len(values(read(Path(f"r{scan}.h5"))))
    assert measured > SCANS
    # What was skipped is measured by the next run, what changed is refused by name.
    done = command("cluster", folder, "-o", "r0.h5")
    assert done.code in (0, 2), done.err
    assert "has changed" in done.err or done.code == 0
    assert command("cluster", folder, "-o", "r0.h5", "--force").code == 0
    assert_true(Path("r0.h5"), truth)


def test_following_ends_at_what_is_there_in_the_end(
    command: Run, folder: Path, contents: dict[str, list[bytes]], truth: dict[str, Array]
) -> None:
    with training(folder, contents) as stop:
        threading.Timer(2.0, stop.set).start()
        done = command("cluster", folder, "-o", "r.h5", "--follow", "--idle", 1)
    assert done.code == 0, done.err
    assert_true(Path("r.h5"), truth)
    assert command("cluster", folder, "-o", "plain.h5").code == 0
    assert values(read(Path("plain.h5"))).keys() == values(read(Path("r.h5"))).keys()


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(700)


def rewrite(path: Path) -> None:
    before = path.read_bytes()
    with path.open("r+b") as stream:
        stream.write(before[:-40] + bytes(40))


@pytest.mark.parametrize(
    ("change", "words"),
    [(cut, "changed since"), (rewrite, "changed since"), (Path.unlink, "does not exist")],
)
def test_a_file_too_large_to_be_held_changes_while_it_is_read(
    command: Run,
    folder: Path,
    contents: dict[str, list[bytes]],
    truth: dict[str, Array],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    words: str,
) -> None:
    for name, versions in contents.items():
        (folder / name).write_bytes(versions[0])
    # All files are read as the largest are: not whole, and as if nobody had written to them lately.
    monkeypatch.setattr("ibscan.inputs.series.checkpoint.STREAMED_BYTES", 1)
    monkeypatch.setattr("ibscan.inputs.files.SETTLED_NS", 0)
    read_tensors, changed = safetensors.read_tensors, folder / "epoch-00002.safetensors"

    def interfering(stream: Any, size: int, name: str) -> Any:
        if name == changed.name:
            time.sleep(0.01)  # so that the file system's clock has moved
            change(changed)
        return read_tensors(stream, size, name)

    monkeypatch.setattr(safetensors, "read_tensors", interfering)
    done = command("cluster", folder, "-o", "r.h5")
    assert done.code == 4
    assert words in done.err
    assert len(values(read(Path("r.h5")))) == EPOCHS - 1
    assert_true(Path("r.h5"), truth)
