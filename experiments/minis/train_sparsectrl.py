"""Train mini_sparsectrl: diffusers' SparseControlNetModel, which holds the clips of mini_animatediff to a first frame.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python experiments/minis/train_sparsectrl.py     # resumes from its checkpoint

It is SparseCtrl's network for images (Guo et al. 2023, arXiv 2311.16933): it is told the latents of the frame and a mask, never the
noisy clip, and adds to what the frozen UNet passes on to its decoder. Its encoder starts as a copy of the UNet's and its outputs as
zeros. Besides:

- The convolution that reads the frame starts as the UNet's first one: both read latents of the same autoencoder.
- A frame is drawn from its posterior, as the pipeline draws it; of this autoencoder that is far from the mean, in directions that
  its decoder does not see.
- Noise levels are drawn in proportion to t, since low ones show where everything is, frame or not.

Every report writes the averaged weights into the package. mini_animatediff must be there, and is not changed.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, Checkpoint, Log, device
from diffusers import AutoencoderKL, SparseControlNetModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_animatediff import WITHOUT_TEXT, Muon, rows, token_ids, with_captions
from train_stdit import BETAS, Clips, value_at, weight
from transformers import CLIPTextModel, CLIPTokenizer

from vdqbench import shapes

BASE = WEIGHTS / "mini_animatediff"
CONTROL = dict(
    block_out_channels=(64, 96),
    down_block_types=("DownBlockMotion", "DownBlockMotion"),
    layers_per_block=1,
    cross_attention_dim=64,
    num_attention_heads=(2, 4),
    motion_num_attention_heads=(2, 4),
    motion_max_seq_length=shapes.FRAMES,
    norm_num_groups=8,
    conditioning_channels=4,
    use_simplified_condition_embedding=True,
)
"""The sizes of mini_animatediff's UNet; the caption is read in the middle alone."""
CAPS = [(0.0, 500.0), (0.6, 150.0), (0.8, 50.0)]
"""(share of the run, cap of the loss weight)."""
EVERY = [(0.0, 2), (0.7, 1)]
"""(share of the run, one in how many frames is seen, the first always)."""


class Held(nn.Module):
    """mini_animatediff, frozen, with the network that is trained."""

    def __init__(self, text: CLIPTextModel, unet: UNetMotionModel) -> None:
        super().__init__()
        self.text, self.unet = text.eval().requires_grad_(False), unet.eval().requires_grad_(False)
        self.control = SparseControlNetModel(**CONTROL)
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
            getattr(self.control, name).load_state_dict(getattr(unet, name).state_dict(), strict=False)
        with torch.no_grad():
            self.control.controlnet_cond_embedding.weight[:, :4] = unet.conv_in.weight
        for network in (self.unet, self.control):
            network.set_attn_processor(AttnProcessor())  # see train_animatediff.py

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, frame: Tensor, scale: float = 1.0) -> Tensor:
        """The noise in x [B, 4, F, 8, 8], told the first frame's latents [B, 4, 8, 8]."""
        y = self.text(tokens).last_hidden_state.repeat_interleave(x.shape[2], dim=0)
        first = torch.zeros_like(x[:1, :1])
        first[:, :, 0] = 1
        told = {"controlnet_cond": first * frame[:, :, None], "conditioning_mask": first.expand(len(x), -1, -1, -1, -1)}
        down, mid = self.control(x, t, y, conditioning_scale=scale, return_dict=False, **told)
        return self.unet(x, t, y, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


@dataclass
class Ends:
    """Posteriors of the first and last frames of clips, as latents of unit variance: mean and spread, [N, 2, 4, 8, 8] each."""

    mean: Tensor
    spread: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, split: str, seed: int, count: int, work: Path) -> Ends:
        """Kept in the work folder."""
        path = work / f"ends_{split}_{seed}_{count}.pt"
        if not path.exists():
            vae = AutoencoderKL.from_pretrained(BASE / "vae", local_files_only=True, torch_dtype=torch.float32).to(device())
            parts = []
            for first in range(0, count, 32):
                videos, _ = shapes.dataset(split, seed, np.arange(first, min(first + 32, count)))
                x = torch.from_numpy(videos[:, [0, -1]]).flatten(0, 1).permute(0, 3, 1, 2).float().to(vae.device) / 127.5 - 1
                with torch.autocast(vae.device.type, torch.bfloat16):
                    posterior = vae.encode(x).latent_dist
                both = torch.stack([posterior.mean, posterior.std]).float() * vae.config.scaling_factor
                parts.append(both.unflatten(1, (-1, 2)).to("cpu", torch.bfloat16))
            torch.save(torch.cat(parts, dim=1), path)
        return cls(*torch.load(path, weights_only=True))

    def draw(self, pick: Tensor, last: Tensor) -> Tensor:
        """A sample [B, 4, 8, 8] of one end of each of these clips."""
        mean, spread = self.mean[pick, last].float(), self.spread[pick, last].float()
        return mean + spread * torch.randn_like(mean)


@torch.no_grad()
def validate(model: Held, z: Tensor, tokens: Tensor, frames: Tensor, alpha_bar: Tensor, scale: float = 1.0) -> list[float]:
    """Noise MSE on held-out scenes in four equal ranges of the timestep, fixed noise."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    dev, losses = next(model.parameters()).device, []
    for low in range(0, 1000, 250):
        t = low + torch.arange(len(z)) * 250 // len(z)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * z.float() + (1 - a).sqrt() * noise
        parts = zip(*(part.to(dev).split(16) for part in (x, t, tokens, frames)), strict=True)
        with torch.autocast(dev.type, torch.bfloat16):
            out = torch.cat([model(*part, scale=scale) for part in parts])
        losses.append((out.cpu() - noise).square().mean().item())
    return losses


def publish(control: SparseControlNetModel, folder: Path = WEIGHTS / "mini_sparsectrl") -> None:
    """Write the weights (bf16) in diffusers' layout; each file is replaced at once."""
    fresh = folder.with_name(f".{folder.name}.new")
    copy.deepcopy(control).to("cpu", torch.bfloat16).eval().save_pretrained(fresh)
    folder.mkdir(exist_ok=True)
    for path in fresh.iterdir():
        path.chmod(0o644)
        path.replace(folder / path.name)
    fresh.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--videos", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW: embeddings, norms, biases, first layers")
    parser.add_argument("--muon", type=float, default=0.01, help="Muon: all other matrices and convolutions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    words = CLIPTokenizer.from_pretrained(BASE / "tokenizer", local_files_only=True)
    clips = with_captions(Clips.of("train", args.seed, args.videos, args.work), words, "train", args.seed, args.videos)
    held = with_captions(Clips.of("eval", 7, 128, args.work), words, "eval", 7, 128)
    ends, pairs = Ends.of("train", args.seed, args.videos, args.work), torch.cat(clips.pools)
    part = slice(0, 48)
    told = Ends.of("eval", 7, 128, args.work).draw(torch.arange(48), torch.zeros(48, dtype=torch.long))
    held_out = (held.latents[part], held.forwards[part], told)
    no_text = token_ids(words, [""])
    model = Held(
        CLIPTextModel.from_pretrained(BASE / "text_encoder", local_files_only=True, dtype=torch.float32),
        UNetMotionModel.from_pretrained(BASE / "unet", local_files_only=True, torch_dtype=torch.float32),
    ).to(dev)
    outside = ("embedding", "conv_in", "norm")
    matrices = [p for name, p in model.control.named_parameters() if p.ndim in (2, 4) and not any(part in name for part in outside)]
    others = [p for p in model.control.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, lr=args.muon)
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = AveragedModel(model.control, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=False)
    checkpoint = Checkpoint(args.work / "sparsectrl.pt", control=model.control, muon=muon, adam=adam, average=average)
    first, log = checkpoint.load(), Log("sparsectrl")
    alpha_bar = torch.cumprod(1 - BETAS, 0).float()
    without = validate(model, *held_out, alpha_bar, scale=0.0)

    recent: list[float] = []
    began = time.monotonic()
    for step in range(first, args.steps):
        progress = step / args.steps
        rate = min((step + 1) / 100, 1.0) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * progress)))
        for optimizer, peak in ((muon, args.muon), (adam, args.lr)):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        pick, reverse = pairs[torch.randint(len(pairs), (args.batch,))].unbind(1)
        forwards = (reverse == 0).view(-1, 1, 1, 1, 1)
        clean = torch.where(forwards, clips.latents[pick], clips.latents[pick].flip(2)).float()
        tokens = torch.where(reverse[:, None] == 0, clips.forwards[pick], clips.backwards[pick])
        tokens = torch.where(torch.rand(args.batch, 1) < WITHOUT_TEXT, no_text, tokens)
        every = int(value_at(progress, EVERY))
        seen = torch.cat([torch.tensor([0]), torch.arange(every - int(torch.randint(every, ())), shapes.FRAMES, every)])
        clean = clean[:, :, seen]
        t = (1000 * ((torch.arange(args.batch) + torch.rand(args.batch)) / args.batch).sqrt()).long().clamp(max=999)
        noise = torch.randn_like(clean)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * clean + (1 - a).sqrt() * noise
        frame = ends.draw(pick, reverse)
        with torch.autocast(dev.type, torch.bfloat16), rows(model, seen):
            out = model(x.to(dev), t.to(dev), tokens.to(dev), frame.to(dev))
        error = (out - noise.to(dev)).square().mean(dim=(1, 2, 3, 4))
        loss = (error * weight(alpha_bar[t], value_at(progress, CAPS)).to(dev)).mean()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.control.parameters(), 1.0)
        muon.step()
        adam.step()
        average.update_parameters(model.control)
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            seconds, trained = time.monotonic() - began, model.control
            model.control = average.module
            errors = validate(model, *held_out, alpha_bar)
            model.control = trained
            shares = {f"share_{250 * i}": now / before for i, (now, before) in enumerate(zip(errors, without, strict=True))}
            log.row(step=step + 1, seconds=seconds, rate=rate, loss=sum(recent) / len(recent), **shares)
            recent.clear()
            checkpoint.save(step + 1)
            publish(average.module)


if __name__ == "__main__":
    main()
