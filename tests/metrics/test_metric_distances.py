"""Distances of feature sets against closed forms, SciPy's matrix root, and definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from vdqbench.metrics.distances import (
    Moments,
    frechet,
    frechet_distance,
    frechet_resamples,
    interval,
    kernel_distance,
    kernel_resamples,
    resampled,
    symmetric_root,
)


def features(n: int, d: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def scipy_frechet(x: torch.Tensor, y: torch.Tensor, ddof: int) -> float:
    """With SciPy's square root of the (not symmetric) product, as the published implementations take it."""
    (m1, s1), (m2, s2) = ((z.numpy().mean(axis=0), np.cov(z.numpy(), rowvar=False, ddof=ddof)) for z in (x, y))
    return float(np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2))))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 20), (400, 300, 30), (21, 200, 20)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_frechet_agrees_with_scipy(n, m, d, ddof):
    x, y = features(n, d), 0.7 * features(m, d, 1, 0.3)
    assert frechet(x, y, ddof) == pytest.approx(scipy_frechet(x, y, ddof), rel=1e-8)


def test_golden_values_of_the_published_implementations():
    """StyleGAN-V and VideoGPT (N - 1) and cd-fvd (N) on these arrays."""
    random = np.random.RandomState(0)
    x = torch.from_numpy(random.randn(60, 20) @ random.randn(20, 20) * 0.5)
    y = torch.from_numpy(random.randn(50, 20) @ random.randn(20, 20) * 0.5 + 0.3)
    assert frechet(x, y, 1) == pytest.approx(52.87691208922381, rel=1e-10)
    assert frechet(x, y, 0) == pytest.approx(51.995589629262184, rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 40), (40, 30, 40), (70, 90, 40), (9, 90, 40)])
def test_rows_moments_and_eigenvalues_give_the_same(n, m, d):
    x, y = features(n, d), features(m, d, 1, 0.2)
    a, b = Moments.of(x), Moments.of(y)
    by_rows = frechet(x, y)
    assert frechet(a, b) == pytest.approx(by_rows, rel=1e-6)
    assert frechet(x, b) == pytest.approx(by_rows, rel=1e-6)
    assert frechet_distance(a.mean, a.covariance(), b.mean, b.covariance()) == pytest.approx(by_rows, rel=1e-6)


def test_closed_forms():
    x = features(50, 8)
    assert frechet(x, x + 0.25) == pytest.approx(8 * 0.25**2, rel=1e-9)
    spread = Moments.of(x).covariance().trace().item()
    assert frechet(x, 3 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(4 * spread, rel=1e-9)
    diagonal = [torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 4.0, 1.0])]
    assert frechet_distance(torch.zeros(3), diagonal[0].diag(), torch.ones(3), diagonal[1].diag()) == pytest.approx(3 + 1 + 0 + 4)


@pytest.mark.parametrize(("n", "d"), [(5, 400), (30, 30), (100, 16)])
def test_equal_sets_have_no_distance(n, d):
    x = features(n, d)
    assert frechet(x, x.clone()) == pytest.approx(0, abs=1e-9)
    assert frechet(x, x[torch.randperm(n)]) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(x, x.clone(), paired=True) == 0


def test_fewer_videos_than_features_are_stable():
    """SciPy's root of a singular product is complex or NaN; of two sets on one line the distance is that of their spreads."""
    line = torch.zeros(1, 400, dtype=torch.float64)
    line[0, :4] = 0.5
    x, y = torch.tensor([[-1.0], [0.0], [1.0]]).double() * line, torch.tensor([[-3.0], [0.0], [3.0]]).double() * line
    assert frechet(x, y) == pytest.approx((3 - 1) ** 2, rel=1e-12)
    a, b = Moments.of(x), Moments.of(y)
    assert frechet_distance(a.mean, a.covariance(), b.mean, b.covariance()) == pytest.approx(4, rel=1e-6)


def test_one_video_leaves_the_means():
    x, y = features(1, 12), features(30, 12, 1)
    assert frechet(x, y) == pytest.approx((x[0] - y.mean(0)).square().sum().item())
    assert frechet(x, features(1, 12, 2), ddof=0) == pytest.approx((x - features(1, 12, 2)).square().sum().item())


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_merged_moments_are_those_of_the_whole(sizes, seed):
    x = features(sum(sizes), 7, seed, shift=100.0)
    merged = None
    for part in x.split(sizes):
        merged = Moments.of(part) if merged is None else merged.merged(Moments.of(part))
    whole = Moments.of(x)
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-10)


def test_moments_are_those_of_numpy():
    x = features(20, 5, shift=1e4)
    moments = Moments.of(x)
    for ddof in (0, 1):
        np.testing.assert_allclose(moments.covariance(ddof).numpy(), np.cov(x.numpy(), rowvar=False, ddof=ddof), rtol=1e-9)
    assert (Moments.of(x[:1]).covariance() == 0).all()


def test_kernel_distance_is_its_definition():
    x, y = features(6, 4), features(5, 4, 1, 0.4)

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / 4 + 1) ** 3

    own = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 30
    other = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 20
    mixed = sum(k(a, b) for a in x for b in y) / 30
    assert kernel_distance(x, y) == pytest.approx(own + other - 2 * mixed, rel=1e-12)
    pairs = sum(k(a, b) for i, a in enumerate(x[:5]) for j, b in enumerate(y) if i != j) / 20
    own = sum(k(a, b) for i, a in enumerate(x[:5]) for j, b in enumerate(x[:5]) if i != j) / 20
    assert kernel_distance(x[:5], y, paired=True) == pytest.approx(own + other - 2 * pairs, rel=1e-12)


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    """Small sets of one distribution: the mean kernel distance is 0 within its error, the mean Frechet distance is not."""
    sets = [(features(10, 6, 2 * i), features(10, 6, 2 * i + 1)) for i in range(300)]
    kernels = torch.tensor([kernel_distance(x, y) for x, y in sets])
    assert abs(kernels.mean()) < 3 * kernels.std() / 300**0.5
    frechets = torch.tensor([frechet(x, y) for x, y in sets])
    assert frechets.mean() > 20 * frechets.std() / 300**0.5


@pytest.mark.parametrize(("n", "d"), [(12, 40), (60, 16)])
@pytest.mark.parametrize("paired", [True, False])
def test_a_resample_is_the_distance_of_the_drawn_videos(n, d, paired):
    x, y = features(n, d), features(n, d, 1, 0.3)
    counts = resampled(n, 4, 0)
    assert counts.shape == (4, n) and (counts.sum(dim=1) == n).all()
    for row, value in zip(counts, frechet_resamples(x, y, counts, paired), strict=True):
        drawn = torch.repeat_interleave(torch.arange(n), row.long())
        assert value.item() == pytest.approx(frechet(x[drawn], y[drawn] if paired else y), rel=1e-6)
    ones = torch.ones(1, n, dtype=torch.float64)
    assert frechet_resamples(x, Moments.of(y), ones, False).item() == pytest.approx(frechet(x, y), rel=1e-6)
    assert kernel_resamples(x, y, ones, paired).item() == pytest.approx(kernel_distance(x, y, paired), rel=1e-9, abs=1e-12)


def test_equal_sets_stay_equal_when_pairs_are_drawn():
    x = features(20, 30)
    assert frechet_resamples(x, x, resampled(20, 5, 1), paired=True).max() < 1e-6
    assert kernel_resamples(x, x, resampled(20, 5, 1), paired=True).abs().max() < 1e-12


def test_intervals_scatter_as_new_videos_do():
    """The width of the interval is that of the distances of fresh sets, within sampling error, and it holds the estimate."""
    estimates, widths = [], []
    for seed in range(60):
        x, y = features(64, 8, 2 * seed), 1.2 * features(64, 8, 2 * seed + 1, 0.5)
        estimates.append(frechet(x, y))
        low, high = interval(estimates[-1], frechet_resamples(x, y, resampled(64, 200, 0), paired=True), low=0.0)
        assert 0 <= low <= estimates[-1] <= high
        widths.append(high - low)
    spread = np.quantile(estimates, 0.975) - np.quantile(estimates, 0.025)
    assert 0.7 < np.mean(widths) / spread < 1.4


def test_draws_are_seeded():
    assert torch.equal(resampled(9, 5, 3), resampled(9, 5, 3))
    assert not torch.equal(resampled(9, 5, 3), resampled(9, 5, 4))


def test_inputs_stay_as_they_are():
    x, y = features(9, 5), features(9, 5, 1)
    before = x.clone(), y.clone()
    frechet(x, y)
    kernel_distance(x, y, paired=True)
    frechet_resamples(x, y, resampled(9, 3, 0), paired=True)
    Moments.of(x).merged(Moments.of(y))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_type_and_order_of_features_do_not_matter():
    x, y = features(30, 12).float(), features(25, 12, 1, 0.2).float()
    value = frechet(x, y)
    assert frechet(x.double(), y.double()) == value
    assert frechet(x[torch.randperm(30)], y) == pytest.approx(value, rel=1e-12)
    assert frechet(y, x) == pytest.approx(value, rel=1e-12)


def test_what_has_no_distance_is_refused():
    x = features(4, 3)
    with pytest.raises(ValueError, match="features of video 2 are not finite"):
        frechet(x, x.index_fill(0, torch.tensor(2), float("nan")))
    with pytest.raises(ValueError, match=r"at least one row, got \[0, 3\]"):
        frechet(x[:0], x)
    with pytest.raises(ValueError, match="3 and 4 dimensions have no distance"):
        frechet(x, features(4, 4))
    with pytest.raises(ValueError, match="two videos on each side and got 1 and 4"):
        kernel_distance(x[:1], x)


def test_a_root_squared_is_the_matrix():
    matrix = Moments.of(features(5, 9)).covariance()
    root = symmetric_root(matrix)
    torch.testing.assert_close(root @ root, matrix, atol=1e-10, rtol=0)
    torch.testing.assert_close(root, root.T, atol=1e-12, rtol=0)
