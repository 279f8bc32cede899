"""The audit: its checks on small made-up tables, and what it finds in the shipped ones by computation alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdqbench.cli import main
from vdqbench.config import CONF
from vdqbench.errors import ConfigError
from vdqbench.report.audit import REMARK, RIGHT, WRONG, audit, papers, to_markdown
from vdqbench.report.printed import bits_of, count, cut, rounds_to
from vdqbench.report.spec import Row, Table

PAGE = Path(__file__).resolve().parents[2] / "results" / "audit.md"
PAPER = {"title": "P", "arxiv": "1234.5678", "table": 1, "model": "big"}


def table(name, rows, columns=("a", "b"), digits=2, **more):
    shown = [{"score": c, "label": c, "paper": c, "digits": digits, "higher_is_better": c != "cost"} for c in columns]
    config = {"name": f"p/{name}", "title": name, "paper": PAPER, "columns": shown, "rows": rows, "base": ["model=big"], **more}
    return Table.from_config(config)


def row(label, group=None, method=None, bits="w8a8", reference=False, **paper):
    overrides = [f"method={method or label}", *([] if reference else [f"bits={bits}"])]
    return {"label": label, "overrides": overrides, "reference": reference, "paper": paper, **({"group": group} if group else {})}


def findings(*tables, state=None, check=None):
    found = audit({t.name: t for t in tables})
    return [f.text for f in found if (state is None or f.state == state) and (check is None or f.check == check)]


def test_an_average_and_its_explanation_from_another_table():
    average = {"label": "m", "group": "Average", "average_of": {"label": "m"}, "paper": {"a": 2.0, "b": 3.0}}
    one = table("t1", [row("m", "8/8", a=2.0, b=3.0), row("m", "4/4", bits="w4a4", a=5.0, b=3.0), average])
    (text,) = findings(one, state=WRONG)
    assert text == "Average m, a: the 2 rows give 3.500, printed is 2.00"
    (good,) = findings(one, check="averages", state=RIGHT)
    assert good == "Average m: b are the means of 2 rows"
    other = table("t2", [row("again", method="m", bits="w4a4", a=2.0, b=3.0)])
    text = findings(one, other, check="averages", state=WRONG)[0]
    assert "with 2.00, the number of 4/4 m in p/t2, instead of 5.00 they give 2.00, which is the printed average" in text
    assert findings(one, other, check="cells printed twice", state=WRONG) == [
        "4/4 m and again of p/t2 are one cell: a 5.00 here and 2.00 there"
    ]


def test_an_average_that_is_cut_off_is_a_remark():
    average = {"label": "m", "group": "Average", "average_of": {"label": "m"}, "paper": {"a": 1.0}}
    rows = [row("m", "8/8", a=1.0), row("m", "6/6", bits="w6a6", a=1.01), row("m", "4/4", bits="w4a4", a=1.01), average]
    (text,) = findings(table("t", rows), check="averages")
    assert text.endswith("the last digit is cut off, not rounded")


def test_different_cells_with_the_same_numbers_are_found_unless_the_numbers_are_common():
    one = table("t1", [row("m", a=1.23, b=4.56), row("n", a=7.0, b=8.0), row("o", a=7.0, b=8.0)])
    two = table("t2", [row("x", a=1.23, b=4.56), row("y", a=7.0, b=8.0)])
    assert findings(one, two, check="different cells, same numbers") == [
        "m has the numbers of x of p/t2, which is another cell: a 1.23, b 4.56"
    ]


def test_claims_and_rows_above_full_precision():
    one = table("t", [row("fp", reference=True, a=1.0, b=5.0), row("m", a=1.5, b=4.0)], claims=["m > fp on a", "m > fp on b"])
    assert findings(one, check="claims", state=RIGHT) == ["m > fp on a: holds (1.50 against 1.00)"]
    assert findings(one, check="claims", state=WRONG) == ["m > fp on b: does not hold (4.00 against 5.00)"]
    assert findings(one, check="better than full precision") == ["a: 1 of 1 quantized rows are better than fp, m by 0.50"]


def declared(name, entry, rows=None, **more):
    rows = rows or [row("fp", reference=True, a=100.0, b=32.0), row("m", "8/8", a=40.0, b=8.0), row("n", "4/4", bits="w4a4", a=72.5, b=5.0)]
    one = table("t", rows, audit=[{name: entry}], **more)
    return [(f.state, f.text) for f in audit({one.name: one}) if f.check not in ("better than full precision", "cells printed twice")]


def test_stated_differences_and_drops():
    ((state, text),) = declared("difference", {"of": ["fp", "8/8 m"], "column": "a", "stated": "60.0", "says": "gain"})
    assert state == RIGHT and text == "gain: 60.0 stated; fp and 8/8 m on a: |100.00 - 40.00| = 60.00"
    assert declared("difference", {"of": ["fp", "8/8 m"], "column": "a", "stated": "60.1", "says": "gain"})[0][0] == WRONG
    ((state, text),) = declared("drop", {"of": ["fp", "4/4 n"], "column": "a", "stated": "27.5", "says": "drop"})
    assert state == RIGHT and text.endswith("4/4 n is 27.50 % below fp on a")


def test_counts_tell_what_cannot_be():
    rows = [row(label, a=value) for label, value in (("m", 51.39), ("n", 87.5), ("o", 1.39), ("p", 50.5), ("q", 51.38))]
    found = declared("counts", {"column": "a", "of": 72, "samples": 5, "what": "videos"}, rows)
    assert [state for state, _ in found] == [WRONG, REMARK, REMARK]
    assert found[0][1] == "p: a 50.50 is no k/72: the nearest, 36, is 50.0000"
    assert found[1][1] == "q: a 51.38 is no k/72: the nearest, 37, is 51.3889, which is cut off instead of rounded"
    assert "3 of 5 values are k/72 (videos), with k = 37, 63, 1" in found[2][1]


def test_sizes_and_bit_operations():
    rows = [row("fp", reference=True, a=22.8, b=9735.0), row("m", "8/8", a=5.7, b=715.81), row("n", "6/6", bits="w6a6", a=4.28, b=430.0)]
    ((state, text),) = declared("size", {"column": "a", "full": 32}, rows)
    assert state == RIGHT and text == "a by a of fp x W/32: 8/8 5.7000 (5.70 printed), 6/6 4.2750 (4.28 printed)"
    plain, product = declared("bops", {"column": "b", "full": 32, "formulas": ["uniq_nolog", "product"]}, rows)
    assert plain[0] == WRONG and "8/8 715.8088 (715.81 printed), 6/6 429.4853 (430.00 printed, which differs)" in plain[1]
    assert product[0] == REMARK and "8/8 608.4375 (715.81 printed, which differs)" in product[1]
    kept = {"bits": 8, "shapes": [[1000, 1000]], "positions": 16_088}
    mixed = declared("bops", {"column": "b", "full": 32, "formulas": ["uniq_nolog"], "first_last": kept}, rows)
    assert [state for state, _ in mixed] == [REMARK, RIGHT] and "6/6 430.0001 (430.00 printed)" in mixed[1][1]


def test_compression_mixture_and_order_of_bits():
    rows = [
        row("fp", reference=True, a=1.0),
        row("m", "8/8", a=3.2),
        row("m", "4/8", bits="w4a8", a=3.3),
        row("m", "4/4", bits="w4a4", a=4.0),
    ]
    options = {"column": "a", "rows": ["8/8 m"], "parameters": 1_000_000, "weight_bits": 4, "layers": {"all of it": [[10, 100, 900]]}}
    found = declared("compression", {**options, "candidates": {"x": {"layers": "all"}, "y": {"layers": "all", "group": 10}}}, rows)
    size = 100_000 * 16 + 900_000 * 4
    assert f"give {16e6 / (size + 1000 * 32):.3f} times: not the printed, 3.20" in found[0][1] and found[0][0] == REMARK
    assert f"90,000 scales of 32 bits give {16e6 / (size + 90_000 * 32):.3f} times" in found[1][1]
    ((state, text),) = declared("mix", {"column": "a", "row": "4/8 m", "of": ["8/8 m", "4/4 m"], "says": "half"}, rows)
    assert state == REMARK and "half, would give 3.556 on a; 3.30 is printed, which is 15% of the steps as 4/4 m" in text
    ((state, text),) = declared("monotone", {"label": "m", "columns": ["a"]}, rows)
    assert (
        state == REMARK and text == "m, a: more bits, worse: 4.00 at 4/4, 3.20 at 8/8; 4.00 at 4/4, 3.30 at 4/8; 3.30 at 4/8, 3.20 at 8/8"
    )


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"diference": {}}, r"diference is not a check \(did you mean difference"),
        ({"difference": {"of": ["fp", "m"], "colum": "a"}}, r"difference.colum is not an option \(did you mean column\?\)"),
        ({"difference": {"of": ["fp", "8/8 m"], "column": "a"}}, "difference: missing 2 required positional arguments"),
        ({"difference": {"of": ["fp", "8/8 x"], "column": "a", "stated": "1", "says": ""}}, r"'8/8 x' is no row"),
        ({"difference": {"of": ["fp", "8/8 m"], "column": "c", "stated": "1", "says": ""}}, "has no number c"),
        ({"exceeds": {"row": "fp", "other": "p/x", "bound": "fp", "columns": ["a"], "says": ""}}, "p/x is no table of the paper"),
        ({"difference": {}, "drop": {}}, "an entry must be one"),
        ({"monotone": {"label": "x", "columns": ["a"]}}, "monotone.label=x is no row"),
    ],
)
def test_a_wrong_statement_is_refused(entry, words):
    one = table("t", [row("fp", reference=True, a=1.0), row("m", "8/8", a=2.0)], audit=[entry])
    with pytest.raises(ConfigError, match=words):
        audit({one.name: one})


def test_rounding():
    assert rounds_to(13.90225, 13.9022, 4) and rounds_to(13.90225, 13.9023, 4) and not rounds_to(13.90226, 13.9022, 4)
    assert cut(13.90226, 4) == "13.9022" and cut(2.0, 2) == "2.00"
    assert count(51.39, 72, 2) == 37 and count(51.38, 72, 2) is None and count(0.0, 72, 2) == 0
    assert bits_of(Row("x", overrides=("bits=w4a4", "bits=w6a8"))) == (6, 8)
    with pytest.raises(ConfigError, match="integer pair"):
        bits_of(Row("x", overrides=("bits=mxfp4",)))


@pytest.fixture(scope="module")
def shipped():
    return {name: (tables, audit(tables)) for name, tables in papers(CONF).items()}


KNOWN = [
    (
        "asq_tsq",
        WRONG,
        "table3",
        "with 52.9969, the number of 8/8 *+ASQ in asq_tsq/table1 and asq_tsq/table4, instead of 53.9969 they give 26.1451",
    ),
    ("asq_tsq", WRONG, "table1", "vqa_a 52.9969 here and 53.9969 there"),
    ("asq_tsq", REMARK, "table3", "Average Dynamic, vqa_t: the 9 rows give 13.90226, printed is 13.9022: the last digit is cut off"),
    ("asq_tsq", WRONG, "table3", "*+ASQ > Dynamic on clipsim, mean over all: does not hold (0.1856 against 0.1866)"),
    ("asq_tsq", REMARK, "table3", "53.3998 at 8/8, 24.0312 at 8/16"),
    (
        "qvd",
        WRONG,
        "table5",
        "HTDQ + OS+ has the numbers of 16 frames, 1 step of qvd/table6, which is another cell: fid_vid 51.21, fvd 407.93",
    ),
    ("qvd", WRONG, "table5", "HTDQ + SCRI and 16 frames, 1 step of qvd/table6 are one cell: fid_vid 49.38 here and 51.21 there"),
    ("qvd", RIGHT, "table1", "8/8 715.81 (716 printed), 6/8 554.78 (555 printed), 6/6 429.53 (430 printed)"),
    ("qvd", RIGHT, "table1", "8/8 5.700 (5.7 printed), 6/8 4.275 (4.3 printed)"),
    ("qvd", WRONG, "table1", "1.56 stated; 6/6 QVD and 8/8 QVD on fid_vid: |77.54 - 49.38| = 28.16"),
    ("qvd", WRONG, "table3", "+ HTDQ has fid_vid 61.22, Linear Quant † of qvd/table4"),
    ("qvd", RIGHT, "table6", "25.13 times that of 16 frames, 1 step"),
    (
        "dvd_quant",
        REMARK,
        "table1",
        "11 of 11 values are k/72 (videos of VBench's 72 prompts), with k = 37, 38, 37, 40, 35, 42, 0, 1, 63, 0, 41",
    ),
    ("dvd_quant", REMARK, "table1", "10 of 11 values are k/1376"),
    ("dvd_quant", REMARK, "table1", "scene 7.84 is no k/1376: the nearest, 108, is 7.8488, which is cut off instead of rounded"),
    (
        "dvd_quant",
        WRONG,
        "table1",
        "4/8 DVD-Quant (4/6) and 4/6 PBQ + ARQ of dvd_quant/table3 are one cell: aesthetic 62.27 here and 60.46 there",
    ),
    ("dvd_quant", RIGHT, "table5", "every linear of the blocks: 12,457,082,880 of 12,821,012,544 parameters at 4 bits"),
    ("dvd_quant", RIGHT, "table1", "27.5 % stated; 4/4 ViDiT-Q is 27.46 % below HunyuanVideo"),
    ("dvd_quant", REMARK, "table5", "would give 1.917 on latency; 1.93 is printed, which is 53% of the steps"),
    ("dvd_quant", WRONG, "table4", "4/8 DVD-Quant+TeaCache has imaging 62.96, δ = 0.06 of dvd_quant/fig6"),
]


@pytest.mark.parametrize(("paper", "state", "where", "text"), KNOWN, ids=lambda value: str(value)[:40])
def test_it_finds_the_known_ones(shipped, paper, state, where, text):
    _, found = shipped[paper]
    assert any(f.state == state and f.table == f"{paper}/{where}" and text in f.text for f in found)


def test_the_committed_page_is_what_the_audit_says(shipped, tmp_path, monkeypatch, capsys):
    page = to_markdown({name: found for name, (_, found) in shipped.items()}, {name: tables for name, (tables, _) in shipped.items()})
    assert PAGE.read_text(encoding="utf-8") == page, "run `vdqbench audit` and commit results/audit.md"
    monkeypatch.chdir(tmp_path)
    assert main(["audit"]) == 0 and (tmp_path / "results" / "audit.md").read_text(encoding="utf-8") == page
    assert "does not follow: table5, different cells, same numbers" in " ".join(capsys.readouterr().out.split())
    assert main(["audit", "qvdd"]) == 2 and "did you mean qvd" in capsys.readouterr().err
