"""Scoring: a user's own videos from the command line, features that are computed once, and set metrics in the runner."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdqbench import video
from vdqbench.cli import main
from vdqbench.collection import Collection, content_key
from vdqbench.errors import ConfigError
from vdqbench.metrics.base import Score, ScoreInfo, Streaming, VideoBatch
from vdqbench.metrics.system import System
from vdqbench.record import Record
from vdqbench.score import Pace, asset_digests, entries, feed, measured, needs_references
from vdqbench.shapes import dataset
from vdqbench.store import Store

MINI = ["model=mini_stdit", "quiet=true"]


def gif(path: Path, frames: np.ndarray) -> None:
    """As lossless as 256 colours are."""
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, loop=0, optimize=False, disposal=2)


def encode(path: Path, frames: np.ndarray, codec: str, pixels: str) -> None:
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=8, options={"crf": "4", "b": "4M"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


def images(folder: Path, frames: np.ndarray, suffix: str) -> None:
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{i}{suffix}", **({"quality": 98} if suffix == ".jpg" else {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, list[str], np.ndarray]:
    """Shapes videos in every format, with names whose natural order is not their alphabetical one."""
    root = tmp_path_factory.mktemp("own") / "videos"
    root.mkdir()
    frames, scenes = dataset("eval", 5, np.arange(6))
    video.write_lossless(root / "v1.mkv", frames[0], 8)
    video.write_mp4(root / "v2.mp4", frames[1], 8, min_side=32)
    gif(root / "v3.gif", frames[2])
    encode(root / "v4.webm", frames[3], "libvpx-vp9", "yuv444p")
    images(root / "v10", frames[4], ".png")
    images(root / "v11", frames[5], ".jpg")
    return root, [scene.caption for scene in scenes], frames


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_every_format_is_scored_and_agrees_with_the_frames(folder, tmp_path, capsys):
    root, captions, frames = folder
    (tmp_path / "prompts.txt").write_text("\n".join(captions) + "\n\n")
    words = ["score", f"videos={root}", f"prompts={tmp_path / 'prompts.txt'}", f"out={tmp_path / 'out'}", "metric=[clip,attributes]"]
    assert main([*words, *MINI]) == 0
    shown = capsys.readouterr().out
    assert "CLIPSIM" in shown and "n = 6 videos" in shown
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["file"] for row in report["videos"]] == ["v1.mkv", "v2.mp4", "v3.gif", "v4.webm", "v10", "v11"]
    assert [row["prompt"] for row in report["videos"]] == captions
    assert {(row["frames"], row["height"], row["width"]) for row in report["videos"]} == {(16, 32, 32)}
    assert report["problems"] == report["failed"] == {} and report["n"] == report["total"] == 6

    from vdqbench.metrics.clip import Clip

    direct = Clip({"model": "mini_clip"})
    direct.update(VideoBatch(torch.from_numpy(frames), captions))
    expected = direct.compute()["clipsim"].values
    found = report["scores"]["clipsim"]["values"]
    assert found[0] == pytest.approx(expected[0], abs=1e-6) and found[4] == pytest.approx(expected[4], abs=1e-6)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert report["scores"]["colour"]["mean"] == 100.0
    assert report["scores"]["clipsim"]["mean"] == pytest.approx(math.fsum(found) / 6)
    rows = table(tmp_path / "out" / "scores.csv")
    assert [float(row["clipsim"]) for row in rows] == [*found, report["scores"]["clipsim"]["mean"]]
    assert rows[-1]["file"] == "mean of 6 of 6"


def test_what_is_missing_or_unreadable_is_named_and_counted(folder, tmp_path, capsys):
    _, captions, frames = folder
    mine = tmp_path / "mine"
    mine.mkdir()
    video.write_lossless(mine / "good.mkv", frames[0], 8)
    (mine / "broken.mp4").write_bytes(b"no video at all")
    video.write_mp4(mine / "cut.mp4", frames[1], 8)
    (mine / "cut.mp4").write_bytes((mine / "cut.mp4").read_bytes()[:-1000])
    video.write_lossless(mine / "silent.mkv", frames[2], 8)
    (mine / "notes.doc").write_text("?")
    prompts = {"good": captions[0], "broken.mp4": captions[1], "cut.mp4": captions[1], "lost.mp4": captions[3]}
    (mine / "prompts.json").write_text(json.dumps(prompts))
    words = ["score", f"videos={mine}", f"prompts={mine / 'prompts.json'}", f"out={tmp_path / 'out'}", "metric=[clip]", "model=mini_stdit"]
    assert main(words) == 1
    shown, told = capsys.readouterr()
    assert "left aside: notes.doc" in told
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(report["problems"]) == {"broken.mp4", "cut.mp4", "silent.mkv", "lost.mp4"}
    assert "cannot be read" in report["problems"]["broken.mp4"] and "has no prompt" in report["problems"]["silent.mkv"]
    assert (report["n"], report["total"]) == (1, 5) and [row["file"] for row in report["videos"]] == ["good.mkv"]
    assert "4 of 5 videos could not be scored" in shown and all(name in shown for name in report["problems"])
    rows = {row["file"]: row for row in table(tmp_path / "out" / "scores.csv")}
    assert set(rows) == {"good.mkv", "broken.mp4", "cut.mp4", "silent.mkv", "lost.mp4", "mean of 1 of 5"} and rows["lost.mp4"]["problem"]


def test_nothing_readable_leaves_no_score(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"")
    (tmp_path / "p.txt").write_text("a red circle growing on a dark background")
    assert main(["score", f"videos={tmp_path / 'v'}", f"prompts={tmp_path / 'p.txt'}", f"out={tmp_path / 'o'}", *MINI]) == 1
    report = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert report["scores"] == {} and report["n"] == 0 and list(report["problems"]) == ["a.mp4"]


def test_sizes_and_lengths_are_scored_in_groups_without_changing_a_score(tmp_path):
    frames, scenes = dataset("eval", 9, np.arange(5))
    captions = [scene.caption for scene in scenes]
    parts = [frames[0], frames[1][:8], frames[2].repeat(2, 1).repeat(2, 2), frames[3][:8], frames[4]]
    (tmp_path / "v").mkdir()
    for i, part in enumerate(parts):
        video.write_lossless(tmp_path / "v" / f"{i}.mkv", part, 8)
    (tmp_path / "p.csv").write_text("file,prompt\n" + "".join(f'{i}.mkv,"{text}"\n' for i, text in enumerate(captions)))
    assert main(["score", f"videos={tmp_path / 'v'}", f"prompts={tmp_path / 'p.csv'}", f"out={tmp_path / 'o'}", *MINI]) == 0
    report = json.loads((tmp_path / "o" / "scores.json").read_text())

    from vdqbench.metrics.clip import Clip

    for i, part in enumerate(parts):
        alone = Clip({"model": "mini_clip"})
        alone.update(VideoBatch(torch.from_numpy(part[None]), captions[i : i + 1]))
        for name, one in alone.compute().items():
            assert report["videos"][i]["scores"][name] == pytest.approx(one.mean, abs=1e-5)
            assert report["scores"][name]["values"][i] == report["videos"][i]["scores"][name]


def test_references_are_matched_by_name(folder, tmp_path):
    root, captions, frames = folder
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    others = tmp_path / "fp"
    others.mkdir()
    for name, one in (("v1", frames[0]), ("v2", frames[1]), ("v3", frames[2]), ("v4", frames[3]), ("v10", frames[4][:, :30])):
        video.write_lossless(others / f"{name}.mkv", one, 8)
    words = ["score", f"videos={root}", f"prompts={tmp_path / 'prompts.txt'}", f"references={others}", f"out={tmp_path / 'o'}"]
    assert main([*words, "metric=[fidelity]", "metric.fidelity.scores=[psnr]", *MINI]) == 1
    report = json.loads((tmp_path / "o" / "scores.json").read_text())
    psnr = {row["file"]: row["scores"]["psnr"] for row in report["videos"]}
    assert psnr["v1.mkv"] == 100.0 and 20 < psnr["v4.webm"] < 100 and list(psnr) == ["v1.mkv", "v2.mp4", "v3.gif", "v4.webm"]
    assert "no reference of the same name" in report["problems"]["v11"] and "has the shape" in report["problems"]["v10"]


def test_images_that_videos_were_made_from(folder, tmp_path):
    root, captions, frames = folder
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, one in (("v1", frames[0, 0]), ("v10", frames[4, 0].repeat(2, 0)), ("v2", frames[1, 0]), ("v3", frames[2, 0])):
        Image.fromarray(one).save(pictures / f"{name}.png")
    (pictures / "v4.png").write_bytes(b"broken")
    words = ["score", f"videos={root}", f"prompts={tmp_path / 'prompts.txt'}", f"out={tmp_path / 'o'}", "metric=[qvd_clip]", *MINI]
    assert main([*words, "metric.qvd_clip.reference=image"]) == 2
    assert main([*words, "metric.qvd_clip.reference=image", f"images={pictures}"]) == 1
    report = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert [row["file"] for row in report["videos"]] == ["v1.mkv", "v2.mp4", "v3.gif", "v10"] and set(report["problems"]) == {
        "v4.webm",
        "v11",
    }
    assert "no image of the same name" in report["problems"]["v11"] and "v4.png cannot be read" in report["problems"]["v4.webm"]

    from vdqbench.metrics.clip import QVDClip

    alone = QVDClip({"model": "mini_clip"}, reference="image", scores=["clip_domain"])
    alone.update(VideoBatch(torch.from_numpy(frames[:1]), captions[:1], images=torch.from_numpy(frames[:1, 0])))
    assert report["scores"]["clip_domain"]["values"][0] == pytest.approx(alone.compute()["clip_domain"].mean, abs=1e-4)


def test_a_metric_that_cannot_be_taken_fails_alone(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    video.write_lossless(tmp_path / "v" / "a.mkv", dataset("eval", 0, np.arange(1))[0][0], 8)
    (tmp_path / "p.txt").write_text("a cat")
    words = ["score", f"videos={tmp_path / 'v'}", f"prompts={tmp_path / 'p.txt'}", f"out={tmp_path / 'o'}", *MINI]
    assert main([*words, "metric=[clip,attributes]"]) == 1
    report = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert list(report["failed"]) == ["attributes"] and "a cat" in report["failed"]["attributes"] and "clipsim" in report["scores"]
    assert "metric attributes failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prompts=p.txt"], "videos must be given"),
        (["videos=v"], "prompts must be given"),
        (["videos=v", "prompts=p.txt", "reference=x"], "did you mean references"),
        (["videos=v", "prompts=p.txt", "method=tsq"], "is not an option of vdqbench score"),
        (["videos=nowhere", "prompts=p.txt"], "is not a folder"),
        (["videos=empty", "prompts=p.txt"], "holds no video"),
        (["videos=v", "prompts=two.txt"], "has 2 lines and there are 1 videos"),
        (["videos=v", "prompts=bad.csv"], "columns file and prompt"),
        (["videos=v", "prompts=bad.json"], "is not JSON"),
        (["videos=v", "prompts=list.json"], "all of them texts"),
        (["videos=v", "prompts=twice.csv"], "names a.mkv twice"),
        (["videos=v", "prompts=none.txt"], "cannot be read"),
        (["videos=v", "prompts=p.txt", "metric=[fidelity]"], "add references=DIR"),
        (["videos=v", "prompts=p.txt", "metric=[system]"], "report of a quantized model"),
        (["videos=v", "prompts=p.txt", "metric=[clp]"], "metric=clp is not an option"),
        (["videos=v", "prompts=p.txt", "metric=[]"], "names no metric"),
        (["videos=v", "prompts=p.txt", "--cfg"], "belongs to cells"),
        (["videos=v", "prompts="], "is empty"),
    ],
)
def test_wrong_use_is_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v").mkdir()
    (tmp_path / "empty").mkdir()
    video.write_lossless(tmp_path / "v" / "a.mkv", np.zeros((2, 8, 8, 3), np.uint8), 8)
    for name, text in {
        "p.txt": "one",
        "two.txt": "one\ntwo",
        "bad.csv": "name,text\na,b\n",
        "bad.json": "{",
        "list.json": "[1]",
        "twice.csv": "file,prompt\na,x\na.mkv,y\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert main(["score", *words, "model=mini_stdit"]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_real_videos_are_not_scored_through_the_mini(tmp_path, capsys, monkeypatch):
    from vdqbench import assets
    from vdqbench.verbs.score import Request

    with pytest.raises(ConfigError, match=r"metric=\[clip\] needs its CLIP ViT-B/32 .* run vdqbench prefetch 'metric=\[clip\]'"):
        Request.parse([f"videos={tmp_path}", "prompts=p.txt"])
    monkeypatch.setattr(assets, "check", lambda needs: None)  # as if the weights were on this machine
    words = [f"videos={tmp_path}", "prompts=p.txt"]
    assert Request.parse(words).metrics["clip"]["backbone"] == {"model": "ViT-B-32", "weights": "openai"}
    assert Request.parse([*words, "model=mini_stdit"]).metrics["clip"]["backbone"]["model"] == "mini_clip"
    own = Request.parse([*words, "metric=[clip]", "metric.clip.backbone={model:ViT-L-14,weights:openai}"])
    assert own.metrics["clip"]["backbone"] == {"model": "ViT-L-14", "weights": "openai"}
    assert main(["score"]) == 0 and "videos=DIR" in capsys.readouterr().out


def test_memory_is_bounded_by_emitting_the_largest_group(tmp_path, monkeypatch):
    from vdqbench import collection

    (tmp_path / "v").mkdir()
    for i in range(7):
        video.write_lossless(tmp_path / "v" / f"{i}.mkv", np.full((2, 8, 8 + i % 2, 3), i, np.uint8), 8)
    (tmp_path / "p.txt").write_text("\n".join("abcdefg"))
    whole = Collection.of(tmp_path / "v", tmp_path / "p.txt")
    assert [len(batch) for _, batch in whole.batches()] == [4, 3]
    monkeypatch.setattr(collection, "BYTES", 800)
    sizes = [(len(batch), batch.videos.shape[3]) for _, batch in whole.batches()]
    assert sum(n for n, _ in sizes) == 7 and max(n * 2 * 8 * width * 3 for n, width in sizes) <= 800
    monkeypatch.setattr(collection, "TOGETHER", 2)
    monkeypatch.setattr(collection, "BYTES", 10**6)
    assert sorted(len(batch) for _, batch in whole.batches()) == [1, 2, 2, 2]


def test_content_keys_name_frames_and_shapes():
    frames = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert content_key(frames) == content_key(frames.copy()[:, ::1]) != content_key(frames.reshape(1, 2, 8, 3))
    assert content_key(frames) != content_key(frames + 1)


class Distance(Streaming):
    """Squared distance of mean colours of two sets: the smallest set metric."""

    mode = "set"
    scores = (ScoreInfo("distance", "Distance", False, 0.0, None),)

    def __init__(self) -> None:
        self.sums, self.n, self.calls = {"videos": 0.0, "references": 0.0}, 0, 0

    def embed(self, frames):
        self.calls += len(frames)
        return frames.double().mean(dim=(1, 2, 3, 4))[:, None]

    def update(self, batch):
        for of in ("videos", "references"):
            self.sums[of] += float(batch.features(of, "mean colour, v1", self.embed).sum())
        self.n += len(batch)

    def compute(self):
        value = ((self.sums["videos"] - self.sums["references"]) / self.n) ** 2
        return {"distance": Score(None, value, self.n, (value / 2, value * 2), f"Distance (n={self.n})")}

    def merge(self, other):
        raise NotImplementedError


def test_features_are_computed_once_for_ever_and_frames_are_not_even_decoded(tmp_path):
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 2, 4, 5, 3), dtype=np.uint8))
    store, first = Store(tmp_path), Distance()
    first.update(VideoBatch(frames[0], "abc", frames[1], store, ["k0", "k1", "k2"], ["r0", "r1", "r2"]))
    assert first.calls == 6

    def never():
        raise AssertionError("decoded")

    again = Distance()
    again.update(VideoBatch(never, "abc", never, store, ["k2", "k0", "k1"], ["r1", "r2", "r0"]))
    assert again.calls == 0 and again.compute()["distance"].mean == pytest.approx(first.compute()["distance"].mean, rel=1e-12)
    partly = Distance()
    partly.update(VideoBatch(lambda: frames[0], "abc", lambda: frames[1], store, ["k0", "new", "k2"], ["r0", "r1", "r2"]))
    assert partly.calls == 1 and partly.compute() == first.compute()
    stored = sorted(key for kind, key, _ in store.entries() if kind == "features")
    assert stored == ["k0", "k1", "k2", "new", "r0", "r1", "r2"], "features are filed under the key of their video"


def test_a_set_metric_is_recorded_with_interval_and_label():
    frames = torch.zeros(2, 2, 4, 4, 3, dtype=torch.uint8)
    metric = Distance()
    feed({"distance": metric}, [VideoBatch(frames, "ab", frames + 2)])
    made = entries("mine", metric, metric.compute())
    assert made == {
        "distance": {
            "mean": 4.0,
            "values": None,
            "n": 2,
            "interval": [2.0, 8.0],
            "label": "Distance (n=2)",
            "higher_is_better": False,
            "metric": "mine",
            "protocol": {"version": 1},
        }
    }
    record = Record("0" * 16, {}, "done", scores=made)
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))).scores["distance"]["interval"] == [2.0, 8.0]


def test_references_are_made_for_those_who_look_at_them():
    assert needs_references({"mode": "paired"}) and needs_references({"mode": "set", "reference": "fp"})
    assert (
        not needs_references({"mode": "set", "reference": "ucf"}) and not needs_references({}) and not needs_references({"reference": "fp"})
    )


def test_a_metric_without_its_weights_is_refused_before_any_video_is_made(tmp_path, capsys):
    for metric, asset in (("vqa", "DOVER"), ("fvd_styleganv", "I3D"), ("vbench_dynamic_degree", "RAFT")):
        assert main([f"metric=[{metric}]", f"out={tmp_path / 'out'}", "quiet=true", "method=fp"]) == 2
        assert f"metric=[{metric}] needs its {asset} " in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.mkv")) and not list(tmp_path.rglob("record.json"))


def test_set_metrics_run_in_a_cell(tmp_path, monkeypatch):
    conf = tmp_path / "conf" / "metric"
    conf.mkdir(parents=True)
    (conf / "distance.yaml").write_text(
        "# @package metric.distance\n_target_: test_score.Distance\nmode: set\nversion: 1\nreference: fp\nscores: [distance]\n"
    )
    monkeypatch.setattr(Distance, "__init__", lambda self, reference=None, scores=None, _start=Distance.__init__: _start(self))
    cell = ["prompts.limit=2", "calibration.prompts.limit=1", "sampler.steps=2", "method=cw_tw", "bits=w4a6", "quiet=true"]
    words = ["--config-dir", str(tmp_path / "conf"), *cell, f"out={tmp_path / 'out'}"]
    assert main([*words, "metric=[distance]"]) == 0
    (path,) = (tmp_path / "out").glob("runs/*/*/record.json")
    score = Record.load(path).scores["distance"]
    assert score["mean"] > 0 and score["values"] is None and score["label"] == "Distance (n=2)"
    assert len(score["interval"]) == 2 and len(list((tmp_path / "out" / "store" / "features").rglob("*.safetensors"))) == 4
    assert main([*words, "metric=[system]"]) == 0
    record = Record.load(path)
    assert {"distance", "weight_size"} <= set(record.scores), "scores of metrics that are not chosen now are kept"


def test_digests_follow_every_file_of_weights(tmp_path):
    one, folder = tmp_path / "w.safetensors", tmp_path / "model"
    one.write_bytes(b"1")
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"2")
    node = {"_target_": "a.b.C", "backbone": {"model": "x"}, "heads": [{"file": str(one)}], "other": f"local-dir:{folder}", "n": 3}
    before = asset_digests(node)
    assert len(before) == 2
    one.write_bytes(b"3")
    assert asset_digests(node)[0] != before[0] and asset_digests(node)[1] == before[1]
    assert asset_digests({"mode": "system"}) == [] and len(asset_digests({"backbone": {"model": "mini_clip"}})) >= 3
    assert set(asset_digests({"_target_": "x.mini_clip.Y", "backbone": {"model": "y"}})) == set(asset_digests({}))
    assert asset_digests({}) == asset_digests({"backbone": {"model": "mini_clip"}})


def test_pace_leaves_the_first_batch_out(monkeypatch):
    from vdqbench import score

    times = iter([10.0, 10.1, 12.0, 12.1, 13.1])
    monkeypatch.setattr(score.time, "perf_counter", lambda: next(times))
    pace = Pace(2, 10)
    assert pace.seconds is None
    for i in (0, 1):
        pace(i)
    assert pace.seconds is None
    for i in (2, 3, 4):
        pace(i)
    assert pace.seconds == pytest.approx(3.0 / 30)


class Calibrated:
    calibration_key = "ab" * 8


def test_measurements_of_a_record_reach_the_system_metric(tmp_path):
    store, report = Store(tmp_path), {"bytes": {"weights": 1}, "weight_bits": 8, "activation_bits": 8}
    record = Record("0" * 16, {"kernel": "int"}, timings={"generate": 9.0, "step": 0.5, "calibrate": 3.0}, peak_memory_bytes=5 * 10**6)
    found = measured(Calibrated, store, record)
    assert found == {"kernel": "int", "calibration_seconds": 3.0, "seconds_per_step": 0.5, "peak_memory_bytes": 5_000_000}
    scores = System().from_report(report, found)
    assert (scores["seconds_per_step"].mean, scores["peak_memory"].mean) == (0.5, 5.0)
    record.timings.pop("generate")
    assert measured(Calibrated, store, record)["peak_memory_bytes"] is None, "videos that were there already say nothing"
    store.put("timing", Calibrated.calibration_key, ".json", lambda path: path.write_text('{"seconds": 7.5}'))
    assert measured(Calibrated, store, record)["calibration_seconds"] == 7.5
    record.cell["kernel"] = "sim"
    assert not {"seconds_per_step", "peak_memory"} & set(System().from_report(report, measured(Calibrated, store, record)))
