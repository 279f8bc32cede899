"""Calibration samplers: which moments are looked at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdqbench.errors import ConfigError
from vdqbench.quant.draws.all import All
from vdqbench.quant.draws.normal import Normal
from vdqbench.quant.draws.single import Single
from vdqbench.quant.draws.stride import Stride


def test_all_and_stride_and_single():
    assert All().pairs(2, 3) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert Stride(moments=4).pairs(1, 20) == [(0, 0), (0, 5), (0, 10), (0, 15)]
    assert [step for _, step in Stride(moments=6).pairs(1, 20)] == [0, 3, 6, 9, 12, 15, 18]  # range(0, 20, 20 // 6), as in the code
    assert Single().pairs(5, 25) == [(0, 12)] and Single(at=0.99, prompts=2).pairs(5, 25) == [(0, 24), (1, 24)]


def test_normal_is_the_papers_draw_from_the_clean_end():
    pairs = Normal(moments=4000, mean=0.4, std=0.1, seed=1).pairs(7, 25)
    from_clean = np.array([24 - step for _, step in pairs])
    assert from_clean.mean() == pytest.approx(0.4 * 25 - 0.5, abs=0.2)  # floor takes half a step
    assert from_clean.std() == pytest.approx(2.5, abs=0.15)
    assert [prompt for prompt, _ in pairs[:9]] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    assert pairs == Normal(moments=4000, mean=0.4, std=0.1, seed=1).pairs(7, 25) != Normal(moments=4000, mean=0.4, std=0.1).pairs(7, 25)


@given(st.integers(1, 5), st.integers(2, 60), st.floats(0, 0.5), st.floats(0.01, 2))
def test_draws_stay_inside(prompts, steps, mean, std):
    for draw in (Normal(moments=50, mean=mean, std=std), Stride(moments=2), Single(at=0.999, prompts=3)):
        assert all(0 <= p < prompts and 0 <= k < steps for p, k in draw.pairs(prompts, steps))


def test_options_out_of_range():
    for wrong in (lambda: Normal(mean=0.7), lambda: Normal(std=0), lambda: Single(at=1.0), lambda: Stride(moments=30).check(20)):
        with pytest.raises(ConfigError, match=r"method\.calibration\.\w+=\S+ must be "):
            wrong()
