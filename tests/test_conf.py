"""Every file in conf/ composes into a cell, and the conventions that Hydra is silent about hold."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from vdqbench.cli import main
from vdqbench.compose import Composer, expand
from vdqbench.config import CONF, Cell
from vdqbench.errors import ConfigError
from vdqbench.report.spec import Table
from vdqbench.runner import build
from vdqbench.sweep import Study

ROOT = Path(__file__).parents[1]
FILES = sorted(CONF.rglob("*.yaml"))
CAPTION = "a red circle growing on a dark background"
GIVEN = {"prompts/file": ["prompts.file=captions.txt"], "prompts/list": [f"prompts.texts=[{CAPTION}]"]}
NEEDS_A_FILE = ("opensora_10", "opensora_sora48", "ucf_101", "vbench_all", "vbench_overall_consistency", "vbench_scene")
NEEDS_A_FILE += ("vbench_subject_consistency", "fs_coco", "coco_captions", "ted_talks")
DATA_FREE = ("dvd_quant/table2", "dvd_quant/table3", "dvd_quant/table4", "dvd_quant/table5", "dvd_quant/fig6")


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def options(*groups: str) -> list[str]:
    return [f"{group}/{file.stem}" for group in groups for file in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize("option", options("method", "bits", "prompts", "sampler", "kernel", "metric", "tracker", "hydra/launcher"))
def test_every_option_makes_a_cell(option, composer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text(CAPTION)
    group, _, name = option.rpartition("/")
    value = f"[{name}]" if group == "metric" else name
    config = composer.plain([f"{group}={value}", *GIVEN.get(option, []), *(["method=cw_tw"] if group == "sampler" else [])])
    if group == "sampler" and config["sampler"]["name"] not in config["model"]["samplers"]:
        with pytest.raises(ConfigError, match="does not fit model=mini_stdit"):
            Cell.from_config(config)
        return
    if group == "prompts" and name in NEEDS_A_FILE:
        with pytest.raises(ConfigError, match="exactly one of"):
            Cell.from_config(config)
        config = composer.plain([f"{group}={value}", "prompts.file=captions.txt", "prompts.sha256=null"])
    cell = Cell.from_config(config)
    assert len(cell.key) == 16 and cell.reference().recipe.is_fp


def test_every_model_says_whether_it_can_be_run(composer, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for option in options("model"):
        name = option.rpartition("/")[2]
        if name.startswith("mini_"):
            assert Cell.from_config(composer.plain([f"model={name}"])).model.name == name
        else:
            with pytest.raises(ConfigError, match=rf"cannot be run: |which is not on this machine: .*run vdqbench prefetch model={name}$"):
                Cell.from_config(composer.plain([f"model={name}"]))


def mini(table: str) -> str:
    """The model that the preset `mini` of a table takes."""
    own = {"qvd/table2": "mini_sparsectrl"}
    return own.get(table) or {"qvd": "mini_animatediff", "dvd_quant": "mini_hunyuan"}.get(table.partition("/")[0], "mini_stdit")


@pytest.mark.parametrize("option", options("table", "table/asq_tsq", "table/qvd", "table/dvd_quant"))
@pytest.mark.parametrize("preset", [None, "mini"])
def test_every_table_composes(option, preset):
    name = option.removeprefix("table/")
    table = Table.from_config(Composer().plain([f"table={name}"])["table"])
    assert table.name == name
    if preset in (None, *table.presets):
        study = Study.of([f"table={name}", *([f"preset={preset}"] if preset else [])])
        assert len(study.jobs) == len(table.cells(preset)) > 1
        if preset == "mini" or name == "quickstart":
            cells = study.cells()
            assert len({cell.run_dir for cell in cells}) == len(cells) and {c.model.name for c in cells} == {mini(name)}
            calibrations = {cell.calibration_key for cell in cells} - {None}
            assert len(calibrations) == (0 if name in DATA_FREE else 1) and len({cell.reference().key for cell in cells}) == 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_conventions(file):
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines):
        assert not line.startswith("# @package") or number == 0, "Hydra ignores the directive anywhere but on line 1"
    described = any(line.startswith("#") and "@package" not in line for line in lines[:3])
    assert described or file.parent.name == "bits", "the first comment is the option's help"
    if file.parent.name in ("model", "method", "prompts"):
        assert yaml.safe_load(file.read_text())["name"] == file.stem


OUTSIDE = ("clip_evalcrafter", "vqa", "vqa_all_frames", "fvd_", "fid_vid", "vbench_")
"""Metrics that look through weights, libraries or programs which are no part of the package, by the beginning of their names."""
INSIDE = ("vbench_temporal_flickering", "vbench_motion_smoothness")


@pytest.mark.parametrize("option", options("metric"))
def test_metrics_list_what_their_classes_give(option, composer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = composer.plain([f"metric=[{option.rpartition('/')[2]}]"])
    for name, node in config["metric"].items():
        outside = name.startswith(OUTSIDE) and not name.startswith(INSIDE) and "_mini" not in name and "horn_schunck" not in name
        if outside:
            with pytest.raises(ConfigError) as error:
                build(node, Cell.from_config(config))
            assert "\n" not in str(error.value)
            continue
        metric = build(node, Cell.from_config(config))
        assert [info.name for info in metric.scores] == list(node["scores"])
        assert (metric.mode, metric.version) == (node["mode"], node["version"])


def test_expansion_is_the_product():
    assert expand(["a=1,2", "b=x", "c=range(0,2)"]) == [
        ["a=1", "b=x", "c=0"],
        ["a=1", "b=x", "c=1"],
        ["a=2", "b=x", "c=0"],
        ["a=2", "b=x", "c=1"],
    ]
    assert expand(["a=[1,2]", "b='x,y'"]) == [["a=[1,2]", "b='x,y'"]]
    assert expand([]) == [[]]


def readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    lines = [line for block in text.split("```")[1::2] for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("vdqbench ")]


def test_the_readme_has_the_two_commands_and_ci_runs_the_tests():
    readme = (ROOT / "README.md").read_text()
    assert "pip install uv\n" in readme and "\nuv run vdqbench table=quickstart" in readme
    assert "\nuv run --extra dev pytest -n 2 " in readme
    assert "uv run --extra dev pytest -n 2\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_every_command_of_the_readme_is_valid(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    yaml_block = next(block for block in (ROOT / "README.md").read_text().split("```") if block.startswith("yaml"))
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "tsq_max.yaml").write_text(yaml_block.removeprefix("yaml\n"))
    if words[0] in ("dashboard", "publish", "score", "sensitivity", "tune"):  # they have no plan; their own tests run them
        words = [words[0], "--help"]
    code = main([*words, "plan=true"] if "=" in " ".join(words) else words)
    assert code == 0, capsys.readouterr().err


def test_the_readme_shows_the_committed_quickstart_table():
    table = [line for line in (ROOT / "results" / "tables" / "quickstart.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 10 and "\n".join(table) in (ROOT / "README.md").read_text()


def test_a_pattern_stands_for_all_tables_that_fit():
    study = Study.of(["table=qvd/*", "preset=mini"])
    names = [f"qvd/table{n}" for n in range(1, 7)]
    assert [table.name for table in study.tables] == names
    assert len(study.jobs) == sum(len(table.cells("mini")) for table in study.tables)
    studies = [next(o for o in job if o.startswith("study=")) for job in study.jobs]
    assert list(dict.fromkeys(studies)) == [f"study={name}" for name in names]
    with pytest.raises(ConfigError, match=r"table=qdv/\* fits no table \(did you mean qvd/\*"):
        Study.of(["table=qdv/*"])
    with pytest.raises(ConfigError, match="preset=opensora_10 is not a preset of table asq_tsq/table2"):
        Study.of(["table=asq_tsq/*", "preset=opensora_10"])


def test_a_plan_of_all_tables_counts_shared_cells_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["table=dvd_quant/table[23]*", "preset=mini", "plan=true"]) == 0
    assert "11 of 11 cells to run" in capsys.readouterr().out, "the reference and DVD-Quant at 4/6 are in both"
