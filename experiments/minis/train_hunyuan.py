"""Train mini_hunyuan: diffusers' HunyuanVideo transformer and its two text encoders on latents of shapes clips, by flow matching.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python experiments/minis/train_hunyuan.py     # resumes from its checkpoints

Two stages. The first learns the velocity with and without caption and is shown random guidance scales that mean nothing. The
second distils classifier-free guidance into the guidance embedding (Meng et al. 2023, "On Distillation of Guided Diffusion Models"):
the teacher is the average of the first stage, its velocities with caption c and without u make the target u + g (c - u) for a
random scale g, which the student is told. One pass of the student then does what two of the teacher did.

Noise levels are drawn uniformly and shifted towards noise as the scheduler shifts them, since layout and motion are settled there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, Checkpoint, Log, device
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.models.transformers import transformer_hunyuan_video
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train_hunyuan_vae import FRAMES, clips
from train_stdit import BACKWARDS, value_at, vocabulary
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel, LlamaTokenizer

from vdqbench import shapes

TRANSFORMER = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=4,
    attention_head_dim=32,
    num_layers=2,
    num_single_layers=4,
    num_refiner_layers=1,
    mlp_ratio=4.0,
    patch_size=2,
    patch_size_t=1,
    guidance_embeds=True,
    text_embed_dim=64,
    pooled_projection_dim=64,
    rope_axes_dim=(8, 12, 12),
)
WIDTH = TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
LENGTH = 16
MODULATIONS = (".norm1.linear", ".norm1_context.linear", ".norm.linear", ".norm_out.linear")
SHIFT, SAMPLING_SHIFT = 5.0, 7.0
GUIDANCE = (1.0, 8.0)
NO_CAPTION = 0.1
FORWARDS = [(0.0, 0.85), (0.2, 0.7), (0.35, 0.5)]
"""(share of the first stage, share of clips that move right, down or grow); see train_stdit.py."""
LEVELS = (0.5, 0.8, 0.9, 0.96)


def llama_tokenizer() -> LlamaTokenizer:
    """Each word of the captions is one token; other words fall back to letters and bytes."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.train_from_iterator(captions(), trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=special))
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return LlamaTokenizer(vocab=learnt["vocab"], merges=merges, pad_token="</s>", padding_side="right", add_bos_token=True)


def clip_tokenizer() -> CLIPTokenizer:
    """Each word of the captions is one token; other words fall back to letters."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(captions(), trainers.BpeTrainer(vocab_size=600, show_progress=False, end_of_word_suffix="</w>"))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=77)


def captions() -> list[str]:
    return [scene.caption for scene in every_scene()]


def every_scene() -> list[shapes.Scene]:
    return [scene for split in shapes.SPLITS for scene in shapes.scenes(split)]


@dataclass(frozen=True)
class Captions:
    """Tokens of all captions and, last, of the empty one; `backwards[i]` is the caption of clip i played backwards."""

    ids: Tensor
    mask: Tensor
    ids_2: Tensor
    backwards: Tensor

    @classmethod
    def of(cls, first: LlamaTokenizer, second: CLIPTokenizer, dev: torch.device) -> Captions:
        every = every_scene()
        texts = [*captions(), ""]
        llama, clip = (tokenizer(texts, padding="longest", return_tensors="pt") for tokenizer in (first, second))
        twins = [every.index(replace(scene, motion=BACKWARDS[scene.motion])) for scene in every]
        return cls(llama.input_ids.to(dev), llama.attention_mask.float().to(dev), clip.input_ids.to(dev), torch.tensor(twins))

    @property
    def null(self) -> int:
        return len(self.ids) - 1


class TextToVelocity(nn.Module):
    """The trained modules together, called as the pipeline calls them."""

    def __init__(self, first: LlamaTokenizer, second: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = LlamaModel(
            LlamaConfig(
                vocab_size=len(first), hidden_size=TRANSFORMER["text_embed_dim"], intermediate_size=128, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, initializer_range=0.1,
                bos_token_id=first.bos_token_id, eos_token_id=first.eos_token_id, pad_token_id=first.pad_token_id,
            )
        )  # fmt: skip
        self.text_encoder_2 = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(second), hidden_size=TRANSFORMER["pooled_projection_dim"], intermediate_size=128, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=77, bos_token_id=second.bos_token_id, eos_token_id=second.eos_token_id,
                pad_token_id=second.pad_token_id,
            )
        )  # fmt: skip
        self.transformer = HunyuanVideoTransformer3DModel(**TRANSFORMER)
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
            elif isinstance(module, nn.Linear) and name.endswith(
                (".norm1.linear", ".norm1_context.linear", ".norm.linear", ".norm_out.linear")
            ):
                start_gates(name, module)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, x: Tensor, sigma: Tensor, captions: Captions, rows: Tensor, guidance: Tensor) -> Tensor:
        ids, mask, ids_2 = captions.ids[rows], captions.mask[rows], captions.ids_2[rows]
        words = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-3]
        pooled = self.text_encoder_2(ids_2).pooler_output
        return self.transformer(x, 1000 * sigma, words, mask, pooled, guidance=1000 * guidance, return_dict=False)[0]


@torch.no_grad()
def start_gates(name: str, linear: nn.Linear) -> None:
    """Modulation starts small, with gates of 0.3; it gives shift, scale and gate (twice in dual blocks), in the refiner two gates."""
    linear.weight.mul_(0.2)
    linear.bias.zero_()
    chunks = linear.bias.view(-1, WIDTH)
    if "token_refiner" in name:
        chunks.fill_(0.3)
    elif len(chunks) > 2:
        chunks[2::3] = 0.3


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on [B, N, heads, d], as two products: faster on a CPU than the fused kernel."""
    q, k, v = (u.transpose(1, 2) for u in (query, key, value))
    scores = q @ k.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2)


@dataclass
class Clips:
    """Latents [N, 4, 5, 8, 8] of unit variance (bf16) and the row of each one's caption.

    `pools[1]` are the clips that move right, down or grow, `pools[0]` those that go the other way.
    """

    latents: Tensor
    rows: Tensor
    pools: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, split: str, seed: int, count: int, work: Path) -> Clips:
        where = {scene: row for row, scene in enumerate(every_scene())}
        pool = shapes.scenes(split)
        chosen = [pool[int(v * len(pool))] for v in shapes.uniform(seed, np.arange(count), 0)]
        forwards = torch.tensor([scene.motion in ("right", "down", "growing") for scene in chosen])
        pools = (torch.nonzero(~forwards)[:, 0], torch.nonzero(forwards)[:, 0])
        return cls(encoded(split, seed, count, work), torch.tensor([where[scene] for scene in chosen]), pools)

    def draw(self, batch: int, forward: float) -> tuple[Tensor, Tensor]:
        """Latents and caption rows of a batch, of which a share of `forward` moves right, down or grows."""
        which = (torch.rand(batch) < forward).long()
        pick = torch.stack([self.pools[d][torch.randint(len(self.pools[d]), ())] for d in which.tolist()])
        return self.latents[pick].float(), self.rows[pick]


@torch.no_grad()
def encoded(split: str, seed: int, count: int, work: Path) -> Tensor:
    """Latents [N, 4, 5, 8, 8] of unit variance (bf16), kept in the work folder."""
    path = work / f"hunyuan_latents_{split}_{seed}_{count}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    vae = load_vae().to(device())
    vae.use_framewise_encoding = False
    parts, began = [], time.monotonic()
    for first in range(0, count, 16):
        x = clips(split, seed, np.arange(first, min(first + 16, count))).to(vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            z = vae.encode(x).latent_dist.mode().float() * vae.config.scaling_factor
        parts.append(z.to("cpu", torch.bfloat16))
        if first % 1024 == 0:
            Log.say(f"encoded {first} of {count} clips in {time.monotonic() - began:.0f} s")
    z = torch.cat(parts)
    work.mkdir(parents=True, exist_ok=True)
    torch.save(z, path)
    return z


def load_vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo.from_pretrained(WEIGHTS / "mini_hunyuan" / "vae", local_files_only=True, torch_dtype=torch.float32)


def levels(batch: int) -> Tensor:
    """Noise levels of a batch in (0, 1], spread evenly before the shift sigma -> s sigma / (1 + (s - 1) sigma)."""
    u = (torch.arange(batch) + torch.rand(batch)) / batch
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def noised(clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    s = sigma.view(-1, 1, 1, 1, 1)
    return (1 - s) * clean + s * noise


@torch.no_grad()
def validate(model: TextToVelocity, captions: Captions, z: Tensor, rows: Tensor) -> list[float]:
    """Velocity MSE on held-out scenes at four noise levels, fixed noise, guidance 1."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    dev, losses = captions.ids.device, []
    for level in LEVELS:
        sigma = torch.full((len(z),), level)
        parts = zip(noised(z.float(), sigma, noise).split(16), sigma.split(16), rows.split(16), strict=True)
        with torch.autocast(dev.type, torch.bfloat16):
            out = torch.cat([model(x.to(dev), s.to(dev), captions, r.to(dev), torch.ones_like(s).to(dev)) for x, s, r in parts])
        losses.append((out.float().cpu() - (noise - z.float())).square().mean().item())
    return losses


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for all else, under one cosine schedule."""

    def __init__(self, model: TextToVelocity, muon: float, lr: float) -> None:
        blocks = nn.ModuleList([model.transformer.transformer_blocks, model.transformer.single_transformer_blocks])
        matrices = [p for name, p in blocks.named_parameters() if p.ndim == 2 and "norm" not in name]
        others = [p for p in model.parameters() if not any(p is m for m in matrices)]
        self.muon = torch.optim.Muon(matrices, lr=muon, weight_decay=0.0, adjust_lr_fn="original")
        self.adam = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.peaks, self.parameters = (muon, lr), list(model.parameters())

    def step(self, loss: Tensor, step: int, steps: int, warmup: int) -> float:
        """One step of both; gives the share of the peak rate."""
        rate = min((step + 1) / warmup, 1.0) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        for optimizer, peak in zip((self.muon, self.adam), self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step()
        self.adam.step()
        return rate


@dataclass(frozen=True)
class Stage:
    """One of the two runs: its name, length, peak rates of Muon and AdamW, steps of warm-up and between reports, decay of the average."""

    name: str
    steps: int
    rates: tuple[float, float]
    warmup: int
    every: int
    memory: float


def train(
    model: TextToVelocity,
    loss: Callable[[int], Tensor],
    stage: Stage,
    work: Path,
    check: Callable[[TextToVelocity], dict[str, float]],
    keep: Callable[[TextToVelocity], None],
) -> TextToVelocity:
    """Minimize loss(step), and log and publish the average of the weights every so often; gives the average."""
    optimizers = Optimizers(model, *stage.rates)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.memory), use_buffers=False)
    checkpoint = Checkpoint(work / f"{stage.name}.pt", model=model, muon=optimizers.muon, adam=optimizers.adam, average=average)
    first, log = checkpoint.load(), Log(stage.name)
    recent: list[float] = []
    began = time.monotonic()
    for step in range(first, stage.steps):
        value = loss(step)
        rate = optimizers.step(value, step, stage.steps, stage.warmup)
        average.update_parameters(model)
        recent.append(value.item())
        if (step + 1) % stage.every == 0 or step + 1 == stage.steps:
            seconds = time.monotonic() - began
            log.row(step=step + 1, seconds=seconds, rate=rate, loss=sum(recent) / len(recent), **check(average.module))
            recent.clear()
            checkpoint.save(step + 1)
            keep(average.module)
    return average.module


def publish(model: TextToVelocity, tokenizers: tuple[LlamaTokenizer, CLIPTokenizer], work: Path) -> None:
    """Write the pipeline with these weights (bf16) into the package."""
    copied = copy.deepcopy(model).eval().to("cpu")
    pipe = HunyuanVideoPipeline(
        text_encoder=copied.text_encoder, tokenizer=tokenizers[0], transformer=copied.transformer, vae=load_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT), text_encoder_2=copied.text_encoder_2, tokenizer_2=tokenizers[1],
    )  # fmt: skip
    made, shipped = work / "mini_hunyuan", WEIGHTS / "mini_hunyuan"
    pipe.to(torch.bfloat16).save_pretrained(made)
    template = {"template": "{}", "crop_start": 0}
    call = dict(prompt_template=template, max_sequence_length=LENGTH, height=shapes.SIZE, width=shapes.SIZE, num_frames=FRAMES)
    (made / "vdq.json").write_text(json.dumps({"call": call, "fps": shapes.FPS, "vocabulary": vocabulary()}, indent=2) + "\n")
    for path in made.rglob("*"):
        if path.is_file() and path.parent.name != "vae":  # which train_hunyuan_vae.py writes
            to = shipped / path.relative_to(made)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o644)
            os.replace(path, to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--distil", type=int, default=600, help="steps of the second stage")
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW: embeddings, text encoders, biases, modulation")
    parser.add_argument("--muon", type=float, default=0.02, help="Muon: matrices of the blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dev = device()
    if dev.type == "cpu":
        transformer_hunyuan_video.dispatch_attention_fn = attention
    tokenizers = llama_tokenizer(), clip_tokenizer()
    captions = Captions.of(*tokenizers, dev)
    data, held = Clips.of("train", args.seed, args.clips, args.work), Clips.of("eval", 7, 64, args.work)
    model = TextToVelocity(*tokenizers).to(dev)

    def batch(forward: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        clean, rows = data.draw(args.batch, forward)
        rows = torch.where(torch.rand(args.batch) < NO_CAPTION, captions.null, rows)
        noise, sigma = torch.randn_like(clean), levels(args.batch)
        guidance = torch.empty(args.batch).uniform_(*GUIDANCE)
        return tuple(u.to(dev) for u in (noised(clean, sigma, noise), noise - clean, sigma, rows, guidance))

    def learn(step: int) -> Tensor:
        x, velocity, sigma, rows, guidance = batch(value_at(step / args.steps, FORWARDS))
        with torch.autocast(dev.type, torch.bfloat16):
            out = model(x, sigma, captions, rows, guidance)
        return (out.float() - velocity).square().mean()

    def check(average: TextToVelocity) -> dict[str, float]:
        right, wrong = (validate(average, captions, held.latents, rows) for rows in (held.rows, captions.backwards[held.rows]))
        errors = {f"held_{level:g}": error for level, error in zip(LEVELS, right, strict=True)}
        return {**errors, **{f"backwards_{level:g}": w / r for level, w, r in zip(LEVELS[1:], wrong[1:], right[1:], strict=True)}}

    def keep(average: TextToVelocity) -> None:
        publish(average, tokenizers, args.work)

    stage = Stage("hunyuan", args.steps, (args.muon, args.lr), warmup=200, every=250, memory=0.998)
    teacher = train(model, learn, stage, args.work, check, keep).eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)

    def distil(step: int) -> Tensor:
        x, _, sigma, rows, guidance = batch(0.5)
        with torch.autocast(dev.type, torch.bfloat16):
            with torch.no_grad():
                c = teacher(x, sigma, captions, rows, guidance).float()
                u = teacher(x, sigma, captions, torch.full_like(rows, captions.null), guidance).float()
            out = student(x, sigma, captions, rows, guidance)
        scale = guidance.view(-1, 1, 1, 1, 1)
        return ((out.float() - (u + scale * (c - u))).square() / scale).mean()

    stage = Stage("hunyuan_distil", args.distil, (0.2 * args.muon, 0.3 * args.lr), warmup=50, every=100, memory=0.99)
    train(student, distil, stage, args.work, check, keep)


if __name__ == "__main__":
    main()
