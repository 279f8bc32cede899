"""vdqbench inspect: the files that it writes, what it computes once, and what it refuses."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
from test_cli import light

from vdqbench.cli import main
from vdqbench.inspect import run
from vdqbench.inspect.draw import FIGURES
from vdqbench.inspect.phenomena import ALL
from vdqbench.store import Store
from vdqbench.verbs.store import needed

SMALL = ("model=mini_stdit", "sampler.steps=3", "calibration.prompts.limit=1", "quiet=true")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("inspected")


@pytest.fixture(scope="module", autouse=True)
def little():
    """One figure and a few rows of each weight are enough here; figures and weights have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vdqbench.inspect.weights.MOST_ROWS", 2)
        for name in [name for name in FIGURES if name != "output_changes"]:
            patch.delitem(FIGURES, name)
        yield


@pytest.fixture(scope="module")
def whole(out):
    assert main(["inspect", *SMALL, f"out={out}"]) == 0
    return out / "inspect" / "mini_stdit"


def verdicts(folder):
    with (folder / "phenomena.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_pruning_the_store_spares_what_a_page_was_made_from(whole, out):
    store = Store(out / "store")
    spared = {"calibration", "calls", "timing", "trajectories", "weights"}
    before = {(kind, key) for kind, key, _ in store.entries() if kind in spared}
    assert {kind for kind, _ in before} == spared
    assert main(["store", str(out), "--prune"]) == 0
    assert {(kind, key) for kind, key, _ in store.entries()} == before
    (whole / "artefacts.json").rename(whole / "kept.json")
    assert before.isdisjoint(needed(out))
    (whole / "kept.json").rename(whole / "artefacts.json")


def test_page_figures_and_numbers_are_written(whole, capsys):
    names = {file.name for file in whole.iterdir()}
    assert {"page.md", "phenomena.csv", "output_changes.png", "output_changes.csv", "weights.csv", "level_coverage.csv"} <= names
    text = (whole / "page.md").read_text()
    assert "    vdqbench inspect model=mini_stdit sampler.steps=3 calibration.prompts.limit=1\n" in text, "not where it ran"
    assert (
        "on the 1 calibration prompts shapes_calib: 3 steps of" in text
        and "seed 1000. All 85 of its layers\nare looked at; they read 56" in text
    )
    assert "This is a mini" in text and "revision" in text
    rows = verdicts(whole)
    assert [row["phenomenon"] for row in rows] == [one.name for one in ALL]
    assert {row["verdict"] for row in rows} == {"shown", "not shown"} and {row["layers"] for row in rows} == {"all"}
    overview = (whole.parent / "README.md").read_text()
    assert "| [mini_stdit](mini_stdit/page.md) |" in overview
    for one, row in zip(ALL, rows, strict=True):
        assert f"| {one.title} | {one.paper} | {one.bound} | {row['verdict']} ({float(row['value']):.3g}) |" in overview


def test_numbers_are_of_the_calibration_that_all_methods_share(whole, out):
    kinds = [kind for kind, _, _ in Store(out / "store").entries()]
    assert [kinds.count(kind) for kind in ("calibration", "calls", "trajectories", "weights")] == [1, 1, 1, 1] and "video" not in kinds
    with (whole / "output_changes.csv").open(newline="") as file:
        changes = list(csv.DictReader(file))
    assert len(changes) == 3 and [row["change"] == "" for row in changes] == [True, False, False]
    with (whole / "weights.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 85


def test_nothing_is_computed_twice_and_a_part_of_the_layers_stays_apart(whole, out, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("vdqbench.inspect.trajectories.follow", never)
    monkeypatch.setattr("vdqbench.inspect.weights.describe", never)
    monkeypatch.setattr("vdqbench.calibrate.calibrate", never)
    before = (whole.parent / "README.md").read_text(), (whole / "phenomena.csv").read_text()
    assert main(["inspect", *SMALL, f"out={out}", "layers=temporal_attn.*,blocks.0.mlp.fc1"]) == 0
    assert "features of the timestep are skewed" in capsys.readouterr().out
    part = whole.parent / "mini_stdit-temporal_attn._blocks.0.mlp.fc1"
    with (part / "weights.csv").open(newline="") as file:
        roles = [row["role"] for row in csv.DictReader(file)]
    assert len(roles) == 25 and set(roles) == {"ffn.up", *(f"temporal_attn.{name}" for name in ("q", "k", "v", "out"))}
    text = (part / "page.md").read_text()
    assert "seed 1000. 25 of its layers\nare looked at; they read 13" in text and "layers=temporal_attn.*,blocks.0.mlp.fc1" in text
    assert {row["layers"] for row in verdicts(part)} == {"temporal_attn.*,blocks.0.mlp.fc1"}
    assert before == ((whole.parent / "README.md").read_text(), (whole / "phenomena.csv").read_text())
    with (part / "output_changes.csv").open() as one, (whole / "output_changes.csv").open() as other:
        assert one.read() == other.read()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["method=asq"], "method=asq does not change the unquantized model"),
        (["bits.weight=4"], "bits.weight=4 does not change the unquantized model"),
        (["layers=temporal_atn.*"], "layers=temporal_atn.*: temporal_atn.* fits no layer's name or role (did you mean temporal_attn"),
        (["layers="], "layers of vdqbench inspect must be given once, with a value"),
        (["name=a/b"], "name=a/b must be letters"),
        (["seed=1,2"], "is about one cell, and these overrides name 2"),
        (["table=quickstart"], "table=quickstart belongs to tables"),
        (["model=mini_sdit"], "did you mean mini_stdit"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words, sentence, tmp_path, capsys):
    own = [word for word in SMALL if not any(word.split("=")[0] == given.split("=")[0] for given in words)]
    assert main(["inspect", *own, f"out={tmp_path}", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "inspect").exists() and not (tmp_path / "store" / "calibration").exists()


def test_without_matplotlib_nothing_is_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["inspect", *SMALL, f"out={tmp_path}"]) == 2
    assert re.search(r"figures need matplotlib .* pip install 'vdqbench\[figures\]'", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_help_is_light():
    result = light("inspect", "--help")
    assert "vdqbench inspect model=mini_stdit" in result.stdout and "HEAVY []" in result.stdout, result.stdout + result.stderr


def test_names_of_folders_follow_the_request():
    from vdqbench.compose import Composer
    from vdqbench.config import Cell

    cell = Cell.from_config(Composer().plain(["method=fp", "model=mini_stdit", "sampler.steps=3", "out=here"]))
    folders = [run.Request((), layers=layers, name=name).folder(cell) for layers, name in ((None, None), ("*.q,ffn.*", None), ("*", "n"))]
    assert [folder.as_posix() for folder in folders] == ["here/inspect/mini_stdit", "here/inspect/mini_stdit-.q_ffn.", "here/inspect/n"]
