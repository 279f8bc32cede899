"""`vdqbench prefetch` against an imitation of the hub and of the web on loopback, in a process of its own as a user runs it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import close_session
from web import COMMIT, Web, serving

from vdqbench.assets import named, of_metrics, unknown
from vdqbench.cli import main
from vdqbench.config import CONF, Asset, Model
from vdqbench.errors import ConfigError
from vdqbench.fetch import located
from vdqbench.score import asset_digests, build

WEIGHTS, CONFIG, OTHER = b"weights" * 5000, b"{}", b"not wanted"
ASSETS = [
    {"part": "denoiser", "source": "hub:acme/tiny", "files": ["config.json", "net/*"], "gigabytes": 0.001, "licence": "MIT"},
    {"part": "vae", "source": "ADDRESS/vae.pth", "files": ["vae.pth"], "gigabytes": 0.001, "licence": "MIT"},
]


@pytest.fixture
def web():
    files = {"config.json": CONFIG, "net/part.safetensors": WEIGHTS, "other.bin": OTHER}
    with serving(Web(files={"/vae.pth": WEIGHTS}, repositories={"acme/tiny": files})) as web:
        yield web


@pytest.fixture
def prefetch(web, tmp_path, monkeypatch, capsys):
    """Runs `vdqbench prefetch model=tiny ...` with the server for the hub; `assets` are those of the model. Returns code and output."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "160")
    for name, value in {
        "ENDPOINT": web.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": web.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def run(*words: str, assets: list[dict] = ASSETS, offline: bool = False, model: str = "tiny") -> tuple[int, str]:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        close_session()
        configured(tmp_path, web, assets)
        code = main(["prefetch", "--config-dir", str(tmp_path / "mine"), f"model={model}", "metric=[system]", *words])
        return code, capsys.readouterr().out

    return run


def configured(folder, web: Web, assets: list[dict] = ASSETS) -> None:
    node = {"name": "tiny", "adapter": None, "assets": [{**one, "source": one["source"].replace("ADDRESS", web.address)} for one in assets]}
    (folder / "mine" / "model").mkdir(parents=True, exist_ok=True)
    (folder / "mine" / "model" / "tiny.yaml").write_text(yaml.safe_dump(node))


def test_fetches_what_is_asked_for_and_runs_offline_afterwards(web, tmp_path):
    """In processes of their own, as a user does it."""
    configured(tmp_path, web)
    homes = {name: str(tmp_path / name.lower()) for name in ("HF_HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **homes, "HF_HUB_DISABLE_XET": "1", "COLUMNS": "160", "HF_ENDPOINT": web.address, "no_proxy": "127.0.0.1"}

    def run(offline: int) -> subprocess.CompletedProcess:
        words = ["prefetch", "--config-dir", str(tmp_path / "mine"), "model=tiny", "metric=[system]"]
        mode = {**environment, "HF_HUB_OFFLINE": str(offline)}
        return subprocess.run([sys.executable, "-m", "vdqbench", *words], env=mode, capture_output=True, text=True, timeout=300)

    done = run(offline=0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("missing") == 2 and "2 assets are there and verified" in done.stdout
    snapshot = tmp_path / "hf_home" / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    assert (snapshot / "net" / "part.safetensors").read_bytes() == WEIGHTS and (snapshot / "config.json").read_bytes() == CONFIG
    assert not (snapshot / "other.bin").exists(), "files that are not asked for are not fetched"
    web.asked.clear()
    again = run(offline=1)
    assert again.returncode == 0 and "everything is there" in again.stdout and not web.asked, again.stdout + again.stderr


def test_a_plan_asks_nothing(prefetch, web):
    code, said = prefetch("plan=true")
    assert code == 0 and said.count("missing") == 2 and "0.00 GB to fetch" in said and not web.asked


def test_a_file_of_the_hub_that_is_not_what_the_hub_says_is_deleted(prefetch, tmp_path):
    assert prefetch()[0] == 0
    (blob,) = (tmp_path / "hub" / "models--acme--tiny" / "blobs").glob(hashlib.sha256(WEIGHTS).hexdigest())
    blob.write_bytes(b"x" * len(WEIGHTS))
    code, said = prefetch()
    assert code == 1 and re.search(r"net/part\.safetensors of hub:acme/tiny has SHA-256 .* and was deleted", said)
    assert prefetch()[0] == 0 and blob.read_bytes() == WEIGHTS


def test_a_stated_hash_counts_besides(prefetch, web):
    known = {"config.json": hashlib.sha256(CONFIG).hexdigest(), "net/part.safetensors": "0" * 64}
    code, said = prefetch(assets=[{**ASSETS[0], "sha256": known}])
    assert code == 1 and "net/part.safetensors of hub:acme/tiny has SHA-256" in said and "0" * 16 in said


def test_what_fails_is_named_and_the_rest_is_fetched(prefetch, web, tmp_path):
    web.gated.add("acme/tiny")
    code, said = prefetch()
    assert code == 1 and "is gated: accept its licence (MIT) there, log in with hf auth login" in said
    assert list((tmp_path / "cache").rglob("vae.pth")), "the other asset is there"
    web.gated.clear()
    code, said = prefetch(assets=[{**ASSETS[0], "source": "hub:acme/nothing"}])
    assert code == 1 and "/acme/nothing has no such repository" in said
    code, said = prefetch(assets=[{**ASSETS[0], "files": ["nowhere.json"]}])
    assert code == 1 and "hub:acme/tiny lacks nowhere.json" in said


def test_without_a_network_it_says_so(prefetch):
    code, said = prefetch(offline=True)
    assert code == 1 and "hub:acme/tiny cannot be fetched (HF_HUB_OFFLINE is set)" in said


def test_one_of_two_files_is_not_a_model(prefetch, web):
    """Of weights in two files one is there: that is not enough, and the other is all that is fetched by the next command."""
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    files = {"one.safetensors": WEIGHTS, "net.safetensors.index.json": json.dumps(index).encode()}
    wanted = [{**ASSETS[0], "files": ["*.safetensors", "*.index.json"]}]
    web.repositories["acme/tiny"] = files
    code, said = prefetch(assets=wanted)
    assert code == 1 and "hub:acme/tiny lacks two.safetensors" in said
    assert "missing" in prefetch("plan=true", assets=wanted)[1]
    web.repositories["acme/tiny"] = {**files, "two.safetensors": WEIGHTS[::-1]}
    web.commit = COMMIT[::-1]
    web.asked.clear()
    assert prefetch(assets=wanted)[0] == 0
    fetched = [path for method, path, _ in web.asked if method == "GET" and "resolve" in path]
    assert fetched == [f"/acme/tiny/resolve/{web.commit}/two.safetensors"]


def test_a_whole_model_from_the_hub(prefetch, web, tmp_path, capsys):
    """Weights named by a repository are fetched by the very command that their absence is answered with, own folders included."""
    web.repositories["acme/tuned"] = {"config.json": CONFIG, "net/part.safetensors": WEIGHTS, "other.bin": OTHER}
    (tmp_path / "mine" / "model").mkdir(parents=True)
    node = {"defaults": ["tiny", "_self_"], "name": "tuned", "weights": "hub:acme/tuned", "files": ["config.json", "net/*"]}
    (tmp_path / "mine" / "model" / "tuned.yaml").write_text(f"# Tiny, tuned\n{yaml.safe_dump(node)}")
    configured(tmp_path, web)
    folders, words = ["--config-dir", str(tmp_path / "mine")], ["model=tuned", "model.weights=hub:acme/tuned"]
    for verb in ([], ["inspect"]):
        assert main([*verb, *folders, "model=tuned"]) == 2
        error = capsys.readouterr().err.strip()
        assert "model=tuned model.weights=hub:acme/tuned needs its weights (hub:acme/tuned, of unknown size, see there)" in error
        assert error.endswith("is not on this machine: run vdqbench prefetch " + " ".join([*words, *folders]))
    assert main(["list", "models", *folders]) == 0
    (listed,) = (line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("tuned"))
    assert "Tiny, tuned" in listed and "missing" in listed
    code, said = prefetch("plan=true", model="tuned")
    assert code == 0 and "0.00 GB and 1 of unknown size to fetch" in said and not web.asked
    code, said = prefetch("model.weights=hub:acme/tuned", model="tuned")
    assert code == 0 and "1 assets are there and verified" in said
    assert not (tmp_path / "hub" / "models--acme--tiny").exists()
    (part,) = (tmp_path / "hub" / "models--acme--tuned").glob(f"snapshots/{COMMIT}/net/*")
    assert part.read_bytes() == WEIGHTS and "everything is there" in prefetch("plan=true", model="tuned")[1]


def test_packaged_models_need_nothing(capsys):
    assert main(["prefetch", "model=mini_stdit"]) == 0
    assert "need nothing from elsewhere" in capsys.readouterr().out


def test_help_and_wrong_use(capsys):
    assert main(["prefetch"]) == 0 == main(["prefetch", "--help"])
    assert "HF_HUB_OFFLINE=1" in capsys.readouterr().out
    assert main(["prefetch", "model=opensora"]) == 2
    assert "opensora_v1" in capsys.readouterr().err


def test_every_asset_of_metrics_is_described():
    files = sorted((CONF / "asset").glob("*.yaml"))
    assert len(files) >= 10
    for file in files:
        asset = named(file.stem)
        assert asset.where.repository or located(str(asset.where.address)).startswith("https://")
        assert asset.files and asset.gigabytes > 0 and asset.licence
        for name, known in (asset.sha256 or {}).items():
            assert name in asset.files and re.fullmatch(r"[0-9a-f]{8,64}", known)
    with pytest.raises(ConfigError, match=r"asset:dovr is not an asset \(did you mean dover"):
        named("dovr")


def test_metrics_say_what_they_need():
    nodes = {
        "vqa": {"weights": "asset:dover"},
        "clip": {"backbone": {"model": "ViT-B-32", "weights": "openai"}},
        "own": {"backbone": {"model": "ViT-B-32", "weights": "/my/file.pt"}},
        "fidelity": {"scores": ["psnr"], "lpips": {"features": "asset:alexnet"}},
        "with_lpips": {"scores": ["psnr", "lpips"], "lpips": {"features": "asset:alexnet"}},
    }
    found = [(need.owner, need.asset.part) for need in of_metrics(nodes)]
    assert found == [("metric=[vqa]", "DOVER"), ("metric=[clip]", "CLIP ViT-B/32"), ("metric=[with_lpips]", "AlexNet")]
    assert unknown(nodes) == []
    rare = {"backbone": {"model": "ViT-H-14", "weights": "laion2b_s32b_b79k"}, "encoder": {"backbone": {"model": "hf-hub:a/b"}}}
    assert unknown({"rare": rare}) == ["metric.rare: ViT-H-14 laion2b_s32b_b79k", "metric.rare: hf-hub:a/b"]


def test_a_fetched_asset_is_what_the_metric_opens(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    node = {"_target_": "builtins.dict", "mode": "single", "weights": "asset:dover"}
    assert build(node)["weights"] == "asset:dover" and asset_digests(node) == asset_digests({**node, "weights": "other"})
    folder = named("dover").where.folder
    folder.mkdir(parents=True)
    (folder / "DOVER.pth").write_bytes(b"weights")
    assert build(node)["weights"] == str(folder / "DOVER.pth")
    assert hashlib.sha256(b"weights").hexdigest() in asset_digests(node)


def test_a_missing_asset_is_one_sentence_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (
            ["model=opensora_v1"],
            "hub:hpcai-tech/Open-Sora, 3 GB, Apache-2.0), which is not on this machine: run vdqbench prefetch model=opensora_v1",
        ),
        (["metric=[vqa]"], "0.23 GB, MIT), which is not on this machine: run vdqbench prefetch 'metric=[vqa]'"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said.format("), which is not on this machine: run vdqbench prefetch ") in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing else is done before"


def test_gated_assets_say_how_to_be_let_in():
    asset = Asset("denoiser", "hub:acme/gated", 2.0, "Their Own", ("a.json",), gated=True)
    said = asset.lacking("model=acme")
    assert (
        "accept its licence on https://huggingface.co/acme/gated, log in with hf auth login, and run vdqbench prefetch model=acme" in said
    )
    folder = Asset("vae", "/no/such/folder", 2.0, "MIT", ("a.json",))
    assert folder.lacking("model=acme") == "model=acme: /no/such/folder lacks a.json of its vae; give the folder that holds it"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_says_what_it_needs(name):
    defaults = yaml.safe_load((CONF / "model_defaults.yaml").read_text())
    model = Model.from_config({**defaults, **yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())})
    if model.unavailable or (model.weights or "").startswith("packaged"):
        return
    assert model.assets, "real models say where their weights are"
    for asset in model.assets:
        assert asset.where.repository or asset.where.address or asset.source.startswith("packaged/")
        assert asset.files and asset.gigabytes > 0 and asset.licence
