"""Aggregation over updates against the recursions they stand for."""

from __future__ import annotations

import pytest
import torch

from vdqbench.quant.observer import OBSERVERS, by_range, ema


@pytest.mark.parametrize("updates", [1, 2, 200])
def test_ema_is_the_recursion(updates):
    x = torch.randn(3, updates, 5, generator=torch.Generator().manual_seed(1))
    expected = x[:, 0].clone()
    for u in range(1, updates):
        expected = 0.95 * expected + 0.05 * x[:, u]
    torch.testing.assert_close(ema(x, 0.95), expected, atol=1e-6, rtol=1e-5)


def test_ema_of_the_papers_code():
    assert ema(torch.tensor([[4.0, 1.0]]), 0.95).item() == pytest.approx(3.85)


def test_updates_go_prompt_by_prompt_through_the_steps_of_a_range():
    x = torch.arange(8).reshape(2, 4)  # 2 prompts, 4 steps
    assert by_range(x, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert by_range(x, 1).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert by_range(x, 4).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_static_ranges():
    lo, hi = torch.tensor([[-1.0, -3.0, -2.0]]), torch.tensor([[4.0, 1.0, 2.0]])
    assert [bound.item() for bound in OBSERVERS["minmax"](lo, hi, 0.9)] == [-3, 4]
    assert [bound.item() for bound in OBSERVERS["last"](lo, hi, 0.9)] == [-2, 2]
    assert OBSERVERS["ema"](lo, hi, 0.9)[1].item() == pytest.approx(0.9 * (0.9 * 4 + 0.1) + 0.2)
