"""One file that needs nothing else, and in which data cannot become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import made_results
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdqbench.report.html import page as module
from vdqbench.report.html.data import page_data
from vdqbench.report.html.gather import Found, Run, Videos
from vdqbench.report.html.page import ASSETS, SCRIPTS, embedded, page, write

SCALARS = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)


@pytest.fixture(scope="module")
def text() -> str:
    found = Found(tuple(Run(record, Path("nowhere")) for record in made_results.records()))
    return page(page_data(found, "T <b>&", "now", "0.1.0", Videos()))


class Outline(HTMLParser):
    """Elements, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        if self.inside == "title":
            self.title += data


@settings(max_examples=50)
@given(JSON)
def test_embedded_data_is_the_same_data_without_any_sign_of_markup(value):
    text = embedded(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_numbers_that_are_not_finite_become_words():
    assert embedded({"a": [float("inf"), -float("inf"), float("nan"), 1.5]}) == '{"a":["inf","-inf","nan",1.5]}'


def test_there_are_two_scripts_whatever_the_prompts_say(text):
    outline = Outline(text)
    assert [attributes.get("type") for tag, attributes in outline.tags if tag == "script"] == ["application/json", None]
    prompts = {video["prompt"] for cell in json.loads(outline.scripts[0])["cells"] for video in cell["videos"]}
    assert prompts == set(made_results.PROMPTS.values())
    assert not any(tag in ("img", "b", "iframe", "link") for tag, _ in outline.tags) and outline.title == "T <b>&"
    assert not any(name.startswith("on") or name in ("src", "style") for _, attributes in outline.tags for name in attributes)


def test_the_policy_allows_this_script_and_this_style_and_no_network(text):
    outline = Outline(text)
    policy = next(a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = text[text.index("<style>") + 7 : text.index("</style>")]
    for name, content in (("script-src", outline.scripts[1]), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy and "connect-src" not in policy


def test_nothing_is_loaded_from_elsewhere(text):
    assert re.findall(r"https?://[^\s\"'`)]+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert "@import" not in text and "url(" not in text


def test_all_parts_of_the_script_are_in_it_once(text):
    assert {file.stem for file in ASSETS.glob("*.js")} == set(SCRIPTS) and len(set(SCRIPTS)) == len(SCRIPTS)
    assert all(text.count((ASSETS / f"{name}.js").read_text(encoding="utf-8")) == 1 for name in SCRIPTS)


def test_scripts_never_make_markup_of_text():
    words = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", 'setAttribute("style"', "srcdoc")
    for file in ASSETS.glob("*.js"):
        assert not [word for word in words if word in file.read_text(encoding="utf-8")], file.name


def test_a_template_without_a_place_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_asset", lambda name: "nothing")
    with pytest.raises(ValueError, match="no place for POLICY"):
        page({"title": "t"})


def test_the_page_is_written_in_one_step_also_with_odd_characters(tmp_path):
    record = made_results.record("asq", "w8a8", 0.5)
    record.videos[0]["prompt"] = "lone \ud800 half"
    path = tmp_path / "new" / "page.html"
    size = write(Found((Run(record, tmp_path),)), path, "title \udcff", Videos())
    assert size == path.stat().st_size and [file.name for file in path.parent.iterdir()] == ["page.html"]
    assert json.loads(Outline(path.read_text(encoding="utf-8")).scripts[0])["cells"][0]["videos"][0]["prompt"] == "lone \ud800 half"
