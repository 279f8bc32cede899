"""Train mini_animatediff: diffusers' UNetMotionModel and a CLIP text encoder on latents of shapes videos, both from scratch.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python experiments/minis/train_animatediff.py     # resumes from its checkpoint

The image part and the motion modules are trained together, on the autoencoder of mini_stdit and with the loss weights of
`train_stdit.py`. What is different:

- `EVERY`: at first a step sees every fourth, then every other frame of a clip, at a quarter and half of the cost; the
  motion modules then read the positions of just these frames (`rows`), so that a position means the same frame throughout.
- `seed_frame_index`: the motion modules start out with a head that writes the frame's position into the features.
- `Muon`: diffusers' UNets are mostly convolutions, which are orthogonalized as matrices [out, in * height * width].

Every report writes the averaged weights into the package, in the layout of diffusers' pipelines.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, Checkpoint, Log, device
from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_stdit import BACKWARDS, BETAS, FORWARDS, Clips, validate, value_at, vocabulary, weight
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vdqbench import shapes

LENGTH = 12
"""Tokens of a caption, with its start, its end and the padding."""
UNET = dict(
    sample_size=8,
    block_out_channels=(64, 96),
    down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
    up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
    layers_per_block=1,
    cross_attention_dim=64,
    num_attention_heads=(2, 4),
    motion_num_attention_heads=(2, 4),
    motion_max_seq_length=shapes.FRAMES,
    norm_num_groups=8,
)
TEXT = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH)
SCHEDULER = dict(
    beta_start=BETAS[0].item(),
    beta_end=BETAS[-1].item(),
    beta_schedule="linear",
    clip_sample=False,
    steps_offset=1,
    timestep_spacing="linspace",
)
CALL = {"height": shapes.SIZE, "width": shapes.SIZE, "num_frames": shapes.FRAMES}
SAMPLER = {"num_inference_steps": 25, "guidance_scale": 7.5}
"""As in QVD (arXiv 2407.11585)."""
EVERY = [(0.0, 4), (0.5, 2), (0.88, 1)]
"""(share of the run, one in how many frames is seen)."""
CAPS = [(0.0, 50.0), (0.1, 500.0), (0.52, 150.0), (0.65, 50.0)]
"""(share of the run, cap of the loss weight)."""
WITHOUT_TEXT = 0.1
"""Share of clips whose caption is the empty one, which guidance takes for no text."""


def captions(split: str) -> list[str]:
    return [scene.caption for scene in shapes.scenes(split)]


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, merged until every word of the captions is one token."""
    text = [caption for split in shapes.SPLITS for caption in captions(split)]
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False, use_regex=False)])
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=2000, initial_alphabet=alphabet, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learnt = json.loads(pairs.to_str())["model"]
    return CLIPTokenizer(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]], model_max_length=LENGTH)


def token_ids(words: CLIPTokenizer, text: list[str]) -> Tensor:
    """[N, LENGTH], as the pipeline pads them."""
    return words(text, padding="max_length", truncation=True, return_tensors="pt").input_ids


class Denoiser(nn.Module):
    """The trained modules together."""

    def __init__(self, words: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
                **TEXT,
            )
        ).train()
        self.unet = UNetMotionModel(**UNET)
        self.unet.set_attn_processor(AttnProcessor())  # on a CPU in bf16 the fused one is several times slower for sequences this short

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        y = self.text(tokens).last_hidden_state
        return self.unet(x, t, y.repeat_interleave(x.shape[2], dim=0)).sample


@contextmanager
def rows(unet: nn.Module, frames: Tensor) -> Iterator[None]:
    """Within, the motion modules read the positions of these frames."""
    tables = [module for module in unet.modules() if isinstance(module, SinusoidalPositionalEmbedding)]
    whole = [table.pe for table in tables]
    for table in tables:
        table.pe = table.pe[:, frames]
    try:
        yield
    finally:
        for table, pe in zip(tables, whole, strict=True):
            table.pe = pe


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by five Newton-Schulz steps (Jordan et al. 2024), for matrices and, flattened to them, convolutions."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                alike.setdefault(p.flatten(1).shape, []).append(p)
            for shape, params in alike.items():
                velocities = [self.state[p].setdefault("velocity", torch.zeros_like(p)) for p in params]
                for p, velocity in zip(params, velocities, strict=True):
                    velocity.lerp_(p.grad, 1 - group["momentum"])
                g = torch.stack([p.grad.lerp(v, group["momentum"]).flatten(1) for p, v in zip(params, velocities, strict=True)])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, change in zip(params, self.orthogonal(g), strict=True):
                    p.add_(change.view_as(p), alpha=-group["lr"] * scale)

    @staticmethod
    def orthogonal(g: Tensor) -> Tensor:
        """The nearest semi-orthogonal matrices to [N, rows, columns], roughly: singular values between 0.7 and 1.2."""
        x = (g if g.shape[1] <= g.shape[2] else g.mT).bfloat16()
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            a = x @ x.mT
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return (x if g.shape[1] <= g.shape[2] else x.mT).to(g.dtype)


@torch.no_grad()
def seed_frame_index(unet: UNetMotionModel, components: int = 8, size: float = 0.5) -> None:
    """Let the last head of the first attention of every motion module write a code of its own frame into the features.

    As in `train_stdit.py`: as long as the frame cannot be read, knowing the word gains nothing, and the other way round.
    Positions are added to normalized features; the projection before them is freed from the leading components of the
    positions, so that this head finds nothing but the frame there, and looks at its own.
    """
    for module in (m for m in unet.modules() if hasattr(m, "motion_modules")):
        for motion in module.motion_modules:
            block = motion.transformer_blocks[0]
            width, head = block.attn1.inner_dim, block.attn1.inner_dim // block.attn1.heads
            positions = block.pos_embed.pe[0]
            centred = positions - positions.mean(0) - (positions - positions.mean(0)).mean(1, keepdim=True)
            directions = torch.linalg.svd(centred, full_matrices=False).Vh[:components]
            motion.proj_in.weight -= directions.T @ (directions @ motion.proj_in.weight)
            motion.proj_in.bias -= directions.T @ (directions @ motion.proj_in.bias)
            last = slice(width - head, width)
            for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
                layer.weight[last] = 0
                layer.weight[width - head : width - head + components] = directions
            code = centred @ directions.T
            spread = torch.linalg.qr(torch.randn(width, components, generator=torch.Generator().manual_seed(0))).Q
            gain = size / code.std() * (width / components) ** 0.5
            block.attn1.to_out[0].weight[:, last] = 0
            block.attn1.to_out[0].weight[:, width - head : width - head + components] = spread * gain


def with_captions(clips: Clips, words: CLIPTokenizer, split: str, seed: int, count: int) -> Clips:
    """The clips with this tokenizer's captions."""
    _, chosen = shapes.dataset(split, seed, np.arange(count))
    twins = [replace(scene, motion=BACKWARDS[scene.motion]) for scene in chosen]
    forwards, backwards = (token_ids(words, [scene.caption for scene in scenes]) for scenes in (chosen, twins))
    return replace(clips, forwards=forwards, backwards=backwards)


def autoencoder() -> AutoencoderKL:
    """That of mini_stdit."""
    vae = AutoencoderKL(**json.loads((WEIGHTS / "mini_stdit_vae.json").read_text()))
    vae.load_state_dict(load_file(WEIGHTS / "mini_stdit_vae.safetensors"))
    return vae


def pipeline(model: Denoiser, words: CLIPTokenizer) -> AnimateDiffPipeline:
    return AnimateDiffPipeline(
        vae=autoencoder(),
        text_encoder=model.text,
        tokenizer=words,
        unet=model.unet,
        motion_adapter=None,
        scheduler=DDIMScheduler(**SCHEDULER),
    )


def publish(model: Denoiser, words: CLIPTokenizer, folder: Path = WEIGHTS / "mini_animatediff") -> None:
    """Write the weights (bf16) as a pipeline folder, with what its callers must know in `vdq.json`; the folder is replaced at once."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    pipeline(copy.deepcopy(model).to("cpu", torch.bfloat16).eval(), words).to(torch.bfloat16).save_pretrained(fresh)
    about = {"call": CALL, "sampler": SAMPLER, "fps": shapes.FPS, "vocabulary": vocabulary()}
    (fresh / "vdq.json").write_text(json.dumps(about, indent=2) + "\n")
    for path in fresh.rglob("*.*"):
        path.chmod(0o644)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--videos", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW: embeddings, norms, biases, first and last layer")
    parser.add_argument("--muon", type=float, default=0.02, help="Muon: all other matrices and convolutions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    words = tokenizer()
    clips = with_captions(Clips.of("train", args.seed, args.videos, args.work), words, "train", args.seed, args.videos)
    held = with_captions(Clips.of("eval", 7, 128, args.work), words, "eval", 7, 128)
    no_text = token_ids(words, [""])
    model = Denoiser(words)
    seed_frame_index(model.unet)
    model.to(dev)
    outside = ("embedding", "conv_in", "conv_out", "norm")
    matrices = [p for name, p in model.named_parameters() if p.ndim in (2, 4) and not any(part in name for part in outside)]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, lr=args.muon)
    adam = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998), use_buffers=False)
    checkpoint = Checkpoint(args.work / "animatediff.pt", model=model, muon=muon, adam=adam, average=average)
    first, log = checkpoint.load(), Log("animatediff")
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
        tokens = torch.where(torch.rand(args.batch, 1) < WITHOUT_TEXT, no_text, tokens)
        every = int(value_at(progress, EVERY))
        seen = torch.arange(int(torch.randint(every, ())), shapes.FRAMES, every)
        clean = clean[:, :, seen]
        t = ((torch.arange(args.batch) + torch.rand(args.batch)) * 1000 / args.batch).long()
        noise = torch.randn_like(clean)
        a = alpha_bar[t].view(-1, 1, 1, 1, 1)
        x = a.sqrt() * clean + (1 - a).sqrt() * noise
        with torch.autocast(dev.type, torch.bfloat16), rows(model.unet, seen):
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
            names = [f"held_{low}" for low in range(0, 1000, 250)]
            part = slice(0, 48)
            errors = dict(zip(names, validate(average.module, held.latents[part], held.forwards[part], alpha_bar), strict=True))
            wrong = validate(average.module, held.latents[part], held.backwards[part], alpha_bar)[-1]
            seconds = time.monotonic() - began
            log.row(
                step=step + 1, seconds=seconds, rate=rate, loss=sum(recent) / len(recent), **errors, backwards=wrong / errors["held_750"]
            )
            recent.clear()
            checkpoint.save(step + 1)
            publish(average.module, words)


if __name__ == "__main__":
    main()
