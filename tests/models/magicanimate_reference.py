"""MagicAnimate once more, from its description alone: functions on the released tensors under their released names, frame by frame.

Videos are [B, C, F, H, W] throughout, convolutions are 3-D ones of one frame, attentions are written out, and each video, frame and
guidance branch goes through them alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

GROUPS, HEADS, MOTION_HEADS = 8, 4, 8
Tensors = Mapping[str, Tensor]


def below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def linear(p: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def conv(p: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight, pad = p[f"{name}.weight"][:, :, None], p[f"{name}.weight"].shape[-1] // 2
    return F.conv3d(x, weight, p[f"{name}.bias"], (1, stride, stride), (0, pad, pad))


def grouped(p: Tensors, name: str, x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over all but the batch and the group, for [B, C, ...]."""
    rows = x.reshape(len(x), GROUPS, -1).double()
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    shape = (1, -1, *[1] * (x.ndim - 2))
    return rows.reshape(x.shape).float() * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)


def layered(p: Tensors, name: str, x: Tensor) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def attended(p: Tensors, name: str, queries: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """Of tokens [N, C] to tokens [M, D]."""
    q, k, v = linear(p, f"{name}.to_q", queries), linear(p, f"{name}.to_k", tokens), linear(p, f"{name}.to_v", tokens)
    width, parts = q.shape[-1] // heads, []
    for i in range(heads):
        at = slice(i * width, (i + 1) * width)
        parts.append(torch.softmax(q[:, at] @ k[:, at].T / math.sqrt(width), -1) @ v[:, at])
    return linear(p, f"{name}.to_out.0", torch.cat(parts, -1))


def fed(p: Tensors, name: str, x: Tensor) -> Tensor:
    value, gate = linear(p, f"{name}.net.0.proj", x).chunk(2, -1)
    return linear(p, f"{name}.net.2", value * F.gelu(gate))


def resnet(p: Tensors, x: Tensor, time: Tensor) -> Tensor:
    h = conv(p, "conv1", F.silu(grouped(p, "norm1", x, 1e-5)))
    h = h + linear(p, "time_emb_proj", F.silu(time))[:, :, None, None, None]
    h = conv(p, "conv2", F.silu(grouped(p, "norm2", h, 1e-5)))
    return h + (conv(p, "conv_shortcut", x) if "conv_shortcut.weight" in p else x)


def pictured(p: Tensors, x: Tensor, text: Tensor, banks: list[Tensor | None]) -> Tensor:
    """A transformer of images; `banks` has the tokens that each row of the batch sees besides its own."""
    block, out = below(p, "transformer_blocks.0."), torch.empty_like(x)
    for b, bank in enumerate(banks):
        for f in range(x.shape[2]):
            image = x[b, :, f]
            h = conv(p, "proj_in", grouped(p, "norm", image[None], 1e-6)[:, :, None])[0].flatten(1).T
            tokens = layered(block, "norm1", h)
            h = h + attended(block, "attn1", tokens, tokens if bank is None else torch.cat([tokens, bank]), HEADS)
            h = h + attended(block, "attn2", layered(block, "norm2", h), text[b], HEADS)
            h = h + fed(block, "ff", layered(block, "norm3", h))
            out[b, :, f] = image + conv(p, "proj_out", h.T.reshape(1, -1, 1, *image.shape[1:]))[0, :, 0]
    return out


def moved(p: Tensors, x: Tensor) -> Tensor:
    """A motion module under its released names: attention over frames at each position, each with positions of its own."""
    frames = torch.stack([grouped(p, "norm", x[:, :, f], 1e-6) for f in range(x.shape[2])], 2)
    block, out = below(p, "transformer_blocks.0."), torch.empty_like(x)
    for b in range(len(x)):
        for i in range(x.shape[3]):
            for j in range(x.shape[4]):
                h = linear(p, "proj_in", frames[b, :, :, i, j].T)
                for k in (0, 1):
                    tokens = layered(block, f"norms.{k}", h) + block[f"attention_blocks.{k}.pos_encoder.pe"][0, : x.shape[2]]
                    h = h + attended(block, f"attention_blocks.{k}", tokens, tokens, MOTION_HEADS)
                h = h + fed(block, "ff", layered(block, "ff_norm", h))
                out[b, :, :, i, j] = x[b, :, :, i, j] + linear(p, "proj_out", h).T
    return out


def timed(p: Tensors, t: float, rows: int) -> Tensor:
    half = p["time_embedding.linear_1.weight"].shape[1] // 2
    angles = t * torch.exp(-math.log(10000) * torch.arange(half) / half)
    features = torch.cat([angles.cos(), angles.sin()]).expand(rows, -1)
    return linear(p, "time_embedding.linear_2", F.silu(linear(p, "time_embedding.linear_1", features)))


class Original:
    """The whole of it, from the folder of the released files."""

    def __init__(self, folder: Path) -> None:
        home, diffusion = folder / "MagicAnimate", folder / "stable-diffusion-v1-5"
        name = "diffusion_pytorch_model.safetensors"
        moving = torch.load(home / "temporal_attention" / "temporal_attention.ckpt", weights_only=True)["state_dict"]
        moving = {key.removeprefix("module.").replace(".temporal_transformer", ""): value for key, value in moving.items()}
        self.p: Tensors = load_file(diffusion / "unet" / name) | moving  # what the checkpoint has replaces what was loaded before
        config = json.loads((home / "appearance_encoder" / "config.json").read_text())
        self.appearance = UNet2DConditionModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()
        lacking = self.appearance.load_state_dict(load_file(home / "appearance_encoder" / name), strict=False)
        assert not lacking.unexpected_keys and len(lacking.missing_keys) == 24  # its random values must not matter
        self.control = ControlNetModel.from_pretrained(home / "densepose_controlnet").eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "sd-vae-ft-mse").eval()

    def latents(self, image: np.ndarray, side: int) -> Tensor:
        resized = torch.from_numpy(np.array(Image.fromarray(image).resize((side, side))))
        return 0.18215 * self.vae.encode((resized.permute(2, 0, 1)[None] / 127.5) - 1).latent_dist.mean

    def banks(self, latents: Tensor, t: float, text: Tensor) -> dict[str, Tensor]:
        """Normalized inputs of the self attentions of the second half, by block."""
        seen: dict[str, Tensor] = {}
        blocks = {name: m for name, m in self.appearance.named_modules() if name.endswith("transformer_blocks.0") and name[0] in "mu"}
        hooks = [m.attn1.register_forward_pre_hook(lambda _, a, name=name: seen.update({name: a[0]})) for name, m in blocks.items()]
        self.appearance(latents, t, text)
        for hook in hooks:
            hook.remove()
        return seen

    def controlled(self, x: Tensor, t: float, text: Tensor, pose: Tensor) -> tuple[list[Tensor], Tensor]:
        """What is added, [1, C, F, h, w], for one video [1, 4, F, H, W] and poses [F, 3, H, W] of 0..1."""
        each = [self.control(x[:, :, f], t, text, pose[f : f + 1], return_dict=False) for f in range(len(pose))]
        return [torch.stack(of, 2) for of in zip(*(down for down, _ in each), strict=True)], torch.stack([mid for _, mid in each], 2)

    def unet(self, x: Tensor, t: float, text: Tensor, banks: Tensors, sees: list[bool], down: list[Tensor], mid: Tensor) -> Tensor:
        """Noise of videos [B, 4, F, H, W], of which those that see the reference all see the same one."""
        p, time = self.p, timed(self.p, t, len(x))

        def blocks(prefix: str, i: int, x: Tensor) -> Tensor:
            x = resnet(below(p, f"{prefix}resnets.{i}."), x, time)
            if f"{prefix}attentions.{i}.norm.weight" in p:
                bank = banks.get(f"{prefix}attentions.{i}.transformer_blocks.0")
                x = pictured(below(p, f"{prefix}attentions.{i}."), x, text, [None if bank is None or not s else bank[0] for s in sees])
            return moved(below(p, f"{prefix}motion_modules.{i}."), x) if f"{prefix}motion_modules.{i}.norm.weight" in p else x

        x = conv(p, "conv_in", x)
        skips = [x]
        for level in (0, 1):
            x = blocks(f"down_blocks.{level}.", 0, x)
            skips.append(x)
            if level == 0:
                x = conv(p, "down_blocks.0.downsamplers.0.conv", x, stride=2)
                skips.append(x)
        skips = [skip + one for skip, one in zip(skips, down, strict=True)]
        x = resnet(below(p, "mid_block.resnets.1."), blocks("mid_block.", 0, x), time) + mid
        for level in (0, 1):
            for i in (0, 1):
                x = blocks(f"up_blocks.{level}.", i, torch.cat([x, skips.pop()], 1))
            if level == 0:
                x = conv(p, "up_blocks.0.upsamplers.0.conv", x.repeat_interleave(2, 3).repeat_interleave(2, 4))
        return conv(p, "conv_out", F.silu(grouped(p, "conv_norm_out", x, 1e-5)))

    def sample(self, noise: Tensor, steps: int, scale: float, image: Tensor, pose: Tensor, text: Tensor) -> Tensor:
        """Latents of one video [1, 4, F, H, W] by DDIM: each step t predicts the clean sample and goes to t - 1000 // steps."""
        kept = np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))
        x = noise
        for t in (np.arange(steps)[::-1] * (1000 // steps) + 1).tolist():
            down, mid = self.controlled(x, t, text, pose)
            banks = self.banks(image, t, text)
            none, some = (self.unet(x, t, text, banks, [sees], down, mid) for sees in (False, True))
            e = none + scale * (some - none)
            before = t - 1000 // steps
            a, b = kept[t], kept[before] if before >= 0 else 1.0
            x = b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e
        return x
