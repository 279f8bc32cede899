"""Batches, scores and the streaming frame that all metrics share."""

from __future__ import annotations

import pytest
import torch
import yaml

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import PerVideo, Score, ScoreInfo, VideoBatch


def batch(values: list[int], references: bool = False) -> VideoBatch:
    videos = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 5, 3)
    return VideoBatch(videos, [f"video {v}" for v in values], videos if references else None)


class Brightness(PerVideo):
    mode = "single"
    available = (ScoreInfo("mean", "Mean", True, 0, 255), ScoreInfo("inverse", "1 / mean", False, 0, None))

    def measure(self, batch):
        mean = batch.memo("mean", lambda: batch.videos.float().mean(dim=(1, 2, 3, 4)))
        return {"mean": mean, "inverse": 1 / mean}


class Paired(Brightness):
    mode = "paired"


def test_streams_values_in_order_with_their_mean():
    metric = Brightness()
    metric.update(batch([1, 2]))
    metric.update(batch([4]))
    assert metric.compute() == {"mean": Score([1, 2, 4], 7 / 3, 3), "inverse": Score([1, 0.5, 0.25], 1.75 / 3, 3)}


def test_merged_shards_equal_the_whole():
    whole, first, second = Brightness(), Brightness(), Brightness()
    whole.update(batch([1, 2, 3, 7]))
    first.update(batch([1]))
    second.update(batch([2, 3, 7]))
    first.merge(second)
    assert first.compute() == whole.compute()
    with pytest.raises(ValueError, match="can only be merged"):
        first.merge(Brightness(scores=["mean"]))


def test_scores_can_be_chosen():
    metric = Brightness(scores=["inverse"])
    metric.update(batch([2]))
    assert list(metric.compute()) == ["inverse"]
    with pytest.raises(ConfigError, match="mean"):
        Brightness(scores=["men"])
    with pytest.raises(ConfigError, match="empty"):
        Brightness(scores=[])


def test_nothing_seen_and_values_that_are_not_finite_are_errors():
    metric = Brightness()
    with pytest.raises(ValueError, match="has seen no video"):
        metric.compute()
    with pytest.raises(ValueError, match="inverse is inf for the video of prompt 'video 0'"):
        metric.update(batch([5, 0]))
    with pytest.raises(ValueError, match="has seen no video"):
        metric.compute()


def test_paired_metrics_need_references():
    Paired().update(batch([1], references=True))
    with pytest.raises(ConfigError, match="reference"):
        Paired().update(batch([1]))


def test_memo_computes_once_per_key():
    calls = []
    b = batch([1])
    assert [b.memo("a", lambda: calls.append(1) or 7), b.memo("a", lambda: 8), b.memo("b", lambda: 9)] == [7, 7, 9]
    assert calls == [1]


def test_batches_refuse_what_they_would_have_to_guess():
    videos = torch.zeros(2, 3, 5, 7, 3, dtype=torch.uint8)
    assert len(VideoBatch(videos, ["a", "b"])) == 2
    for kind in (videos.float(), videos.long(), videos.numpy()):
        with pytest.raises(TypeError, match="uint8 tensor"):
            VideoBatch(kind, ["a", "b"])
    for shape in (videos[0], videos[..., :1], videos[:0], videos[:, :0]):
        with pytest.raises(ValueError, match=r"\[N, T, H, W, 3\]"):
            VideoBatch(shape, ["a"] * len(shape))
    with pytest.raises(ValueError, match="1 prompts do not fit 2 videos"):
        VideoBatch(videos, ["a"])
    with pytest.raises(ValueError, match="shape of the videos"):
        VideoBatch(videos, ["a", "b"], videos[:, :2])


def nodes():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "conf" / "metric"
    return [pytest.param(path, id=path.stem) for path in sorted(folder.glob("*.yaml"))]


@pytest.mark.parametrize("path", nodes())
def test_every_metric_file_agrees_with_its_class(path, tiny_clip):
    """A metric that is refused for what it lacks here must say which option, or which package, gives it."""
    import importlib
    import inspect

    text = path.read_text()
    node = yaml.safe_load(text)
    if "defaults" in node:
        assert text.splitlines()[0] == "# @package _global_" and all((path.parent / f"{name}.yaml").is_file() for name in node["defaults"])
        return
    assert text.splitlines()[0] == f"# @package metric.{path.stem}"
    module, name = node.pop("_target_").rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    assert (node.pop("mode"), node.pop("version")) == (kind.mode, kind.version)
    assert set(node) <= set(inspect.signature(kind).parameters)
    scores = node.pop("scores")
    if module.rpartition(".")[2] in ("clip", "fidelity"):
        node["backbone"] = {"model": f"local-dir:{tiny_clip}"}
    try:
        metric = kind(**node, **({"scores": scores} if "scores" in inspect.signature(kind).parameters else {}))
    except ConfigError as error:
        wanting = [key for key, value in node.items() if value is None or isinstance(value, dict | str)]
        assert any(key in str(error) for key in (*wanting, "backbone.weights", "pip install")) and "\n" not in str(error)
        return
    assert [info.name for info in metric.scores] == (scores or [info.name for info in metric.scores])
    assert metric.protocol()["version"] == kind.version
    for info in metric.scores:
        assert info.low is None or info.high is None or info.low < info.high


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 5, 3)


def test_features_are_computed_once_per_batch_key_and_side():
    calls = []

    def embed(frames):
        calls.append(len(frames))
        return frames.float().mean(dim=(1, 2, 3, 4))[:, None]

    both = VideoBatch(rows(1, 2), "ab", rows(3, 4))
    assert both.features("videos", "k", embed).tolist() == both.features("videos", "k", embed).tolist() == [[1], [2]]
    assert both.features("references", "k", embed).tolist() == [[3], [4]] and calls == [2, 2]
    both.features("videos", "other", embed)
    assert calls == [2, 2, 2]
    with pytest.raises(ValueError, match="has none"):
        VideoBatch(rows(1), "a").features("references", "k", embed)
    for wrong in (lambda frames: frames.float().mean(), lambda frames: torch.zeros(3, 1)):
        with pytest.raises(ValueError, match="do not fit 2 videos"):
            VideoBatch(rows(1, 2), "ab").features("videos", "k", wrong)


def test_frames_are_decoded_when_they_are_looked_at():
    decoded = []

    def load(*values):
        return lambda: decoded.append(values) or rows(*values)

    lazy = VideoBatch(load(1, 2), "ab", load(3, 4))
    assert len(lazy) == 2 and lazy.has_references and lazy.has("references") and not lazy.has("images") and decoded == []
    assert lazy.references[1, 0, 0, 0, 0] == 4 and lazy.references is lazy.references and decoded == [(3, 4)]
    assert lazy.videos[0, 0, 0, 0, 0] == 1 and decoded == [(3, 4), (1, 2)]
    with pytest.raises(ValueError, match="2 prompts do not fit 1 videos"):
        VideoBatch(load(1), "ab").videos  # noqa: B018
    with pytest.raises(ValueError, match="shape of the videos"):
        VideoBatch(rows(1), "a", lambda: rows(1)[:, :1]).references  # noqa: B018
    with pytest.raises(ValueError, match="1 keys do not fit 2 videos"):
        VideoBatch(rows(1, 2), "ab", keys=["k"])
    with pytest.raises(ValueError, match="at least one video"):
        VideoBatch(load(), [])


def test_conditioning_images_may_have_another_size():
    images = torch.full((2, 9, 4, 3), 7, dtype=torch.uint8)
    batch = VideoBatch(rows(1, 2), "ab", images=images)
    assert batch.images.shape == images.shape
    assert batch.features("images", "k", lambda frames: frames.float().mean(dim=(1, 2, 3, 4))).tolist() == [7, 7]
    assert VideoBatch(rows(1), "a").images is None


def test_stored_features_survive_corruption_and_batching(tmp_path):
    from vdqbench.store import Store

    store, seen = Store(tmp_path), []

    def embed(frames):
        seen.append(len(frames))
        return frames.float().mean(dim=(2, 3, 4))

    whole = VideoBatch(rows(1, 2, 3), "abc", store=store, keys=["x", "y", "z"]).features("videos", "k", embed)
    parts = [
        VideoBatch(rows(1, 2), "ab", store=store, keys=["x", "y"]).features("videos", "k", embed),
        VideoBatch(rows(3), "c", store=store, keys=["z"]).features("videos", "k", embed),
    ]
    assert torch.equal(torch.cat(parts), whole) and seen == [3]
    file = next(path for path in (tmp_path / "features").rglob("x.*.safetensors"))
    file.write_bytes(b"broken")
    again = VideoBatch(rows(1, 2, 3), "abc", store=store, keys=["x", "y", "z"]).features("videos", "k", embed)
    assert torch.equal(again, whole) and seen == [3, 1]
    VideoBatch(rows(1), "a", store=store, keys=["x"]).features("videos", "k2", embed)
    assert seen == [3, 1, 1], "another key, other features"


def test_prompts_are_embedded_once_for_ever(tmp_path):
    from vdqbench.store import Store

    store, seen = Store(tmp_path), []

    def embed(texts):
        seen.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    first = VideoBatch(rows(1, 2), ["a", "bb"], store=store)
    assert first.texts("k", embed).tolist() == first.texts("k", embed).tolist() == [[1], [2]]
    assert VideoBatch(rows(1, 2, 3), ["ccc", "bb", "a"], store=store).texts("k", embed).tolist() == [[3], [2], [1]]
    assert seen == ["a", "bb", "ccc"]
    assert VideoBatch(rows(1), ["a"]).texts("k", embed).tolist() == [[1]] and seen[-1] == "a"
    with pytest.raises(ValueError, match="do not fit 1 videos"):
        VideoBatch(rows(1), ["a"]).texts("k", lambda texts: torch.zeros(2, 1))
