"""What is known of a cell, and what its run says: closed forms over a folder made up by hand."""

from __future__ import annotations

import json
import math

import pytest
from tracked import ASQ, FP, TABLE, TSQ, records, results

from vdqbench.record import Record
from vdqbench.report.paired import Estimate
from vdqbench.report.table import Cell, Heading, Line, Rendered
from vdqbench.track import content, page
from vdqbench.track.facts import Facts


def test_the_summary_has_stable_names_and_right_numbers(tmp_path):
    found = content.summary(Facts.of(results(tmp_path)["tsq"]))
    apart = [0.7 - 0.8, 0.75 - 0.82, 0.8 - 0.81]
    mean = sum(apart) / 3
    error = math.sqrt(sum((d - mean) ** 2 for d in apart) / 2 / 3)
    assert found == {
        **{"state": "done", "peak_memory_bytes": 7, "seconds/generate": 1.5},
        **{"clipsim": 0.75, "clipsim/n": 3, "clipsim/stderr": pytest.approx(0.05 / math.sqrt(3))},
        **{"clipsim/delta_fp": pytest.approx(mean), "clipsim/delta_fp_stderr": pytest.approx(error)},
        **{"clipsim/paper": 0.77, "clipsim/delta_paper": pytest.approx(-0.02)},
        **{"psnr": 30.0, "psnr/n": 3, "psnr/stderr": pytest.approx(1 / math.sqrt(3))},
        **{"frechet": 12.5, "frechet/n": 1},
        **{"weight_size": 2.5, "weight_size/n": 1, "weight_size/delta_fp": -1.5},
    }


def test_the_reference_is_compared_with_papers_only(tmp_path):
    found = content.summary(Facts.of(results(tmp_path)["fp"]))
    assert found["clipsim/delta_paper"] == pytest.approx(0.01) and not [name for name in found if "delta_fp" in name]


def test_a_failed_cell_says_why(tmp_path):
    facts = Facts.of(results(tmp_path)["asq"])
    found = content.summary(facts)
    assert (found["state"], found["reason"]) == ("failed", "it broke") and not any("/" in name for name in found if "seconds" not in name)
    assert content.per_video(facts.record) == (["prompt_id", "prompt", "seed", "mp4"], [])


def test_on_another_model_than_the_papers_no_difference_is_formed(tmp_path):
    table = {**TABLE, "paper": {**TABLE["paper"], "model": "opensora_v1"}}
    found = content.summary(Facts.of(results(tmp_path, table)["tsq"]))
    assert found["clipsim/paper"] == 0.77 and "clipsim/delta_paper" not in found


def test_a_table_in_another_unit_or_older_than_the_record_says_nothing(tmp_path):
    folder = results(tmp_path)["tsq"]
    assert "weight_size" not in Facts.of(folder).paper, "the column is in GB, the record in MB"
    newer = Record.load(folder / "record.json")
    newer.scores["clipsim"]["mean"] = 0.76
    newer.save(folder / "record.json")
    assert Facts.of(folder).paper == {} and Facts.of(folder).tables == ("mine/table1",)


def test_the_table_that_a_cell_was_run_in_comes_before_others(tmp_path):
    folder = results(tmp_path)["tsq"]
    other = {**json.loads((tmp_path / "tables/mine/table1.json").read_text()), "name": "also"}
    for line in other["lines"]:
        line["cells"][0]["paper"] = 0.1
    (tmp_path / "tables/also.json").write_text(json.dumps(other))
    (tmp_path / "tables/broken.json").write_text("{")
    (tmp_path / "tables/list.json").write_text("[1]")
    facts = Facts.of(folder)
    assert facts.tables == ("mine/table1", "also") and facts.paper["clipsim"] == 0.77 and facts.group == "mine/table1"
    record = Record.load(folder / "record.json")
    record.config["study"] = None
    record.save(folder / "record.json")
    assert Facts.of(folder).group == "also" and Facts.of(folder).paper["clipsim"] == 0.1


@pytest.mark.parametrize("change", ["missing", "failed", "unreadable"])
def test_without_a_done_reference_there_is_no_difference_to_it(tmp_path, change):
    folders = results(tmp_path)
    file = folders["fp"] / "record.json"
    if change == "failed":
        lost = Record.load(file)
        lost.state = "failed"
        lost.save(file)
    else:
        file.unlink() if change == "missing" else file.write_text("{")
    facts = Facts.of(folders["tsq"])
    assert facts.reference is None and not [name for name in content.summary(facts) if "delta_fp" in name]


def test_the_fingerprint_changes_with_what_would_be_sent(tmp_path):
    folders, options = results(tmp_path), {"project": "p", "mode": "offline"}
    seen = [Facts.of(folders["tsq"]).fingerprint(options)]
    assert Facts.of(folders["tsq"]).fingerprint(dict(options)) == seen[0]
    seen.append(Facts.of(folders["tsq"]).fingerprint({**options, "mode": "online"}))
    reference = Record.load(folders["fp"] / "record.json")
    reference.scores["clipsim"]["values"][0] = 0.9
    reference.save(folders["fp"] / "record.json")
    seen.append(Facts.of(folders["tsq"]).fingerprint(options))
    folders["table"].unlink()
    seen.append(Facts.of(folders["tsq"]).fingerprint(options))
    (folders["fp"] / "record.json").unlink()
    seen.append(Facts.of(folders["tsq"]).fingerprint(options))
    assert len(set(seen)) == 5


def test_infinite_scores_are_left_out(tmp_path):
    record = records()[f"tsq-w4a8-{TSQ}"]
    record.scores["psnr"] |= {"mean": math.inf, "values": [math.inf, 30.0, 31.0]}
    found = content.summary(Facts(tmp_path, record))
    assert "psnr" not in found and found["psnr/n"] == 3 and "psnr/stderr" not in found
    columns, rows = content.per_video(record)
    assert [row[columns.index("psnr")] for row in rows] == [None, 30.0, 31.0]


def test_the_config_has_the_flat_cell_and_no_places(tmp_path):
    found = content.config(Facts.of(results(tmp_path)["tsq"]))
    assert found["cell"]["method"] == "tsq" and found["cell"]["key"] == TSQ and found["cell"]["tables"] == ["mine/table1"]
    assert found["method"] == {"name": "tsq", "ranges": 20} and found["keys"] == {"reference": FP}
    assert not {"out", "tracker", "quiet", "plan"} & found.keys()


def test_curves_by_step():
    assert content.by_step(records()[f"tsq-w4a8-{TSQ}"]) == [
        {
            **{"step": 0, "curve/sqnr": 20.0, "curve/sqnr_ffn": 15.0, "curve/sqnr_self_attn": 30.0},
            **{"curve/activation_bits": 8.0, "curve/computed": 1.0},
        },
        {"step": 1, "curve/sqnr": 30.0, "curve/sqnr_ffn": 30.0, "curve/activation_bits": 6.0, "curve/computed": 0.5},
        {
            **{"step": 2, "curve/sqnr": 20.0, "curve/sqnr_ffn": 30.0, "curve/sqnr_self_attn": 10.0},
            **{"curve/activation_bits": 4.0, "curve/computed": 0.0},
        },
    ]
    assert content.by_step(records()[f"asq-w4a8-{ASQ}"]) == []


def test_layers():
    columns, rows = content.by_layer(records()[f"tsq-w4a8-{TSQ}"])
    assert columns == ["layer", "name", "role", "sqnr", "least_sqnr", "worst_step"]
    assert rows == [
        [0, "a.up", "ffn.up", 20.0, 10.0, 0],
        [1, "b.q", "self_attn.q", 20.0, 10.0, 2],
        [2, "c.up", "ffn.up", 30.0, 20.0, 0],
    ]


def test_a_table_as_a_page_and_as_rows():
    cells = (Cell("done", 1.0, rank=1, difference=Estimate(-0.5, 0.1, 3)), Cell("done", 2.0, rank=2, notes=(1,), paper=3.0))
    headings = (Heading("a", "A<b", 1, True, None, False), Heading("b", "A<b", 2, True, 2, False))
    lines = (Line("x & y", "4/8", "cell", "done", cells), Line("z", "4/8", "cell", "missing", (Cell("missing"), Cell("missing"))))
    rendered = Rendered("t", "T > S", None, "W/A", headings, lines, ("why",), ("seen",))
    assert page.rows(rendered) == (
        ["W/A", "row", "state", "A<b ↑", "A<b ↑ (b)", "A<b paper"],
        [["4/8", "x & y", "done", "1.0 -0.5* ±0.1", "2.00", "3.00"], ["4/8", "z", "missing", "not run", "not run", ""]],
    )
    text = page.to_html(rendered)
    assert "<h3>T &gt; S</h3>" in text and "A&lt;b ↑" in text and "A<b" not in text
    assert '<td class="l">4/8</td><td class="l">x &amp; y</td><td><b>1.0</b> <small>-0.5* ±0.1</small></td>' in text
    assert "<td><u>2.00</u><sup>[1]</sup></td><td class=p>3.00</td></tr>" in text
    assert '<td class="l"></td><td class="l">z</td><td>not run</td>' in text and "<li>[1] why</li><li>seen</li>" in text
