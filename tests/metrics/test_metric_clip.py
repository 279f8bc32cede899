"""CLIPSIM and CLIP-temp against closed forms, open_clip's own transforms and a per-frame loop."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics import backbone as backbones
from vdqbench.metrics.backbone import CLIP, CV2, Preprocessing, open_backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.clip import Clip, QVDClip, clip_domain, clip_temp, clipsim

PROMPTS = ["a red circle", "two dogs on the beach, " * 40]


def videos(*shape: int) -> torch.Tensor:
    """Smooth random videos, as resampling differs least from library to library on them."""
    rough = torch.randn(*shape[:2], 3, 6, 6, generator=torch.Generator().manual_seed(3))
    smooth = F.interpolate(rough.flatten(0, 1), shape[2:], mode="bicubic")
    return (128 + 60 * smooth).clamp(0, 255).byte().unflatten(0, shape[:2]).permute(0, 1, 3, 4, 2)


def resize_cv2(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """cv2.resize's INTER_LINEAR: half-pixel centres, no smoothing, clamped borders, weights of 11 bits, rounded half up; [H, W, 3]."""

    def axis(new, old):
        x = (np.arange(new) + 0.5) * old / new - 0.5
        low = np.floor(x).astype(int)
        return np.clip(low, 0, old - 1), np.clip(low + 1, 0, old - 1), np.round((x - low) * 2048) / 2048

    y0, y1, wy = axis(height, frame.shape[0])
    x0, x1, wx = axis(width, frame.shape[1])
    f, wy, wx = frame.astype(np.float64), wy[:, None, None], wx[None, :, None]
    top = f[y0][:, x0] * (1 - wx) + f[y0][:, x1] * wx
    bottom = f[y1][:, x0] * (1 - wx) + f[y1][:, x1] * wx
    return np.floor(top * (1 - wy) + bottom * wy + 0.5)


def test_clipsim_is_the_mean_cosine_of_frames_and_caption():
    frames = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]], [[-1.0, 0.0]] * 3])
    captions = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(clipsim(frames, captions), torch.tensor([(1 + 0 + 0.6) / 3, -1.0]))


def test_clip_temp_is_the_mean_cosine_of_neighbours():
    frames = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [0.0, 1.0]]])
    torch.testing.assert_close(clip_temp(frames), torch.tensor([(0.6 + 0.8 + 1) / 3]))
    with pytest.raises(Unsupported, match="one frame"):
        clip_temp(frames[:, :1])


@pytest.mark.parametrize("shape", [(32, 32), (80, 60), (61, 111), (48, 48)])
def test_preprocessing_is_that_of_open_clip(tiny_clip, shape):
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    frames = videos(1, 3, *shape)[0]
    expected = torch.stack([transform(Image.fromarray(frame.numpy())) for frame in frames])
    got = open_backbone({"model": f"local-dir:{tiny_clip}"}, "cpu").prepare(frames, CLIP)
    assert got.shape == expected.shape
    levels = (got - expected).abs() * 255 * 0.27
    assert levels.max() < 1.5 and levels.mean() < 0.01


@pytest.mark.parametrize("shape", [(32, 32), (80, 60), (101, 47)])
def test_evalcrafter_frames_are_squashed_as_cv2_does_and_not_normalised(tiny_clip, shape):
    frames = videos(1, 2, *shape)[0]
    backbone = open_backbone({"model": f"local-dir:{tiny_clip}"}, "cpu")
    got = backbone.prepare(frames, CV2).permute(0, 2, 3, 1).numpy()
    expected = np.stack([resize_cv2(frame.numpy(), 48, 48) for frame in frames])
    assert np.abs(got - expected).max() <= 1 and np.abs(got - expected).mean() < 0.05
    assert got.max() > 100
    exact = backbone.prepare(frames, Preprocessing("evalcrafter_torchvision"))
    assert ((exact + 0.5).floor() == backbone.prepare(frames, CV2)).all()


def test_torchvision_resize_of_clip_temp(tiny_clip):
    from torchvision.transforms import Resize

    frames = videos(1, 2, 80, 60)[0]
    for antialias in (False, True):
        got = open_backbone({"model": f"local-dir:{tiny_clip}"}, "cpu").prepare(frames, Preprocessing("evalcrafter_torchvision", antialias))
        torch.testing.assert_close(got, Resize([48, 48], antialias=antialias)(frames.permute(0, 3, 1, 2).float()))


@pytest.mark.parametrize("protocol", ["clip", "evalcrafter"])
def test_whole_metric_equals_a_loop_over_frames(tiny_clip, protocol):
    batch = VideoBatch(videos(2, 5, 48, 48), PROMPTS)
    metric = Clip({"model": f"local-dir:{tiny_clip}"}, protocol, device="cpu", batch_size=3)
    metric.update(batch)
    scores = metric.compute()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    model.eval()
    text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(PROMPTS))
    suffix = "" if protocol == "clip" else "_evalcrafter"
    for n, video in enumerate(batch.videos):
        features = []
        for frame in video:
            x = transform(Image.fromarray(frame.numpy())) if protocol == "clip" else frame.permute(2, 0, 1).float()
            features.append(model.encode_image(x[None])[0])
        sims = [F.cosine_similarity(f, text[n], dim=0).item() for f in features]
        temps = [F.cosine_similarity(a, b, dim=0).item() for a, b in pairwise(features)]
        assert scores[f"clipsim{suffix}"].values[n] == pytest.approx(np.mean(sims), abs=1e-5)
        assert scores[f"clip_temp{suffix}"].values[n] == pytest.approx(np.mean(temps), abs=1e-5)


def test_batch_size_and_order_do_not_matter_but_frame_order_does(tiny_clip):
    spec = {"model": f"local-dir:{tiny_clip}"}
    x = videos(4, 6, 40, 56)
    prompts = ["a", "b", "c", "d"]

    def values(x, prompts, size):
        metric = Clip(spec, batch_size=size, device="cpu")
        metric.update(VideoBatch(x, prompts))
        return {name: np.array(score.values) for name, score in metric.compute().items()}

    one = values(x, prompts, 64)
    for name, other in values(x.flip(0), prompts[::-1], 5).items():
        np.testing.assert_allclose(other[::-1], one[name], atol=1e-5)
    shuffled = values(x[:, [3, 0, 5, 1, 4, 2]], prompts, 64)
    np.testing.assert_allclose(shuffled["clipsim"], one["clipsim"], atol=1e-6)
    assert np.abs(shuffled["clip_temp"] - one["clip_temp"]).max() > 1e-4


def test_still_videos_have_clip_temp_one_and_one_frame_is_refused(tiny_clip):
    spec = {"model": f"local-dir:{tiny_clip}"}
    still = videos(2, 1, 33, 35).expand(-1, 4, -1, -1, -1)
    metric = Clip(spec, device="cpu")
    metric.update(VideoBatch(still, ["a", "b"]))
    assert metric.compute()["clip_temp"].values == pytest.approx([1, 1], abs=1e-6)
    with pytest.raises(Unsupported, match="one frame"):
        metric.update(VideoBatch(still[:, :1], ["a", "b"]))
    assert metric.compute()["clipsim"].n == 2
    only = Clip(spec, device="cpu", scores=["clipsim"])
    only.update(VideoBatch(still[:, :1], ["a", "b"]))
    assert list(only.compute()) == ["clipsim"]


def test_frames_are_embedded_once_for_all_metrics(tiny_clip, monkeypatch):
    from vdqbench.metrics.fidelity import Fidelity

    spec = {"model": f"local-dir:{tiny_clip}"}
    seen = []
    embed = backbones.Backbone.embed_frames
    monkeypatch.setattr(backbones.Backbone, "embed_frames", lambda self, frames, *a: seen.append(len(frames)) or embed(self, frames, *a))
    batch = VideoBatch(videos(2, 3, 32, 32), ["a", "b"], videos(2, 3, 32, 32))
    for metric in (Clip(spec, device="cpu"), Fidelity(spec, device="cpu"), Clip(spec, device="cpu")):
        metric.update(batch)
    assert seen == [6, 6]


def test_protocol_names_backbone_and_hash_and_is_json(tiny_clip):
    protocols = [
        Clip({"model": f"local-dir:{tiny_clip}"}, p, batch_size=b, device="cpu").protocol()
        for p, b in (("clip", 1), ("clip", 9), ("evalcrafter", 9))
    ]
    json.dumps(protocols, allow_nan=False)
    assert protocols[0] == protocols[1]
    assert protocols[0]["protocol"] == "clip" and len(protocols[0]["sha256"]) == 64
    assert protocols[2]["sha256"] == protocols[0]["sha256"] and protocols[2]["antialias"] is False
    assert tiny_clip not in json.dumps(protocols)


def test_weights_from_a_file_equal_those_of_the_folder(tiny_clip, tmp_path):
    open_clip.add_model_config(_named(tmp_path, "vdq-test-tiny", tiny_clip))
    a = open_backbone({"model": "vdq-test-tiny", "weights": f"{tiny_clip}/open_clip_model.safetensors"}, "cpu")
    b = open_backbone({"model": f"local-dir:{tiny_clip}"}, "cpu")
    assert a.sha256 == b.sha256


def _named(folder, name, source):
    config = json.loads(Path(source, "open_clip_config.json").read_text())["model_cfg"]
    (folder / f"{name}.json").write_text(json.dumps(config))
    return folder / f"{name}.json"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"model": "ViT-B-32"}, "has no weights"),
        ({"model": "ViT-B-32", "weights": "/no/such.pt"}, "neither a file nor a tag of ViT-B-32"),
        ({"model": "ViT-B-32", "weights": "opnai"}, "openai"),
        ({"model": "ViT-B-23", "weights": "openai"}, "ViT-B-32"),
        ({"model": "mini_clip", "weights": "x.pt"}, "in the package"),
        ({"model": "local-dir:/no/such"}, "cannot be opened"),
        ({"model": "local-dir:/no/such", "weights": "x"}, "brings its own"),
        ({"model": "mini_clip", "wieghts": None}, "weights"),
        ({}, "must be like"),
        (None, "must be like"),
    ],
)
def test_backbones_that_cannot_be_used_are_one_sentence(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        open_backbone(spec)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused(tiny_clip, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(Path(tiny_clip, "open_clip_config.json").read_text())
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_backbone({"model": f"local-dir:{tmp_path}"}, "cpu")


def test_a_tag_that_is_not_cached_needs_the_network(monkeypatch):
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *a: None)
    monkeypatch.setattr(backbones.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"not in the cache .* set backbone\.weights to a local file, or run once with a network"):
        open_backbone({"model": "ViT-B-32", "weights": "openai"}, "cpu")


def test_openai_tags_use_the_activation_they_were_trained_with(monkeypatch, tmp_path):
    torch.manual_seed(0)
    with_gelu = {}
    monkeypatch.setattr(backbones, "try_to_load_from_cache", lambda *a: str(tmp_path / "w.safetensors"))
    monkeypatch.setattr(backbones.open_clip, "create_model", lambda *a, **k: with_gelu.update(k) or 1 / 0)
    with pytest.raises(ConfigError):
        open_backbone({"model": "ViT-B-32", "weights": "openai"}, "cpu")
    assert with_gelu["force_quick_gelu"] is True and with_gelu["require_pretrained"] is True


def test_wrong_protocols():
    with pytest.raises(ConfigError, match="evalcrafter"):
        Clip({"model": "mini_clip"}, protocol="evalcraft")
    with pytest.raises(ConfigError, match="mini_clip was not trained on"):
        Clip({"model": "mini_clip"}, protocol="evalcrafter")


def test_qvd_scores_are_a_hundred_times_the_cosines(tiny_clip):
    spec = {"model": f"local-dir:{tiny_clip}"}
    a, b = videos(2, 4, 48, 56), videos(2, 4, 48, 56).flip(1)
    images = videos(2, 1, 70, 50)[:, 0]
    batch = VideoBatch(a, PROMPTS, b, images=images)
    backbone = open_backbone(spec)
    with torch.no_grad():
        embed = lambda frames: F.normalize(backbone.embed_frames(frames), dim=-1)  # noqa: E731
        text = backbone.embed_text(PROMPTS)
        expected = {"clip_text": [], "clip_domain": [], "clip_smooth": [], "image": []}
        for i in range(2):
            f, r = embed(a[i]), embed(b[i])
            expected["clip_text"].append(100 * np.mean([float(x @ text[i]) for x in f]))
            expected["clip_domain"].append(100 * np.mean([float(x @ y) for x, y in zip(f, r, strict=True)]))
            expected["clip_smooth"].append(100 * np.mean([float(x @ y) for x, y in pairwise(f)]))
            expected["image"].append(100 * np.mean([float(x @ embed(images[i : i + 1])[0]) for x in f]))
    metric, by_image = QVDClip(spec), QVDClip(spec, reference="image")
    for one in (metric, by_image):
        one.update(batch)
    found = metric.compute()
    for name in ("clip_text", "clip_domain", "clip_smooth"):
        np.testing.assert_allclose(found[name].values, expected[name], atol=1e-3)
    np.testing.assert_allclose(by_image.compute()["clip_domain"].values, expected["image"], atol=1e-3)
    assert "reference video" in metric.protocol()["domain"] and "conditioning image" in by_image.protocol()["domain"]
    plain = Clip(spec)
    plain.update(batch)
    assert found["clip_text"].mean == pytest.approx(100 * plain.compute()["clipsim"].mean, rel=1e-6)
    assert found["clip_smooth"].mean == pytest.approx(100 * plain.compute()["clip_temp"].mean, rel=1e-6)


def test_qvd_domain_needs_what_it_compares_with(tiny_clip):
    spec, a = {"model": f"local-dir:{tiny_clip}"}, videos(1, 2, 48, 48)
    with pytest.raises(ConfigError, match="reference videos and got none"):
        QVDClip(spec).update(VideoBatch(a, ["x"]))
    with pytest.raises(ConfigError, match="images that videos were conditioned on"):
        QVDClip(spec, reference="image").update(VideoBatch(a, ["x"], a))
    with pytest.raises(ConfigError, match="reference=frame"):
        QVDClip(spec, reference="frame")
    alone = QVDClip(spec, scores=["clip_text", "clip_smooth"])
    alone.update(VideoBatch(a, ["x"]))
    assert set(alone.compute()) == {"clip_text", "clip_smooth"} and "domain" not in alone.protocol()
    torch.testing.assert_close(clip_domain(torch.ones(1, 3, 4), torch.ones(1, 1, 4)), torch.ones(1))
    with pytest.raises(Unsupported, match="one frame"):
        QVDClip(spec, scores=["clip_smooth"]).update(VideoBatch(a[:, :1], ["x"]))


def test_one_pass_serves_the_whole_family(tiny_clip, monkeypatch):
    spec, a = {"model": f"local-dir:{tiny_clip}"}, videos(2, 3, 48, 48)
    seen, prepare = [], backbones.Backbone.prepare

    def counted(self, frames, preprocessing):
        seen.append(len(frames))
        return prepare(self, frames, preprocessing)

    monkeypatch.setattr(backbones.Backbone, "prepare", counted)
    batch = VideoBatch(a, PROMPTS, a)
    for metric in (Clip(spec), QVDClip(spec, scores=["clip_text", "clip_smooth"])):
        metric.update(batch)
    assert seen == [6]
