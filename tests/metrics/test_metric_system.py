"""Weight size and average bits from a quantization report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import Score
from vdqbench.metrics.system import System, size_by_component, weight_size


def test_sizes_are_summed_in_decimal_megabytes():
    assert weight_size({"weights": 3_000_000, "smoothing": 500_000, "kept_fp": 0}) == 3.5
    assert weight_size({"weights": 3_000_000, "total": 3_000_000}) == 3.0
    for bad in ({}, {"weights": -1}):
        with pytest.raises(ValueError, match="bytes="):
            weight_size(bad)


def test_scores_of_a_report():
    report = {"layers": 3, "bytes": {"weights": 1_000_000, "kept_fp": 250_000}, "weight_bits": 4.5, "activation_bits": 8}
    assert System().from_report(report) == {
        "weight_size": Score(None, 1.25, 1),
        "size_weights": Score(None, 1.0, 1),
        "size_params": Score(None, 0.0, 1),
        "size_transforms": Score(None, 0.0, 1),
        "size_fp": Score(None, 0.25, 1),
        "weight_bits": Score(None, 4.5, 1),
        "activation_bits": Score(None, 8.0, 1),
    }
    assert list(System(scores=["weight_bits"]).from_report(report)) == ["weight_bits"]
    with pytest.raises(ConfigError, match="weight_bits"):
        System(scores=["weight_bit"])


@given(
    st.dictionaries(
        st.sampled_from(["weights", "weight_params", "activation_params", "smoothing", "copies", "kept_fp", "new"]), st.integers(0, 10**9)
    )
)
def test_components_add_up_to_the_whole(sizes):
    if sizes:
        assert sum(size_by_component(sizes).values()) == pytest.approx(weight_size({**sizes, "total": sum(sizes.values())}))


def test_bit_operations_come_from_the_report():
    report = {"bytes": {"weights": 1}, "weight_bits": 8, "activation_bits": 8, "bops": {"linear": 5e12, "total": 7.16e14}}
    assert System(scores=["tbops"]).from_report(report) == {"tbops": Score(None, 716.0, 1)}


def test_time_and_memory_are_never_those_of_a_simulation():
    report = {"bytes": {"weights": 1}, "weight_bits": 8, "activation_bits": 8}
    found = {"calibration_seconds": 12.0, "seconds_per_step": 0.25, "peak_memory_bytes": 3_000_000}
    metric = System(scores=["calibration_seconds", "seconds_per_step", "peak_memory"])
    expected = {"calibration_seconds": 12.0, "seconds_per_step": 0.25, "peak_memory": 3.0}
    for kernel in ("int", None):
        assert {name: score.mean for name, score in metric.from_report(report, {**found, "kernel": kernel}).items()} == expected
    assert set(metric.from_report(report, {**found, "kernel": "sim"})) == {"calibration_seconds"}
    assert metric.from_report(report, {"kernel": "int", "seconds_per_step": None}) == {}


def test_an_incomplete_report_is_an_error():
    with pytest.raises(KeyError, match="weight_bits"):
        System().from_report({"bytes": {"weights": 1}})
