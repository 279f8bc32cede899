"""What is read from a results folder, and what is said about what cannot be."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from made_results import FPS, FRAMES, LAYERS, MODEL, OTHER, REFERENCE, SIDE, STATISTICS, STEPS, build, calibration, grey, record

from vdqbench import video
from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.report.html.gather import Videos, gather, largest_by_step
from vdqbench.report.settings import identity

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def found(out):
    return gather(out, out / "report.html", Videos(2), QUIET)


def test_all_records_are_there_with_what_they_were_started_with(found):
    assert len(found.runs) == 11 and sum(run.record.state == "failed" for run in found.runs) == 2
    tsq = next(run for run in found.runs if run.record.cell["method"] == "tsq")
    assert tsq.overrides == ("method=tsq", "metric=[clip,fidelity]") and tsq.folder.is_dir()


def test_words_that_a_sweep_adds_are_not_what_the_user_typed(out):
    path = next(out.glob("runs/*/tsq-w4a4-*")) / ".hydra" / "overrides.yaml"
    before = path.read_text()
    told = {"- study=sweep-1234\n- method=tsq\n": ("method=tsq",), "- study=mine\n": ("study=mine",), "{": (), "x: 1": ()}
    for text, expected in told.items():
        path.write_text(text)
        again = gather(out, out / "report.html", Videos(0), QUIET)
        assert next(run for run in again.runs if run.folder == path.parents[1]).overrides == expected
    path.write_text(before)


def test_the_first_videos_of_each_cell_are_held_by_the_page(found):
    fp = next(run for run in found.runs if run.record.key == REFERENCE[MODEL])
    samples = [sample for name, sample in found.clips if name == identity(fp.record)]
    assert samples == [("0000", 0), ("0001", 0)]
    clip = found.clips[identity(fp.record), ("0000", 0)]
    assert (clip.frames, clip.fps, clip.width, clip.height) == (FRAMES, FPS, SIDE, SIDE)
    start, _, content = clip.source.partition(",")
    assert start == "data:video/mp4;base64" and base64.b64decode(content) == (fp.folder / "videos/0000-0.mp4").read_bytes()


def test_references_come_from_their_cell_or_else_from_the_store(found, out, tmp_path):
    fp = next(run for run in found.runs if run.record.key == REFERENCE[MODEL])
    assert found.references[REFERENCE[MODEL], ("0001", 0)] is found.clips[identity(fp.record), ("0001", 0)]
    made = found.references[REFERENCE[OTHER], ("0000", 0)]
    (tmp_path / "r.mp4").write_bytes(base64.b64decode(made.source.partition(",")[2]))
    frames = video.read(tmp_path / "r.mp4")
    assert len(frames) == FRAMES and made.fps == FPS
    assert [abs(int(frame.mean()) - grey(i)) <= 3 for i, frame in enumerate(frames)] == [True] * FRAMES


def test_links_are_relative_to_the_page_and_escaped(tmp_path):
    out = tmp_path / "results #1"
    build(out)
    page = tmp_path / "pages" / "page.html"
    linked = gather(out, page, Videos.parse("link"), QUIET)
    clip = next(iter(linked.clips.values()))
    assert clip.source.startswith("../results%20%231/runs/mini_") and clip.source.endswith(".mp4")
    made = linked.references[REFERENCE[OTHER], ("0000", 0)]
    assert made.source.startswith("page_videos/") and (page.parent / made.source).is_file()
    assert len(linked.clips) == 24


@pytest.mark.parametrize(("word", "expected"), [("4", Videos(4)), ("0", Videos(0)), ("all", Videos(None)), ("none", Videos(0))])
def test_words_for_videos(word, expected):
    assert Videos.parse(word) == expected and Videos.parse("link") == Videos(None, True)
    with pytest.raises(ConfigError, match=r"videos=-1 must be a number of videos of each cell, all, none or link"):
        Videos.parse("-1")


def test_what_cannot_be_read_is_said(tmp_path):
    build(tmp_path)
    run = next(tmp_path.glob("runs/*/asq-*"))
    (run / "videos" / "0000-0.mp4").write_bytes(b"no video")
    (run / "videos" / "0001-0.mp4").unlink()
    (tmp_path / "store" / "calibration" / STATISTICS[:2] / f"{STATISTICS}.safetensors").write_bytes(b"torn")
    found = gather(tmp_path, tmp_path / "report.html", Videos(), QUIET)
    texts = "\n".join(found.troubles)
    assert len(found.troubles) == 4 and found.activations == {}
    for text in ("table torn.json", "videos/0000-0.mp4 of mini_toy-asq-w4a4", "videos/0001-0.mp4", f"calibration {STATISTICS}"):
        assert text in texts


def test_a_record_shows_files_of_its_own_folder_only(tmp_path):
    build(tmp_path)
    made = record("asq", "w8a8", 0.5)
    folder = tmp_path / "runs" / MODEL / f"asq-w8a8-{made.key}"
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(next(tmp_path.glob("runs/*/fp-*/videos/0000-0.mp4")).read_bytes())
    made.videos[0]["mp4"] = "../../../secret.mp4"
    made.save(folder / "record.json")
    found = gather(tmp_path, tmp_path / "report.html", Videos(1), QUIET)
    assert identity(made) not in {name for name, _ in found.clips}
    assert any("outside of its run folder" in text for text in found.troubles)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no records; run a cell first"):
        gather(tmp_path, tmp_path / "report.html", Videos(), QUIET)


def test_largest_inputs_by_layer_and_step(tmp_path):
    calibration(tmp_path / "c.safetensors")
    heat = largest_by_step(tmp_path / "c.safetensors", {"blocks.1.mlp": "ffn.up", "embed": "embed"})
    assert heat.rows == ("blocks.1.mlp", "embed", "blocks.0.attn.q") and heat.roles == ("ffn.up", "embed", "")
    for name, row in zip(heat.rows, heat.values, strict=True):
        largest = np.array([2 * (list(LAYERS).index(name) + k) + 1 for k in range(STEPS)])
        assert row == pytest.approx(largest)


def test_largest_inputs_look_at_both_bounds(tmp_path):
    import json

    from safetensors.numpy import save_file

    low = np.zeros((2, 3, 1, 4), np.float32)
    low[1, 2, 0, 3] = -7
    about = {"version": 1, "source": {"a": "a"}}
    save_file({"a|min": low, "a|max": np.ones_like(low)}, tmp_path / "c.safetensors", metadata={"calibration": json.dumps(about)})
    assert largest_by_step(tmp_path / "c.safetensors", {}).values == ((1.0, 1.0, 7.0),)


def test_a_file_that_is_no_calibration_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="no layers"):
        largest_by_step(tmp_path / "c.safetensors", {})
