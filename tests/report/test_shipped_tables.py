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
PAPERS = ROOT.parent / "shared" / "papers"
VALUES = {
    **{"asq_tsq/table1": 24, "asq_tsq/table2": 24, "asq_tsq/table3": 124, "asq_tsq/table4": 20, "asq_tsq/table5": 20},
    **{"qvd/table1": 52, "qvd/table2": 104, "qvd/table3": 10, "qvd/table4": 16, "qvd/table5": 8, "qvd/table6": 9},
    **{"dvd_quant/table1": 88, "dvd_quant/table2": 5, "dvd_quant/table3": 30, "dvd_quant/table4": 12, "dvd_quant/table5": 8},
}
"""How many numbers each table of the papers prints."""


def load(name: str) -> Table:
    return Table.from_config(yaml.safe_load((CONF / "table" / f"{name}.yaml").read_text()))


def metrics() -> dict[str, dict]:
    """Each metric by name, a family as what it is made of."""
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "metric").glob("*.yaml")}
    single = {name: {**node, "owners": dict.fromkeys(node["scores"] or (), node)} for name, node in found.items() if "scores" in node}
    for name, node in found.items():
        if "defaults" in node:
            owners = {score: owner for part in node["defaults"] for score, owner in single[part]["owners"].items()}
            single[name] = {"scores": list(owners), "owners": owners}
    return single


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


def test_the_papers_numbers_have_its_decimals_whatever_ours_have():
    table = load("qvd/table1")
    text = render.to_markdown(rows(table, [None] * len(table.cells("mini")), "mini"))
    assert "| 22.8 |" in text and "| 9735 |" in text and "| 44.47 |" in text


@pytest.mark.parametrize(("name", "preset"), conditions())
def test_every_override_names_an_option(name, preset):
    known = {folder.name: {path.stem for path in folder.glob("*.yaml")} for folder in CONF.iterdir() if folder.is_dir()}
    missing = set()
    for cell in load(name).cells(preset):
        for key, value in overrides(cell).items():
            if "." in key:
                group, *path = key.split(".")
                chosen = path.pop(0) if group == "metric" else overrides(cell)[group]
                assert group != "metric" or chosen in overrides(cell)["metric"].strip("[]").split(",")
                node = yaml.safe_load((CONF / group / f"{chosen}.yaml").read_text())
                for option in path:
                    assert option in node, f"{key} is not a key of {group}={chosen}"
                    node = node[option]
                continue
            missing |= {f"{key}={option}" for option in value.strip("[]").split(",") if option not in known.get(key, ())}
    assert not missing


@pytest.mark.parametrize(("name", "preset"), conditions())
def test_every_column_is_given_by_the_chosen_metrics(name, preset):
    table, known = load(name), metrics()
    chosen = overrides(table.cells(preset)[0])["metric"].strip("[]").split(",")
    owner = {score: node for metric in chosen for score, node in known[metric]["owners"].items()}
    for metric in chosen:
        named = overrides(table.cells(preset)[0]).get(f"metric.{metric}.scores", "")
        owner |= {score: known[metric] for score in named.strip("[]").split(",") if score}
    for column in table.preset(preset).columns:
        if column.paper:
            assert column.higher_is_better is not None, "claims need a direction"
        if column.unavailable:
            assert column.score not in {s for metric in known.values() for s in metric["owners"]}, "it can be had now"
            assert column.higher_is_better is not None
        else:
            alone = column.score.startswith("clip_")  # QVD's: of prompt, picture and neighbouring frames
            assert column.paired == (owner[column.score]["mode"] == "paired" and not alone), column.score


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


@pytest.mark.parametrize("name", VALUES)
def test_every_number_is_there(name):
    table = load(name)
    assert sum(len(row.paper) for row in table.rows) == VALUES[name]
    printed = [tuple(row.paper) for row in table.rows if row.paper]
    assert name == "qvd/table6" or len(set(printed)) == 1, "every row of a paper's table has all its numbers, in one order"


def test_the_three_papers_print_554_numbers_and_the_sweep_states_four_points():
    assert sum(VALUES.values()) == 554 and {name for name in TABLES if "/" in name} == {*VALUES, "dvd_quant/fig6"}
    points = {row.label: dict(row.paper) for row in load("dvd_quant/fig6").rows if row.paper}
    assert points == {"δ = 0": {"bits": 8.0}, "δ = 0.06": {"imaging": 62.11}, "δ = 0.18": {"imaging": 61.0}, "δ = ∞": {"bits": 4.0}}


@pytest.mark.parametrize("name", [name for name in TABLES if "/" in name])
def test_every_paper_table_has_a_mini_and_claims(name):
    table = load(name)
    assert "mini" in table.presets and table.claims and table.paper is not None
    assert len(table.cells("mini")) == len(table.cells()) <= 28


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


def printed_numbers(paper: str) -> dict[str, list[str]]:
    """The numbers of each table of a paper's text, as printed, in order."""
    lines = (PAPERS / f"{paper}.txt").read_text().splitlines()
    found: dict[str, list[str]] = {}
    table: str | None = None
    number = {"asq_tsq": r"(?<![\w.])\d+\.\d{4}(?!\d)", "qvd": r"(?<=\t)\d+(?:\.\d+)?(?=\t|$)", "dvd_quant": r"(?<=\| )\d+\.\d+(?= \|)"}[
        paper
    ]
    starts = {"asq_tsq": r"\|.*CLIPSIM", "qvd": r"Table (\d):", "dvd_quant": r"Methods? \|.*(?:Quality|GBS)|Bit-width \| Memory"}[paper]
    within = {"asq_tsq": "|", "qvd": "\t", "dvd_quant": "|"}[paper]
    for line in lines:
        if re.match(starts, line):
            table = f"{paper}/table{len(found) + 1}"
            found[table] = []
            continue
        if table and within in line:
            found[table] += re.findall(number, line)
        elif table and found[table]:
            table = None
    return found


def test_the_reader_of_the_texts_reads_three_layouts(tmp_path, monkeypatch):
    monkeypatch.setattr("test_shipped_tables.PAPERS", tmp_path)
    (tmp_path / "asq_tsq.txt").write_text(
        "x\n| Method | CLIPSIM |\n|---|---|\n| FP16 [27] | 16/16 | 0.1950 |\n4 Text 0.1234\n| Bit | CLIPSIM |\n| 4/4 | 1.0000 |\n"
    )
    assert printed_numbers("asq_tsq") == {"asq_tsq/table1": ["0.1950"], "asq_tsq/table2": ["1.0000"]}
    (tmp_path / "qvd.txt").write_text("Table 1: Words.\n\nMethod\tBits\tFVD\nFull Precision\t32/32\t22.8\t9735\n\nIn table 1\t5.5\n")
    assert printed_numbers("qvd") == {"qvd/table1": ["22.8", "9735"]}
    (tmp_path / "dvd_quant.txt").write_text("Bit-width | Memory |\n(W/A) | Opt. |\n4/8 (ours) | 3.68 | 1.75 |\nwords\n")
    assert printed_numbers("dvd_quant") == {"dvd_quant/table1": ["3.68", "1.75"]}


@pytest.mark.skipif(not PAPERS.is_dir(), reason="the texts of the papers are not at hand")
@pytest.mark.parametrize("name", VALUES)
def test_every_number_is_the_papers_digit_for_digit(name):
    """The numbers of the YAML file as written, in order, are those of the paper's table as printed."""
    printed = printed_numbers(name.split("/")[0])[name]
    if name == "qvd/table6":  # numbers of frames and of steps are labels here
        printed = [number for i, number in enumerate(printed) if i % 4]
    source = (CONF / "table" / f"{name}.yaml").read_text().partition("\nrows:")[2].partition("\nclaims:")[0]
    written = [number for group in re.findall(r"paper: \{([^}]*)\}", source) for number in re.findall(r": ([\d.]+)", group)]
    assert written == printed and len(printed) == VALUES[name]


@pytest.mark.skipif(not PAPERS.is_dir(), reason="the texts of the papers are not at hand")
def test_the_titles_are_the_papers():
    for paper, words in (("asq_tsq", "Hardware-Friendly Static"), ("qvd", "QVD: Post-training"), ("dvd_quant", "Data-free")):
        assert words in (PAPERS / f"{paper}.txt").read_text() and words in load(f"{paper}/table1").paper.title
