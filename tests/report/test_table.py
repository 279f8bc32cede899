"""Filling a table: differences, averages, holes, ranks, notes, and what is refused."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from vdqbench.errors import ConfigError
from vdqbench.report.table import Table, rows

FP = {"label": "FP16", "overrides": ["method=fp"], "reference": True}
ASQ = {"label": "ASQ", "group": "8/8", "overrides": ["method=asq"]}
TSQ = {"label": "TSQ", "group": "8/8", "overrides": ["method=tsq"]}
DYN = {"label": "Dynamic", "group": "8/8", "overrides": ["method=dynamic"]}


def table(*entries, columns=({"score": "clipsim", "digits": 4},), **more):
    return Table.from_config({"name": "t", "title": "T", "columns": list(columns), "rows": list(entries) or [FP, ASQ], **more})


def cell(rendered, title, column=0):
    return next(line for line in rendered.lines if line.title == title).cells[column]


def test_mean_and_paired_difference(make_record):
    reference, ours = [0.30, 0.32, 0.34, 0.31], [0.29, 0.30, 0.35, 0.27]
    found = cell(rows(table(), [make_record({"clipsim": reference}), make_record({"clipsim": ours})]), "8/8 ASQ")
    t = stats.ttest_rel(ours, reference)
    assert found.mean == pytest.approx(sum(ours) / 4)
    assert found.difference.mean == pytest.approx(sum(ours) / 4 - sum(reference) / 4)
    assert found.difference.mean / found.difference.se == pytest.approx(t.statistic)
    assert found.difference.n == 4 and found.n == 4 and not found.difference.significant


def test_seeds_are_averaged_before_pairing(make_record):
    reference, ours = [1.0, 2.0, 1.0, 2.0], [2.0, 4.0, 4.0, 4.0]
    rendered = rows(table(), [make_record({"clipsim": reference}, seeds=2), make_record({"clipsim": ours}, seeds=2)])
    apart = cell(rendered, "8/8 ASQ").difference
    assert (apart.mean, apart.se, apart.n) == (2.0, 0.0, 2)
    assert "n = 4 videos (2 prompts of shapes_small, 2 seeds each from 0), sampler ddim20" in rendered.notes


def test_samples_are_matched_by_name_not_by_place(make_record):
    reference = make_record({"clipsim": [1.0, 2.0, 3.0]}, prompts=["a", "b", "c"])
    ours = make_record({"clipsim": [3.5, 2.5]}, prompts=["c", "b"])
    rendered = rows(table(), [reference, ours])
    found = cell(rendered, "8/8 ASQ")
    assert (found.difference.mean, found.difference.n) == (0.5, 2)
    assert "2 of 2 videos have a partner" in rendered.footnotes[found.notes[0] - 1]


def test_a_row_is_compared_with_the_reference_of_its_group(make_record):
    own = {"label": "FP", "group": "8/8", "overrides": ["method=fp", "seeds=2"], "reference": True}
    other = {"label": "Other", "group": "4/4", "overrides": ["method=asq"]}
    records = [make_record({"clipsim": [v, v + 1]}) for v in (1.0, 2.0, 5.0, 5.0)]
    rendered = rows(table(FP, own, ASQ, other), records)
    assert cell(rendered, "8/8 ASQ").difference.mean == 3.0
    assert cell(rendered, "4/4 Other").difference.mean == 4.0
    assert cell(rendered, "FP16").difference is None and cell(rendered, "8/8 FP").difference is None


def test_scores_against_the_reference_have_no_difference(make_record):
    columns = ({"score": "psnr", "digits": 1, "paired": True},)
    rendered = rows(table(columns=columns), [make_record({"psnr": [100.0, 100.0]}), make_record({"psnr": [30.0, 32.0]})])
    assert cell(rendered, "FP16").state == "reference" and cell(rendered, "FP16").mean is None
    assert cell(rendered, "8/8 ASQ").mean == 31.0 and cell(rendered, "8/8 ASQ").difference is None


@pytest.mark.parametrize(
    ("record", "state", "words"),
    [
        (None, "missing", None),
        ({"state": "failed", "reason": "ValueError: no luck"}, "failed", "8/8 ASQ: failed: ValueError: no luck"),
        ({"state": "skipped", "reason": "not for this model"}, "skipped", "8/8 ASQ: skipped: not for this model"),
        ({"scores": {"psnr": [1.0]}}, "absent", "8/8 ASQ: its record has no CLIPSIM; choose the metric that gives it"),
    ],
)
def test_holes_are_visible_with_their_reason(make_record, record, state, words):
    ours = make_record(**record) if record else None
    rendered = rows(table(FP, ASQ), [make_record({"clipsim": [0.3, 0.3]}), ours])
    found = cell(rendered, "8/8 ASQ")
    assert found.state == state and found.mean is None
    assert [rendered.footnotes[i - 1] for i in found.notes] == ([words] if words else [])


def test_a_failed_reference_leaves_the_means(make_record):
    rendered = rows(table(), [make_record(state="failed", reason="gone"), make_record({"clipsim": [0.25, 0.35]})])
    found = cell(rendered, "8/8 ASQ")
    assert found.mean == 0.3 and found.difference is None


def test_nan_is_a_hole_and_infinity_has_no_difference(make_record):
    nan, inf = make_record({"clipsim": [math.nan, 1.0]}), make_record({"clipsim": [math.inf, 1.0]})
    rendered = rows(table(FP, ASQ, TSQ), [make_record({"clipsim": [1.0, 1.0]}), nan, inf])
    assert cell(rendered, "8/8 ASQ").state == "absent"
    assert cell(rendered, "8/8 TSQ").mean == math.inf and cell(rendered, "8/8 TSQ").difference is None


AVERAGE = {"label": "ASQ", "group": "Average", "average_of": {"label": "ASQ"}}
ASQ4 = {"label": "ASQ", "group": "4/4", "overrides": ["method=asq", "bits=w4a4"]}


def test_averages_are_computed_over_the_rows_they_name(make_record):
    other = {"label": "ASQ", "group": "one", "average_of": {"label": "ASQ", "group": ["4/4"]}}
    records = [make_record({"clipsim": v, "weight_size": size}) for v, size in (([1.0, 2.0], 9.0), ([2.0, 4.0], 5.0), ([4.0, 4.0], 3.0))]
    columns = ({"score": "clipsim"}, {"score": "weight_size"})
    rendered = rows(table(FP, ASQ, ASQ4, AVERAGE, other, columns=columns), records)
    found = cell(rendered, "Average ASQ")
    assert found.mean == 3.5 and found.n == 4
    assert found.difference.mean == 2.0 and found.difference.se == 0.0
    assert cell(rendered, "Average ASQ", 1).mean == 4.0 and cell(rendered, "Average ASQ", 1).difference is None
    assert cell(rendered, "one ASQ").mean == 4.0
    assert next(line for line in rendered.lines if line.title == "Average ASQ").kind == "average"


def test_an_average_over_a_hole_is_a_hole(make_record):
    records = [make_record({"clipsim": [1.0]}), make_record({"clipsim": [2.0]}), make_record(state="failed", reason="no")]
    rendered = rows(table(FP, ASQ, ASQ4, AVERAGE), records)
    found = cell(rendered, "Average ASQ")
    assert found.mean is None and found.state == "missing"
    assert rendered.footnotes[found.notes[0] - 1] == "Average ASQ: no average, because these rows have no value: 4/4 ASQ"
    assert cell(rows(table(FP, ASQ, ASQ4, AVERAGE), [None, None, None]), "Average ASQ").state == "missing"


PAPER = {"title": "P", "arxiv": "1234.5678", "table": 3, "model": "opensora_v1"}
PRINTED = ({"score": "clipsim", "paper": "clipsim", "digits": 4},)


@pytest.mark.parametrize(("model", "apart"), [("opensora_v1", 0.05), ("mini_stdit", None)])
def test_difference_to_the_paper_only_on_the_papers_model(make_record, model, apart):
    made = table(FP, {**ASQ, "paper": {"clipsim": 0.20}}, columns=PRINTED, paper=PAPER)
    rendered = rows(made, [make_record({"clipsim": [0.3, 0.3]}, model=model), make_record({"clipsim": [0.2, 0.3]}, model=model)])
    found = cell(rendered, "8/8 ASQ")
    assert found.paper == 0.20
    assert found.paper_difference == (pytest.approx(apart) if apart else None)
    assert cell(rendered, "FP16").paper is None
    assert rendered.title == f"T, measured on {model}"
    assert any("mini_stdit is a small model" in note for note in rendered.notes) == (model == "mini_stdit")
    assert any("no difference is formed" in note for note in rendered.notes) == (model == "mini_stdit")
    assert "paper: P, arXiv:1234.5678, table 3" in rendered.notes


def test_the_papers_average_stands_beside_the_computed_one(make_record):
    average = {**AVERAGE, "paper": {"clipsim": 0.9}}
    made = table(FP, {**ASQ, "paper": {"clipsim": 0.1}}, average, columns=PRINTED, paper=PAPER)
    records = [make_record({"clipsim": [0.5]}, model="opensora_v1"), make_record({"clipsim": [0.4]}, model="opensora_v1")]
    found = cell(rows(made, records), "Average ASQ")
    assert (found.mean, found.paper) == (0.4, 0.9) and found.paper_difference == pytest.approx(-0.5)


def ranks(rendered, column=0):
    return {line.title: line.cells[column].rank for line in rendered.lines}


def test_best_and_second_best_of_each_group(make_record):
    columns = ({"score": "clipsim"}, {"score": "weight_size"}, {"score": "weight_bits"})
    values = [(9.0, 9.0), (1.0, 3.0), (3.0, 1.0), (2.0, 2.0)]
    records = [make_record({"clipsim": [v], "weight_size": size, "weight_bits": 8.0 + v}) for v, size in values]
    rendered = rows(table(FP, ASQ, TSQ, DYN, columns=columns), records)
    assert ranks(rendered) == {"FP16": 0, "8/8 ASQ": 0, "8/8 TSQ": 1, "8/8 Dynamic": 2}
    assert ranks(rendered, 1) == {"FP16": 0, "8/8 ASQ": 0, "8/8 TSQ": 1, "8/8 Dynamic": 2}
    assert set(ranks(rendered, 2).values()) == {0}
    assert [h.arrow for h in rendered.headings] == ["↑", "↓", ""]


def test_ties_at_the_digits_shown_share_a_rank_and_a_tie_of_all_has_none(make_record):
    def of(*values):
        records = [make_record({"clipsim": [v]}) for v in (1.0, *values)]
        return [
            line.cells[0].rank for line in rows(table(FP, ASQ, TSQ, DYN, columns=({"score": "clipsim", "digits": 1},)), records).lines[1:]
        ]

    assert of(0.51, 0.49, 0.3) == [1, 1, 2]
    assert of(0.51, 0.49, 0.5) == [0, 0, 0]


def test_two_competitors_have_no_second_best(make_record):
    records = [make_record({"clipsim": [v]}) for v in (1.0, 0.5, 0.4)]
    assert ranks(rows(table(FP, ASQ, TSQ), records)) == {"FP16": 0, "8/8 ASQ": 1, "8/8 TSQ": 0}


def test_simulated_kernels_show_no_latency(make_record):
    columns = ({"score": "latency", "measured": True},)
    made = table(columns=columns)
    sim = rows(made, [make_record({"latency": 2.0}), make_record({"latency": 1.0})])
    assert cell(sim, "8/8 ASQ").state == "unavailable" and "kernel=sim" in sim.footnotes[0]
    assert any(note.startswith("kernel sim:") for note in sim.notes)
    real = rows(made, [make_record({"latency": 2.0}, kernel=None), make_record({"latency": 1.0}, kernel="int")])
    assert cell(real, "8/8 ASQ").mean == 1.0 and not any(note.startswith("kernel sim") for note in real.notes)


def test_unavailable_columns_say_why(make_record):
    columns = [{"score": s, "label": s.upper(), "unavailable": "not yet", "higher_is_better": True} for s in ("vqa_a", "vqa_t")]
    rendered = rows(table(columns=columns), [make_record({"vqa_a": [1.0]}), None])
    assert {c.state for line in rendered.lines for c in line.cells} == {"unavailable"}
    assert rendered.footnotes == ("VQA_A, VQA_T: not yet",) and all(h.notes == (1,) for h in rendered.headings)


def test_protocols_are_named_and_a_mixture_is_called_out(make_record):
    protocol = {"version": 2, "backbone": {"name": "mini_clip", "sha256": "0123456789abcdef" * 4}}
    alike = [make_record({"clipsim": [1.0], "clip_temp": [1.0]}, protocol=protocol) for _ in range(2)]
    columns = ({"score": "clipsim"}, {"score": "clip_temp"})
    assert "CLIPSIM, CLIP_TEMP: version 2, backbone.name mini_clip, backbone.sha256 01234567" in rows(table(columns=columns), alike).notes
    mixed = [make_record({"clipsim": [1.0]}, protocol={"version": v}) for v in (1, 2)]
    assert any("do not compare: version 1 | version 2" in note for note in rows(table(), mixed).notes)


def test_differing_sample_sizes_are_named_by_row(make_record):
    notes = rows(table(), [make_record({"clipsim": [1.0, 1.0]}), make_record({"clipsim": [1.0]})]).notes
    assert notes[0].startswith("FP16: n = 2 videos (2 prompts") and notes[1].startswith("8/8 ASQ: n = 1 videos (1 prompts")


def test_presets_add_overrides_and_replace_columns(make_record):
    preset = {"overrides": ["model=mini"], "columns": [{"score": "psnr", "paired": True}], "note": "a mini"}
    made = table(FP, ASQ, AVERAGE, base=["model=big"], presets={"mini": preset, "other": {"overrides": ["x=1"]}})
    assert made.cells() == [["model=big", "method=fp"], ["model=big", "method=asq"]]
    assert made.cells("mini")[1] == ["model=big", "model=mini", "method=asq"]
    rendered = rows(made, [None, make_record({"psnr": [1.0]})], preset="mini")
    assert [h.score for h in rendered.headings] == ["psnr"] and rendered.preset == "mini" and "a mini" in rendered.notes
    assert [h.score for h in rows(made, [None, None], preset="other").headings] == ["clipsim"]
    with pytest.raises(ConfigError, match=r"preset=min is not a preset of table t \(did you mean mini\?\)"):
        made.cells("min")
    with pytest.raises(ConfigError, match="it has none"):
        table().cells("mini")


def test_numbers_as_names_are_names():
    made = table(FP, {"label": 4, "group": 8, "overrides": ["bits=w4a8"]}, {"label": "mean", "average_of": {"label": 4, "group": [8]}})
    assert [row.title for row in made.rows] == ["FP16", "8 4", "mean"] and table(FP, ASQ, base=None).base == ()


def test_records_must_fit_the_cells():
    with pytest.raises(ValueError, match="1 records do not fit the 2 cells of table t"):
        rows(table(), [None])


def test_nothing_measured_is_said():
    rendered = rows(table(), [None, None])
    assert rendered.title == "T, nothing measured" and {line.state for line in rendered.lines} == {"missing"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colums": []}, r"table t: colums is not a key here \(did you mean columns or claims\?\)"),
        ({"title": None}, "table t: title is missing"),
        ({"columns": []}, "columns must be a list"),
        ({"columns": [{"label": "x"}]}, "score is missing"),
        ({"columns": [{"score": "x", "digit": 2}]}, r"digit is not a key here \(did you mean digits\?\)"),
        ({"columns": [{"score": "x", "digits": "2"}]}, "digits=2 of column x"),
        ({"rows": [{"label": "a"}]}, "must have either overrides, which make it a cell, or average_of"),
        ({"rows": [{"label": "a", "overrides": "method=fp"}]}, "must be a list of overrides"),
        ({"rows": [FP, FP]}, "row 'FP16' stands there twice"),
        ({"rows": [FP, {**ASQ, "paper": {"clipsim": 1.0}}]}, "paper.clipsim, which no column shows"),
        ({"rows": [FP, {**ASQ, "paper": {"clipsim": "0.1"}}]}, "must be a number"),
        ({"rows": [FP, {**AVERAGE, "label": "Nobody", "average_of": {"label": "Nobody"}}]}, "average_of no row"),
        ({"rows": [FP, ASQ, {**AVERAGE, "average_of": {"lable": "ASQ"}}]}, "average_of.lable is not a key"),
        ({"paper": {"title": "P", "arxiv": "1", "table": 1}}, "paper: model is missing"),
        ({"base": {"model": "x"}}, "base must be a list of overrides"),
        ({"presets": {"mini": {"override": []}}}, "did you mean overrides"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(change, words):
    good = {"name": "t", "title": "T", "columns": [{"score": "clipsim"}], "rows": [FP, ASQ]}
    with pytest.raises(ConfigError, match=words):
        Table.from_config({**good, **change})


def test_a_product_is_a_row_for_each_pair():
    config = {
        "name": "t",
        "title": "t",
        "columns": [{"score": "clipsim"}],
        "rows": [
            {"label": "FP", "overrides": ["method=fp"]},
            {"product": {"bits": ["w8a8", "w4a8"], "method": ["asq", "tsq"]}, "without": ["tsq"]},
        ],
    }
    table = Table.from_config(config)
    assert [row.title for row in table.rows] == ["FP", "w8a8 asq", "w4a8 asq"]
    assert table.cells()[2] == ["bits=w4a8", "method=asq"]
    config["rows"][1] = {"product": {"bits": ["w8a8"], "method": "*"}, "without": ["fp"]}
    labels = {row.label for row in Table.from_config(config).rows[1:]}
    assert {"asq", "tsq", "dvd_quant"} <= labels and "fp" not in labels
    for wrong in ({"product": {"bits": ["w8a8"]}}, {"product": {"bits": ["w8a8"], "method": "*"}, "without": ["nothing"]}):
        with pytest.raises(ConfigError, match=r"product must name two|without=nothing is not an option of method"):
            Table.from_config({**config, "rows": [wrong]})


def test_a_column_can_have_another_unit_than_the_record(make_record):
    columns = ({"score": "weight_size", "paper": "size", "scale": 0.001, "digits": 1}, {"score": "clipsim", "scale": 100})
    made = table(FP, {**ASQ, "paper": {"size": 5.7}}, columns=columns, paper=PAPER)
    records = [
        make_record({"clipsim": [v, v + 0.1], "weight_size": size}, model="opensora_v1") for v, size in ((0.5, 22800.0), (0.2, 5800.0))
    ]
    rendered = rows(made, records)
    assert cell(rendered, "8/8 ASQ").mean == pytest.approx(5.8) and cell(rendered, "8/8 ASQ").paper_difference == pytest.approx(0.1)
    apart = cell(rendered, "8/8 ASQ", 1)
    assert apart.mean == pytest.approx(25) and apart.difference.mean == pytest.approx(-30) and apart.se == pytest.approx(5)
    with pytest.raises(ConfigError, match="scale=0 of column clipsim must be a positive number"):
        table(columns=({"score": "clipsim", "scale": 0},))


def test_a_ratio_says_how_many_times_less_a_row_needs(make_record):
    columns = ({"score": "weight_size", "ratio": True, "higher_is_better": True, "digits": 2},)
    records = [make_record({"weight_size": size, "clipsim": [0.1]}) for size in (8.0, 2.0, 4.0)]
    rendered = rows(table(FP, ASQ, TSQ, columns=columns), records)
    assert [line.cells[0].mean for line in rendered.lines] == [1.0, 4.0, 2.0]
    assert ranks(rendered) == {"FP16": 0, "8/8 ASQ": 1, "8/8 TSQ": 0} and rendered.headings[0].arrow == "↑"
    lost = rows(table(FP, ASQ, columns=columns), [make_record(state="failed", reason="no"), records[1]])
    assert cell(lost, "8/8 ASQ").state == "missing"


def test_a_speedup_needs_a_measurement(make_record):
    columns = ({"score": "seconds", "ratio": True, "measured": True},)
    records = [make_record({"seconds": 8.0}, kernel=None), make_record({"seconds": 2.0})]
    rendered = rows(table(columns=columns), records)
    assert cell(rendered, "FP16").mean == 1.0 and cell(rendered, "8/8 ASQ").state == "unavailable"


def test_a_row_is_a_cell_or_an_average_or_unavailable():
    for wrong in ({"overrides": ["method=x"], "unavailable": "no"}, {"average_of": {"label": "ASQ"}, "unavailable": "no"}):
        with pytest.raises(ConfigError, match="or unavailable with the reason"):
            table(FP, ASQ, {"label": "X", **wrong})


def test_a_figure_is_named_as_such():
    rendered = rows(table(FP, ASQ, paper={**PAPER, "table": "Fig. 6"}), [None, None])
    assert "paper: P, arXiv:1234.5678, Fig. 6" in rendered.notes
