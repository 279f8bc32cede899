"""The tables in conf/: they load, their options exist, and the paper's numbers are the paper's."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from vdqbench.report import render
from vdqbench.report.table import Table, rows

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
TABLES = sorted(str(path.relative_to(CONF / "table").with_suffix("")) for path in (CONF / "table").rglob("*.yaml"))
SCORES = ("clipsim", "clip_temp", "vqa_a", "vqa_t")
TEXT = ROOT.parent / "shared" / "papers" / "asq_tsq.txt"


def load(name: str) -> Table:
    return Table.from_config(yaml.safe_load((CONF / "table" / f"{name}.yaml").read_text()))


def metrics() -> dict[str, dict]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "metric").glob("*.yaml")}


def overrides(cell: list[str]) -> dict[str, str]:
    """The last value of each key, as Hydra takes it."""
    return dict(override.split("=", 1) for override in cell)


def conditions() -> list:
    found = []
    for name in TABLES:
        for preset in (None, *load(name).presets):
            found.append(pytest.param(name, preset, id=f"{name}{f'-{preset}' if preset else ''}"))
    return found


@pytest.mark.parametrize(("name", "preset"), conditions())
def test_every_table_loads_and_renders_before_anything_ran(name, preset):
    table = load(name)
    assert table.name == name and table.title
    rendered = rows(table, [None] * len(table.cells(preset)), preset)
    assert rendered.lines and sum(line.kind == "reference" for line in rendered.lines) == 1
    console = Console(width=100, file=io.StringIO())
    console.print(render.to_rich(rendered, 100))
    assert "…" not in console.file.getvalue()


@pytest.mark.parametrize(("name", "preset"), conditions())
def test_every_override_names_an_option(name, preset):
    known = {folder.name: {path.stem for path in folder.glob("*.yaml")} for folder in CONF.iterdir() if folder.is_dir()}
    missing = set()
    for cell in load(name).cells(preset):
        for key, value in overrides(cell).items():
            if "." in key:
                group, option = key.split(".", 1)
                chosen = yaml.safe_load((CONF / group / f"{overrides(cell)[group]}.yaml").read_text())
                assert option in chosen, f"{key} is not a key of {group}={overrides(cell)[group]}"
                continue
            missing |= {f"{key}={option}" for option in value.strip("[]").split(",") if option not in known.get(key, ())}
    assert not missing


@pytest.mark.parametrize(("name", "preset"), conditions())
def test_every_column_is_given_by_the_chosen_metrics(name, preset):
    table, known = load(name), metrics()
    chosen = overrides(table.cells(preset)[0])["metric"].strip("[]").split(",")
    owner = {score: known[metric] for metric in chosen for score in known[metric]["scores"]}
    for column in table.preset(preset).columns:
        if column.unavailable:
            assert column.score not in {s for metric in known.values() for s in metric["scores"]}, "it can be had now"
            assert column.higher_is_better is not None
        else:
            assert column.paired == (owner[column.score]["mode"] == "paired"), column.score


@pytest.mark.parametrize("name", TABLES)
def test_presets_for_minis_run_on_minis_and_show_the_same_paper_columns(name):
    table = load(name)
    if table.paper is None:
        return
    assert overrides(table.cells("mini")[0])["model"].startswith("mini_")
    assert overrides(table.cells()[0])["model"] == table.paper.model
    assert [c.paper for c in table.preset("mini").columns if c.paper] == [c.paper for c in table.columns if c.paper]


def test_the_quickstart_has_the_settings_it_promises():
    cells = [overrides(cell) for cell in load("quickstart").cells()]
    found = {(c["method"], c.get("bits")) for c in cells}
    eight = {(method, "w8a8") for method in ("cw_tw", "asq", "tsq", "dynamic")}
    assert {("fp", None)} | eight < found and len(cells) == 8
    assert {method for method, bits in found if bits not in (None, "w8a8")} == {"asq", "tsq", "dynamic"}
    assert {c["prompts"] for c in cells} == {"shapes_small"}


def test_table3_has_28_cells_and_averages_over_all_nine_bit_pairs():
    table = load("asq_tsq/table3")
    cells = [overrides(cell) for cell in table.cells("mini")]
    pairs = ["w4a4", "w4a6", "w6a6", "w4a8", "w6a8", "w8a8", "w4a16", "w6a16", "w8a16"]
    assert len(cells) == 28 and Counter(c.get("bits") for c in cells) == {None: 1, **dict.fromkeys(pairs, 3)}
    for row in table.rows:
        if row.average_of is not None:
            assert [other.group for other in table.rows if row.average_of.selects(other)] == [
                "/".join(re.findall(r"\d+", p)) for p in pairs
            ]


@pytest.mark.parametrize(("number", "values"), [(1, 24), (2, 24), (3, 124), (4, 20), (5, 20)])
def test_every_number_is_there(number, values):
    table = load(f"asq_tsq/table{number}")
    assert sum(len(row.paper) for row in table.rows) == values
    assert all(tuple(row.paper) in (SCORES, ()) for row in table.rows)


def test_the_averages_that_the_paper_prints_follow_from_its_rows_but_for_two():
    table = load("asq_tsq/table3")
    off = {}
    for row in table.rows:
        if row.average_of is None:
            continue
        members = [other.paper for other in table.rows if row.average_of.selects(other)]
        assert len(members) == 9
        for score in SCORES:
            mean = sum(paper[score] for paper in members) / 9
            if f"{mean:.4f}" != f"{row.paper[score]:.4f}":
                off[row.label, score] = (round(mean, 5), row.paper[score])
    assert off == {("*+ASQ", "vqa_a"): (26.25621, 26.1451), ("Dynamic", "vqa_t"): (13.90226, 13.9022)}
    asq = next(row for row in table.rows if row.title == "8/8 *+ASQ")
    corrected = sum(r.paper["vqa_a"] for r in table.rows if r.label == "*+ASQ" and r.average_of is None) - asq.paper["vqa_a"] + 52.9969
    assert f"{corrected / 9:.4f}" == "26.1451"


def test_cells_that_the_paper_prints_twice_agree_but_for_one():
    """Tables 1 and 4, 2 and 5, 1 and 3 share cells; only VQA-a of *+ASQ at 8/8 differs between its occurrences."""
    one, two, three, four, five = (load(f"asq_tsq/table{n}") for n in range(1, 6))

    def of(table: Table, ending: str) -> dict[str, float]:
        return dict(next(row for row in table.rows if row.title.endswith(ending)).paper)

    assert of(one, "+ASQ") == of(four, "*+ASQ (=1TR)") and of(two, "+ASQ") == of(five, "*+ASQ (=1TR)")
    assert of(one, "+TSQ+TSW") == of(four, "(=20TR)") == of(three, "8/8 *+TSQ+TSW")
    assert of(two, "+TSQ+TSW") == of(five, "(=20TR)")
    assert of(one, "FP16") == of(three, "FP16") and of(one, "Dynamic") == of(three, "8/8 Dynamic")
    assert of(three, "8/8 *+ASQ") == {**of(one, "+ASQ"), "vqa_a": 53.9969}


@pytest.mark.skipif(not TEXT.is_file(), reason="the text of the paper is not at hand")
@pytest.mark.parametrize("number", range(1, 6))
def test_every_number_is_the_papers_digit_for_digit(number):
    """The numbers of the YAML file as written, in order, are those of the paper's table as printed."""
    printed: list[list[str]] = []
    for line in TEXT.read_text().splitlines():
        if line.startswith("| ") and "CLIPSIM" in line:
            printed.append([])
        elif line.startswith("| ") and printed:
            printed[-1] += re.findall(r"(?<![\w.])\d+\.\d{4}(?!\d)", line)
    source = (CONF / "table" / f"asq_tsq/table{number}.yaml").read_text().partition("\nrows:")[2]
    assert re.findall(r"(?:clipsim|clip_temp|vqa_a|vqa_t): ([\d.]+)", source) == printed[number - 1]
