"""Prompt sets: sources, limits, and errors of one sentence."""

from __future__ import annotations

import hashlib

import pytest

from vdqbench import shapes
from vdqbench.errors import ConfigError
from vdqbench.prompts import PromptSet

BASE = dict(name="mine", shapes=None, texts=None, file=None, sha256=None, limit=None)


def test_a_subset_keeps_ids():
    whole = PromptSet.from_config({**BASE, "shapes": "eval"})
    part = PromptSet.from_config({**BASE, "shapes": "eval", "limit": 16})
    assert len(whole.items) == 128 and part.items == whole.items[:16]
    assert part.items[1] == ("0001", shapes.scenes("eval")[1].caption)


def test_a_file_is_read_line_by_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat; rm -rf /\n\n  ../../etc/passwd  \n", encoding="utf-8")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    prompts = PromptSet.from_config({**BASE, "file": str(file), "sha256": digest})
    assert prompts.items == (("0000", "a cat; rm -rf /"), ("0001", "../../etc/passwd"))


@pytest.mark.parametrize(
    "node, words",
    [
        ({}, "exactly one of"),
        ({"texts": ["a"], "shapes": "eval"}, "exactly one of"),
        ({"shapes": "evla"}, "did you mean eval"),
        ({"texts": ["  "]}, "no prompt"),
        ({"texts": ["a"], "limit": 0}, "limit=0"),
        ({"file": "/does/not/exist"}, "cannot be read"),
    ],
)
def test_errors_name_key_and_remedy(node, words):
    with pytest.raises(ConfigError, match=words):
        PromptSet.from_config({**BASE, **node})


def test_an_altered_file_is_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n")
    with pytest.raises(ConfigError, match="expected 00"):
        PromptSet.from_config({**BASE, "file": str(file), "sha256": "00"})
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        PromptSet.from_config({**BASE, "file": str(file)})
