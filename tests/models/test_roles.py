"""Every layer of every architecture has a role; counts are those of the specifications."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, UNetMotionModel
from torch import nn

from vdqbench.errors import Unsupported
from vdqbench.models.roles import HUNYUAN, UNET_MOTION, hunyuan_anatomy, roles_by, stdit_anatomy, stdit_roles, unet_motion_anatomy
from vdqbench.models.stdit import STDiT


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
    assert sum(kinds[kind] for kind in ("self_attn", "temporal_attn", "cross_attn", "ffn")) == 364
    assert stdit_anatomy(model).blocks == tuple(f"blocks.{i}" for i in range(28))


def test_hunyuan_video_has_520_block_linears():
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel()
    roles = roles_by(HUNYUAN, model)
    block = {name: role for name, role in roles.items() if name.startswith(hunyuan_anatomy(model).blocks)}
    assert len(block) == 520 and Counter(role == "modulation" for role in block.values()) == {False: 440, True: 80}
    assert all(role.startswith(("self_attn.", "ffn.", "modulation")) for role in block.values())
    assert len(hunyuan_anatomy(model).blocks) == 60


def test_animatediff_unet():
    with torch.device("meta"):
        model = UNetMotionModel(cross_attention_dim=768, use_motion_mid_block=False)
    roles = roles_by(UNET_MOTION, model)
    modules = dict(model.named_modules())
    assert Counter(type(modules[name]).__name__ for name in roles) == {"Linear": 424, "Conv2d": 98}
    kinds = Counter(roles.values())
    assert kinds["time_proj"] == 22 and kinds["resnet.shortcut"] == 14 and kinds["temporal_attn.q"] == 40 and kinds["cross_attn.q"] == 16
    splits = unet_motion_anatomy(model).splits
    assert len(splits) == 12  # the shortcuts of the down blocks read no concatenation
    assert splits["up_blocks.0.resnets.0.conv_shortcut"] == 1280 and splits["up_blocks.3.resnets.0.conv_shortcut"] == 640
    assert all(size < modules[name].in_channels for name, size in splits.items())


def test_a_layer_without_a_role_is_refused():
    model = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(Unsupported, match="layer 0 of Sequential has no role"):
        roles_by(HUNYUAN, model)
