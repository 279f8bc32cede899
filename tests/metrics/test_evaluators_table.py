"""The committed validation of the minis' evaluators: the bar is met, the document shows the file's numbers, and how they are computed."""

from __future__ import annotations

import csv
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[2]
MINIS = ROOT / "experiments" / "minis"


@pytest.fixture(scope="module")
def validate():
    sys.path.insert(0, str(MINIS))
    try:
        spec = importlib.util.spec_from_file_location("minis_validate", MINIS / "validate.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(MINIS))
    return module


@pytest.fixture(scope="module")
def rows():
    with (ROOT / "results" / "evaluators.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def graded(row):
    """Severities and values of a row."""
    found = {float(key): float(value) for key, value in row.items() if key.replace(".", "").isdigit()}
    return list(found), np.array(list(found.values()))


def test_the_file_has_every_score_and_damage_once_and_declares_what_the_script_does(validate, rows):
    assert sorted((row["score"], row["damage"]) for row in rows) == sorted((s, d) for s in validate.MUST_SEE for d in validate.DAMAGES)
    for row in rows:
        assert (row["must_see"] == "yes") == (row["damage"] in validate.MUST_SEE[row["score"]][0])
        severities, values = graded(row)
        assert len(severities) >= 6 and severities[0] == 0 and severities[-1] == 1 and np.isfinite(values).all()


def test_every_score_sees_what_it_must(validate, rows):
    must = [row for row in rows if row["must_see"]]
    assert {row["score"] for row in must} == set(validate.MUST_SEE) and validate.failures(rows) == []
    assert min(float(row["spearman"]) for row in must) >= 0.95


def test_the_correlations_are_those_of_the_values(rows):
    rising = {"mini_fvd", "mini_kvd", "mini_fid_vid", "temporal_error"}
    for row in rows:
        severities, values = graded(row)
        if row["spearman"]:
            sign = 1 if row["score"] in rising else -1
            assert float(row["spearman"]) == pytest.approx(sign * spearmanr(severities, values)[0], abs=6e-4)
        else:
            assert np.ptp(values) <= 2e-6 * np.abs(values).max()


def test_only_what_reads_captions_sees_wrong_captions(rows):
    seen = {row["score"] for row in rows if row["damage"] == "wrong_caption" and row["spearman"]}
    assert seen == {"clipsim", "colour", "shape", "background", "motion", "attributes", "overall_consistency_mini_clip"}


def test_the_document_shows_the_numbers_of_the_file(validate, rows):
    text = (ROOT / "results" / "evaluators.md").read_text(encoding="utf-8")
    table = text.split("\n| score |")[1].split("\n\n")[0].splitlines()
    damages = [name.strip().replace(" ", "_") for name in table[0].strip(" |").split("|")]
    shown = {}
    for line in table[2:]:
        score, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        shown |= {(score, damage): cell for damage, cell in zip(damages, cells, strict=True)}
    for row in rows:
        number = row["spearman"] or "–"
        assert shown.pop((row["score"], row["damage"])) == (f"**{number}**" if row["must_see"] else number)
    assert not shown
    command = next(line.strip() for line in text.splitlines() if line.startswith("    python "))
    seed = int(command.split()[-1])
    assert validate.document(rows, command, seed) == text


def test_response_is_the_rank_correlation_with_badness(validate):
    six = np.linspace(0, 1, 6)
    assert validate.response(six, [9, 8, 7, 5, 2, 1], True) == pytest.approx(1)
    assert validate.response(six, [9, 8, 7, 5, 2, 1], False) == pytest.approx(-1)
    assert validate.response(six, [0, 1, 3, 2, 4, 5], False) == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert validate.response(six, [100, 100, 100, 0, 0, 0], True) == pytest.approx(np.sqrt(27 / 35))


def test_equal_values_are_no_response(validate):
    assert validate.response([0, 0.5, 1], [0.9, 0.9 + 1e-8, 0.9 - 1e-8], True) is None
    assert validate.response([0, 0.5, 1], [0.0, 0.0, 0.0], False) is None
    assert validate.response([0, 0.5, 1], [1e-15, 2e-9, 3e-9], False) == pytest.approx(1)


def test_one_exchanged_pair_of_six_fails_the_bar(validate):
    row = {"must_see": "yes", "spearman": f"{validate.response(range(6), [0, 1, 3, 2, 4, 5], False):.3f}"}
    assert validate.failures([row]) == [row]
    assert validate.failures([{**row, "must_see": ""}, {**row, "spearman": "0.950"}]) == []
    assert len(validate.failures([{**row, "spearman": ""}])) == 1


def test_shares_are_nested_and_of_the_size_they_say(validate):
    clean = validate.held_out(10, 3)
    spoilt = validate.damaged(clean, "colour_swap", 1.0, 0)
    picks = []
    for share in (0, 0.2, 0.5, 1):
        mixed, chosen = validate.shared(clean, spoilt, share, 5)
        assert chosen.sum() == 10 * share
        assert (mixed.frames[chosen] == spoilt.frames[chosen]).all() and (mixed.frames[~chosen] == clean.frames[~chosen]).all()
        picks.append(chosen)
    assert all((small <= large).all() for small, large in pairwise(picks))


def test_wrong_captions_are_other_captions_and_the_frames_stay(validate):
    clean = validate.held_out(10, 3)
    wrong = validate.damaged(clean, "wrong_caption", 1.0, 0)
    assert sorted(wrong.prompts) == sorted(clean.prompts) and not any(a == b for a, b in zip(wrong.prompts, clean.prompts, strict=True))
    assert (wrong.frames == clean.frames).all() and validate.damaged(clean, "wrong_caption", 0.0, 0).prompts == clean.prompts


def test_set_distances_look_at_the_videos_in_which_they_can_see_it(validate):
    chosen = validate.held_out(20, 3).only(validate.DAMAGES["colour_swap"].seen_in)
    assert {scene.colour for scene in chosen.scenes} == {"red", "yellow"} and len(chosen.frames) == len(chosen.prompts) < 20
    assert chosen.prompts == [scene.caption for scene in chosen.scenes]
