"""Videos in three passes: what each is given, what is kept in between, what an interruption costs, and which part is in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_adapter import Parts

from vdqbench import generate
from vdqbench.cli import main
from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.score import batches, build
from vdqbench.store import Store

MODEL = """
name: tiny_parts
adapter: tiny_adapter.Parts
weights: packaged
files: [mini_stdit.json]
guidance: 1.0
clip: {model: mini_clip, weights: packaged}
"""
SMALL = ["model=tiny_parts", "prompts.limit=5", "calibration.prompts.limit=2", "sampler.steps=4", "batch_size=2"]
TEXTS = 5 + 2
"""Prompts of a cell, and of its calibration."""
QUIET = Progress(quiet=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "tiny_parts.yaml").write_text("# tiny" + MODEL)
    Parts.done.clear()
    Parts.broken = None
    generate.unload()
    yield tmp_path
    Parts.broken = None
    generate.unload()


def cell_of(folder: Path, *overrides: str) -> Cell:
    return Cell.from_config(Composer([str(folder / "conf")]).plain([*SMALL, f"out={folder / 'out'}", *overrides]))


def files(folder: Path, kind: str) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (folder / "out" / "store" / kind).rglob("*") if path.suffix in (".mkv", ".safetensors")
    }


def made(folder: Path, *overrides: str) -> int:
    return generate.generate(cell_of(folder, *overrides), Store(folder / "out" / "store"), QUIET)


def test_a_sweep_encodes_each_prompt_once(folder):
    words = ["method=fp,asq", "seeds=2", "sampler.steps=4,6", "metric=[system]", "quiet=true"]
    arguments = [*(word for word in SMALL if "steps" not in word), *words, f"out={folder / 'out'}", "--config-dir", str(folder / "conf")]
    assert main(arguments) == 0
    texts = [text for what, prompts in Parts.done if what == "encode" for text in prompts]
    assert len(texts) == len(set(texts)) == TEXTS == len(files(folder, "condition"))
    assert len(files(folder, "video")) == 2 * 2 * 2 * 5 and not files(folder, "latents")


@pytest.mark.parametrize("method", ["fp", "asq"])
def test_latents_survive_what_stops_decoding(folder, method):
    Parts.broken = "decode"
    with pytest.raises(OSError, match="no decode"):
        made(folder, f"method={method}")
    kept = files(folder, "latents")
    assert len(kept) == 5 and not files(folder, "video")
    Parts.broken = "denoise"
    assert made(folder, f"method={method}") == 0, "nothing was made from noise on"
    assert len(files(folder, "video")) == 5 and not files(folder, "latents")
    assert list((folder / "out" / "store" / "latents").rglob("*.sha256")) == []

    Parts.broken, resumed = None, files(folder, "video")
    for path in (folder / "out" / "store" / "video").rglob("*.mkv"):
        path.unlink()
    assert made(folder, f"method={method}") == 5 and files(folder, "video") == resumed


def test_what_stops_denoising_costs_the_batch_in_flight(folder):
    cell, store, seen = cell_of(folder, "method=asq"), Store(folder / "out" / "store"), []

    def stop(i: int) -> None:
        seen.append(i)
        if i == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate.generate(cell, store, QUIET, stop)
    assert seen == [0, 1, 2, 3] and len(files(folder, "latents")) == 4
    Parts.done.clear()
    assert generate.generate(cell, store, QUIET) == 1
    assert [names for what, names in Parts.done if what == "denoise"] == [["0004-0"]]
    assert len(files(folder, "video")) == 5


def test_a_missing_video_is_made_in_its_own_batch_again(folder):
    cell, store = cell_of(folder, "method=cw_tw"), Store(folder / "out" / "store")
    generate.generate(cell, store, QUIET)
    before = files(folder, "video")
    store.path("video", cell.video_key(cell.samples[2]), ".mkv").unlink()
    Parts.done.clear()
    assert generate.generate(cell, store, QUIET) == 1 and files(folder, "video") == before
    assert [names for what, names in Parts.done if what == "denoise"] == [["0002-0", "0003-0"]]


def test_one_part_at_a_time(folder):
    """Parts itself fails if one is loaded beside another."""
    videos: dict[str, Any] = {}
    for offload in ("none", "stages"):
        Parts.done.clear()
        arguments = [*SMALL, "method=asq,cw_tw", "bits=w4a8", "metric=[system]", "quiet=true", f"model.offload={offload}"]
        assert main([*arguments, f"out={folder / 'out'}", "--config-dir", str(folder / "conf")]) == 0
        videos[offload] = files(folder, "video")
        loads = [part for what, part in Parts.done if what == "load"]
        if offload == "none":
            assert sorted(loads) == ["decoder", "denoiser", "encoder"], "all three stay"
            for path in sorted((folder / "out").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            generate.unload()
        else:
            assert loads == ["encoder", "denoiser", "decoder", "denoiser", "decoder"], "calibration and the first cell share a denoiser"
    assert videos["none"] == videos["stages"]


def test_embeddings_are_those_of_the_prompt_and_model_alone(folder):
    base = cell_of(folder, "method=fp")
    others = {
        words: cell_of(folder, *words)
        for words in (
            ("method=asq", "bits=w4a8"),
            ("method=fp", "seed=3"),
            ("sampler.steps=2", "method=fp"),
            ("method=fp", "batch_size=1"),
            ("method=fp", "model.offload=stages"),
        )
    }
    assert all(base.condition_key(base.samples[1]) == other.condition_key(other.samples[1]) for other in others.values())
    assert base.condition_key(base.samples[0]) != base.condition_key(base.samples[1])
    assert base.condition_key(base.samples[0]) != cell_of(folder, "method=fp", "+model.options.a=1").condition_key(base.samples[0])
    made(folder, "method=fp")
    stored = load_file(Store(folder / "out" / "store").path("condition", base.condition_key(base.samples[1]), ".safetensors"))
    (encoded,) = Parts(base.model, {}, "cpu").encode([generate._job(base, base.samples[1], Store(folder))])
    assert stored.keys() == encoded.keys() and all((stored[name] == encoded[name]).all() for name in stored)


def test_pruning_keeps_what_encoding_made_and_unfinished_latents(folder, capsys):
    arguments = [*SMALL, "method=asq", "metric=[system]", "quiet=true", f"out={folder / 'out'}", "--config-dir", str(folder / "conf")]
    Parts.broken = "decode"
    assert main(arguments) == 1
    store = Store(folder / "out" / "store")
    store.put("condition", "0" * 16, ".safetensors", lambda path: path.write_bytes(b"x"))
    store.put("latents", "0" * 16, ".safetensors", lambda path: path.write_bytes(b"x"))
    assert main(["store", str(folder / "out"), "--prune"]) == 0
    assert len(files(folder, "condition")) == TEXTS and len(files(folder, "latents")) == 5
    Parts.broken = None
    assert main(arguments) == 0
    (record,) = ((path, json.loads(path.read_text())) for path in (folder / "out" / "runs").rglob("record.json"))
    assert record[1]["state"] == "done" and len(record[1]["keys"]["conditions"]) == TEXTS
    capsys.readouterr()
    assert main(["store", str(folder / "out"), "--prune"]) == 0
    assert "deleted 0 files" in capsys.readouterr().out


def test_inputs_reach_the_model_the_keys_and_the_metrics(folder):
    text = (folder / "conf" / "model" / "tiny_parts.yaml").read_text()
    (folder / "conf" / "model" / "tiny_parts.yaml").write_text(text + "inputs: {image: required, sketch: optional}\n")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(2):
        Image.new("RGB", (6 + 2 * i, 4), (9 * i, 0, 0)).save(pictures / f"{i}.png")
    texts = ["prompts=list", 'prompts.texts=["a red circle growing on a dark background","a blue cross moving up on a light background"]']
    shapes = cell_of(folder, "method=fp", *texts, "prompts.inputs.image=shapes")
    given = cell_of(folder, "method=fp", *texts, f"prompts.inputs.image={pictures}")
    with pytest.raises(ConfigError, match=r"prompts.inputs.image is missing"):
        cell_of(folder, "method=fp", *texts)
    assert shapes.statistics_key == given.statistics_key, "calibration has its own inputs"
    for key in ("condition_key", "video_key"):
        assert getattr(shapes, key)(shapes.samples[0]) != getattr(given, key)(given.samples[0])
    assert shapes.key != given.key

    store = Store(folder / "out" / "store")
    assert [generate.generate(one, store, QUIET) for one in (shapes, given)] == [2, 2]
    assert len(files(folder, "condition")) == 4
    assert len(list((folder / "out" / "store" / "input").rglob("*.png"))) == 2, "the two captions' own"

    (batch,) = batches(shapes, None, store)
    assert batch.has("images") and tuple(batch.images.shape) == (2, 32, 32, 3)
    assert [tuple(batch.images.shape) for batch in batches(given, None, store)] == [(1, 4, 6, 3), (1, 4, 8, 3)], "no image is resized"
    assert torch.equal(batch.images[1], torch.from_numpy(shapes.inputs(shapes.samples[1])["image"].picture()))


def test_a_metric_that_needs_an_image_says_so_before_anything_runs(folder):
    options = {"_target_": "vdqbench.metrics.clip.QVDClip", "backbone": {"model": "mini_clip", "weights": "packaged"}, "reference": "image"}
    with pytest.raises(ConfigError, match=r"metric=qvdclip compares with the image .* which prompts=shapes_small has not"):
        build(options, cell_of(folder, "method=fp"))
