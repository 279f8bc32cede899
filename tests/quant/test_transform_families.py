"""Transforms change nothing without quantization: on single layers and in every family of models."""

from __future__ import annotations

import pytest
import tiny_stdit
import torch
from tiny_layers import observe, recipe_of, without_quantization
from torch import nn

from vdqbench.models.base import Anatomy
from vdqbench.models.roles import stdit_roles

TRANSFORMS = {
    "hadamard": {"rotate": {}},
    "signs": {"rotate": {"signs": True, "seed": 3}},
    "block": {"rotate": {"kind": "block", "block_size": 4}},
    "smooth": {"smooth": {"statistic": "max"}},
    "smooth, two ranges": {"smooth": {"statistic": "max", "ranges": 2}},
    "literal": {"scri": {"mode": "literal"}},
    "shrink": {"scri": {"mode": "shrink", "points": 1}},
    "amplify": {"scri": {"mode": "amplify", "points": 1, "roles": ["*"]}},
    "osplus": {"osplus": {"points": 2}},
    "osplus without shift": {"osplus": {"points": 2, "shift": False}},
    "smooth search": {"smooth_search": {"points": 2}},
    "low rank": {"low_rank": {"rank": 2, "iterations": 2}},
    "low rank, shared down": {"low_rank": {"rank": 3, "iterations": 2, "shared_down": True}},
    "split": {"split": {}},
    "split, smooth": {"split": {}, "smooth": {"statistic": "max"}},
    "smooth, rotate": {"smooth": {"statistic": "max"}, "rotate": {"signs": True}},
    "svdquant": {"smooth_search": {"points": 2}, "low_rank": {"rank": 2, "iterations": 2}},
}
DYNAMIC = {"grid": "dynamic", "per": "tensor"}


def assert_unchanged(observed, name):
    draw = {"draw": "all", "tokens": 4} if "ranges" in name else None
    recipe = without_quantization(recipe_of(TRANSFORMS[name], activation=DYNAMIC, draw=draw))
    changed = 0
    with observed.quantized(recipe) as quantized:
        changed = sum(type(observed.model.get_submodule(layer)).__name__.startswith("Quant") for layer in observed.roles)
        assert quantized is not None
    assert changed == len(observed.roles)
    for made, expected in zip(observed.outputs(recipe), observed.outputs(), strict=True):
        assert (made - expected).norm() < 1e-5 * expected.norm(), ((made - expected).norm() / expected.norm(), name)


LAYERS = {
    "linear": (lambda: nn.Linear(12, 6), (2, 5, 12)),
    "linear without bias": (lambda: nn.Linear(12, 6, bias=False), (3, 12)),
    "1x1": (lambda: nn.Conv2d(12, 6, 1), (2, 12, 4, 3)),
    "3d": (lambda: nn.Conv3d(12, 6, (1, 2, 2), stride=(1, 2, 2)), (2, 12, 2, 4, 6)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_single_layers(layer, name):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    model = nn.Sequential(make()).eval().requires_grad_(False)
    scale = torch.exp(2 * torch.randn(12)).view(-1, *(1,) * (len(shape) - 2)) if "linear" not in layer else torch.exp(2 * torch.randn(12))
    mixed = observe(
        nn.Sequential(*model, nn.Identity()),
        {"0": "proj_in"},
        lambda p, k: ((torch.randn(shape, generator=torch.Generator().manual_seed(9 * p + k)) + 1) * scale,),
        anatomy=Anatomy(splits={"0": 5}),
    )
    if name == "low rank, shared down" or not ({"smooth_search", "scri", "osplus"} & set(TRANSFORMS[name])):
        assert_unchanged(mixed, name)
        return
    pair = nn.ModuleDict({"a": mixed.model[0], "b": make().requires_grad_(False)})  # what shares needs two that read one input

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = pair

        def forward(self, x):
            return self.pair["a"](x) + self.pair["b"](x)

    assert_unchanged(
        observe(Two(), {"pair.a": "self_attn.q", "pair.b": "self_attn.k"}, lambda p, k: mixed.calls.at(p, k)[0].args),
        name,
    )


LARGER = [
    "signs",
    "smooth, two ranges",
    "osplus",
    "low rank, shared down",
    "split, smooth",
    pytest.param("amplify", marks=pytest.mark.slow),
    pytest.param("svdquant", marks=pytest.mark.slow),
]
"""What is tried on the larger models."""


@pytest.fixture(scope="module")
def stdit():
    model = tiny_stdit.stdit()
    for parameter in model.parameters():
        parameter.mul_(0.5)  # large random weights make it so steep that rounding alone changes its output
    return observe(model, stdit_roles(model), lambda p, k: tiny_stdit.inputs(p, k))


def simple_roles(model):
    """Roles by the names that diffusers gives its layers; only what the transforms care about."""
    roles = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        last = name.rpartition(".")[2]
        kind = "cross_attn" if "attentions" in name and "attn2" in name else "temporal_attn" if "motion" in name else "self_attn"
        if last in ("to_q", "to_k", "to_v"):
            roles[name] = f"{kind}.{last[-1]}"
        elif "to_out" in name:
            roles[name] = f"{kind}.out"
        elif ".ff" in name:
            roles[name] = "ffn.up" if last == "proj" else "ffn.down"
        elif module.weight.shape[1] % 4 == 0:
            roles[name] = "proj_in" if last == "proj_in" else last
    return roles


@pytest.fixture(scope="module")
def hunyuan():
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    ).eval().requires_grad_(False)  # fmt: skip

    def inputs(prompt, step):
        generator = torch.Generator().manual_seed(10 * prompt + step)
        return dict(
            hidden_states=torch.randn(1, 4, 2, 4, 4, generator=generator),
            timestep=torch.tensor([900 - 200 * step]),
            encoder_hidden_states=torch.randn(1, 5, 16, generator=generator),
            encoder_attention_mask=torch.ones(1, 5),
            pooled_projections=torch.randn(1, 8, generator=generator),
            guidance=torch.tensor([6000.0]),
            return_dict=False,
        )

    return observe(model, simple_roles(model), inputs)


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNetMotionModel

    torch.manual_seed(0)
    model = UNetMotionModel(
        sample_size=8, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8,
        num_attention_heads=2, norm_num_groups=4, motion_max_seq_length=4, motion_num_attention_heads=2, use_motion_mid_block=False,
    ).eval().requires_grad_(False)  # fmt: skip

    def inputs(prompt, step):
        generator = torch.Generator().manual_seed(10 * prompt + step)
        sample, text = torch.randn(1, 4, 2, 8, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
        return dict(sample=sample, timestep=torch.tensor(900 - 200 * step), encoder_hidden_states=text, return_dict=False)

    roles = simple_roles(model)
    shortcuts = [name for name in roles if name.startswith("up_blocks") and name.endswith("conv_shortcut")]
    assert len(shortcuts) == 4
    splits = {name: 16 if name.startswith("up_blocks.0") or name == "up_blocks.1.resnets.0.conv_shortcut" else 8 for name in shortcuts}
    return observe(model, roles, inputs, anatomy=Anatomy(splits=splits))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_stdit(stdit, name):
    assert_unchanged(stdit, name)


@pytest.mark.parametrize("name", LARGER)
def test_hunyuan(hunyuan, name):
    assert_unchanged(hunyuan, name)


@pytest.mark.parametrize("name", LARGER)
def test_unet(unet, name):
    assert_unchanged(unet, name)
