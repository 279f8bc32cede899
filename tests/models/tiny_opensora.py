"""A tiny Open-Sora with random weights in the files of the released one: a .pth, a T5 folder with spiece.model, a folder of the VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL
from sentencepiece import sentencepiece_model_pb2 as sentencepiece
from transformers import T5Config, T5EncoderModel

from vdqbench.config import CONF, Model
from vdqbench.models.stdit import STDiT

CHECKPOINT = "OpenSora-v1-HQ-16x512x512.pth"
SIZES = dict(hidden_size=24, depth=2, num_heads=2, caption_channels=8, model_max_length=10)
CALL = dict(num_frames=2, height=32, width=32)
WORDS = ("▁a", "▁red", "▁blue", "▁circle", "▁square", "▁growing", "▁on", "▁dark")


def build(folder: Path) -> None:
    """Write the files of the whole model below a folder."""
    torch.manual_seed(0)
    stdit = STDiT(input_size=(2, 4, 4), **SIZES)
    for name, parameter in stdit.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05 if name.startswith("final_layer") else 0.2)
    torch.save({"ema": stdit.state_dict()}, folder / CHECKPOINT)

    t5 = folder / "t5-v1_1-xxl"
    t5.mkdir()
    config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=64, feed_forward_proj="gated-gelu")
    torch.save(T5EncoderModel(config).state_dict(), t5 / "pytorch_model.bin")
    config.save_pretrained(t5)
    pieces = sentencepiece.ModelProto()
    pieces.trainer_spec.model_type = pieces.trainer_spec.UNIGRAM
    pieces.normalizer_spec.name = "identity"
    pieces.trainer_spec.pad_id, pieces.trainer_spec.eos_id, pieces.trainer_spec.unk_id, pieces.trainer_spec.bos_id = 0, 1, 2, -1
    for index, piece in enumerate(("<pad>", "</s>", "<unk>", *WORDS, "▁", *"abcdefghijklmnopqrstuvwxyz")):
        kind = {2: 2}.get(index, 3 if index < 2 else 1)  # unknown, control, normal
        pieces.pieces.add(piece=piece, score=-index / 10, type=kind)
    (t5 / "spiece.model").write_bytes(pieces.SerializeToString())
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (t5 / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **special}))

    ends = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    AutoencoderKL(latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2, **ends).save_pretrained(
        folder / "sd-vae-ft-ema"
    )


def model(weights: Path | str | None, name: str = "opensora_v1", **changes: Any) -> Model:
    """The shipped model node, with the tiny sizes."""
    node = {**yaml.safe_load((CONF / "model_defaults.yaml").read_text()), **yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())}
    options = {**node["options"], "stdit": {**node["options"]["stdit"], **SIZES}, **changes.pop("options", {})}
    small = {"dtype": "float32", "call": CALL, "weights": None if weights is None else str(weights), "options": options}
    return Model.from_config({**node, **small, **changes})


def sampler(**changes: Any) -> dict[str, Any]:
    return {"name": "ddim", "steps": 4, "guidance": 4.0, "guided_channels": 3, "options": {}, **changes}
