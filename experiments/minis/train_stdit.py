"""Train mini_stdit: STDiT and its word encoder on latents of shapes videos, noise prediction, linear betas.

    OMP_WAIT_POLICY=PASSIVE python experiments/minis/train_stdit.py --minutes 80     # resumes from its checkpoint

Two things beside plain noise prediction decide whether captions and motion are learnt: after a start the loss is weighted
towards high noise, where layout is settled and the plain loss is tiny; and every clip is also seen backwards, which
turns left into right, up into down and growing into shrinking, for nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, Checkpoint, Log, device, write_weights
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vdqbench import shapes
from vdqbench.models.stdit import STDiT
from vdqbench.models.words import WordEncoder

STDIT = dict(
    input_size=(16, 8, 8),
    in_channels=4,
    hidden_size=192,
    depth=6,
    num_heads=4,
    mlp_ratio=4.0,
    patch_size=(1, 2, 2),
    caption_channels=96,
    model_max_length=12,
    pred_sigma=False,
    space_scale=0.5,
    time_scale=1.0,
)
BACKWARDS = {"left": "right", "right": "left", "up": "down", "down": "up", "growing": "shrinking", "shrinking": "growing"}
STAGES = [(0, 1.0), (2000, 50.0), (4000, 1000.0)]
"""(first step, cap of the loss weight) of the stages of the recorded run."""
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def vocabulary() -> list[str]:
    return sorted({word for split in shapes.SPLITS for scene in shapes.scenes(split) for word in scene.caption.split()})


class Denoiser(nn.Module):
    """The trained modules together."""

    def __init__(self) -> None:
        super().__init__()
        self.text = WordEncoder(vocabulary(), STDIT["caption_channels"], STDIT["model_max_length"])
        self.stdit = STDiT(**STDIT)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        y, mask = self.text(tokens)
        return self.stdit(x, t, y, mask)


@torch.no_grad()
def latents(split: str, seed: int, count: int, work: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [N, 4, 16, 8, 8] with unit variance (bf16), and the caption tokens forwards and backwards [N, L]."""
    text = WordEncoder(vocabulary(), 4, STDIT["model_max_length"])
    _, chosen = shapes.dataset(split, seed, np.arange(count))
    forwards = text.tokenize([scene.caption for scene in chosen])
    backwards = text.tokenize([shapes.Scene(s.colour, s.shape, s.background, BACKWARDS[s.motion]).caption for s in chosen])
    path = work / f"latents_{split}_{seed}_{count}.pt"
    if path.exists():
        return torch.load(path, weights_only=True), forwards, backwards
    config = json.loads((WEIGHTS / "mini_stdit_vae.json").read_text())
    vae = AutoencoderKL(**config).eval()
    vae.load_state_dict(load_file(WEIGHTS / "mini_stdit_vae.safetensors"))
    vae.to(device())
    parts, began = [], time.monotonic()
    for first in range(0, count, 32):
        videos, _ = shapes.dataset(split, seed, np.arange(first, min(first + 32, count)))
        x = torch.from_numpy(videos).flatten(0, 1).permute(0, 3, 1, 2).float().to(vae.device) / 127.5 - 1
        with torch.autocast(vae.device.type, torch.bfloat16):
            z = vae.encode(x).latent_dist.mode().float() * config["scaling_factor"]
        parts.append(z.unflatten(0, (-1, shapes.FRAMES)).transpose(1, 2).to("cpu", torch.bfloat16))
        if first % 1024 == 0:
            Log.say(f"encoded {first} of {count} videos in {time.monotonic() - began:.0f} s")
    z = torch.cat(parts)
    torch.save(z, path)
    return z, forwards, backwards


def weight(alpha_bar: Tensor, cap: float) -> Tensor:
    """Weight of the noise error: min(1 / alpha_bar, cap) * min(1, 5 / SNR); 1 for a cap of 1.

    Without the cap it is the error of the velocity. The direction of a motion is only settled by the text above t = 800,
    where plain noise prediction hardly notices it: a cap of 50 teaches shapes and colours, but not left from right.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return (1 / alpha_bar).clamp(max=cap) * ((5 / snr).clamp(max=1) if cap > 1 else 1)


def cap_at(step: int, stages: list[tuple[int, float]]) -> float:
    """The cap of the last stage that has begun."""
    return [cap for first, cap in stages if step >= first][-1]


@torch.no_grad()
def validate(model: nn.Module, z: Tensor, tokens: Tensor, alpha_bar: Tensor) -> list[float]:
    """Noise MSE on held-out scenes in four equal ranges of the timestep, fixed noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(z.shape, generator=generator)
    losses = []
    for low in range(0, 1000, 250):
        t = low + torch.arange(len(z)) * 250 // len(z)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * z.float() + (1 - a).sqrt() * noise
        dev = next(model.parameters()).device
        with torch.autocast(dev.type, torch.bfloat16):
            out = torch.cat([model(*(u.to(dev) for u in part)) for part in zip(x.split(32), t.split(32), tokens.split(32), strict=True)])
        losses.append((out.cpu() - noise).square().mean().item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=80, help="length of the run, over all resumptions")
    parser.add_argument("--videos", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4, help="AdamW: embeddings, biases, modulation")
    parser.add_argument("--muon", type=float, default=0.02, help="Muon: matrices of the blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    z, forwards, backwards = latents("train", args.seed, args.videos, args.work)
    held_z, held_tokens, _ = latents("eval", 7, 128, args.work)
    model = Denoiser().to(dev)
    matrices = [p for name, p in model.stdit.blocks.named_parameters() if p.ndim == 2 and "table" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=args.muon, weight_decay=0.0, adjust_lr_fn="original")
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=False)
    clock = Clock()
    checkpoint = Checkpoint(args.work / "stdit.pt", model=model, muon=muon, adam=adam, average=average, clock=clock)
    step, log = checkpoint.load(), Log("stdit")
    alpha_bar = torch.cumprod(1 - BETAS, 0).float()

    recent: list[float] = []
    while (progress := clock.tick() / (60 * args.minutes)) < 1:
        rate = min((step + 1) / 200, 1.0, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * progress)))
        for group in muon.param_groups:
            group["lr"] = args.muon * rate
        for group in adam.param_groups:
            group["lr"] = args.lr * rate
        pick = torch.randint(len(z), (args.batch,))
        reverse = torch.rand(args.batch) < 0.5
        clean = torch.where(reverse.view(-1, 1, 1, 1, 1), z[pick].flip(2), z[pick]).float()
        tokens = torch.where(reverse[:, None], backwards[pick], forwards[pick])
        t = ((torch.arange(args.batch) + torch.rand(args.batch)) * 1000 / args.batch).long()
        noise = torch.randn_like(clean)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * clean + (1 - a).sqrt() * noise
        with torch.autocast(dev.type, torch.bfloat16):
            out = model(x.to(dev), t.to(dev), tokens.to(dev))
        loss = ((out - noise.to(dev)).square().mean(dim=(1, 2, 3, 4)) * weight(alpha_bar[t], cap_at(step, STAGES)).to(dev)).mean()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        average.update_parameters(model)
        recent.append(loss.item())
        step += 1
        if step % 250 == 0:
            model.eval()
            ranges = validate(average.module, held_z, held_tokens, alpha_bar)
            model.train()
            mean = sum(recent) / len(recent)
            log.row(step=step, minutes=clock.spent / 60, rate=rate, loss=mean, **{f"held_{250 * i}": v for i, v in enumerate(ranges)})
            recent.clear()
            checkpoint.save(step)
            publish(average.module)
    publish(average.module)
    checkpoint.save(step)


class Clock:
    """Seconds spent training, over all resumptions."""

    def __init__(self) -> None:
        self.spent, self.last = 0.0, time.monotonic()

    def tick(self) -> float:
        now = time.monotonic()
        self.spent, self.last = self.spent + now - self.last, now
        return self.spent

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent, self.last = state["spent"], time.monotonic()


def publish(model: Denoiser) -> None:
    """Write the averaged weights into the package."""
    model = copy.deepcopy(model).eval()
    positions = ("pos_embed", "pos_embed_temporal")
    write_weights("mini_stdit", {k: v for k, v in model.stdit.state_dict().items() if k not in positions}, STDIT)
    write_weights(
        "mini_stdit_text",
        model.text.state_dict(),
        {"vocabulary": vocabulary(), "width": STDIT["caption_channels"], "length": STDIT["model_max_length"]},
    )


if __name__ == "__main__":
    main()
