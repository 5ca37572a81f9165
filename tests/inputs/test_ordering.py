"""Series are ordered with checkpoints without a number, at the start, with scaled numbers, and saved twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.layouts import lightning, prefixed, put_safetensors, put_torch, weights

from ibscan.core.records import Series
from ibscan.core.result import Variable
from ibscan.errors import InputError
from ibscan.inputs.folder.numbers import numbers_in_name
from ibscan.inputs.series.manifest import read_manifest
from ibscan.inputs.series.read import axis_values, read_series
from ibscan.results.axes import ordered
from ibscan.results.axes import strings as texts


def series_of(folder: Path, names: list[str]) -> Series:
    for shift, name in enumerate(names):
        put_torch(folder / name, weights(float(shift)))
    return read_series([folder])


def listed(series: Series) -> list[str]:
    return [one.name for one in series.checkpoints]


NAMED: list[tuple[str, float | None, int | None]] = [
    ("iter_1k.pt", None, 1000),
    ("iter_10K.pt", None, 10_000),
    ("step-2k.pt", None, 2000),
    ("step_1.5M.ckpt", None, 1_500_000),
    ("ckpt-3B", None, 3 * 10**9),
    ("0.5k.pt", None, 500),
    ("network-snapshot-200kimg.pt", None, 200_000),
    ("epoch_1k_step_2M.pt", 1000, 2_000_000),
    ("10ksteps.pt", None, 10_000),
    ("500steps.pt", None, 500),
    ("model_2000iterations.pt", None, 2000),
    ("epoch_3_500steps.pt", 3, None),
    ("epoch-3.safetensors", 3, None),
    ("step_10a.pt", None, None),
    ("step_10b.pt", None, None),
    ("iter_0.0005k.pt", None, None),
    ("iter_9999999999999999999B.pt", None, None),
    ("iter_1e999999999999k.pt", None, None),
]


@pytest.mark.parametrize(("name", "epoch", "step"), NAMED)
def test_thousands_and_millions_in_names_are_steps(name: str, epoch: float | None, step: int | None) -> None:
    found = numbers_in_name(name)
    assert (found.epoch, found.step) == (epoch, step)


ORDERS: list[tuple[list[str], str, list[str]]] = [
    (["init.pt", "epoch_1.pt", "epoch_2.pt"], "epoch", ["init.pt: is taken for the start, epoch 0"]),
    (["initial_weights.pt", "epoch_5.pt"], "epoch", ["start, epoch 0"]),
    (["untrained.pt", "step_10.pt", "step_2k.pt", "step_10k.pt"], "step", ["start, step 0"]),
    (["random-init/model.pt", "checkpoint-500/model.pt", "checkpoint-1k/model.pt"], "step", ["start, step 0"]),
    (["scratch.pt", "epoch=0-step=10.pt", "epoch=0-step=20.pt", "epoch=1-step=30.pt"], "step", ["start, step 0"]),
    (["init.pt", "a9.pt", "a10.pt", "b.pt", "final.pt"], "index", ["ordered by name, from init.pt to final.pt"]),
    (["a.pt", "b.pt"], "index", ["ordered by name, from a.pt to b.pt"]),
    (["only.pt"], "index", []),
    (["iter_500.pt", "iter_1k.pt", "iter_2k.pt", "iter_10k.pt"], "step", []),
    (["500.pt", "10k.pt", "1.5M.pt"], "step", []),
    (["ppo_500k.pt", "ppo_1M.pt", "ppo_2M.pt"], "step", []),
    (["gpt_124M_init.pt", "gpt_124M_step10.pt", "gpt_124M_step2k.pt"], "step", ["start, step 0"]),
    (["gpt_124M_a.pt", "gpt_124M_b.pt"], "index", ["ordered by name"]),
    (["gpt_124M.pt"], "index", []),
]


@pytest.mark.parametrize(("names", "axis", "said"), ORDERS, ids=[row[0][0] + row[0][-1] for row in ORDERS])
def test_without_numbers_names_give_the_order(names: list[str], axis: str, said: list[str], tmp_path: Path) -> None:
    for shift, name in reversed(list(enumerate(names))):
        put_torch(tmp_path / name, weights(float(shift)))
    series = read_series([tmp_path])
    assert listed(series) == names
    assert series.axis == axis
    assert len(series.notices) == len(said)
    assert all(words in notice for words, notice in zip(said, series.notices, strict=True))


def test_the_start_is_at_zero_unless_another_is(tmp_path: Path) -> None:
    series = series_of(tmp_path, ["init.pt", "epoch_1.pt", "random.pt"])
    assert [(one.epoch, one.step, one.step_source) for one in series.checkpoints] == [
        (0, None, "name"),
        (1, None, "name"),
    ]
    assert "random.pt: was left out: it says that it is the start, and init.pt has epoch 0" in series.notices[1]
    series = series_of(tmp_path, ["init.pt", "epoch_1.pt", "epoch_0.pt"])
    assert listed(series) == ["epoch_0.pt", "epoch_1.pt"]
    assert {notice.partition(":")[0] for notice in series.notices} == {"init.pt", "random.pt"}


def test_one_checkpoint_without_a_number_does_not_change_the_axis(tmp_path: Path) -> None:
    series = series_of(tmp_path, ["epoch_1.pt", "mlp.pt"])
    assert (series.axis, axis_values(series)) == ("epoch", [1])
    assert "mlp.pt: states no epoch" in series.notices[0]
    series = series_of(tmp_path, ["epoch_2.pt"])
    assert (series.axis, axis_values(series)) == ("epoch", [1, 2])
    assert "mlp.pt: states no epoch" in series.notices[0]
    # One that states a step is no epoch either.
    series = series_of(tmp_path, ["epoch_1.pt", "epoch_2.pt", "step_5.pt"])
    assert axis_values(series) == [1, 2]
    assert "mlp.pt, step_5.pt: states no epoch" in series.notices[0]
    (tmp_path / "ibscan.toml").write_text('[series]\naxis = "epoch"\n')
    series = read_series([tmp_path], manifest=read_manifest(tmp_path, trust=False))
    assert axis_values(series) == [1, 2]


def test_a_result_has_rows_in_the_order_of_the_series() -> None:
    names = ["a10.pt", "final.pt", "a9.pt", "init.pt"]
    none = torch.full((4,), float("nan")).numpy()
    columns = {"checkpoint_name": texts(names), "checkpoint_sha256": texts(names), "value": none, "epoch": none}
    variables = {name: Variable(("checkpoint",), values) for name, values in columns.items()}
    variables["step"] = Variable(("checkpoint",), torch.full((4,), -1).numpy())
    assert [names[row] for row in ordered(variables, 4)] == ["init.pt", "a9.pt", "a10.pt", "final.pt"]


def test_repeated_weights_at_one_position_are_left_out_with_a_notice(tmp_path: Path) -> None:
    for name, epoch, step, callback in (
        ("epoch=0-step=10", 0, 10, "a"),
        ("epoch=0-step=10-v1", 0, 10, "b"),
        ("epoch=1-step=20", 1, 20, "a"),
        ("epoch=1-val=0.5", 1, 20, "b"),
        ("epoch=1-step=20-v2", 1, 20, "c"),
        ("last", 1, 20, "d"),
        ("last-v1", 1, 20, "d"),
        ("best-epoch=1", 1, 20, "e"),
    ):
        put_torch(tmp_path / f"{name}.ckpt", {**lightning(epoch, step, weights(epoch)), "callbacks": {"x": callback}})
    # The same weights as an export without the prefix of the LightningModule.
    put_safetensors(tmp_path / "epoch_0.safetensors", weights(0))
    series = read_series([tmp_path])
    assert listed(series) == ["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"]
    assert (series.axis, axis_values(series)) == ("epoch", [0, 1])
    assert len(series.notices) == 7
    assert not series.skipped
    for name in ("epoch=0-step=10-v1.ckpt", "epoch_0.safetensors"):
        assert f"{name}: holds the same weights as epoch=0-step=10.ckpt, so it was left out." in series.notices


def test_repeated_weights_without_numbers_are_left_out(tmp_path: Path) -> None:
    for name in ("model.pt", "model-v1.pt", "other.pt"):
        put_torch(tmp_path / name, weights(float(name == "other.pt")))
    series = read_series([tmp_path])
    assert listed(series) == ["model.pt", "other.pt"]
    assert "model-v1.pt: holds the same weights as model.pt" in series.notices[0]


@pytest.mark.parametrize("name", ["epoch=0-step=10-v1.ckpt", "last.ckpt", "epoch_0.pt"])
def test_other_weights_at_one_position_are_kept(name: str, tmp_path: Path) -> None:
    put_torch(tmp_path / "epoch=0-step=10.ckpt", lightning(0, 10, weights(0)))
    put_torch(tmp_path / name, lightning(0, 10, weights(1)))
    with pytest.raises(InputError, match="occurs 2 times"):
        read_series([tmp_path])


def test_equal_weights_at_two_positions_are_both_kept(tmp_path: Path) -> None:
    for epoch in (0, 1):
        put_torch(tmp_path / f"epoch={epoch}.pt", {"state_dict": prefixed(weights(), "model."), "epoch": epoch})
    assert axis_values(read_series([tmp_path])) == [0, 1]
