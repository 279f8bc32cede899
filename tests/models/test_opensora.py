"""Open-Sora v1.0 from files of the released layout: loading, sampling, quantization, precision; and its full size without weights."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny_opensora
import torch
import yaml
from omegaconf import OmegaConf
from tiny_opensora import CHECKPOINT, SIZES, sampler

from vdqbench.calibrate import calibrate
from vdqbench.config import CONF, Model
from vdqbench.errors import ConfigError
from vdqbench.models.base import Job, initial_noise
from vdqbench.models.ddim import RespacedDDIM, guide
from vdqbench.models.opensora import OpenSora, load_checkpoint
from vdqbench.models.stdit import STDiT
from vdqbench.models.visiting import visiting
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe
from vdqbench.replay import CallRecorder

JOBS = [Job("0000", "A red  circle, growing!", 0), Job("0001", "a blue square", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("opensora")
    tiny_opensora.build(made)
    return made


@pytest.fixture(scope="module")
def adapter(folder):
    return OpenSora(tiny_opensora.model(folder), sampler(), "cpu")


@pytest.fixture(scope="module")
def videos(adapter):
    return list(adapter.generate(JOBS))


def shipped(name: str, **options) -> Model:
    defaults, node = (yaml.safe_load((CONF / file).read_text()) for file in ("model_defaults.yaml", f"model/{name}.yaml"))
    return Model.from_config({**defaults, **node, "options": {**node["options"], **options}})


@pytest.mark.parametrize("name, tokens, scale", [("opensora_v1", 1024, 1.0), ("opensora_v1_256", 256, 0.5)])
def test_full_size_without_weights(name, tokens, scale):
    adapter = OpenSora.outlined(shipped(name))
    assert sum(parameter.numel() for parameter in adapter.denoiser.parameters()) == 759_620_768
    blocks = [role for layer, role in adapter.layers().items() if layer.startswith("blocks.")]
    assert len(blocks) == 364 and len(adapter.layers()) == 371
    assert {role.split(".")[0] for role in blocks} == {"self_attn", "temporal_attn", "cross_attn", "ffn"}
    assert adapter.denoiser.pos_embed.shape == (1, tokens, 1152)
    example = adapter.example()
    assert example["x"].shape[1:] == (4, 16, 2 * tokens**0.5, 2 * tokens**0.5) and example["y"].shape == (1, 1, 120, 4096)
    assert (adapter.architecture["space_scale"], adapter.architecture["time_scale"]) == (scale, 1.0)


def test_fused_layers_have_roles_too(folder):
    names = OpenSora.outlined(shipped("opensora_v1", split_qkv=False)).layers()
    assert sum(layer.startswith("blocks.") for layer in names) == 252, "9 a block"
    assert names["blocks.3.attn.qkv"] == "self_attn.qkv" and names["blocks.27.attn_temp.qkv"] == "temporal_attn.qkv"
    small = tiny_opensora.model(folder)
    apart, together = (OpenSora(model, sampler(), "cpu") for model in (small, tiny_opensora.model(folder, options={"split_qkv": False})))
    conditions = apart.encode(JOBS)
    torch.testing.assert_close(apart.denoise(JOBS, conditions), together.denoise(JOBS, conditions), atol=1e-4, rtol=1e-4)


def test_videos_from_the_released_layout(adapter, videos):
    assert [video.shape for video in videos] == [(2, 32, 32, 3)] * 2 and videos[0].dtype == np.uint8
    assert videos[0].std() > 1 and not np.array_equal(videos[0], videos[1])
    alone = list(adapter.generate(JOBS[1:]))
    assert np.abs(alone[0].astype(int) - videos[1]).max() <= 1, "a video does not depend on its batch"


def test_prompts_are_cleaned_and_padded(adapter):
    first, second = adapter.encode(JOBS)
    assert first["y"].shape == (1, 10, 8) and first["y"].dtype == torch.float32
    assert second["mask"].tolist() == [1] * 4 + [0] * 6, "a, blue, square, end of text"
    same = adapter.encode([Job("x", "a RED <b>circle</b>, growing", 3)])[0]
    assert torch.equal(same["y"], adapter.encode([Job("y", "a red circle, growing", 0)])[0]["y"])


@pytest.mark.parametrize("channels", [3, 4])
def test_guidance_and_null_caption(folder, channels):
    """The unconditional branch sees the first L rows of the learned null caption, L being the prompt's length."""
    adapter = OpenSora(tiny_opensora.model(folder), sampler(guided_channels=channels), "cpu")
    condition, stdit = adapter.encode(JOBS)[1], adapter.stdit
    scheduler, x = RespacedDDIM(), initial_noise(JOBS[1], (4, 2, 4, 4))[None]
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps.tolist():
            conditional = stdit(x, torch.tensor([t]), condition["y"][None, :, :4])
            null = stdit(x, torch.tensor([t]), stdit.y_embedder.y_embedding[None, None, :4])
            x = scheduler.step(guide(conditional, null, 4.0, channels)[:, :4], t, x)
    torch.testing.assert_close(adapter.denoise(JOBS, adapter.encode(JOBS))[1:], x, atol=1e-3, rtol=1e-3)


def test_iddpm_draws_per_job(folder):
    adapter = OpenSora(tiny_opensora.model(folder), sampler(name="iddpm", steps=5), "cpu")
    conditions = adapter.encode(JOBS)
    both = adapter.denoise(JOBS, conditions)
    alone = adapter.denoise(JOBS[1:], conditions[1:])
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)
    assert adapter.clock.step == 5 and (both[0] - both[1]).abs().max() > 0.1
    again = OpenSora(tiny_opensora.model(folder), sampler(name="iddpm", steps=5), "cpu").denoise([Job("0001", "", 1)], conditions[1:])
    assert (again - alone).abs().max() > 0.1, "another seed, other draws"


@pytest.mark.parametrize("method", ["cw_tw", "asq", "dynamic"])
def test_quantized_and_restored(adapter, videos, recorded, method):
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{method}.yaml"))
    recipe = Recipe.from_config(node, {"weight": 8, "activation": 8}, 4)
    statistics, calls = recorded
    parts = {"anatomy": adapter.anatomy(), "calls": lambda: calls}
    with quantize(adapter.denoiser, adapter.layers(), recipe, statistics, adapter.clock, **parts) as model:
        assert model.report()["quantized_layers"] == 26
        made = list(adapter.generate(JOBS))
    error = np.abs(np.stack(made).astype(float) - np.stack(videos)).mean()
    assert 0 < error < 12
    assert all(np.array_equal(a, b) for a, b in zip(adapter.generate(JOBS), videos, strict=True))


@pytest.fixture(scope="module")
def recorded(adapter):
    jobs = [Job("calib-0", "a red square", 9), Job("calib-1", "a dark circle", 9)]
    conditions, calls = adapter.encode(jobs), CallRecorder(adapter.clock)
    runs = [partial(adapter.denoise, [job], [told]) for job, told in zip(jobs, conditions, strict=True)]
    return calibrate(adapter.denoiser, adapter.layers(), runs, adapter.clock, sampler=sampler(), calls=calls), calls.recorded()


@pytest.mark.parametrize("offload", ["stages", "layers"])
def test_offload_changes_no_video(folder, videos, offload):
    adapter = OpenSora(tiny_opensora.model(folder, offload=offload), sampler(), "cpu")
    conditions = adapter.encode(JOBS)
    adapter.release("encoder")
    latents = adapter.denoise(JOBS, conditions)
    adapter.release("denoiser")
    made = list(adapter.decode(latents))
    adapter.release("decoder")
    assert not adapter._loaded
    assert all(np.array_equal(a, b) for a, b in zip(made, videos, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_blocks_visit_the_device_and_go_home(monkeypatch, fails):
    monkeypatch.setattr("vdqbench.models.visiting._moved", lambda values, device: values.clone())  # as if to another device
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    first, homes, away = network[0].weight.data_ptr(), [parameter.data_ptr() for parameter in network[1].parameters()], []

    def look(module, args):
        away.extend(parameter.data_ptr() for parameter in module.parameters())
        if fails:
            raise RuntimeError("out of memory")

    expected = network(torch.ones(1, 2))
    visiting(network, [network[1]], torch.device("cpu"))
    network[1].register_forward_pre_hook(look)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        assert torch.equal(network(torch.ones(1, 2)), expected)
    assert network[0].weight.data_ptr() != first, "what is outside of the blocks stays there"
    assert len(away) == 2 and set(away).isdisjoint(homes)
    assert [parameter.data_ptr() for parameter in network[1].parameters()] == homes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_timesteps_apart(folder, dtype):
    """bfloat16 has no 999: cast, it would be 1000, and both steps alike."""
    adapter = OpenSora(tiny_opensora.model(folder, dtype=dtype), sampler(), "cpu")
    stdit, example = adapter.stdit, adapter.example()
    assert stdit.dtype == getattr(torch, dtype) == adapter.vae.dtype and next(adapter.text.parameters()).dtype == torch.float32
    x = initial_noise(JOBS[0], (4, 2, 4, 4))[None]
    with torch.no_grad():
        at = {t: stdit.t_embedder(torch.tensor([t])) for t in (998, 999, 1000)}
        out = stdit(x, torch.tensor([999]), example["y"])
    assert (at[999] - at[1000]).abs().max() > 0 and (at[999] - at[998]).abs().max() > 0
    reference = OpenSora(tiny_opensora.model(folder), sampler(), "cpu").stdit
    with torch.no_grad():
        exact = reference(x, torch.tensor([999]), example["y"].float())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact, atol=0.05 * exact.abs().max().item(), rtol=0)
    latents = adapter.denoise(JOBS[:1], adapter.encode(JOBS[:1]))
    assert latents.dtype == torch.float32 and next(adapter.decode(latents)).std() > 1


def _meta() -> STDiT:
    with torch.device("meta"):
        return STDiT(input_size=(2, 4, 4), **SIZES)


def test_only_the_two_position_buffers_may_be_missing(folder, tmp_path):
    state = torch.load(folder / CHECKPOINT, weights_only=True)["ema"]
    positions = {name: state.pop(name) for name in ("pos_embed", "pos_embed_temporal")}
    torch.save(state, tmp_path / "flat.pth", _use_new_zipfile_serialization=False)  # as before PyTorch 1.6: cannot be mapped
    stdit = _meta()
    load_checkpoint(stdit, tmp_path / "flat.pth")
    assert not any(tensor.is_meta for tensor in stdit.state_dict().values())
    torch.testing.assert_close(dict(stdit.named_buffers())["pos_embed"], positions["pos_embed"])
    key = "blocks.1.mlp.fc1.weight"
    for change, said in (
        (lambda s: s.pop(key), f"lacks {key}$"),
        (lambda s: s.update(extra=torch.zeros(1)), "has an unknown extra$"),
        (lambda s: s.update({key: torch.zeros(2, 24)}), rf"has {key} \[2, 24\] for \[96, 24\]"),
        (lambda s: s.clear(), "and differs in 5[0-9] more"),
    ):
        wrong = dict(state)
        change(wrong)
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(ConfigError, match=said):
            load_checkpoint(_meta(), tmp_path / "wrong.pth")


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_a_checkpoint_is_run(tmp_path, capsys):
    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        load_checkpoint(_meta(), tmp_path / "evil.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"options": {"splt_qkv": True}}, "splt_qkv is not an option of opensora_v1.*split_qkv"),
        ({"options": {"stdit": {"dept": 3}}}, "stdit.dept.*depth"),
        ({"options": {"text_dtype": "int8"}}, "text_dtype=int8"),
        ({"call": {"num_frames": 2, "height": 40, "width": 32}}, "height=40 must be a positive multiple of 16"),
        ({"call": {"num_frames": 2, "height": 32}}, "width=None"),
        ({"call": {"frames": 2}}, "call.frames.*num_frames"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(changes, said):
    with pytest.raises(ConfigError, match=said):
        OpenSora(tiny_opensora.model("/nowhere", **changes), sampler(), "cpu")


def test_wrong_parts_are_refused(folder):
    narrow = OpenSora(tiny_opensora.model(folder, options={"stdit": {**SIZES, "caption_channels": 16}}), sampler(), "cpu")
    with pytest.raises(ConfigError, match="gives 8 channels where STDiT reads 16"):
        narrow.encode(JOBS)
    with pytest.raises(ConfigError, match=r"sampler.options.eta is not an option of ddim"):
        OpenSora(tiny_opensora.model(folder), sampler(options={"eta": 1.0}), "cpu")


def test_a_cell_from_the_released_layout(folder, tmp_path):
    """The whole way, one part in memory at a time: calibration, W8A8, videos, reference, record."""
    import vdqbench

    (record,) = vdqbench.run(
        [
            *("model=opensora_v1", f"model.weights={folder}", "model.dtype=float32", "model.offload=stages"),
            *("model.call={num_frames:2,height:32,width:32}", *(f"+model.options.stdit.{key}={value}" for key, value in SIZES.items())),
            *("method=asq", "bits=w8a8", "sampler.steps=2", "prompts=list", "prompts.texts=[a red circle,a blue square]"),
            *("prompts@calibration.prompts=list", "calibration.prompts.texts=[a dark circle]"),
            *("metric=[system]", f"out={tmp_path}", "device=cpu", "quiet=true"),
        ]
    )
    assert record.state == "done", record.reason
    assert record.quantization["quantized_layers"] == 26 and len(record.videos) == 2
