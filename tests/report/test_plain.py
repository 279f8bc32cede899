"""The plain overview: rows, order, files, failures."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from vdqbench.errors import ConfigError
from vdqbench.report import plain


@pytest.fixture
def records(make_record):
    return [
        make_record({"clipsim": [0.2, 0.4], "weight_size": 3.0}, method="tsq"),
        make_record({"clipsim": [0.5, 0.5]}, method="asq"),
        make_record(method="cw_tw", state="failed", reason="ValueError: [bold]no[/bold]"),
        make_record(method="dynamic", state="skipped", reason="not here"),
    ]


def test_rows_are_flat_complete_and_in_order(records):
    rows = plain.overview_rows(records)
    assert [row["method"] for row in rows] == ["asq", "cw_tw", "dynamic", "tsq"]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert rows[3]["clipsim"] == pytest.approx(0.3) and rows[3]["weight_size"] == 3.0 and rows[3]["n"] == 2
    assert rows[1]["clipsim"] is None and rows[1]["n"] is None and rows[1]["reason"].startswith("ValueError")


def test_sorted_by_a_score_the_best_comes_first_and_holes_last(records, make_record):
    assert [row["method"] for row in plain.overview_rows(records, "clipsim")] == ["asq", "tsq", "cw_tw", "dynamic"]
    small = make_record({"weight_size": 1.0}, method="small")
    assert [row["method"] for row in plain.overview_rows([*records, small], "weight_size")][:2] == ["small", "tsq"]
    assert [row["state"] for row in plain.overview_rows(records, "state")] == ["done", "done", "failed", "skipped"]
    with pytest.raises(ConfigError, match=r"sort=clipsin is not a column of the overview \(did you mean clipsim"):
        plain.overview_rows(records, "clipsin")


def test_the_terminal_shows_states_scores_and_keys(records):
    console = Console(width=110, file=io.StringIO(), color_system=None)
    console.print(plain.overview(records))
    text = console.file.getvalue()
    assert "CLIPSIM" in text and "0.3" in text and "failed" in text and records[0].key in text
    console.print(plain.overview([]))


def test_csv_round_trip(records, tmp_path):
    path = plain.write_csv(records, tmp_path / "new" / "report.csv")
    found = list(csv.DictReader(path.open()))
    assert [row["method"] for row in found] == ["asq", "cw_tw", "dynamic", "tsq"]
    assert float(found[3]["clipsim"]) == records[0].scores["clipsim"]["mean"] and found[1]["clipsim"] == ""
    assert plain.to_csv([]).startswith("model,method,bits")


def test_summary_counts_states_and_names_failures(records):
    assert plain.summary(records).splitlines() == [
        "4 cells: 2 done, 1 failed, 1 skipped",
        f"failed mini_stdit-cw_tw-w8a8 {records[2].key}: ValueError: [bold]no[/bold]",
        f"skipped mini_stdit-dynamic-w8a8 {records[3].key}: not here",
    ]
    assert plain.summary(records[:1]) == "1 cell: 1 done" and plain.summary([]) == "no cells"


def test_records_are_found_below_a_folder_and_a_broken_one_is_shown(records, tmp_path):
    for record in records[:2]:
        record.save(tmp_path / "runs" / "mini_stdit" / f"{record.cell['method']}-w8a8-{record.key}" / "record.json")
    broken = tmp_path / "runs" / "mini_stdit" / "dynamic-w4a4-0123" / "record.json"
    broken.parent.mkdir()
    broken.write_text("{")
    found = plain.load_all(tmp_path)
    assert sorted(r.state for r in found) == ["done", "done", "failed"]
    lost = next(r for r in found if r.state == "failed")
    assert (lost.key, lost.cell["method"]) == ("0123", "dynamic-w4a4") and "cannot be read" in lost.reason
    assert len(plain.overview_rows(found)) == 3 and "dynamic-w4a4" in plain.summary(found)
    assert plain.load_all(tmp_path / "nowhere") == []
