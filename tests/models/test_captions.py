"""The caption cleaner against answers of the original code."""

from __future__ import annotations

import builtins

import pytest

from vdqbench.errors import ConfigError
from vdqbench.models.captions import clean

ANSWERS = {
    "A Red Circle": "a red circle",
    "a_b-c_d-e: <b>BOLD</b> @nick's 漢字 café &amp; 50% off": "a b c d e: bold 's café 50% off",
    "one-two three-four": "one-two three-four",
    "«Ein — Test» of 640x480.png images… & more; click for details page 12": '"ein - test" of images… more;',
    "(4K, 24fps) see http://foo.com/x and www.bar.org!": "4k, 24fps see and !",
    "free shipping of jc6640vc at 10.0.0.1, now": "of at , now",
    "'quoted'": "quoted",
    "100%25 sure+thing": "100% sure thing",
    "x" * 3 + "...": "xxx",
    "<person> walks #12 #1234 1234567": "person walks 1234",
    "": "",
}


@pytest.mark.parametrize("caption, cleaned", ANSWERS.items())
def test_answers_of_the_original_code(caption, cleaned):
    assert clean(caption) == cleaned


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "bs4":
            raise ImportError("No module named 'bs4'", name="bs4")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"bs4 is not installed.*vdqbench\[models\]"):
        clean("a cat")
