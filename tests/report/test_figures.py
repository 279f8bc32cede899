"""Figures for a paper: which there are, that they hold the numbers of the plots, and that the same records give the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import made_results
import pytest
from PIL import Image

from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.report import figures, series
from vdqbench.report.html.gather import Found, Run
from vdqbench.report.settings import settings

pytest.importorskip("matplotlib", reason="needs the extra `figures`")
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def found() -> Found:
    heat = series.HeatMap(("a", "b"), ("", ""), ((1.0, None), (0.0, 4.0)))
    runs = tuple(Run(record, Path("nowhere")) for record in made_results.records())
    return Found(runs, activations={made_results.STATISTICS: heat})


@pytest.fixture(scope="module")
def setting(found):
    return settings(found.records)[0]


def test_there_is_a_figure_for_every_plot(found, setting):
    names = [drawing.name.split("/")[1] for drawing in figures.drawings_of(setting, found, ("clipsim",))]
    assert names[:4] == ["tradeoff-clipsim", "bits-clipsim", "ranges-clipsim", "threshold-clipsim"]
    assert sum(name.startswith("sqnr-") for name in names) == 6 and "pattern-dvd_delta=0.1_w4a6" in names
    assert names[-1] == "activation_range-cccccccc" and len(set(names)) == len(names)
    assert all(drawing.name.startswith("mini_toy-ffffffff/") for drawing in figures.drawings_of(setting, found))


def test_tradeoffs_are_drawn_as_they_are(setting):
    axis = series.qualities(setting.records)[0]
    with figures._paper_style():
        panels = figures.tradeoff_figure(setting, series.tradeoffs(setting, axis)).axes
    assert [axes.get_xlabel() for axes in panels] == ["Weight size (MB)", "TBOPs", "Time per step (s)\na processor"]
    assert panels[0].get_ylabel() == "CLIPSIM ↑"
    stairs = panels[0].lines[0]
    assert list(stairs.get_xdata()) == [1.0, 2.0, 4.0] and list(stairs.get_ydata()) == pytest.approx([0.6, 0.79, 0.8])
    assert len(panels[0].containers) == 7 and len(panels[2].containers) == 2


def test_curves_are_drawn_as_they_are(setting):
    axis = series.qualities(setting.records)[0]
    with figures._paper_style():
        (axes,) = figures.curves_figure(setting, series.bit_curves(setting, axis)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["w8a8", "w4a6", "w4a4"]
    drawn = {container.get_label(): list(container[0].get_ydata()) for container in axes.containers}
    assert drawn["tsq"] == pytest.approx([0.79, 0.6])
    assert [line.get_ydata()[0] for line in axes.lines if line.get_label() == "full precision"] == pytest.approx([0.8])


def test_holes_of_a_map_are_masked_and_zero_has_no_logarithm(found):
    heat = found.activations[made_results.STATISTICS]
    with figures._paper_style():
        linear, logarithmic = (figures.heat_figure(heat, "t", log).axes[0].images[0].get_array() for log in (False, True))
    assert linear.mask.tolist() == [[False, True], [False, False]] and logarithmic.mask.tolist() == [[False, True], [True, False]]


def test_files_are_written_and_the_same_records_give_the_same_bytes(found, tmp_path):
    alone = Found(found.runs[:1] + found.runs[4:5])
    paths = figures.write_figures(alone, tmp_path, ("png", "svg", "pdf"), ("clipsim",), QUIET)
    names = [path.name for path in paths]
    assert names == [f"{name}.{kind}" for name in ("tradeoff-clipsim", "sqnr-dynamic_w8a8") for kind in ("png", "svg", "pdf")]
    with figures._paper_style():
        again = next(figures.drawings_of(settings(alone.records)[0], alone, ("clipsim",))).draw()
        assert [path.read_bytes() for path in paths[:3]] == [figures.rendered(again, kind) for kind in ("png", "svg", "pdf")]
    assert [path.read_bytes()[1:4] for path in paths[:3]] == [b"PNG", b"?xm", b"PDF"]
    with Image.open(paths[0]) as picture:
        assert picture.width > 1000


def test_names_of_methods_are_no_formulas_and_no_paths(tmp_path):
    odd = made_results.record("a$b_$../../x", "w8a8", 0.5)
    paths = figures.write_figures(Found((Run(odd, tmp_path),)), tmp_path / "f", ("svg",), (), QUIET)
    assert all(path.resolve().is_relative_to((tmp_path / "f").resolve()) for path in paths) and len(paths) == 1
    assert "a$b_$../../x" in paths[0].read_text()


def test_an_unknown_score_is_answered_with_the_nearest(found, tmp_path):
    with pytest.raises(ConfigError, match=r"scores=clipsin is not a score .*did you mean clipsim"):
        figures.write_figures(found, tmp_path, ("png",), ("clipsin",), QUIET)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_one_sentence_names_the_extra(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'vdqbench\[figures\]'"):
        figures.write_figures(found, tmp_path, ("png",), (), QUIET)
