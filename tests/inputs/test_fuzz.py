"""Fuzzed readers: whatever stands in a file, nothing runs, and only our own errors come out.

`--fuzz N` is the number of examples a reader; slow readers get a share of it. The default ones
are the same every time, more are drawn afresh.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import FUZZ
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzzing as make

from ibscan.errors import CheckpointError, IbscanError, NothingMatched
from ibscan.inputs.probes.read import read_probe
from ibscan.inputs.series.checkpoint import inspect_checkpoint, load_tensors
from ibscan.inputs.series.manifest import read_manifest
from ibscan.results.export import rows
from ibscan.results.store import read
from ibscan.views.console import console
from ibscan.views.tables import tables

pytestmark = pytest.mark.slow

Blob = Callable[[make.Draw], bytes]
# Writing and printing a result takes ten times what a checkpoint does; starting a process, a hundred times.
SLOW, SLOWER = 5, 15


def fuzzed(
    config: pytest.Config,
    attempt: Callable[[make.Draw], object],
    share: int = 1,
    error: type[IbscanError] = IbscanError,
) -> None:
    """Attempt drawn examples; an error of ours is a fine end, any other is not."""
    asked = config.getoption("--fuzz")

    @settings(
        max_examples=max(2, asked // share),
        derandomize=asked == FUZZ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        with contextlib.suppress(error):
            attempt(data.draw)

    run()
    assert not Path("canary").exists()


def any_of(files: Mapping[str, bytes]) -> Callable[[make.Draw], tuple[str, bytes]]:
    def drawn(draw: make.Draw) -> tuple[str, bytes]:
        name = draw(st.sampled_from(sorted(files)))
        return name, make.damaged(draw, files[name])

    return drawn


def called(name: str, blob: Blob) -> Callable[[make.Draw], tuple[str, bytes]]:
    return lambda draw: (name, blob(draw))


CHECKPOINTS = {
    "bytes": any_of(make.CHECKPOINTS),
    "safetensors": called("a.safetensors", make.odd_safetensors),
    "zip": called("a.pt", lambda draw: make.odd_zip(draw, make.CHECKPOINTS["zip.pt"])),
    "legacy": called("a.pt", lambda draw: make.odd_legacy(draw, make.STATE)),
    "object": called("a.pt", make.odd_object),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_random_checkpoints_are_read_or_refused(kind: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    def attempt(draw: make.Draw) -> None:
        name, blob = CHECKPOINTS[kind](draw)
        (tmp_path / name).write_bytes(blob)
        checkpoint = inspect_checkpoint(tmp_path / name, name)
        tensors = load_tensors(checkpoint)
        assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
            key: info.shape for key, info in checkpoint.tensors.items()
        }

    fuzzed(pytestconfig, attempt, error=CheckpointError)


PROBES = {
    "bytes": any_of(make.PROBES),
    "npy": called("a.npy", make.odd_npy),
    "npz": called("a.npz", make.odd_npz),
    "safetensors": called("a.safetensors", make.odd_safetensors),
    "zip": called("a.pt", lambda draw: make.odd_zip(draw, make.PROBES["zip.pt"])),
    "object": called("a.pt", make.odd_object),
    "table": called("a.csv", make.odd_table),
    "idx": called("a-images-idx3-ubyte", make.odd_idx),
}
SLOW_PROBES = {
    "hdf5 bytes": any_of(make.SLOW_PROBES),
    "hdf5": called("a.h5", make.odd_hdf5_probe),
    "matlab bytes": any_of(make.MATLAB_PROBES),
    "matlab": called("a.mat", make.odd_matlab),
}


@pytest.mark.parametrize("kind", [*PROBES, *SLOW_PROBES])
def test_random_probes_are_read_or_refused(kind: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    def attempt(draw: make.Draw) -> None:
        name, blob = (PROBES | SLOW_PROBES)[kind](draw)
        (tmp_path / name).write_bytes(blob)
        probe, _ = read_probe(str(tmp_path / name), draw(st.sampled_from([{}, {"scale": 1}, {"shape": [1]}])))
        assert len(probe.x)
        assert probe.y is None or len(probe.y) == len(probe.x)

    fuzzed(pytestconfig, attempt, SLOWER if kind in SLOW_PROBES else 1)


@pytest.mark.parametrize("odd", [False, True])
def test_random_manifests_are_read_or_refused(odd: bool, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    good = b'[model]\nspec = "mlp:tanh"\n[probe]\npath = "probe.npz"\nscale = 255\n[series]\npattern = "e-{epoch}"\n'

    def attempt(draw: make.Draw) -> None:
        (tmp_path / "ibscan.toml").write_bytes(make.odd_manifest(draw) if odd else make.damaged(draw, good))
        found = read_manifest(tmp_path, trust=False)
        assert found is not None
        assert found.probe_path is None or found.probe_path.is_relative_to(tmp_path)

    fuzzed(pytestconfig, attempt)


def shown(path: Path) -> None:
    """Read a result and print it in every output format."""
    result = read(path)
    for row in rows(result):
        assert len(row) >= 4
    screen = console(sys.stdout, color="never", width=80)
    with contextlib.suppress(NothingMatched):
        tables(result, summary=True, width=80)
    for full, curve in ((True, False), (False, False), (False, True)):
        for block in tables(result, every=True, full=full, curve=curve, width=80):
            screen.print(block)


def test_odd_results_with_a_valid_seal_are_shown_or_refused(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    def attempt(draw: make.Draw) -> None:
        make.odd_result(draw, tmp_path / "r.h5")
        shown(tmp_path / "r.h5")

    fuzzed(pytestconfig, attempt, SLOW)


def test_damaged_results_without_a_seal_are_shown_or_refused(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    good = make.make.result_bytes()[:-73]

    def attempt(draw: make.Draw) -> None:
        # Of the signature nothing is changed: without it no library is asked.
        (tmp_path / "r.h5").write_bytes(good[:8] + make.damaged(draw, good[8:]))
        shown(tmp_path / "r.h5")

    fuzzed(pytestconfig, attempt, SLOWER)
