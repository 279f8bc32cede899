"""Every adapter on a tiny checkpoint of its own: it generates what its pipeline generates, is calibrated and quantized, part by part."""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from builders import CASES, PIPELINES, Case, described, ltx_vae, sparsectrl
from PIL import Image
from safetensors.torch import load, save

from vdqbench import shapes
from vdqbench.calibrate import Calibration, calibrate
from vdqbench.config import CONF
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.inputs import Input
from vdqbench.models.base import Job, initial_noise
from vdqbench.models.blueprint import Blueprint
from vdqbench.models.pipeline import PipelineAdapter, decoded
from vdqbench.quant.macs import count
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe
from vdqbench.replay import CallRecorder, Calls

PROMPTS = ("a red circle moving right on a dark background", "a blue square growing on a light background")
RECIPES = {"cw_tw": 1, "tsq": 2, "dynamic": 1}
"""Method and its ranges."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("models")
    frames = shapes.render(shapes.scenes("eval")[:1], 0, np.array([0]))[0]
    (made / "pose").mkdir()
    for name, frame in {"sketch": frames[0], "image": frames[8], **{f"pose/{i}": frames[i] for i in range(4)}}.items():
        Image.fromarray(frame).save(made / f"{name}.png")
    return made


@pytest.fixture(scope="module")
def loaded(folder):
    """The adapter of a case, everything loaded once."""

    @cache
    def load(name: str) -> Any:
        return CASES[name].adapter(name, folder)

    return load


def jobs_of(case: Case, folder: Path) -> list[Job]:
    inputs = {name: folder / ("pose" if name == "pose" else f"{name}.png") for name in case.inputs}
    return [Job(f"{i:04d}", prompt, 5, inputs) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def made(folder, loaded):
    """Conditions, latents and videos of two jobs, made as one batch."""

    @cache
    def make(name: str) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor, list[np.ndarray]]:
        adapter, jobs = loaded(name), jobs_of(CASES[name], folder)
        conditions = adapter.encode(jobs)
        latents = adapter.denoise(jobs, conditions)
        return conditions, latents, list(adapter.decode(latents))

    return make


def official(case: Case, adapter: PipelineAdapter, job: Job, latents: torch.Tensor) -> np.ndarray:
    """The video of a job as diffusers makes it, with all parts loaded and the same noise."""
    parts: dict[str, Any] = {asset.part: asset.where.folder for asset in adapter.model.assets}
    given: dict[str, Any] = {}
    if "motion_adapter" in parts:
        given["motion_adapter"] = diffusers.MotionAdapter.from_pretrained(parts["motion_adapter"])
        given["controlnet"] = diffusers.SparseControlNetModel.from_pretrained(parts["controlnet"])
    pipe = adapter.blueprint.kind.from_pretrained(parts.get("pipeline", adapter.model.folder), **given)
    pipe.scheduler = type(adapter.pipe.scheduler).from_config(adapter.pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    case.shrink(pipe)
    known = inspect.signature(pipe.__call__).parameters
    call = {key: value for key, value in adapter.call.items() if key in known}
    if "video_length" in known:
        call["video_length"] = adapter.call["num_frames"]
    if job.inputs:
        call["conditioning_frames"] = [Image.open(job.inputs["sketch"])]
    if "guidance_scale" in known:
        call["guidance_scale"] = case.guidance
    else:
        pipe.guider = diffusers.ClassifierFreeGuidance(guidance_scale=case.guidance)
    noise = initial_noise(job, tuple(latents.shape[1:]))[None]
    made = pipe(prompt=job.prompt, num_inference_steps=case.steps, latents=noise, output_type="np", **call)
    return np.asarray(made.frames[0])


@pytest.mark.parametrize("name", PIPELINES)
def test_generates_what_its_pipeline_generates(name, folder, loaded, made):
    adapter, case = loaded(name), CASES[name]
    assert adapter.clock.layout == case.layout
    conditions, latents, videos = made(name)
    expected = official(case, adapter, jobs_of(case, folder)[0], latents)
    assert videos[0].dtype == np.uint8 and videos[0].shape == expected.shape == (adapter.call["num_frames"], *videos[0].shape[1:])
    assert videos[0].shape[1:] == (adapter.call["height"], adapter.call["width"], 3)
    assert np.abs(videos[0] - 255.0 * expected).max() < 0.51  # rounding, and batches of two instead of one
    assert videos[0].std() > 5 and all(value.device.type == "cpu" for value in conditions[0].values())


@pytest.mark.parametrize("name", CASES)
def test_depends_on_prompt_and_seed_and_not_on_the_batch(name, folder, loaded, made):
    adapter, jobs = loaded(name), jobs_of(CASES[name], folder)
    conditions, latents, _ = made(name)
    alone = adapter.denoise(jobs[1:], adapter.encode(jobs[1:]))
    torch.testing.assert_close(alone[0], latents[1], atol=1e-4, rtol=1e-4)
    assert torch.equal(adapter.denoise(jobs[1:], conditions[1:]), alone)
    changed = {"prompt": PROMPTS[0]} if CASES[name].prompted else {"inputs": {**jobs[1].inputs, "image": folder / "sketch.png"}}
    other = dataclasses.replace(jobs[1], **changed)
    told = adapter.denoise([other], adapter.encode([other]))
    assert (told - alone).abs().max() > 1e-3  # the same noise, told something else
    again = dataclasses.replace(jobs[1], seed=6)
    assert (adapter.denoise([again], conditions[1:]) - alone).abs().max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_conditions_can_be_kept_in_files(name, folder, loaded, made):
    conditions, latents, _ = made(name)
    kept = [load(save(one)) for one in conditions]
    assert all(torch.equal(kept[i][key], value) for i, one in enumerate(conditions) for key, value in one.items())
    assert torch.equal(loaded(name).denoise(jobs_of(CASES[name], folder), kept), latents)


@pytest.mark.parametrize("name", PIPELINES)
def test_one_part_at_a_time(name, folder, made):
    offload = "layers" if name in ("hunyuan", "animatediff") else "stages"
    adapter = CASES[name].adapter(name, folder, offload=offload)
    conditions, latents, videos = made(name)

    def alive() -> set[str]:
        modules = {key: value for key, value in adapter.pipe.components.items() if isinstance(value, torch.nn.Module)}
        return {key for key, value in modules.items() if value.device.type != "meta"}

    jobs = jobs_of(CASES[name], folder)
    assert alive() == set()
    again = adapter.encode(jobs)
    assert alive() and all(part.startswith("text_encoder") for part in alive())
    assert all(torch.equal(again[i][key], value) for i, one in enumerate(conditions) for key, value in one.items())
    assert torch.equal(adapter.denoise(jobs, again), latents)
    assert alive() and alive() <= {"transformer", "transformer_2", "unet", "controlnet"}
    adapter.release("denoiser")
    assert all(np.array_equal(a, b) for a, b in zip(adapter.decode(latents), videos, strict=True))
    assert alive() == {"vae"}
    adapter.release("decoder")
    assert alive() == set()


def recipe(name: str, steps: int, weight: int = 8, activation: int = 8, **changes: Any) -> Recipe:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"method": OmegaConf.load(CONF / "method" / f"{name}.yaml")})
    if "ranges" in config.method:
        config.method.ranges = RECIPES[name]
    config.method.activation.update(changes)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return Recipe.from_config(plain["method"], {"weight": weight, "activation": activation}, steps)


@pytest.fixture(scope="module")
def calibrated(folder, loaded):
    @cache
    def run(name: str) -> tuple[Calibration, CallRecorder]:
        adapter, calls = loaded(name), CallRecorder(loaded(name).clock)
        jobs = [dataclasses.replace(job, prompt_id=f"calib-{job.prompt_id}") for job in jobs_of(CASES[name], folder)]
        runs = [lambda job=job: adapter.denoise([job], adapter.encode([job])) for job in jobs]
        return calibrate(adapter.denoiser, adapter.layers(), runs, adapter.clock, calls=calls), calls

    return run


@pytest.mark.parametrize("name", CASES)
def test_calibrated_and_quantized(name, folder, loaded, made, calibrated, tmp_path):
    adapter, jobs = loaded(name), jobs_of(CASES[name], folder)
    conditions, latents, _ = made(name)
    calibration, calls = calibrated(name)
    assert calibration.steps == adapter.clock.steps and set(calibration.source) == set(adapter.layers())
    size = latents.square().sum()
    for method in RECIPES:
        errors = {}
        for bits in (8, 3) if method == "cw_tw" else (8,):
            chosen = recipe(method, calibration.steps, bits, bits)
            with quantize(adapter.denoiser, adapter.layers(), chosen, calibration, adapter.clock, anatomy=adapter.anatomy()) as model:
                out = adapter.denoise(jobs[:1], conditions[:1])
                report = model.report()
            assert torch.isfinite(out).all() and report["quantized_layers"] > 0 and report["unmatched"] == []
            errors[bits] = float((out - latents[:1]).square().sum() / size)
        assert 0 < errors[8] < 0.03 and errors[8] < errors.get(3, 1), f"{method}: relative squared errors {errors}"
    assert torch.equal(adapter.denoise(jobs, conditions), latents)
    # the calls that were kept survive a file and can be made again
    calls.recorded().save(tmp_path / "calls.safetensors")
    recorded = Calls.load(tmp_path / "calls.safetensors")
    assert len(recorded.at(1, 0)) == (2 if adapter.clock.layout == "two_pass" else 1)
    call = recorded.at(1, recorded.steps - 1)[-1]
    assert torch.isfinite(call.repeat(adapter.denoiser, adapter.clock, recorded.steps)[0]).all()


@pytest.mark.parametrize("name", CASES)
def test_costs_are_known_without_weights(name, folder, loaded):
    adapter = loaded(name)
    outline = CASES[name].adapter(name, folder, "meta")
    assert outline.denoiser.device.type == "meta" and outline.layers() == adapter.layers()
    operations = count(outline.denoiser, **outline.example())
    assert operations == count(adapter.denoiser, **adapter.example())
    counted = {one.name for one in operations if one.kind != "matmul"}
    resting = {layer for layer in adapter.layers() if layer.startswith("transformer_2.")}  # the other network costs the same
    assert counted == set(adapter.layers()) - resting
    assert len(outline.anatomy().blocks) > 1 and all(outline.denoiser.get_submodule(block) for block in outline.anatomy().blocks)


def test_statistics_tell_the_guidance_branches_apart(made, calibrated, loaded):
    """Keys of the text's attention read the embeddings themselves, which in these pipelines come with the unconditional ones first."""
    conditions = loaded("animatediff").encode([Job("calib-0000", PROMPTS[0], 5)])[0]
    (layer, *_) = (name for name, role in loaded("animatediff").layers().items() if role == "cross_attn.k")
    found = calibrated("animatediff")[0].statistics(layer)
    for i, key in enumerate(("prompt_embeds", "negative_prompt_embeds")):
        torch.testing.assert_close(found["max"][0, 0, i], conditions[key].amax(0))
        torch.testing.assert_close(found["min"][0, 0, i], conditions[key].amin(0))


@pytest.mark.parametrize("name", ["animatediff", "wan"])
def test_grids_of_the_branches_are_those_of_their_rows(name, folder, loaded, made):
    """Where one branch has small inputs, ranges of its own fit, and would not if the branches were exchanged."""
    adapter, job = loaded(name), jobs_of(CASES[name], folder)[0]
    told = dict(made(name)[0][0])
    told["negative_prompt_embeds"] = 0.02 * told["negative_prompt_embeds"]
    keys = {layer: role for layer, role in adapter.layers().items() if role in ("cross_attn.k", "cross_attn.v")}
    calibration = calibrate(adapter.denoiser, keys, [lambda: adapter.denoise([job], [told])], adapter.clock)
    exact = adapter.denoise([job], [told])
    tensors = {key: {k: v.flip(2) if v.ndim > 3 else v for k, v in one.items()} for key, one in calibration.tensors.items()}

    def error(given: Calibration) -> float:
        chosen = recipe("cw_tw", given.steps, 16, 8, split_branches=True)
        with quantize(adapter.denoiser, keys, chosen, given, adapter.clock):
            return float((adapter.denoise([job], [told]) - exact).square().sum())

    assert error(calibration) < 0.2 * error(dataclasses.replace(calibration, tensors=tensors))


def test_a_scheduler_that_draws_noise(folder, made, loaded):
    adapter = CASES["animatediff"].adapter("animatediff", folder, sampler={"name": "lcm", "steps": 3})
    jobs, conditions = jobs_of(CASES["animatediff"], folder), made("animatediff")[0]
    both = adapter.denoise(jobs, conditions)
    assert torch.equal(adapter.denoise(jobs, conditions), both)
    torch.testing.assert_close(adapter.denoise(jobs[1:], conditions[1:])[0], both[1], atol=5e-4, rtol=1e-3)
    assert adapter.clock.steps == 3


def test_no_guidance_is_one_branch(folder, loaded, made):
    adapter = CASES["animatediff"].adapter("animatediff", folder, sampler={"guidance": 1.0})
    assert adapter.clock.layout == "embedded"
    seen: list[int] = []
    adapter.denoiser.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    adapter.denoise(jobs_of(CASES["animatediff"], folder), made("animatediff")[0])
    assert seen == [2, 2]


def test_a_control_network_that_is_told_latents(folder, tmp_path):
    case = dataclasses.replace(CASES["sparsectrl"], build=partial(sparsectrl, of_latents=True))
    adapter, jobs = case.adapter("rgb", tmp_path, offload="stages"), jobs_of(case, folder)
    first, second = adapter.encode(jobs)
    assert adapter.loaded == {"encoder", "decoder"}  # its VAE makes what it is told
    assert first["conditioning_frames"].shape == (4, 1, 8, 8) and torch.equal(first["conditioning_frames"], second["conditioning_frames"])
    assert torch.equal(adapter.encode(jobs[:1])[0]["conditioning_frames"], first["conditioning_frames"])
    told = adapter.denoise(jobs[:1], [first])
    assert adapter.loaded == {"denoiser"}
    other = {**first, "conditioning_frames": -first["conditioning_frames"]}
    assert torch.isfinite(told).all() and (adapter.denoise(jobs[:1], [other]) - told).abs().max() > 1e-3


def test_a_quantized_denoiser_is_not_released(folder, calibrated):
    adapter = CASES["wan"].adapter("wan", folder, offload="stages")
    with quantize(adapter.denoiser, adapter.layers(), recipe("dynamic", 2), None, adapter.clock):
        with pytest.raises(RuntimeError, match="restore it before it is released"):
            adapter.release("denoiser")
        list(adapter.decode(torch.zeros(1, 16, 2, 4, 4)))  # makes no room at its expense
        assert adapter.denoiser.blocks[0].attn1.to_q.__class__.__name__ == "QuantLinear"
    adapter.release("denoiser")
    assert adapter.pipe.transformer.device.type == "meta"


def test_a_block_linear_without_a_role_is_refused(folder):
    adapter = CASES["wan"].adapter("wan", folder)
    block = adapter.empty["transformer"].blocks[1]
    block.mixer = block.ffn
    del block.ffn
    with pytest.raises(Unsupported, match=r"layer blocks.1.mixer.net.0.proj of WanTransformer3DModel has no role"):
        adapter.layers()


@pytest.mark.parametrize(
    ("changes", "sampler", "message"),
    [
        ({"call": {"height": 32, "width": 32}}, {}, r"model.call.num_frames of tiny_wan is missing"),
        ({"call": {"heigth": 32}}, {}, r"model.call.heigth is not an argument of WanPipeline \(did you mean height"),
        ({"call": {"latents": 1}}, {}, r"model.call.latents is not an argument"),
        ({"options": {"tile": True}}, {}, r"model.options.tile is not an option of a pipeline \(did you mean tiling"),
        ({"options": {"pipeline": "WanPipelin"}}, {}, r"model.options.pipeline: WanPipelin is not a pipeline of diffusers"),
        (
            {"options": {"pipeline": "WanVACEPipeline"}},
            {},
            r"WanVACEPipeline is not a pipeline that can be quantized \(did you mean WanPipeline",
        ),
        ({}, {"guided_channels": 3}, r"sampler.guided_channels=3 cannot be had of tiny_wan: pipelines guide all"),
        ({}, {"name": "ddim"}, r"sampler.name=ddim does not fit a model that predicts a flow"),
        ({"weights": "/nowhere"}, {}, r"/nowhere/model_index.json is missing or not JSON"),
    ],
)
def test_what_does_not_fit_is_refused(changes, sampler, message, folder):
    with pytest.raises(ConfigError, match=message):
        CASES["wan"].adapter("wan", folder, sampler=sampler, **changes)


def test_code_of_a_checkpoint_is_not_run(folder, tmp_path):
    model = CASES["wan"].model("wan", folder / "wan")
    for file in ("scheduler/scheduler_config.json", "vae/config.json", "transformer/config.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text((model.folder / file).read_text())
    index = (model.folder / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace('"transformers",\n    "UMT5EncoderModel"', '"evil",\n    "UMT5EncoderModel"'))
    with pytest.raises(ConfigError, match=r"the part UMT5EncoderModel of evil is no class of diffusers .* its code is not run"):
        Blueprint.of_model(dataclasses.replace(model, weights=str(tmp_path)))


def test_images_need_motion_modules(folder):
    model = CASES["sparsectrl"].model("sparsectrl", folder / "sparsectrl")
    with pytest.raises(ConfigError, match=r"holds a UNet of images; add the part motion_adapter to model.assets"):
        Blueprint.of_model(dataclasses.replace(model, assets=tuple(one for one in model.assets if one.part != "motion_adapter")))
    with pytest.raises(ConfigError, match=r"model.assets says nothing about pipeline"):
        Blueprint.of_model(dataclasses.replace(model, assets=model.assets[1:]))


@torch.no_grad()
def test_an_autoencoder_that_takes_the_last_step_of_denoising():
    vae = ltx_vae(timestep_conditioning=True)
    latents = torch.randn(1, 8, 2, 4, 4)
    call: dict[str, Any] = {"decode_timestep": 0.05, "decode_noise_scale": 0.2}
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(0.8 * latents + 0.2 * noise, torch.tensor([0.05]), return_dict=False)[0]
    torch.testing.assert_close(decoded(vae, latents, call), expected)
    del call["decode_noise_scale"]  # then the timestep says that, too
    expected = vae.decode(0.95 * latents + 0.05 * noise, torch.tensor([0.05]), return_dict=False)[0]
    torch.testing.assert_close(decoded(vae, latents, call), expected)


@pytest.mark.parametrize(("name", "frames"), [("mini_animatediff", 16), ("mini_sparsectrl", 16), ("mini_hunyuan", 17)])
def test_the_packaged_models_are_run_by_the_same_code(name, frames, tmp_path):
    model = described(name)
    told = {name: tmp_path / f"{name}.png" for name in model.inputs}
    for name, path in told.items():
        Image.fromarray(Input(name, caption=PROMPTS[0]).picture()).save(path)
    sampler = {"name": model.samplers[0], "steps": 2, "guidance": model.guidance, "guided_channels": None, "options": {}}
    adapter, job = PipelineAdapter(model, sampler, "cpu"), Job("0000", PROMPTS[0], 0, told)
    conditions = adapter.encode([job])
    exact = adapter.denoise([job], conditions)
    (video,) = adapter.decode(exact)
    assert video.shape == (frames, shapes.SIZE, shapes.SIZE, 3) and adapter.fps == shapes.FPS and video.std() > 5
    with quantize(adapter.denoiser, adapter.layers(), recipe("dynamic", 2), None, adapter.clock) as quantized:
        out = adapter.denoise([job], conditions)
        assert quantized.report()["unmatched"] == []
    assert 0 < (out - exact).square().sum() / exact.square().sum() < 0.01
