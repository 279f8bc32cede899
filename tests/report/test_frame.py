"""Records as a tidy long frame, in Python, as CSV and as Parquet."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

import vdqbench
from vdqbench.cli import main
from vdqbench.report.frame import COLUMNS, long_rows


@pytest.fixture
def out(tmp_path, make_record):
    done = make_record({"clipsim": [0.1, 0.2, 0.3, 0.4], "weight_size": 4.0, "fvd": 7.0}, seeds=2)
    done.scores["fvd"] |= {"interval": [6.0, 9.0], "higher_is_better": False}
    done.cell |= {"weight": 8, "activation": 8}
    done.save(tmp_path / "runs/mini_stdit/asq-w8a8-1/record.json")
    make_record(state="failed", reason="it broke", method="tsq").save(tmp_path / "runs/mini_stdit/tsq-w8a8-2/record.json")
    return tmp_path


def test_one_row_for_each_cell_video_and_score(out):
    frame = vdqbench.load_records(out)
    assert tuple(frame.columns) == COLUMNS and len(frame) == 4 + 1 + 1 + 1
    videos = frame[frame.score == "clipsim"]
    assert videos.value.tolist() == [0.1, 0.2, 0.3, 0.4] and videos.seed.tolist() == [0, 0, 1, 1]
    assert videos.prompt_id.tolist() == ["0000", "0001"] * 2 and set(videos.method) == {"asq"}
    assert videos.groupby("prompt_id").value.mean().round(9).tolist() == [0.2, 0.3]
    (whole,) = frame[frame.score == "fvd"].to_dict("records")
    assert (whole["value"], whole["low"], whole["high"]) == (7.0, 6.0, 9.0) and not whole["higher_is_better"]
    assert frame[frame.score == "fvd"].prompt_id.isna().all() and str(frame.seed.dtype) == "Int64"
    (lost,) = frame[frame.state == "failed"].to_dict("records")
    assert lost["reason"] == "it broke" and lost["method"] == "tsq"


def test_csv(out, tmp_path, capsys):
    assert main(["records", str(out), "--to", str(tmp_path / "a" / "long.csv")]) == 0
    assert "wrote 2 records to" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "a" / "long.csv").open()))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 7
    assert [float(row["value"]) for row in rows if row["score"] == "clipsim"] == [0.1, 0.2, 0.3, 0.4]
    assert main(["records", f"out={out}", "--to", str(tmp_path / "b.csv")]) == 0  # as everywhere else
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "a" / "long.csv").read_text()


def test_parquet(out, tmp_path):
    pandas = pytest.importorskip("pandas")
    assert main(["records", str(out), "--to", str(tmp_path / "long.parquet")]) == 0
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "long.parquet"), vdqbench.load_records(out), check_dtype=False)


def test_what_cannot_be_written_is_one_sentence(out, tmp_path, capsys, monkeypatch):
    assert main(["records", str(out), "--to", "long.xlsx"]) == 2
    assert "must end in .csv or .parquet" in capsys.readouterr().err
    assert main(["records", str(tmp_path / "nothing"), "--to", "long.csv"]) == 2
    assert "holds no records" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["records", str(out), "--to", str(tmp_path / "long.parquet")]) == 2
    error = capsys.readouterr().err
    assert "needs the package pyarrow: pip install 'vdqbench[parquet]'" in error and error.count("\n") == 1
    assert not (tmp_path / "long.parquet").exists()


def test_a_score_whose_values_do_not_fit_the_videos_is_an_error(make_record):
    record = make_record({"clipsim": [0.1, 0.2]})
    record.scores["clipsim"]["values"] = [0.1]
    with pytest.raises(ValueError):
        list(long_rows([record]))


def test_importing_vdqbench_does_not_import_pandas():
    code = "import sys, vdqbench, vdqbench.report.frame, vdqbench.report.audit; assert not {'pandas', 'torch', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
