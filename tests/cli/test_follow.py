"""`--follow` on a folder that training writes to; a simulated clock makes every wait instant."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Finished, Run, binary_probe, chain
from safetensors.torch import save as safetensors_bytes

import ibscan
from ibscan.engine import plan as planning
from ibscan.engine import watch as following
from ibscan.errors import Interrupted, UsageError
from ibscan.results.store import read

IDLE = 8
MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
"""


@dataclass
class Clock:
    """A simulated clock: each poll advances it by one second, and `events` run at their seconds."""

    events: Mapping[int, Callable[[], object]]
    now: float = 0.0
    seen: list[int] = field(default_factory=list)
    output: Path = Path("r.h5")
    inode: int = 0

    def __post_init__(self) -> None:
        if self.output.exists():
            self.inode = self.output.stat().st_ino

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds == 1.0
        assert self.now < 700, "the run does not end"
        self.now += 1.0
        if self.output.exists() and self.output.stat().st_ino != self.inode:
            # A reader at any moment finds a valid file.
            self.inode, found = self.output.stat().st_ino, read(self.output)
            self.seen.append(len(found["epoch"].values))
            assert not found.attrs["complete"]
        event = self.events.get(int(self.now))
        if event is not None:
            time.sleep(0.005)  # so that the file system's clock has moved
            event()


@pytest.fixture
def follow(command: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Finished, Clock]]:
    """Run `ibscan cluster FOLDER --follow`, while `events` happen at their seconds."""

    def run(events: Mapping[int, Callable[[], object]], *arguments: object) -> tuple[Finished, Clock]:
        clock = Clock(events)
        monkeypatch.setattr("ibscan.engine.watch.time", clock)
        return command("cluster", folder, "--follow", "--idle", IDLE, "-o", "r.h5", *arguments), clock

    return run


def saved(folder: Path, epoch: int, seed: int | None = None) -> Path:
    return ibscan.save(folder, chain(6, 5, 4, 2, seed=epoch if seed is None else seed), epoch=epoch)


def content(epoch: int, where: Path) -> bytes:
    where.mkdir(exist_ok=True)
    return saved(where, epoch).read_bytes()


def epochs(path: Path = Path("r.h5")) -> list[float]:
    return read(path)["epoch"].values.tolist()


def assert_close(one: Path, other: Path) -> None:
    a, b = read(one), read(other)
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        np.testing.assert_allclose(a[name].values, b[name].values, rtol=1e-9, err_msg=name)
    assert a["checkpoint_sha256"].values.tolist() == b["checkpoint_sha256"].values.tolist()
    differing = {name for name in a.attrs if a.attrs[name] != b.attrs.get(name)}
    assert differing <= {"created_at", "command"}


Follow = Callable[..., tuple[Finished, Clock]]


@pytest.mark.slow
def test_checkpoints_are_measured_as_they_arrive(follow: Follow, command: Run, folder: Path, tmp_path: Path) -> None:
    late = content(3, tmp_path / "x")
    growing, temporary = folder / "epoch-00003.safetensors", folder / "tmp-epoch-2"

    def renamed() -> None:
        temporary.rename(folder / "epoch-00002.safetensors")

    done, clock = follow(
        {
            5: lambda: saved(folder, 0),
            7: lambda: saved(folder, 1),
            # In pieces, with a pause longer than a look, and at its full length before all is written.
            9: lambda: growing.write_bytes(late[:50]),
            10: lambda: growing.write_bytes(late[:200]),
            14: lambda: growing.write_bytes(late[:-20] + bytes(20)),
            15: lambda: growing.write_bytes(late),
            17: lambda: temporary.write_bytes(content(2, tmp_path / "y")),
            24: renamed,
        }
    )
    assert done.code == 0, done.err
    assert clock.seen == [1, 2, 3, 4]
    assert clock.now == 24 + IDLE
    assert epochs() == [0, 1, 2, 3]
    # Tables once; nothing was called failed or left out.
    assert {row["epoch"] for row in done.rows()} == {"0", "1", "2", "3"}
    assert "skipped" not in done.err
    assert "unfinished" not in done.err
    assert command("cluster", folder, "-o", "plain.h5").code == 0
    assert_close(Path("r.h5"), Path("plain.h5"))


@pytest.mark.slow
def test_one_network_at_a_time_gives_the_bits_of_one_scan(
    follow: Follow, command: Run, folder: Path, tmp_path: Path
) -> None:
    Path("net.py").write_text(MODULE)
    model = ("--model", "net.py:build")

    def arrives(k: int) -> None:
        # Moved here by Python: what torch wrote here in this process would be the model's doing.
        torch.save(chain(6, 5, 4, 2, seed=k).state_dict(), tmp_path / "new.pt")
        (tmp_path / "new.pt").rename(folder / f"step{k}.pt")

    done, _ = follow({k: partial(arrives, k) for k in (3, 4, 9, 12)}, *model)
    assert done.code == 0, done.err
    plain = command("cluster", folder, "-o", "plain.h5", *model)
    assert plain.code == 0
    assert plain.out == done.out
    one, other = read(Path("r.h5")), read(Path("plain.h5"))
    for name in [*other.variables, *other.coordinates]:
        a, b = one[name].values, other[name].values
        assert (a == b).all() if a.dtype.kind == "O" else a.tobytes() == b.tobytes(), name


def test_nothing_is_read_twice(follow: Follow, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspected, modelled = [], []
    inspect, model_of = following.inspect_checkpoint, planning.model_of

    def inspecting(path: Path, name: str, **choices: Any) -> Any:
        inspected.append(name)
        return inspect(path, name, **choices)

    def modelling(*arguments: Any, **choices: Any) -> Any:
        modelled.append(arguments)
        return model_of(*arguments, **choices)

    monkeypatch.setattr(following, "inspect_checkpoint", inspecting)
    monkeypatch.setattr(planning, "model_of", modelling)
    saved(folder, 0)
    done, _ = follow({k: lambda k=k: saved(folder, k) for k in (3, 6)})
    assert done.code == 0
    assert sorted(inspected) == [f"epoch-{k:05d}.safetensors" for k in (0, 3, 6)]
    assert len(modelled) == 1


@pytest.mark.slow
def test_a_checkpoint_that_changes_is_measured_again(follow: Follow, command: Run, folder: Path) -> None:
    saved(folder, 1)
    done, _ = follow({4: lambda: saved(folder, 2), 7: lambda: saved(folder, 1, seed=9)})
    assert done.code == 0, done.err
    assert done.err.count("epoch-00001.safetensors: has changed") == 1
    assert command("cluster", folder, "-o", "plain.h5").code == 0
    assert_close(Path("r.h5"), Path("plain.h5"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_that_come_one_by_one(follow: Follow, command: Run, folder: Path, variant: str) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shards: dict[int, list[bytes]] = {}
    for step in (10, 20):
        made = list(chain(6, 5, 4, 2, seed=step).state_dict().items())
        shards[step] = [safetensors_bytes(dict(made[:3])), safetensors_bytes(dict(made[3:]))]
        told = {key: names[k > 2] for k, (key, _) in enumerate(made)}

    def put(place: Path, step: int, *which: int) -> None:
        place.mkdir(exist_ok=True)
        for k in which:
            (place / names[k]).write_bytes(shards[step][k])

    def listed(place: Path, name: str) -> None:
        (place / f"{name}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": told}))

    inside = folder / "checkpoint-20"
    events = {
        # In the folder itself, the index first; then a folder, the index last.
        1: lambda: listed(folder, "step-10"),
        4: lambda: put(folder, 10, 0),
        7: lambda: put(folder, 10, 1),
        10: lambda: put(inside, 20, 0),
        13: lambda: put(inside, 20, 1),
        16: lambda: listed(inside, "model"),
    }
    (folder / "ibscan.toml").write_text('[model]\nspec = "mlp:tanh"\n')
    done, clock = follow(events)
    assert done.code == 0, done.err
    assert "skipped" not in done.err
    assert clock.seen == [1, 2]
    assert command("cluster", folder, "-o", "plain.h5").code == 0
    assert_close(Path("r.h5"), Path("plain.h5"))


def test_of_a_trainers_folder_weights_and_json_are_opened(
    follow: Follow, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(folder, 0).rename(folder / "model.safetensors")
    (folder / "trainer_state.json").write_text('{"global_step": 5}')
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt", "vocab"):
        (folder / name).write_bytes(b"PK\x03\x04")
    opened, open_as_ever = set(), Path.open

    def noted(self: Path, *arguments: Any, **named: Any) -> Any:
        opened.add(self.name)
        return open_as_ever(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", noted)
    # What is beside the weights is no news either.
    done, clock = follow({4: lambda: os.truncate(folder / "optimizer.pt", 9)})
    assert done.code == 0, done.err
    assert clock.now == IDLE
    assert {name for name in opened if (folder / name).exists()} <= {
        "model.safetensors", "trainer_state.json", "probe.npz", "ibscan.toml", "config.json"
    }  # fmt: skip


@pytest.mark.slow
def test_what_training_deletes_is_kept(follow: Follow, folder: Path) -> None:
    first = saved(folder, 1)
    done, _ = follow({5: lambda: saved(folder, 2), 6: lambda: (folder / first.name).unlink()})
    assert done.code == 0, done.err
    assert epochs() == [1, 2]
    assert {row["epoch"] for row in done.rows()} == {"1", "2"}
    done, _ = follow({1: lambda: shutil.rmtree(folder), 3: folder.mkdir, 5: lambda: binary_probe(folder)})
    assert done.code == 5


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False])
def test_last_is_looked_at_in_the_end(follow: Follow, folder: Path, equal: bool) -> None:
    def both(epoch: int) -> None:
        shutil.copy(saved(folder, epoch), folder / "last.safetensors")

    def other() -> None:
        saved(folder / "x", 7).rename(folder / "last.safetensors")

    (folder / "x").mkdir()
    events = {2: lambda: both(1), 4: lambda: both(2), 6: lambda: both(3)}
    done, clock = follow(events if equal else {**events, 8: other})
    assert done.code == 0, done.err
    assert clock.seen == [1, 2, 3]
    assert epochs() == ([1, 2, 3] if equal else [1, 2, 3, 7])
    assert done.err.count("last.safetensors: holds the same weights") == equal


@pytest.mark.slow
def test_what_stays_broken_is_named_once_in_the_end(follow: Follow, folder: Path, tmp_path: Path) -> None:
    saved(folder, 0)
    broken = folder / "epoch-00001.safetensors"
    done, clock = follow(
        {2: lambda: broken.write_bytes(content(1, tmp_path / "x")[:-7]), 6: lambda: saved(folder, 2)},
    )
    assert done.code == 4
    assert done.err.count("skipped: epoch-00001.safetensors") == 1
    assert epochs() == [0, 2]
    assert clock.now == 6 + IDLE
    assert "epoch-00001" in read(Path("r.h5")).attrs["skipped"]


@pytest.mark.slow
def test_the_same_step_twice_waits_for_one_to_go(follow: Follow, folder: Path) -> None:
    def twice() -> None:
        torch.save(chain(6, 5, 4, 2, seed=1).state_dict(), folder / "step_5.pt")
        torch.save(chain(6, 5, 4, 2, seed=2).state_dict(), folder / "step-5.pt")

    done, _ = follow({1: twice, 5: (folder / "step_5.pt").unlink}, "--model", "mlp:tanh")
    assert done.code == 0, done.err
    assert done.err.count("occurs 2 times") == 1
    done, _ = follow({1: twice}, "--model", "mlp:tanh")
    assert done.code == 3


@pytest.mark.slow
def test_a_listed_epoch_may_yet_come(follow: Follow, folder: Path) -> None:
    saved(folder, 1)
    done, _ = follow({5: lambda: saved(folder, 3)}, "--epochs", "1,3,9")
    assert done.code == 0, done.err
    assert epochs() == [1, 3]
    assert "no checkpoint has epoch 9 (the nearest is 3)" in done.err


@pytest.mark.slow
def test_a_stopped_run_that_follows_goes_on_where_it_was(follow: Follow, folder: Path) -> None:
    def stop() -> None:
        raise Interrupted(2)

    saved(folder, 0)
    done, _ = follow({4: lambda: saved(folder, 1), 8: stop})
    assert done.code == 130
    assert "To go on: ibscan cluster" in done.err
    assert epochs() == [0, 1]
    # What training changed meanwhile is measured again; it is no other result.
    saved(folder, 1, seed=5)
    done, _ = follow({3: lambda: saved(folder, 2)})
    assert done.code == 0, done.err
    assert epochs() == [0, 1, 2]
    assert done.err.count("epoch-00001.safetensors: has changed since") == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rank", "mi"])
def test_every_scan_verb_follows(command: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr("ibscan.engine.watch.time", Clock({3: lambda: saved(folder, 1)}))
    done = command(verb, folder, "--follow", "--idle", IDLE, "-o", "r.h5")
    assert done.code == 0, done.err
    assert epochs() == [1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--follow", "--idle", "0"], 2, "finite number > 0"),
        (["--follow", "--idle", "-1"], 2, "finite number > 0"),
        (["--follow", "--idle", "nan"], 2, "finite number > 0"),
        (["--follow", "--idle", "inf"], 2, "finite number > 0"),
        (["--follow", "--idle", "1_0"], 2, "no number"),
        (["--idle", "5"], 2, "add --follow"),
        (["--follow", "--probe", "nowhere.npz"], 3, "nowhere.npz"),
        (["--follow", "-o", "ckpts"], 2, "is a folder"),
        (["--follow"], 5, "holds no checkpoint"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(
    command: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    clock = Clock({})
    monkeypatch.setattr("ibscan.engine.watch.time", clock)
    done = command("rank", folder, *arguments)
    assert done.code == code
    assert words in done.err
    assert clock.now == (600 if code == 5 else 0)


def test_following_needs_a_probe_and_a_folder(command: Run, folder: Path) -> None:
    (folder / "probe.npz").unlink()
    done = command("rank", folder, "--follow")
    assert done.code == 3
    assert "no probe" in done.err
    file = saved(folder, 0)
    for paths in ([file], [file, folder], ["nowhere"]):
        done = command("rank", *paths, "--follow")
        assert done.code == 2, done.err
        assert "one folder" in done.err
    with pytest.raises(UsageError, match="output="):
        ibscan.rank(folder, follow=True)


def test_python_follows_a_folder_too(folder: Path) -> None:
    """With the real clock, and a thread in the role of training."""
    saved(folder, 0)
    training = threading.Timer(0.4, saved, (folder, 1))
    training.start()
    run = ibscan.rank(folder, output="r.h5", follow=True, idle=1.0)
    training.join()
    assert run.exit_code == 0
    assert run["epoch"].values.tolist() == [0, 1]
