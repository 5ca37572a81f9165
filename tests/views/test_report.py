"""The report: what is on the page, that names from files stay text, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from support import synthetic
from support.pages import CHROMIUM, data_of, driven, elements, printed_pages
from views.test_figures import everything

from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.results.export import rows
from ibscan.views.figures import pictures
from ibscan.views.figures.artists import Look
from ibscan.views.figures.picture import Picture, Scale
from ibscan.views.figures.style import COLOUR_MAP, MAP_END, named_style
from ibscan.views.report.drawing import drawing
from ibscan.views.report.page import Explained, Setting, page
from ibscan.views.report.palette import MAP, colour, fractions
from ibscan.views.tables import tables

SCRIPT = "</script><script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"
HOSTILE = (SCRIPT, IMAGE, '"><a href="https://example.org">%{x}</a>', "out")
NOTHING = Explained({}, (), (), "0")


def hostile() -> Result:
    """A result whose names would be markup: of layers, a metric, the model, a checkpoint and a setting."""
    found = everything(names=HOSTILE, model=IMAGE, settings={IMAGE: SCRIPT}, command=SCRIPT)
    found["checkpoint_name"].values[1] = SCRIPT
    metric = found.variables["metric_loss"]
    return replace(found, variables={**found.variables, f"metric_{SCRIPT}": replace(metric, attrs={"units": IMAGE})})


def bad(found: Result) -> Result:
    """A result with every status that has a mark, an open bracket, and a gap."""
    for row, status in enumerate((Status.SATURATED, Status.UNRESOLVED, Status.DEAD)):
        synthetic.marked(found, "mi_network_xt", (row, 0, 0), status)
    return found


def curves(content: str, key: str, title: str) -> dict[str, dict[str, Any]]:
    """Return the curves of a panel of a picture by their layers."""
    picture = next(one for one in data_of(content)["pictures"] if one["id"] == key)
    panel = next(one for one in picture["panels"] if one["title"] == title)
    return {curve["layer"]: curve for curve in panel["curves"]}


def test_a_page_has_every_part_and_every_picture() -> None:
    found = everything()
    content = page({"run": found}, NOTHING)
    read = elements(content)
    assert content.startswith("<!DOCTYPE html>")
    sections = [attrs["id"] for attrs in read.named("section")]
    assert sections[:2] == ["summary", "figures"]
    assert sections[-5:] == ["tables", "measured", "statuses", "not", "variables"]
    ids = [attrs.get("id") for _, attrs in read.found if "id" in attrs]
    assert len(set(ids)) == len(ids)
    links = [str(attrs["href"]) for attrs in read.named("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    names = [picture.name for picture in pictures({"run": found})]
    assert [one["id"] for one in data_of(content)["pictures"]] == names
    assert len(read.named("figure")) == len(names)


def test_a_page_is_small_and_loads_nothing() -> None:
    content = page({"run": everything()}, NOTHING)
    assert len(content.encode()) < 8_000_000
    read = elements(content)
    for tag, attrs in read.found:
        assert "src" not in attrs, (tag, attrs)
        assert not str(attrs.get("href", "")).startswith(("http", "//")), (tag, attrs)
    styles = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_the_same_results_make_the_same_page() -> None:
    assert page({"run": everything()}, NOTHING) == page({"run": everything()}, NOTHING)


def test_only_the_scripts_of_the_page_may_run() -> None:
    content = page({"run": hostile()}, NOTHING)
    policy = str(elements(content).named("meta")[1]["content"])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split("; ")[1]
    scripts = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_names_from_files_are_text() -> None:
    found = hostile()
    settings = {SCRIPT: (Setting(SCRIPT, IMAGE, SCRIPT, IMAGE),)}
    said = Explained(settings, ((SCRIPT, (("meaning", IMAGE),)),), ((IMAGE, (SCRIPT,)),), SCRIPT)
    content = page({SCRIPT: found, IMAGE: found}, said, notes=(SCRIPT,))
    read = elements(content)
    assert len(read.named("script")) == 3
    assert not read.named("img")
    assert not [attrs for _, attrs in read.found if any(name.startswith("on") for name in attrs)]
    text = "".join(read.text)
    for name in (SCRIPT, IMAGE, HOSTILE[2]):
        assert name in text
    data = data_of(content)
    assert data["layers"] == list(HOSTILE)
    assert data["runs"] == [SCRIPT, IMAGE]
    assert any(one["id"] == f"metric-metric_{SCRIPT}" for one in data["pictures"])


def test_figures_hold_the_numbers_of_an_export() -> None:
    found = everything()
    shown = curves(page({"run": found}, NOTHING), "local_rank", "ε 0.1")
    exported = [row for row in rows(found) if row["variable"] == "local_rank" and row["parameter_value"] == 0.1]
    for layer, curve in shown.items():
        own = [row for row in exported if row["layer"] == layer]
        assert curve["y"] == [row["result"] for row in own]
        assert curve["x"] == [row["epoch"] for row in own]
        np.testing.assert_allclose(curve["half"], [1.96 * row["se"] for row in own], rtol=1e-15)


def test_statuses_brackets_and_gaps_are_told() -> None:
    found = bad(everything())
    curve = curves(page({"run": found}, NOTHING), "input_information", "network I(X; T), noise 0.1")["fc1"]
    assert curve["status"] == [2, 7, 3, 0]
    assert curve["y"][2] is None
    assert curve["low"] == [None, found["mi_network_xt_lower"].values[1, 0, 0], None, None]


def test_bits_are_nats_over_ln_2() -> None:
    found = everything()
    title = "read-out I(X; T+Z), noise 0.1"
    nats, bits = (curves(page({"run": found}, NOTHING, units=u), "input_information", title) for u in ("nats", "bits"))
    np.testing.assert_allclose(np.array(bits["fc1"]["y"]) * np.log(2), nats["fc1"]["y"])


def test_histograms_have_a_frame_for_every_checkpoint_and_the_plane_a_place_for_every_point() -> None:
    found = everything()
    data = data_of(page({"run": found}, NOTHING))
    distances, plane = (
        next(p for p in data["pictures"] if p["id"] == kind) for kind in ("distances", "information_plane")
    )
    for panel in distances["panels"]:
        assert [frame["place"] for frame in panel["frames"]] == [0, 1, 10, 100]
    assert distances["places"] == plane["places"] == [[0, "0"], [1, "1"], [10, "10"], [100, "100"]]
    assert all(curve["at"] == [0, 1, 10, 100] for panel in plane["panels"] for curve in panel["curves"])
    assert plane["panels"][0]["curves"][0]["told"][0]["name"] == "I(X; T)"


def test_tables_are_those_of_show_full() -> None:
    found = everything()
    content = page({"run": found}, NOTHING)
    titles = {str(sheet.title) for sheet in tables(found, full=True, width=104) if hasattr(sheet, "title")}
    text = "".join(elements(content).text)
    assert len(titles) > 5
    for title in titles:
        assert title in text
    assert f"{found['nc1'].values[-1, 0]:.3f}" in text


def test_several_results_are_side_by_side_or_pooled() -> None:
    runs = {"a": everything(), "b": everything(epochs=(0, 1, 10, 50))}
    data = data_of(page(runs, NOTHING))
    assert data["runs"] == ["a", "b"]
    distances = [one for one in data["pictures"] if one["id"].startswith("distances")]
    assert [curve["run"] for one in distances for curve in one["panels"][0]["frames"][0]["curves"]] == [0, 0, 1, 1]
    pooled = data_of(page(runs, NOTHING, band=True))
    assert pooled["band"] == "±1 std over 2 runs"


def test_a_result_without_figures_has_a_page() -> None:
    found = synthetic.result(measures=("fit",))
    read = elements(page({"run": found}, NOTHING))
    assert not read.named("figure")
    assert "The result holds no local rank" in "".join(read.text)


def test_colours_are_those_of_matplotlib() -> None:
    even = mpl.colormaps[COLOUR_MAP](np.linspace(0.0, MAP_END, len(MAP)))
    assert [to_hex(one) for one in even] == list(MAP)
    for found in (everything(), everything(epochs=(1, 10, 100)), everything(epochs=(3, 4, 5))):
        for picture in pictures({"run": found}, kinds=("rank_curve", "information_plane", "metric")):
            look = Look(named_style("print"), picture)
            assert isinstance(picture.colours, Scale)
            values = np.linspace(picture.colours.low, picture.colours.high, 7)
            np.testing.assert_allclose(fractions(picture, values), np.asarray(look.norm(values)), atol=1e-12)
            if picture.kind == "rank_curve":
                shades = {curve.shade for panel in picture.panels for curve in panel.curves}
                assert max(far(colour(picture, shade), to_hex(look.colour(shade))) for shade in shades) <= 4


def far(one: str, other: str) -> int:
    return max(abs(int(one[k : k + 2], 16) - int(other[k : k + 2], 16)) for k in (1, 3, 5))


def test_numbers_that_json_lacks_are_missing() -> None:
    found = everything()
    found["local_rank"].values[0, 0, 0] = np.nan
    picture: Picture = next(iter(pictures({"run": found}, kinds=("local_rank",))))
    curve = drawing(picture)["panels"][0]["curves"][0]
    assert curve["y"][0] is None


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
Seen: TypeAlias = tuple[dict[str, Any], list[str], int]
LOOK = """
  const of = (kind) => document.querySelector(`#kind-${kind} .canvas`);
  const points = () => of("information_plane").data.filter((t) => t.customdata).map((t) => t.customdata);
  const counted = () => points().map((shown) => shown.filter(Boolean).length);
  const look = () => ({ plane: counted(), distances: of("distances").data.map((t) => [...t.y]),
    said: [...document.querySelectorAll("output")].map((o) => o.textContent) });
  const drawnOnes = document.querySelectorAll(".canvas.js-plotly-plot").length;
  const names = of("local_rank").data.map((t) => t.name);
  const hover = of("local_rank").data.flatMap((t) => t.hovertext || []);
  const seen = document.querySelectorAll("figure a, figure img, figure script").length;
  const legend = [...of("local_rank").querySelectorAll(".legendtext")].map((t) => t.textContent);
  const before = look(), slider = document.querySelector("input[type=range]");
  slider.focus();
  slider.stepDown();
  slider.stepDown();
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await drawn();
  const after = look();
  document.querySelector("[data-switch=layers]").click();
  await drawn();
  const fewer = of("local_rank").data.map((t) => t.name);
  window.dispatchEvent(new Event("beforeprint"));
  const widths = [...document.querySelectorAll(".canvas .main-svg:first-child")].map((s) => s.getAttribute("width"));
  return { drawnOnes, names, hover, seen, legend, before, after, fewer, widths, alerts: window.alerts || 0,
    loaded: performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).map((e) => e.name) };
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What a browser shows of a page with hostile names, its console, and how many figures the page has."""
    content = page({SCRIPT: bad(hostile())}, NOTHING)
    armed = content.replace("<body>", "<body><script>window.alert = () => { window.alerts = 1; };</script>")
    found, console = driven(armed, LOOK, tmp_path_factory.mktemp("browser"))
    assert isinstance(found, dict), found
    return found, console, len(elements(content).named("figure"))


@pytest.mark.slow
@needs_chromium
def test_every_figure_is_drawn_without_an_error(seen: Seen) -> None:
    found, console, figures = seen
    assert console == []
    assert found["drawnOnes"] == figures
    assert found["loaded"] == []


@pytest.mark.slow
@needs_chromium
def test_the_slider_moves_the_data(seen: Seen) -> None:
    found, _, _ = seen
    assert set(found["before"]["said"]) == {"100"}
    assert set(found["after"]["said"]) == {"1"}
    assert set(found["before"]["plane"]) == {4}
    assert set(found["after"]["plane"]) == {2}
    assert found["before"]["distances"] != found["after"]["distances"]


@pytest.mark.slow
@needs_chromium
def test_a_switch_hides_a_layer_in_every_figure(seen: Seen) -> None:
    found, _, _ = seen
    assert len(found["fewer"]) < len(found["names"])
    assert not any("alert(1)&lt;/script" in name for name in found["fewer"])


@pytest.mark.slow
@needs_chromium
def test_names_from_files_are_shown_as_they_are(seen: Seen) -> None:
    found, _, _ = seen
    assert (found["alerts"], found["seen"]) == (0, 0)
    assert IMAGE in found["legend"]
    assert any("± " in text and "(95 % interval)" in text and "epoch 0" in text for text in found["hover"])


@pytest.mark.slow
@needs_chromium
def test_figures_fit_on_paper(seen: Seen) -> None:
    found, _, figures = seen
    assert found["widths"] == ["680"] * figures


@pytest.mark.slow
@needs_chromium
def test_a_page_prints(tmp_path: Path) -> None:
    count, console = printed_pages(page({"run": everything()}, NOTHING), tmp_path)
    assert count > 5
    assert console == []
