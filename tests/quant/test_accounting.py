"""Sizes and average bits: the figures of the ASQ/TSQ analysis for STDiT-XL/2, on the meta device, and small cases by hand."""

from __future__ import annotations

import pytest
import torch
from tiny_stdit import recipe, roles, sample, stdit
from torch import nn

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError
from vdqbench.models.stdit import STDiT
from vdqbench.quant.accounting import account, bit_operations
from vdqbench.quant.bops import Operation
from vdqbench.quant.kernels.sim import Sim
from vdqbench.quant.parts import Site
from vdqbench.quant.quantize import quantize, sites_of

STEPS = 20


@pytest.fixture(scope="module")
def stdit_xl():
    with torch.device("meta"), torch.no_grad():
        model = STDiT(input_size=(16, 64, 64)).split_qkv()
    return model, sites_of(model, roles(model))


def test_the_quantized_layers_of_stdit_xl(stdit_xl):
    model, sites = stdit_xl
    assert len(sites) == 364 and sum(site.elements for site in sites) == 743_178_240
    assert sum(site.shape[1] for site in sites) == 516_096 and sum(site.shape[0] for site in sites) == 548_352
    assert sum(parameter.numel() for parameter in model.parameters()) == 759_620_768


@pytest.mark.parametrize(
    ("ranges", "smoothing", "activation", "weight", "w8", "w4"),
    [
        (1, 516_096, 728, 1_096_704, 0.743e9, 0.372e9),
        (2, 1_032_192, 1_456, 2_193_408, 1.49e9, 0.743e9),
        (4, 2_064_384, 2_912, 4_386_816, 2.97e9, 1.49e9),
        (10, 5_160_960, 7_280, 10_967_040, 7.43e9, 3.72e9),
        (20, 10_321_920, 14_560, 21_934_080, 14.9e9, 7.43e9),
    ],
)
def test_storage_of_tsq(stdit_xl, ranges, smoothing, activation, weight, w8, w4):
    _, sites = stdit_xl
    for bits, copies in ((8, w8), (4, w4)):
        report = account(sites, 0, recipe("tsq", bits, 8, STEPS, ranges=ranges), Sim("stored"))
        assert report["values"] == {"transforms": smoothing, "activation_params": activation, "weight_params": weight}
        size = report["bytes"]
        assert size["weights"] == 743_178_240 * bits // 8
        weights = size["weights"] + size["copies"] - 4 * (weight - weight // ranges)
        assert weights == ranges * size["weights"] and weights == pytest.approx(copies, rel=5e-3)
        assert size["total"] == sum(value for name, value in size.items() if name != "total")
        assert (report["weight_bits"], report["activation_bits"], report["copies"]) == (bits, 8, ranges)


def test_copies_that_are_not_kept_cost_the_master(stdit_xl):
    _, sites = stdit_xl
    report = account(sites, 1000, recipe("tsq", 8, 8, STEPS), Sim("auto"))
    assert report["copies_kept"] == "requantized" and report["bytes"]["copies"] == 2 * 743_178_240
    assert report["bytes"]["kept_fp"] == 2000
    tsw = account(sites, 0, recipe("tsw", 8, 8, STEPS), Sim())
    assert tsw["copies"] == 1 and tsw["copies_kept"] is None and tsw["bytes"]["copies"] == 0 and tsw["bytes"]["transforms"] == 0


def test_shared_smoothing(stdit_xl):
    _, sites = stdit_xl
    source = {
        site.name: site.name.removesuffix(".k").removesuffix(".v") + (".q" if site.name[-2:] in (".k", ".v") else "") for site in sites
    }
    report = account(sites, 0, recipe("asq", 8, 8, STEPS, transform__smooth__share_qkv=True), Sim(), source)
    assert report["values"]["transforms"] == 387_072


def test_floating_point(stdit_xl):
    _, sites = stdit_xl
    report = account(sites, 10, recipe("fp", 8, 8, STEPS), Sim())
    assert report["bytes"]["total"] == report["bytes"]["kept_fp"] == 2 * (743_178_240 + 10)
    assert (report["weight_bits"], report["quantized_layers"], len(report["kept_fp"])) == (16, 0, 364)


def test_a_small_model_by_hand():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    with quantize(model, {"0": "a", "1": "b"}, recipe("dynamic", 4, 6, sites__keep_fp=["b"]), None, StepClock()) as quantized:
        report = quantized.report()
    assert report["unmatched"] == ["2"] and report["kept_fp"] == ["1"] and report["layers"] == 2
    assert report["bytes"] == {
        "weights": 6,
        "weight_params": 4 * 2 * 3,
        "activation_params": 0,
        "transforms": 0,
        "copies": 0,
        "kept_fp": 2 * (6 + 3 + 2 + 6),
        "total": 6 + 24 + 34,
    }
    assert report["weight_bits"] == pytest.approx((12 * 4 + 6 * 16) / 18) and report["activation_bits"] == pytest.approx(
        (12 * 6 + 6 * 16) / 18
    )


def test_a_calibration_that_is_missing_or_of_another_length_is_an_error():
    model, clock = stdit(), StepClock()
    with pytest.raises(ConfigError, match="method=asq needs a calibration"):
        quantize(model, roles(model), recipe("asq"), None, clock)
    calibration = calibrate(model, roles(model), [lambda: sample(model, clock, 0, steps=2)], clock)
    with pytest.raises(ConfigError, match=r"sampler.steps=4 differs from the 2 steps of the calibration"):
        quantize(model, roles(model), recipe("asq"), calibration, clock)


@pytest.mark.parametrize(("method", "activation"), [("linear", 4), ("qvd_fp_temporal", 10), ("qvd_lookup", 10), ("qvd_per_step", 4)])
def test_features_left_in_floating_point_count_as_such(method, activation):
    layers = [Site("a", "ffn.up", (4, 10), None, None), Site("b", "time_proj", (4, 10), None, None)]
    made = recipe(method, 4, 4)
    assert made.average_bits(layers) == (4, activation)
    operations = [Operation(name, "linear", 1000, 10) for name in ("a", "b")]
    quantized, full = 4 * 4 + 4 + 4, 4 * 16 + 4 + 16
    expected = 1000 * (quantized + (quantized if activation == 4 else full))
    assert bit_operations(operations, layers, made)["total"] == expected


def test_low_rank_branches_are_counted():
    layers = [Site("a", "ffn.up", (64, 128), None, None)]
    tokens, rank = 7, 32
    operations = [Operation("a", "linear", 64 * 128 * tokens, 128)]
    made = bit_operations(operations, layers, recipe("svdquant", 4, 4))
    assert made["total"] == tokens * (64 * 128 * (16 + 8) + rank * (64 + 128) * (256 + 32))


def test_vectors_of_layers_outside_a_parts_roles_are_not_counted():
    sites = [
        Site("a.q", "self_attn.q", (8, 16), 8, 8),
        Site("a.out", "self_attn.out", (16, 8), 8, 8),
        Site("m.fc1", "ffn.up", (32, 16), 8, 8),
    ]
    report = account(sites, 0, recipe("qvd_scri", 8, 8, STEPS), Sim())
    assert report["values"]["transforms"] == 16 + 16 and report["bytes"]["transforms"] == 4 * 32
