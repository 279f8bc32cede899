"""Weight size and average bits from a quantization report."""

from __future__ import annotations

import pytest

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import Score
from vdqbench.metrics.system import System, weight_size


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
        "weight_bits": Score(None, 4.5, 1),
        "activation_bits": Score(None, 8.0, 1),
    }
    assert list(System(scores=["weight_bits"]).from_report(report)) == ["weight_bits"]
    assert System().protocol()["measured"] is False
    with pytest.raises(ConfigError, match="weight_bits"):
        System(scores=["weight_bit"])


def test_an_incomplete_report_is_an_error():
    with pytest.raises(KeyError, match="weight_bits"):
        System().from_report({"bytes": {"weights": 1}})
