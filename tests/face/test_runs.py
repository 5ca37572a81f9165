"""Several runs side by side: a dimension `run` over what they share, and conversions that align the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from support import synthetic

import ibscan
from ibscan.core.estimate import Status
from ibscan.core.text import told_apart
from ibscan.errors import NothingMatched, UsageError
from ibscan.face.run import Run
from ibscan.face.runs import Runs
from ibscan.results.store import write


def runs(*epochs: tuple[int, ...], **options: Any) -> Runs:
    """Return runs whose numbers differ by one from each to the next."""
    made = {}
    for place, own in enumerate(epochs):
        result = synthetic.result(own, **options)
        result["local_rank"].values[...] += place
        made[f"seed{place}"] = Run(result, Path(f"seed{place}.h5"))
    return Runs(made)


def test_an_array_of_several_runs_has_them_for_its_first_dimension() -> None:
    found = runs((0, 1, 10), (0, 1, 10))
    array = found["local_rank"]
    assert array.dims == ("run", "checkpoint", "layer", "eps")
    for place, one in enumerate(found.runs.values()):
        np.testing.assert_array_equal(array.values[place], one["local_rank"].values)
    picked = array.sel(run="seed1", epoch=10, layer="fc2", eps=0.1)
    assert picked.values == found.runs["seed1"]["local_rank"].sel(epoch=10, layer="fc2", eps=0.1).values


@pytest.mark.parametrize(
    ("epochs", "said"), [(((0, 1), (0, 2)), "other values of epoch"), (((0, 1), (0, 1, 2)), "other values of epoch")]
)
def test_arrays_that_do_not_match_are_refused_with_the_way_out(epochs: Any, said: str) -> None:
    with pytest.raises(UsageError, match=rf"seed1 has {said} than seed0; to_xarray\(\) aligns"):
        runs(*epochs)["local_rank"]


def test_a_dataset_aligns_checkpoints_by_the_axis_and_fills_what_is_missing() -> None:
    found = runs((0, 1, 10), (0, 5, 10)).to_xarray()
    assert found["run"].values.tolist() == ["seed0", "seed1"]
    assert dict(found.sizes)["checkpoint"] == 4
    both = found["local_rank"].isel(checkpoint=[0, 3])
    np.testing.assert_allclose(both.sel(run="seed1") - both.sel(run="seed0"), 1.0)
    assert found["local_rank"].sel(run="seed0").isel(checkpoint=2).isnull().all()
    assert (found["local_rank_status"].sel(run="seed0").isel(checkpoint=2) == Status.NOT_MEASURED).all()
    assert found["local_rank_status"].dtype == np.int8
    assert found["epoch"].isel(checkpoint=2).sel(run="seed1") == 5
    assert found["layer"].values.tolist() == list(synthetic.LAYERS)
    assert found.attrs["model"] == "mlp:tanh"


def test_a_dataset_of_equal_series_is_its_runs_stacked() -> None:
    pair = runs((0, 1), (0, 1))
    found = pair.to_xarray()
    np.testing.assert_array_equal(found["local_rank"].values, pair["local_rank"].values)
    assert found["epoch"].dims == ("checkpoint",)


def test_checkpoints_that_share_a_place_are_refused() -> None:
    twice = [synthetic.checkpoint(0, name=name, sha=name * 64) for name in "ab"]
    with pytest.raises(UsageError, match="seed0: several checkpoints have the same epoch"):
        runs(twice, (0, 1)).to_xarray()  # type: ignore[arg-type]


def test_a_data_frame_has_the_rows_of_every_run_and_its_name_in_the_last_column() -> None:
    pair = runs((0, 1), (0, 1, 2))
    found = pair.to_dataframe()
    assert found.columns[-1] == "run"
    for name, one in pair.runs.items():
        own = found[found["run"] == name].drop(columns="run").reset_index(drop=True)
        pandas.testing.assert_frame_equal(own, one.to_dataframe(), check_dtype=False)


def test_runs_are_drawn_side_by_side_or_as_mean_and_spread() -> None:
    pair = runs((0, 1, 10), (0, 1, 10))
    assert pair.plot("effective_rank").axes
    assert pair.plot("effective_rank", band=True).axes
    with pytest.raises(NothingMatched, match="variable='local_rnk'"):
        pair.plot("local_rnk")


def test_files_are_opened_side_by_side_and_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(synthetic.result((0, 1)), tmp_path / name / "run.h5")
    found = ibscan.open([tmp_path / "a" / "run.h5", str(tmp_path / "b" / "run.h5")])
    assert list(found.runs) == ["a/run", "b/run"]
    assert list(found) == list(found.runs["a/run"])
    assert len(repr(found).splitlines()) == 3
    assert found.runs["a/run"].output == tmp_path / "a" / "run.h5"
    with pytest.raises(UsageError, match="stands twice"):
        ibscan.open([tmp_path / "a" / "run.h5"] * 2)
    with pytest.raises(UsageError, match="expected the path of a result, or several"):
        ibscan.open([])


def test_names_are_as_long_as_they_need_to_be() -> None:
    assert told_apart([Path("x/seed0.h5"), Path("x/seed1.h5")]) == ["seed0", "seed1"]
    assert told_apart([Path("x/y/run.h5"), Path("z/y/run.h5"), Path("run.h5")])[:2] == ["x/y/run", "z/y/run"]
    assert told_apart([Path("only.h5")]) == ["only"]
    assert len(repr(runs(*[(0, 1)] * 20)).splitlines()) <= 10
