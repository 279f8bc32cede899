"""Train the frame-wise autoencoder of mini_stdit on shapes frames.

python experiments/minis/train_vae.py            # about 10 minutes on two cores; resumes from its checkpoint
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from common import Checkpoint, Log, device, write_weights
from diffusers import AutoencoderKL

from vdqbench import shapes

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=[32, 64, 64],
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_add_attention=False,
    sample_size=32,
)


def frames(seed: int, step: int, batch: int) -> torch.Tensor:
    """[batch, 3, 32, 32] in [-1, 1]: frames of different videos."""
    index = np.arange(step * batch, (step + 1) * batch)
    videos, _ = shapes.dataset("train", seed, index)
    pick = np.random.default_rng((seed, step)).integers(0, shapes.FRAMES, batch)
    return torch.from_numpy(videos[np.arange(batch), pick]).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderKL) -> tuple[float, float]:
    """PSNR in dB on held-out frames, and the standard deviation of the latents."""
    videos, _ = shapes.dataset("eval", 7, np.arange(64))
    x = torch.from_numpy(videos[:, ::5]).flatten(0, 1).permute(0, 3, 1, 2).float().to(vae.device) / 127.5 - 1
    z = vae.encode(x).latent_dist.mode()
    error = (vae.decode(z).sample.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item(), z.std().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--kl", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    vae = AutoencoderKL(**CONFIG).to(dev)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-2)
    rate = lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = Checkpoint(args.work / "vae.pt", model=vae, optimizer=optimizer, schedule=schedule)
    first, log = checkpoint.load(), Log("vae")

    began = time.monotonic()
    for step in range(first, args.steps):
        x = frames(args.seed, step, args.batch).to(dev)
        with torch.autocast(dev.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            out = vae.decode(posterior.sample()).sample
        error = out.float() - x
        loss = error.abs().mean() + error.square().mean() + args.kl * posterior.kl().float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            quality, std = psnr(vae)
            log.row(step=step + 1, seconds=time.monotonic() - began, loss=loss.item(), psnr=quality, latent_std=std)
            checkpoint.save(step + 1)
    scale = 1.0 / psnr(vae)[1]
    vae.register_to_config(scaling_factor=scale)
    write_weights("mini_stdit_vae", vae.state_dict(), {**CONFIG, "scaling_factor": scale})


if __name__ == "__main__":
    main()
