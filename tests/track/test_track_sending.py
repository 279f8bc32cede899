"""What wandb keeps offline, read back from its own files: the runs of cells and of a table."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tracked import FP, TSQ, Sent, results

from vdqbench import video
from vdqbench.track import content, media
from vdqbench.track.background import empty
from vdqbench.track.facts import Facts
from vdqbench.track.queue import Job, Queue
from vdqbench.track.wandb import Wandb, mark

CLEARED = ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


@pytest.fixture(scope="module")
def sent(tmp_path_factory) -> dict[str, Any]:
    """A results folder published offline, the reference twice; the folders, what each run holds, and what appeared in the home folder."""
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("out")
    folders = results(out, films=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in CLEARED:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        before = dict(os.environ)
        tracker = Wandb(mode="auto", max_videos=1, project="ptq")
        for paths in (list(folders.values()), [folders["fp"]]):
            assert tracker.queue(out, paths, again=True)
            found = dict(empty(out))
            assert found.keys() == set(paths) and all(ok for ok, _ in found.values()), found
        assert dict(os.environ) == before
    runs = {name: Sent(out / "wandb/table-mine-table1" if name == "table" else folder) for name, folder in folders.items()}
    return {"folders": folders, "runs": runs, "home": {str(path.relative_to(home)) for path in home.rglob("*")}, "out": out}


def test_the_runs_are_the_cells(sent):
    run = sent["runs"]["tsq"].run
    assert (run.run_id, run.project, run.run_group, run.job_type) == (TSQ, "ptq", "mine/table1", "cell")
    assert run.display_name == "mini_stdit-tsq-w4a8" and set(run.tags) == {"mini_stdit", "tsq", "w4a8", "sim", "mine/table1"}
    fp = sent["runs"]["fp"].run
    assert (fp.run_id, fp.job_type, fp.display_name) == (FP, "reference", "mini_stdit-fp")
    assert socket.gethostname() not in str(run)


def test_config_and_summary_are_the_cells(sent):
    facts, found = Facts.of(sent["folders"]["tsq"]), sent["runs"]["tsq"]
    expected = content.summary(facts)
    assert expected["clipsim/delta_paper"] and {name: found.summary[name] for name in expected} == expected
    assert found.config["method"] == {"name": "tsq", "ranges": 20} and found.config["cell"]["weight"] == 4
    assert found.config["cell"]["tables"] == ["mine/table1"] and "out" not in found.config


def test_curves_have_axes_of_their_own(sent):
    found = sent["runs"]["tsq"]
    assert found.axes == {"curve/*": "step", "layers/*": "layer"}
    assert not [name for name in found.summary if name in ("step", "layer") or name.startswith(("curve/", "layers/"))], (
        "the last step is no result"
    )
    steps = [row for row in found.history if "step" in row]
    assert [(row["step"], row["curve/sqnr"], row["curve/activation_bits"]) for row in steps] == [
        (0, 20.0, 8.0),
        (1, 30.0, 6.0),
        (2, 20.0, 4.0),
    ]
    layers = [row for row in found.history if "layer" in row]
    assert [(row["layer"], row["layers/sqnr"], row["layers/least_sqnr"]) for row in layers] == [
        (0, 20.0, 10.0),
        (1, 20.0, 10.0),
        (2, 30.0, 20.0),
    ]
    assert found.table("layers")["data"][1] == [1, "b.q", "self_attn.q", 20.0, 10.0, 2]


def test_the_table_of_videos_has_all_rows_and_the_chosen_media(sent):
    found = sent["runs"]["tsq"]
    table = found.table("per_video")
    assert table["columns"] == ["prompt_id", "prompt", "seed", "mp4", "clipsim", "psnr", "video"]
    assert [row[:6] for row in table["data"]] == [
        ["one", "a one", 0, "videos/one-0.mp4", 0.7, 29.0],
        ["two", "a two", 0, "videos/two-0.mp4", 0.75, 30.0],
        ["three", "a three", 0, "videos/three-0.mp4", 0.8, 31.0],
    ]
    assert [row[6] is None for row in table["data"]] == [False, True, True]
    row = next(row for row in found.history if "videos.captions" in row)
    assert row["videos.captions"] == ["a one"]
    (kept,) = found.files.glob("media/videos/videos_*.mp4")
    assert kept.read_bytes() == (sent["folders"]["tsq"] / "videos/one-0.mp4").read_bytes()


def test_the_grid_shows_full_precision_beside_the_cell(sent):
    (file,) = sent["runs"]["tsq"].files.glob("media/videos/grid_*.mp4")
    frames = video.read(file)
    assert frames.shape[0] == 4 and media.frames_per_second(file) == 8
    left, right = frames[0, -20, 40].astype(int), frames[0, -20, -40].astype(int)
    assert abs(left - 20).max() < 6 and abs(right - 80).max() < 6, "the second video of each: 20 beside 60 + 20"
    assert not list(sent["runs"]["fp"].files.glob("media/videos/grid_*"))


def test_a_failed_cell_is_a_failed_run(sent):
    found = sent["runs"]["asq"]
    assert found.summary["state"] == "failed" and found.summary["reason"] == "it broke" and found.exits == [1]
    assert sent["runs"]["tsq"].exits == [0]


def test_the_table_is_a_run_with_everything_on_it(sent):
    found = sent["runs"]["table"]
    assert (found.run.run_id, found.run.job_type, found.run.run_group) == ("table-mine-table1", "table", "mine/table1")
    assert found.config["rows"] == {"FP": FP, "4/8 TSQ": TSQ, "4/8 ASQ": "a" * 16}
    assert {name: value for name, value in found.summary.items() if name.startswith("rows")} == {
        "rows": 3,
        "rows/done": 2,
        "rows/failed": 1,
    }
    table = found.table("table")
    assert table["columns"] == ["W/A", "row", "state", "CLIPSIM ↑", "CLIPSIM paper", "PSNR ↑", "Size (GB) ↓", "Size (GB) paper"]
    assert table["data"][1] == [
        "4/8",
        "TSQ",
        "done",
        "0.75 -0.06* ±0.03",
        "0.77 ours -0.02",
        "30.0",
        "0.0025",
        "0.0020 ours +0.0005",
    ]
    assert table["data"][2][:4] == ["4/8", "ASQ", "failed", "failed"]
    numbers = found.table("numbers")
    line = dict(zip(numbers["columns"], numbers["data"][3], strict=True))
    assert (line["row"], line["score"], line["mean"], line["paper"]) == ("TSQ", "clipsim", 0.75, 0.77)
    (page,) = found.files.glob("media/html/page_*.html")
    assert "<b>" not in page.read_text() and "TSQ" in page.read_text() and "it broke" in page.read_text()
    kept = {file.suffix: file.read_text() for file in found.files.glob("table1.*")}
    assert kept == {file.suffix: file.read_text() for file in sent["folders"]["table"].parent.glob("table1.*")} and len(kept) == 4


def test_the_plots_of_the_table_have_its_numbers_and_the_front(sent):
    found = sent["runs"]["table"]
    assert found.table("bars/clipsim_table")["data"] == [["FP", 0.81], ["4/8 TSQ", 0.75]]
    assert found.table("pareto/clipsim_table")["data"] == [["FP", 4.0, 0.81, True], ["4/8 TSQ", 2.5, 0.75, True]]
    charts = {name.removeprefix("_wandb.visualize."): chart for name, chart in found.config.items() if "visualize" in name}
    kinds = {name: chart["panel_config"]["panelDefId"] for name, chart in charts.items()}
    assert kinds == {"bars/clipsim": "wandb/bar/v0", "bars/weight_size": "wandb/bar/v0", "pareto/clipsim": "wandb/scatter/v0"}
    assert charts["pareto/clipsim"]["panel_config"]["fieldSettings"] == {"x": "size (MB)", "y": "CLIPSIM"}


def test_the_sheets_show_the_rows_of_each_group(sent):
    found = sent["runs"]["table"]
    row = next(row for row in found.history if "sheets.captions" in row)
    assert row["sheets.captions"] == ["4/8: FP | TSQ | ASQ"] and row["sheets.count"] == 1
    (file,) = found.files.glob("media/images/sheets_*.png")
    assert Image.open(file).width > 3 * 2 * 128 and list(found.files.glob("media/videos/grids_*.mp4"))


def test_publishing_again_takes_the_place_of_what_was_kept(sent):
    own = sent["folders"]["fp"] / "wandb"
    assert len(list(own.glob("offline-run-*"))) == 1 and mark(sent["out"], sent["folders"]["fp"])["ok"]
    staged = [file.name for file in (own / "data/artifacts/staging").iterdir()]
    assert 0 < len(staged) <= 4, "only those of the second time"


def test_the_home_folder_is_untouched(sent):
    assert sent["home"] == set()


def silent_server() -> socket.socket:
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        kept = []
        while True:
            try:
                kept.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    return server


def test_a_server_that_does_not_answer_leaves_the_run_on_disk(tmp_path, monkeypatch):
    folder = results(tmp_path)["tsq"]
    with silent_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("WANDB_MODE", raising=False)
        Wandb(init_timeout=3).queue(tmp_path, [folder])
        assert json.loads(next((tmp_path / "wandb/queue").iterdir()).read_text())["options"]["mode"] == "online"
        ((_, result),) = empty(tmp_path)
    assert not result.ok and f"kept in {folder}/wandb" in result.reason, result.reason
    assert Sent(folder).summary["clipsim"] == 0.75


def test_columns_of_a_grid_are_limited_and_pictures_padded(tmp_path):
    rows = [("a", f"row {i}", i) for i in range(9)] + [(None, "alone", 9)]
    groups = media.groups(rows, ("FP", "fp"))
    assert list(groups["a"]) == ["FP", *(f"row {i}" for i in range(5))] and groups["all"] == {"FP": "fp", "alone": 9}
    for name, size in (("a", (10, 20)), ("b", (30, 5))):
        Image.new("RGB", size, "black").save(tmp_path / f"{name}.png")
    media.same_size([tmp_path / "a.png", tmp_path / "b.png"])
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    assert picture.size == Image.open(tmp_path / "b.png").size == (30, 20)
    assert picture.getpixel((5, 15)) == (0, 0, 0) and picture.getpixel((15, 15)) == (255, 255, 255)


def test_queue_names_do_not_clash(tmp_path):
    queue = Queue(tmp_path)
    queue.put(Job(tmp_path / "runs/m/asq-1"))
    queue.put(Job(Path(tmp_path / "tables/asq-1.json")))
    assert sorted(file.name for file in queue.folder.iterdir()) == ["asq-1.json", "table-asq-1.json"]
