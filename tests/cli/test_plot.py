"""`ibscan plot` as a command: places, selections, errors and their exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from support import synthetic

from ibscan.cli.plotting import _named
from ibscan.results.store import write


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    found = synthetic.result((0, 1, 10), ("rank", "readout", "cluster"))
    # Histograms have ascending edges.
    found["distance_edge_low"].values[...] = range(5)
    found["distance_edge_high"].values[...] = range(1, 6)
    write(found, path)
    return path


@pytest.mark.slow
def test_a_file_holds_one_figure(command: Run, saved: Path, tmp_path: Path) -> None:
    for name, magic in (("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")):
        done = command("plot", saved, "-o", tmp_path / name, "--kind", "label-information")
        assert (done.code, done.out) == (0, "")
        assert done.err == f"ibscan: written to {tmp_path / name}\n"
        assert (tmp_path / name).read_bytes().startswith(magic)


@pytest.mark.slow
def test_a_folder_holds_every_figure(command: Run, saved: Path, tmp_path: Path) -> None:
    done = command("plot", saved, "--format", "svg", "-q", "-o", tmp_path / "deep" / "figures")
    assert (done.code, done.out, done.err) == (0, "", "")
    names = {path.name for path in (tmp_path / "deep" / "figures").iterdir()}
    assert {"local_rank.svg", "local_rank-local_rank_rel.svg", "information_plane.svg"} <= names
    assert all(name.endswith(".svg") for name in names)


@pytest.mark.slow
def test_the_default_result_and_folder_are_those_of_the_working_folder(command: Run, tmp_path: Path) -> None:
    write(synthetic.result(measures=("fit", "rank")), tmp_path / "ibscan.h5")
    assert command("plot", "--kind", "local_rank", inside=tmp_path).code == 0
    assert sorted(path.name for path in (tmp_path / "ibscan-figures").iterdir()) == [
        "local_rank-local_rank_rel.png",
        "local_rank.png",
    ]


@pytest.mark.slow
def test_layers_and_epochs_are_selected(command: Run, saved: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "a.svg", tmp_path / "b.svg"
    common = ("plot", saved, "--variable", "local_rank", "--kind", "local_rank")
    assert command(*common, "-o", one).code == 0
    assert command(*common, "-o", other, "--layers", "fc*", "--epochs", "1,10").code == 0
    assert len(other.read_bytes()) < len(one.read_bytes())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-o", "a.svg"), 2, "figures fit; name one with --kind (local_rank, "),
        (("-o", "a.svg", "--kind", "local_rank"), 2, "2 figures fit; name one with --variable (local_rank, "),
        (("-o", "a.jpg"), 2, "-o a.jpg: .jpg is no format of figures; expected .png, .svg, .pdf, or a folder."),
        (("-o", "run.h5/x"), 2, "-o run.h5/x: the folder cannot be made"),
        (("--kind", "plane"), 2, "--kind 'plane': there is no such figure; expected "),
        (("--variable", "local_rnk"), 5, "--variable 'local_rnk': the result has no such variable; it has local_rank"),
        (("--layers", "fc3"), 5, "--layers fc3: run.h5 has no such layer; it has fc"),
        (("--epochs", "7"), 5, "--epochs 7: no checkpoint has epoch 7 (the nearest is 10); epoch runs from 0 to 10."),
        (("--epochs", "x"), 2, "--epochs x: 'x' is no number"),
        (("--kind", "information_slope"), 5, "--kind information_slope: the result holds no numbers for such a figure"),
        (("run.h5",), 2, "run.h5: stands twice among the results; give it once."),
        (("--run", "b=run.h5", "--kind", "distances", "-o", "a.png"), 2, "2 figures fit; draw one result alone, or "),
        (("--run", "a"), 2, "--run a: expected NAME=FILE"),
        (("none.h5",), 3, "none.h5: cannot be read"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    command: Run, saved: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = command("plot", saved.name, *arguments, inside=saved.parent)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_results_have_names_that_tell_them_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/run.h5", "b/run.h5", "c.h5")]
    assert list(_named(paths, ["own=d.h5"], Path("ibscan.h5"))) == ["own", "a/run", "b/run", "c"]


def test_several_results_make_one_figure(command: Run, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/run.h5", "b/run.h5", "c.h5")]
    for k, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        write(synthetic.result((0, 1, k + 2), ("fit", "rank")), path)
    done = command(
        "plot", *paths[:2], "--run", f"own={paths[2]}", "--variable", "probe_loss", "--band", "-o", tmp_path / "x.png"
    )
    assert done.code == 0, done.err


def test_without_the_library_a_sentence_says_how_to_get_it(
    command: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = command("plot", saved)
    assert done.code == 2
    assert done.err.startswith("ibscan: plot needs matplotlib (")
    assert "pip install 'ibscan[plot]'" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_other_verbs_do_not_load_the_library(saved: Path) -> None:
    code = (
        "import sys; from ibscan.cli.entry import exit_code\n"
        f"assert exit_code(['show', {str(saved)!r}]) == 0 and exit_code(['plot', '--help']) == 0\n"
        "assert not {'matplotlib', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
