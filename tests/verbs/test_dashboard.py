"""The workspace and the report as code: made without a login and without the network, over names that runs really have."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest
from tracked import FP, results

from vdqbench.cli import main
from vdqbench.track import content
from vdqbench.track.facts import Facts

pytest.importorskip("wandb_workspaces", reason="needs the wandb extra")
LOGGED = {"videos", "per_video", "grid", "page", "sheets", "grids", "table", "numbers"}
"""Media and tables that `vdqbench.track.sending` logs."""


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No login, and a network that nobody may use."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def saved(tmp_path, offline) -> dict[str, Any]:
    results(tmp_path)
    file = tmp_path / "made/dashboard.json"
    assert main(["dashboard", f"save={file}", f"out={tmp_path}", "entity=me", "project=ptq", "group=mine/table1"]) == 0
    return {"out": tmp_path, **json.loads(file.read_text())}


def panels(saved: dict[str, Any], of: str) -> dict[str, list[dict[str, Any]]]:
    """By section."""
    if of == "workspace":
        return {one["name"]: one["panels"] for one in saved["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]}
    blocks = saved["report"]["spec"]["blocks"]
    found, heading = {}, ""
    for block in blocks:
        if block["type"] == "heading":
            heading = block["children"][0]["text"]
        elif block["type"] == "panel-grid":
            found[heading] = block["metadata"]["panelBankSectionConfig"]["panels"]
    return found


@pytest.mark.parametrize("of", ["workspace", "report"])
def test_the_sections_have_the_panels(saved, of):
    found = {name: [panel["viewType"] for panel in each] for name, each in panels(saved, of).items()}
    assert found == {
        "Tables": ["Media Browser"] * 3,
        "Scores by method": ["Bar Chart"] * 3,
        "Scores by bits": ["Bar Chart"] * 3,
        "Pareto": ["Scatter Plot"] * 3,
        "Against full precision": ["Bar Chart"],
        "Against the papers": ["Scatter Plot"],
        "Videos": ["Media Browser"] * 2,
        "Steps and layers": ["Run History Line Plot"] * 5,
        "Runs compared": ["Run Comparer", "Parallel Coordinates Plot"],
    }


def test_the_panels_show_what_they_say(saved):
    found = panels(saved, "workspace")
    bars = found["Scores by method"][0]["config"]
    assert (bars["metrics"], bars["groupBy"], bars["chartTitle"]) == (["clipsim"], "cell.value.method", "CLIPSIM by method")
    assert [panel["config"]["groupBy"] for panel in found["Scores by bits"]] == ["cell.value.bits"] * 3
    fronts = {panel["config"]["yAxis"]: panel["config"] for panel in found["Pareto"]}
    assert {config["xAxis"] for config in fronts.values()} == {"summary:weight_size"}
    assert fronts["summary:clipsim"]["showMaxYAxisLine"] and fronts["summary:frechet"]["showMinYAxisLine"]
    assert "showMinYAxisLine" not in fronts["summary:clipsim"]
    browser = found["Videos"][0]["config"]
    assert (browser["mediaKeys"], browser["gridSettings"]) == (["videos"], {"xAxis": "run", "yAxis": "index"})
    paper = found["Against the papers"][0]["config"]
    assert (paper["xAxis"], paper["yAxis"]) == ("summary:clipsim/paper", "summary:clipsim")


def test_every_name_is_one_that_some_run_has(saved):
    """So a panel cannot stay empty because tracker and dashboard spell a name differently."""
    facts = [Facts.of(file.parent) for file in saved["out"].glob("runs/*/*/record.json")]
    known = {name for each in facts for name in content.summary(each)} | LOGGED | {"layer", "layers/sqnr", "layers/least_sqnr"}
    known |= {name for each in facts for row in content.by_step(each.record) for name in row}
    cells = {f"cell.value.{name}" for each in facts for name in content.config(each)["cell"]}
    used, columns = set(), set()
    for section in panels(saved, "workspace").values():
        for config in (panel["config"] for panel in section):
            used |= {*config.get("metrics", ()), *config.get("mediaKeys", ())}
            used |= {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in config}
            columns |= {config["groupBy"]} if "groupBy" in config else set()
            for column in config.get("columns", ()):
                kind, _, name = column["accessor"].partition(":")
                (used if kind == "summary" else columns).add(name)
    assert used and used <= known, used - known
    assert columns and columns <= cells, columns - cells


def test_runs_are_filtered_and_compared_with_full_precision(saved):
    import base64

    runs = saved["workspace"]["spec"]["section"]["runSets"][0]
    filters = [(one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]]
    assert filters == [("tags", "IN", ["mini_stdit"]), ("tags", "IN", ["mine/table1"])]
    assert base64.b64decode(runs["baselineRunId"]).decode() == f"Run:v1:{FP}:ptq:me"
    assert "summary:clipsim" in runs["runFeed"]["columnPinned"] and "config:cell.value.method" in runs["runFeed"]["columnPinned"]
    grids = [block["metadata"]["runSets"][0] for block in saved["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    kinds = [next(one["value"] for one in grid["filters"]["filters"] if one["key"]["name"] == "jobType") for grid in grids]
    assert kinds == [["table"], *[["cell", "reference"]] * 8] and all("project" not in grid for grid in grids)


def test_what_was_saved_is_read_back_by_the_library(saved):
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2 import internal
    from wandb_workspaces.workspaces import internal as views

    view = views.View.model_validate(saved["workspace"])
    again = ws.Workspace._from_model(view)
    assert (again.entity, again.project, again.name) == ("me", "ptq", "vdqbench: mine/table1")
    assert [section.name for section in again.sections] == list(panels(saved, "workspace"))
    report = internal.ReportViewspec.model_validate(saved["report"])
    assert report.project.name == "ptq" and len(report.spec.blocks) == len(saved["report"]["spec"]["blocks"])


def test_no_panel_lies_on_another(saved):
    for section in panels(saved, "report").values():
        taken: set[tuple[int, int]] = set()
        for panel in section:
            place = panel["layout"]
            own = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            assert not own & taken and place["x"] + place["w"] <= 24
            taken |= own


def test_without_a_table_or_records_there_are_fewer_panels(tmp_path, offline, capsys):
    results(tmp_path, table=None)
    file = tmp_path / "d.json"
    assert main(["dashboard", f"save={file}", f"out={tmp_path}", "scores=psnr"]) == 0
    found = panels(json.loads(file.read_text()), "workspace")
    assert "Against the papers" not in found and "Against full precision" not in found
    assert [panel["config"]["metrics"] for panel in found["Scores by bits"]] == [["psnr"]]
    assert main(["dashboard", f"save={file}", f"out={tmp_path / 'none'}", "scores=clipsim,vqa"]) == 0
    found = panels(json.loads(file.read_text()), "workspace")
    assert [panel["config"]["metrics"] for panel in found["Against full precision"]] == [["clipsim/delta_fp"], ["vqa/delta_fp"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["save=x.json", "out=nothing"], "holds no records that say which scores"),
        (["scores=clipsim"], "there is no login to Weights & Biases: run `wandb login`, or write both with save=FILE.json"),
        (["method=tsq"], "method=tsq is not an option of vdqbench dashboard"),
        (["save="], "save of vdqbench dashboard must be given once, with a value"),
    ],
)
def test_wrong_use(tmp_path, monkeypatch, offline, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", *words]) == 2
    assert said in capsys.readouterr().err


def test_with_a_login_both_are_made_on_the_server(tmp_path, monkeypatch, offline, capsys):
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    results(tmp_path)
    made: list[Any] = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for kind in (ws.Workspace, wr.Report):
        monkeypatch.setattr(kind, "save", lambda self: made.append(self))
        monkeypatch.setattr(kind, "url", property(lambda self: f"https://server/{type(self).__name__}"))
    assert main(["dashboard", f"out={tmp_path}", "entity=team", "project=ptq"]) == 0
    assert [(type(one).__name__, one.entity, one.project) for one in made] == [("Workspace", "team", "ptq"), ("Report", "team", "ptq")]
    assert capsys.readouterr().out.split() == ["https://server/Workspace", "https://server/Report"]

    def refuse(self: Any) -> None:
        raise RuntimeError("no\npermission")

    monkeypatch.setattr(wr.Report, "save", refuse)
    assert main(["dashboard", f"out={tmp_path}", "entity=team"]) == 2
    assert "the report could not be made (RuntimeError: no permission); save=FILE.json works" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence(tmp_path):
    code = (
        "import sys; sys.modules['wandb_workspaces'] = None; from vdqbench.cli import main; "
        f"sys.exit(main(['dashboard', 'save={tmp_path}/d.json', 'scores=clipsim']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "pip install 'vdqbench[wandb]'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_help_and_verbs_stay_light():
    code = (
        "import sys; from vdqbench.cli import main; main(['dashboard', '--help']); main(['publish', '--help']); main(['--help']); "
        "print('HEAVY', [m for m in ('torch', 'wandb', 'wandb_workspaces', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "HEAVY []" in done.stdout and "vdqbench dashboard " in done.stdout and "vdqbench publish " in done.stdout, done.stderr
