"""Tiny pipelines with random weights, one for each adapter, saved in the layout of their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    PNDMScheduler,
    SparseControlNetModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from vdqbench import shapes
from vdqbench.config import CONF, Model
from vdqbench.models.magicanimate.adapter import MagicAnimate
from vdqbench.models.pipeline import PipelineAdapter

WIDTH = 32
"""Of the text encoders."""


def described(option: str, **changes: Any) -> Model:
    """A model as its file in conf/model describes it; its weights need not be here."""
    files = [CONF / "model_defaults.yaml", CONF / "model" / f"{option}.yaml"]
    first, own = (yaml.safe_load(file.read_text()) for file in files)
    return Model.from_config({**first, **own, **changes})


@dataclass(frozen=True)
class Case:
    """A tiny model.

    Attributes:
        build: writes its checkpoint to a folder and returns what its `model` node says of where it is, what it is asked for and how.
        layout: how guidance calls the denoiser.
        steps, guidance, scheduler: of the sampler.
        attributes: of the pipeline that are too large for a test.
        inputs: conditioning inputs.
        kind: the adapter's class.
        prompted: whether the prompt's text counts.
    """

    build: Callable[[Path], dict[str, Any]]
    layout: str = "batched_reversed"
    steps: int = 2
    guidance: float = 4.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    scheduler: str = "model"
    attributes: Mapping[str, int] = field(default_factory=dict)
    kind: type = PipelineAdapter
    prompted: bool = True

    def adapter(self, name: str, folder: Path, device: str = "cpu", sampler: Mapping[str, Any] | None = None, **changes: Any) -> Any:
        """The adapter; `sampler` and `changes` of the model are over its own."""
        adapter = self.kind(self.model(name, folder / name, **changes), self.sampler(**(sampler or {})), device)
        if self.attributes:
            self.shrink(adapter.pipe)
        return adapter

    def shrink(self, pipe: Any) -> None:
        for attribute, value in self.attributes.items():
            setattr(pipe, attribute, value)

    def model(self, name: str, folder: Path, **changes: Any) -> Model:
        """The model, as the configuration would describe it."""
        defaults = yaml.safe_load((CONF / "model_defaults.yaml").read_text())
        adapter = f"{self.kind.__module__}.{self.kind.__qualname__}"
        node = {"name": f"tiny_{name}", "adapter": adapter, "samplers": [self.scheduler], "inputs": dict(self.inputs)}
        return Model.from_config({**defaults, **node, **_built(self.build, folder), **changes})

    def sampler(self, **changes: Any) -> dict[str, Any]:
        return {"name": self.scheduler, "steps": self.steps, "guidance": self.guidance, "guided_channels": None, "options": {}, **changes}


@cache
def _built(build: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    return build(folder)


def _filled(module: Any, std: float = 1.0) -> Any:
    """Random weights everywhere, so that what starts at zero has an effect."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * std / parameter[0].numel() ** 0.5
        elif "norm" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return module.eval()


@cache
def _captions() -> list[str]:
    return [scene.caption for split in shapes.SPLITS for scene in shapes.scenes(split)]


@cache
def _clip() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A text encoder and its tokenizer, in which each word of the captions is a token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(_captions(), trainers.BpeTrainer(vocab_size=300, show_progress=False, end_of_word_suffix="</w>"))
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _filled(CLIPTextModel(config)), tokenizer


@cache
def _llama() -> tuple[LlamaModel, LlamaTokenizer]:
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.train_from_iterator(_captions(), trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=special))
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = LlamaTokenizer(vocab=learnt["vocab"], merges=merges, pad_token="</s>", padding_side="right")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return _filled(LlamaModel(config)), tokenizer


@cache
def _t5(kind: type = T5EncoderModel, config: type = T5Config) -> tuple[Any, T5Tokenizer]:
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    unigram.train_from_iterator(_captions(), trainer)
    pieces = [(piece, score) for piece, score in json.loads(unigram.to_str())["model"]["vocab"]]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    sizes = config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return _filled(kind(sizes)), tokenizer


def _image_vae(layers: int = 3) -> AutoencoderKL:
    return _filled(
        AutoencoderKL(
            latent_channels=4, block_out_channels=(4,) * layers, layers_per_block=1, norm_num_groups=2,
            down_block_types=["DownEncoderBlock2D"] * layers, up_block_types=["UpDecoderBlock2D"] * layers,
        )
    )  # fmt: skip


def hunyuan(folder: Path) -> dict[str, Any]:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, guidance_embeds=True, text_embed_dim=WIDTH, pooled_projection_dim=WIDTH, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
    (first, words), (second, words_2) = _llama(), _clip()
    pipe = HunyuanVideoPipeline(
        first, words, _filled(transformer), _filled(vae), FlowMatchEulerDiscreteScheduler(shift=7.0), second, words_2
    )
    pipe.save_pretrained(folder)
    call = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    (folder / "vdq.json").write_text(json.dumps({"call": {**call, "prompt_template": {"template": "{}", "crop_start": 0}}, "fps": 12}))
    return {"weights": str(folder)}


def hunyuan15(folder: Path) -> dict[str, Any]:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(_captions(), trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet))
    learnt = json.loads(bpe.to_str())["model"]
    words = Qwen2Tokenizer(
        vocab={**learnt["vocab"], "<|endoftext|>": len(learnt["vocab"])}, merges=[tuple(pair) for pair in learnt["merges"]]
    )
    words.chat_template = "{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}{% endif %}{% endfor %}"
    config = Qwen2_5_VLTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        rope_scaling={"mrope_section": [2, 2, 4], "rope_type": "default", "type": "default"},
    )  # fmt: skip
    glyphs = T5EncoderModel(T5Config(vocab_size=300, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1, mlp_ratio=2.0,
        text_embed_dim=WIDTH, text_embed_2_dim=WIDTH, image_embed_dim=12, rope_axes_dim=(4, 6, 6), target_size=16,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4, temporal_compression_ratio=2,
        downsample_match_channel=False, upsample_match_channel=False,
    )  # fmt: skip
    HunyuanVideo15Pipeline(
        text_encoder=_filled(Qwen2_5_VLTextModel(config)), tokenizer=words, transformer=_filled(transformer), vae=_filled(vae),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), text_encoder_2=_filled(glyphs), tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(),
    ).save_pretrained(folder)  # fmt: skip
    return {"weights": str(folder), "call": {"height": 16, "width": 16, "num_frames": 5}}


UNET = dict(
    block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=WIDTH,
    norm_num_groups=8, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip
DDIM = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1)


def _motion() -> MotionAdapter:
    sizes = dict(block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=4)
    return _filled(MotionAdapter(**sizes, use_motion_mid_block=False))


def animatediff(folder: Path) -> dict[str, Any]:
    encoder, words = _clip()
    unet, scheduler = _filled(UNet2DConditionModel(**UNET)), DDIMScheduler(**DDIM)
    parts = dict(vae=_image_vae(), text_encoder=encoder, tokenizer=words, unet=unet, motion_adapter=_motion(), scheduler=scheduler)
    AnimateDiffPipeline(**parts).save_pretrained(folder)
    return {"weights": str(folder), "call": {"height": 32, "width": 32, "num_frames": 4}}


def sparsectrl(folder: Path, of_latents: bool = False) -> dict[str, Any]:
    """As in the real world: a folder of Stable Diffusion, another of motion modules, a third of the control network.

    `of_latents` is SparseCtrl-RGB's: its network is told latents of the frames.
    """
    encoder, words = _clip()
    parts = dict(vae=_image_vae(), text_encoder=encoder, tokenizer=words, unet=_filled(UNet2DConditionModel(**UNET)))
    scheduler = PNDMScheduler(steps_offset=1, skip_prk_steps=True)
    unsafe = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    StableDiffusionPipeline(**parts, scheduler=scheduler, **unsafe).save_pretrained(folder / "sd")
    _motion().save_pretrained(folder / "motion")
    control = SparseControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=WIDTH, norm_num_groups=8, attention_head_dim=4,
        motion_num_attention_heads=4, conditioning_channels=4 if of_latents else 3, use_simplified_condition_embedding=of_latents,
        conditioning_embedding_out_channels=(4, 4, 4), down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    )  # fmt: skip
    _filled(control).save_pretrained(folder / "control")
    sources = {"pipeline": "sd", "motion_adapter": "motion", "controlnet": "control"}
    asset = {"gigabytes": 0.001, "licence": "none"}
    return {
        "assets": [{**asset, "part": part, "source": str(folder / name)} for part, name in sources.items()],
        "call": {"height": 32, "width": 32, "num_frames": 4, "controlnet_frame_indices": [0]},
        "options": {"pipeline": "AnimateDiffSparseControlNetPipeline", "scheduler": DDIM},
    }


def cogvideox(folder: Path) -> dict[str, Any]:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=WIDTH, num_layers=2,
        sample_width=4, sample_height=4, sample_frames=9, max_text_seq_length=16,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
    encoder, words = _t5()
    CogVideoXPipeline(words, encoder, _filled(vae), _filled(transformer), CogVideoXDDIMScheduler()).save_pretrained(folder)
    return {"weights": str(folder), "call": {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}}


def latte(folder: Path) -> dict[str, Any]:
    transformer = LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4, out_channels=8,
        caption_channels=WIDTH, cross_attention_dim=24, attention_bias=True, norm_type="ada_norm_single", norm_elementwise_affine=False,
        num_embeds_ada_norm=1000, video_length=4,
    )  # fmt: skip
    encoder, words = _t5()
    LattePipeline(words, encoder, _image_vae(), _filled(transformer), DDIMScheduler(**DDIM)).save_pretrained(folder)
    return {"weights": str(folder), "call": {"height": 32, "width": 32, "num_frames": 4}}


def ltx_vae(**changes: Any) -> AutoencoderKLLTXVideo:
    halves = (True, True, False, False)
    sizes = dict(
        latent_channels=8, block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=halves, decoder_spatio_temporal_scaling=halves, patch_size=1,
    )  # fmt: skip
    return _filled(AutoencoderKLLTXVideo(**sizes, **changes))


def ltx(folder: Path) -> dict[str, Any]:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=WIDTH, num_layers=2,
        caption_channels=WIDTH,
    )  # fmt: skip
    vae = ltx_vae()
    vae.latents_std.fill_(1.5)
    encoder, words = _t5()
    LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, encoder, words, _filled(transformer)).save_pretrained(folder)
    return {"weights": str(folder), "call": {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "frame_rate": 8}}


def mochi(folder: Path) -> dict[str, Any]:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=16, in_channels=12, text_embed_dim=WIDTH,
        time_embed_dim=16, max_sequence_length=16,
    )  # fmt: skip
    vae = AutoencoderKLMochi(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5)
    encoder, words = _t5()
    MochiPipeline(
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True), _filled(vae), encoder, words, _filled(transformer)
    ).save_pretrained(folder)  # fmt: skip
    return {"weights": str(folder), "call": {"height": 16, "width": 16, "num_frames": 7, "max_sequence_length": 16}}


def wan(folder: Path, experts: int = 1) -> dict[str, Any]:
    sizes = dict(text_dim=WIDTH, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=32)
    networks = [
        _filled(WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, **sizes), std=1 - 0.2 * i) for i in range(experts)
    ]
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    encoder, words = _t5(UMT5EncoderModel, UMT5Config)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    ratio = {"boundary_ratio": 0.875} if experts > 1 else {}
    WanPipeline(words, encoder, _filled(vae), scheduler, *networks, **ratio).save_pretrained(folder)
    return {"weights": str(folder), "call": {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}}


def wan_of_two(folder: Path) -> dict[str, Any]:
    """As Wan 2.2: one network for each half of the noise levels."""
    return wan(folder, 2)


def magicanimate(folder: Path) -> dict[str, Any]:
    """The files of the released checkpoints, in the folders that the original wants them in.

    The UNet of videos is whole; Stable Diffusion's own UNet has other weights than its spatial half, which must not matter.
    """
    home, diffusion = folder / "MagicAnimate", folder / "stable-diffusion-v1-5"
    encoder, words = _clip()
    encoder.save_pretrained(diffusion / "text_encoder")
    words.save_pretrained(diffusion / "tokenizer")
    _filled(UNet2DConditionModel(**UNET), std=0.7).save_pretrained(diffusion / "unet")
    _image_vae(4).save_pretrained(folder / "sd-vae-ft-mse")
    last = "up_blocks.1.attentions.1."
    kept = tuple(last + name for name in ("norm.", "proj_in.", "transformer_blocks.0.norm1."))
    appearance = {
        name: value
        for name, value in _filled(UNet2DConditionModel(**UNET), std=0.9).state_dict().items()
        if not name.startswith((last, "conv_norm_out", "conv_out")) or name.startswith(kept)
    }
    _saved(home / "appearance_encoder", appearance, {**UNET, "_class_name": "AppearanceEncoderModel", "_diffusers_version": "0.19.3"})
    sizes = {key: value for key, value in UNET.items() if not key.startswith(("up_", "out_", "sample_"))}
    control = _filled(ControlNetModel(**sizes, conditioning_embedding_out_channels=(4, 4, 4, 4)), std=0.8)
    for parameter in control.controlnet_cond_embedding.parameters():
        parameter.data *= 2  # its eight layers would leave nothing of the poses
    _saved(home / "densepose_controlnet", control.state_dict(), dict(control.config))
    motion = MotionAdapter(
        (16, 32), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=8, motion_max_seq_length=24,
        use_motion_mid_block=False,
    )  # fmt: skip
    (home / "temporal_attention").mkdir()
    spatial = {f"module.{name}": value for name, value in _filled(UNet2DConditionModel(**UNET)).state_dict().items()}
    saved = {"global_step": 1, "state_dict": spatial | released(_filled(motion).state_dict())}
    torch.save(saved, home / "temporal_attention" / "temporal_attention.ckpt")
    return {"weights": str(folder), "call": {"height": 32, "width": 32, "num_frames": 4}}


def released(motion: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of motion modules by the names of the original, wrapped; each attention has its own table of positions there."""
    made, block = {}, "transformer_blocks.0."
    names = {
        "attn1.": "attention_blocks.0.", "attn2.": "attention_blocks.1.", "norm1.": "norms.0.", "norm2.": "norms.1.", "norm3.": "ff_norm.",
    }  # fmt: skip
    for name, value in motion.items():
        module, _, inner = name.partition(".motion_modules.")
        index, _, inner = inner.partition(".")
        prefix = f"module.{module}.motion_modules.{index}.temporal_transformer."
        if inner == f"{block}pos_embed.pe":
            made |= {f"{prefix}{block}attention_blocks.{i}.pos_encoder.pe": value.clone() for i in (0, 1)}
            continue
        for ours, theirs in names.items():
            inner = inner.replace(block + ours, block + theirs)
        made[prefix + inner] = value
    return made


def _saved(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config)))


TOKENS = {"tokenizer_max_length": 16, "prompt_template_encode_start_idx": 0, "tokenizer_2_max_length": 4, "vision_num_semantic_tokens": 4}
PIPELINES = {
    "hunyuan": Case(hunyuan, "embedded", guidance=6.0),
    "hunyuan15": Case(hunyuan15, "two_pass", attributes=TOKENS),
    "animatediff": Case(animatediff),
    "sparsectrl": Case(sparsectrl, inputs={"sketch": "required"}, scheduler="ddim"),
    "cogvideox": Case(cogvideox),
    "latte": Case(latte),
    "ltx": Case(ltx),
    "mochi": Case(mochi),
    "wan": Case(wan, "two_pass"),
    "wan_of_two": Case(wan_of_two, "two_pass"),
}
CASES = PIPELINES | {
    "magicanimate": Case(
        magicanimate, inputs={"image": "required", "pose": "required"}, scheduler="ddim", kind=MagicAnimate, prompted=False
    ),
}
