"""The verb: what is written where, what is printed, and what is answered to wrong words."""

from __future__ import annotations

import json
import subprocess
import sys

import made_results
import pytest

from vdqbench.cli import main


@pytest.fixture
def out(tmp_path):
    made_results.build(tmp_path / "results")
    return tmp_path / "results"


def test_page_and_csv_are_written_and_the_rest_is_printed(out, capsys):
    assert main(["report", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"wrote {out / 'report.csv'}" in text and f"wrote {out / 'report.html'} (" in text
    assert "11 cells: 8 done, 2 failed, 1 skipped" in text and "log2 features" in text and "dvd" in text
    assert max(map(len, text.split("11 cells")[0].splitlines())) <= 110 and "more scores are in the files below" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<title>Report of results</title>" in page and page.count("data:video/mp4") == 8 + 1  # those of a cell are alike


def test_words_say_what_is_written_where(out, tmp_path, capsys):
    page = tmp_path / "here" / "page.html"
    assert main(["report", f"out={out}", f"page={page}", "videos=link", "title=My results"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<title>My results</title>" in text and "data:video/mp4;base64" not in text and "../results/runs/" in text
    assert not (out / "report.html").exists()
    assert main(["report", f"out={out}", "page=none"]) == 0
    assert not (out / "report.html").exists() and (out / "report.csv").exists()
    assert "report.html" not in capsys.readouterr().out.split("My results")[-1].splitlines()[-1]


def test_figures_are_written_when_they_are_asked_for(out, capsys):
    pytest.importorskip("matplotlib")
    for folder in (out / "runs").glob("*/*"):
        if not folder.name.startswith(("fp", "dynamic")):
            for file in folder.glob("*.json"):
                file.unlink()
    assert main(["report", str(out), "page=none", "figures=svg", "scores=clipsim"]) == 0
    assert "3 figures" in capsys.readouterr().out
    names = {path.name for path in (out / "figures").rglob("*.*")}
    assert names == {"tradeoff-clipsim.svg", "sqnr-dynamic_w8a8.svg", "activation_range-cccccccc.svg"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["video=3"], "video=3 is not an option of vdqbench report (did you mean videos?)"),
        (["out=", "videos=3"], "out=: out of vdqbench report must be given once, with a value"),
        (["videos=1", "videos=2"], "videos=2: videos of vdqbench report must be given once, with a value"),
        (["videos=many"], "videos=many must be a number of videos of each cell, all, none or link"),
        (["figures=gif"], "figures=gif is not a format of figures (expected one of pdf, png, svg)"),
        (["scores=psnr"], "scores=psnr chooses scores of figures: add figures=pdf"),
        (["nowhere"], "nowhere holds no records; run a cell first, or give the folder that was out=..."),
    ],
)
def test_wrong_words_are_answered_in_one_sentence(words, answer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.splitlines() == [f"vdqbench: {answer}"]


def test_help_needs_no_torch_and_neither_does_the_page(out):
    assert main(["report", "--help"]) == 0
    code = (
        "import sys, json; from vdqbench.cli import main; code = main(sys.argv[1:]);"
        "sys.stderr.write(json.dumps([code, 'torch' in sys.modules, 'matplotlib' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "report", str(out)], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, False, False]
