"""The machinery of distances between sets, with a detector that needs no network: means, and what changes from frame to frame."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from filled import movie

from vdqbench import video
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import ScoreInfo, VideoBatch
from vdqbench.metrics.detector import Detector, read_statistics, write_statistics
from vdqbench.metrics.distances import frechet, kernel_distance
from vdqbench.metrics.frechet import Distance, SetDistance
from vdqbench.store import Store


def network(videos):
    x = videos.double() / 255
    return torch.stack(
        [x.mean(dim=(1, 2, 3, 4)), *x.mean(dim=(1, 2, 3)).T, ((x[:, 1:] - x[:, :-1]) * x[:, 1:]).mean(dim=(1, 2, 3, 4))], dim=1
    )


PLAIN = Detector("plain", "plain net", 5, 2, "abc", {"resize": "none"}, None, network)


def distances(detector=PLAIN, ddof=1):
    return (
        Distance(ScoreInfo("fd", "FD", False, 0.0, None), "frechet", detector, ddof),
        Distance(ScoreInfo("kd", "KD", False, None, None), "kernel", detector),
    )


@pytest.fixture
def pair():
    references = movie(24, 6, 9, 11)
    noise = torch.randn(references.shape, generator=torch.Generator().manual_seed(0)) * 30
    return (references + noise).clamp(0, 255).byte(), references


def measured(metric, videos, references=None, size=7):
    for part in range(0, len(videos), size):
        chosen = slice(part, part + size)
        batch = videos[chosen]
        metric.update(VideoBatch(batch, [f"prompt {i}" for i in range(len(batch))], None if references is None else references[chosen]))
    return metric


def values(metric):
    return {name: score.mean for name, score in metric.compute().items()}


def test_scores_are_the_distances_of_the_features(pair):
    x, y = (network(side).float() for side in pair)
    scores = measured(SetDistance(distances()), *pair).compute()
    assert scores["fd"].mean == pytest.approx(frechet(x, y), rel=1e-9)
    assert scores["kd"].mean == pytest.approx(kernel_distance(x, y, paired=True), rel=1e-9)
    assert measured(SetDistance(distances(ddof=0)), *pair).compute()["fd"].mean == pytest.approx(frechet(x, y, 0), rel=1e-9)
    for score in scores.values():
        assert score.n == 24 and score.values is None
        assert score.interval[0] <= score.mean <= score.interval[1]


def test_batches_shards_and_order_change_nothing(pair):
    whole = values(measured(SetDistance(distances()), *pair, size=24))
    assert values(measured(SetDistance(distances()), *pair, size=1)) == pytest.approx(whole, rel=1e-10)
    order = torch.randperm(24)
    assert values(measured(SetDistance(distances()), pair[0][order], pair[1][order])) == pytest.approx(whole, rel=1e-10)
    shards = [measured(SetDistance(distances()), pair[0][part], pair[1][part]) for part in (slice(5), slice(5, 6), slice(6, 24))]
    shards[0].merge(shards[1])
    shards[0].merge(shards[2])
    assert values(shards[0]) == pytest.approx(whole, rel=1e-10)
    assert shards[0].protocol() == measured(SetDistance(distances()), *pair).protocol()
    assert shards[0].compute()["fd"].interval == pytest.approx(measured(SetDistance(distances()), *pair).compute()["fd"].interval, rel=1e-9)


def test_equal_sets_have_no_distance_and_frames_out_of_order_do(pair):
    _, references = pair
    same = measured(SetDistance(distances()), references.clone(), references).compute()
    assert same["fd"].mean == pytest.approx(0, abs=1e-9) and same["kd"].mean == 0
    assert same["fd"].interval[1] < 1e-6 and same["kd"].interval == pytest.approx((0, 0), abs=1e-12)
    shuffled = references[:, [3, 0, 4, 1, 5, 2]]
    assert values(measured(SetDistance(distances()), shuffled, references))["fd"] > 1e-5


def test_the_label_says_detector_n_and_frames_and_warns(pair):
    few = measured(SetDistance(distances()), pair[0][:4], pair[1][:4])
    scores = few.compute()
    assert scores["fd"].label == "FD (plain net, n=4<5, 6 frames)"
    assert scores["kd"].label == "KD (plain net, n=4, 6 frames)"
    assert few.protocol()["warning"].startswith("n=4 is below the 5 features")
    enough = measured(SetDistance(distances()), *pair)
    assert enough.compute()["fd"].label == "FD (plain net, n=24, 6 frames)"
    assert "warning" not in enough.protocol()


def test_the_protocol_names_all_that_decides_the_values(pair):
    protocol = json.loads(json.dumps(measured(SetDistance(distances()), *pair).protocol()))
    assert protocol["n"] == 24 and protocol["frames"] == 6 and protocol["reference"] == "fp" and protocol["one_video"] == "means only"
    assert protocol["detectors"]["plain"] == {
        "version": 1,
        "detector": "plain net",
        "sha256": "abc",
        "resize": "none",
        "looked_at": "all",
    }
    assert protocol["distances"]["fd"] == {"distance": "Frechet", "features": "plain", "ddof": 1}
    assert protocol["interval"] == {"level": 0.95, "resamples": 200, "seed": 0, "around": "the estimate", "drawn": "pairs"}


def test_one_video_has_a_distance_of_means_and_no_interval(pair):
    metric = measured(SetDistance(distances(), scores=["fd"]), pair[0][:1], pair[1][:1])
    x, y = (network(side[:1]).float().double() for side in pair)
    score = metric.compute()["fd"]
    assert score.mean == pytest.approx((x - y).square().sum().item(), rel=1e-6)
    assert score.interval is None
    with pytest.raises(Unsupported, match="kd needs two videos and got one; score more videos or leave it out of scores"):
        measured(SetDistance(distances()), pair[0][:1], pair[1][:1]).compute()


def test_statistics_stand_for_the_reference_videos(pair, tmp_path):
    videos, references = pair
    path = write_statistics([PLAIN], references.numpy(), tmp_path / "reference.safetensors")
    metric = measured(SetDistance(distances(), reference=str(path)), videos)
    x, y = (network(side).float() for side in pair)
    scores = metric.compute()
    assert scores["fd"].mean == pytest.approx(frechet(x, y), rel=1e-9)
    assert scores["kd"].mean == pytest.approx(kernel_distance(x, y), rel=1e-9)
    assert scores["fd"].label == "FD (plain net, n=24 vs 24, 6 frames)"
    assert metric.protocol()["reference"] == {"plain": {"n": 24, "frames": 6}}
    moments = write_statistics([PLAIN], references, tmp_path / "moments.safetensors", keep_features=False)
    assert read_statistics(moments, PLAIN).features is None
    metric = measured(SetDistance(distances(), reference=str(moments), scores=["fd"]), videos)
    assert metric.compute()["fd"].mean == pytest.approx(scores["fd"].mean, rel=1e-6)
    with pytest.raises(Unsupported, match=r"kd needs features and .*moments alone"):
        SetDistance(distances(), reference=str(moments))


def test_statistics_of_a_folder_of_videos(pair, tmp_path):
    for i, frames in enumerate(pair[1][:5].numpy()):
        video.write_lossless(tmp_path / "videos" / f"{i}.mkv", frames, 8)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    found = read_statistics(write_statistics([PLAIN], tmp_path / "videos", tmp_path / "s.safetensors"), PLAIN)
    assert (found.n, found.frames) == (5, 6)
    torch.testing.assert_close(found.features, network(pair[1][:5]).float())
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"video .*broken\.mp4 cannot be read"):
        write_statistics([PLAIN], tmp_path / "videos", tmp_path / "t.safetensors")


def test_statistics_of_another_protocol_are_refused(pair, tmp_path):
    path = write_statistics([PLAIN], pair[1], tmp_path / "reference.safetensors")
    for other, message in (
        (replace(PLAIN, sha256="def"), "made with sha256=abc and the metric has sha256=def"),
        (replace(PLAIN, preprocessing={"resize": "crop"}), "made with resize=none and the metric has resize=crop"),
        (replace(PLAIN, frames=5), "made with looked_at=all and the metric has looked_at=first 5"),
        (replace(PLAIN, name="other"), "holds statistics of plain and none of other"),
    ):
        with pytest.raises(ConfigError, match=message):
            SetDistance(distances(other), reference=str(path))
    with pytest.raises(Unsupported, match="got videos of 4 and 6 frames"):
        measured(SetDistance(distances(), reference=str(path)), pair[0][:, :4])


def test_wrong_files_of_statistics_are_refused(pair, tmp_path):
    with pytest.raises(ConfigError, match="reference=fpp is neither fp nor a file of statistics"):
        SetDistance(distances(), reference="fpp")
    (tmp_path / "text.safetensors").write_text("no statistics")
    with pytest.raises(ConfigError, match=r"reference=.*text\.safetensors cannot be read"):
        SetDistance(distances(), reference=str(tmp_path / "text.safetensors"))
    with pytest.raises(ConfigError, match=r"must be named a\.safetensors"):
        write_statistics([PLAIN], pair[1], tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="there is no video in what was given"):
        write_statistics([PLAIN], [], tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is not a folder of videos"):
        write_statistics([PLAIN], tmp_path / "gone", tmp_path / "a.safetensors")
    with pytest.raises(Unsupported, match=r"the videos have \[5, 6\] frames"):
        write_statistics([PLAIN], [*pair[1][:2], pair[1][2][:5]], tmp_path / "a.safetensors")


def test_stored_features_need_no_frames(pair, tmp_path):
    """A second run takes features, and how many frames they are of, from the store."""
    store, keys = Store(tmp_path), [f"{i:040x}" for i in range(24)]
    others = [f"{i + 100:040x}" for i in range(24)]
    first = SetDistance(distances())
    first.update(VideoBatch(pair[0], [""] * 24, pair[1], store, keys, others))

    def never():
        raise AssertionError("decoded")

    second = SetDistance(distances())
    second.update(VideoBatch(never, [""] * 24, never, store, keys, others))
    assert second.compute() == first.compute()


def test_the_first_frames_alone_can_be_looked_at(pair):
    cut = SetDistance(distances(replace(PLAIN, frames=4)))
    assert values(measured(cut, *pair)) == values(measured(SetDistance(distances()), pair[0][:, :4], pair[1][:, :4]))
    assert cut.compute()["fd"].label == "FD (plain net, n=24, 4 frames)"
    longer = torch.cat([pair[0], pair[0]], dim=1), torch.cat([pair[1], pair[1]], dim=1)
    measured(cut, *longer)
    assert cut.compute()["fd"].n == 48


def test_what_cannot_be_measured_is_refused(pair):
    videos, references = pair
    with pytest.raises(ConfigError, match="reference=fp compares with the full-precision videos and got none"):
        measured(SetDistance(distances()), videos)
    with pytest.raises(ValueError, match="has seen no video"):
        SetDistance(distances()).compute()
    with pytest.raises(Unsupported, match="plain net needs 2 frames and these videos have 1"):
        measured(SetDistance(distances()), videos[:, :1], references[:, :1])
    mixed = measured(SetDistance(distances()), videos, references)
    with pytest.raises(Unsupported, match="got videos of 4 and 6 frames, whose features are not comparable; set frames"):
        measured(mixed, videos[:, :4], references[:, :4])
    with pytest.raises(Unsupported, match="got videos of 4 and 6 frames"):
        mixed.merge(measured(SetDistance(distances()), videos[:, :4], references[:, :4]))
    with pytest.raises(ValueError, match="can only be merged when their protocols and scores are equal"):
        mixed.merge(SetDistance(distances(ddof=0)))
    with pytest.raises(ConfigError, match=r"scores=fdd is not a score of SetDistance \(did you mean fd"):
        SetDistance(distances(), scores=["fdd"])
    broken = replace(PLAIN, network=lambda part: torch.full((len(part), 5), float("nan")))
    with pytest.raises(ValueError, match="not finite for the video of prompt 'prompt 0'"):
        measured(SetDistance(distances(broken)), videos, references)


def test_resamples_can_be_left_out_and_are_seeded(pair):
    without = measured(SetDistance(distances(), resamples=0), *pair)
    assert without.compute()["fd"].interval is None and without.protocol()["interval"] is None
    first, again, other = (measured(SetDistance(distances(), seed=seed), *pair).compute()["fd"] for seed in (1, 1, 2))
    assert first == again and first.interval != other.interval and first.mean == other.mean


def test_grey_and_odd_sized_videos_are_measured(pair):
    grey = pair[0].float().mean(dim=-1, keepdim=True).byte().expand_as(pair[0])
    odd = measured(SetDistance(distances()), grey[:, :, :7, :5], pair[1][:, :, :7, :5])
    assert np.isfinite(odd.compute()["fd"].mean)
