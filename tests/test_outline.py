"""Real models without weights: layers, parameters, sizes and operations from their architectures, and the plan that prints them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from vdqbench.cli import main
from vdqbench.compose import Composer
from vdqbench.config import CONF, Cell, Model
from vdqbench.errors import ConfigError
from vdqbench.generate import operations
from vdqbench.outline import Outline, is_real, outline
from vdqbench.quant.parts import build, find
from vdqbench.store import Store

DEFAULTS = yaml.safe_load((CONF / "model_defaults.yaml").read_text())
MODELS = {
    path.stem: Model.from_config({**DEFAULTS, **yaml.safe_load(path.read_text())}) for path in sorted((CONF / "model").glob("*.yaml"))
}
SIM = build(find("kernels", "sim", ""), {})


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def cell(composer: Composer, *words: str) -> Cell:
    return Cell.from_config(composer.plain(list(words)), here=False)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if is_real(model) and not model.unavailable])
def test_lists_tell_the_true_number_of_parameters(name):
    from importlib import import_module

    module, kind = MODELS[name].adapter.rsplit(".", 1)
    adapter = getattr(import_module(module), kind).outlined(MODELS[name])
    assert sum(parameter.numel() for parameter in adapter.denoiser.parameters()) == MODELS[name].parameters
    assert all(parameter.is_meta for parameter in adapter.denoiser.parameters())


@pytest.fixture(scope="module")
def opensora() -> Outline:
    return outline(MODELS["opensora_v1"])


def test_open_sora_has_the_operations_of_its_shapes(opensora):
    tokens, patches, frames, width, text = 16 * 1024, 1024, 16, 1152, 120
    linear = (4 + 4 + 2 + 8) * tokens * width**2 + 2 * text * width**2
    attention = 2 * tokens * (patches + frames + text) * width
    blocks = [one for one in opensora.operations if one.name.startswith("blocks.")]
    assert sum(one.macs for one in blocks if one.kind == "linear") == 28 * linear
    assert sum(one.macs for one in blocks if one.kind == "matmul") == 28 * attention


def test_open_sora_at_four_and_eight_bits(opensora, composer):
    """364 layers of 743,178,240 weights; of W4 the codes take half a byte each, scale and zero point of a row 4 bytes each."""
    recipe = cell(composer, "model=opensora_v1", "method=dynamic", "bits=w4a8").recipe
    made, full = opensora.cost(recipe, SIM), opensora.cost(cell(composer, "model=opensora_v1", "method=fp").recipe, SIM)
    roles = opensora.roles(recipe)
    assert made["quantized_layers"] == 364 == sum(count for count, _ in roles.values())
    assert roles["self_attn.q"] == (28, 28 * 1152**2) and "embed" not in roles
    assert sum(elements for _, elements in roles.values()) == 743_178_240
    assert full["bytes"]["total"] == 2 * 759_620_768
    assert made["bytes"]["total"] == 743_178_240 // 2 + 548_352 * 8 + 2 * (759_620_768 - 743_178_240)
    macs = {kind: sum(one.macs for one in opensora.operations if one.kind == kind) for kind in ("linear", "conv", "matmul")}
    quantized = sum(one.macs for one in opensora.operations if one.kind == "linear" and one.name.startswith("blocks."))
    others = sum(macs.values()) - quantized
    assert full["bops"]["total"] == sum(macs.values()) * (16 * 16 + 32)
    assert made["bops"]["total"] == quantized * (4 * 8 + 12) + others * (16 * 16 + 32)


def test_an_adapter_without_an_outline_says_so():
    with pytest.raises(ConfigError, match="model=opensora_v1 cannot be had without its weights, which MiniSTDiT loads"):
        outline(replace(MODELS["opensora_v1"], adapter=MODELS["mini_stdit"].adapter))


def test_operations_of_a_released_model_are_counted_without_running_it(opensora, tmp_path, monkeypatch):
    model = replace(MODELS["opensora_v1"])
    vars(model)["semantic"] = {"name": "as if its weights were here"}
    monkeypatch.setattr("vdqbench.generate.load_adapter", lambda cell: pytest.fail("its weights were asked for"))
    assert operations(SimpleNamespace(model=model), Store(tmp_path)) == opensora.operations


def test_a_plan_of_dvd_quant_on_hunyuan_video(capsys, tmp_path, monkeypatch):
    """520 layers, modulation among them, as the paper's 3.68 times less memory implies (tests/quant/test_bops.py has the formula)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["model=hunyuan_video", "method=dvd_quant", "bits=w4a4", "plan=true"]) == 0
    said = capsys.readouterr().out
    for words in (
        "hunyuan_video dvd_quant-w4a4: 16 videos, once its weights are here",
        "42.0 GB to fetch: vdqbench prefetch model=hunyuan_video",
        "12,821,012,544 parameters, 548 layers",
        "dvd_quant quantizes 520 layers: modulation 80, ",
    ):
        assert words in said
    assert "missing" in said and not list(tmp_path.iterdir())
    rows = [line.split() for line in said.splitlines() if line.split()[:1] in (["fp"], ["dvd_quant"]) and "x" in line]
    assert rows[0][:2] == ["fp", "0"] and rows[0][4:6] == ["25.642", "1.00x"]
    assert rows[1][:3] == ["dvd_quant", "w4a4", "520"] and rows[1][5:7] == ["6.982", "3.67x"], "scales and zero points here have 32 bits"
    others = {path.stem for path in (CONF / "bits").glob("*.yaml")} - {"w4a4", "w16a16", "fp6_e3m2"}
    assert {row[1] for row in rows[2:]} == others and len(rows) == 2 + len(others)
    assert "not with fp6_e3m2: bits.format=fp_wide has no numbers of 4 bits" in said


def test_a_plan_of_qvd_on_magicanimate(capsys, tmp_path, monkeypatch):
    """The UNet alone, 98 convolutions and 424 linears, at 8 bits as at others; on paper it needs neither image nor pose."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["model=magicanimate", "method=qvd", "bits=w8a8", "plan=true"]) == 0
    said = capsys.readouterr().out
    for words in (
        "magicanimate qvd-w8a8: 16 videos, once its weights are here",
        "hub:zcxu-eric/MagicAnimate",
        "14.2 GB to fetch: vdqbench prefetch model=magicanimate",
        "1,276,658,564 parameters, 522 layers with a role",
        "qvd quantizes 522 layers: embed 1, ",
        "time_proj 22, ",
        "temporal_attn.q 40, ",
    ):
        assert words in said
    rows = {tuple(line.split()[:2]): line.split() for line in said.splitlines() if line.split()[:1] == ["qvd"] and "x" in line}
    assert rows["qvd", "w8a8"][2:6] == ["522", "8", "8", "1.284"] and rows["qvd", "w4a4"][5:7] == ["0.646", "3.95x"]
    assert {bits for _, bits in rows} >= {"w8a8", "w6a8", "w6a6", "mxfp4"} and not list(tmp_path.iterdir())
    assert "fp 0 16 16 2.553 1.00x 2750.3 1.00x" in " ".join(said.split()), "2 bytes each; 9.55 T by 16 x 16 + 32"


def test_a_plan_of_several_cells_keeps_to_their_bits(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["model=opensora_v1_256", "method=fp,cw_tw,dynamic", "bits=w8a8", "plan=true"]) == 0
    said = capsys.readouterr().out
    rows = [line.split()[:3] for line in said.splitlines() if line.split()[:1] in (["fp"], ["cw_tw"], ["dynamic"]) and "x" in line]
    assert rows == [["fp", "0", "16"], ["cw_tw", "w8a8", "364"], ["dynamic", "w8a8", "364"]]
    assert "hub:hpcai-tech/Open-Sora" in said and "cw_tw quantizes 364 layers: self_attn.out 28" in said


def test_a_list_of_models_says_whether_they_can_be_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setattr("vdqbench.verbs.list.width", lambda: 220)
    assert main(["list", "models"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "759.6 M" in lines["opensora_v1"] and "22.4" in lines["opensora_v1"] and "Apache-2.0, MIT" in lines["opensora_v1"]
    assert lines["opensora_v1"].split()[-1] == "missing" and lines["mini_stdit"].split()[-1] == "yes"
    assert "12.8 B" in lines["hunyuan_video"] and "2.2 M" in lines["mini_stdit"]
    assert set(MODELS) <= set(lines)
