"""Which role each layer of an architecture has, and how the architecture is built.

Roles: `embed` and `head` (first and last layer), `time_emb.*` (the timestep's MLP), `time_proj` (reads its features alone),
`modulation` (reads them mixed with others), `caption.*` and `pooled.*` (the text's projections), `refiner.*`,
`{self,temporal,cross}_attn.{q,k,v,kv,out,add_*}`, `ffn.{up,down,out,add_*}`, `proj_in` and `proj_out` (around transformers in a
UNet), `resnet.*`, `resample.*`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vdqbench.errors import Unsupported
from vdqbench.models.base import Anatomy

if TYPE_CHECKING:
    from vdqbench.models.stdit import STDiT

Rules = Sequence[tuple[str, str]]
"""Pairs of a regular expression for the whole name of a layer and its role; the first that matches counts."""

STDIT: Rules = (
    (r"x_embedder\.proj", "embed"),
    (r"t_embedder\.mlp\.0", "time_emb.up"),
    (r"t_embedder\.mlp\.2", "time_emb.out"),
    (r"t_block\.1", "time_proj"),
    (r"y_embedder\.y_proj\.fc1", "caption.up"),
    (r"y_embedder\.y_proj\.fc2", "caption.down"),
    (r"blocks\.\d+\.attn\.(q|k|v)", r"self_attn.\1"),
    (r"blocks\.\d+\.attn\.proj", "self_attn.out"),
    (r"blocks\.\d+\.attn_temp\.(q|k|v)", r"temporal_attn.\1"),
    (r"blocks\.\d+\.attn_temp\.proj", "temporal_attn.out"),
    (r"blocks\.\d+\.cross_attn\.(q|kv)_linear", r"cross_attn.\1"),
    (r"blocks\.\d+\.cross_attn\.proj", "cross_attn.out"),
    (r"blocks\.\d+\.mlp\.fc1", "ffn.up"),
    (r"blocks\.\d+\.mlp\.fc2", "ffn.down"),
    (r"final_layer\.linear", "head"),
)
HUNYUAN: Rules = (
    (r"x_embedder\.proj", "embed"),
    (r"proj_out", "head"),
    (r"norm_out\.linear", "head.modulation"),
    (r"context_embedder\..*", "refiner"),
    (r"time_text_embed\.timestep_embedder\.linear_1", "time_emb.up"),
    (r"time_text_embed\.timestep_embedder\.linear_2", "time_emb.out"),
    (r"time_text_embed\.(text|guidance)_embedder\.linear_(1|2)", r"pooled.\1_\2"),
    (r"(single_)?transformer_blocks\.\d+\.norm(1|1_context)?\.linear", "modulation"),
    (r"(single_)?transformer_blocks\.\d+\.attn\.to_(q|k|v)", r"self_attn.\2"),
    (r"transformer_blocks\.\d+\.attn\.add_(q|k|v)_proj", r"self_attn.add_\1"),
    (r"transformer_blocks\.\d+\.attn\.to_out\.0", "self_attn.out"),
    (r"transformer_blocks\.\d+\.attn\.to_add_out", "self_attn.add_out"),
    (r"transformer_blocks\.\d+\.ff\.net\.0\.proj", "ffn.up"),
    (r"transformer_blocks\.\d+\.ff\.net\.2", "ffn.down"),
    (r"transformer_blocks\.\d+\.ff_context\.net\.0\.proj", "ffn.add_up"),
    (r"transformer_blocks\.\d+\.ff_context\.net\.2", "ffn.add_down"),
    (r"single_transformer_blocks\.\d+\.proj_mlp", "ffn.up"),
    (r"single_transformer_blocks\.\d+\.proj_out", "ffn.out"),
)
UNET_MOTION: Rules = (
    (r"conv_in", "embed"),
    (r"conv_out", "head"),
    (r"time_embedding\.linear_1", "time_emb.up"),
    (r"time_embedding\.linear_2", "time_emb.out"),
    (r".*\.time_emb_proj", "time_proj"),
    (r".*\.resnets\.\d+\.(conv1|conv2)", r"resnet.\1"),
    (r".*\.conv_shortcut", "resnet.shortcut"),
    (r".*\.downsamplers\.\d+\.conv", "resample.down"),
    (r".*\.upsamplers\.\d+\.conv", "resample.up"),
    (r".*\.motion_modules\..*\.attn\d\.to_(q|k|v)", r"temporal_attn.\1"),
    (r".*\.motion_modules\..*\.attn\d\.to_out\.0", "temporal_attn.out"),
    (r".*\.attn1\.to_(q|k|v)", r"self_attn.\1"),
    (r".*\.attn1\.to_out\.0", "self_attn.out"),
    (r".*\.attn2\.to_(q|k|v)", r"cross_attn.\1"),
    (r".*\.attn2\.to_out\.0", "cross_attn.out"),
    (r".*\.ff\.net\.0\.proj", "ffn.up"),
    (r".*\.ff\.net\.2", "ffn.down"),
    (r".*\.(proj_in|proj_out)", r"\1"),
)


def roles_by(rules: Rules, model: nn.Module) -> dict[str, str]:
    """Role of every linear and convolution of a model, in its order of modules.

    Raises:
        Unsupported: one of them has none.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            matches = (match.expand(role) for pattern, role in rules if (match := re.fullmatch(pattern, name)))
            role = next(matches, None)
            if role is None:
                raise Unsupported(f"layer {name} of {type(model).__name__} has no role, so no recipe could say what to do with it")
            found[name] = role
    return found


def stdit_roles(model: STDiT) -> dict[str, str]:
    """Of all layers, once `split_qkv` has been called: 13 linears a block, and 7 layers outside."""
    return roles_by(STDIT, model)


def stdit_anatomy(model: STDiT) -> Anatomy:
    """The blocks, and the input of the first spatial attention as what TeaCache looks at."""
    return Anatomy(tuple(f"blocks.{i}" for i in range(len(model.blocks))), _stdit_modulated)


def _stdit_modulated(block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """LN1(x) * (1 + scale_msa) + shift_msa."""
    x, _, modulation, *_ = args
    shift, scale, *_ = (block.scale_shift_table + modulation).chunk(6, dim=1)
    return block.norm1(x) * (1 + scale) + shift


def hunyuan_anatomy(model: Any) -> Anatomy:
    """Of diffusers' HunyuanVideoTransformer3DModel: the dual-stream, then the single-stream blocks."""
    stacks = (("transformer_blocks", model.transformer_blocks), ("single_transformer_blocks", model.single_transformer_blocks))
    return Anatomy(tuple(f"{name}.{i}" for name, stack in stacks for i in range(len(stack))), _hunyuan_modulated)


def _hunyuan_modulated(block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The video tokens after the first modulated norm."""
    given = dict(zip(("hidden_states", "encoder_hidden_states", "temb"), args, strict=False)) | dict(kwargs)
    return block.norm1(given["hidden_states"], emb=given["temb"])[0]


def unet_motion_anatomy(model: Any) -> Anatomy:
    """Of diffusers' UNetMotionModel: its ResNet and transformer blocks, and where shortcuts read a concatenation.

    The first part of such an input is what comes from below, the second the skip connection.
    """
    blocks = [name for name, _ in model.named_modules() if re.fullmatch(r".*\.(resnets|transformer_blocks)\.\d+", name)]
    splits, below = {}, model.mid_block.resnets[-1].out_channels
    for i, up in enumerate(model.up_blocks):
        for j, resnet in enumerate(up.resnets):
            if resnet.conv_shortcut is not None:
                splits[f"up_blocks.{i}.resnets.{j}.conv_shortcut"] = below
            below = resnet.out_channels
    return Anatomy(tuple(blocks), None, splits)
