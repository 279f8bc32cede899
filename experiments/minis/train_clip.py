"""Train mini_clip: an open_clip model of shapes frames and their captions, with linear attribute heads.

    python experiments/minis/train_clip.py            # about 6 minutes on one core; resumes from its checkpoint
    python experiments/minis/train_clip.py --measure  # only measures the shipped weights

The loss is contrastive twice, frame to caption and video to caption (captions that occur twice in a batch share the target),
plus the cross-entropy of the attribute heads. Videos are distorted at random, one distortion for all frames of a video, so
that the heads survive what an autoencoder and quantization do to a picture; generated videos are never trained on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import WEIGHTS, Checkpoint, Log, device
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from vdqbench import shapes
from vdqbench.metrics.attributes import accuracy, judge
from vdqbench.metrics.backbone import open_backbone
from vdqbench.metrics.heads import Heads

FOLDER = WEIGHTS / "mini_clip"
CONTEXT = 16
WIDTH = 96
BAR = {"colour": 98, "shape": 97, "background": 99, "motion": 95, "retrieval": 90}
MEAN, STD = (0.45, 0.45, 0.45), (0.27, 0.27, 0.27)


def merges() -> list[str]:
    """Byte-pair merges learnt on the words of the captions until every word is one token, in the order they are applied."""
    words = {word for split in shapes.SPLITS for scene in shapes.scenes(split) for word in scene.caption.split()}
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    found = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(" ".join(best))
        pieces = [merged(word, best) for word in pieces]
    return found


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word after joining each occurrence of the pair."""
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def write_tokenizer() -> SimpleTokenizer:
    """open_clip's own tokenizer over a small table of merges; letters it has no merge for stay single tokens."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "bpe.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges()]).encode(), mtime=0))
    return SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT)


def config(vocabulary: int) -> dict:
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": shapes.SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 96, "heads": 4, "layers": 2},
    }


class Evaluator(nn.Module):
    """The trained modules together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.clip = CLIP(**config(vocabulary), init_logit_scale=math.log(10))
        self.heads = Heads(WIDTH)

    def features(self, x: Tensor) -> Tensor:
        """Frame features [N, T, D] of frames [N, T, 3, H, W] in [0, 1]."""
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.training):
            y = self.clip.encode_image(((x - mean) / std).flatten(0, 1))
        return y.float().unflatten(0, x.shape[:2])


def distort(x: Tensor) -> Tensor:
    """Random distortions of frames [N, T, 3, H, W] in [0, 1], each in a part of the videos."""
    n, t = x.shape[:2]

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, 1) < share).float()

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape)

    flat = x.flatten(0, 1)
    small = F.interpolate(flat, scale_factor=0.5, mode="bilinear", antialias=True)
    coarse = F.interpolate(small, scale_factor=2.0, mode="bicubic").unflatten(0, (n, t))
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), kernel, groups=3).unflatten(0, (n, t))
    x = torch.lerp(x, blurred, some(0.4) * torch.rand(n, 1, 1, 1, 1))
    x = torch.lerp(x, coarse, some(0.4) * torch.rand(n, 1, 1, 1, 1))
    x = x * (1 + some(0.5) * uniform(-0.12, 0.12, n, 1, 3, 1, 1)) + some(0.5) * uniform(-0.06, 0.06, n, 1, 3, 1, 1)
    x = x * (1 + some(0.3) * uniform(-0.05, 0.05, n, t, 1, 1, 1))
    patches = F.interpolate(torch.randn(n * t, 3, 8, 8), scale_factor=4, mode="bilinear").unflatten(0, (n, t))
    x = x + some(0.4) * 0.06 * torch.rand(n, 1, 1, 1, 1) * patches
    x = x + some(0.5) * 0.08 * torch.rand(n, 1, 1, 1, 1) * torch.randn_like(x)
    return x.clamp(0, 1)


def contrast(image: Tensor, text: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of cosines [A, B] against targets `same` [A, B] (1 where the captions are equal)."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    rows, columns = same / same.sum(dim=1, keepdim=True), same / same.sum(dim=0, keepdim=True)
    return -((rows * logits.log_softmax(dim=1)).sum(dim=1).mean() + (columns * logits.log_softmax(dim=0)).sum(dim=0).mean()) / 2


def loss_of(model: Evaluator, x: Tensor, times: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    """x [N, T, 3, H, W], times [N, T], caption tokens [N, L], attribute classes [N, 4]."""
    features, text = model.features(x), model.clip.encode_text(tokens)
    same = (labels[:, None] == labels[None]).all(dim=-1).float()
    scale = model.clip.logit_scale.exp()
    frames = contrast(features.flatten(0, 1), text, same.repeat_interleave(x.shape[1], dim=0), scale)
    videos = contrast(model.heads.video(features, times), text, same, scale)
    logits = model.heads(features, times)
    return frames + videos + sum(F.cross_entropy(logits[name], labels[:, i]) for i, name in enumerate(shapes.ATTRIBUTES))


@torch.no_grad()
def measure(
    embed: Callable[[Tensor], Tensor], heads: Heads, embed_text: Callable[[list[str]], Tensor], count: int, seed: int = 7
) -> dict[str, float]:
    """Percent right on real held-out videos: each attribute, and the caption among 64 by video and by frame embeddings.

    `embed` gives frame features [N, T, D] of videos uint8 [N, T, H, W, 3], `embed_text` unit embeddings [N, D] of texts.
    """
    videos, chosen = shapes.dataset("eval", seed, np.arange(count))
    features = torch.cat([embed(part) for part in torch.from_numpy(videos).split(64)])
    right = accuracy(judge(heads, features).cpu(), torch.tensor([scene.labels for scene in chosen]))
    pool = shapes.scenes("eval")
    text = embed_text([scene.caption for scene in pool])
    for name, cosines in (
        ("retrieval", heads.video(features) @ text.T),
        ("frame_retrieval", (F.normalize(features, dim=-1) @ text.T).mean(dim=1)),
    ):
        right[name] = 100.0 * torch.tensor(ranked_first(cosines.cpu().numpy(), [pool.index(scene) for scene in chosen], seed))
    return {name: values.double().mean().item() for name, values in right.items() if name != "attributes"}


def measure_training(model: Evaluator, tokenizer: SimpleTokenizer, dev: torch.device) -> dict[str, float]:
    model.eval()
    embed = lambda videos: model.features(videos.to(dev).permute(0, 1, 4, 2, 3).float() / 255)  # noqa: E731
    text = lambda texts: model.clip.encode_text(tokenizer(texts).to(dev), normalize=True)  # noqa: E731
    result = measure(embed, model.heads, text, 256)
    model.train()
    return result


def measure_shipped(count: int) -> dict[str, float]:
    """The numbers of the bar, from the files in the package and by the package's own code."""
    backbone = open_backbone({"model": "mini_clip"}, "cpu")
    assert backbone.heads is not None
    embed = lambda videos: backbone.embed_frames(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])  # noqa: E731
    return measure(embed, backbone.heads, backbone.embed_text, count)


def ranked_first(cosines: np.ndarray, right: list[int], seed: int, among: int = 64) -> list[bool]:
    """Whether the right caption beats `among` - 1 others drawn without repetition, for each row of cosines [N, captions]."""
    generator = np.random.default_rng(seed)
    first = []
    for row, k in zip(cosines, right, strict=True):
        others = generator.permutation(np.delete(np.arange(len(row)), k))[: among - 1]
        first.append(bool(row[k] > row[others].max()))
    return first


def publish(model: Evaluator, vocabulary: int) -> None:
    """Write the folder that open_clip opens as `local-dir:`, and the heads beside it; bf16, no pickles."""
    preprocess = {"size": shapes.SIZE, "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    text = {"model_cfg": config(vocabulary), "preprocess_cfg": preprocess}
    (FOLDER / "open_clip_config.json").write_text(json.dumps(text, indent=2) + "\n")
    for name, module in (("open_clip_model", model.clip), ("heads", model.heads)):
        state = {
            k: v.detach().to("cpu", torch.bfloat16 if v.is_floating_point() else v.dtype).contiguous()
            for k, v in module.state_dict().items()
        }
        save_file(state, FOLDER / f"{name}.safetensors")
        (FOLDER / f"{name}.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--videos", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=48, help="videos of a step")
    parser.add_argument("--frames", type=int, default=4, help="frames taken of each video of a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--measure", action="store_true", help="only measure the shipped weights")
    args = parser.parse_args()
    if args.measure:
        return report()

    torch.manual_seed(args.seed)
    dev = device()
    tokenizer = write_tokenizer()
    model = Evaluator(tokenizer.vocab_size).to(dev)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    rate = lambda step: min((step + 1) / 100, 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = Checkpoint(args.work / "clip.pt", model=model, optimizer=optimizer, schedule=schedule)
    first, log = checkpoint.load(), Log("clip")

    began = time.monotonic()
    parts = [shapes.dataset("train", args.seed, np.arange(k, min(k + 250, args.videos))) for k in range(0, args.videos, 250)]
    videos = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    chosen = [scene for part in parts for scene in part[1]]
    labels = torch.tensor([scene.labels for scene in chosen])
    tokens = tokenizer([scene.caption for scene in chosen])
    for step in range(first, args.steps):
        pick = torch.randint(len(videos), (args.batch,))
        span = shapes.FRAMES / args.frames
        when = ((torch.arange(args.frames) + torch.rand(args.batch, args.frames)) * span).long()
        x = distort(videos[pick[:, None], when].permute(0, 1, 4, 2, 3).float() / 255)
        times = when * (2 / (shapes.FRAMES - 1)) - 1
        loss = loss_of(model, x.to(dev), times.to(dev), tokens[pick].to(dev), labels[pick].to(dev))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(max=math.log(100))
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            log.row(step=step + 1, seconds=time.monotonic() - began, loss=loss.item(), **measure_training(model, tokenizer, dev))
            checkpoint.save(step + 1)
            publish(model, tokenizer.vocab_size)
    report()


def report() -> None:
    measured = measure_shipped(1024)
    for name, value in measured.items():
        note = f"bar: {BAR[name]} %" if name in BAR else "a single frame shows no motion"
        sys.stdout.write(f"{name:16} {value:6.2f} %   ({note})\n")


if __name__ == "__main__":
    main()
