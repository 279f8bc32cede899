"""Bit operations and MACs against the papers' numbers, hand counts and real architectures on the meta device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vdqbench.errors import ConfigError
from vdqbench.quant.bops import Operation, bops, compression, layer_macs, output_positions, total_bops
from vdqbench.quant.macs import count

QVD = 8.94761e12
"""MACs of a forward pass that QVD's 9735 TBOPs imply."""
IO = 2 * 4 * 320 * 9 * 16 * 64 * 64
"""MACs of the first and the last convolution of the 3-D UNet, 16 frames of 64x64 latents."""


@pytest.mark.parametrize(("bits", "tera"), [((32, 32), 9735), ((8, 8), 716), ((6, 8), 555), ((6, 6), 430)])
def test_tables_of_qvd_are_reproduced(bits, tera):
    operations = [Operation("io", "conv", IO, 36), Operation("rest", "linear", int(QVD) - IO, 320)]
    io = bits if bits == (32, 32) else (8, 8)
    assert round(total_bops(operations, {"io": io}, default=bits)["total"] / 1e12) == tera


def test_other_formulas():
    assert [round(bops(QVD, w, a, "product") / 1e12, 1) for w, a in ((8, 8), (6, 8), (6, 6))] == [572.6, 429.5, 322.1]
    assert bops(10, 4, 8) == 10 * (32 + 12)
    assert bops(10, 4, 8, "uniq", reduction=64) == 10 * (32 + 12 + 6)
    with pytest.raises(ConfigError, match="uniq_nolog"):
        bops(1, 1, 1, "uniq_log")
    with pytest.raises(ValueError, match="length of the inner products"):
        bops(1, 1, 1, "uniq")
    with pytest.raises(ValueError, match="must not be negative"):
        bops(1, -1, 1)


@given(st.integers(1, 64), st.integers(1, 64), st.floats(1, 32), st.floats(1, 32))
def test_bops_are_linear_in_macs_and_symmetric_in_bits(first, second, w, a):
    for formula in ("uniq_nolog", "product"):
        assert bops(first, w, a, formula) + bops(second, w, a, formula) == pytest.approx(bops(first + second, w, a, formula))
        assert bops(first, w, a, formula) == pytest.approx(bops(first, a, w, formula))


def test_matmuls_are_counted_or_not():
    operations = [Operation("a", "linear", 100, 4), Operation("b", "conv", 10, 9), Operation("attn", "matmul", 1000, 8)]
    without = total_bops(operations, {"a": (4, 4)}, default=(16, 16), formula="product")
    assert without == {"linear": 1600.0, "conv": 2560.0, "matmul": 0.0, "total": 4160.0}
    with_them = total_bops(operations, {"a": (4, 4)}, default=(16, 16), matmuls=(8, 16), formula="product")
    assert with_them["matmul"] == 128_000 and with_them["total"] == 4160 + 128_000


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv1d(3, 8, 5, stride=2, padding=1, dilation=2), (23,)),
        (nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2), (9, 7)),
        (nn.Conv3d(2, 5, (1, 2, 2), stride=(1, 2, 2), bias=False), (4, 8, 6)),
    ],
)
def test_convolutions_agree_with_the_formula_and_with_the_output(layer, size):
    x = torch.randn(2, layer.in_channels, *size)
    positions = output_positions(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    assert positions == layer(x)[0, 0].numel()
    (one,) = count(layer, x)
    assert one == Operation("", "conv", layer_macs(layer.weight.shape, 2 * positions), layer.weight[0].numel())
    with pytest.raises(ValueError, match="does not fit"):
        output_positions([1] * len(size), [5] * len(size), [1] * len(size), [0] * len(size))


class Block(nn.Module):
    """Every way in which video transformers write a product of two activations."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(12, 36, bias=how == "sdpa"), nn.Linear(12, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, value=v)
        elif self.how == "matmul":
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        elif self.how == "einsum":
            y = torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
        else:
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            scores = torch.baddbmm(torch.zeros(len(q), q.shape[1], q.shape[1], device=q.device), q, k.transpose(-1, -2), beta=0)
            y = torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, 2))
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("how", ["sdpa", "matmul", "einsum", "baddbmm"])
def test_attention_is_counted_alike_however_it_is_written(how, device):
    model = nn.Sequential(Block(how), Block(how)).to(device)
    operations = count(model, torch.zeros(3, 5, 12, device=device))
    linear = {one.name: (one.macs, one.reduction) for one in operations if one.kind == "linear"}
    assert linear == {f"{i}.{name}": (3 * 5 * 12 * width, 12) for i in (0, 1) for name, width in (("qkv", 36), ("out", 12))}
    products = {(one.name, one.reduction): one.macs for one in operations if one.kind == "matmul"}
    assert products == {(str(i), length): 3 * 2 * 5 * 5 * 6 for i in (0, 1) for length in (6, 5)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_calls_are_added_up_transposed_convolutions_counted_and_failures_leave_no_hooks():
    layer = nn.Linear(3, 4)
    model = nn.Sequential(layer, nn.Linear(4, 3), layer)
    assert [(one.name, one.macs) for one in count(model, torch.zeros(7, 3))] == [("0", 2 * 7 * 12), ("1", 7 * 12)]
    up = nn.ConvTranspose2d(4, 2, 3, stride=2)
    assert count(up, torch.zeros(1, 4, 5, 5)) == [Operation("", "conv", 25 * 4 * 2 * 9, 18)]
    with pytest.raises(RuntimeError):
        count(model, torch.zeros(7, 5))
    assert not layer._forward_hooks and layer(torch.zeros(1, 3)).shape == (1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("middle", [False, True])
def test_macs_of_the_unet_with_motion_modules(middle):
    """QVD's number needs 8.948 TMACs, 16 frames of 512x512 and one guidance branch; the architecture has 0.8 to 1.2 % less."""
    from diffusers import UNetMotionModel

    with torch.device("meta"):
        model = UNetMotionModel(cross_attention_dim=768, num_attention_heads=8, motion_num_attention_heads=8, use_motion_mid_block=middle)
        latents, timestep, text = torch.zeros(1, 4, 16, 64, 64), torch.zeros((), dtype=torch.long), torch.zeros(16, 77, 768)
    operations = count(model, latents, timestep, encoder_hidden_states=text)
    parts = {kind: sum(one.macs for one in operations if one.kind == kind) / 1e12 for kind in ("conv", "linear", "matmul")}
    assert sum(parts.values()) == pytest.approx(8.8745 if middle else 8.8375, abs=0.005)
    assert parts["matmul"] == pytest.approx(1.021, abs=0.005)
    if not middle:
        assert parts["conv"] == pytest.approx(3.552, abs=0.005) and parts["linear"] == pytest.approx(4.265, abs=0.005)


@pytest.mark.slow
def test_dvd_quants_memory_ratio_follows_from_hunyuan_videos_shapes():
    """W4 for all 520 linear layers of the blocks, modulation included, with 16-bit scale and zero point per output channel."""
    from diffusers import HunyuanVideoTransformer3DModel

    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel()
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    weights = [module.weight for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    parameters = sum(one.numel() for one in model.parameters())
    assert (len(weights), parameters) == (520, 12_821_012_544)
    ratio = compression(parameters, sum(one.numel() for one in weights), sum(len(one) for one in weights), weight_bits=4)
    assert ratio == pytest.approx(3.679, abs=0.0005)


def test_compression_without_quantization_is_one():
    assert compression(100, 0, 0, 4) == 1.0
    assert compression(1000, 1000, 0, 4) == 4.0
    with pytest.raises(ValueError, match=r"0\.\.10"):
        compression(10, 11, 1, 4)
