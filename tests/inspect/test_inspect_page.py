"""The page, its figures and its tables of numbers, for families of models that differ much."""

from __future__ import annotations

import io
import re

import pandas as pd
import pytest
from PIL import Image
from tiny_layers import ROLES, block, observe, tokens
from tiny_models import FAMILIES

from vdqbench.clock import StepClock
from vdqbench.inspect import page
from vdqbench.inspect.draw import FIGURES, TEMPORAL
from vdqbench.inspect.findings import NO_FEATURES, findings
from vdqbench.inspect.measure import measure
from vdqbench.inspect.phenomena import ALL
from vdqbench.inspect.style import png, styled
from vdqbench.inspect.trajectories import follow, watched
from vdqbench.inspect.weights import describe


def measured_of(model, roles, calibration, calls, clock):
    found = follow(model, clock, calls, watched(roles, calibration))
    return measure(roles, calibration, found, {name: describe(model.get_parameter(f"{name}.weight")) for name in roles})


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    tiny = FAMILIES[request.param]()
    return request.param, tiny, measured_of(tiny.denoiser, tiny.roles, *tiny.calibrated(), StepClock(layout=tiny.layout))


@pytest.fixture(scope="module")
def plain():
    """A block that knows no timestep."""
    seen = observe(block(), ROLES, tokens(32))
    return measured_of(seen.model, seen.roles, seen.calibration, seen.calls, seen.clock)


def test_every_family_has_all_findings(family):
    name, tiny, measured = family
    found = findings(measured)
    assert [one.phenomenon for one in found] == list(ALL) and all(one.value is not None for one in found)
    assert set(measured.weights["layer"]) == set(tiny.roles) and set(measured.weight_histograms["role"]) == set(tiny.roles.values())
    width = measured.weight_histograms["left"].diff().iloc[1]
    assert (measured.weight_histograms.groupby("role")["density"].sum() * width).tolist() == pytest.approx(
        [1] * len(set(tiny.roles.values()))
    )
    (coverage,) = [one for one in found if one.phenomenon.name == "coverage"]
    assert coverage.note.startswith("no temporal attention, so of self_attn") == (name == "hunyuan")


def test_the_page_names_every_verdict_figure_and_file(family):
    name, _, measured = family
    found, files = findings(measured), page.frames(measured)
    text = page.as_markdown(name, ["About it."], found, measured, list(FIGURES))
    assert text.startswith(f"# What the papers argue from, on {name}\n\nAbout it.\n")
    rows = [line for line in text.splitlines() if line.startswith(tuple(f"| {one.title} |" for one in ALL))]
    assert len(rows) == 11
    for one, row in zip(found, rows, strict=True):
        assert f"| {one.value:.3g} | {one.phenomenon.bound} | {one.verdict} |" in row.replace("**", "")
    shown = sum(one.verdict == "shown" for one in found)
    assert f"**Shown** ({shown} of 11)" in text and f"**Not shown** ({11 - shown})" in text
    assert set(re.findall(r"\]\((\w+)\.csv\)", text)) == set(files), "each table of numbers is named once, under its figure"
    assert re.findall(r"\((\w+)\.png\)", text) == list(FIGURES)
    roles = {line.split(" |")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")}
    assert set(measured.ratios["role"]) | set(measured.weights["role"]) <= roles


def test_figures_are_small_pictures_of_every_family(family):
    name, _, measured = family
    drawn = {"stdit": ("temporal_heatmap",), "hunyuan": ("temporal_histogram", "level_coverage"), "unet_motion": ("activation_heatmap",)}
    with styled():
        for figure in drawn[name]:
            data = png(FIGURES[figure](measured))
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.format == "PNG" and picture.width > 900 and picture.height > 250
            assert len(data) < 300_000, figure
        if name == "stdit":
            assert png(FIGURES[figure](measured)) == data, "the same bytes again"


def test_the_numbers_can_be_read_back(family):
    _, _, measured = family
    for name, frame in page.frames(measured).items():
        again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
        assert len(again) == len(frame) > 0 and list(again.columns) == [str(column) for column in frame.columns], name


def test_a_model_without_features_says_so_in_one_sentence(plain):
    drawn = [name for name in FIGURES if name not in TEMPORAL]
    found = findings(plain)
    text = page.as_markdown("block", [], found, plain, drawn)
    assert f"## Features of the timestep\n\n{NO_FEATURES.capitalize()}." in text
    assert "**Nothing to measure** (3)" in text and "temporal_" not in text
    assert not any(name.startswith("temporal_") for name in page.frames(plain))
    with styled():
        for name in drawn:
            assert png(FIGURES[name](plain))[:4] == b"\x89PNG"
    table = list(pd.read_csv(io.StringIO(page.as_csv(found, None))).itertuples())
    assert [row.verdict for row in table].count("absent") == 3 and {row.layers for row in table} == {"all"}


def test_the_overview_has_a_column_for_each_whole_model(family, plain):
    def rows(measured, layers=None):
        return pd.read_csv(io.StringIO(page.as_csv(findings(measured), layers)), dtype=str, keep_default_na=False).to_dict("records")

    _, _, measured = family
    text = page.overview({"one": rows(measured), "part": rows(measured, "ffn.*"), "two": rows(plain)})
    lines = text.splitlines()
    assert "| phenomenon | paper | shown if | [one](one/page.md) | [two](two/page.md) |" in lines and "part" not in text
    (skewed,) = [line for line in lines if line.startswith("| features of the timestep are skewed")]
    assert skewed.endswith("| absent |")
    for one in findings(measured):
        assert f"| {one.verdict} ({one.value:.3g}) |" in next(line for line in lines if line.startswith(f"| {one.phenomenon.title} |"))
