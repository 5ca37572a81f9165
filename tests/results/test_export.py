from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ibscan.core.estimate import Status
from ibscan.errors import NothingMatched, UsageError
from ibscan.results.export import COLUMNS, rows, write_rows


def written(found: Any, format: str, **options: Any) -> str:
    stream = io.StringIO()
    write_rows(rows(found, **options), format, stream)
    return stream.getvalue()


def test_columns_are_those_of_the_interface() -> None:
    assert ", ".join(COLUMNS) == (
        "checkpoint, epoch, step, value, layer, at, variable, parameter, parameter_value, result, se, lower, upper, "
        "unit, status"
    )


def test_rows_are_scalars_unless_a_variable_is_named(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2))
    listed = list(rows(found))
    variables = {row["variable"] for row in listed}
    assert {
        "local_rank",
        "local_rank_min",
        "local_rank_max",
        "effective_rank",
        "mi_readout_xt",
        "probe_accuracy",
    } <= variables
    assert {"mi_binned_cells", "metric_loss", "nc1"} <= variables
    assert (
        not {"singular_value", "distance_within", "local_rank_se", "local_rank_status", "mi_readout_xt_lower"}
        & variables
    )
    row = next(r for r in listed if r["variable"] == "mi_readout_xt" and r["layer"] == "fc10" and r["epoch"] == 1)
    at = (1, 2, 0)
    expected = {
        "checkpoint": "epoch-1.safetensors",
        "epoch": 1,
        "step": 100,
        "value": None,
        "layer": "fc10",
        "at": "post",
        "variable": "mi_readout_xt",
        "parameter": "noise",
        "parameter_value": 0.1,
        "result": found["mi_readout_xt"].values[at],
        "se": found["mi_readout_xt_se"].values[at],
        "lower": found["mi_readout_xt_lower"].values[at],
        "upper": found["mi_readout_xt_upper"].values[at],
        "unit": "nat",
        "status": "ok",
    }
    assert row == expected
    accuracy = next(r for r in listed if r["variable"] == "probe_accuracy")
    assert accuracy["layer"] is None
    assert accuracy["parameter"] is None


def test_every_cell_is_one_row(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2))
    listed = list(rows(found, variables=["distance_within"]))
    assert len(listed) == 2 * 4 * 5
    assert [row["result"] for row in listed] == found["distance_within"].values.ravel().tolist()
    assert listed[7]["parameter"] == "distance_bin"
    assert listed[7]["parameter_value"] == 2
    assert listed[7]["status"] is None
    status = list(rows(found, variables=["local_rank_status"]))
    assert status[0]["result"] == 0
    assert next(rows(found, variables=["local_rank_se"]))["result"] == found["local_rank_se"].values[0, 0, 0]


def test_bits_convert_everything_in_nat_together(synthetic: ModuleType) -> None:
    found = synthetic.result([0])
    for nat, bit in zip(rows(found), rows(found, units="bits"), strict=True):
        factor = math.log(2) if nat["unit"] == "nat" else 1.0
        assert bit["unit"] == ("bit" if nat["unit"] == "nat" else nat["unit"])
        for name in ("result", "se", "lower", "upper"):
            assert (nat.get(name) is None) == (bit.get(name) is None)
            if nat.get(name) is not None:
                assert bit[name] == pytest.approx(nat[name] / factor, rel=1e-15)
    with pytest.raises(UsageError, match="nats or bits"):
        rows(found, units="bytes")


def test_what_was_not_measured_is_left_out_unless_named(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2))
    synthetic.marked(found, "nc1", (0, 0), Status.NOT_MEASURED, np.nan)
    synthetic.marked(found, "nc1", (1, 0), Status.NONFINITE, np.nan)
    found["mi_binned_cells"].values[0, 0, 0] = -1
    default = [row for row in rows(found) if row["variable"] == "nc1"]
    named = list(rows(found, variables=["nc1"]))
    assert len(default) == 7
    assert len(named) == 8
    assert named[0]["status"] == "not_measured"
    assert named[0]["result"] is None
    assert next(row["status"] for row in default if row["epoch"] == 1) == "nonfinite"
    assert len([row for row in rows(found) if row["variable"] == "mi_binned_cells"]) == 7
    assert next(rows(found, variables=["mi_binned_cells"]))["result"] is None


def test_an_unknown_variable_names_its_neighbours(synthetic: ModuleType) -> None:
    with pytest.raises(NothingMatched, match="mi_readout_xt"):
        rows(synthetic.result([0]), variables=["mi_readout"])
    with pytest.raises(NothingMatched, match="local_rank"):
        rows(synthetic.result([0]), variables=["???"])


@pytest.mark.parametrize(("format", "separator", "missing"), [("tsv", "\t", "NaN"), ("csv", ",", "")])
def test_separated_values_are_the_rows(synthetic: ModuleType, format: str, separator: str, missing: str) -> None:
    found = synthetic.result(range(2))
    text = written(found, format)
    table = list(csv.reader(io.StringIO(text), delimiter=separator))
    assert table[0] == list(COLUMNS)
    listed = list(rows(found))
    assert len(table) == len(listed) + 1
    for line, row in zip(table[1:], listed, strict=True):
        assert len(line) == len(COLUMNS)
        assert float(line[9]) == row["result"]  # to the last bit
        assert line[3] == missing


def test_no_field_of_tsv_is_empty_and_all_that_are_missing_read_as_nan(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2))
    synthetic.marked(found, "nc1", (0, 0), Status.NONFINITE, np.nan)
    lines = [line.split("\t") for line in written(found, "tsv").splitlines()]
    assert all(field for line in lines for field in line)
    for line, row in zip(lines[1:], rows(found), strict=True):
        for name, field in zip(COLUMNS, line, strict=True):
            value = row.get(name)
            assert (field == "NaN") == (value is None or value != value)
    stream = io.StringIO()
    write_rows([{"a": "", "b": None, "c": 0, "d": np.float64("nan")}], "tsv", stream, "abcde")
    assert stream.getvalue() == "a\tb\tc\td\te\nNaN\tNaN\t0\tNaN\tNaN\n"


@pytest.mark.skipif(shutil.which("column") is None, reason="needs column of util-linux or BSD")
def test_column_keeps_every_field_in_its_column(synthetic: ModuleType) -> None:
    text = written(synthetic.result(range(2)), "tsv")
    done = subprocess.run(["column", "-t", "-s", "\t"], input=text, capture_output=True, text=True, check=True)
    fields = [re.split(" {2,}", line.strip()) for line in done.stdout.splitlines()]
    assert fields == [line.split("\t") for line in text.splitlines()]


def test_json_lines_hold_finite_numbers_only(synthetic: ModuleType) -> None:
    found = synthetic.result(range(2))
    synthetic.marked(found, "nc1", (0, 0), Status.NONFINITE, np.inf)
    synthetic.marked(found, "nc1", (0, 1), Status.NONFINITE, np.nan)

    def forbidden(constant: str) -> None:
        raise AssertionError(constant)

    lines = [json.loads(line, parse_constant=forbidden) for line in written(found, "jsonl").splitlines()]
    assert all(list(line) == list(COLUMNS) for line in lines)
    first = next(line for line in lines if line["variable"] == "nc1")
    assert first["result"] is None
    assert first["status"] == "nonfinite"
    assert first["lower"] is None


HOSTILE = (
    "a\tb",
    "a\nb",
    "\x1b[31m",
    '=cmd("x")',
    "+1",
    "-1",
    "@x",
    'say "hi", you',
    "back\\slash",
    "\u202eevil",
    "\udce9",
)


@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl"])
def test_hostile_names_are_written_as_escapes(synthetic: ModuleType, format: str) -> None:
    checkpoints = [synthetic.checkpoint(i, name=name) for i, name in enumerate(HOSTILE)]
    found = synthetic.result(checkpoints, ["fit"], names=["a"])
    text = written(found, format, variables=["probe_accuracy"])
    assert "\x1b" not in text
    assert "\u202e" not in text
    lines = text.splitlines()
    assert len(lines) == len(HOSTILE) + (format != "jsonl")
    if format == "jsonl":
        assert [json.loads(line)["checkpoint"] for line in lines][:10] == list(HOSTILE[:10])
        return
    cells = [line[0] for line in csv.reader(io.StringIO(text), delimiter="\t" if format == "tsv" else ",")][1:]
    assert cells[:3] == ["a\\tb", "a\\nb", "\\x1b[31m"]
    assert cells[8] == "back\\\\slash"
    if format == "csv":
        assert cells[3:7] == ['\'=cmd("x")', "'+1", "'-1", "'@x"]
        assert cells[7] == HOSTILE[7]
    else:
        assert text.splitlines()[4].startswith("=cmd")


def test_numbers_are_never_taken_for_formulas() -> None:
    stream = io.StringIO()
    write_rows(
        [{"a": -1.5, "b": np.float64(-2), "c": np.int64(3), "d": True}], "csv", stream, ("a", "b", "c", "d", "e")
    )
    assert stream.getvalue() == "a,b,c,d,e\n-1.5,-2.0,3,True,\n"


@pytest.mark.parametrize("format", ["tsv", "csv", "jsonl"])
def test_a_stream_of_ascii_gets_escapes(synthetic: ModuleType, format: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    found = synthetic.result([synthetic.checkpoint(0, name="caf\u00e9")], ["fit"], names=["a"])
    write_rows(rows(found), format, stream)
    stream.flush()
    assert b"caf\\" in raw.getvalue()


def test_a_broken_pipe_passes_through(synthetic: ModuleType) -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        write_rows(rows(synthetic.result([0])), "tsv", Closed())


def test_no_rows_still_have_a_header() -> None:
    stream = io.StringIO()
    write_rows([], "tsv", stream)
    assert stream.getvalue() == "\t".join(COLUMNS) + "\n"
    with pytest.raises(UsageError, match="tsv, csv or jsonl"):
        write_rows([], "xml", stream)
