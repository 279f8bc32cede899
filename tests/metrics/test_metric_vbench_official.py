"""The runner of the official VBench: a fake package in a real Python process, names of files, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vdqbench import video
from vdqbench.errors import ConfigError
from vdqbench.metrics import vbench_official
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.totals import BOUNDS, QUALITY, quality
from vdqbench.metrics.vbench_official import VBenchOfficial, standard_name

PACKAGE = """
import json, os
class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info, self.output = device, full_info_dir, output_path
        os.makedirs(output_path, exist_ok=True)
    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, mode="vbench_standard", **kwargs):
        assert kwargs == {"imaging_quality_preprocessing_mode": "longer"}
        files = sorted(os.listdir(videos_path))
        if os.environ.get("FAKE") == "crash":
            raise ValueError("no GPU here")
        if os.environ.get("FAKE") == "drop":
            files = files[1:]
        results = {}
        for k, dimension in enumerate(dimension_list):
            scale = 100 if dimension == "imaging_quality" else 1
            values = [(0.5 + 0.01 * k + 0.1 * i) * scale for i, _ in enumerate(files)]
            listed = [{"video_path": os.path.join(videos_path, f), "video_results": v} for f, v in zip(files, values)]
            results[dimension] = [sum(values) / len(values) / scale, listed]
        with open(os.path.join(self.output, name + "_eval_results.json"), "w") as out:
            json.dump(results, out)
        seen = {"prompts": prompt_list, "files": files, "mode": mode, "device": self.device, "full_info": self.full_info}
        with open(os.environ["SEEN"], "w") as out:
            json.dump(seen, out)
"""


@pytest.fixture
def python(tmp_path, monkeypatch) -> str:
    """An executable that runs this Python with a fake `vbench` and a fake `torch` to import."""
    site = tmp_path / "site"
    (site / "vbench").mkdir(parents=True)
    (site / "vbench" / "__init__.py").write_text(PACKAGE)
    (site / "vbench-0.1.5.dist-info").mkdir()
    (site / "vbench-0.1.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
    (site / "torch.py").write_text("def device(name):\n    return name\n")
    executable = tmp_path / "python of theirs"
    executable.write_text(f"#!/bin/sh\nPYTHONPATH='{site}' exec '{sys.executable}' -S \"$@\"\n")
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return str(executable)


def batch(count: int = 3, seed: int = 0, prompts: list[str] | None = None) -> VideoBatch:
    frames = torch.randint(0, 256, (count, 2, 15, 21, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return VideoBatch(frames, prompts or [f"a/../{i}; rm -rf $HOME 'x'" for i in range(count)])


def names(*dimensions: str) -> list[str]:
    return [f"vbench_official_{name}" for name in dimensions]


def test_custom_videos_go_out_lossless_with_their_prompts_and_scores_come_back(python, tmp_path):
    metric = VBenchOfficial(python, fps=8, device="cpu", scores=names("subject_consistency", "imaging_quality"))
    given = batch()
    metric.update(given)
    scores = metric.compute()
    assert scores["vbench_official_subject_consistency"].values == pytest.approx([0.5, 0.6, 0.7])
    assert scores["vbench_official_imaging_quality"].values == pytest.approx([0.51, 0.61, 0.71])
    assert scores["vbench_official_imaging_quality"].mean == pytest.approx(0.61) and scores["vbench_official_imaging_quality"].n == 3
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["files"] == ["000000.mp4", "000001.mp4", "000002.mp4"] and seen["mode"] == "custom_input" and seen["device"] == "cpu"
    assert seen["prompts"] == dict(zip(seen["files"], given.prompts, strict=True))
    assert seen["full_info"].endswith("vbench/VBench_full_info.json")
    written = video.read(Path(metric._folder.name) / "videos" / "000001.mp4")
    np.testing.assert_array_equal(written, given.videos[1].numpy())


def test_a_total_is_computed_when_its_group_is_complete(python):
    metric = VBenchOfficial(python, fps=8, scores=names(*QUALITY, "quality"))
    metric.update(batch())
    scores = metric.compute()
    means = {name: scores[f"vbench_official_{name}"].mean for name in QUALITY}
    assert scores["vbench_official_quality"].mean == pytest.approx(quality(means)) and scores["vbench_official_quality"].values is None
    with pytest.raises(ConfigError, match=r"object_class, .* are missing"):
        VBenchOfficial(python, "vbench_standard", fps=8, scores=names(*QUALITY, "quality", "total"))
    with pytest.raises(ConfigError, match="dynamic_degree is missing"):
        VBenchOfficial(python, fps=8, scores=names(*(name for name in QUALITY if name != "dynamic_degree"), "quality"))


def test_every_score_of_a_protocol(python):
    custom, standard = VBenchOfficial(python, fps=8), VBenchOfficial(python, "vbench_standard", fps=8)
    assert len(custom.scores) == 10 + 1 and len(standard.scores) == 16 + 3
    assert {info.name for info in standard.scores} == set(names(*BOUNDS, "quality", "semantic", "total"))
    with pytest.raises(ConfigError, match="vbench_official_scene is not a score of vbench_official with protocol=custom_input"):
        VBenchOfficial(python, fps=8, scores=names("scene"))


def test_standard_videos_are_named_by_prompt_and_number(python, tmp_path):
    metric = VBenchOfficial(python, "vbench_standard", fps=8, scores=names("scene"))
    metric.update(batch(3, prompts=["alley", "art gallery", "alley"]))
    score = metric.compute()["vbench_official_scene"]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["files"] == ["alley-0.mp4", "alley-1.mp4", "art gallery-0.mp4"] and seen["prompts"] == []
    assert score.values is None and score.n == 3 and score.mean == pytest.approx(0.6)


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "a\\b", "", ".hidden", "two\nlines", "nul\0", "x" * 260])
def test_prompts_that_cannot_be_names_are_refused(python, prompt):
    with pytest.raises(ConfigError, match="use protocol=custom_input"):
        standard_name(prompt, 0)
    metric = VBenchOfficial(python, "vbench_standard", fps=8, scores=names("scene"))
    with pytest.raises(ConfigError, match="cannot be a file's name"):
        metric.update(batch(1, prompts=[prompt]))
    assert not (Path(metric._folder.name) / "videos").exists()


def test_merged_shards_equal_the_whole(python):
    prompts = ["alley", "river", "alley", "river", "alley"]
    for protocol, wanted in (("custom_input", names("temporal_flickering")), ("vbench_standard", names("scene"))):
        whole, first, rest = (VBenchOfficial(python, protocol, fps=8, scores=wanted) for _ in range(3))
        videos = batch(5, prompts=prompts)
        whole.update(videos)
        first.update(VideoBatch(videos.videos[:2], prompts[:2]))
        rest.update(VideoBatch(videos.videos[2:], prompts[2:]))
        first.merge(rest)
        assert first.compute() == whole.compute() and first._files == whole._files
    with pytest.raises(ValueError, match="can only be merged"):
        first.merge(VBenchOfficial(python, "vbench_standard", fps=9, scores=wanted))


def test_failures_are_one_sentence(python, monkeypatch):
    metric = VBenchOfficial(python, fps=8, scores=names("temporal_flickering"))
    with pytest.raises(ValueError, match="has seen no video"):
        metric.compute()
    metric.update(batch(2))
    monkeypatch.setenv("FAKE", "crash")
    with pytest.raises(RuntimeError, match="exit code 1: ValueError: no GPU here") as caught:
        metric.compute()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("FAKE", "drop")
    with pytest.raises(RuntimeError, match=r"left out 1 of 2 videos in temporal_flickering, the first 000000\.mp4"):
        metric.compute()


def test_standard_videos_that_no_dimension_looked_at_are_an_error(python, monkeypatch):
    metric = VBenchOfficial(python, "vbench_standard", fps=8, scores=names("scene"))
    metric.update(batch(2, prompts=["alley", "not in the list"]))
    monkeypatch.setenv("FAKE", "drop")
    with pytest.raises(RuntimeError, match=r"looked at none of 1 videos, the first alley-0\.mp4"):
        metric.compute()


def test_options_are_checked_before_anything_runs(python, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\nexit 1\n")
    plain.chmod(0o755)
    folder = str(tmp_path)
    for value, message in ((None, "is not an executable"), (folder, "is not an executable"), (str(plain), "has no package vbench")):
        with pytest.raises(ConfigError, match=message) as caught:
            VBenchOfficial(value, fps=8)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="frames per second"):
        VBenchOfficial(python)
    with pytest.raises(ConfigError, match="custom_input or vbench_standard"):
        VBenchOfficial(python, "custom", fps=8)


def test_no_shell_is_used_and_the_driver_is_no_module_of_theirs(python, monkeypatch):
    started = []
    run = vbench_official.subprocess.run
    monkeypatch.setattr(vbench_official.subprocess, "run", lambda command, **o: started.append((command, o)) or run(command, **o))
    metric = VBenchOfficial(python, fps=8, scores=names("temporal_flickering"))
    metric.update(batch(1))
    metric.compute()
    assert len(started) == 2
    for command, options in started:
        assert isinstance(command, list) and command[0] == python and command[1] == "-c" and not options.get("shell")
    assert "import vdqbench" not in started[1][0][2] and os.path.isabs(started[1][0][3])


def test_protocol_has_no_path(python):
    metric = VBenchOfficial(python, fps=8)
    text = json.dumps(metric.protocol(), allow_nan=False)
    assert python not in text and metric.protocol()["library"] == "vbench 0.1.5" and metric.protocol()["protocol"] == "custom_input"
