"""Train the causal 3-D autoencoder of mini_hunyuan on shapes clips of 17 frames, from the frame-wise one of mini_stdit.

python experiments/minis/train_hunyuan_vae.py      # about 10 minutes on one core with AMX; resumes from its checkpoint

From random weights it paints backgrounds and does not find the shape within 600 steps, so it starts as the inflated frame-wise
autoencoder: its kernels become the newest frame of the causal kernels, older frames start at zero. A tenth of the run gets all of
it used to single frames the right way up (see `inflate`); then the encoder, which thus looks at every fourth frame, stays as it is,
so that train_hunyuan.py can start on its latents, and the decoder learns on clips what happens between the frames.

diffusers decodes more than 16 frames in two overlapping pieces, the second of which starts in the middle of the motion. The end of
the run decodes that way, so that the weights are good at what the pipeline does with them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, Checkpoint, Log, device
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file
from torch import Tensor, nn

from vdqbench import shapes

FRAMES = 17
CONFIG = dict(
    latent_channels=4,
    down_block_types=["HunyuanVideoDownBlock3D"] * 3,
    up_block_types=["HunyuanVideoUpBlock3D"] * 3,
    block_out_channels=[32, 64, 64],
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_add_attention=False,
    spatial_compression_ratio=4,
    temporal_compression_ratio=4,
)


@dataclass(frozen=True)
class Stage:
    """From which share of the run on: frames of a clip, clips of a batch, if the encoder learns, if decoding is in pieces."""

    first: float
    frames: int
    batch: int
    encoder: bool
    pieces: bool


STAGES = [Stage(0.0, 1, 12, True, False), Stage(0.1, FRAMES, 2, False, False), Stage(0.6, FRAMES, 2, False, True)]


@torch.no_grad()
def inflate(vae: nn.Module) -> None:
    """Take over the frame-wise autoencoder of mini_stdit as the newest frame of every causal kernel.

    That one pads behind the image when it halves it, this one on both sides. Turned upside down and left to right, the
    windows are the same; so are the kernels.
    """
    flat = load_file(WEIGHTS / "mini_stdit_vae.safetensors")
    for name, value in vae.state_dict().items():
        causal = name.endswith((".conv.weight", ".conv.bias"))
        source = flat[name.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias") if causal else name].float()
        if value.ndim == 5:
            value.zero_()
            value[:, :, -1] = source.flip(2, 3)
        else:
            value.copy_(source)


def clips(split: str, seed: int, index: np.ndarray) -> Tensor:
    """[N, 3, 17, 32, 32] in [-1, 1]."""
    videos, _ = shapes.dataset(split, seed, index, FRAMES)
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def batch(seed: int, step: int, stage: Stage) -> Tensor:
    """Training clips [N, 3, T, 32, 32], at random places in time while they are short."""
    x = clips("train", seed, np.arange(step * 16, step * 16 + stage.batch))
    first = np.random.default_rng((seed, step)).integers(0, FRAMES - stage.frames + 1, stage.batch)
    return torch.stack([clip[:, i : i + stage.frames] for clip, i in zip(x, first, strict=True)])


@torch.no_grad()
def psnr(vae: AutoencoderKLHunyuanVideo) -> tuple[float, float]:
    """PSNR in dB on held-out clips, decoded as the pipeline does, and the standard deviation of the latents."""
    whole, vae.use_framewise_decoding = vae.use_framewise_decoding, True
    errors, latents = [], []
    for x in clips("eval", 7, np.arange(24)).to(vae.device).split(4):
        with torch.autocast(vae.device.type, torch.bfloat16):
            z = vae.encode(x).latent_dist.mode()
            out = vae.decode(z).sample
        errors.append((out.float().clamp(-1, 1) - x).square().mean(dim=(1, 2, 3, 4)))
        latents.append(z.float())
    vae.use_framewise_decoding = whole
    return (10 * torch.log10(4 / torch.cat(errors))).mean().item(), torch.cat(latents).std().item()


def publish(vae: AutoencoderKLHunyuanVideo, std: float, work: Path) -> None:
    """Write the weights (bf16) into the package; the scale of the latents stays that of the first time."""
    made, shipped = work / "mini_hunyuan_vae", WEIGHTS / "mini_hunyuan" / "vae"
    before = shipped / "config.json"
    scale = json.loads(before.read_text())["scaling_factor"] if before.exists() else 1.0 / std
    copied = AutoencoderKLHunyuanVideo(**CONFIG, scaling_factor=scale)
    copied.load_state_dict(vae.state_dict())
    copied.to(torch.bfloat16).save_pretrained(made)
    shipped.mkdir(parents=True, exist_ok=True)
    for path in made.iterdir():
        path.chmod(0o644)
        os.replace(path, shipped / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--kl", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    vae = AutoencoderKLHunyuanVideo(**CONFIG).to(dev)
    inflate(vae)
    vae.use_framewise_encoding = False
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    rate = lambda step: min((step + 1) / 30, 1.0, 0.02 + 2 * (1 - step / args.steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = Checkpoint(args.work / "hunyuan_vae.pt", model=vae, optimizer=optimizer, schedule=schedule)
    first, log = checkpoint.load(), Log("hunyuan_vae")

    recent: list[float] = []
    began = time.monotonic()
    for step in range(first, args.steps):
        stage = [stage for stage in STAGES if step >= stage.first * args.steps][-1]
        vae.use_framewise_decoding = stage.pieces
        x = batch(args.seed, step, stage).to(dev)
        with torch.autocast(dev.type, torch.bfloat16):
            with torch.set_grad_enabled(stage.encoder):
                posterior = vae.encode(x).latent_dist
                z = posterior.sample()
            out = vae.decode(z).sample
        error = out.float() - x
        loss = error.abs().mean() + error.square().mean() + args.kl * posterior.kl().float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 40 == 0 or step + 1 == args.steps:
            quality, std = psnr(vae)
            log.row(step=step + 1, seconds=time.monotonic() - began, loss=sum(recent) / len(recent), psnr=quality, latent_std=std)
            recent.clear()
            checkpoint.save(step + 1)
            if step + 1 >= STAGES[1].first * args.steps:
                publish(vae, std, args.work)


if __name__ == "__main__":
    main()
