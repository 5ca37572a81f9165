"""Figures: every kind from made-up results, what is in them, and how statuses, selections and mistakes show."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import synthetic

from ibscan.core.estimate import Status
from ibscan.core.quantity import Quantity
from ibscan.core.result import Result
from ibscan.errors import NothingMatched, UsageError
from ibscan.views.figures import FIGURES, pictures, plot, specs
from ibscan.views.figures.artists import fitted
from ibscan.views.figures.draw import drawn, encoded
from ibscan.views.figures.picture import Names, Picture, Scale
from ibscan.views.figures.ticks import log_ticks

TESTS = str(Path(__file__).parent.parent)
SPECTRA = synthetic.Fake(
    "representation", (Quantity("representation_effective_rank", "erank", "1", "effective rank of activations"),)
)
SEVERAL = replace(synthetic.MEASURES["readout"], coordinates={"noise": (0.1, 0.3)})
SLOPE = replace(synthetic.MEASURES["slope"], at="pre")
EVERYTHING = ("rank", SEVERAL, SLOPE, "relative", "network", "binned", "cluster", "fit", SPECTRA)


def everything(epochs: tuple[int, ...] = (0, 1, 10, 100), **changes: Any) -> Result:
    found = synthetic.result(epochs, EVERYTHING, **changes)
    # Histograms have ascending edges.
    edges = np.arange(6.0)
    found["distance_edge_low"].values[...], found["distance_edge_high"].values[...] = edges[:-1], edges[1:]
    return found


def one(found: Result, kind: str, variable: str | None = None, **options: bool | str) -> Picture:
    variables = () if variable is None else (variable,)
    return pictures({"run": found}, kinds=(kind,), variables=variables, **options)[0]  # type: ignore[arg-type]


def artists(picture: Picture, gid: str, panel: int = 0) -> list[object]:
    axes = drawn(picture).axes[panel]
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FIGURES)
def test_every_kind_is_drawn(kind: str) -> None:
    variable = ("effective_rank",) if kind == "variable" else ()
    found = pictures({"run": everything()}, kinds=(kind,), variables=variable)
    assert found
    for picture in found:
        figure = drawn(picture)
        assert len([axes for axes in figure.axes if axes.get_label() != "<colorbar>"]) == len(picture.panels)
        assert encoded(picture, "png").startswith(b"\x89PNG")


def test_every_kind_has_a_picture_of_a_whole_result() -> None:
    found = pictures({"run": everything()})
    assert {picture.kind for picture in found} == set(FIGURES) - {"variable"}
    assert len({picture.name for picture in found}) == len(found)
    assert all(spec.title.endswith(".") for spec in specs().values())


def test_a_curve_holds_values_and_the_interval_of_95_percent() -> None:
    found = everything()
    curve = one(found, "local_rank", "local_rank").panels[0].curves[0]
    np.testing.assert_array_equal(curve.y, found["local_rank"].values[:, 0, 0])
    assert curve.half is not None
    np.testing.assert_allclose(curve.half, 1.96 * found["local_rank_se"].values[:, 0, 0])
    np.testing.assert_array_equal(curve.x, [0, 1, 10, 100])


def test_bits_are_nats_over_ln_2_and_ranks_stay() -> None:
    found = everything()
    nats, bits = (one(found, "input_information", units=units) for units in ("nats", "bits"))
    np.testing.assert_allclose(bits.panels[0].curves[0].y, nats.panels[0].curves[0].y / np.log(2))
    assert "bit" in bits.panels[0].y.label
    assert bits.panels[0].levels[0].y == pytest.approx(nats.panels[0].levels[0].y / np.log(2))
    ranks = [one(found, "local_rank", units=units).panels[0].curves[0].y.tolist() for units in ("nats", "bits")]
    assert ranks[0] == ranks[1]


def test_a_saturated_value_is_hollow_and_stays_in_the_line() -> None:
    found = synthetic.marked(everything(), "mi_readout_xt", (2, 0, 0), Status.SATURATED)
    picture = one(found, "input_information", "mi_readout_xt")
    (hollow,) = artists(picture, "mark o")
    assert hollow.get_markerfacecolor() == "white"  # type: ignore[attr-defined]
    line = artists(picture, "line")[0]
    assert np.isfinite(line.get_ydata()).all()  # type: ignore[attr-defined]
    assert "hollow: saturated" in legends(picture)


def test_an_unresolved_value_breaks_the_line_and_shows_its_bracket() -> None:
    found = synthetic.marked(everything(), "mi_network_xt", (2, 0, 0), Status.UNRESOLVED)
    picture = one(found, "input_information", "mi_network_xt")
    curve = picture.panels[0].curves[0]
    assert curve.ends is not None
    np.testing.assert_array_equal(np.isfinite(curve.ends[0]), [False, False, True, False])
    assert len(artists(picture, "mark D")) == 1
    line = artists(picture, "line")[0]
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), [False, False, True, False])  # type: ignore[attr-defined]
    assert "unresolved, its bracket" in legends(picture)


@pytest.mark.parametrize(("status", "said"), [(Status.DEAD, "gap: dead"), (Status.NONFINITE, "gap: not finite")])
def test_a_value_that_is_none_leaves_a_gap_that_the_legend_names(status: Status, said: str) -> None:
    found = synthetic.marked(everything(), "local_rank", (1, 0, 0), status)
    picture = one(found, "local_rank", "local_rank")
    assert np.isnan(picture.panels[0].curves[0].y[1])
    assert said in legends(picture)


def legends(picture: Picture) -> list[str]:
    return [text.get_text() for legend in drawn(picture).legends for text in legend.get_texts()]


def test_caps_are_drawn_where_they_are_below_the_ceiling() -> None:
    found = everything()
    found["mi_readout_cap"].values[...] = 1.5
    picture = one(found, "input_information", "mi_readout_xt")
    assert len(picture.panels[0].caps) == len(synthetic.LAYERS)
    found["mi_readout_cap"].values[...] = 1e9
    assert not one(found, "input_information", "mi_readout_xt").panels[0].caps


def test_epoch_0_is_on_the_logarithmic_axis() -> None:
    assert one(everything(), "local_rank").x.scale == "symlog"
    assert one(everything((1, 10, 100)), "local_rank").x.scale == "log"
    assert one(everything((0, 1, 2)), "local_rank").x.scale == "linear"
    assert log_ticks(0, 1000, 1) == [0, 1, 10, 100, 1000]
    assert log_ticks(20, 90, 20) == [20, 90]


def test_the_information_plane_has_epochs_as_colours_and_layers_as_markers() -> None:
    picture = one(everything(), "information_plane")
    assert isinstance(picture.colours, Scale)
    np.testing.assert_array_equal(picture.panels[0].curves[0].tint, [0, 1, 10, 100])
    assert picture.marks == synthetic.LAYERS
    assert len({curve.mark for curve in picture.panels[0].curves}) == len(synthetic.LAYERS)


def test_information_against_noise_needs_two_noises() -> None:
    with pytest.raises(NothingMatched, match="no numbers for such a figure"):
        pictures({"run": synthetic.result(measures=("readout",))}, kinds=("information_curve",))
    assert one(everything(), "information_curve").panels[0].curves[0].x.tolist() == [0.1, 0.3]


def test_histograms_are_densities() -> None:
    curve = one(everything(), "distances").panels[0].curves[0]
    assert (curve.y * np.diff(curve.x)).sum() == pytest.approx(1)


def test_slopes_and_ranks_of_different_places_are_not_compared() -> None:
    found = synthetic.result(measures=("rank", "slope"))
    with pytest.raises(NothingMatched):
        pictures({"run": found}, kinds=("information_slope",))


def test_a_metric_is_coloured_by_the_rank_of_each_layer() -> None:
    picture = one(everything(), "metric", "metric_loss")
    tint = picture.panels[0].curves[0].tint
    assert tint is not None
    assert (tint.min(), tint.max()) == (0, 1)
    assert re.fullmatch(r"fc1: [0-9.]+ to [0-9.]+", picture.panels[0].title)


def test_results_side_by_side_have_a_style_of_line_each() -> None:
    picture = pictures({"a": everything(), "b": everything((0, 1, 7))}, kinds=("local_rank",))[0]
    assert {curve.run for curve in picture.panels[0].curves} == {0, 1}
    assert {"a", "b"} <= set(legends(picture))


def test_a_band_is_mean_and_standard_deviation_over_results() -> None:
    first, second = everything(), everything()
    second["local_rank"].values[...] += 1.0
    picture = pictures({"a": first, "b": second}, kinds=("local_rank",), band=True)[0]
    curve = picture.panels[0].curves[0]
    np.testing.assert_allclose(curve.y, first["local_rank"].values[:, 0, 0] + 0.5)
    np.testing.assert_allclose(curve.half, np.sqrt(0.5))
    assert picture.band == "band: ±1 std over 2 runs"


def test_a_band_keeps_what_all_results_have() -> None:
    other = everything((0, 10), seed=1)
    picture = pictures({"a": everything(), "b": other}, kinds=("local_rank",), band=True)[0]
    assert picture.panels[0].curves[0].x.tolist() == [0, 10]
    with pytest.raises(NothingMatched, match="no checkpoint in common"):
        pictures({"a": everything((0, 1)), "b": everything((2, 3))}, band=True)


def test_the_status_of_a_mean_is_the_worst() -> None:
    marked = synthetic.marked(everything(), "local_rank", (1, 0, 0), Status.SATURATED)
    curve = pictures({"a": everything(), "b": marked}, kinds=("local_rank",), band=True)[0].panels[0].curves[0]
    assert curve.status is not None
    assert curve.status.tolist() == [0, Status.SATURATED, 0, 0]


def test_a_mistyped_kind_or_variable_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"--kind 'rank-curv': there is no such figure; expected rank_curve"):
        pictures({"run": everything()}, kinds=("rank-curv",))
    with pytest.raises(NothingMatched, match=r"it has .*local_rank"):
        pictures({"run": everything()}, variables=("local_rnk",))


def test_more_results_than_lines_ask_for_a_band() -> None:
    with pytest.raises(UsageError, match="--band draws mean and spread"):
        pictures({str(k): everything() for k in range(7)})


def test_results_along_different_axes_are_not_drawn_together() -> None:
    other = everything(settings={"axis": "step"})
    with pytest.raises(UsageError, match="different axes"):
        pictures({"a": everything(), "b": other})


def test_many_layers_run_from_dark_to_light_and_a_legend_names_some() -> None:
    names = [f"blocks.{k}" for k in range(30)]
    found = synthetic.result(measures=("rank",), names=names)
    picture = one(found, "local_rank")
    assert isinstance(picture.colours, Names)
    said = legends(picture)
    assert said[0] == "blocks.0"
    assert len(said) <= 16
    assert "layers shown" in one(found, "rank_curve").notes[0]


def test_names_from_files_are_text_and_no_mathematics() -> None:
    names = ["_hidden", "$\\frac$", "a\nb", "x" * 300]
    picture = one(synthetic.result(measures=("rank",), names=names), "local_rank")
    encoded(picture, "png")
    assert {"_hidden", "$\\frac$", "a\\nb"} <= set(legends(picture))
    assert max(map(len, legends(picture))) <= 30


def test_a_text_is_shortened_in_its_middle() -> None:
    assert fitted("vit.layers.0.attention.q_proj", 15) == "vit.…tion.q_proj"[:4] + "…" + "tention.q_proj"[-10:]
    assert len(fitted("x" * 100, 20)) == 20


@pytest.mark.slow
@pytest.mark.parametrize("values", [(1e308, 5e-324), (np.nan, np.inf)])
def test_numbers_of_any_size_are_drawn_without_a_warning(values: tuple[float, float]) -> None:
    found = everything()
    for variable in found.variables.values():
        if variable.values.dtype.kind == "f":
            variable.values[1], variable.values[2] = values
    for picture in pictures({"run": found}):
        encoded(picture, "png")


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [(-5, -1, 0, 3), (0, 1e-300, 1, 1e300), (7, 7, 7, 7)])
def test_epochs_of_any_size_have_an_axis(epochs: tuple[float, ...]) -> None:
    found = everything()
    found["epoch"].values[:] = epochs
    for kind in ("local_rank", "information_plane", "rank_curve", "metric"):
        encoded(one(found, kind), "png")


def test_panels_that_share_an_axis_show_all_of_it() -> None:
    found = everything()
    found["local_rank"].values[..., 1] += 100
    figure = drawn(one(found, "local_rank", "local_rank"))
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert figure.axes[0].get_ylim()[1] > 100


def test_axes_of_somebody_else_are_drawn_on() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert plot(everything(), "local_rank", "local_rank", axes=axes) is figure
    assert axes[1].get_title(loc="left") == "ε 0.1"
    with pytest.raises(UsageError, match="2 panels, and 1 axes were given"):
        plot(everything(), "local_rank", "local_rank", axes=axes[0])


def test_a_sweep_has_its_own_axis() -> None:
    checkpoints = [synthetic.checkpoint(k, value=k / 10, epoch=None) for k in range(3)]
    picture = one(synthetic.result(checkpoints, ("rank", "fit"), settings={"axis": "weight decay"}), "metric")
    assert picture.x.label == "weight decay"
    np.testing.assert_allclose(picture.panels[0].curves[0].x, [0, 0.1, 0.2])


def test_checkpoints_without_numbers_are_named() -> None:
    checkpoints = [synthetic.checkpoint(k, name=name, epoch=None, step=None) for k, name in enumerate("abc")]
    picture = one(synthetic.result(checkpoints, ("rank",)), "local_rank")
    assert picture.x.names == ("a", "b", "c")
    assert [text.get_text() for text in drawn(picture).axes[-1].get_xticklabels()] == ["a", "b", "c"]


def test_letters_are_legible_in_one_column_of_a_paper() -> None:
    figure = drawn(one(everything(), "input_information"))
    assert figure.get_size_inches()[0] * 25.4 == pytest.approx(85)
    texts = [text for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    assert min(float(text.get_fontsize()) for text in texts) >= 6.0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_the_same_result_gives_the_same_bytes_in_another_process(form: str) -> None:
    code = (
        f"import sys, hashlib; sys.path.insert(0, {TESTS!r}); from support import synthetic\n"
        "from ibscan.views.figures import pictures; from ibscan.views.figures.draw import encoded\n"
        "found = pictures({'run': synthetic.result()}, kinds=('local_rank', 'rank_curve'))\n"
        f"print([hashlib.sha256(encoded(one, {form!r})).hexdigest() for one in found])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, **seed}).stdout
        for seed in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert runs[0] == runs[1]
