"""What a run is in Python: arrays with coordinates, conversions, how it shows itself, figures, progress."""

import builtins
import inspect
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import Run as Command
from support import synthetic

import ibscan
from ibscan import IbscanError
from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.errors import NothingMatched, UsageError
from ibscan.face.run import Run
from ibscan.results.export import COLUMNS, rows, write_rows
from ibscan.results.store import read, write
from ibscan.views.notebook import in_notebook, notebook_bar
from ibscan.views.summary import summary_rows

HOSTILE = ("<script>alert(1)</script>", 'a"b&c', "fc\x1b[31m\n", "](x)")


def marked() -> Result:
    """Return a result with a NaN, every kind of status that has no number, and a checkpoint without a step."""
    found = synthetic.result((0, 1, 10))
    found["local_rank"].values[1, 2, 0] = np.nan
    return synthetic.marked(found, "local_rank", (1, 2, 0), Status.OUT_OF_MEMORY)


@pytest.fixture
def run() -> Run:
    return Run(marked())


def test_public_names_are_there_and_a_star_import_leaves_open_alone() -> None:
    assert {"IbscanError", "Run", "Runs", "scan", "rank", "mi", "cluster", "save", "noisy"} <= set(ibscan.__all__)
    assert "open" not in ibscan.__all__
    assert "open" in dir(ibscan)
    assert ibscan.open is not vars(builtins)["open"]
    assert ibscan.IbscanError is IbscanError


def test_functions_have_every_option_in_their_signature() -> None:
    names = set(inspect.signature(ibscan.scan).parameters)
    assert {"ckpts", "model", "probe", "noise", "layers", "output", "progress"} <= names


OPENED = """
import sys, ibscan
run = ibscan.open(sys.argv[1])
repr(run), run._repr_html_(), run.summary(), run["local_rank"].sel(layer="fc1"), run.to_dataframe(), run.to_xarray()
run.plot()
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_reading_showing_drawing_and_converting_need_no_torch(tmp_path: Path) -> None:
    write(marked(), tmp_path / "r.h5")
    done = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path / "r.h5")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Arrays


def test_an_array_has_the_coordinates_along_its_dimensions(run: Run) -> None:
    array = run["local_rank"]
    assert (array.dims, array.shape) == (("checkpoint", "layer", "eps"), (3, 4, 2))
    assert array.coords["epoch"].values.tolist() == [0, 1, 10]
    assert {"layer", "layer_width", "eps", "checkpoint_name"} <= set(array.coords)
    assert "noise" not in array.coords
    np.testing.assert_array_equal(np.asarray(array), run.result["local_rank"].values)
    assert "checkpoint: 3" in repr(array)


def test_selecting_by_values_is_indexing_by_their_places(run: Run) -> None:
    array, values = run["local_rank"], run.result["local_rank"].values
    np.testing.assert_array_equal(array.sel(layer="fc2").values, values[:, 1])
    np.testing.assert_array_equal(array.sel(layer="fc2", epoch=10, eps=0.1).values, values[2, 1, 1])
    np.testing.assert_array_equal(array.sel(epoch=[10, 0]).values, values[[2, 0]])
    np.testing.assert_array_equal(array.sel(epoch=slice(1, None)).values, values[1:])
    np.testing.assert_array_equal(array.sel(epoch=slice(None, 1)).values, values[:2])
    np.testing.assert_array_equal(array.sel(eps=0.1 * 3 / 3).values, values[..., 1])
    one = array.sel(layer="fc2", epoch=10)
    assert one.dims == ("eps",)
    assert one.coords["epoch"].values == 10
    assert one.coords["layer"].values == "fc2"
    assert array.sel(layer=["out", "fc1"]).coords["layer"].values.tolist() == ["out", "fc1"]


def test_selecting_agrees_with_xarray(run: Run) -> None:
    named = run.to_xarray()["local_rank"]
    np.testing.assert_array_equal(
        run["local_rank"].sel(layer="fc10", eps=0.01).values, named.sel(layer="fc10", eps=0.01)
    )


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"layer": "fc3"}, "layer='fc3': there is no such value; expected fc"),
        ({"epohc": 1}, "has no coordinate 'epohc' to select by; did you mean epoch"),
        ({"epoch": 7}, "epoch=7: there is no such value; expected 0, 1, 10"),
        ({"epoch": None}, "epoch=None: there is no such value"),
        ({"epoch": "0"}, "epoch='0': there is no such value"),
        ({"noise": 0.1}, "local_rank has no coordinate 'noise'"),
        ({"layer": slice("a", "b")}, "slices are of numbers"),
        ({"layer_type": "Linear"}, r"4 places have this value; give \['Linear'\]"),
    ],
)
def test_a_selection_that_matches_nothing_is_a_sentence(run: Run, where: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run["local_rank"].sel(**where)


def test_an_unknown_array_is_a_key_error_that_says_the_nearest(run: Run) -> None:
    with pytest.raises(KeyError, match="no 'local_rnk'; did you mean local_rank"):
        run["local_rnk"]
    assert "local_rnk" not in run
    assert set(run) == set(run.result.variables)
    assert len(run) == len(list(run))


# Conversions

IDENTICAL = """
import sys, warnings
warnings.simplefilter("error")
import xarray, ibscan
made = ibscan.open(sys.argv[1]).to_xarray()
with xarray.open_dataset(sys.argv[1], engine="h5netcdf") as found:
    xarray.testing.assert_identical(made, found.load())
    assert {name: one.dtype for name, one in made.variables.items()} == {
        name: one.dtype for name, one in found.variables.items()
    }
"""


@pytest.mark.slow
def test_a_dataset_is_the_one_that_xarray_reads_from_the_file(tmp_path: Path) -> None:
    write(marked(), tmp_path / "r.h5")
    done = subprocess.run([sys.executable, "-c", IDENTICAL, str(tmp_path / "r.h5")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dataset_has_the_dimensions_coordinates_and_attributes_of_the_result(run: Run) -> None:
    found = run.to_xarray()
    assert found["local_rank"].dims == ("checkpoint", "layer", "eps")
    np.testing.assert_array_equal(found["local_rank"].values, run.result["local_rank"].values)
    assert found["local_rank"].attrs["long_name"] == run.result["local_rank"].attrs["long_name"]
    assert found.attrs["model"] == "mlp:tanh"
    assert set(found.coords) == set(run.result.coordinates)
    found["local_rank"].values[...] = 0
    assert run["local_rank"].values.any()


@pytest.mark.parametrize("options", [{}, {"units": "bits"}, {"variable": "singular_value"}])
def test_a_data_frame_is_what_export_prints(run: Run, options: dict[str, Any]) -> None:
    stream = io.StringIO()
    named = [options["variable"]] if "variable" in options else []
    write_rows(rows(run.result, units=options.get("units", "nats"), variables=named), "tsv", stream)
    stream.seek(0)
    printed = pandas.read_csv(stream, sep="\t")
    found = run.to_dataframe(**options)
    assert list(found.columns) == list(COLUMNS)
    # Read from text, these are numbers or text by what else stands in the column.
    for name in ("parameter_value", "unit"):
        assert found.pop(name).map(str).tolist() == printed.pop(name).map(str).tolist()
    pandas.testing.assert_frame_equal(found, printed, check_dtype=False, check_exact=True)


def test_where_a_number_is_missing_the_data_frame_has_nan_and_the_status(run: Run) -> None:
    found = run.to_dataframe()
    missing = found[found["status"] == "out_of_memory"]
    assert missing["variable"].tolist() == ["local_rank", "local_rank_min", "local_rank_max"]
    assert missing["result"].isna().tolist()[0]
    assert found["parameter_value"].isna().any()
    assert found["epoch"].dtype == np.float64


@pytest.mark.parametrize(("library", "convert"), [("xarray", "to_xarray"), ("pandas", "to_dataframe")])
def test_without_the_extra_a_sentence_names_it(
    run: Run, library: str, convert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{convert} needs xarray and pandas .*pip install 'ibscan\[xarray\]'"):
        getattr(run, convert)()


def test_an_opened_file_is_the_run_that_wrote_it(tmp_path: Path) -> None:
    Run(marked()).to_hdf5(tmp_path / "r.h5")
    found = ibscan.open(tmp_path / "r.h5")
    synthetic.assert_equal(found.result, read(tmp_path / "r.h5"))
    assert found.output == tmp_path / "r.h5"
    assert "r.h5" in repr(found)
    with pytest.raises(IbscanError, match="cannot be read"):
        ibscan.open("nowhere.h5")
    with pytest.raises(UsageError, match="is given 3; expected the path"):
        ibscan.open(3)  # type: ignore[call-overload]


# How it shows itself


def test_a_run_says_what_was_measured_of_what_and_where_in_ten_lines(run: Run) -> None:
    lines = repr(run).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 120
    for part in ("3, epoch 0 to 10", "mlp:tanh", "4: fc1, fc2, fc10, out", "probe.npz, 64 rows", "1 cells", "to_hdf5"):
        assert part in repr(run), part
    assert len(repr(Run(synthetic.result(names=[f"layer{k}" * 9 for k in range(99)]))).splitlines()) <= 10


def test_html_escapes_names_of_files_and_shows_the_summary() -> None:
    found = Run(synthetic.result((0, 1), names=HOSTILE, model="<img src=x>", skipped={"<b>.pt": "x"}), Path("<i>.h5"))
    for text in (found._repr_html_(), found.summary()._repr_html_()):
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert not {"<img", "<b>", "<i>", "\x1b", "\n"} & {
            part for part in ("<img", "<b>", "<i>", "\x1b", "\n") if part in text
        }
        assert "<table>" in text
        assert "verdict" in text
    assert "\x1b" not in repr(found)
    assert len(repr(found).splitlines()) <= 10


def test_the_summary_is_that_of_show(run: Run, command: Command, tmp_path: Path) -> None:
    run.to_hdf5(tmp_path / "r.h5")
    lines = command("show", tmp_path / "r.h5", "--summary", "--format", "jsonl").out.splitlines()
    assert list(run.summary()) == [json.loads(line) for line in lines] == summary_rows(run.result, units="nats")
    text = command("show", tmp_path / "r.h5", "--summary", "--format", "table").out
    assert [line.split() for line in str(run.summary()).splitlines() if "local rank" in line] == [
        line.split() for line in text.splitlines() if "local rank" in line
    ]
    assert len(run.summary()) == len(lines)
    in_bits = [row for row in run.summary(units="bits") if "read-out" in row["quantity"]]
    in_nats = [row for row in run.summary() if "read-out" in row["quantity"]]
    assert in_bits[0]["last"] == pytest.approx(in_nats[0]["last"] / np.log(2))


def test_a_run_without_anything_to_summarise_still_shows_itself() -> None:
    found = Run(synthetic.result(measures=["fit"]))
    assert "<table>" in found._repr_html_()
    with pytest.raises(NothingMatched, match=r"run\.summary\(\): the result holds no .* Run ibscan\.scan"):
        found.summary()


# Figures


def test_a_plot_is_a_figure_that_a_notebook_shows(run: Run) -> None:
    figure = run.plot("mi_readout_xt")
    assert len(figure.axes) >= 1
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_a_plot_takes_axes(run: Run) -> None:
    from matplotlib.figure import Figure

    mine = Figure()
    ax = mine.subplots()
    assert run.plot("effective_rank", ax=ax) is mine
    assert ax.lines
    assert not hasattr(mine, "_repr_png_")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variable": "local_rnk"}, "variable='local_rnk': the result has no such variable; it has local_rank"),
        ({"kind": "local-rnk"}, "kind='local-rnk': there is no such figure"),
        ({"units": "bit"}, "expected nats or bits"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_a_sentence(run: Run, options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, NothingMatched), match=said):
        run.plot(**options)


def test_without_matplotlib_a_sentence_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"plot needs matplotlib .*pip install 'ibscan\[plot\]'"):
        run.plot()


# Progress


def test_a_scan_is_silent_unless_asked(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ibscan.rank(series)
    assert capsys.readouterr() == ("", "")
    ibscan.rank(series, progress=True, samples=16, probe_arg={"scale": 1})
    out, err = capsys.readouterr()
    assert out == ""
    assert "5 of 5 checkpoints" in err
    assert "--" not in err


def test_a_bar_in_a_notebook_is_shown_anew_in_place_and_escapes_names() -> None:
    shown: list[str] = []
    with notebook_bar(2, shown.append) as bar:
        bar.advance("<script>.pt")
        bar.advance("b.pt")
    assert ['value="0"' in shown[0], 'value="1"' in shown[1], 'value="2"' in shown[2]] == [True] * 3
    assert all('max="2"' in text for text in shown)
    assert "&lt;script&gt;.pt" in shown[1]
    assert "<script" not in "".join(shown)
    assert shown[-1].endswith("2/2 checkpoints ")


def test_a_kernel_is_told_from_a_prompt_and_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, known in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=object()), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is known
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
