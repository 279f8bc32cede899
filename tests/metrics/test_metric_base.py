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
    import importlib
    import inspect

    text = path.read_text()
    assert text.splitlines()[0] == f"# @package metric.{path.stem}"
    node = yaml.safe_load(text)
    module, name = node.pop("_target_").rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    assert (node.pop("mode"), node.pop("version")) == (kind.mode, kind.version)
    assert set(node) <= set(inspect.signature(kind).parameters)
    scores = node.pop("scores")
    if "backbone" in node:
        node["backbone"] = {"model": f"local-dir:{tiny_clip}"}
    metric = kind(**node)
    assert [info.name for info in metric.scores] == scores
    assert metric.protocol()["version"] == kind.version
    for info in metric.scores:
        assert info.low is None or info.high is None or info.low < info.high
