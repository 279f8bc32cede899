"""Which role each layer of an architecture has, and how the architecture is built.

Roles: `embed` and `head` (first and last layer), `time_emb.*` (the timestep's MLP), `time_proj` (reads its features alone, for all
blocks or in a ResNet), `modulation` (a transformer block's own shifts, scales and gates, from these features or a mixture of them
with others), `caption.*`, `pooled.*` and `image` (projections of what the model is told), `refiner` (a network on top of the text),
`{self,temporal,cross}_attn.{q,k,v,kv,out,add_*}`, `ffn.{up,down,out,add_*}`, `proj_in` and `proj_out` (around transformers in a
UNet), `resnet.*`, `resample.*`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vdqbench.errors import Unsupported
from vdqbench.models.base import Anatomy

if TYPE_CHECKING:
    from vdqbench.models.stdit import STDiT

Modulated = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Tensor]
Rules = Sequence[tuple[str, str]]
"""Pairs of a regular expression for the whole name of a layer and its role; the first that matches counts."""

STDIT: Rules = (
    (r"x_embedder\.proj", "embed"),
    (r"t_embedder\.mlp\.0", "time_emb.up"),
    (r"t_embedder\.mlp\.2", "time_emb.out"),
    (r"t_block\.1", "time_proj"),
    (r"y_embedder\.y_proj\.fc1", "caption.up"),
    (r"y_embedder\.y_proj\.fc2", "caption.down"),
    (r"blocks\.\d+\.attn\.(q|k|v|qkv)", r"self_attn.\1"),
    (r"blocks\.\d+\.attn\.proj", "self_attn.out"),
    (r"blocks\.\d+\.attn_temp\.(q|k|v|qkv)", r"temporal_attn.\1"),
    (r"blocks\.\d+\.attn_temp\.proj", "temporal_attn.out"),
    (r"blocks\.\d+\.cross_attn\.(q|kv)_linear", r"cross_attn.\1"),
    (r"blocks\.\d+\.cross_attn\.proj", "cross_attn.out"),
    (r"blocks\.\d+\.mlp\.fc1", "ffn.up"),
    (r"blocks\.\d+\.mlp\.fc2", "ffn.down"),
    (r"final_layer\.linear", "head"),
)
BLOCK = r"(?:\w*_)?blocks\.\d+\."
DIT: Rules = (
    (r"(patch_embed|x_embedder|pos_embed)\.proj|patch_embedding|proj_in", "embed"),
    (r"proj_out", "head"),
    (r"norm_out\.linear", "head.modulation"),
    (r"context_embedder\..*", "refiner"),
    (r"([\w.]+\.)?(timestep_embedder|time_embedder|time_embedding)\.linear_1", "time_emb.up"),
    (r"([\w.]+\.)?(timestep_embedder|time_embedder|time_embedding)\.linear_2", "time_emb.out"),
    (r"condition_embedder\.time_proj|(adaln_single|time_embed)\.linear", "time_proj"),
    (r"time_text_embed\.(text|guidance)_embedder\.linear_(1|2)", r"pooled.\1_\2"),
    (r"time_embed\.pooler\.to_(\w+)", r"pooled.\1"),
    (r"(caption_projection|condition_embedder\.text_embedder|context_embedder_2)\.linear_(\d)", r"caption.\2"),
    (r"patch_embed\.text_proj|time_embed\.caption_proj", "caption"),
    (r"(image_embedder|condition_embedder\.image_embedder\.ff)\..*", "image"),
    (rf"{BLOCK}norm\d?(_context)?\.linear(_1)?", "modulation"),
    (r"temporal_transformer_blocks\.\d+\.attn1\.to_(q|k|v)", r"temporal_attn.\1"),
    (r"temporal_transformer_blocks\.\d+\.attn1\.to_out\.0", "temporal_attn.out"),
    (rf"{BLOCK}attn1?\.to_(q|k|v)", r"self_attn.\1"),
    (rf"{BLOCK}attn1?\.to_out\.0", "self_attn.out"),
    (rf"{BLOCK}attn1?\.add_(q|k|v)_proj", r"self_attn.add_\1"),
    (rf"{BLOCK}attn1?\.to_add_out", "self_attn.add_out"),
    (rf"{BLOCK}attn2\.to_(q|k|v)", r"cross_attn.\1"),
    (rf"{BLOCK}attn2\.to_out\.0", "cross_attn.out"),
    (rf"{BLOCK}attn2\.add_(k|v)_proj", r"cross_attn.add_\1"),
    (rf"{BLOCK}(ff|ffn)\.net\.0\.proj|single_{BLOCK}proj_mlp", "ffn.up"),
    (rf"{BLOCK}(ff|ffn)\.net\.2", "ffn.down"),
    (rf"{BLOCK}ff_context\.net\.0\.proj", "ffn.add_up"),
    (rf"{BLOCK}ff_context\.net\.2", "ffn.add_down"),
    (rf"single_{BLOCK}proj_out", "ffn.out"),
)
"""The names that diffusers' video transformers have in common: HunyuanVideo, Wan, CogVideoX, LTX, Latte, Mochi."""
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
    """Of all layers: 13 linears a block after `split_qkv`, 9 before, and 7 layers outside."""
    return roles_by(STDIT, model)


def stdit_anatomy(model: STDiT) -> Anatomy:
    """The blocks, and the input of the first spatial attention as what TeaCache looks at."""
    return Anatomy(tuple(f"blocks.{i}" for i in range(len(model.blocks))), _stdit_modulated)


def _stdit_modulated(block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """LN1(x) * (1 + scale_msa) + shift_msa."""
    x, _, modulation, *_ = args
    shift, scale, *_ = (block.scale_shift_table + modulation).chunk(6, dim=1)
    return block.norm1(x) * (1 + scale) + shift


def dit_anatomy(model: Any, modulated: Modulated | None = None) -> Anatomy:
    """Of diffusers' video transformers: their blocks as they follow each other."""
    if hasattr(model, "temporal_transformer_blocks"):  # Latte's take turns
        pairs = range(len(model.transformer_blocks))
        return Anatomy(tuple(f"{kind}.{i}" for i in pairs for kind in ("transformer_blocks", "temporal_transformer_blocks")), modulated)
    stacks = {name: getattr(model, name, ()) for name in ("transformer_blocks", "single_transformer_blocks", "blocks")}
    return Anatomy(tuple(f"{name}.{i}" for name, stack in stacks.items() for i in range(len(stack))), modulated)


def after_norm(block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The video tokens after the first norm, where that modulates them itself (HunyuanVideo, Mochi)."""
    hidden_states, _, temb = _streams(args, kwargs)
    return block.norm1(hidden_states, emb=temb)[0]


def after_joint_norm(block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The video tokens after the first norm, where that modulates them together with the text's (CogVideoX)."""
    return block.norm1(*_streams(args, kwargs))[0]


def after_table(block: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """norm1(x) * (1 + scale) + shift, where the block adds a table to what all blocks share (Wan, LTX).

    The sum is [B, 6, C], or [B, N, 6, C] with a time for each token.
    """
    hidden_states, _, temb = _streams(args, kwargs)
    table = block.scale_shift_table.reshape(6, -1)
    shift, scale = (table + temb.unflatten(-1, (-1, table.shape[-1])).reshape(len(temb), -1, *table.shape)).unbind(2)[:2]
    return block.norm1(hidden_states) * (1 + scale) + shift


def _streams(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of the video and of the text, and what modulates them: the first arguments of all blocks of diffusers' transformers."""
    names = ("hidden_states", "encoder_hidden_states", "temb")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return given["hidden_states"], given["encoder_hidden_states"], given["temb"]


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
