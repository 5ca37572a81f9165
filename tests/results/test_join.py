from __future__ import annotations

import json
from functools import reduce
from itertools import permutations
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic import Fake, checkpoint, layers

from ibscan.core.estimate import Estimate, Status
from ibscan.core.quantity import EPS, Quantity
from ibscan.core.result import Result
from ibscan.errors import UsageError
from ibscan.results.join import first_difference, join
from ibscan.results.schema import build


@pytest.mark.slow
def test_parts_make_the_whole_in_any_order_and_grouping(synthetic: ModuleType) -> None:
    whole = synthetic.result(range(4))
    parts = [synthetic.result([epoch]) for epoch in range(4)]
    for order in permutations(parts):
        synthetic.assert_equal(reduce(join, order), whole)
    synthetic.assert_equal(join(join(parts[0], parts[3]), join(parts[2], parts[1])), whole)


def test_verbs_make_the_whole(synthetic: ModuleType) -> None:
    whole = synthetic.result(range(3))
    parts = [synthetic.result(range(3), [measure]) for measure in synthetic.USUAL]
    for order in (parts, parts[::-1]):
        synthetic.assert_equal(reduce(join, order), whole, ordered=False)


def test_joining_a_result_with_itself_changes_nothing(synthetic: ModuleType) -> None:
    whole = synthetic.result(range(3), (*synthetic.USUAL, "network"))
    synthetic.assert_equal(join(whole, whole), whole)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_laws_on_disjoint_parts(synthetic: ModuleType, data: st.DataObject) -> None:
    cells = [(epoch, noise) for epoch in range(3) for noise in (0.05, 0.1, 0.5)]
    chosen = data.draw(st.lists(st.sampled_from(cells), min_size=3, max_size=6, unique=True))

    def part(epoch: int, noise: float) -> Any:
        measure = synthetic.Fake("readout", synthetic.READOUT, {"noise": (noise,)})
        names = synthetic.LAYERS[:2] if noise < 0.1 else synthetic.LAYERS[1:]
        return synthetic.result([epoch], [measure], names=names)

    parts = [part(*cell) for cell in chosen]
    left = reduce(join, parts)
    synthetic.assert_equal(reduce(lambda done, nxt: join(nxt, done), parts), left)
    synthetic.assert_equal(reduce(join, reversed(parts)), left)
    status = left.status("mi_readout_xt")
    for (epoch, noise), _ in zip(cells, cells, strict=True):
        if epoch in left["epoch"].values and noise in left["noise"].values:
            at = left["epoch"].values.tolist().index(epoch), slice(None), left["noise"].values.tolist().index(noise)
            assert (status[at] == Status.OK).any() == ((epoch, noise) in chosen)


def test_cells_in_neither_are_not_measured(synthetic: ModuleType) -> None:
    first = synthetic.result([0], ["binned", "cluster"], names=["fc1"])
    second = synthetic.result(
        [1], [synthetic.Fake("binned", synthetic.BINNED, {"binning": ("width 0.07",)})], names=["out"]
    )
    found = join(first, second)
    assert found["layer"].values.tolist() == ["fc1", "out"]
    assert found["binning"].values.tolist() == ["30 bins", "width 0.07"]
    expected = np.full((2, 2, 2), int(Status.NOT_MEASURED))
    expected[0, 0, 0] = expected[1, 1, 1] = Status.OK
    np.testing.assert_array_equal(found.status("mi_binned_xt"), expected)
    np.testing.assert_array_equal(np.isnan(found["mi_binned_xt"].values), expected != Status.OK)
    np.testing.assert_array_equal(found["mi_binned_cells"].values == -1, expected != Status.OK)
    assert (found["distance_within"].values[1] == -1).all()
    assert np.isnan(found["distance_edge_low"].values[1]).all()


def test_relative_noises_add_up(synthetic: ModuleType) -> None:
    parts = [
        synthetic.result(
            range(2),
            [synthetic.Fake("relative", synthetic.RELATIVE, {"rel_noise": (noise,)})],
            settings={"measures": {"mi_readout": {"rel_noise": [noise]}}},
        )
        for noise in (0.3, 0.1)
    ]
    whole = join(*parts)
    assert whole["rel_noise"].values.tolist() == [0.1, 0.3]
    assert whole.settings["measures"]["mi_readout"]["rel_noise"] == [0.1, 0.3]
    np.testing.assert_array_equal(whole["noise_absolute"].values[..., 1], parts[0]["noise_absolute"].values[..., 0])


def test_what_is_new_wins_with_its_companions(synthetic: ModuleType) -> None:
    old, new = synthetic.result(range(2)), synthetic.result(range(2))
    new["mi_readout_xt"].values[0, 0, 0] = 7.0
    new["mi_readout_xt_se"].values[0, 0, 0] = 0.7
    synthetic.marked(new, "mi_readout_xt", (0, 1, 0), Status.NONFINITE, np.nan)
    synthetic.marked(new, "mi_readout_xt", (1, 0, 0), Status.FAILED, np.nan)
    synthetic.marked(new, "mi_readout_xt", (1, 1, 0), Status.NOT_MEASURED, np.nan)
    found = join(old, new)
    assert found["mi_readout_xt"].values[0, 0, 0] == 7.0
    assert found["mi_readout_xt_se"].values[0, 0, 0] == 0.7
    assert found.status("mi_readout_xt")[0, 1, 0] == Status.NONFINITE
    # A cell that could not be measured this time does not take away the one that could.
    assert found.status("mi_readout_xt")[1, 0, 0] == Status.OK
    assert found["mi_readout_xt"].values[1, 0, 0] == old["mi_readout_xt"].values[1, 0, 0]
    assert found["mi_readout_xt"].values[1, 1, 0] == old["mi_readout_xt"].values[1, 1, 0]
    assert found.status("mi_readout_xt")[1, 1, 0] == Status.OK


def test_the_more_precise_of_two_values_may_be_kept(synthetic: ModuleType) -> None:
    old, new = synthetic.result(range(2)), synthetic.result(range(2))
    old["mi_readout_xt_se"].values[:], new["mi_readout_xt_se"].values[:] = 0.01, 0.02
    old["mi_readout_xt_se"].values[0, 0, 0] = 0.03
    new["mi_readout_xt"].values[:] += 1.0
    found = join(old, new, tolerance=0.05)["mi_readout_xt"].values
    assert found[0, 0, 0] == new["mi_readout_xt"].values[0, 0, 0]
    np.testing.assert_array_equal(found[1], old["mi_readout_xt"].values[1])
    np.testing.assert_array_equal(join(old, new)["mi_readout_xt"].values, new["mi_readout_xt"].values)


def test_another_architecture_or_other_weights_are_another_result(synthetic: ModuleType) -> None:
    old = synthetic.result(range(2))
    for name, other in (("layers", ["a"]), ("widths", [1, 2]), ("weights", "ema")):
        attrs = {**old.attrs, "settings": json.dumps({**old.settings, name: other})}
        difference = first_difference(old, attrs)
        assert difference is not None
        assert name in difference


def test_a_companion_of_the_old_value_goes_with_it(synthetic: ModuleType) -> None:
    old = synthetic.result(range(2), ["readout"])
    new = synthetic.result([0], ["readout"])
    attrs = {**new["mi_readout_ty"].attrs, "ancillary_variables": "mi_readout_ty_status"}
    variables = {name: v for name, v in new.variables.items() if name != "mi_readout_ty_se"}
    variables["mi_readout_ty"] = type(new["mi_readout_ty"])(
        new["mi_readout_ty"].dims, new["mi_readout_ty"].values, attrs
    )
    found = join(old, type(new)(new.coordinates, variables, new.attrs))
    assert np.isnan(found["mi_readout_ty_se"].values[0]).all()
    assert np.isfinite(found["mi_readout_ty_se"].values[1]).all()
    assert found["mi_readout_ty"].attrs["ancillary_variables"] == "mi_readout_ty_se mi_readout_ty_status"


@pytest.mark.parametrize("axis", ["value", "epoch", "step", "name"])
def test_checkpoints_are_ordered_by_what_all_of_them_have(synthetic: ModuleType, axis: str) -> None:
    fields = [{"value": [2.0, -1.0, 10.0][i], "epoch": float(i), "step": 3 - i, "name": f"c{i}.pt"} for i in range(3)]
    expected = {"value": [1, 0, 2], "epoch": [0, 1, 2], "step": [2, 1, 0], "name": [2, 0, 1]}[axis]
    for i, one in enumerate(fields):
        one["name"] = f"c{[9, 10, 2][i]}.pt"
    for unknown in ["value", "epoch", "step"][: ["value", "epoch", "step", "name"].index(axis)]:
        fields[1][unknown] = None
    parts = [synthetic.result([synthetic.checkpoint(i, **one)], ["fit"]) for i, one in enumerate(fields)]
    for order in permutations(parts):
        found = reduce(join, order)
        assert found["checkpoint_name"].values.tolist() == [fields[i]["name"] for i in expected]
        assert found["checkpoint"].values.tolist() == [0, 1, 2]


def test_a_checkpoint_that_changed_joins_by_force_alone(synthetic: ModuleType) -> None:
    old = synthetic.result(range(3))
    new = synthetic.result([synthetic.checkpoint(1, sha="f" * 64)], ["fit"])
    with pytest.raises(UsageError, match=r"epoch-1\.safetensors.*--force"):
        join(old, new)
    found = join(old, new, replace=True)
    assert found["checkpoint_sha256"].values.tolist()[1] == "f" * 64
    assert len(found["checkpoint"].values) == 3
    assert (found.status("local_rank")[1] == Status.NOT_MEASURED).all()


@pytest.mark.parametrize(
    "change",
    [{"model": "mlp:relu"}, {"probe_sha256": "q" * 64}, {"seed": 1}, {"settings": {"dtype": "float32"}}],
    ids=lambda change: next(iter(change)),
)
def test_results_of_another_identity_join_by_force_alone(synthetic: ModuleType, change: dict[str, object]) -> None:
    old, new = synthetic.result([0]), synthetic.result([1], **change)
    name = "dtype" if "settings" in change else next(iter(change))
    clause = first_difference(old, new.attrs)
    assert clause is not None
    assert clause.startswith(name)
    with pytest.raises(UsageError, match=f"{name}.*--force"):
        join(old, new)
    synthetic.assert_equal(join(old, new, replace=True), new)


def test_time_and_device_are_no_part_of_the_identity(synthetic: ModuleType) -> None:
    assert first_difference(synthetic.result([0]), synthetic.attributes(created_at="later", device="cuda")) is None


def test_a_measure_on_other_rows_joins_by_force_alone(synthetic: ModuleType) -> None:
    old, new = synthetic.result([0]), synthetic.result([0], ["readout"], rows=32)
    with pytest.raises(UsageError, match=r"mi_readout_\w+ cannot be joined: its rows is 64 there and 32 now"):
        join(old, new)
    found = join(old, new, replace=True)
    assert found["mi_readout_xt"].attrs["rows"] == 32
    assert found["local_rank"].attrs["rows"] == 64
    elsewhere = synthetic.result([1], [synthetic.Fake("readout", synthetic.READOUT, {"noise": (0.2,)}, at="pre")])
    with pytest.raises(UsageError, match="its at is 'post' there and 'pre' now"):
        join(old, elsewhere)
    replaced = join(old, elsewhere, replace=True)
    assert (replaced.status("mi_readout_xt")[0] == Status.NOT_MEASURED).all()
    assert replaced["noise"].values.tolist() == [0.2]


def test_attributes_are_the_newer_and_settings_are_united(synthetic: ModuleType) -> None:
    one = {"measures": {"a": {"noise": [0.1, 0.5], "samples": 64}, "b": {"x": 1}}}
    two = {"measures": {"a": {"noise": [0.02, 0.5], "samples": 32}}, "channels": ["readout"]}
    old = synthetic.result(
        [0], ["fit"], settings=one, created_at="then", skipped={"bad.pt": "was", "epoch-1.safetensors": "was"}
    )
    new = synthetic.result([1], ["fit"], settings=two, created_at="now", skipped={"bad.pt": "is"}, complete=False)
    found = join(old, new)
    assert found.attrs["created_at"] == "now"
    assert found.attrs["complete"] == 0
    assert json.loads(found.attrs["skipped"]) == {"bad.pt": "is"}
    assert found.settings["measures"] == {"a": {"noise": [0.02, 0.1, 0.5], "samples": 32}, "b": {"x": 1}}
    assert found.settings["channels"] == ["readout"]
    assert found.settings["widths"] == [12, 10, 7, 5, 4]


def test_layers_stand_in_the_architectures_order(synthetic: ModuleType) -> None:
    first, second = (synthetic.result([0], names=[name]) for name in ("out", "fc2"))
    assert join(first, second)["layer"].values.tolist() == ["fc2", "out"]
    strange = synthetic.result([0], names=["another"])
    assert join(strange, first)["layer"].values.tolist() == ["out", "another"]


def test_inputs_are_left_as_they_were(synthetic: ModuleType) -> None:
    old, new = synthetic.result([0]), synthetic.result([0, 1])
    join(old, new)["local_rank"].values[...] = 99
    synthetic.assert_equal(old, synthetic.result([0]))
    synthetic.assert_equal(new, synthetic.result([0, 1]))


def ranked(eps: float, most: list[float], least: list[float], relative: float = np.nan) -> Result:
    """Return a run on two layers: the largest count of local rank at `eps`, and the smallest rank of the weights."""
    keys = ("local_rank", "local_rank_rel")
    ranks = tuple(Quantity(key, "LR", "1", "count", (EPS,)) for key in keys)
    bound = (Quantity("rank_bound_weights", "min rank W", "1", "smallest rank"),)
    ok = np.zeros((1, 2), dtype=np.int8)
    counts = [np.array(most).reshape(1, 2, 1), np.full((1, 2, 1), relative)]
    found = {key: Estimate(one, ok[..., None], maximum=one) for key, one in zip(keys, counts, strict=True)}
    outcomes: list[Any] = [
        (Fake("rank", ranks, {"eps": (eps,)}), found, 9),
        (Fake("weights", bound), {"rank_bound_weights": Estimate(np.array([least]), ok)}, 9),
    ]
    return build([checkpoint(1)], layers(("fc1", "fc2")), outcomes, attrs={})


@pytest.mark.parametrize("run", [ranked(1e-9, [3.0, 3.0], [3.0, 2.0]), ranked(0.1, [1.0, 1.0], [3.0, 2.0], 2.5)])
def test_a_bound_that_a_count_of_its_run_exceeds_is_not_measured(run: Result) -> None:
    np.testing.assert_array_equal(run["rank_bound_weights"].values, [[3.0, np.nan]])
    assert run["rank_bound_weights_status"].values.tolist() == [[Status.OK, Status.NOT_MEASURED]]


def test_a_bound_of_one_run_that_a_count_of_another_exceeds_goes_and_others_stay() -> None:
    small, large = ranked(1e-9, [3.0, 2.0], [3.0, 2.0]), ranked(0.5, [2.0, 2.0], [2.0, 2.0])
    found = join(small, large)
    np.testing.assert_array_equal(found["rank_bound_weights"].values, [[np.nan, 2.0]])
    assert found["rank_bound_weights_status"].values.tolist() == [[Status.NOT_MEASURED, Status.OK]]
    np.testing.assert_array_equal(join(large, small)["rank_bound_weights"].values, [[3.0, 2.0]])
