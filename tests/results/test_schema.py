from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest

from ibscan.core.estimate import Estimate, Status
from ibscan.core.quantity import Quantity
from ibscan.results.schema import build


def test_coordinates_are_those_of_the_interface(synthetic: ModuleType) -> None:
    found = synthetic.result([synthetic.checkpoint(3, value=0.5), synthetic.checkpoint(4, epoch=None, step=None)])
    assert found["checkpoint"].values.tolist() == [0, 1]
    np.testing.assert_array_equal(found["epoch"].values, [3.0, np.nan])
    assert found["step"].values.tolist() == [300, -1]
    np.testing.assert_array_equal(found["value"].values, [0.5, np.nan])
    assert found["checkpoint_name"].values.tolist() == ["epoch-3.safetensors", "epoch-4.safetensors"]
    assert found["layer"].values.tolist() == ["fc1", "fc2", "fc10", "out"]
    assert found["layer_type"].values.tolist() == ["Linear"] * 4
    assert found["layer_width"].values.tolist() == [10, 11, 12, 13]
    assert found["eps"].values.tolist() == [0.01, 0.1]  # ascending, however they were typed
    assert found["component"].values.tolist() == [1, 2, 3]
    assert found["distance_bin"].values.tolist() == [0, 1, 2, 3, 4]
    assert found["binning"].values.tolist() == ["30 bins"]


def test_every_measured_variable_says_what_it_is(synthetic: ModuleType) -> None:
    found = synthetic.result()
    for name, variable in found.variables.items():
        if Estimate.field_of(name) == "status":
            assert variable.values.dtype == np.int8
            assert variable.attrs["flag_values"].tolist() == [int(status) for status in Status]
            assert variable.attrs["flag_meanings"].split() == [status.name.lower() for status in Status]
            continue
        assert {"units", "long_name", "symbol", "_FillValue"} <= set(variable.attrs), name
        if not name.startswith("metric_"):
            assert variable.attrs["at"] == ("pre" if "rank" in name or name == "singular_value" else "post")
            assert variable.attrs["rows"] == 64
        status = found.status(name)
        if (name.startswith("distance_") and not name.endswith("_mean")) or name == "mi_binned_cells":
            assert status is None
        else:
            assert status is not None
            assert status.shape == variable.values.shape


def test_companions_point_at_the_shared_status(synthetic: ModuleType) -> None:
    found = synthetic.result()
    listed = found["local_rank"].attrs["ancillary_variables"].split()
    assert listed == ["local_rank_se", "local_rank_min", "local_rank_max", "local_rank_status"]
    assert found["local_rank_se"].attrs["ancillary_variables"] == "local_rank_status"
    assert found["singular_value"].attrs["shown"] == 0
    assert found["local_rank"].attrs["shown"] == 1


def test_counts_are_integers_with_their_own_fill(synthetic: ModuleType) -> None:
    found = synthetic.result()
    assert found["distance_within"].values.dtype == np.int64
    assert found["distance_within"].attrs["_FillValue"] == -1
    assert found["distance_edge_low"].values.dtype == np.float64
    assert np.isnan(found["distance_edge_low"].attrs["_FillValue"])


def test_measures_with_other_values_share_one_dimension(synthetic: ModuleType) -> None:
    wide = synthetic.Fake("network", synthetic.NETWORK, {"noise": (0.5, 0.1)})
    found = synthetic.result(measures=["readout", wide])
    assert found["noise"].values.tolist() == [0.1, 0.5]
    status = found.status("mi_readout_xt")
    assert status is not None
    assert (status[..., 1] == Status.NOT_MEASURED).all()
    assert np.isnan(found["mi_readout_xt_se"].values[..., 1]).all()
    assert (found.status("mi_network_xt") == Status.OK).all()
    alone = synthetic.result(measures=[wide])
    np.testing.assert_array_equal(found["mi_network_xt"].values, alone["mi_network_xt"].values)


def test_thresholds_are_floats_however_they_were_typed(synthetic: ModuleType) -> None:
    found = synthetic.result([0], [synthetic.Fake("readout", synthetic.READOUT, {"noise": (2, 1)})])
    assert found["noise"].values.dtype == np.float64
    assert found["noise"].values.tolist() == [1.0, 2.0]


def test_metrics_come_from_metadata(synthetic: ModuleType) -> None:
    odd = {"ibscan.metric.loss": "nan", "ibscan.metric.word": "good", "ibscan.metric.loss_status": "1"}
    found = synthetic.result([0, synthetic.checkpoint(1, metadata=odd), synthetic.checkpoint(2, metadata={})])
    np.testing.assert_array_equal(found["metric_loss"].values, [1.0, np.nan, np.nan])
    assert found["metric_loss_status"].values.tolist() == [Status.OK, Status.NONFINITE, Status.NOT_MEASURED]
    assert "metric_top_1" in found
    assert "metric_word" not in found
    assert "metric_loss_status_status" not in found


def test_root_attributes_are_plain(synthetic: ModuleType) -> None:
    found = synthetic.result(extra=None, more={"a": [1]}, flag=np.bool_(True), number=np.float32(0.5))
    assert found.attrs["format"] == "ibscan"
    assert found.attrs["format_version"] == 1
    assert found.attrs["complete"] == 1
    assert type(found.attrs["complete"]) is int
    assert json.loads(found.attrs["more"]) == {"a": [1]}
    assert "extra" not in found.attrs
    assert found.settings["dtype"] == "float64"


def test_a_quantity_may_use_fewer_rows_than_its_measure(synthetic: ModuleType) -> None:
    quantity = Quantity("q", "q", "1", "q", limit="few")
    status = np.zeros((1, 1), dtype=np.int8)
    measure = synthetic.Fake("m", (quantity,))
    object.__setattr__(measure, "few", 5)
    outcome = (measure, {"q": Estimate(np.ones((1, 1)), status)}, 64)
    found = build([synthetic.checkpoint(0)], synthetic.layers(["a"]), [outcome], attrs={})
    assert found["q"].attrs["rows"] == 5


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 1, 1), (1,)])
def test_another_shape_is_refused(synthetic: ModuleType, shape: tuple[int, ...]) -> None:
    quantity = Quantity("q", "q", "1", "q")
    outcome = (synthetic.Fake("m", (quantity,)), {"q": Estimate(np.ones(shape), None)}, 64)
    with pytest.raises(ValueError, match="q: shape"):
        build([synthetic.checkpoint(0)], synthetic.layers(["a"]), [outcome], attrs={})
