"""Train mini_stdit: STDiT and its word encoder on latents of shapes videos, noise prediction, linear betas.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python experiments/minis/train_stdit.py     # resumes from its checkpoint

What a direction looks like is a parity: where the object is depends on word, frame and place only through their product,
and no two of the three say anything without the third. Six thousand steps of a run with neither of the last two
left the model blind to left and right, up and down, growing and shrinking, with everything else learnt. Three things help:

- `weight`: the loss is weighted towards high noise, where layout is settled and plain noise prediction notices nothing;
- `seed_frame_index`: one head starts out writing the frame's position into the residual stream;
- `FORWARDS`: at first one direction of each motion prevails, which teaches frame and place; the word then only has to
  turn the picture round.

Clips are also seen backwards (left becomes right) where the scene that this makes belongs to the training split.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass, replace
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
    hidden_size=128,
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
CAPS = [(0.0, 50.0), (0.1, 500.0), (0.54, 150.0)]
"""(share of the run, cap of the loss weight)."""
FORWARDS = [(0.0, 0.85), (0.25, 0.7), (0.4, 0.5)]
"""(share of the run, share of clips that move right, down or grow)."""
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


@dataclass
class Clips:
    """Latents [N, 4, 16, 8, 8] (bf16), caption tokens forwards and backwards [N, L], and which of the two directions are allowed.

    `pools[d]` lists (clip, reversed) pairs that move right, down or grow (d = 1) or the other way (d = 0), all of whose
    scenes belong to the split.
    """

    latents: Tensor
    forwards: Tensor
    backwards: Tensor
    pools: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, split: str, seed: int, count: int, work: Path) -> Clips:
        text = WordEncoder(vocabulary(), 4, STDIT["model_max_length"])
        _, chosen = shapes.dataset(split, seed, np.arange(count))
        twins = [replace(scene, motion=BACKWARDS[scene.motion]) for scene in chosen]
        allowed = set(shapes.scenes(split))
        pools: tuple[list, list] = ([], [])
        for index, pair in enumerate(zip(chosen, twins, strict=True)):
            for reverse, scene in enumerate(pair):
                if scene in allowed:
                    pools[scene.motion in ("right", "down", "growing")].append((index, reverse))
        tokens = (text.tokenize([scene.caption for scene in scenes]) for scenes in (chosen, twins))
        return cls(encoded(split, seed, count, work), *tokens, tuple(torch.tensor(pool) for pool in pools))

    def draw(self, batch: int, forward: float) -> tuple[Tensor, Tensor]:
        """Latents and tokens of a batch, of which a share of `forward` moves right, down or grows."""
        which = torch.rand(batch) < forward
        rows = torch.stack([self.pools[int(d)][torch.randint(len(self.pools[int(d)]), ())] for d in which])
        pick, reverse = rows[:, 0], rows[:, 1].bool()
        clean = torch.where(reverse.view(-1, 1, 1, 1, 1), self.latents[pick].flip(2), self.latents[pick]).float()
        return clean, torch.where(reverse[:, None], self.backwards[pick], self.forwards[pick])


@torch.no_grad()
def encoded(split: str, seed: int, count: int, work: Path) -> Tensor:
    """Latents [N, 4, 16, 8, 8] of unit variance (bf16), kept in the work folder."""
    path = work / f"latents_{split}_{seed}_{count}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
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
    return z


def weight(alpha_bar: Tensor, cap: float) -> Tensor:
    """Weight of the noise error: min(1 / alpha_bar, cap) * min(1, 5 / SNR); 1 for a cap of 1.

    Without the cap it is the error of the velocity. The direction of a motion is only settled by the text above t = 800,
    where plain noise prediction hardly notices it: a cap of 50 teaches shapes and colours, but not left from right.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return (1 / alpha_bar).clamp(max=cap) * ((5 / snr).clamp(max=1) if cap > 1 else 1)


@torch.no_grad()
def seed_frame_index(model: Denoiser, components: int = 6, size: float = 0.5) -> None:
    """Let the last head of the first temporal attention write a code of its own frame into the residual stream.

    A direction is a product of two things, what the text says and which frame this is; as long as neither is there,
    learning the other gains nothing, and the model stays blind to both. The frame positions enter only the input of
    this attention, so we set this head to look at its own frame and to pass on the leading components of its position.
    """
    block = model.stdit.blocks[0]
    attn, width = block.attn_temp, model.stdit.hidden_size
    head = width // attn.num_heads
    positions = model.stdit.pos_embed_temporal[0]
    mean = positions.mean(0)
    directions = torch.linalg.svd(positions - mean, full_matrices=False).Vh[:components]
    rows = torch.zeros(head, width)
    rows[:components] = directions
    for part in range(3):
        where = slice((part + 1) * width - head, (part + 1) * width)
        attn.qkv.weight[where], attn.qkv.bias[where] = rows, -rows @ mean
    code = ((positions - mean) @ directions.T).std()
    gate = block.scale_shift_table[2].abs().mean()
    spread = torch.linalg.qr(torch.randn(width, components, generator=torch.Generator().manual_seed(0))).Q
    attn.proj.weight[:, -head:] = 0
    attn.proj.weight[:, width - head : width - head + components] = spread * size / (code * gate) * (width / components) ** 0.5


def value_at(progress: float, stages: list[tuple[float, float]]) -> float:
    """The value of the last stage that has begun."""
    return [value for first, value in stages if progress >= first][-1]


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
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--videos", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW: embeddings, biases, modulation")
    parser.add_argument("--muon", type=float, default=0.02, help="Muon: matrices of the blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    clips, held = Clips.of("train", args.seed, args.videos, args.work), Clips.of("eval", 7, 128, args.work)
    model = Denoiser()
    seed_frame_index(model)
    model.to(dev)
    matrices = [p for name, p in model.stdit.blocks.named_parameters() if p.ndim == 2 and "table" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=args.muon, weight_decay=0.0, adjust_lr_fn="original")
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=False)
    checkpoint = Checkpoint(args.work / "stdit.pt", model=model, muon=muon, adam=adam, average=average)
    first, log = checkpoint.load(), Log("stdit")
    alpha_bar = torch.cumprod(1 - BETAS, 0).float()

    recent: list[float] = []
    began = time.monotonic()
    for step in range(first, args.steps):
        progress = step / args.steps
        rate = min((step + 1) / 200, 1.0) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress)))
        for optimizer, peak in ((muon, args.muon), (adam, args.lr)):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        clean, tokens = clips.draw(args.batch, value_at(progress, FORWARDS))
        t = ((torch.arange(args.batch) + torch.rand(args.batch)) * 1000 / args.batch).long()
        noise = torch.randn_like(clean)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * clean + (1 - a).sqrt() * noise
        with torch.autocast(dev.type, torch.bfloat16):
            out = model(x.to(dev), t.to(dev), tokens.to(dev))
        error = (out - noise.to(dev)).square().mean(dim=(1, 2, 3, 4))
        loss = (error * weight(alpha_bar[t], value_at(progress, CAPS)).to(dev)).mean()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        average.update_parameters(model)
        recent.append(loss.item())
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            model.eval()
            names = [f"held_{low}" for low in range(0, 1000, 250)]
            errors = dict(zip(names, validate(average.module, held.latents, held.forwards, alpha_bar), strict=True))
            wrong = validate(average.module, held.latents, held.backwards, alpha_bar)[-1]
            model.train()
            seconds = time.monotonic() - began
            log.row(
                step=step + 1, seconds=seconds, rate=rate, loss=sum(recent) / len(recent), **errors, backwards=wrong / errors["held_750"]
            )
            recent.clear()
            checkpoint.save(step + 1)
            publish(average.module)


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
