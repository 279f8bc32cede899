"""How Gaussian weights are, against scipy and closed forms, and what clipping saves, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vdqbench.inspect import weights as measured
from vdqbench.inspect.phenomena import GAUSSIAN, TAILS

SPREAD = (torch.arange(20001, dtype=torch.float64) + 0.5) / 20001
"""Evenly spaced probabilities, whose quantiles follow a distribution as closely as so many numbers can."""


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-6, 6), min_size=1, max_size=40))
def test_the_distance_is_scipys(values):
    assert measured.ks_distance(torch.tensor(values, dtype=torch.float64)) == pytest.approx(
        stats.kstest(values, "norm").statistic, abs=1e-12
    )


def test_the_distances_that_the_threshold_stands_between():
    of = {
        "normal": torch.special.ndtri(SPREAD),
        "laplace": torch.from_numpy(stats.laplace(scale=0.5**0.5).ppf(SPREAD.numpy())),
        "uniform": (2 * SPREAD - 1) * 3**0.5,
    }
    distances = {name: measured.ks_distance(z) for name, z in of.items()}
    assert distances["normal"] < 1e-4
    assert distances["laplace"] == pytest.approx(0.062, abs=5e-4) and distances["uniform"] == pytest.approx(0.057, abs=5e-4)
    assert distances["normal"] < GAUSSIAN.threshold < min(distances["laplace"], distances["uniform"])


def test_the_peak_is_the_median_of_the_largest_of_so_many():
    assert measured.gaussian_peak(1) == pytest.approx(0.67449, abs=1e-5)
    for n in (10, 1000, 10**8):
        inside = math.erf(measured.gaussian_peak(n) / 2**0.5)
        assert n * math.log(inside) == pytest.approx(math.log(0.5), rel=1e-6)
    # DVD-Quant's figure: 3072 x 12288 weights of deviation 0.0439 between -0.2946 and 0.2892
    expected = measured.gaussian_peak(3072 * 12288)
    assert expected == pytest.approx(5.62, abs=0.01)
    assert 0.2946 / 0.0439 / expected == pytest.approx(1.19, abs=0.005) and TAILS.threshold < 1.19


def pbq_error(row, bits, candidates):
    """Sum of squared errors by a loop over the candidates: both ends move inwards together, 0 stays on the grid."""
    low, high = row.min(), row.max()
    errors = []
    for k in range(candidates):
        a, b = min(low + k * (high - low) / 200, 0), max(high - k * (high - low) / 200, 0)
        delta = (b - a) / (2**bits - 1)
        zero = np.clip(np.round(-a / delta), 0, 2**bits - 1)
        codes = np.clip(np.round(row / delta) + zero, 0, 2**bits - 1)
        errors.append((((codes - zero) * delta - row) ** 2).sum())
    return min(errors)


def test_the_gain_is_that_of_the_search_written_out():
    weight = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    weight[:, 0] *= 5
    rows = weight.double().numpy()
    tight, wide = (sum(pbq_error(row, 4, count) for row in rows) for count in (100, 1))
    gain = measured.clipping_gain(weight)
    assert gain == pytest.approx(1 - math.sqrt(tight / wide), abs=1e-3) and gain > 0.05
    assert measured.clipping_gain(weight[:, :, None, None]) == gain, "of a convolution, per output channel as well"
    levels = torch.arange(16.0).repeat(3, 2) - 8
    assert measured.clipping_gain(levels) == 0, "nothing is lost on the grid"


def test_a_description_by_hand():
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]) * 0.5 + 0.25
    one = measured.describe(weight)
    assert (one["elements"], one["row"], one["mean"], one["std"], one["kurtosis"]) == (8, 4, 0.25, 0.5, -2)
    assert one["ks"] == pytest.approx(stats.norm.cdf(1) - 0.5) and one["peak"] == 1 and one["beyond3"] == 0
    assert sum(one["counts"]) == 8 and one["counts"][28] == one["counts"][36] == 4, "bins of a quarter of a deviation from -8 on"


def test_outliers_are_in_the_outer_bins_and_counted():
    weight = torch.cat([torch.zeros(999), torch.tensor([1000.0])]).view(10, 100)
    one = measured.describe(weight)
    assert one["counts"][-1] == 1 and one["beyond3"] == 0.001 and one["peak"] == pytest.approx(999**0.5)
    constant = measured.describe(torch.full((4, 4), 0.3))
    assert all(math.isfinite(value) for key, value in constant.items() if key != "counts")


def test_large_weights_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(measured, "MOST", 1000)
    z = torch.special.ndtri(SPREAD)[torch.randperm(len(SPREAD), generator=torch.Generator().manual_seed(1))]
    assert len(measured.spaced(z, 1000)) <= 1000
    assert measured.describe(z.view(1, -1))["ks"] < 0.04
