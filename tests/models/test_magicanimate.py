"""MagicAnimate from files of the released layout: names, numerics against a second implementation, inputs, memory, and its full size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CASES, described, released
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from magicanimate_reference import Original, below, grouped, moved, pictured, resnet
from PIL import Image
from safetensors.torch import save_file

from vdqbench.errors import ConfigError
from vdqbench.models.base import Job, initial_noise
from vdqbench.models.magicanimate.adapter import MagicAnimate, Options
from vdqbench.models.magicanimate.checkpoint import ROUNDING, fill_animation, motion_tensors, positions
from vdqbench.models.magicanimate.networks import STABLE_DIFFUSION, AnimationUNet, AppearanceEncoder, Architecture
from vdqbench.models.magicanimate.norms import OverFrames, PerFrame
from vdqbench.models.magicanimate.reference import ReferenceAttention, readers
from vdqbench.models.samplers import scheduler_of
from vdqbench.quant.macs import count
from vdqbench.replay import CallRecorder

CASE, NAME, FRAMES, SIDE = CASES["magicanimate"], "magicanimate", 4, 32
CHECKPOINT = "MagicAnimate/temporal_attention/temporal_attention.ckpt"
TAIL = "up_blocks.3.attentions.2"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the inputs of two jobs, in which the models are built."""
    made, generator = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(generator.integers(0, 256, (40, 24, 3), np.uint8)).save(made / f"image-{i}.png")
        (made / f"pose-{i}").mkdir()
        for f in range(FRAMES):
            picture = np.kron(generator.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            Image.fromarray(picture).save(made / f"pose-{i}" / f"{f}.png")
    return made


@pytest.fixture(scope="module")
def jobs(home) -> list[Job]:
    return [Job(f"000{i}", "a clip", 3, {"image": home / f"image-{i}.png", "pose": home / f"pose-{i}"}) for i in range(2)]


@pytest.fixture(scope="module")
def adapter(home) -> MagicAnimate:
    return CASE.adapter(NAME, home)


@pytest.fixture(scope="module")
def original(home, adapter) -> Original:
    return Original(home / NAME)


@pytest.fixture(scope="module")
def conditions(adapter, jobs) -> list[dict[str, torch.Tensor]]:
    return adapter.encode(jobs)


@pytest.fixture(scope="module")
def latents(adapter, jobs, conditions) -> torch.Tensor:
    return adapter.denoise(jobs, conditions)


@pytest.fixture(scope="module")
def outlined() -> MagicAnimate:
    return MagicAnimate.outlined(described(NAME))


def video(channels: int, side: int = 4, rows: int = 2) -> torch.Tensor:
    """Frames that differ in their mean and spread, [B, C, F, H, W]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, channels, FRAMES, side, side, generator=generator)
    return x * torch.tensor([0.3, 1.0, 2.0, 5.0])[:, None, None] + torch.tensor([-2.0, 0.0, 1.0, 4.0])[:, None, None]


def frames_of(x: torch.Tensor) -> torch.Tensor:
    """[B F, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def videos_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.unflatten(0, (-1, FRAMES)).transpose(1, 2)


def close(found: torch.Tensor, expected: torch.Tensor, share: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=share * expected.abs().max().item(), rtol=0)


# --- names of the checkpoints


def test_exactly_520_tensors_of_motion_modules(outlined):
    with torch.device("meta"):
        adapter = MotionAdapter(use_motion_mid_block=False, motion_max_seq_length=24)
    named = {name: value for name, value in adapter.state_dict().items() if not name.endswith("pos_embed.pe")}
    table = positions(24, 320)
    saved = {
        name: table if ".pe" in name and value.shape[-1] == 320 else positions(24, value.shape[-1]) if ".pe" in name else value
        for name, value in released(adapter.state_dict()).items()
    }
    saved = {name.removeprefix("module."): value for name, value in saved.items()}
    assert len(saved) == 520 + 2 * 20
    mapped = motion_tensors(saved | {"conv_in.weight": table}, Path("temporal_attention.ckpt"))  # which is of no motion module
    assert len(mapped) == 520 and set(mapped) == set(named)
    assert {name: value.shape for name, value in mapped.items()} == {name: value.shape for name, value in named.items()}
    wanted = {name for name in outlined.denoiser.state_dict() if ".motion_modules." in name and not name.endswith("pe")}
    assert set(mapped) == wanted and sum(value.numel() for value in mapped.values()) == 417_137_600  # 1.67 GB in float32


def test_positions_are_sines_and_cosines():
    table = positions(24, 6)[0]
    for k in range(24):
        for i in range(3):
            angle = k / 10000 ** (2 * i / 6)
            assert table[k, 2 * i : 2 * i + 2].tolist() == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-5)
    name = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    assert motion_tensors({name: positions(24, 6).half()}, Path()) == {}
    rounded = positions(24, 320) - positions(24, 320).half().float()
    assert 2.3e-4 < rounded.abs().max() <= 2**-12 < ROUNDING < (positions(24, 320) - positions(24, 320).bfloat16().float()).abs().max()
    with pytest.raises(ConfigError, match=r"x.ckpt has other positions than sines and cosines in down_blocks.0.*attention_blocks.1"):
        motion_tensors({name: positions(24, 6) + 1e-3}, Path("x.ckpt"))


def test_the_24_tensors_that_the_appearance_encoder_lacks():
    with torch.device("meta"):
        whole, cut = UNet2DConditionModel(**STABLE_DIFFUSION), AppearanceEncoder(STABLE_DIFFUSION).unet
    missing, block = whole.state_dict().keys() - cut.state_dict().keys(), f"{TAIL}.transformer_blocks.0"
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")
    expected = {f"{block}.attn{i}.{name}" for i in (1, 2) for name in attention}
    both = (f"{block}.norm2", f"{block}.norm3", f"{block}.ff.net.0.proj", f"{block}.ff.net.2", f"{TAIL}.proj_out")
    expected |= {f"{name}.{kind}" for name in (*both, "conv_norm_out", "conv_out") for kind in ("weight", "bias")}
    assert missing == expected and len(missing) == 24
    assert cut.state_dict().keys() < whole.state_dict().keys() and len(whole.state_dict()) == 686
    lacking = sum(whole.state_dict()[name].numel() for name in missing)
    assert (lacking, sum(p.numel() for p in cut.parameters())) == (2_454_404, 859_520_964 - 2_454_404)


def test_wrong_checkpoints_are_named(adapter, home, tmp_path):
    saved = torch.load(home / NAME / CHECKPOINT, weights_only=True)["state_dict"]
    images = home / NAME / "stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors"
    key = "module.down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    ours, middle = "down_blocks.0.motion_modules.0.proj_in.weight", key.replace("down_blocks.0", "mid_block")
    moving = {name: value for name, value in saved.items() if ".motion_modules." in name}
    begins, released = "wrong.ckpt does not fit this network of MagicAnimate: it", "; give the file that was released, and the config.json"
    whole = "; give the UNet whole, or its motion modules alone, which take the rest from Stable Diffusion 1.5$"
    unet = adapter.architecture.animation(FRAMES)
    for change, said in (
        (lambda s: s.pop(key), f"{begins} lacks {ours}{released}"),
        (lambda s: s.update({middle: s[key]}), f"{begins} has an unknown mid_block.motion_modules.0.proj_in.weight{released}"),
        (lambda s: s.update({key: torch.zeros(2, 2)}), rf"{begins} has {ours} \[2, 2\] for \[16, 16\]{released}"),
        (
            lambda s: s.update({f"module.{ours}": s[key]}),
            f"wrong.ckpt has {ours}, which is of a motion module and not named as in the",
        ),
        (lambda s: s.clear(), "lacks .*and differs in 1[0-9]+ more;"),
        (lambda s: s.pop("module.conv_in.bias"), f"{begins} lacks conv_in.bias{whole}"),
        (lambda s: s.update({"module.conv_in.more": s[key]}), f"{begins} has an unknown conv_in.more{whole}"),
        (lambda s: [s.pop(name) for name in set(s) - {*moving, "module.conv_in.bias"}], f"{begins} lacks .* more{whole}"),
        (lambda s: [s.pop(name) for name in moving], f"{begins} lacks .*motion_modules.*{released}"),
    ):
        wrong = dict(saved)
        change(wrong)
        torch.save(wrong, tmp_path / "wrong.ckpt")
        with pytest.raises(ConfigError, match=said):
            fill_animation(unet, images, tmp_path / "wrong.ckpt")
    torch.save(moving, tmp_path / "moving.ckpt")
    for name, said in (
        (home / NAME / CHECKPOINT, r"temporal_attention.ckpt does not fit this network of MagicAnimate: it has an unknown module"),
        (
            tmp_path / "none.safetensors",
            r"none.safetensors cannot be read as a checkpoint \(.*\); fetch the released file again",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            fill_animation(unet, name, tmp_path / "moving.ckpt")
    assert all(value.is_meta for value in unet.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "module.", "unet.", "module.unet."])
def test_both_layouts_of_the_checkpoint_give_the_same_weights(prefix, adapter, home, tmp_path):
    """The whole UNet, beside which no other weights are read, and the motion modules alone, with the rest from Stable Diffusion."""
    saved = torch.load(home / NAME / CHECKPOINT, weights_only=True)["state_dict"]
    named = {name.removeprefix("module."): value for name, value in saved.items()}
    still = {name: value.clone() for name, value in named.items() if ".motion_modules." not in name}
    torch.save({"state_dict": {prefix + name: value for name, value in named.items()}}, tmp_path / "whole.ckpt")
    torch.save({prefix + name: value for name, value in named.items() if name not in still}, tmp_path / "moving.ckpt")
    save_file(still, tmp_path / "images.safetensors")
    expected = adapter.denoiser.state_dict()
    assert torch.equal(expected["conv_in.weight"], still["conv_in.weight"]), "not Stable Diffusion's own, which are there, too"
    for checkpoint, images in (("whole", "none"), ("moving", "images")):
        unet: Any = adapter.architecture.animation(FRAMES)
        fill_animation(unet, tmp_path / f"{images}.safetensors", tmp_path / f"{checkpoint}.ckpt")
        found = unet.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_a_checkpoint_is_run(adapter, home, tmp_path, capsys):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    images = home / NAME / "stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(ConfigError, match=r"evil.ckpt cannot be read as a checkpoint"):
        fill_animation(adapter.architecture.animation(FRAMES), images, tmp_path / "evil.ckpt")
    assert capsys.readouterr().out == ""


# --- the five numeric differences from diffusers, one by one


@torch.no_grad()
def test_1_motion_modules_normalize_each_frame(adapter, original):
    name, x = "down_blocks.0.motion_modules.0", video(16)
    expected = moved(below(original.p, f"{name}."), x)
    module: Any = adapter.denoiser.get_submodule(name)
    close(videos_of(module(frames_of(x), num_frames=FRAMES)), expected)
    pooled = torch.nn.functional.group_norm(x, 8, module.norm.weight, module.norm.bias, 1e-6)
    assert (module.norm(x) - pooled).abs().max() > 0.5, "as diffusers would"
    assert sum(isinstance(one, PerFrame) for one in adapter.denoiser.modules()) == 6


@torch.no_grad()
@pytest.mark.parametrize("name", ["up_blocks.0.resnets.0", "mid_block.resnets.0"])
def test_2_residual_blocks_normalize_over_frames(name, adapter, original):
    module: Any = adapter.denoiser.get_submodule(name)
    x, time = video(module.in_channels), torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    expected = resnet(below(original.p, f"{name}."), x, time)
    close(videos_of(module(frames_of(x), time.repeat_interleave(FRAMES, 0))), expected)
    single = torch.cat([resnet(below(original.p, f"{name}."), x[:, :, f : f + 1], time) for f in range(FRAMES)], 2)
    assert (single - expected).abs().max() > 0.05 * expected.abs().max(), "frame by frame, as diffusers would"


def test_2_so_does_the_last_norm_and_no_other(adapter, original):
    unet, x = adapter.denoiser, video(16)
    close(videos_of(unet.conv_norm_out(frames_of(x))), grouped(original.p, "conv_norm_out", x, 1e-5))
    kinds = {name: type(module) for name, module in unet.named_modules() if isinstance(module, torch.nn.GroupNorm)}
    pooled = {name for name, kind in kinds.items() if kind is OverFrames}
    assert pooled == {name for name in kinds if ".resnets." in name or name == "conv_norm_out"}
    assert {name for name, kind in kinds.items() if kind is torch.nn.GroupNorm} == {name for name in kinds if ".attentions." in name}


@torch.no_grad()
@pytest.mark.parametrize("block", ["mid_block.attentions.0", "up_blocks.1.attentions.1"])
def test_3_the_conditional_branch_sees_the_reference(block, adapter, original):
    module: Any = adapter.denoiser.get_submodule(block)
    generator, channels = torch.Generator().manual_seed(3), module.in_channels
    x, text = video(channels, rows=4), torch.randn(4, 5, 32, generator=generator)
    bank = torch.randn(2, 16, channels, generator=generator)
    told = {"reference": {f"{block}.transformer_blocks.0": bank}}
    out = module(frames_of(x), text.repeat_interleave(FRAMES, 0), cross_attention_kwargs=told, return_dict=False)[0]
    expected = pictured(below(original.p, f"{block}."), x, text, [None, None, bank[0], bank[1]])
    close(videos_of(out), expected)
    half = module(frames_of(x[2:]), text[2:].repeat_interleave(FRAMES, 0), cross_attention_kwargs=told, return_dict=False)[0]
    close(videos_of(half), expected[2:])
    alone = pictured(below(original.p, f"{block}."), x[2:], text[2:], [None, None])
    assert (alone - expected[2:]).abs().max() > 0.01 * expected.abs().max()


@torch.no_grad()
def test_3_layers_are_called_once_with_all_rows(adapter, jobs, conditions):
    """So that the halves of what they read are the guidance branches."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    hooks = [
        adapter.denoiser.get_submodule(f"{name}.{layer}").register_forward_pre_hook(
            lambda _, args, layer=layer: seen.setdefault(layer, []).append(tuple(args[0].shape))
        )
        for layer in ("to_q", "to_k", "to_v")
    ]
    adapter.denoise(jobs, conditions)
    for hook in hooks:
        hook.remove()
    rows = 2 * 2 * FRAMES
    assert seen == {"to_q": [(rows, 16, 16)] * 2, "to_k": [(rows, 32, 16)] * 2, "to_v": [(rows, 32, 16)] * 2}


def test_3_blocks_are_paired_as_in_the_original(outlined):
    """By width, the widest first, stable: of both UNets of Stable Diffusion that gives the same names."""
    encoder = outlined.architecture.encoder()
    sizes = []
    for unet in (outlined.denoiser, encoder.unet):
        sizes.append([(name, unet.get_submodule(name).norm1.normalized_shape[0]) for name in readers(unet)])
    paired = [sorted(found, key=lambda pair: -pair[1]) for found in sizes]
    assert paired[0] == paired[1] and [width for _, width in paired[0]] == [1280] * 4 + [640] * 3 + [320] * 3
    assert paired[0][0][0] == "mid_block.attentions.0.transformer_blocks.0" and encoder.names == readers(outlined.denoiser)
    blocks = {processor.block for processor in outlined.denoiser.attn_processors.values() if isinstance(processor, ReferenceAttention)}
    assert blocks == {*encoder.names, ""}


@torch.no_grad()
def test_3_what_the_appearance_encoder_lacks_does_not_matter(adapter, original):
    generator = torch.Generator().manual_seed(4)
    latents, text = torch.randn(2, 4, 4, 4, generator=generator), torch.randn(2, 5, 32, generator=generator)
    found = adapter.guides.appearance(latents, torch.tensor(321), text)
    expected = original.banks(latents, 321, text)
    assert found.keys() == expected.keys() and len(found) == 3
    for name, tokens in expected.items():
        close(found[name], tokens)


def test_4_the_scheduler_is_that_of_its_pipeline():
    """Its configuration says linear betas, and its pipeline replaces clip_sample and steps_offset."""
    told = described(NAME).options["scheduler"]
    assert told == {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False, "steps_offset": 1}
    config = {"_class_name": "DDIMScheduler", **told}
    scheduler = scheduler_of("ddim", config)
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == list(range(961, 0, -40))
    torch.testing.assert_close(scheduler.alphas_cumprod, torch.from_numpy(np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))).float())
    x, noise = torch.full((1,), 30.0), torch.full((1,), 0.5)
    a, b = float(scheduler.alphas_cumprod[961]), float(scheduler.alphas_cumprod[921])
    expected = b**0.5 * (30 - (1 - a) ** 0.5 * 0.5) / a**0.5 + (1 - b) ** 0.5 * 0.5  # a clean sample beyond 1 stays
    assert scheduler.step(noise, 961, x, return_dict=False)[0].item() == pytest.approx(expected, rel=1e-5)


def test_4_a_model_that_says_nothing_of_the_scheduler_has_that_one(adapter):
    """What it leaves out is the original's, since diffusers would take other betas."""
    usual, bare = described(NAME), described(NAME, options={})
    assert Options.of(bare) == Options.of(usual) and Options.of(usual).scheduler == usual.options["scheduler"]
    some = Options.of(described(NAME, options={"scheduler": {"steps_offset": 0}})).scheduler
    assert some == {**usual.options["scheduler"], "steps_offset": 0}
    assert not adapter.model.options and adapter.scheduler.config.beta_start == 0.00085 and adapter.scheduler.config.steps_offset == 1


@torch.no_grad()
def test_5_latents_of_the_reference_are_the_mean_of_the_posterior(adapter, original, conditions, jobs, home):
    expected = original.latents(np.asarray(Image.open(home / "image-0.png")), SIDE)
    close(conditions[0]["latents"][None], expected)
    posterior = original.vae.encode(torch.zeros(1, 3, SIDE, SIDE)).latent_dist
    assert posterior.std.max() > 0.01, "a draw would differ"
    again = adapter.encode(jobs[:1])[0]["latents"]
    assert torch.equal(again, conditions[0]["latents"])
    decoded = original.vae.decode(expected / 0.18215).sample.clamp(-1, 1)
    frames = next(adapter.decode(expected[:, :, None]))
    assert np.abs(frames[0] - ((decoded[0].permute(1, 2, 0) + 1) * 127.5).numpy()).max() < 0.51


# --- all of it


@torch.no_grad()
def test_latents_are_those_of_the_reference_implementation(adapter, original, jobs, conditions, latents):
    assert adapter.clock.layout == "batched_reversed" and latents.shape == (2, 4, FRAMES, 4, 4) and latents.dtype == torch.float32
    poses = torch.from_numpy(np.stack([np.asarray(Image.open(jobs[1].inputs["pose"] / f"{f}.png")) for f in range(FRAMES)]))
    noise = initial_noise(jobs[1], (4, FRAMES, 4, 4))[None]
    image, text = original.latents(np.asarray(Image.open(jobs[1].inputs["image"])), SIDE), conditions[1]["text"][None]
    expected = original.sample(noise, CASE.steps, CASE.guidance, image, poses.permute(0, 3, 1, 2) / 255, text)
    close(latents[1:], expected)


def test_the_text_is_empty_and_inputs_count(adapter, jobs, conditions, latents):
    other = dataclasses.replace(jobs[0], prompt="something else")
    assert all(torch.equal(value, conditions[0][name]) for name, value in adapter.encode([other])[0].items())
    alone = adapter.denoise(jobs[:1], conditions[:1])
    torch.testing.assert_close(alone, latents[:1], atol=1e-4, rtol=1e-4)
    for name in ("latents", "pose"):
        told = {**conditions[0], name: conditions[1][name]}
        assert (adapter.denoise(jobs[:1], [told]) - alone).abs().max() > 0.01 * alone.abs().max()


def test_without_guidance_there_is_the_conditional_branch_alone(home, adapter, jobs, conditions):
    free = CASE.adapter(NAME, home, sampler={"guidance": 1.0})
    assert free.clock.layout == "embedded"
    seen: list[int] = []
    free.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = free.denoise(jobs, conditions)
    assert seen == [2, 2]
    recorder = CallRecorder(adapter.clock)
    with recorder.attached(adapter.denoiser):
        recorder.begin()
        adapter.denoise(jobs, conditions)
    first = recorder.recorded().calls[0]
    both = adapter.denoiser(*first.args)
    x, t, text, *told = first.args
    assert torch.equal(x[:2], x[2:]) and first.branch == "both_reversed"
    close(adapter.denoiser(x[2:], t, text[2:], *told), both[2:])
    assert (both[2:] - both[:2]).abs().max() > 1e-2 * both.abs().max() and torch.isfinite(found).all()


@pytest.mark.parametrize("offload", ["stages", "layers"])
def test_one_part_at_a_time(offload, home, adapter, jobs, conditions, latents):
    free = CASE.adapter(NAME, home, offload=offload)
    again = free.encode(jobs)
    assert set(free._loaded) == {"encoder", "decoder"}, "its VAE makes what it is told"
    for part in ("encoder", "decoder"):
        free.release(part)
    assert all(torch.equal(again[i][key], value) for i, one in enumerate(conditions) for key, value in one.items())
    assert torch.equal(free.denoise(jobs, again), latents) and set(free._loaded) == {"denoiser", "guides"}
    free.release("denoiser")
    assert not free._loaded
    assert all(np.array_equal(a, b) for a, b in zip(free.decode(latents), adapter.decode(latents), strict=True))


@pytest.mark.parametrize("name", ["heun", "dpmpp", "euler", "pndm"])
def test_other_samplers(name, home, adapter, jobs, conditions, latents):
    other = CASE.adapter(NAME, home, sampler={"name": name, "steps": 3})
    other._loaded = adapter._loaded
    made = other.denoise(jobs[:1], conditions[:1])
    assert torch.isfinite(made).all() and not torch.equal(made, latents[:1]) and other.clock.step == other.clock.steps


@pytest.mark.parametrize(("dtype", "share"), [("float16", 1e-3), ("bfloat16", 0.05)])
def test_half_precision(dtype, share, home, jobs, latents):
    half = CASE.adapter(NAME, home, dtype=dtype)
    assert {parameter.dtype for parameter in half.denoiser.parameters()} == {getattr(torch, dtype)}
    made = half.denoise(jobs[:1], half.encode(jobs[:1]))
    assert made.dtype == torch.float32 and 0 < (made - latents[:1]).square().sum() < share * latents[:1].square().sum()


def test_weights_may_be_pickled_as_in_the_original_layout(home, adapter, jobs, conditions, latents, tmp_path):
    """Motion modules alone, Stable Diffusion's UNet as .bin, which is what the original reads, and networks in folders of their own."""
    from shutil import copytree

    copytree(home / NAME, tmp_path / "copy")
    checkpoint, unet = tmp_path / "copy" / CHECKPOINT, tmp_path / "copy/stable-diffusion-v1-5/unet"
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    still = {name.removeprefix("module."): value for name, value in saved.items() if ".motion_modules." not in name}
    torch.save({name: value for name, value in saved.items() if ".motion_modules." in name}, checkpoint)
    torch.save(still, unet / "diffusion_pytorch_model.bin")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    asset = {"gigabytes": 0.001, "licence": "none", "files": ["*"]}
    places = {"magicanimate": "MagicAnimate", "pipeline": "stable-diffusion-v1-5", "vae": "sd-vae-ft-mse"}
    assets = [{**asset, "part": part, "source": str(tmp_path / "copy" / name)} for part, name in places.items()]
    apart = MagicAnimate(CASE.model(NAME, home / NAME, weights=None, assets=assets), CASE.sampler(), "cpu")
    assert torch.equal(apart.denoise(jobs, conditions), latents)
    (unet / "diffusion_pytorch_model.bin").unlink()
    lost = CASE.adapter(NAME, home, weights=str(tmp_path / "copy"))
    with pytest.raises(ConfigError, match=r"unet/diffusion_pytorch_model.safetensors cannot be read as a checkpoint \(.*\); fetch the rel"):
        _ = lost.denoiser


def test_the_unet_of_images_is_not_asked_for_where_the_checkpoint_is_whole(home, jobs, conditions, latents, tmp_path):
    from shutil import copytree

    copytree(home / NAME, tmp_path / "copy")
    (tmp_path / "copy/stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors").unlink()
    whole = CASE.adapter(NAME, home, weights=str(tmp_path / "copy"), files=list(described(NAME).files))
    whole.model.check()
    assert torch.equal(whole.denoise(jobs, conditions), latents)


def test_a_cell_from_the_released_layout(home, adapter, tmp_path, monkeypatch):
    """The whole way, offline: calibration, QVD at W8A8, latents, videos, the full-precision reference, the record."""
    import vdqbench

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, suffix in (("image", ".png"), ("pose", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"0{suffix}").symlink_to(home / f"{name}-0{suffix}")
    given = f"{{image: {tmp_path / 'image'}, pose: {tmp_path / 'pose'}}}"
    (record,) = vdqbench.run(
        [
            *(f"model={NAME}", f"model.weights={home / NAME}", "model.dtype=float32", "model.offload=stages"),
            *("model.call={num_frames:4,height:32,width:32}", "sampler.steps=2", "metric=[system]"),
            *("method=qvd", "bits=w8a8", "method.transform.scri.points=3"),
            *("prompts=list", "prompts.texts=[first]", f"prompts.inputs={given}"),
            *("prompts@calibration.prompts=list", "calibration.prompts.texts=[second]", f"calibration.prompts.inputs={given}"),
            *(f"out={tmp_path / 'results'}", "device=cpu", "quiet=true"),
        ]
    )
    assert record.state == "done", record.reason
    assert record.quantization["quantized_layers"] == len(adapter.layers()) and len(record.videos) == 1
    assert record.quantization["unmatched"] == []


# --- what does not fit


def test_poses_must_be_as_many_as_frames(adapter, jobs, tmp_path):
    for have, fix in (
        (3, "give as many, or set model.call.num_frames=3$"),
        (5, "give as many, or set model.call.num_frames=5$"),
        (17, "cut it to as many, since windows, which the original averages for more than 16, are not supported$"),
    ):
        folder = tmp_path / str(have)
        folder.mkdir()
        for f in range(have):
            Image.new("RGB", (8, 8)).save(folder / f"{f}.png")
        with pytest.raises(ConfigError, match=rf"{have} has {have} frames where model.call.num_frames=4; {fix}"):
            adapter.encode([dataclasses.replace(jobs[0], inputs={**jobs[0].inputs, "pose": folder})])
    with pytest.raises(ConfigError, match=r"prompt 0000 comes without its pose; give one for each prompt as prompts.inputs.pose"):
        adapter.encode([dataclasses.replace(jobs[0], inputs={"image": jobs[0].inputs["image"]})])


@pytest.mark.parametrize(
    ("changes", "sampler", "said"),
    [
        ({"call": {"num_frames": 32, "height": 64, "width": 64}}, {}, r"num_frames=32 of tiny_magicanimate must be at most 16: windows"),
        ({"call": {"num_frames": 4, "height": 60, "width": 64}}, {}, r"model.call.height=60 must be a positive multiple of 8"),
        ({"call": {"num_frames": 4, "height": 64}}, {}, r"model.call.width=None"),
        ({"call": {"frames": 4}}, {}, r"model.call.frames is not asked of tiny_magicanimate \(did you mean num_frames"),
        ({"options": {"sheduler": {}}}, {}, r"model.options.sheduler is not an option of tiny_magicanimate \(did you mean scheduler"),
        ({}, {"guided_channels": 5}, r"sampler.guided_channels=5 must lie in 1..4"),
        ({}, {"name": "flow_euler"}, r"sampler.name=flow_euler does not fit a model that predicts noise"),
        ({"weights": "/nowhere"}, {}, r"/nowhere/unet/config.json is missing or not JSON; .* put the released one there"),
    ],
)
def test_what_does_not_fit_is_refused(changes, sampler, said, home):
    with pytest.raises(ConfigError, match=said):
        CASE.adapter(NAME, home, sampler=sampler, **changes)


def test_a_vae_of_another_size_is_refused(home, jobs, tmp_path):
    from shutil import copytree

    copytree(home / NAME, tmp_path / "copy")
    ends = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, **ends).save_pretrained(tmp_path / "copy" / "sd-vae-ft-mse")
    with pytest.raises(ConfigError, match="makes 2 pixels of a latent where 8 are wanted; give sd-vae-ft-mse"):
        CASE.adapter(NAME, home, weights=str(tmp_path / "copy")).encode(jobs[:1])


# --- its full size


def test_full_size_without_weights(outlined):
    """UNetMotionModel of Stable Diffusion without a motion module in the middle: 98 convolutions, 424 linears, 1276.66 M."""
    layers = outlined.layers()
    kinds = [type(outlined.denoiser.get_submodule(name)) for name in layers]
    assert (kinds.count(torch.nn.Conv2d), kinds.count(torch.nn.Linear)) == (98, 424)
    parameters = sum(parameter.numel() for parameter in outlined.denoiser.parameters())
    assert parameters == described(NAME).parameters == 1_276_658_564 and all(one.is_meta for one in outlined.denoiser.parameters())
    roles = list(layers.values())
    assert roles.count("temporal_attn.q") == 40 and roles.count("self_attn.k") == 16 == roles.count("cross_attn.v")
    assert roles.count("time_proj") == 22 and {roles.count("embed"), roles.count("head")} == {1}
    guides = outlined.architecture.encoder(), outlined.architecture.controlnet()
    assert [sum(parameter.numel() for parameter in guide.parameters()) for guide in guides] == [857_066_560, 361_279_120]


def test_costs_of_the_conditional_branch(outlined):
    """Those of the UNet alone (8.8375 T, of diffusers' class), and of what its keys and values read and attend to besides."""
    operations = count(outlined.denoiser, **outlined.example())
    widths = [(64, 1280), *[(256, 1280)] * 3, *[(1024, 640)] * 3, *[(4096, 320)] * 3]
    more = sum(16 * (2 * tokens * width**2 + 2 * tokens**2 * width) for tokens, width in widths)
    found, read = sum(one.macs for one in operations), sum(16 * 2 * tokens * width**2 for tokens, width in widths)
    assert found == pytest.approx(8.8375e12 + more, rel=1e-4) and found == pytest.approx(9.550e12, abs=5e8)
    assert found - more + read == pytest.approx(8.962e12, abs=5e8), "of the other branch, which reads them and does not attend to them"
    assert pytest.approx(8.948, abs=5e-4) == 9735 / (32 * 32 + 32 + 32), "of the paper, in T"
    assert isinstance(outlined.denoiser, AnimationUNet) and isinstance(outlined.denoiser, UNetMotionModel)
    assert outlined.architecture == Architecture()
