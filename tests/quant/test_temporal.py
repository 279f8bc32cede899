"""The maths of temporal features: the logarithmic grid, TDScore and the search, against the formulas written out."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdqbench.quant.temporal import Features, LogGrid, Objective, offsets, profile, search, td_scores

EPS = 1e-8
K = Objective(neighbours=4, eps=EPS, mean=False, gap=False)
seeds = st.integers(0, 10_000)
few = settings(deadline=None, max_examples=20)


def features(seed=0, steps=9, channels=40, step=None, variant=None):
    """Small values of both signs, with outliers a thousand times larger."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(steps, channels, generator=generator) * 2e-3
    rows[:, :4] *= 1000
    return Features(rows, tuple(range(steps)) if step is None else step, (0,) * steps if variant is None else variant)


@few
@given(seeds, st.floats(-0.01, 0.01), st.integers(0, 19))
def test_magnitudes_are_kept_within_half_an_octave_and_signs_are_kept(seed, beta, i):
    values = features(seed).rows
    d = values - beta
    grid = LogGrid(float(d.abs().max()) * 2 ** (0.05 * i), beta, 2**7)
    ratio = (grid(values) - beta) / d
    assert ratio.min() >= 2**-0.5 * (1 - 1e-4) and ratio.max() <= 2**0.5 * (1 + 1e-4), "of one sign, and never clipped with 8 bits"


def test_the_largest_outliers_keep_their_sign():
    values = torch.tensor([-3.0, 3.0, 0.02, -0.02])
    sign, codes = LogGrid(3.0, 0.0, 8).encode(values)
    assert sign.tolist() == [-1, 1, 1, -1] and codes.tolist() == [0, 0, 7, 7], "a signed code could not tell the first two apart"
    assert LogGrid(3.0, 0.0, 8)(values).tolist() == [-3, 3, 3 / 128, -3 / 128]


def test_the_printed_sign_reflects_what_lies_between_zero_and_beta():
    beta, values = 0.5, torch.tensor([-1.0, 0.0, 0.125, 0.375, 1.5])
    paper, right = LogGrid(1.5, beta, 2**12, paper_sign=True)(values), LogGrid(1.5, beta, 2**12)(values)
    inside = torch.tensor([False, True, True, True, False])
    assert torch.equal(paper[~inside], right[~inside])
    torch.testing.assert_close(paper[inside] - beta, beta - right[inside])
    assert ((paper - values).abs()[inside] > 0.1).all() and (paper[inside] > beta).all()
    assert torch.equal(LogGrid(1.5, 0.0, 8, paper_sign=True)(values), LogGrid(1.5, 0.0, 8)(values)), "without an offset they are one"


@few
@given(seeds, st.floats(-0.01, 0.01), st.floats(1, 2))
def test_twice_the_scale_is_the_same_grid(seed, beta, factor):
    values = features(seed).rows
    largest = float((values - beta).abs().max()) * factor
    one, two, four = (LogGrid(largest * power, beta, 2**7)(values) for power in (1, 2, 4))
    assert torch.equal(one, two) and torch.equal(one, four)


def test_zero_and_beta_itself_are_finite():
    for beta in (0.0, 0.25):
        values = LogGrid(1.0, beta, 8)(torch.tensor([0.0, beta, -0.0]))
        assert values.isfinite().all() and (values - beta).abs().max() <= max(beta * 2**0.5, 2**-7)
    assert LogGrid(1.0, 0.0, 2**7)(torch.tensor([0.0, 1e-45])).abs().max() < 2**-120, "down to the smallest normal number"


def naive_td(rows, n):
    """Eqs. 9 and 10 in a double loop."""
    y = [[(1 if t >= 0 else -1) * abs(math.log2(max(abs(t), EPS))) for t in row] for row in rows.tolist()]
    scores = []
    for t in range(len(y) - 1):
        near = y[t + 1 : t + 1 + n]
        scores.append(np.mean([np.dot(y[t], other) / np.linalg.norm(y[t]) / np.linalg.norm(other) for other in near]))
    return scores


@few
@given(seeds, st.integers(1, 6))
def test_td_score_is_the_double_loop(seed, n):
    one = features(seed)
    scores = td_scores(one.rows, one, n, EPS)
    assert scores.shape == (8,), "the last step has no neighbour"
    np.testing.assert_allclose(scores.numpy(), naive_td(one.rows, n), rtol=1e-4, atol=1e-5)
    stacked = td_scores(torch.stack([one.rows, one.rows * 3]), one, n, EPS)
    torch.testing.assert_close(stacked[0], scores)


def test_neighbours_are_of_the_same_variant_in_denoising_order():
    two = features(step=(0, 0, 5, 5, 8), variant=(0, 1, 0, 1, 0), steps=5)
    first, second = two.neighbours(2)
    assert list(zip(first, second, strict=True)) == [(0, 2), (0, 4), (1, 3), (2, 4)]
    separate = [naive_td(two.rows[[0, 2, 4]], 2), naive_td(two.rows[[1, 3]], 2)]
    np.testing.assert_allclose(td_scores(two.rows, two, 2, EPS).numpy(), [separate[0][0], separate[1][0], separate[0][1]], rtol=1e-4)


def test_collapsed_features_cannot_be_told_apart():
    one = features()
    step = one.rows.abs().max() * 2 / 255
    uniform = (one.rows / step).round() * step
    collapsed = [torch.zeros_like(one.rows), -torch.zeros_like(one.rows), uniform]
    fp = td_scores(one.rows, one, 4, EPS).mean()
    for values in collapsed:
        scores = td_scores(values, one, 4, EPS)
        assert scores.isfinite().all() and scores.mean() > 0.99 > 0.7 > fp
    assert profile(torch.zeros(1), EPS).item() == pytest.approx(26.575, abs=1e-3)
    assert td_scores(one.rows[:1], Features(one.rows[:1], (0,), (0,)), 4, EPS).shape == (0,)


@settings(deadline=None, max_examples=8)
@given(seeds, st.booleans(), st.booleans(), st.integers(3, 8))
def test_the_search_finds_the_smallest_objective_of_all_candidates(seed, mean, gap, bits):
    one, objective = features(seed, steps=5, channels=12), Objective(2, EPS, mean, gap)
    levels = 2 ** (bits - 1)
    best, known = (math.inf, 0.0, 0.0), naive_td(one.rows, 2)
    for beta in offsets(one.rows):
        for i in range(6):
            scale = float((one.rows - beta).abs().max()) * 2 ** (i / 6)
            values = LogGrid(scale, beta, levels)(one.rows)
            scores = naive_td(values, 2)
            td = sum(abs(a - b) for a, b in zip(scores, known, strict=True)) if gap else sum(scores)
            error = float((values - one.rows).square().sum()) / (12 if mean else 1)
            if td + error < best[0] - 1e-5:
                best = (td + error, scale, beta)
    found = search(one, levels, True, False, objective, 6)
    assert found.td + found.error == pytest.approx(best[0], abs=1e-4)
    values = LogGrid(found.scale, found.beta, levels)(one.rows)
    assert found.error == pytest.approx(float((values - one.rows).square().sum()) / (12 if mean else 1), rel=1e-4)


def test_candidates():
    values = torch.tensor([[-4.0, 1.0, 2.0, 3.0, -10.0]])
    assert offsets(values)[:3] == pytest.approx([0.0, -1.6, 1.0])
    assert len(offsets(values)) == 13 and offsets(values)[3:8] == [1, 2, 3, 4, 10] and offsets(values)[8:] == [-1, -2, -3, -4, -10]
    one = features()
    plain = search(one, 2**7, False, False, K, 20)
    assert plain.beta == 0 and 1 <= plain.scale / one.rows.abs().max() < 2
    shifted = search(one, 2**7, True, False, K, 20)
    assert shifted.td + shifted.error <= plain.td + plain.error
    same = Features(torch.ones(4, 3), (0, 1, 2, 3), (0,) * 4)
    found = search(same, 8, True, False, K, 20)
    assert found.beta == 0 and found.scale == 1 and found.error == 0, "0 and the smallest scale win ties"
    assert search(Features(torch.zeros(2, 3), (0, 1), (0, 0)), 8, True, False, K, 4).scale > 0


def test_more_levels_less_error():
    one = features()
    for beta in (0.0, 1e-3):
        errors = [float((LogGrid(3.0 + beta, beta, 2 ** (bits - 1))(one.rows) - one.rows).square().sum()) for bits in range(3, 9)]
        assert all(more <= less for less, more in pairwise(errors)) and errors[0] > errors[-1]


def test_parts_and_digests():
    one = features(steps=6)
    assert torch.equal(one.part(1, 3, 6).rows, one.rows[2:4]) and one.part(1, 3, 6).step == (2, 3)
    assert one.digest == features(steps=6).digest and one.digest not in (
        one.part(0, 1, 6).part(0, 2, 6).digest,
        features(1, steps=6).digest,
    )
