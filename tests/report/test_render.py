"""Every layout of one table that has everything in it: a reference, ranks, a hole, an average, marks, hostile characters."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from rich.console import Console

from vdqbench.report import layout, render
from vdqbench.report.table import Table, rows

CONFIG = {
    "name": "paper/table9",
    "title": "Bits & pieces_100%",
    "group_label": "W/A",
    "paper": {"title": "A | B", "arxiv": "1234.5678", "table": 9, "model": "opensora_v1"},
    "columns": [
        {"score": "clipsim", "label": "CLIPSIM", "paper": "clipsim", "digits": 3},
        {"score": "vqa", "label": "VQA", "paper": "vqa", "digits": 2, "unavailable": "not yet"},
        {"score": "weight_size", "label": "Size_MB", "digits": 1},
    ],
    "rows": [
        {"label": "FP16 [27]", "overrides": ["method=fp"], "reference": True, "paper": {"clipsim": 0.195, "vqa": 54.273}},
        {"label": "*+ASQ", "group": "8/8", "overrides": ["method=asq"], "paper": {"clipsim": 0.2}},
        {"label": "TSQ|2", "group": "8/8", "overrides": ["method=tsq"]},
        {"label": "lost", "group": "4/4", "overrides": ["method=lost"]},
        {"label": "Mean", "group": "Average", "average_of": {"label": ["*+ASQ", "TSQ|2"]}, "paper": {"clipsim": 0.1}},
    ],
    "presets": {"mini": {"overrides": ["model=mini_stdit"]}},
}


@pytest.fixture
def rendered(make_record):
    made = [
        make_record({"clipsim": [0.30, 0.32], "weight_size": 4.0}, method="fp", bits="fp", kernel=None),
        make_record({"clipsim": [0.20, 0.22], "weight_size": 2.0}, method="asq"),
        make_record({"clipsim": [0.31, 0.31], "weight_size": 3.0}, method="tsq"),
        make_record(state="failed", reason="RuntimeError: <b> 50% of x_1 & y\nmore", method="lost"),
    ]
    return rows(Table.from_config(CONFIG), made, preset="mini")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]


def test_markdown(rendered):
    lines = render.to_markdown(rendered).splitlines()
    assert lines[0] == r"### Bits & pieces\_100%, measured on mini\_stdit"
    assert cells_of(lines[2]) == ["W/A", "row", "CLIPSIM ↑", "paper", r"VQA \[1\]", "paper", r"Size\_MB ↓"]
    assert len({line.replace(r"\|", "").count("|") for line in lines[2:9]}) == 1
    assert cells_of(lines[4]) == ["", r"FP16 \[27\]", "0.310", "0.195", "n/a", "54.27", "4.0"]
    assert cells_of(lines[5]) == ["8/8", r"\*+ASQ", r"0.210 (-0.100\* ±0.000)", "0.200", "n/a", "", "**2.0**"]
    assert cells_of(lines[6]) == ["8/8", r"TSQ\|2", "**0.310** (+0.000 ±0.010)", "", "n/a", "", "3.0"]
    assert cells_of(lines[7]) == ["4/4", "lost", r"failed \[2\]", "", "n/a", "", r"failed \[2\]"]
    assert cells_of(lines[8]) == ["Average", "Mean", r"0.260 (-0.050\* ±0.005)", "0.100", "n/a", "", "2.5"]
    assert r"- \[2\] 4/4 lost: failed: RuntimeError: \<b\> 50% of x\_1 & y more" in lines


def test_latex(rendered):
    text = render.to_tex(rendered)
    lines = text.splitlines()
    assert r"\caption{Bits \& pieces\_100\%, measured on mini\_stdit}" in lines
    assert r"\label{tab:paper-table9}" in lines
    assert r"\begin{tabular}{llrrrrr}" in lines
    assert r" & FP16 {[}27{]} & 0.310 & 0.195 & n/a & 54.27 & 4.0 \\" in lines
    expected = r"8/8 & \textasteriskcentered{}+ASQ & 0.210 ($-$0.100\textasteriskcentered{} $\pm$0.000) & 0.200 & n/a &  & \textbf{2.0} \\"
    assert expected in lines
    assert lines.count(r"\midrule") == 4
    body = [line for line in lines if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {6}
    assert r"failed\textsuperscript{[2]}" in text and r"{[}2{]} 4/4 lost: failed" in text
    assert r"\textless{}b\textgreater{} 50\% of x\_1 \& y more\par" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_every_special_character_of_latex_is_escaped():
    assert render._tex(r"a\b^~#$%&_{}") == (r"a\textbackslash{}b\textasciicircum{}\textasciitilde{}\#\$\%\&\_\{\}")
    assert render._tex("w8-a8 -0.5 x-ray") == "w8-a8 $-$0.5 x-ray"


def test_csv_is_tidy_and_exact(rendered):
    found = list(csv.DictReader(io.StringIO(render.to_csv(rendered))))
    assert len(found) == 5 * 3 and tuple(found[0]) == render.CSV_FIELDS
    by = {(row["group"], row["row"], row["score"]): row for row in found}
    asq = by["8/8", "*+ASQ", "clipsim"]
    assert float(asq["mean"]) == pytest.approx(0.21) and float(asq["difference"]) == pytest.approx(-0.1)
    assert float(asq["se"]) == pytest.approx(0.01) and asq["significant"] == "True" and asq["n"] == "2"
    assert (asq["table"], asq["preset"], asq["model"], asq["method"], asq["bits"]) == ("paper/table9", "mini", "mini_stdit", "asq", "w8a8")
    assert asq["paper"] == "0.2" and asq["paper_difference"] == "" and len(asq["key"]) == 16
    assert by["8/8", "*+ASQ", "vqa"]["cell_state"] == "unavailable" and by["8/8", "*+ASQ", "vqa"]["mean"] == ""
    lost = by["4/4", "lost", "clipsim"]
    assert (lost["state"], lost["mean"]) == ("failed", "") and lost["reason"].startswith("RuntimeError")
    assert by["Average", "Mean", "clipsim"]["kind"] == "average" and by["", "FP16 [27]", "clipsim"]["kind"] == "reference"


def test_json_is_strict(rendered, make_record):
    data = json.loads(render.to_json(rendered))
    assert data["lines"][1]["cells"][0]["difference"]["n"] == 2 and data["lines"][3]["reason"].startswith("RuntimeError")
    made = rows(Table.from_config(CONFIG), [make_record({"clipsim": [math.inf]}), None, None, None])
    assert json.loads(render.to_json(made))["lines"][0]["cells"][0]["mean"] is None


def shown(rendered, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render.to_rich(rendered, width))
    return console.file.getvalue()


def test_terminal(rendered):
    text = shown(rendered, 100)
    assert "Bits & pieces_100%, measured on mini_stdit" in text and "FP16 [27]" in text and "failed [2]" in text
    assert "-0.100* ±0.000" in text and "VQA" in text and "n/a" not in text
    assert "[2] 4/4 lost: failed: RuntimeError: <b> 50% of x_1 & y" in text
    narrow = shown(rendered, 50)
    assert "-0.100* ±0.000" not in narrow and "-0.100*" in narrow and "±0.000" in narrow


def test_the_terminal_marks_best_and_second(make_record):
    config = {"name": "t", "title": "T", "columns": [{"score": "clipsim"}], "rows": [{"label": c, "overrides": [f"m={c}"]} for c in "abc"]}
    made = rows(Table.from_config(config), [make_record({"clipsim": [v]}) for v in (0.1, 0.3, 0.2)])
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(render.to_rich(made))
    text = console.file.getvalue()
    assert "\x1b[1m0.300" in text and "\x1b[4m0.200" in text and "\x1b[1m0.100" not in text


def test_the_difference_to_the_paper_is_shown_on_its_own_model(make_record):
    made = [make_record({"clipsim": [0.205], "weight_size": 1.0}, model="opensora_v1") for _ in range(4)]
    text = render.to_markdown(rows(Table.from_config(CONFIG), made))
    assert "0.195 (ours +0.010)" in text and "0.200 (ours +0.005)" in text


def test_files_are_written_whole(rendered, tmp_path):
    paths = render.write_all(rendered, tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == [f"paper/table9-mini.{s}" for s in ("md", "csv", "tex", "json")]
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)
    assert paths[0].read_text() == render.to_markdown(rendered) and paths[1].read_text() == render.to_csv(rendered)


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.195, 4, False, "0.1950"),
        (-0.00001, 3, True, "+0.000"),
        (-0.00001, 3, False, "0.000"),
        (-1.5, 1, True, "-1.5"),
        (math.inf, 1, False, "inf"),
    ],
)
def test_numbers(value, digits, sign, text):
    assert layout.number(value, digits, sign) == text


def test_a_table_wider_than_the_terminal_is_cut_into_parts_that_fit(rendered):
    wide, narrow = shown(rendered, 100), shown(rendered, 34)
    assert wide.count("FP16 [27]") == 1 and narrow.count("FP16 [27]") > 1
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 34
    for text in ("CLIPSIM", "VQA", "Size_MB", "0.210", "54.27", "2.5"):
        assert text in narrow
