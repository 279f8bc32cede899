"""VQA: constants by branch name, protocols, invariances and refusals; the network itself is tested in test_dover_network.py."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from vdqbench.config import CONF
from vdqbench.errors import ConfigError
from vdqbench.metrics import vqa
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vqa import Vqa, rescaled
from vdqbench.store import Store


class Watcher:
    """Stands for the network: raw scores that depend on every moment of a view and on its place, and a record of its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, views, branch):
        self.calls.append((branch, len(views)))
        moments = views[:, :, :, ::16, ::16].mean(dim=(1, 3, 4)) * torch.linspace(1, 2, views.shape[2])
        return 0.05 * moments.mean(dim=1)


@pytest.fixture
def network(monkeypatch, tmp_path):
    watcher = Watcher()
    monkeypatch.setattr(vqa, "load", lambda path, device: (watcher, "5ha"))
    watcher.weights = str(tmp_path / "DOVER.pth")
    return watcher


def clips(count, frames=6, height=40, width=52, seed=0):
    return torch.randint(0, 256, (count, frames, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def scored(metric, videos, size=100):
    for part in videos.split(size):
        metric.update(VideoBatch(part, ["a prompt"] * len(part)))
    return {name: score.values for name, score in metric.compute().items()}


def sigmoid(x):
    return 100 / (1 + math.exp(-x))


def test_rescaling_is_by_the_name_of_the_branch():
    raw = {"technical": torch.tensor([-0.0758, -0.0758 + 0.0129]), "aesthetic": torch.tensor([0.1253, 0.1253 - 2 * 0.0318])}
    for given in (raw, dict(reversed(raw.items()))):
        got = rescaled(given)
        assert got["vqa_t"].tolist() == pytest.approx([50, sigmoid(1)], abs=1e-4)
        assert got["vqa_a"].tolist() == pytest.approx([50, sigmoid(-2)], abs=1e-4)
        assert got["vqa"].tolist() == pytest.approx([50, sigmoid(0.6104 - 2 * 0.3896)], abs=1e-4)
        assert got["dover_t_raw"].tolist() == pytest.approx([-0.0758, -0.0629], abs=1e-7)
    other = rescaled({"technical": torch.tensor([-0.08285 + 0.03774]), "aesthetic": torch.tensor([0.1107 + 3 * 0.07355])})
    assert other["dover_t"].tolist() == pytest.approx([sigmoid(1)], abs=1e-4)
    assert other["dover_a"].tolist() == pytest.approx([sigmoid(3)], abs=1e-4)
    assert other["dover"].tolist() == pytest.approx([sigmoid(0.6104 + 3 * 0.3896)], abs=1e-4)


def test_one_branch_gives_its_scores_alone():
    assert set(rescaled({"aesthetic": torch.zeros(2)})) == {"vqa_a", "dover_a", "dover_a_raw"}


def test_by_evalcrafter_the_aesthetic_branch_sees_the_first_frame_of_a_short_video_alone(network):
    videos = clips(1, frames=16)
    changed = videos.clone()
    changed[:, 9] = 255 - changed[:, 9] // 2
    for protocol, suffix, blind in (("evalcrafter", "", True), ("all_frames", "_all_frames", False)):
        before, after = (scored(Vqa(network.weights, protocol), v) for v in (videos, changed))
        assert (before[f"dover_a_raw{suffix}"] == after[f"dover_a_raw{suffix}"]) is blind
        assert before[f"dover_t_raw{suffix}"] != after[f"dover_t_raw{suffix}"]


@pytest.mark.parametrize("protocol", ["evalcrafter", "all_frames"])
def test_batches_order_and_shards_change_nothing_and_frame_order_does(network, protocol):
    videos = clips(2, frames=7)
    whole = scored(Vqa(network.weights, protocol), videos)
    pieces = scored(Vqa(network.weights, protocol, batch_size=2), videos.flip(0), size=1)
    a, b = Vqa(network.weights, protocol), Vqa(network.weights, protocol)
    scored(a, videos[:1])
    scored(b, videos[1:])
    a.merge(b)
    turned = scored(Vqa(network.weights, protocol), videos[:1].flip(1))
    for name, values in whole.items():
        assert len(set(values)) == 2
        assert pieces[name][::-1] == pytest.approx(values, abs=1e-5)
        assert a.compute()[name].values == pytest.approx(values, abs=1e-5)
        assert turned[name][0] != values[0]


def test_shards_of_other_protocols_do_not_mix(network):
    with pytest.raises(ValueError, match="protocols and scores are equal"):
        Vqa(network.weights, seed=1).merge(Vqa(network.weights, seed=2))


def test_a_branch_that_no_score_needs_is_not_run(network):
    metric = Vqa(network.weights, scores=["vqa_a", "dover_a_raw"], batch_size=1)
    assert set(scored(metric, clips(2))) == {"vqa_a", "dover_a_raw"}
    assert network.calls == [("aesthetic", 1), ("aesthetic", 1)]
    network.calls.clear()
    scored(Vqa(network.weights, scores=["vqa_t"], batch_size=2), clips(1))
    assert network.calls == [("technical", 2), ("technical", 1)]


def test_raw_scores_are_remembered_by_the_store(network, tmp_path):
    videos, store = clips(3), Store(tmp_path / "store")
    values = []
    for keys in (["a", "b", "c"], ["c", "b", "d"]):
        batch = VideoBatch(videos if keys[0] == "a" else videos[[2, 1, 0]], ["p"] * 3, store=store, keys=keys)
        metric = Vqa(network.weights, scores=["dover_a_raw"])
        metric.update(batch)
        values.append(metric.compute()["dover_a_raw"].values)
    assert values[1] == values[0][::-1] and len(network.calls) == 3 + 1


@pytest.mark.parametrize("shape", [(1, 97, 230), (40, 35, 64)])
@pytest.mark.parametrize("protocol", ["evalcrafter", "all_frames"])
def test_single_frames_odd_sizes_and_grey_have_a_score(network, shape, protocol):
    grey = torch.full((1, *shape, 3), 90, dtype=torch.uint8)
    got = scored(Vqa(network.weights, protocol), torch.cat([grey, clips(1, *shape)]))
    assert len(got) == 8
    for name, values in got.items():
        assert len(values) == 2 and (0 <= min(values) <= max(values) <= 100 or "raw" in name)


def test_names_of_scores_tell_protocols_apart_and_are_those_of_the_configuration(network):
    seen = []
    for name in ("vqa", "vqa_all_frames"):
        text = (CONF / "metric" / f"{name}.yaml").read_text()
        node = yaml.safe_load(text)
        assert text.splitlines()[0] == f"# @package metric.{name}"
        assert node["weights"] == "asset:dover"
        options = {key: value for key, value in node.items() if key not in ("_target_", "mode", "version", "weights")}
        metric = Vqa(network.weights, **options)
        assert [info.name for info in metric.scores] == [info.name for info in metric.available] == node["scores"]
        assert (metric.mode, metric.version) == (node["mode"], node["version"])
        seen += node["scores"]
    assert len(set(seen)) == 16
    assert len({info.label for protocol in vqa.PROTOCOLS for info in Vqa(network.weights, protocol).available}) == 16


def test_protocol_names_the_weights_and_the_sampling_and_no_path(network, tmp_path):
    protocol = Vqa(network.weights, "all_frames", seed=3).protocol()
    assert protocol == {
        "version": 1,
        "backbone": "DOVER",
        "sha256": "5ha",
        "protocol": "all_frames",
        "seed": 3,
        "antialias": False,
    }
    assert str(tmp_path) not in json.dumps(protocol)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": None}, "whose scores mean nothing"),
        ({"weights": "/no/DOVER.pth"}, "/no/DOVER.pth is not a file; expected DOVER"),
        ({"weights": None, "protocol": "evalcrafte"}, "did you mean evalcrafter"),
        ({"weights": None, "scores": ["vqa_b"]}, "vqa_b"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Vqa(**options)
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_refused(network):
    with pytest.raises(ConfigError, match="device=gpu"):
        Vqa(network.weights, device="gpu")
