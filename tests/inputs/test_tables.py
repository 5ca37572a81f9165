"""Text tables are read as probes or refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibscan.errors import IbscanError, InputError, UsageError
from ibscan.inputs.probes.read import read_probe
from ibscan.inputs.probes.text_tables import read_table


def table(text: str, wanted: dict[str, str] | None = None, name: str = "p.csv") -> tuple[list[Any], list[Any] | None]:
    """Read a table from the working folder; every test has one of its own."""
    Path(name).write_bytes(text.encode())
    found = read_table(Path(name), name, wanted or {})
    return found.x.tolist(), None if found.y is None else found.y.tolist()


READ = [
    ("1,2\n3,4\n", {}, [[1, 2], [3, 4]], None),
    ("1,2\n3,4.5\n", {}, [[1, 2], [3, 4.5]], None),
    ("1;2\r\n3;4\r\n", {}, [[1, 2], [3, 4]], None),
    ("1\t2\n3\t4", {}, [[1, 2], [3, 4]], None),
    ("\ufeff1,2\n", {}, [[1, 2]], None),
    ("\ufeffa,y\n1,2\n", {}, [[1]], [2]),
    ("a,y,b\n1,0,2\n\n3,1,4\n\n", {}, [[1, 2], [3, 4]], [0, 1]),
    ("label,a\ncat,.5\n ant ,-1e-3\n", {}, [[0.5], [-0.001]], ["cat", "ant"]),
    ('"class","a,b"\n"x, y",1\n', {}, [[1]], ["x, y"]),
    ("# a,b,target\n1.0e+00,2.0e+00,3.0e+00\n", {}, [[1, 2]], [3.0]),
    ("0,1,label\n5,6,7\n", {}, [[5, 6]], [7]),
    ("a,b\n1,2\n", {"y": "a"}, [[2]], [1]),
    ("a,y\n1,2\n", {"y": ""}, [[1, 2]], None),
    ("x,y,label\n1,2,0\n", {"y": "label"}, [[1, 2]], [0]),
    ("id,a,y\n7,1,2\n", {"x": "a"}, [[1]], [2]),
    ("7,cat\n8,ant\n", {"y": "1"}, [[7], [8]], ["cat", "ant"]),
    ("5,6,7\n", {"y": "0", "x": "2"}, [[7]], [5]),
    ("2,.5,cat\n3,.1,dog\n", {"y": "2"}, [[2, 0.5], [3, 0.1]], ["cat", "dog"]),
    ("-1,.5,0\n3,.1,1\n", {"y": "2"}, [[-1, 0.5], [3, 0.1]], [0, 1]),
    ("a,b,0\n1,2,3\n", {"y": "0"}, [[1, 2]], [3]),
    ("0,b,a\n1,2,3\n", {"y": "0"}, [[2, 3]], [1]),
    ("12,b,label\n1,2,3\n", {"y": "12"}, [[2, 3]], [1]),
    ("NA,1,2\ncat,5,6\n", {"y": "0"}, [[1, 2], [5, 6]], ["NA", "cat"]),
    ("0,1\n1,0\n", {}, [[0, 1], [1, 0]], None),
    ("1\n2\n", {}, [[1], [2]], None),
    ("y\n2\n", {"y": "", "x": "y"}, [[2]], None),
    ("9223372036854775808,1\n", {}, [[9223372036854775808.0, 1]], None),
]


@pytest.mark.parametrize(("text", "wanted", "x", "y"), READ, ids=[repr(row[0][:20]) for row in READ])
def test_tables_are_read_as_x_and_y(text: str, wanted: dict[str, str], x: list[Any], y: list[Any] | None) -> None:
    found_x, found_y = table(text, wanted)
    assert found_x == x
    assert repr(found_y) == repr(y)


def test_integers_of_a_table_need_a_scale() -> None:
    table("a,b\n0,255\n")
    with pytest.raises(UsageError, match="integers from 0 to 255"):
        read_probe("p.csv", {})
    probe, _ = read_probe("p.csv", {"scale": 255})
    assert probe.x.tolist() == [[0, 1]]
    table("0.5,nan\n")
    with pytest.raises(InputError, match="1 of the inputs are NaN"):
        read_probe("p.csv", {})


REFUSED = [
    ("a,b\n1,2\n3\n", {}, InputError, "line 3 has 1 cells, but line 1 has 2"),
    ("1,2\n3,4,5\n", {}, InputError, "line 2 has 3 cells"),
    ("a,b\n1,2\n3,x\n", {}, InputError, "line 3, column 'b' holds 'x', which is no number"),
    ("1,2\n3,\n", {}, InputError, r"line 2, column 1 \(counted from 0\) is empty"),
    ("a,y\n1,\n", {}, InputError, r"p.csv, column 'y': the labels of row 0 \(counted from 0; line 2\) are missing"),
    ("a,y\n1,2\n\n1,nan\n2,nan\n3,inf\n", {}, InputError, r"rows 1, 2, 3 \(counted from 0; lines 4, 5, 6\) are miss"),
    ("1,2\n1,NaN\n", {"y": "1"}, InputError, r"column 1 \(counted from 0\): the labels of row 1 .*line 2"),
    ("1,cat\n1,\n1,ant\n", {"y": "1"}, InputError, r"the labels of row 1 .*line 2"),
    ("a,y\n" + "1,\n" * 20, {}, InputError, r"lines 2, 3, 4, 5, 6\) and 15 more, 20 in all"),
    ("1_0,2\n3,4\n", {}, InputError, r"line 1, column 0 \(counted from 0\) holds '1_0'"),
    ("1,2\n0x1,4\n", {}, InputError, "holds '0x1'"),
    ("1,2\n٣,4\n", {}, InputError, "holds '٣'"),
    ("1,5;2\n3;4\n", {}, InputError, "holds '1,5'"),
    ("5.1,3.5,setosa\n", {}, InputError, r"column 2 \(counted from 0\) holds 'setosa'.*#y=COLUMN"),
    (",a,b\n0,1,2\n", {}, InputError, "column 1 has no name in line 1.*index=False"),
    ("0,1,2,3\n5,6,7,8\n", {}, InputError, "line 1 reads 0, 1, 2"),
    ("a,b\n1,2\n", {"y": "c"}, UsageError, "no column 'c'; there is a, b"),
    ("1,2\n", {"y": "-1"}, UsageError, "no column '-1'.*counted from 0 to 1"),
    ("-1,2\n", {"y": "-1"}, UsageError, "no column '-1'.*counted from 0 to 1"),
    ("1,2\n", {"y": "2"}, UsageError, "counted from 0 to 1"),
    ("a,b\n1,2\n", {"y": "1"}, UsageError, "no column '1'; there is a, b"),
    ("a,y\n1,2\n", {"x": ""}, UsageError, "no column ''"),
    ("a,y\n1,2\n", {"mask": ""}, UsageError, "#mask="),
    ("x,y,label\n1,2,0\n", {}, UsageError, "which column is y.*#y=label"),
    ("a,a,b\n1,2,0\n", {"y": "a"}, UsageError, "2 columns 'a'"),
    ("\n\n", {}, InputError, "without lines"),
    ('a,b\n"1,2\n', {}, InputError, "check its quotes"),
    ("a,b\n1," + "1" * 200_000, {}, InputError, "field larger"),
]


@pytest.mark.parametrize(("text", "wanted", "error", "words"), REFUSED, ids=[repr(row[0][:20]) for row in REFUSED])
def test_tables_that_are_no_probe_are_refused(
    text: str, wanted: dict[str, str], error: type[IbscanError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        table(text, wanted)
    assert type(raised.value) is error
    assert str(raised.value).startswith("p.csv")


def test_columns_picked_by_number_give_a_notice() -> None:
    row = ",".join(map(str, range(10, 23)))
    for text, spec, said, labels in (
        (f"{row}\n{row}\n", "#y=12", "the labels are column 12 of 13, counted from 0", (22,)),
        ("a,12,b\n1,2,3\n1,4,3\n", "#y=12", "the labels are the column named '12' in line 1, column 1 of 3", (2, 4)),
        ("1,2\n3,4\n", "#x=0,y=1", "the inputs are column 0 of 2, counted from 0", (2, 4)),
    ):
        Path("p.csv").write_text(text)
        probe, notices = read_probe(f"p.csv{spec}", {"scale": 1})
        assert probe.labels == labels
        assert any(said in notice for notice in notices)
    table("a,b,c,y\n1,2,3,4\n")
    assert read_probe("p.csv#x=a", {"scale": 1})[1] == ("p.csv: not used: column 'b', column 'c'.",)
    assert read_probe("p.csv", {"scale": 1})[1] == ()


def test_lines_are_counted_as_in_the_file() -> None:
    with pytest.raises(InputError, match="line 5, column 'a'"):
        table('"y\nlabel",a\n\ncat,1\ndog,?\n', {"y": "y\nlabel"})


def test_text_that_is_no_utf_8_is_refused() -> None:
    Path("p.csv").write_bytes(b"a,y\n" + b"1,0\n" * 500 + b"1,caf\xe9\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_probe("p.csv", {})


def test_tables_without_rows_or_inputs_are_refused() -> None:
    for text, words in (("a,b,y\n", "0 rows"), ("y\n1\n", "0 numbers a row")):
        table(text)
        with pytest.raises(InputError, match=words):
            read_probe("p.csv", {})


def test_labels_of_a_table_become_classes() -> None:
    table("a\ty\n.5\t1.0\n.25\t3.0\n", name="p.tsv")
    probe, notices = read_probe("p.tsv", {})
    assert (probe.labels, notices) == ((1, 3), ())
    table("a,y\n.5,1\n.25,cat\n")
    assert read_probe("p.csv", {})[0].labels == ("1", "cat")


def test_a_table_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibscan.inputs.probes.text_tables.MAX_ARRAY_BYTES", 300)
    with pytest.raises(InputError, match="more than 2 lines"):
        table("1,2\n" * 3)


@given(st.lists(st.lists(st.floats(allow_nan=False, width=64), min_size=2, max_size=2), min_size=1, max_size=5))
def test_tables_of_the_csv_module_are_read(rows: list[list[float]]) -> None:
    with Path("p.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["a", "b"], *rows])
    assert np.array_equal(read_table(Path("p.csv"), "p.csv", {}).x, np.array(rows))
