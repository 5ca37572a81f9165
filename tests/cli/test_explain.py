"""`ibscan explain` and the guide: every name is explained, and what is written twice is held together."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from cli.test_terminal import ASCII, IBSCAN, UTF8, on_a_terminal
from conftest import FIXTURES, Run, binary_probe, chain
from support.guide_tables import PAGES, written
from typer.main import get_command

import ibscan
from ibscan import views
from ibscan.cli.commands import app
from ibscan.cli.glossary import HEAD, entries, explained, pages, sections
from ibscan.core.estimate import Status
from ibscan.core.result import Result
from ibscan.results.store import read
from ibscan.views.cells import mark

ROOT = FIXTURES.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# Nobody's in particular.
WITHOUT_SOURCE = (
    "probe_accuracy",
    "probe_loss",
    "representation_numerical_rank",
    "representation_alpha_first",
    "representation_alpha_last",
)
# As many columns as a narrow terminal has, less the margin that code gets there.
CODE_WIDTH = 78


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two results that hold every variable and print every table: at the usual places, and all at post."""
    from ibscan.cli.entry import exit_code

    folder = tmp_path_factory.mktemp("run")
    for epoch in (0, 1):
        ibscan.save(folder, chain(6, 70, 4, 2, seed=epoch), epoch=epoch, metrics={"loss": 0.7})
    binary_probe(folder)
    found = (folder / "usual.h5", folder / "post.h5")
    options = ["--rel-noise", "0.3", "--bins", "5", "--bin-width", "0.5", "--tolerance", "0.5", "-q"]
    for output, place in zip(found, ([], ["--at", "post"]), strict=True):
        assert exit_code(["scan", str(folder), "-o", str(output), *options, *place]) == 0
    return found


def every_flag() -> Iterator[str]:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for verb in group.commands.values():
        for parameter in verb.params:
            yield from (flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-"))


def heads_of(lines: list[str], result: Result) -> Iterator[str]:
    """Yield the column heads of printed tables, without names of layers."""
    layers = {str(name) for name in result["layer"].values}
    for at, line in enumerate(lines):
        if set(line.strip()) != {"─"}:
            continue
        start = max(k for k in range(at) if " · " in lines[k] or not lines[k].strip())
        for cell in re.split(r"\s{2,}", "  ".join(one.strip() for one in lines[start + 1 : at])):
            number = re.fullmatch(r"[0-9.e-]+", cell)
            if cell and not number and re.sub(r" \(\d+\)$", "", cell) not in layers:
                yield cell


def test_generated_regions_of_the_guide_are_up_to_date() -> None:
    for page in PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text == written(text), f"{page.name}: run python tests/support/guide_tables.py"


@pytest.mark.slow
def test_every_name_in_a_full_file_is_explained(results: tuple[Path, Path]) -> None:
    for path in results:
        result = read(path)
        for name in (*result.variables, *result.coordinates):
            found = explained(name)
            assert any(name in entry.names for entry in found), name
            assert all(text for entry in found for label, text in entry.facts if label == "meaning"), name


@pytest.mark.slow
def test_every_attribute_of_a_variable_is_explained(results: tuple[Path, Path]) -> None:
    usual = {"_FillValue", "ancillary_variables", "flag_values", "flag_meanings", "shown"}
    for variable in read(results[0]).variables.values():
        assert [name for name in variable.attrs if name not in usual and not explained(name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("view", [[], ["--full"], ["--curve"], ["--variable", "singular_value"]])
def test_every_word_in_the_head_of_a_printed_table_is_explained(
    results: tuple[Path, Path], command: Run, monkeypatch: pytest.MonkeyPatch, view: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    seen: set[str] = set()
    for path in results:
        printed = command("show", path, "--format", "table", *view).out.splitlines()
        seen |= set(heads_of(printed, read(path)))
    assert len(seen) > 2
    assert sorted(head for head in seen if not explained(head)) == []


def test_every_declared_head_is_explained() -> None:
    heads = {name for entry in entries() if entry.kind == HEAD for name in entry.names}
    assert heads == set(views.columns())


def test_names_of_groups_of_columns_are_declared_as_heads_are() -> None:
    assert {"weights", "slope", "read-out", "local rank"} <= set(views.columns())


def test_every_variable_and_option_tells_what_is_asked_of_it() -> None:
    wanted = {"formula", "unit", "caveat", "dimensions"}
    for entry in entries():
        labels = {label for label, text in entry.facts if text}
        if entry.kind == "variable" and "symbol" in labels:
            named = wanted if entry.names[0] in WITHOUT_SOURCE else wanted | {"source"}
            assert named <= labels, (entry.names, named - labels)
        elif entry.kind == "option":
            assert {"typed", "meaning"} <= labels, entry.names


def test_every_option_of_the_command_line_is_explained_and_on_its_page() -> None:
    page = pages()["options"]
    for flag in set(every_flag()) - {"-h", "--help"}:
        for typed in (flag, flag.lstrip("-")) if flag.startswith("--") else (flag,):
            assert any(entry.kind == "option" for entry in explained(typed)), typed
        assert f"`{flag}`" in page, flag


def test_every_status_is_explained_by_its_word_and_its_mark() -> None:
    rows = {entry.names[0]: entry for entry in entries() if entry.kind == "status"}
    assert list(rows) == [status.name.lower() for status in Status]
    for status in Status:
        assert dict(rows[status.name.lower()].facts)["code"] == str(int(status))
        for unicode in (True, False):
            sign = mark(status, unicode=unicode)
            assert not sign or rows[status.name.lower()] in explained(sign), sign


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 129, 130, 141, 143])
def test_every_exit_code_is_explained(code: int) -> None:
    for typed in (str(code), f"exit {code}", f"exit code {code}"):
        assert [entry.kind for entry in explained(typed)] == ["exit code"]


@pytest.mark.parametrize("topic", sorted(pages()))
def test_a_topic_in_a_pipe_is_its_page_as_it_is(topic: str, command: Run) -> None:
    done = command("explain", topic)
    assert done.code == 0
    assert done.out.startswith((PAGES / f"{topic}.md").read_text(encoding="utf-8"))


def test_a_heading_prints_its_section(command: Run) -> None:
    heading, (_, text) = next(iter(sections().items()))
    assert command("explain", *heading.split()).out == text


@pytest.mark.parametrize("typed", ["exit codes", "exit code", "exit"])
def test_the_beginning_of_a_heading_is_enough(typed: str, command: Run) -> None:
    assert command("explain", typed).out == sections()["Exit codes"][1]


def test_without_a_name_the_topics_are_listed(command: Run) -> None:
    done = command("explain")
    assert done.code == 0
    assert all(topic in done.out for topic in pages())


def test_an_unknown_name_is_bad_usage_and_says_the_nearest(command: Run) -> None:
    done = command("explain", "mi_reedout_xt")
    assert done.code == 2
    assert "mi_readout_xt" in done.err
    assert not done.out


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("I(X;T+Z)", "variable"),
        ("metric_loss", "variable"),
        ("metric_loss_status", "variable"),
        ("noise 0.1", "word in a table's head"),
        ("SATURATED", "status"),
        ("h(x)", "symbol in formulas"),
        ("rel-noise", "option"),
        ("--rel_noise", "option"),
    ],
)
def test_names_are_found_as_people_write_them(typed: str, kind: str) -> None:
    assert kind in {entry.kind for entry in explained(typed)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "methods", "mi_readout_xt_se", "--noise", "saturated", "4", "epoch"])
def test_explaining_imports_no_heavy_library(name: str) -> None:
    code = (
        f"import sys; sys.argv = ['ibscan', 'explain', {name!r}]\n"
        "from ibscan.cli.entry import main\n"
        "try: main()\n"
        "except SystemExit as leave: assert not leave.code\n"
        "heavy = {'torch', 'scipy', 'h5py', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_on_a_terminal_pages_and_words_keep_within_its_width_and_have_no_escapes_under_no_color(columns: int) -> None:
    for name in ("statuses", "mi_readout_xt"):
        code, shown = on_a_terminal(f"{IBSCAN} explain {name}", {**UTF8, "NO_COLOR": "1"}, columns)
        assert code == 0
        lines = shown.decode().splitlines()
        assert max(map(len, lines)) <= columns
        assert not any("\x1b" in line for line in lines)
        assert not any(line.startswith(("#", "|")) for line in lines)


def test_a_terminal_without_unicode_gets_the_page_as_it_is() -> None:
    code, shown = on_a_terminal(f"{IBSCAN} explain dead", ASCII)
    assert code == 0
    assert b"mark: \\u2020" in shown


def test_the_readme_is_short_and_names_every_page() -> None:
    assert len(README.splitlines()) <= 250
    assert [topic for topic in pages() if f"(ibscan/guide/{topic}.md)" not in README] == []


def test_every_link_of_the_readme_and_the_guide_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *PAGES.glob("*.md")):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_code_in_the_guide_fits_a_narrow_terminal() -> None:
    for topic, text in pages().items():
        for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            assert max(map(len, block.splitlines())) <= CODE_WIDTH, (topic, block)


def test_the_guide_is_part_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["ibscan"]
    assert "guide/*.md" in declared
    assert len(pages()) > 10
