"""VBench's networks with random weights: preprocessing by torchvision's own transforms, DINO by its original code, exact loading."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision import transforms

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics import backbone as backbones
from vdqbench.metrics.backbone import open_backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench import aesthetic, background, hub, subject
from vdqbench.metrics.vbench.aesthetic import AestheticQuality, aesthetic_quality
from vdqbench.metrics.vbench.background import BackgroundConsistency
from vdqbench.metrics.vbench.consistency import consistency
from vdqbench.metrics.vbench.dynamic import DynamicDegree
from vdqbench.metrics.vbench.flows import Raft, open_raft, pad8
from vdqbench.metrics.vbench.frames import at_most, clip_input
from vdqbench.metrics.vbench.imaging import ImagingQuality, open_musiq
from vdqbench.metrics.vbench.subject import MODEL, Dino, SubjectConsistency, open_dino

CPU = torch.device("cpu")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def random_frames(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def as_loaded_by_vbench(frames: torch.Tensor) -> torch.Tensor:
    return torch.Tensor(frames.numpy()).permute(0, 3, 1, 2)


def tiny_dino() -> torch.nn.Module:
    """timm's DINO of width 24 and depth 2, with seeded weights."""
    import timm

    model = timm.create_model(MODEL, pretrained=False, num_classes=0, embed_dim=24, depth=2, num_heads=3)
    generator = torch.Generator().manual_seed(7)
    state = {
        name: torch.randn(value.shape, generator=generator) * 0.2 + ("norm" in name and name.endswith("weight"))
        for name, value in sorted(model.state_dict().items())
    }
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("size", [(48, 64), (300, 230), (224, 224), (32, 32)])
def test_clip_frames_are_prepared_as_vbench_does(size):
    frames = random_frames(2, *size, 0)
    vbench = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC, antialias=False),
            transforms.CenterCrop(224),
            transforms.Lambda(lambda x: x.float().div(255.0)),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    torch.testing.assert_close(clip_input(frames, 224, CLIP_MEAN, CLIP_STD, CPU), vbench(as_loaded_by_vbench(frames)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "first", "score"),
    [
        ((180, 320), [1.0001873970031738, 1.369219183921814, 0.8247300386428833], 0.9741905232270559),
        ((240, 230), [1.0886982679367065, 1.4606906175613403, 0.6389718651771545], 0.9698816935221354),
        ((64, 64), [1.0254266262054443, 1.6428943872451782, 0.8060874342918396], 0.9665942887465159),
    ],
)
def test_dino_gives_the_values_of_its_original_code(size, first, score):
    dino = Dino(tiny_dino(), "hash", CPU)
    features = dino(random_frames(4, *size, size[0]))
    assert features.shape == (4, 24)
    assert features[0, :3].tolist() == pytest.approx(first, abs=2e-5)
    assert consistency(features[None]).item() == pytest.approx(score, abs=1e-5)


def test_dino_of_full_size_has_the_original_names():
    import timm

    with torch.device("meta"):
        state = timm.create_model(MODEL, pretrained=False, num_classes=0).state_dict()
    assert len(state) == 150 and state["pos_embed"].shape == (1, 197, 768) and state["norm.weight"].shape == (768,)
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    names = [f"blocks.{i}.{part}.{kind}" for i in range(12) for part in block for kind in ("weight", "bias")]
    assert set(state) == {*names, "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}


def test_subject_consistency_from_a_checkpoint(tmp_path, monkeypatch):
    import timm

    model = tiny_dino()
    save_file(model.state_dict(), tmp_path / "dino.safetensors")
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "dino.pth")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **o: create(name, embed_dim=24, depth=2, num_heads=3, **o))
    videos = torch.stack([random_frames(3, 40, 64, 1), random_frames(1, 40, 64, 2).expand(3, -1, -1, -1)])
    metrics = [SubjectConsistency(str(tmp_path / name), size, "cpu") for name, size in (("dino.safetensors", 32), ("dino.pth", 2))]
    for metric in metrics:
        metric.update(VideoBatch(videos, ["a", "b"]))
    score = metrics[0].compute()["subject_consistency"]
    expected = consistency(Dino(model, "", CPU)(videos[0])[None]).item()
    assert score.values == pytest.approx([expected, 1], abs=1e-5)
    assert metrics[1].compute()["subject_consistency"].values == pytest.approx(score.values, abs=1e-5)
    assert metrics[0].protocol() == metrics[1].protocol() and metrics[0].protocol()["backbone"] == MODEL
    (tmp_path / "other.pth").write_bytes(b"no checkpoint")
    for name, message in (("other.pth", "cannot be read"), ("none.pth", "not a file")):
        with pytest.raises(ConfigError, match=message) as caught:
            SubjectConsistency(str(tmp_path / name), device="cpu")
        assert "dino_vitbase16_pretrain.pth" in str(caught.value) and "\n" not in str(caught.value)
    open_dino.cache_clear()


def test_dino_without_weights_or_network_is_refused():
    with pytest.raises(ConfigError, match="weights=null would be random ones"):
        SubjectConsistency()
    with pytest.raises(ConfigError, match="not in the hub's cache and cannot be fetched") as caught:
        hub.hub_file("timm/no-such-repository", "model.safetensors", "metric.vbench_subject_consistency.weights")
    assert "\n" not in str(caught.value)


def test_background_consistency_has_vbenchs_name_with_openais_weights_only(tiny_clip, monkeypatch):
    tiny = open_backbone({"model": f"local-dir:{tiny_clip}"}, "cpu")
    videos = torch.stack([random_frames(4, 70, 90, 1), random_frames(4, 70, 90, 2)])
    plain = BackgroundConsistency({"model": f"local-dir:{tiny_clip}"}, device="cpu")
    assert plain.name.startswith("background_consistency_local_dir_tiny_clip")
    assert plain.scores[0].label.startswith("Background consistency (local_dir")
    for name, exact in (
        ("ViT-B-32/openai", True),
        ("ViT-B-32-quickgelu", True),
        ("ViT-B-32", False),
        ("ViT-B-32/laion2b_s34b_b79k", False),
        ("ViT-L-14/openai", False),
    ):
        monkeypatch.setattr(background, "open_backbone", lambda *_, name=name: replace(tiny, name=name))
        metric = BackgroundConsistency({"model": "x"}, device="cpu")
        assert (metric.name == "background_consistency") is exact
        assert metric.protocol()["preprocessing"] == ("vbench" if exact else "clip")
    monkeypatch.setattr(background, "open_backbone", lambda *_: replace(tiny, name="ViT-B-32/openai"))
    metric = BackgroundConsistency({"model": "x"}, device="cpu", batch_size=3)
    metric.update(VideoBatch(videos, ["a", "b"]))
    config = tiny.model.visual.preprocess_cfg
    with torch.inference_mode():
        features = torch.stack([tiny.model.encode_image(clip_input(v, 48, config["mean"], config["std"], CPU)) for v in videos])
    assert metric.compute()["background_consistency"].values == pytest.approx(consistency(features).tolist(), abs=1e-5)


def test_background_consistency_shares_features_with_the_clip_metrics(tiny_clip, monkeypatch):
    from vdqbench.metrics.clip import Clip

    spec, seen = {"model": f"local-dir:{tiny_clip}"}, []
    embed = backbones.Backbone.embed_frames
    monkeypatch.setattr(backbones.Backbone, "embed_frames", lambda self, frames, *a: seen.append(len(frames)) or embed(self, frames, *a))
    batch = VideoBatch(random_frames(6, 48, 48, 0).view(2, 3, 48, 48, 3), ["a", "b"])
    for metric in (Clip(spec, device="cpu"), BackgroundConsistency(spec, device="cpu")):
        metric.update(batch)
    assert seen == [6]


def test_aesthetic_quality_is_a_linear_layer_on_unit_features():
    features = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    value = aesthetic_quality(features, torch.tensor([[10.0, 5.0]]), torch.tensor([1.0]))
    assert value.item() == pytest.approx(((6 + 4 + 1) + (5 + 1)) / 2 / 10)


def test_aesthetic_metric_and_its_head(tiny_clip, tmp_path, monkeypatch):
    spec = {"model": f"local-dir:{tiny_clip}"}
    head = {"weight": torch.randn(1, 16, generator=torch.Generator().manual_seed(1)), "bias": torch.tensor([5.0])}
    torch.save(head, tmp_path / "linear.pth")
    metric = AestheticQuality(spec, str(tmp_path / "linear.pth"), device="cpu")
    assert metric.name.startswith("aesthetic_quality_local_dir_tiny_clip")
    videos = torch.stack([random_frames(3, 48, 48, 4), random_frames(3, 48, 48, 5)])
    metric.update(VideoBatch(videos, ["a", "b"]))
    tiny = open_backbone(spec, "cpu")
    config = tiny.model.visual.preprocess_cfg
    with torch.inference_mode():
        features = tiny.model.encode_image(clip_input(videos.flatten(0, 1), 48, config["mean"], config["std"], CPU))
    expected = (F.normalize(features, dim=-1) @ head["weight"].T + 5).view(2, 3).mean(dim=1) / 10
    assert metric.compute()[metric.name].values == pytest.approx(expected.tolist(), abs=1e-5)
    monkeypatch.setattr(aesthetic, "open_backbone", lambda *_: replace(tiny, name="ViT-L-14/openai"))
    exact = AestheticQuality(spec, str(tmp_path / "linear.pth"), device="cpu")
    assert exact.name == "aesthetic_quality" and len(exact.protocol()["head"]) == 64
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "large.pth")
    for value, message in ((None, "would be random"), (str(tmp_path / "none.pth"), "not a file"), (str(tmp_path / "large.pth"), "not fit")):
        with pytest.raises(ConfigError, match=message) as caught:
            AestheticQuality(spec, value, device="cpu")
        assert "sa_0_4_vit_l_14_linear.pth" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "expected"), [((720, 1280), (288, 512)), ((513, 100), (512, 99)), ((512, 300), (512, 300)), ((61, 33), (61, 33))]
)
def test_long_frames_are_brought_to_512_and_short_ones_left(size, expected):
    x = as_loaded_by_vbench(random_frames(1, *size, 0))
    got = at_most(x, 512)
    assert got.shape[-2:] == expected
    torch.testing.assert_close(got, transforms.Resize(expected, antialias=False)(x) if size != expected else x)


class FakeMusiq(torch.nn.Module):
    """Stands for pyiqa's metric: its network says 100 times the mean of frames in 0..1, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.net.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.min() >= 0 and x.max() <= 1 and x.shape[1] == 3 and max(x.shape[-2:]) <= 512
        return self.net(100 * x.mean(dim=(1, 2, 3))[:, None])


@pytest.fixture
def pyiqa(monkeypatch) -> list:
    calls: list = []
    module = types.ModuleType("pyiqa")
    module.create_metric = lambda name, **options: calls.append((name, options)) or FakeMusiq().requires_grad_(False)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    open_musiq.cache_clear()
    yield calls
    open_musiq.cache_clear()


def test_imaging_quality_is_musiq_on_spaq_over_a_hundred(pyiqa, tmp_path):
    videos = torch.full((1, 3, 40, 600, 3), 51, dtype=torch.uint8)
    videos[0, 1] = 102
    metric = ImagingQuality("pyiqa", batch_size=2, device="cpu")
    metric.update(VideoBatch(videos, ["a"]))
    assert metric.compute()["imaging_quality"].values == pytest.approx([(0.2 + 0.4 + 0.2) / 3], abs=1e-6)
    assert pyiqa == [("musiq-spaq", {"device": CPU})]
    torch.save({"params": {"weight": torch.tensor([[2.0]])}}, tmp_path / "musiq.pth")
    own = ImagingQuality(str(tmp_path / "musiq.pth"), device="cpu")
    own.update(VideoBatch(videos, ["a"]))
    assert own.compute()["imaging_quality"].values == pytest.approx([(0.4 + 0.8 + 0.4) / 3], abs=1e-6)
    assert pyiqa[1] == ("musiq-spaq", {"device": CPU, "pretrained": False})
    assert own.protocol()["sha256"] != metric.protocol()["sha256"]


def test_imaging_quality_without_package_or_weights(pyiqa, tmp_path, monkeypatch):
    torch.save({"params": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for weights, message in (
        (None, "random"),
        ("none.pth", "not a file"),
        ("other.pth", "not fit"),
        ("list.pth", "no dict"),
        ("junk.pth", "read"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            ImagingQuality(None if weights is None else str(tmp_path / weights), device="cpu")
        assert "\n" not in str(caught.value) and "musiq_spaq_ckpt-358bb6af.pth" in str(caught.value)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    open_musiq.cache_clear()
    with pytest.raises(ConfigError, match="pip install pyiqa"):
        ImagingQuality("pyiqa", device="cpu")


@pytest.mark.parametrize(("size", "padded"), [((180, 318), (184, 320)), ((128, 128), (128, 128)), ((131, 135), (136, 136))])
def test_raft_frames_are_padded_in_the_middle_by_repeating_the_border(size, padded):
    x = as_loaded_by_vbench(random_frames(1, *size, 0))
    got = pad8(x)
    top, left = (padded[0] - size[0]) // 2, (padded[1] - size[1]) // 2
    assert got.shape[-2:] == padded
    assert (got[..., top : top + size[0], left : left + size[1]] == x).all()
    assert (got[..., 0, left : left + size[1]] == x[..., 0, :]).all() and (got[..., -1, left : left + size[1]] == x[..., -1, :]).all()


def test_raft_loads_exactly_and_runs_twenty_updates(tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    model = raft_large(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "raft.pth")
    flow = Raft(str(tmp_path / "raft.pth"), "cpu")
    a, b = random_frames(1, 128, 132, 0), random_frames(1, 128, 132, 1)
    got = flow.flow(a, b)
    first, second = (F.pad(as_loaded_by_vbench(x), (2, 2, 0, 0), mode="replicate") / 255 * 2 - 1 for x in (a, b))
    with torch.inference_mode():
        expected = model(first, second, num_flow_updates=20)[-1]
    assert got.shape == (1, 2, 128, 136)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)
    assert flow.protocol()["updates"] == 20 and len(flow.protocol()["sha256"]) == 64
    metric = DynamicDegree({"_target_": "vdqbench.metrics.vbench.flows.Raft", "weights": str(tmp_path / "raft.pth")}, fps=8, device="cpu")
    assert metric.name == "dynamic_degree"
    with pytest.raises(Unsupported, match=r"at least 128x128 pixels and these have 32x32"):
        metric.update(VideoBatch(random_frames(4, 32, 32, 0)[None], ["a"]))
    with pytest.raises(ConfigError, match=r"random ones; expected torchvision's file raft_large_C_T_V1"):
        Raft()
    torch.save({"fnet.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="does not fit"):
        Raft(str(tmp_path / "other.pth"), "cpu")
    open_raft.cache_clear()


def test_torchvisions_raft_weights_are_the_original_ones_and_not_its_default(monkeypatch):
    from torchvision.models.optical_flow import Raft_Large_Weights

    asked = []
    monkeypatch.setattr(
        Raft_Large_Weights, "get_state_dict", lambda self, **o: asked.append(self.name) or (_ for _ in ()).throw(OSError("no network"))
    )
    open_raft.cache_clear()
    with pytest.raises(ConfigError, match=r"not in torch's cache and cannot be fetched \(no network\)"):
        Raft("C_T_V1", "cpu")
    assert asked == ["C_T_V1"] and Raft_Large_Weights.DEFAULT.name != "C_T_V1"


def test_features_of_dino_do_not_depend_on_the_cache(tmp_path):
    assert subject.positions(torch.ones(1, 5, 3), 2, 2, True).shape == (1, 5, 3)
    assert subject.positions(torch.ones(1, 5, 3), 3, 7, False).shape == (1, 22, 3)
    torch.testing.assert_close(subject.positions(torch.ones(1, 5, 3), 3, 7, False), torch.ones(1, 22, 3))
