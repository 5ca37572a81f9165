"""`ibscan show` and `ibscan export`: what is selected, where it goes, in which format, and what is loaded for it."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file
from support import synthetic

from ibscan.results.export import COLUMNS
from ibscan.results.store import write
from ibscan.views.summary import ROWS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "ibscan.h5"
    found = synthetic.result((0, 1, 10), ("fit", "rank", "readout"))
    write(found, path)
    return path


def test_the_result_is_by_default_the_one_of_the_working_folder(command: Run, saved: Path) -> None:
    for verb in ("show", "export"):
        assert command(verb, inside=saved.parent).out == command(verb, saved).out
    saved.unlink()
    done = command("show", inside=saved.parent)
    assert (done.code, done.err[:33]) == (3, "ibscan: ibscan.h5: cannot be read")


@pytest.mark.parametrize("verb", ["show", "export"])
def test_layers_epochs_and_variables_are_selected(command: Run, saved: Path, verb: str) -> None:
    chosen = ("--variable", "local_rank", "--variable", "mi_readout_xt")
    rows = command(verb, saved, "--layers", "fc*", "--epochs", "1:10", *chosen).rows()
    assert {row["layer"] for row in rows} == {"fc1", "fc2", "fc10"}
    assert {row["epoch"] for row in rows} == {"1", "10"}
    assert list(dict.fromkeys(row["variable"] for row in rows)) == ["local_rank", "mi_readout_xt"]


def test_tables_show_what_is_selected(command: Run, saved: Path) -> None:
    table = command("show", saved, "--layers", "fc2", "--epochs", "0,10", "--full", "--format", "table").out
    assert "fc2" in table
    assert "fc1" not in table
    assert "2 checkpoints" in table
    both = command("show", saved, "--variable", "local_rank", "--variable", "local_rank_rel", "--format", "table").out
    assert "\nlocal_rank · " in both
    assert "\nlocal_rank_rel · " in both


@pytest.mark.parametrize("verb", ["show", "export"])
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--variable", "local_rnk"), 5, "--variable 'local_rnk': the result has no such variable; it has local_rank"),
        (("--variable", "local_rank", "--variable", "x"), 5, "--variable 'x': the result has no such variable"),
        (("--layers", "fc3"), 5, "--layers fc3: ibscan.h5 has no such layer; it has fc"),
        (("--epochs", "7"), 5, "--epochs 7: no checkpoint has epoch 7 (the nearest is 10); epoch runs from 0 to 10."),
        (("--epochs", "x"), 2, "--epochs x: 'x' is no number"),
        (("-o", "ibscan.h5", "--format", "csv"), 2, "-o ibscan.h5: is the result that is read; name another file."),
        (("-o", "rows.xlsx"), 2, "-o rows.xlsx: expected a name that ends in "),
        (("-o", "none/rows.csv"), 2, "none/rows.csv: cannot be written (No such file or directory)."),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_nothing_is_written(
    command: Run, saved: Path, verb: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    before = saved.read_bytes()
    done = command(verb, *arguments, inside=saved.parent)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("verb", ["show", "export"])
@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl"])
def test_a_file_holds_what_would_be_printed_in_the_format_of_its_name(
    command: Run, saved: Path, verb: str, format: str
) -> None:
    target = saved.parent / f"rows.{format.upper()}"
    target.write_text("an older file, which is replaced")
    done = command(verb, saved, "-o", target)
    assert (done.code, done.out, done.err) == (0, "", f"ibscan: written to {target}\n")
    printed = command(verb, saved, "--format", format).out
    assert target.read_text() == printed
    # A format that is typed counts more than the name.
    command(verb, saved, "-o", target, "--json", "-q")
    assert target.read_text() == command(verb, saved, "--json").out


def test_tables_go_to_a_text_file_without_colour(command: Run, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    assert command("show", saved, "-o", saved.parent / "a.txt").code == 0
    text = (saved.parent / "a.txt").read_text()
    assert "\x1b" not in text
    assert text == command("show", saved, "--format", "table", "--color", "never").out
    done = command("export", saved, "-o", saved.parent / "b.txt")
    assert (done.code, "expected a name that ends in .tsv, .csv, .jsonl, or --format" in done.err) == (2, True)


@pytest.mark.parametrize("shown", [(), ("--full",), ("--curve",), ("--summary",)])
def test_every_table_answers_format(command: Run, saved: Path, shown: tuple[str, ...]) -> None:
    columns = list(ROWS if shown == ("--summary",) else COLUMNS)
    for format, separator in (("tsv", "\t"), ("csv", ",")):
        done = command("show", saved, *shown, "--format", format)
        lines = list(csv.reader(io.StringIO(done.out), delimiter=separator))
        assert (done.code, lines[0]) == (0, columns)
        assert {len(line) for line in lines} == {len(columns)}
        assert len(lines) > 1
    objects = [json.loads(line) for line in command("show", saved, *shown, "--format", "jsonl").out.splitlines()]
    assert [list(one) for one in objects] == [columns] * (len(lines) - 1)


def loaded_by(*arguments: object) -> set[str]:
    """Return the modules that a command has loaded at its end."""
    code = (
        "import sys; from ibscan.cli.entry import exit_code\n"
        f"code = exit_code({[str(one) for one in arguments]!r})\n"
        "print(code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code, *names = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr[:1000]
    return {name for name in names if "." not in name}


HEAVY = {"torch", "scipy", "transformers", "safetensors", "xarray", "pandas", "h5netcdf", "matplotlib"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("show",), ("show", "--full", "--format", "table"), ("export",), ("export", "-o", "rows.csv")]
)
def test_reading_a_result_loads_no_heavy_library(saved: Path, arguments: tuple[str, ...]) -> None:
    verb, *options = arguments
    assert not HEAVY & loaded_by(verb, saved, *options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_listing_checkpoints_loads_no_heavy_library(series: Path, tmp_path: Path, kind: str) -> None:
    folder = series
    if kind != "safetensors":
        folder = tmp_path / "torch"
        folder.mkdir()
        for path in series.glob("*.safetensors"):
            file = folder / path.with_suffix(".pt").name
            torch.save(load_file(path), file, _use_new_zipfile_serialization=kind == "zip")
    assert not HEAVY & loaded_by("ls", folder, "--model", "mlp:tanh")
