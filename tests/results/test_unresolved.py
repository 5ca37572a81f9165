"""Notices about unresolved cells state the draws they used, for every channel, file and command."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.core.records import Array
from ibscan.core.result import Result, Variable
from ibscan.results.axes import strings
from ibscan.results.unresolved import unresolved_sentences

OK, OPEN, NONE = Status.OK, Status.UNRESOLVED, Status.NOT_MEASURED


def result(**families: tuple[list[int], dict[str, list[float]]]) -> Result:
    """Return variables over one dimension: statuses, and companions by their stored name."""
    variables: dict[str, Variable] = {}
    for main, (status, companions) in families.items():
        names = [*companions, f"{main}_status"]
        size = len(status)

        def column(values: Any, kind: Any = float) -> Array:
            return np.array(values, dtype=kind)

        variables[main] = Variable(("layer",), np.zeros(size), {"ancillary_variables": " ".join(names)})
        variables.update({name: Variable(("layer",), column(values)) for name, values in companions.items()})
        variables[f"{main}_status"] = Variable(("layer",), column(status, np.int8))
    return Result({"layer": Variable(("layer",), strings("ab"))}, variables, {})


def said(found: Result, **limits: Any) -> list[str]:
    return unresolved_sentences(found, **{"tolerance": 0.05, "max_replicas": 4096, "max_draws": 65536, **limits})


def network(status: list[int], replicas: list[float], draws: list[float]) -> Any:
    return status, {"mi_network_replicas": replicas, "mi_network_xt_draws": draws}


def test_nothing_is_said_of_resolved_cells() -> None:
    assert said(result(mi_network_xt=network([OK, Status.SATURATED], [1, 2], [3, 4]))) == []
    assert said(result(mi_binned_xt=([OK, OK], {}))) == []


def test_one_cell_says_what_it_used_and_not_what_others_did() -> None:
    (sentence,) = said(result(mi_network_xt=network([OPEN, OK, NONE], [2048, 512, np.nan], [16384, 99, np.nan])))
    assert sentence.startswith(
        "1 of 2 cells of the network channel is unresolved: --tolerance 0.05 was not reached with "
    )
    assert "2,048 replicas and 16,384 draws, of 4,096 and 65,536 allowed" in sentence
    assert "--max-replicas or --max-draws" in sentence
    assert "512" not in sentence


def test_several_cells_say_the_least_and_the_most() -> None:
    (sentence,) = said(result(mi_network_xt=network([OPEN, OPEN, OPEN], [1, 64, 4096], [512, 512, 512])))
    assert "3 of 3 cells of the network channel are unresolved" in sentence
    assert "with 1 to 4,096 replicas and 512 draws, of" in sentence


def test_one_replica_and_one_cell_are_singular() -> None:
    (sentence,) = said(result(mi_network_xt=network([OPEN], [1], [2])))
    assert sentence.startswith("1 cell of the network channel is unresolved")
    assert "with 1 replica and 2 draws" in sentence


def test_each_channel_has_a_sentence_and_relative_noise_counts() -> None:
    found = result(
        mi_network_xt=network([OPEN, OK], [8, 8], [16, 16]),
        mi_readout_xt=([OPEN, OK], {"mi_readout_xt_draws": [100.0, 5.0]}),
        mi_readout_rel_xt=([OPEN, OPEN], {"mi_readout_rel_xt_draws": [300.0, 7.0]}),
    )
    of_network, of_readout = said(found)
    assert "1 of 2 cells of the network channel is" in of_network
    assert "3 of 4 cells of the read-out channel are" in of_readout
    assert "with 7 to 300 draws, of 65,536 allowed" in of_readout
    assert "replica" not in of_readout


def test_binned_cells_are_of_no_channel() -> None:
    found = result(mi_binned_xt=([OK, OK], {}), mi_readout_xt=([OPEN, OK], {"mi_readout_xt_draws": [64.0, 64.0]}))
    (sentence,) = said(found)
    assert sentence.startswith("1 of 2 cells of the read-out channel is unresolved")


def test_a_label_side_that_is_open_alone_counts_once() -> None:
    found = result(
        mi_readout_xt=([OK, OPEN], {"mi_readout_xt_draws": [64.0, 128.0]}),
        mi_readout_ty=([OPEN, OPEN], {}),
    )
    (sentence,) = said(found)
    assert "2 of 2 cells" in sentence
    assert "64 to 128 draws" in sentence


@pytest.mark.parametrize("missing", [["mi_network_replicas"], ["mi_network_replicas", "mi_network_xt_draws"]])
def test_an_old_file_tells_less(missing: list[str]) -> None:
    found = result(mi_network_xt=network([OPEN, OK], [8, 8], [16, 16]))
    kept = {name: variable for name, variable in found.variables.items() if name not in missing}
    (sentence,) = said(dataclasses.replace(found, variables=kept))
    assert "replicas and" not in sentence
    assert ("16 draws" in sentence) == (len(missing) == 1)
    assert "unresolved" in sentence


def test_what_an_earlier_command_had_more_of_is_not_said_to_be_of_this_budget() -> None:
    (sentence,) = said(result(mi_network_xt=network([OPEN], [512], [999])), max_draws=100)
    assert "512 replicas and 999 draws." in sentence
    assert "allowed" not in sentence
