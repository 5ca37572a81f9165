"""The manifest `ibscan.toml` is read or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ibscan.errors import IbscanError, InputError, UsageError
from ibscan.inputs.probes.read import read_probe
from ibscan.inputs.series.manifest import read_manifest

WHOLE = """
[model]
spec = "mlp:tanh:softmax"
args = { width = 512 }
[probe]
path = "data/probe.npz#x=F,y=y"
scale = 255
shape = [1, 28, 28]
[series]
pattern = "epoch-{epoch}.safetensors"
axis = "epoch"
"""


def test_every_entry_is_read_and_an_absent_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, trust=False) is None
    (tmp_path / "ibscan.toml").write_text(WHOLE)
    manifest = read_manifest(tmp_path, trust=False)
    assert manifest is not None
    assert manifest.path == tmp_path / "ibscan.toml"
    assert (manifest.model_spec, manifest.model_args) == ("mlp:tanh:softmax", {"width": 512})
    assert manifest.probe_path == (tmp_path / "data" / "probe.npz").resolve()
    assert manifest.probe_selection == "x=F,y=y"
    assert manifest.probe_arguments == {"scale": 255, "shape": [1, 28, 28]}
    assert (manifest.pattern, manifest.axis) == ("epoch-{epoch}.safetensors", "epoch")
    (tmp_path / "ibscan.toml").write_text("")
    empty = read_manifest(tmp_path, trust=False)
    assert empty is not None
    assert (empty.model_spec, empty.probe_path, empty.pattern, empty.axis) == (None, None, None, None)


REFUSED: list[tuple[str, type[IbscanError], str]] = [
    ("[model", UsageError, "no readable TOML"),
    ("\x00", UsageError, "no readable TOML"),
    ("[modle]\n", UsageError, r"\[modle\] is not known"),
    ("model = 3", UsageError, "a table"),
    ("[model]\nspek = 'a'", UsageError, "'spek' in"),
    ("[model]\nspec = 3", UsageError, "a string was expected"),
    ("[model]\nargs = 'a'", UsageError, "a table was expected"),
    ("[probe]\nscale = 0", UsageError, "scale is 0"),
    ("[probe]\nscale = 'a'", UsageError, "scale is 'a'"),
    ("[probe]\nmean = nan", UsageError, "mean is nan"),
    ("[series]\npattern = 'a'", UsageError, "pattern 'a'"),
    ("[series]\npattern = '{epoch}{epoch}'", UsageError, "at most once"),
    ("[series]\npattern = '{epochs}'", UsageError, "cannot be read"),
    ("[series]\naxis = ''", UsageError, "axis is ''"),
    ("[probe]\npath = '../p.npz'", InputError, "--trust"),
    ("[probe]\npath = '/p.npz'", InputError, "--trust"),
    ("[probe]\npath = 'link/p.npz'", InputError, "--trust"),
    ("# " + "x" * (1 << 20), InputError, "1048576"),
]


@pytest.mark.parametrize(("text", "error", "words"), REFUSED, ids=[row[0][:20] for row in REFUSED])
def test_a_manifest_that_makes_no_sense_is_refused(
    text: str, error: type[IbscanError], words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "ibscan.toml").write_text(text)
    with pytest.raises(error, match=words):
        read_manifest(folder, trust=False)


def test_trust_lets_the_probe_lie_outside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "ibscan.toml").write_text("[probe]\npath = '../p.npz'")
    manifest = read_manifest(folder, trust=True)
    assert manifest is not None
    assert manifest.probe_path == (tmp_path / "p.npz").resolve()


def test_a_pipe_is_never_opened_as_a_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ibscan.toml")
    with pytest.raises(InputError, match="named pipe"):
        read_manifest(tmp_path, trust=False)


HIDDEN_CODE = [
    "build.py:probe",
    "data/build.py:probe",
    "./build.py:probe#x=a",
    "build:probe",
    "package.module:Class.probe",
    "build.py:probe#",
    "q#build.py:probe#",
    "build.py:probe#a#b",
    "#build.py:probe",
]


@pytest.mark.parametrize("text", HIDDEN_CODE)
def test_code_named_by_a_manifest_needs_trust(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = f"open({str(tmp_path / 'canary')!r}, 'w')\ndef probe(): return [[0.5]]\n"
    for place in ("build.py", "data/build.py", "q#build.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(canary)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ibscan.toml").write_text(f"[probe]\npath = '{text}'")
    try:
        manifest = read_manifest(tmp_path, trust=False)
        assert manifest is not None
        if manifest.probe_path is not None:
            end = f"#{manifest.probe_selection}" if manifest.probe_selection else ""
            read_probe(f"{manifest.probe_path}{end}", {})
            pytest.fail("it was read")
    except IbscanError:
        pass
    assert not (tmp_path / "canary").exists()


def test_trusted_code_is_found_from_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "data.py").write_text("def probe(): return {'a': [[0.5, 1.0]], 'b': [1]}\n")
    for text, path in (
        ("data.py:probe#x=a,y=b", str(folder / "data.py:probe")),
        ("manifest_data:probe#x=a,y=b", "manifest_data:probe"),
    ):
        (folder / "ibscan.toml").write_text(f"[probe]\npath = '{text}'")
        with pytest.raises(InputError, match=r"is code.*--trust"):
            read_manifest(folder, trust=False)
        manifest = read_manifest(folder, trust=True)
        assert manifest is not None
        assert (str(manifest.probe_path), manifest.probe_selection) == (path, "x=a,y=b")
    probe, _ = read_probe(f"{folder / 'data.py:probe'}#x=a,y=b", {})
    assert probe.labels == (1,)


def test_a_file_with_a_colon_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "build.py:probe").write_text("")
    (tmp_path / "ibscan.toml").write_text("[probe]\npath = 'build.py:probe'")
    manifest = read_manifest(tmp_path, trust=False)
    assert manifest is not None
    assert manifest.probe_path == tmp_path.resolve() / "build.py:probe"
