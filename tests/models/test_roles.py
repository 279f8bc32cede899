"""Every layer of every architecture has a role; counts are those of the specifications."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from builders import described
from torch import nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.models.pipeline import ARCHITECTURES, PipelineAdapter
from vdqbench.models.roles import DIT, roles_by, stdit_anatomy, stdit_roles
from vdqbench.models.stdit import STDiT
from vdqbench.quant.macs import count

ATTENTION = ("self_attn", "temporal_attn", "cross_attn")


def outlined(name: str) -> PipelineAdapter:
    return PipelineAdapter.outlined(described(name))


def macs(adapter: PipelineAdapter) -> Counter[str]:
    """Multiply-accumulates of one call by kind."""
    counted: Counter[str] = Counter()
    for one in count(adapter.denoiser, **adapter.example()):
        counted[one.kind] += one.macs
    return counted


def test_stdit():
    with torch.device("meta"):
        model = STDiT(input_size=(16, 64, 64)).split_qkv()
    roles = stdit_roles(model)
    kinds = Counter(role.partition(".")[0] for role in roles.values())
    assert kinds == {
        "self_attn": 112,
        "temporal_attn": 112,
        "cross_attn": 84,
        "ffn": 56,
        "embed": 1,
        "head": 1,
        "time_emb": 2,
        "time_proj": 1,
        "caption": 2,
    }
    assert sum(kinds[kind] for kind in (*ATTENTION, "ffn")) == 364
    assert stdit_anatomy(model).blocks == tuple(f"blocks.{i}" for i in range(28))


def test_hunyuan_video_has_520_block_linears():
    adapter = outlined("hunyuan_video")
    roles, blocks = adapter.layers(), adapter.anatomy().blocks
    block = {name: role for name, role in roles.items() if name.startswith(blocks)}
    assert len(block) == 520 and Counter(role == "modulation" for role in block.values()) == {False: 440, True: 80}
    assert all(role.startswith(("self_attn.", "ffn.", "modulation")) for role in block.values())
    assert len(blocks) == 60 and len(roles) - len(block) == 28
    assert sum(parameter.numel() for parameter in adapter.denoiser.parameters()) == 12_821_012_544
    # 118,800 tokens of video and 256 of text: 440 linears see tokens
    tokens = 33 * 45 * 80
    example = adapter.example()
    assert example["hidden_states"].shape == (1, 16, 33, 90, 160) and example["guidance"].shape == (1,)
    counted = macs(adapter)
    video = tokens * 3072 * (20 * (4 * 3072 + 2 * 12288) + 40 * (3 * 3072 + 12288 + 15360))
    text = 256 * 3072 * (20 * (4 * 3072 + 2 * 12288) + 40 * (3 * 3072 + 12288 + 15360))
    modulation = 3072 * (40 * 18432 + 40 * 9216)
    assert counted["linear"] == pytest.approx(video + text + modulation, rel=2e-4)  # and what is outside of the blocks
    assert counted["matmul"] == pytest.approx(60 * 2 * (tokens + 256) ** 2 * 3072, rel=1e-3)


@pytest.mark.parametrize("name", ["animatediff", "animatediff_sparsectrl", "animatediff_sparsectrl_rgb"])
def test_animatediff_unet(name):
    adapter = outlined(name)
    roles, modules = adapter.layers(), dict(adapter.denoiser.named_modules())
    assert Counter(type(modules[layer]).__name__ for layer in roles) == {"Linear": 424, "Conv2d": 98}
    kinds = Counter(roles.values())
    assert kinds["time_proj"] == 22 and kinds["resnet.shortcut"] == 14 and kinds["temporal_attn.q"] == 40 and kinds["cross_attn.q"] == 16
    splits = adapter.anatomy().splits
    assert len(splits) == 12  # the shortcuts of the down blocks read no concatenation
    assert splits["up_blocks.0.resnets.0.conv_shortcut"] == 1280 and splits["up_blocks.3.resnets.0.conv_shortcut"] == 640
    assert all(size < modules[layer].in_channels for layer, size in splits.items())
    if name == "animatediff":
        assert {kind: round(value / 1e12, 3) for kind, value in macs(adapter).items()} == {"conv": 3.552, "linear": 4.265, "matmul": 1.021}


@pytest.mark.parametrize(
    ("name", "blocks", "layers", "parameters"),
    [
        ("cogvideox", 30, 8, 1.694),
        ("hunyuan_video_15", 54, 14, 8.327),
        ("latte", 56, 8, 1.057),
        ("ltx", 28, 10, 1.923),
        ("mochi", 48, 14, 10.028),
        ("wan", 30, 10, 1.419),
    ],
)
def test_other_transformers(name, blocks, layers, parameters):
    """Counts of blocks, of linears in each, and billions of parameters."""
    adapter = outlined(name)
    roles, names = adapter.layers(), adapter.anatomy().blocks
    block = {layer: role for layer, role in roles.items() if layer.startswith(tuple(f"{one}." for one in names))}
    last = {"mochi": -3}.get(name, 0)  # the last block of Mochi gives no text on
    assert len(names) == blocks and len(block) == blocks * layers + last
    assert {role.partition(".")[0] for role in block.values()} <= {*ATTENTION, "ffn", "modulation"}
    assert len(roles) - len(block) < 32
    assert sum(parameter.numel() for parameter in adapter.denoiser.parameters()) / 1e9 == pytest.approx(parameters, abs=5e-4)


def test_architectures_are_those_of_models():
    names = {path.stem for path in ARCHITECTURES.glob("*.json")}
    assert len(names) == 10 and all(described(name).adapter.endswith(".PipelineAdapter") for name in names)
    with pytest.raises(ConfigError, match=r"model=hunyuan has no architecture of its own \(did you mean hunyuan_video"):
        PipelineAdapter.outlined(described("hunyuan_video", name="hunyuan"))


def test_a_layer_without_a_role_is_refused():
    model = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(Unsupported, match="layer 0 of Sequential has no role"):
        roles_by(DIT, model)
