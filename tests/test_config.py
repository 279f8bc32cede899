"""Models and samplers as configuration: keys that must stay, what is part of them, and what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from vdqbench.compose import Composer
from vdqbench.config import Cell, Model
from vdqbench.errors import ConfigError, NotHere

ASSET = {"part": "denoiser", "source": "hub:someone/video", "gigabytes": 25.6, "licence": "Apache-2.0", "files": ["x.safetensors"]}


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def model(composer: Composer, **changes: object) -> Model:
    return Model.from_config({**composer.plain(["model=mini_stdit"])["model"], **changes})


@pytest.mark.parametrize(
    "overrides, key, video, statistics",
    [
        (["method=asq", "bits=w8a8"], "445acfba95264a08", "bef4ff819c074334", "421dbf74443226c6"),
        (["method=fp"], "e65c77432176c83a", "44eb65da7fe5ad3b", "421dbf74443226c6"),
        (["method=dynamic", "bits=w4a8", "seeds=2", "sampler=ddim20"], "a6e0a0ea4f44375c", "df86aead21c5ef19", "421dbf74443226c6"),
    ],
)
def test_keys_are_those_of_everybodys_results(composer, overrides, key, video, statistics):
    """They change if shipped weights or a version of an algorithm do, and then every result is made again: not by accident."""
    cell = Cell.from_config(composer.plain(overrides))
    assert (cell.key, cell.video_key(cell.samples[0]), cell.statistics_key) == (key, video, statistics)


def test_what_changes_no_video_is_in_no_key(composer):
    usual = Cell.from_config(composer.plain(["method=asq"]))
    for words in (["model.offload=stages"], ["model.offload=layers"], ["sampler=default"], ["sampler=ddim20"], ["sampler=ddim"]):
        assert Cell.from_config(composer.plain(["method=asq", *words])).key == usual.key, words


@pytest.mark.parametrize("words", ["model.dtype=bfloat16", "+model.call.height=8", "+model.options.a=1", "+sampler.options.a=1"])
def test_what_changes_videos_is_in_the_key(composer, words):
    changed, usual = (Cell.from_config(composer.plain(["method=asq", *one])) for one in ([words], []))
    assert changed.key != usual.key and changed.statistics_key != usual.statistics_key


@pytest.mark.parametrize("sampler, steps", [("ddim", 20), ("heun", 39), ("pndm", 21), ("dpmpp", 20), ("euler", 20)])
def test_recipes_know_the_steps_that_are_really_made(composer, sampler, steps):
    assert Cell.from_config(composer.plain(["method=asq", f"sampler={sampler}"])).recipe.steps == steps


def test_the_scheduler_of_the_models_folder_says_how_often_it_steps(composer, tmp_path):
    (tmp_path / "scheduler").mkdir()
    found = model(composer, weights=str(tmp_path), samplers=["model"])
    sampler = Cell.from_config(composer.plain(["method=fp"])).sampler
    object.__setattr__(sampler, "name", "model")
    assert found.steps_of(sampler) == 20
    for config, steps in (("Heun", 39), ("PNDM", 29), ("DDIM", 20)):
        name = {"Heun": "HeunDiscreteScheduler"}.get(config, f"{config}Scheduler")
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(f'{{"_class_name": "{name}"}}')
        assert model(composer, weights=str(tmp_path), samplers=["model"]).steps_of(sampler) == steps


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dtype": "float8"}, "model.dtype=float8 is not a choice"),
        ({"offload": "all"}, "model.offload=all is not a choice"),
        ({"call": 3}, "model.call=3 must be a mapping"),
        ({"samplers": ["ddmi"]}, "model.samplers has ddmi, which is not a sampler .did you mean ddim"),
        ({"inputs": {"image": "always"}}, "model.inputs.image=always is not a choice"),
        ({"inputs": {"photo": "required"}}, "model.inputs.photo is not an input"),
        ({"assets": [{**ASSET, "size": 3}]}, "model.assets.0.size is not an option"),
        ({"assets": [{"part": "vae"}]}, "model.assets.0.source is missing"),
        ({"assets": [ASSET, ASSET]}, "names a part of mini_stdit twice"),
        ({"assets": {"vae": ASSET}}, "model.assets=.* must be a list"),
    ],
)
def test_a_wrong_model_is_one_sentence(composer, changes, words):
    with pytest.raises(ConfigError, match=words):
        model(composer, **changes)


def test_missing_weights_name_the_command_that_fetches_them(composer, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"denoiser \(hub:someone/video, 25.6 GB, Apache-2.0\).*: run vdqbench prefetch model=mini_stdit$"
    ):
        model(composer, weights=None, assets=[ASSET]).check()
    with pytest.raises(ConfigError, match=r"accept its licence on https://huggingface.co/someone/video, .* and run vdqbench prefetch"):
        model(composer, weights=None, assets=[{**ASSET, "gated": True}]).check()
    with pytest.raises(NotHere, match=r"hub:someone/video, .*: run vdqbench prefetch model=mini_stdit model.weights=hub:someone/video$"):
        model(composer, weights="hub:someone/video").check()
    with pytest.raises(ConfigError, match=r"model.weights of mini_stdit is missing"):
        model(composer, weights=None).check()
    with pytest.raises(ConfigError, match=r"model.assets says nothing about vae"):
        model(composer, weights=None, assets=[ASSET]).where("vae")


def test_parts_may_lie_in_folders_of_their_own(composer, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"x")
    found = model(composer, weights=None, assets=[{**ASSET, "source": str(tmp_path)}])
    found.check()
    assert found.where("denoiser") == tmp_path
    assert list(found.semantic["weights"]["denoiser"]) == ["x.safetensors"]
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks x.safetensors of its denoiser; give the folder that holds it"):
        found.check()


def test_a_sampler_that_does_not_fit_is_refused(composer):
    with pytest.raises(ConfigError, match=r"sampler.name=flow_euler does not fit model=mini_stdit, which is sampled with ddim or"):
        Cell.from_config(composer.plain(["sampler=flow_euler", "method=fp"]))
    with pytest.raises(ConfigError, match=r"sampler.options=3 must be a mapping"):
        Cell.from_config(composer.plain(["sampler.options=3", "method=fp"]))
