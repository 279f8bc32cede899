"""The document on metrics describes every metric and names every score."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from vdqbench.metrics.clip import QVDClip
from vdqbench.metrics.fidelity import Fidelity
from vdqbench.metrics.system import System

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
HEADINGS = {name for line in TEXT.splitlines() if line.startswith("#") for name in re.findall(r"`([^`]+)`", line)}
FILES = sorted((ROOT / "conf" / "metric").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_metric_has_a_section_and_every_score_a_mention(path):
    assert path.stem in HEADINGS, f"docs/metrics.md has no heading with `{path.stem}`"
    for score in yaml.safe_load(path.read_text(encoding="utf-8")).get("scores") or ():
        assert f"`{score}`" in TEXT, f"docs/metrics.md does not mention `{score}` of {path.stem}"


def test_every_heading_is_a_metric():
    assert {path.stem for path in FILES} >= HEADINGS


def test_scores_that_are_off_by_default_are_mentioned_too():
    for kind in (Fidelity, QVDClip, System):
        for info in kind.available:
            assert f"`{info.name}`" in TEXT
