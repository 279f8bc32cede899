"""VBench's leaderboard arithmetic: published bounds, weights, and no total from parts."""

from __future__ import annotations

import pytest

from vdqbench.errors import ConfigError
from vdqbench.metrics.vbench.totals import BOUNDS, QUALITY, SEMANTIC, normalised, quality, semantic, total


def test_sixteen_dimensions_in_two_groups():
    assert len(BOUNDS) == 16 and len(QUALITY) == 7 and len(SEMANTIC) == 9
    assert set(QUALITY) == {
        "subject_consistency",
        "background_consistency",
        "temporal_flickering",
        "motion_smoothness",
        "aesthetic_quality",
        "imaging_quality",
        "dynamic_degree",
    }


def test_published_bounds():
    assert normalised("subject_consistency", 0.9) == pytest.approx((0.9 - 0.1462) / 0.8538)
    assert normalised("background_consistency", 0.2615) == 0
    assert normalised("temporal_flickering", 0.6293) == 0
    assert normalised("motion_smoothness", 0.9975) == pytest.approx(1)
    assert normalised("motion_smoothness", 1.0) > 1
    assert normalised("scene", 0.4111) == pytest.approx(0.5)
    assert normalised("appearance_style", 0.2) == pytest.approx((0.2 - 0.0009) / 0.2846)
    assert normalised("overall_consistency", 0.0) == normalised("temporal_style", 0.0) == 0
    assert normalised("overall_consistency", 0.364) == normalised("temporal_style", 0.364) == 1
    assert normalised("aesthetic_quality", 0.61) == 0.61


def test_bounds_give_zero_and_one():
    lows, highs = ({name: bounds[i] for name, bounds in BOUNDS.items()} for i in (0, 1))
    assert quality(lows) == semantic(lows) == total(lows) == 0
    assert quality(highs) == pytest.approx(1) and semantic(highs) == pytest.approx(1) and total(highs) == pytest.approx(1)


def test_dynamic_degree_weighs_half_and_quality_four_times():
    raw = {name: low for name, (low, _) in BOUNDS.items()}
    assert quality({**raw, "dynamic_degree": 1.0}) == pytest.approx(0.5 / 6.5)
    assert quality({**raw, "imaging_quality": 1.0}) == pytest.approx(1 / 6.5)
    assert semantic({**raw, "color": 1.0}) == pytest.approx(1 / 9)
    assert total({**raw, "color": 1.0, "imaging_quality": 1.0}) == pytest.approx((4 / 6.5 + 1 / 9) / 5)


def test_a_total_of_parts_is_refused():
    whole = {name: 0.5 for name in BOUNDS}
    for name in BOUNDS:
        parts = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(ConfigError, match=f"{name} is missing"):
            total(parts)
    with pytest.raises(ConfigError, match="scene, appearance_style are missing"):
        semantic({name: 0.5 for name in SEMANTIC if name not in ("scene", "appearance_style")})
    quality({name: 0.5 for name in QUALITY})
    with pytest.raises(ConfigError, match="not a dimension"):
        normalised("overall_consistency_clip", 0.3)
    with pytest.raises(ConfigError, match="motion_smoothness is missing"):
        quality({name.replace("motion_smoothness", "motion_smoothness_linear"): 0.5 for name in QUALITY})
