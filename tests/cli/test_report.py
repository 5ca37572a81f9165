"""`ibscan report` as a command: what it explains, selections, size, errors and their exit codes."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from support import synthetic
from support.pages import data_of, elements

from ibscan.cli import reporting
from ibscan.results.store import write


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    settings = {"measures": {"local_rank": {"eps": [0.1, 0.01], "at": "pre", "unknown": None}}}
    write(synthetic.result((0, 1, 10), ("fit", "rank", "readout"), settings=settings), path)
    return path


def text_of(page: Path) -> str:
    return " ".join(" ".join(elements(page.read_text(encoding="utf-8")).text).split())


def test_a_page_says_what_explain_says(command: Run, saved: Path, tmp_path: Path) -> None:
    done = command("report", saved, "-o", tmp_path / "page.html")
    assert (done.code, done.out, done.err) == (0, "", f"ibscan: written to {tmp_path / 'page.html'}\n")
    text = text_of(tmp_path / "page.html")
    explained = command("explain", "mi_readout_xt").out
    facts = [line.strip().partition(": ")[2] for line in explained.splitlines()[1:] if ": " in line]
    assert len(facts) > 5
    for fact in facts:
        assert " ".join(fact.split()) in text or fact.startswith("ibscan explain"), fact
    assert "--eps 0.1 0.01 Threshold on singular values; repeatable. auto: those at which" in text
    assert "unknown none" in text
    assert "p" * 64 in text
    assert f"epoch-1.safetensors {1:064x}" in text


@pytest.mark.slow
def test_the_default_result_and_page_are_those_of_the_working_folder(command: Run, tmp_path: Path) -> None:
    write(synthetic.result(measures=("fit", "rank")), tmp_path / "ibscan.h5")
    assert command("report", "-q", inside=tmp_path).err == ""
    assert [one["id"] for one in data_of((tmp_path / "report.html").read_text())["pictures"]][:1] == ["local_rank"]


@pytest.mark.slow
def test_layers_epochs_and_names_are_selected(command: Run, saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    options = ("--layers", "fc*", "--epochs", "1,10", "--run", f"other={saved}", "--units", "bits")
    assert command("report", saved, *options, "-o", page).code == 0
    data = data_of(page.read_text())
    assert data["layers"] == ["fc1", "fc2", "fc10"]
    assert data["runs"] == ["other", "run"]
    assert data["pictures"][0]["panels"][0]["curves"][0]["x"] == [1, 10]


@pytest.mark.slow
def test_all_shows_every_checkpoint_in_the_tables(command: Run, tmp_path: Path) -> None:
    write(synthetic.result(tuple(range(20)), ("fit", "rank")), tmp_path / "long.h5")
    for options, said in (((), True), (("--all",), False)):
        assert command("report", "long.h5", *options, inside=tmp_path).code == 0
        assert ("12 of 20 checkpoints shown" in text_of(tmp_path / "report.html")) == said


@pytest.mark.slow
def test_figures_of_a_long_series_are_thinned_until_the_page_is_small(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(synthetic.result(tuple(range(60)), ("fit", "rank", "cluster")), tmp_path / "long.h5")
    assert command("report", "long.h5", inside=tmp_path).code == 0
    whole = (tmp_path / "report.html").stat().st_size
    monkeypatch.setattr(reporting, "MOST_BYTES", whole - 1000)
    assert command("report", "long.h5", inside=tmp_path).code == 0
    page = tmp_path / "report.html"
    assert page.stat().st_size < whole - 1000
    assert "Figures show 50 of 60 checkpoints of long, so that the page stays small; --epochs" in text_of(page)
    assert "60 checkpoints, epoch 0 .. 59" in text_of(page)
    monkeypatch.setattr(reporting, "MOST_BYTES", 1000)
    before = page.read_bytes()
    done = command("report", "long.h5", inside=tmp_path)
    assert done.code == 2
    assert "more than 0; report fewer layers (--layers), " in done.err
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("-o", "a.pdf"), 2, "-o a.pdf: a report is a page of HTML; expected a name that ends in .html."),
        (("-o", "none/a.html"), 2, "none/a.html: cannot be written"),
        (("--layers", "fc3"), 5, "--layers fc3: run.h5 has no such layer; it has fc"),
        (("--epochs", "7"), 5, "--epochs 7: no checkpoint has epoch 7"),
        (("--run", "a"), 2, "--run a: expected NAME=FILE"),
        (("none.h5",), 3, "none.h5: cannot be read"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    command: Run, saved: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = command("report", saved.name, *arguments, inside=saved.parent)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("library", ["jinja2", "plotly"])
def test_without_a_library_a_sentence_says_how_to_get_it(
    command: Run, saved: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *more: Any) -> Any:
        return None if name == library else find(name, *more)

    monkeypatch.setitem(sys.modules, "jinja2", None) if library == "jinja2" else None
    monkeypatch.setattr("ibscan.views.report.page.find_spec", hidden)
    done = command("report", saved)
    assert done.code == 2
    assert done.err.startswith("ibscan: report needs Jinja2 and plotly (")
    assert "pip install 'ibscan[report]'" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_a_report_loads_neither_plotly_nor_matplotlib_nor_torch(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ibscan.cli.entry import exit_code\n"
        f"assert exit_code(['report', {str(saved)!r}, '-o', {str(tmp_path / 'a.html')!r}]) == 0\n"
        "assert not {'matplotlib', 'plotly', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
