"""Finished tables: what is read back is what was written, and laid out as in Markdown."""

from __future__ import annotations

import json

import made_results
import pytest

from vdqbench.report import layout, render
from vdqbench.report.html.tables import laid_out, read_table
from vdqbench.report.table import Table, rows


@pytest.fixture(scope="module")
def rendered():
    return made_results.table(made_results.records())


def test_json_round_trip_keeps_everything_that_is_shown(rendered):
    back = read_table(json.loads(render.to_json(rendered)))
    assert render.to_markdown(back) == render.to_markdown(rendered)
    assert back.lines == rendered.lines and back.headings == rendered.headings and back.agreement == rendered.agreement
    assert rendered.agreement is not None


def test_keys_of_a_later_version_are_left_aside_and_others_are_missed(rendered):
    data = json.loads(render.to_json(rendered))
    data["later"] = data["lines"][0]["later"] = data["lines"][0]["cells"][0]["later"] = 1
    assert read_table(data).lines == rendered.lines
    with pytest.raises(KeyError, match="lines"):
        read_table({"name": "torn"})
    data["lines"][0]["cells"].pop()
    with pytest.raises(TypeError, match="another number of cells"):
        read_table(data)


def test_texts_are_those_of_the_layout(rendered):
    page = laid_out(rendered)
    assert page["name"] == "toy/table1" and page["group"] == "W/A" and page["footnotes"] == list(rendered.footnotes)
    assert [text["value"] for text in page["headings"]] == ["CLIPSIM ↑", "paper", "Size ↓"]
    for line, expected in zip(page["lines"], rendered.lines, strict=True):
        assert [text["value"] for text in line["cells"]] == [text.value for text in layout.cells(rendered, expected)]
    tsq = page["lines"][1]
    assert tsq["cells"][0] == {"value": "0.790", "beside": "-0.010* ±0.000", "rank": 1}
    assert tsq["cells"][1] == {"value": "0.190", "printed": True}
    assert tsq["id"] == f"tsq-{rendered.lines[1].key}"
    lost = page["lines"][3]
    assert lost["state"] == "failed" and lost["cells"][0] == {"value": "failed", "notes": [1]} and "failed" in page["footnotes"][0]
    assert page["agreement"]["claims"]["rows"][0][0] == "TSQ > Dynamic on clipsim"
    assert page["agreement"]["heading"] == "Agreement with the paper"
    assert json.loads(json.dumps(page)) is not None


def test_claims_of_a_table_without_a_paper_are_nobody_elses():
    columns = [{"score": "clipsim", "digits": 3}]
    lines = [{"label": name, "overrides": [f"method={name}"]} for name in ("fp", "tsq")]
    table = Table.from_config({"name": "own", "title": "Own", "columns": columns, "rows": lines, "claims": ["fp > tsq on clipsim"]})
    agreement = laid_out(rows(table, made_results.records()[:2]))["agreement"]
    assert agreement["heading"] == "What was claimed beforehand" and agreement["claims"]["head"] == ("claim", "measured")
    assert agreement["claims"]["rows"] == [("fp > tsq on clipsim", "holds (0.800 against 0.790)")]
