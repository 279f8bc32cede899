"""Agreement below a table: golden text on made-up records."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vdqbench.errors import ConfigError
from vdqbench.report import render
from vdqbench.report.table import Table, rows

CONFIG = {
    "name": "paper/table1",
    "title": "T",
    "group_label": "W/A",
    "paper": {"title": "P", "arxiv": "1234.5678", "table": 1, "model": "big"},
    "columns": [
        {"score": "clipsim", "label": "CLIPSIM", "paper": "clip", "digits": 2, "higher_is_better": True},
        {"score": "fvd", "label": "FVD", "paper": "fvd", "digits": 0, "higher_is_better": False},
    ],
    "rows": [
        {"label": "FP", "overrides": ["method=fp"], "reference": True, "paper": {"clip": 0.30, "fvd": 100}},
        {"label": "A", "group": "8/8", "overrides": ["method=a"], "paper": {"clip": 0.29, "fvd": 110}},
        {"label": "B", "group": "8/8", "overrides": ["method=b"], "paper": {"clip": 0.28, "fvd": 120}},
        {"label": "C", "group": "8/8", "overrides": ["method=c"], "paper": {"clip": 0.27, "fvd": 130}},
        {"label": "D", "group": "8/8", "unavailable": "its code is not to be had", "paper": {"clip": 0.1, "fvd": 900}},
        {"label": "A", "group": "4/4", "overrides": ["method=a4"], "paper": {"clip": 0.20, "fvd": 500}},
        {"label": "B", "group": "4/4", "overrides": ["method=b4"], "paper": {"clip": 0.10, "fvd": 400}},
        {"label": "A", "group": "Average", "average_of": {"label": "A"}, "paper": {"clip": 0.245}},
    ],
    "claims": [
        "A > B on clip, mean over all",
        "A > B on fvd, in each of all",
        "8/8 A ~ FP on fvd by at most 10",
        "8/8 A > 8/8 C on fvd by at least 15",
        "A > C on clip, in each of 8/8",
        "8/8 D < 8/8 A on clip",
    ],
}
CLIP = {"fp": [0.5, 0.5], "a": [0.4, 0.5], "b": [0.45, 0.55], "c": [0.2, 0.1], "a4": [0.3, 0.3], "b4": [0.2, 0.1]}
FVD = {"fp": 0.0, "a": 5.0, "b": 6.0, "c": 7.0, "a4": 50.0, "b4": 40.0}
GOLDEN = """\

Order of the methods, ours against the paper's: Kendall's tau-b over pairs within a group, two-sided p under random order; \\* marks a \
difference of ours of more than two standard errors

| score | rows | tau-b | p | pairs the other way round (ours) |
| :-- | --: | --: | --: | :-- |
| CLIPSIM | 5 | +0.50 | 0.67 | 8/8 B before 8/8 A (+0.05\\*) |
| FVD | 5 | +1.00 | 0.17 |  |

| claim of the paper | in its own numbers | in ours |
| :-- | :-- | :-- |
| A \\> B on clip, mean over all | holds (0.24 against 0.19) | holds (0.38 against 0.33) |
| A \\> B on fvd, in each of all | does not hold (110 against 120, 500 against 400) | does not hold (5 against 6, 50 against 40) |
| 8/8 A ~ FP on fvd by at most 10 | holds (110 against 100) | not comparable |
| 8/8 A \\> 8/8 C on fvd by at least 15 | holds (110 against 130) | holds (5 against 7); order alone |
| A \\> C on clip, in each of 8/8 | holds (0.29 against 0.27) | holds (0.45 against 0.15) |
| 8/8 D \\< 8/8 A on clip | holds (0.10 against 0.29) | not measured |
"""


@pytest.fixture
def records(make_record):
    made = [make_record({"clipsim": CLIP[m], "fvd": FVD[m]}, method=m) for m in CLIP]
    for record in made:
        record.scores["fvd"] |= {
            "higher_is_better": False,
            "interval": [record.scores["fvd"]["mean"] - 1, record.scores["fvd"]["mean"] + 2],
        }
    return made


def test_golden_markdown(records):
    text = render.to_markdown(rows(Table.from_config(CONFIG), records))
    assert text.endswith(GOLDEN) and text.count("\n\n\n") == 0


def test_the_same_in_the_terminal_and_in_json(records):
    rendered = rows(Table.from_config(CONFIG), records)
    console = Console(width=140, file=io.StringIO(), color_system=None)
    console.print(render.to_rich(rendered, 140))
    text = console.file.getvalue()
    assert "8/8 B before 8/8 A (+0.05*)" in text and "claim of the paper" in text and "not comparable" in text
    data = json.loads(render.to_json(rendered))["agreement"]
    assert data["grouped"] and data["orderings"][0]["flips"][0]["apart"]["n"] == 2
    assert [o["tau"] for o in data["orderings"]] == [0.5, 1.0] and len(data["verdicts"]) == 6
    assert data["orderings"][1]["p"] == pytest.approx(2 / 12)


def test_margins_count_on_the_papers_own_model(make_record):
    made = [make_record({"clipsim": CLIP[m], "fvd": FVD[m]}, method=m, model="big") for m in CLIP]
    verdicts = {v.claim: v.ours for v in rows(Table.from_config(CONFIG), made).agreement.verdicts}
    assert verdicts["8/8 A > 8/8 C on fvd by at least 15"].startswith("does not hold")
    assert verdicts["8/8 A ~ FP on fvd by at most 10"].startswith("holds")


def test_before_anything_ran_the_papers_numbers_speak_alone():
    agreement = rows(Table.from_config(CONFIG), [None] * 6).agreement
    assert agreement.orderings == () and {v.ours for v in agreement.verdicts} == {"not measured", "not comparable"}
    assert agreement.verdicts[0].paper.startswith("holds")


def test_a_table_without_paper_numbers_has_none(make_record):
    config = {**CONFIG, "paper": None, "claims": []}
    assert rows(Table.from_config(config), [None] * 6).agreement is None


def test_a_misspelt_claim_is_refused_with_the_table():
    with pytest.raises(ConfigError, match=r"table paper/table1: claims: .* \(did you mean fvd\?\)"):
        Table.from_config({**CONFIG, "claims": ["8/8 A > 8/8 B on fdv"]})


def test_a_row_that_cannot_be_run_says_why_and_keeps_the_papers_numbers(records):
    rendered = rows(Table.from_config(CONFIG), records)
    line = next(line for line in rendered.lines if line.label == "D")
    assert line.kind == "unavailable" and line.cells[0].paper == 0.1 and line.cells[0].mean is None
    assert rendered.footnotes[line.cells[0].notes[0] - 1] == "8/8 D: its code is not to be had"
    assert len(Table.from_config(CONFIG).cells()) == 6


def test_the_interval_of_a_sets_score_is_shown(records):
    rendered = rows(Table.from_config(CONFIG), records)
    assert "| **5** ([4, 7]) |" in render.to_markdown(rendered).replace("\\", "")
    assert any(note.startswith("in brackets: 95 %") for note in rendered.notes)


def test_a_table_without_a_paper_can_state_claims_about_its_scores(records):
    bare = {key: value for key, value in CONFIG.items() if key not in ("paper", "claims")}
    bare["columns"] = [{key: value for key, value in column.items() if key != "paper"} for column in CONFIG["columns"]]
    bare["rows"] = [{key: value for key, value in row.items() if key != "paper"} for row in CONFIG["rows"]]
    table = Table.from_config({**bare, "claims": ["A > B on clipsim, in each of all", "8/8 A ~ FP on fvd by at most 4"]})
    made = rows(table, records)
    assert made.agreement.orderings == () and [v.paper for v in made.agreement.verdicts] == [None, None]
    assert render.to_markdown(made).endswith(
        "\n| claim | measured |\n| :-- | :-- |\n"
        "| A \\> B on clipsim, in each of all | does not hold (0.45 against 0.50, 0.30 against 0.15) |\n"
        "| 8/8 A ~ FP on fvd by at most 4 | does not hold (5 against 0) |\n"
    )
    with pytest.raises(ConfigError, match=r"is about clip, which is no number here \(did you mean clipsim\?\)"):
        Table.from_config({**bare, "claims": ["A > B on clip, in each of all"]})
    assert rows(Table.from_config(bare), records).agreement is None
