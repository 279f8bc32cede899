"""Distributions of features and what grids make of them: closed forms, and QVD's own picture of them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from vdqbench.inspect import temporal
from vdqbench.inspect.findings import of_features
from vdqbench.inspect.phenomena import CONFUSION, OUTLIERS
from vdqbench.quant.temporal import Features, td_scores


def qvd(steps=6, channels=200):
    """As QVD describes them: 95 % of the values within 0.002, some outliers thousands of times larger that hardly move."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(steps, channels, generator=generator) * 8e-4
    rows[:, :10] = torch.linspace(-6, 6, 10) + 0.01 * torch.randn(steps, 10, generator=generator)
    return Features(rows, tuple(range(steps)), (0,) * steps)


def even(steps=4, channels=256):
    """Every level of an 8-bit grid once in each step, in another order."""
    rows = torch.stack([torch.arange(256.0).roll(64 * step) for step in range(steps)])
    return Features(rows[:, :channels], tuple(range(steps)), (0,) * steps)


def test_crowding_by_hand():
    values = torch.tensor([0.0, 0.0, 0.0, 0.1, 1.0, 15.0]).view(2, 3)
    crowd = temporal.crowding(values, 4)  # steps of 1: the codes 0 0 0 0 1 15
    assert crowd.fullest == pytest.approx(4 / 6)
    assert temporal.crowding(even().rows, 8) == (1 / 256, 232), "the middle 90 % of 256 equally full levels, both ends included"
    assert temporal.middle(torch.arange(101.0)) == (5, 95)
    assert temporal.imbalance(torch.tensor([-8.0, 1, 2, -2, 3])) == 4 and temporal.imbalance(torch.tensor([0.0, 0, 1])) == math.inf


def test_features_as_qvd_describes_them_show_what_it_says():
    spread, scores = temporal.spread({("t", "post"): qvd()}), temporal.scores({("t", "post"): qvd()})
    outliers, collapse, confusion = of_features(spread, scores)
    assert {one.verdict for one in (outliers, collapse, confusion)} == {"shown"}
    assert outliers.value > 1000 and collapse.value > 0.9 and spread["middle10"].iloc[0] == 1, "one of 1024 levels"
    assert confusion.value > 0.95
    score = {(row.quantizer, row.bits): row.td_score for row in scores.itertuples()}
    assert score[temporal.UNIFORM, 8] > 0.98 and score[temporal.LEAST, 8] > 0.98
    assert score[temporal.HIDI, 8] < 0.5 and score[temporal.LOG2, 8] < 0.5
    error = {(row.quantizer, row.bits): row.error for row in scores.itertuples()}
    assert error[temporal.LOG2, 8] > error[temporal.UNIFORM, 8], "Fig. 5: at the price of the squared error"


def test_evenly_spread_features_show_none_of_it():
    found = {("t", "post"): even()}
    outliers, collapse, confusion = of_features(temporal.spread(found), temporal.scores(found))
    assert {one.verdict for one in (outliers, collapse, confusion)} == {"not shown"}
    assert outliers.value == 255 / 127.5 and collapse.value == 1 / 256 and confusion.value == pytest.approx(0, abs=1e-6)


def test_scores_are_those_of_the_features_themselves():
    features = qvd()
    frame = temporal.scores({("a", "post"): features, ("b", "pre"): even()})
    assert len(frame) == 2 * (1 + 4 * len(temporal.BITS)) and frame["bits"].isna().sum() == 2
    exact = frame[frame["bits"].isna()]
    wanted = [float(td_scores(one.rows, one, 4, 1e-8).mean()) for one in (features, even())]
    assert exact["td_score"].tolist() == pytest.approx(wanted) and exact["error"].tolist() == [0, 0]
    own = frame[(frame["layer"] == "b") & (frame["quantizer"] == temporal.UNIFORM)].set_index("bits")
    assert own.loc[8, "error"] == 0, "the values are on the grid"
    coarse = (even().rows / 17).round() * 17
    assert own.loc[4, "error"] == pytest.approx(float((coarse - even().rows).square().sum(1).mean()), rel=1e-5)


def test_histograms_count_every_value():
    values = torch.tensor([[-4.0, -1.0, 0.3, 0.5, 1.0, 1.9, 2.0, 0.0]])
    frame = temporal.histograms({("t", "post"): Features(values, (0,), (0,))})
    counts = frame.groupby("part")["count"].sum().to_dict()
    assert counts == {"all": 8, "middle": 8, "log2 of positive": 5, "log2 of negative": 2}, "0 has no octave"
    octaves = frame[frame["part"] == "log2 of positive"].set_index("left")["count"].to_dict()
    assert octaves == {-2.0: 1, -1.0: 1, 0.0: 2, 1.0: 1}


def test_maps_have_a_row_for_each_step_and_some_of_many_channels(monkeypatch):
    features = Features(torch.arange(24.0).view(4, 6), (0, 0, 1, 1), (0, 1, 0, 1))
    frame = temporal.maps(features)
    assert frame["quantizer"].tolist() == [name for name in (temporal.FLOAT, temporal.UNIFORM, temporal.HIDI) for _ in range(2)]
    assert frame.loc[frame["quantizer"] == temporal.FLOAT, range(6)].values.tolist() == [[0, 1, 2, 3, 4, 5], [12, 13, 14, 15, 16, 17]]
    monkeypatch.setattr(temporal, "MOST_CHANNELS", 3)
    few = temporal.maps(features)
    assert list(few.columns) == ["quantizer", "step", 0, 2, 5] and few.iloc[0, 2:].tolist() == [0, 2, 5]


def test_features_mixed_with_the_prompt_are_said_to_be():
    features = Features(qvd().rows, (0, 0, 1, 1, 2, 2), (0, 1) * 3)
    found = {("norm.linear", "post"): features, ("emb.linear_2", "pre"): qvd()}
    outliers, *_ = of_features(temporal.spread(found), temporal.scores(found))
    assert outliers.note.startswith("norm.linear (post), 6 rows at 3 steps: mixed with the prompt; emb.linear_2 (pre): ")
    assert outliers.phenomenon is OUTLIERS


def test_without_features_nothing_is_said():
    absent = list(of_features(pd.DataFrame(), pd.DataFrame()))
    assert [one.verdict for one in absent] == ["absent"] * 3 and absent[2].phenomenon is CONFUSION
    assert all(one.value is None and "time_proj" in one.note for one in absent)
    assert len(temporal.spread({})) == 0 and len(temporal.scores({})) == 0 and len(temporal.histograms({})) == 0


def test_steps_that_are_all_alike_before_quantization_lose_nothing():
    rows = torch.full((3, 4), 3.0)
    found = {("t", "post"): Features(rows, (0, 1, 2), (0, 0, 0))}
    frame = temporal.scores(found)
    assert np.isclose(frame["td_score"], 1).all()
