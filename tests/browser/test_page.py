"""The page in a real browser: what it says, that it works by mouse and by keyboard, and that data stays data."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import made_results
import numpy as np
import pytest
from made_results import FPS, FRAMES, HOSTILE, REASON, SIDE, grey
from PIL import Image

from vdqbench.report.html.gather import Clip, Found, Run, Videos, data_uri
from vdqbench.report.html.page import write
from vdqbench.report.settings import identity
from vdqbench.video import write_mp4

pytestmark = pytest.mark.browser
ROWS = "[...document.querySelectorAll('#view .grid tbody tr')]"
MIDDLE = (
    "(canvas => { const c = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});"
    " c.drawImage(canvas, -(canvas.width >> 1), -(canvas.height >> 1)); return c.getImageData(0, 0, 1, 1).data; })"
)
METHODS = f"{ROWS}.map(row => row.cells[0].textContent)"
COUNT = "document.querySelector('.count').textContent"
READY = "document.querySelector('.player') && !document.querySelector('.player[aria-busy]') && document.querySelector('.panel canvas')"


def columns(page, name: str) -> list[str]:
    """Texts of a column of the table of cells; rows without it are left out."""
    heads = page.js("[...document.querySelectorAll('#view .grid thead th')].map(th => th.textContent)")
    return page.js(f"{ROWS}.map(row => row.cells[{heads.index(name)}]?.textContent)")


def keys_of(page) -> list[str]:
    return page.js("JSON.parse(document.getElementById('data').textContent).cells.map(cell => cell.id)")


def test_every_view_opens_from_disk_without_errors_or_requests(page):
    assert page.js("location.protocol") == "file:"
    for view in ("cells", "plots", "videos", "tables", *(f"cell/{key}" for key in keys_of(page))):
        page.go(view)
        assert page.js("document.querySelectorAll('main h1').length") == 1 and page.js("document.querySelectorAll('#view h2').length") == 1
        if view == "videos":
            page.wait(READY)
    assert page.problems() == []


def test_prompts_reasons_and_labels_stay_text(page):
    page.go("videos")
    page.wait(READY)
    assert any(HOSTILE in text for text in page.js("[...document.querySelectorAll('option')].map(option => option.textContent)"))
    page.go("cells")
    assert REASON in columns(page, "CLIPSIM ↑")
    page.go("tables")
    assert page.js("document.querySelector('.paper h3').textContent").startswith("Toy table <script>window.hacked = 2</script>")
    for key in keys_of(page):
        page.go(f"cell/{key}")
    assert page.js("document.scripts.length") == 2 and page.js("document.querySelectorAll('main script, main img, main b > b').length") == 0
    assert page.js("typeof window.hacked") == "undefined"


def test_the_policy_stops_scripts_that_are_not_the_pages_own(page):
    page.js("document.body.insertAdjacentHTML('beforeend', '<img src=data:x onerror=\"window.hacked = 1\">')")
    page.js("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))")
    page.js("new Promise(done => setTimeout(done, 100))")
    assert page.js("typeof window.hacked") == "undefined"
    assert page.js("fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.name)") == "TypeError"
    assert any("Content Security Policy" in text for text in page.problems())


def test_filters_narrow_the_cells_and_say_how_many(page):
    everything = page.js(METHODS)
    assert len(everything) == 11 and page.js(COUNT) == "All 11 cells"
    page.choose("State", "failed")
    assert columns(page, "state") == ["failed", "failed"] and page.js(COUNT) == "2 of 11 cells"
    page.choose("Method", "gptq")
    assert page.js(METHODS) == ["gptq"]
    page.click(".controls button")
    assert page.js(METHODS) == everything
    page.choose("Model", made_results.OTHER)
    assert page.js(METHODS) == ["tsq"]
    page.choose("Model", "")
    page.js("document.querySelector('input[type=search]').focus()")
    page.call("Input.insertText", text="LOG2 temporal")
    assert columns(page, "state") == ["skipped"] and "log2 features need a temporal layer" in page.js(f"{ROWS}[0].textContent")
    page.choose("Bits", "w8a8")
    assert page.js(METHODS) == [] and page.js(COUNT) == "0 of 11 cells"


def test_columns_sort_both_ways_with_holes_last(page):
    button = "#view thead th:nth-child(7) button"
    page.click(button)
    values = [float(text.split()[0]) for text in columns(page, "CLIPSIM ↑") if text[:1].isdigit()]
    assert values == sorted(values, reverse=True) and len(values) == 8
    assert page.js("document.querySelector('#view thead th:nth-child(7)').getAttribute('aria-sort')") == "descending"
    assert sorted(columns(page, "state")[8:]) == ["failed", "failed", "skipped"]
    page.click(button)
    assert [float(text.split()[0]) for text in columns(page, "CLIPSIM ↑") if text[:1].isdigit()] == sorted(values)
    assert page.js("[...document.querySelectorAll('#view thead th')].filter(th => th.getAttribute('aria-sort') !== 'none').length") == 1
    assert sorted(columns(page, "state")[8:]) == ["failed", "failed", "skipped"]


def test_costs_of_simulated_cells_are_holes_and_of_integer_kernels_are_numbers(page):
    seconds = dict(zip(page.js(METHODS), columns(page, "Time per step (s) ↓"), strict=True))
    assert seconds["dynamic weights per group"] == "0.2500" and seconds["fp"] == "0.5000"
    assert page.js(f"{ROWS}.filter(row => row.textContent.startsWith('tsq')).every(row => !row.textContent.includes('9.0'))")
    page.go("plots")
    latency = "document.querySelector('[data-plot=tradeoff-seconds_per_step]')"
    page.wait(f"{latency}.querySelector('svg .point')")
    names = page.js(f"[...{latency}.querySelectorAll('.point')].map(point => point.getAttribute('aria-label').split(';')[0])")
    assert names == ["fp", "dynamic w8a8"]


def levels(page) -> list[float]:
    """Level in the middle of each video, as it is drawn now."""
    return page.js(f"[...document.querySelectorAll('.panel canvas:not(.delta)')].map({MIDDLE}).map(p => (p[0] + p[1] + p[2]) / 3)")


@pytest.mark.parametrize("videos", ["all", "link"])
def test_the_player_shows_the_same_frame_of_all_videos(browser, made, videos):
    page = browser.page(made(videos).as_uri() + "#videos")
    page.wait(READY)
    assert page.js("document.querySelector('.player input[type=range]').max") == str(FRAMES - 1)
    last = FRAMES - 1
    for press, frame in ((None, 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", last), ("ArrowRight", 0), ("ArrowLeft", last)):
        if press:
            page.js("document.querySelector('.player').focus()")
            page.press(press)
        assert page.js("[...document.querySelectorAll('.panel canvas')].map(c => Number(c.dataset.frame))") == [frame] * 4
        told = page.js("document.querySelector('.player input[type=range]').getAttribute('aria-valuetext')")
        assert told == f"frame {frame + 1} of {FRAMES}"
        if videos == "all":
            seen = levels(page)
            assert seen[0] == pytest.approx(grey(frame), abs=3) and all(level > seen[0] + 5 for level in seen[1:])
    page.click(".player > .controls .check input")
    words = page.js("[...document.querySelectorAll('canvas.delta + .quiet')].map(e => e.textContent)")
    assert len(words) == 3 and all(text.startswith("difference × 8, on average" if videos == "all" else "difference × 8") for text in words)
    assert page.problems() == []
    page.close()


def test_the_player_plays_and_pauses(page):
    page.go("videos")
    page.wait(READY)
    page.js(
        "window.frames_seen = []; new MutationObserver(() => frames_seen.push(document.querySelector('.player').dataset.frame))"
        ".observe(document.querySelector('.player'), {attributes: true, attributeFilter: ['data-frame']})"
    )
    page.click(".play")
    assert page.js("document.querySelector('.play').textContent") == "Pause"
    page.wait("new Set(frames_seen).size >= 4")
    frames = "[...document.querySelectorAll('.panel canvas')].map(c => c.dataset.frame)"
    assert page.js(f"new Set({frames}).size") == 1
    page.js("document.querySelector('.player').focus()")
    page.press(" ")
    assert page.js("[document.querySelector('.player').dataset.playing, document.querySelector('.play').textContent]") == ["no", "Play"]
    held = page.js(frames)
    page.js("new Promise(done => setTimeout(done, 400))")
    assert page.js(frames) == held


def test_the_difference_view_shows_how_far_each_video_is_from_the_reference(page):
    page.go("videos")
    page.wait(READY)
    assert page.js("document.querySelectorAll('canvas.delta').length") == 0
    page.click(".player > .controls .check input")
    means = page.js("[...document.querySelectorAll('canvas.delta')].map(c => Number(c.dataset.mean))")
    drawn = levels(page)
    assert len(means) == 3 and means == pytest.approx([level - drawn[0] for level in drawn[1:]], abs=1.5) and min(means) > 8
    middle = f"[...document.querySelectorAll('canvas.delta')].map({MIDDLE}).map(p => p[0])"
    assert page.js(middle) == pytest.approx([min(255, 8 * mean) for mean in means], abs=12)
    page.choose("Amplified", "1")
    assert page.js(middle) == pytest.approx(means, abs=2)
    assert page.js("document.querySelector('canvas.delta').getAttribute('aria-label')").count("on average") == 1


def test_the_reference_of_a_setting_without_such_a_cell_comes_from_the_store(page):
    page.go("videos")
    page.choose("Setting", made_results.REFERENCE[made_results.OTHER])
    page.wait(READY + " && document.querySelectorAll('.panel').length === 2")
    assert levels(page)[0] == pytest.approx(grey(0), abs=3)


def test_short_videos_hold_their_last_frame_and_broken_ones_are_named(browser, tmp_path):
    made, lengths = made_results.records()[:3], (FRAMES, FRAMES - 3)
    clips = {(identity(made[2]), ("0000", 0)): Clip("data:video/mp4;base64,AAAA", FRAMES, FPS, SIDE, SIDE)}
    for record, frames in zip(made[:2], lengths, strict=True):
        write_mp4(tmp_path / "clip.mp4", made_results.video(frames=frames), FPS, min_side=SIDE)
        source = data_uri((tmp_path / "clip.mp4").read_bytes())
        clips[identity(record), ("0000", 0)] = Clip(source, frames, FPS, SIDE, SIDE)
    reference = {(made[0].key, ("0000", 0)): clips[identity(made[0]), ("0000", 0)]}
    found = Found(tuple(Run(record, tmp_path) for record in made), clips=clips, references=reference)
    write(found, tmp_path / "page.html", "Short", Videos())
    page = browser.page((tmp_path / "page.html").as_uri() + "#videos")
    page.wait(READY)
    assert page.js("document.querySelector('.player > [role=status]').textContent").startswith("tsq w4a4 cannot be shown: ")
    page.js("document.querySelector('.player').focus()")
    page.press("End")
    held = dict(zip(page.js("[...document.querySelectorAll('.panel strong')].map(e => e.textContent)"), levels(page), strict=True))
    assert held["full precision"] == pytest.approx(grey(FRAMES - 1), abs=3) and held["tsq w8a8"] == pytest.approx(grey(FRAMES - 4), abs=3)
    page.close()


def test_points_of_plots_are_reached_and_opened_by_keyboard(page):
    page.go("plots")
    plot = "document.querySelector('[data-plot=tradeoff-weight_size]')"
    page.wait(f"{plot}.querySelectorAll('.point').length >= 7")
    assert page.js(f"{plot}.querySelectorAll('.point[tabindex=\"0\"]').length") == 1
    page.js(f"{plot}.querySelector('.point[tabindex=\"0\"]').focus()")
    costs = []
    for _ in range(7):
        label = page.js("document.activeElement.getAttribute('aria-label')")
        costs.append(float(label.split("Weight size (MB) ")[1].split(";")[0]))
        page.press("ArrowRight")
    assert costs == sorted(costs) and len(set(costs)) > 2
    assert not page.js("document.getElementById('tip').hidden")
    page.press("Escape")
    assert page.js("document.getElementById('tip').hidden")
    name = page.js("document.activeElement.getAttribute('aria-label').split(';')[0]")
    page.press("Enter")
    page.wait("document.querySelector('#view h2').textContent !== 'Plots'")
    assert page.js("location.hash").startswith("#cell/")
    assert page.js("document.querySelector('#view h2').textContent").startswith(name)
    assert page.js("document.activeElement === document.querySelector('#view h2')")


def test_the_front_of_the_plot_is_that_of_the_numbers(page):
    page.go("plots")
    plot = "document.querySelector('[data-plot=tradeoff-weight_size]')"
    page.wait(f"{plot}.querySelector('.point')")
    page.click("[data-plot=tradeoff-weight_size] summary")
    rows = page.wait(f"[...{plot}.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))")
    numbers = [(float(row[1]), float(row[2]), row[4]) for row in rows]
    best = {(c, s) for c, s, _ in numbers if not any((d <= c and t >= s and (d, t) != (c, s)) for d, t, _ in numbers)}
    assert {(c, s) for c, s, on in numbers if on == "yes"} == best and 2 <= len(best) < len(numbers)


def test_all_kinds_of_plots_are_there(page):
    page.go("plots")
    page.wait("document.querySelectorAll('[data-plot] svg').length")
    kinds = page.js("[...document.querySelectorAll('[data-plot]')].map(figure => figure.dataset.plot)")
    costs = ["tradeoff-weight_size", "tradeoff-tbops", "tradeoff-seconds_per_step"]
    assert kinds == [*costs, "bits", "ranges", "threshold", "activation-range", "sqnr", "pattern"]
    assert page.js("document.querySelectorAll('[data-plot=activation-range] g[shape-rendering] rect').length") == 3 * made_results.STEPS
    decided = page.js("[...document.querySelectorAll('[data-plot=pattern] rect[data-state]')].map(box => box.dataset.state)")
    assert decided[:6] in (["8 bits", "8 bits", "4 bits", "4 bits", "8 bits", "4 bits"], ["8 bits", "8 bits", *["4 bits"] * 4])
    assert len(decided) == 3 * made_results.STEPS
    assert page.js("document.querySelectorAll('.holes li').length") == 0
    page.choose("Score", "psnr")
    assert page.js("document.querySelector('[data-plot=bits] h3').textContent").startswith("PSNR (dB) ↑")


def test_heat_maps_are_read_by_arrow_keys(page):
    page.go("plots")
    page.wait("document.querySelector('[data-plot=sqnr] svg')")
    page.js("document.querySelector('[data-plot=sqnr] svg').focus()")
    readout = "document.querySelector('[data-plot=sqnr] .readout').textContent"
    page.press("ArrowDown")
    assert page.js(readout) == "embed, embed, step 0: no value"
    page.press("ArrowDown")
    page.press("ArrowRight")
    assert page.js(readout) == "blocks.0.attn.q, self_attn.q, step 1: 11 dB"


def names(page) -> list[tuple[str, str]]:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored") and "role" in node]


@pytest.mark.parametrize("view", ["cells", "plots", "videos", "tables", "cell"])
def test_a_screen_reader_finds_landmarks_headings_and_names(page, view):
    page.go(view if view != "cell" else f"cell/fp-{made_results.REFERENCE[made_results.MODEL]}")
    if view in ("videos", "cell"):
        page.wait(READY)
    page.call("Accessibility.enable")
    found = names(page)
    roles = [role for role, _ in found]
    assert {"banner", "navigation", "main", "contentinfo"} <= set(roles)
    named = {"button", "link", "combobox", "checkbox", "slider", "searchbox", "table", "region", "img", "image", "application", "Canvas"}
    nameless = [role for role, name in found if role in named and not name.strip()]
    assert nameless == []
    ranks = page.js("[...document.querySelectorAll('h1, h2, h3, h4')].filter(h => h.checkVisibility()).map(h => Number(h.tagName[1]))")
    assert ranks[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(ranks))
    assert page.js("[...document.querySelectorAll('[role=group]')].every(e => e.getAttribute('aria-label'))")
    assert page.js("[...document.querySelectorAll('fieldset')].every(e => e.firstChild.tagName === 'LEGEND')")
    assert page.js("[...document.querySelectorAll('th')].every(th => th.scope)") and page.js("document.documentElement.lang") == "en"
    assert page.js("document.querySelectorAll('nav a[aria-current=page]').length") == 1
    ids = page.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_first_tab_skips_to_the_content(page):
    page.press("Tab")
    assert page.js("document.activeElement.id") == "skip"
    page.press("Enter")
    assert page.js("document.activeElement.id") == "main"


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, WCAG 2.2."""

    def luminance(text: str) -> float:
        parts = [float(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_formula():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_follow_the_system_the_choice_wins_and_all_text_has_contrast(page, theme):
    page.emulate(prefers_color_scheme=theme)
    background = "getComputedStyle(document.body).backgroundColor"
    light = "rgb(255, 255, 255)"
    assert (page.js(background) == light) == (theme == "light")
    for name, least in (*((n, 4.5) for n in ("ink", "soft", "link", "bad", "good", "warn")), *((f"series-{i}", 3.0) for i in range(1, 9))):
        probe = f"(() => {{ const p = document.body.appendChild(document.createElement('i')); p.style.color = 'var(--{name})';"
        colour = page.js(probe + " const c = getComputedStyle(p).color; p.remove(); return c; })()")
        assert contrast(colour, page.js(background)) >= least, name
    page.choose("Theme", "dark" if theme == "light" else "light")
    assert (page.js(background) == light) == (theme == "dark")


@pytest.mark.parametrize("view", ["cells", "plots", "videos", "tables", "cell"])
def test_a_narrow_window_needs_no_sideways_scrolling(page, view):
    page.resize(375, 800)
    page.go(view if view != "cell" else f"cell/fp-{made_results.REFERENCE[made_results.MODEL]}")
    if view in ("videos", "cell"):
        page.wait(READY)
    assert page.js("document.documentElement.scrollWidth") <= 375


def test_paper_gets_no_controls_and_dark_ink(page):
    page.emulate(prefers_color_scheme="dark")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.js("getComputedStyle(document.querySelector('.top')).display") == "none"
    assert page.js("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_less_motion_is_respected(page):
    page.emulate(prefers_reduced_motion="reduce")
    page.go("videos")
    page.wait(READY)
    page.js("new Promise(done => setTimeout(done, 300))")
    shown = page.js("({...document.querySelector('.player').dataset})")
    assert (shown["frame"], shown["playing"]) == ("0", "no")
    assert page.js("getComputedStyle(document.querySelector('.play')).transitionDuration") == "0s"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_are_not_blank(page, theme, tmp_path):
    """VDQ_SCREENSHOTS=FOLDER keeps them, to be looked at."""
    page.emulate(prefers_color_scheme=theme)
    for view in ("cells", "plots", "videos", "tables", f"cell/fp-{made_results.REFERENCE[made_results.MODEL]}"):
        page.go(view)
        if view.startswith(("videos", "cell/")):
            page.wait(READY)
        path = Path(os.environ.get("VDQ_SCREENSHOTS", tmp_path)) / f"{view.split('/')[0]}-{theme}.png"
        with Image.open(page.screenshot(path)) as picture:
            shades = np.unique(np.asarray(picture.convert("L")))
        assert len(shades) > 50


def test_the_data_of_the_page_is_the_data_that_was_read(page):
    data = page.js("JSON.parse(document.getElementById('data').textContent)")
    assert json.loads(json.dumps(data)) == data and data["settings"][0]["samples"][1]["prompt"] == HOSTILE
