"""The command line as a user meets it: help, verbs, wrong use; nothing of it may import torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vdqbench import __version__
from vdqbench.cli import main

HEAVY = ("torch", "diffusers", "open_clip", "pandas", "wandb", "av")


def light(*argv: str) -> subprocess.CompletedProcess:
    """Run the command line in a fresh process, which prints the heavy modules that it imported."""
    code = f"import sys; from vdqbench.cli import main; main({list(argv)!r}); print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "argv", [["--help"], ["list"], ["list", "methods"], ["method=tsqq"], ["method.alpa=1"], ["table=quickstart", "plan=true"]]
)
def test_start_up_is_light(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = light(*argv)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("list", "report", "doctor", "store"):
        assert f"vdqbench {verb} " in text
    assert "table=quickstart" in text


def test_module_and_version():
    result = subprocess.run([sys.executable, "-m", "vdqbench", "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"vdqbench {__version__}\n")


def test_list_shows_one_line_per_option(capsys):
    assert main(["list", "methods"]) == 0
    text = capsys.readouterr().out
    for method in ("fp", "cw_tw", "tsw", "asq", "tsq", "dynamic", "smoothquant", "minmax_dynamic"):
        line = next(line for line in text.splitlines() if line.split()[:1] == [method])
        assert len(line.split()) > 3


WRONG = [
    (["methd=tsq"], ["methd", "method"]),
    (["method=tsqq"], ["method=tsqq", "tsq"]),
    (["method.alpa=0.5"], ["alpa"]),
    (["method.transform.smooth.alpah=0.5"], ["alpah", "alpha"]),
    (["method.transform.smooth.alpha=1.5"], ["alpha", "1.5", "[0, 1]"]),
    (["bits=w1a8"], ["bits=w1a8"]),
    (["bits.weight=1"], ["bits.weight", "1", "2..16"]),
    (["bits.activation=17"], ["bits.activation", "17", "2..16"]),
    (["bits.weight=four"], ["bits.weight", "four"]),
    (["method.ranges=3"], ["ranges", "3", "20"]),
    (["method.ranges=0"], ["ranges", "0"]),
    (["sampler.steps=1"], ["sampler.steps=1"]),
    (["sampler.steps=many"], ["sampler.steps", "many"]),
    (["sampler.name=eulr"], ["sampler.name=eulr", "euler"]),
    (["sampler.name=flow_euler"], ["sampler.name=flow_euler", "mini_stdit", "ddim"]),
    (["prompts=shapes_smal"], ["shapes_smal", "shapes_small"]),
    (["prompts.limit=0"], ["prompts.limit=0"]),
    (["prompts=file"], ["prompts.file=PATH"]),
    (["prompts=file", "prompts.file=/no/such/file"], ["/no/such/file"]),
    (["model=mini_stdt"], ["mini_stdt", "mini_stdit"]),
    (["model=opensora_v1"], ["hub:hpcai-tech/Open-Sora", "run vdqbench prefetch model=opensora_v1"]),
    (["model.weights=/no/such/folder"], ["model.weights", "lacks mini_stdit"]),
    (["seeds=0"], ["seeds=0", "1"]),
    (["batch_size=0"], ["batch_size=0"]),
    (["table=quickstar"], ["quickstar", "quickstart"]),
    (["table=quickstart", "preset=maxi"], ["preset", "maxi"]),
    (["preset=mini"], ["preset=mini", "table"]),
    (["table=quickstart", "method=asq,tsq"], ["table"]),
    (["report_"], ["report_", "report"]),
    (["--frobnicate"], ["--frobnicate"]),
    (["method=tsq", "bits"], ["bits", "key=value"]),
    (["--config-dir", "/no/such/folder", "method=tsq"], ["/no/such/folder"]),
    (["metric=[vqaa]"], ["vqaa"]),
    (["metric.clip.backbone={model: ViT-B-32, weights: /no/such/weights.pt}"], ["/no/such/weights.pt"]),
    (["hydra/launcher=nope"], ["nope"]),
    (["seed=abc"], ["seed='abc'", "int"]),
    (["seeds=1.5"], ["seeds=1.5", "int"]),
    (["out=null"], ["out", "str"]),
    (["quiet=maybe"], ["quiet", "bool"]),
    (["plan=maybe"], ["plan=maybe"]),
    (["method=null"], ["override"]),
    (["method=glob(*)"], ["glob", "list"]),
    (["hydra.foo=1"], ["hydra.foo"]),
    (["~seed"], ["seed is missing"]),
    (["~prompts"], ["prompts must have exactly one of"]),
    (["calibration.prompts=shapes_eval"], ["prompts@calibration.prompts"]),
    (["prompts.texts=5"], ["prompts.texts", "list"]),
    (["prompts=list", "prompts.texts=[a cat]"], ["cat", "was not taught"]),
    (["+foo=1"], ["foo"]),
    (["+kernel.foo=1"], ["kernel.foo"]),
    (["kernel.name=int"], ["kernel.name=int", "sim"]),
    (["+prompts.foo=1"], ["prompts.foo"]),
    (["+metric.foo=1"], ["metric.foo"]),
    (["metric.clip.backbone=5"], ["backbone=5"]),
    (["metric=[clip_evalcrafter]"], ["clip_224.openai", "run vdqbench prefetch 'metric=[clip_evalcrafter]'"]),
    (["device=cdua"], ["device=cdua", "cuda"]),
    (["method.name=a/b"], ["method.name=a/b"]),
    (["--config-dirr", "x"], ["--config-dirr"]),
    (["list", "metods"], ["metods", "metric"]),
    (["report", "nowhere"], ["nowhere"]),
    (["store", "nowhere"], ["nowhere"]),
]


@pytest.mark.parametrize("argv, words", WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_wrong_use_is_one_sentence_and_exit_code_2(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("vdqbench: ") and error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir()), "wrong use must not write anything"


def test_own_configs_with_config_dir_and_search_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "method").mkdir(parents=True)
    source = (Path(__file__).parents[1] / "conf" / "method" / "asq.yaml").read_text()
    (tmp_path / "mine" / "method" / "own.yaml").write_text(source.replace("name: asq", "name: own"))
    for argv in (["--config-dir", "mine", "method=own"], [f"hydra.searchpath=[file://{tmp_path}/mine]", "method=own"]):
        assert main([*argv, "plan=true"]) == 0
        assert "own-w8a8" in capsys.readouterr().out


def test_plan_runs_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["method=cw_tw,tsq", "bits=w8a8,w4a8", "plan=true"]) == 0
    text = capsys.readouterr().out
    for cell in ("cw_tw-w8a8", "cw_tw-w4a8", "tsq-w8a8", "tsq-w4a8"):
        assert cell in text
    assert "4 of 4 cells to run" in text and not list(tmp_path.iterdir())
