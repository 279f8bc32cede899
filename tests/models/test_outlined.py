"""Models of the user's own on paper: what their folders say, and a sentence where that is not known yet."""

from __future__ import annotations

import dataclasses

import pytest
from builders import CASES

from vdqbench.cli import main
from vdqbench.models.pipeline import PipelineAdapter


@pytest.mark.parametrize("name", ["wan", "mine"])
def test_weights_of_ones_own_are_outlined_as_what_they_are(name, tmp_path):
    """And not as the shipped model of the same name."""
    case = CASES["wan"]
    model = dataclasses.replace(case.model("wan", tmp_path / "wan"), name=name)
    made = PipelineAdapter.outlined(model)
    assert made.layers() == case.adapter("wan", tmp_path, "meta").layers()
    assert sum(parameter.numel() for parameter in made.denoiser.parameters()) < 10**6


def test_a_plan_of_a_model_that_is_not_here_and_not_known(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    own = "# Wan, tuned\ndefaults: [wan, _self_]\nname: tuned\nweights: hub:me/tuned\n"
    (tmp_path / "mine" / "model" / "tuned.yaml").write_text(own)
    monkeypatch.chdir(tmp_path)
    assert main(["--config-dir", "mine", "model=tuned", "method=dynamic", "plan=true"]) == 0
    said = capsys.readouterr().out
    assert "0.0 GB and 1 of unknown size to fetch: vdqbench prefetch model=tuned model.weights=hub:me/tuned" in said
    assert "not counted: model=tuned has no architecture of its own" in said
