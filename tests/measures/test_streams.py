"""Random numbers and samples that every measure shares: ibscan.core.streams.RandomStreams and Probe.sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.oracles import probe_of

from ibscan.core.streams import RandomStreams


def normals(seed: Any, *key: Any) -> Any:
    return RandomStreams(seed).generator(*key).standard_normal(8).tolist()


def test_the_same_key_gives_the_same_numbers() -> None:
    assert normals(3, "mi_readout", 1, 5) == normals(3, "mi_readout", 1, 5)


@pytest.mark.parametrize(
    "other", [(4, "mi_readout", 1, 5), (3, "mi_network", 1, 5), (3, "mi_readout", 2, 5), (3, "mi_readout", 1, 6)]
)
def test_every_part_of_the_key_counts(other: Any) -> None:
    assert not set(normals(3, "mi_readout", 1, 5)) & set(normals(*other))


def test_parts_of_the_key_are_not_interchangeable() -> None:
    assert not set(normals(0, "m", 1, 2)) & set(normals(0, "m", 2, 1))
    assert not set(normals(1, "m", 0, 2)) & set(normals(0, "m", 1, 2))


def test_the_order_of_calls_does_not_matter() -> None:
    streams = RandomStreams(1)
    late = [streams.generator("m", 0, k).standard_normal() for k in (2, 1, 0)]
    assert late[::-1] == [streams.generator("m", 0, k).standard_normal() for k in (0, 1, 2)]


def numbered(n: int = 40) -> Any:
    return probe_of(np.arange(n)[:, None] * 10.0, np.arange(n))


def test_samples_nest() -> None:
    """Smaller samples are the first rows of larger ones."""
    whole = numbered().sampled(None, 7)
    for rows in (1, 5, 40, 100):
        part = numbered().sampled(rows, 7)
        np.testing.assert_array_equal(part.x, whole.x[:rows])
        assert len(part.x) == min(rows, 40)


def test_all_rows_are_permuted_and_keep_their_labels() -> None:
    whole = numbered().sampled(None, 7)
    assert sorted(whole.x[:, 0]) == sorted(numbered().x[:, 0])
    assert whole.x[:, 0].tolist() != numbered().x[:, 0].tolist()
    np.testing.assert_array_equal(whole.x[:, 0], whole.y * 10.0)
    assert whole.sha256 == numbered().sha256


def test_another_seed_chooses_other_rows() -> None:
    a, b = (numbered().sampled(20, seed).y.tolist() for seed in (0, 1))
    assert a != b
    assert numbered().sampled(20, 0).y.tolist() == a


def test_a_probe_without_labels_is_sampled_without_labels() -> None:
    bare = probe_of(np.arange(6.0)[:, None])
    assert bare.sampled(3, 0).y is None
