"""vdqbench sensitivity: what a group costs, how bits are given out, and the files that say so."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_stdit import roles, stdit

from vdqbench.cli import main
from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError
from vdqbench.models.roles import stdit_anatomy
from vdqbench.probe import Probe, applied
from vdqbench.progress import Progress
from vdqbench.quant.quantize import sites_of
from vdqbench.record import Record
from vdqbench.sensitivity.allocate import Item, average, decoupled, greedy
from vdqbench.sensitivity.groups import Request, grouped
from vdqbench.sensitivity.heatmap import MISSING, colour, heat_map
from vdqbench.sensitivity.run import measure
from vdqbench.store import Store

SMALL = (
    "model=mini_stdit",
    "sampler.steps=4",
    "calibration.prompts.limit=1",
    "prompts.limit=1",
    "quiet=true",
    "method=dynamic",
    "bits=w4a8",
)
ENDS = "method.sites.only=[blocks.0.*,blocks.5.*]"
COST = {4: 4.0, 6: 6.0, 8: 8.0}

parts = st.tuples(st.floats(0.01, 1), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
losses = parts.map(lambda t: {4: t[0], 6: t[0] * t[1], 8: t[0] * t[1] * t[2]})
drawn = st.lists(st.tuples(st.floats(0.1, 1), losses, st.sampled_from(["a", "b"])), min_size=1, max_size=6)
items = drawn.map(lambda listed: [Item(str(i), *one) for i, one in enumerate(listed)])


def total(items, chosen):
    return sum(item.loss[chosen[item.name]] for item in items)


@settings(deadline=None, max_examples=60)
@given(items, st.floats(4, 8), st.sampled_from([greedy, decoupled]))
def test_a_budget_is_kept_and_bits_are_never_wasted(items, budget, allocate):
    chosen = allocate(items, budget, COST)
    assert average(items, chosen, COST) <= budget + 1e-6
    assert set(allocate(items, 4, COST).values()) == {4} and set(allocate(items, 8, COST).values()) == {8}
    if allocate is greedy:
        whole, left = sum(item.share for item in items), (budget - average(items, chosen, COST)) * sum(item.share for item in items)
        dearer = [item.share * 2 for item in items if chosen[item.name] < 8]
        assert all(price > left - 1e-6 * whole for price in dearer), "nothing more is affordable"


@settings(deadline=None, max_examples=30)
@given(items, st.floats(4, 8))
def test_equal_shares_and_convex_losses_are_given_out_at_best(items, budget):
    items = [Item(item.name, 1.0, {4: item.loss[4], 8: item.loss[8]}, "a") for item in items]
    cost = {4: 4.0, 8: 8.0}
    best = min(
        total(items, dict(zip([item.name for item in items], widths, strict=True)))
        for widths in itertools.product((4, 8), repeat=len(items))
        if sum(widths) <= budget * len(items) + 1e-9
    )
    assert total(items, greedy(items, budget, cost)) == pytest.approx(best)


def test_greedy_by_hand():
    items = [Item("big", 0.8, {4: 1.0, 6: 0.2, 8: 0.1}, "a"), Item("small", 0.2, {4: 0.5, 6: 0.1, 8: 0.0}, "a")]
    # per bit: small 0.4 / 0.4 = 1 before big 0.8 / 1.6 = 0.5, then small 0.1 / 0.4, then big 0.1 / 1.6
    assert [greedy(items, budget, COST) for budget in (4.4, 6.0, 6.4)] == [
        {"big": 4, "small": 6},
        {"big": 6, "small": 6},
        {"big": 6, "small": 8},
    ]
    with pytest.raises(ConfigError, match="budget=3 is below the 4 bits of the smallest candidate"):
        greedy(items, 3, COST)
    worse = [Item("odd", 1.0, {4: 0.1, 6: 0.2, 8: 0.3}, "a")]
    assert greedy(worse, 8, COST) == {"odd": 4}, "bits that make it worse are not spent"


def test_decoupled_compares_no_two_judges():
    items = [Item("x", 0.5, {4: 1.0, 6: 0.5, 8: 0.1}, "a"), Item("y", 0.5, {4: 0.01, 6: 0.005, 8: 0.001}, "b")]
    assert greedy(items, 6, COST) == {"x": 8, "y": 4} and decoupled(items, 6, COST) == {"x": 6, "y": 6}


def test_the_heat_map_shows_each_value_at_its_place():
    picture = heat_map({"p": {("r", "0"): 1.0, ("r", "1"): 100.0, ("s", "0"): 10.0}}, ["r", "s"], ["0", "1"], "title", logarithmic=True)
    colours = {found for _, found in picture.getcolors(picture.width * picture.height)}
    assert {colour(0), colour(0.5), colour(1), MISSING} <= colours
    assert (colour(0), colour(1)) == ((68, 1, 84), (253, 231, 37))
    with pytest.raises(ValueError, match="at least one value"):
        heat_map({"p": {("r", "0"): 0.0}}, ["r"], ["0"], "title", logarithmic=True)


def test_groups_cover_all_layers_once():
    model = stdit()
    sites = [site for site in sites_of(model, roles(model)) if site.name.startswith("blocks.")]
    for keys, count in ((["role", "block"], 26), (["kind"], 4), (["block"], 2), ([], 1), (["layer"], 26)):
        groups = grouped(sites, stdit_anatomy(model), keys)
        assert len(groups) == count, keys
        assert sorted(layer.name for group in groups for layer in group.layers) == sorted(site.name for site in sites)
    by_block = {group.name: group for group in grouped(sites, stdit_anatomy(model), ["kind", "block"])}
    assert by_block["ffn-1"].kind == "ffn" and {layer.name for layer in by_block["ffn-1"].layers} == {
        "blocks.1.mlp.fc1",
        "blocks.1.mlp.fc2",
    }
    assert grouped(sites, stdit_anatomy(model), ["block"])[1].kind is None


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture(scope="module")
def found(out):
    words = (*SMALL, ENDS, f"out={out}")
    return measure(Request(words, group=("kind", "block", "range"), ranges=2, moments=1, budget=5.0, activation_budget=7.0, name="all"))


def test_a_row_is_the_error_of_its_layers_alone(found, out):
    assert len(found.rows) == 7 * 4 * 2 * 2  # the cell's bits, three widths of weights and of activations; kinds; blocks; ranges
    (row,) = [r for r in found.rows if r.variant.name == "cell" and r.group.name == "ffn-5" and r.range == 1]
    only = [*SMALL, f"out={out}", "method.sites.only=[blocks.5.mlp.*]"]
    cell, store, quiet = Cell.from_config(Composer().plain(only)), Store(out / "store"), Progress(quiet=True)
    probe = Probe(cell, store, quiet, 2, 1, ["output_error"])
    with applied(cell, store, quiet):
        assert row.loss == row.value == probe.errors(1)["output_error"] > 0
        assert row.loss != probe.errors(0)["output_error"]


def test_more_bits_cost_less(found):
    by = {(row.variant.name, row.group.name, row.range): row.loss for row in found.rows}
    for side in "wa":
        for _, group, part in by:
            assert by[f"{side}4", group, part] > by[f"{side}6", group, part] > by[f"{side}8", group, part] > 0


def test_the_table_has_every_row_and_the_map_is_a_picture(found):
    rows = list(csv.DictReader((found.folder / "table.csv").open()))
    assert len(rows) == len(found.rows) and {row["judge"] for row in rows} == {"output_error"}
    assert [float(row["loss"]) for row in rows] == [row.loss for row in found.rows]
    assert rows[0].keys() >= {"kind", "block", "range", "variant", "elements"}
    with Image.open(found.folder / "heatmap.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 100
    text = (found.folder / "table.md").read_text()
    assert "| kind | block | range | judge | loss | share of weights |" in text and "shapes_calib" in text


def test_the_sites_file_is_what_the_account_says_and_beats_its_smallest_width(found, out):
    mixed = found.mixed
    cell = Cell.from_config(Composer().plain([*SMALL, ENDS, f"out={out}", f"++method.sites.file={mixed.path}"]))
    table = yaml.safe_load(mixed.path.read_text())
    assert table["ranges"] == 2 and len(table["layers"]) == 26
    sites = [layer for group in {row.group.name: row.group for row in found.rows}.values() for layer in group.layers]
    whole = sum(site.elements for site in sites)
    for side, bits, budget in ((0, mixed.weight_bits, 5.0), (1, mixed.activation_bits, 7.0)):
        mean = sum(site.elements * sum(pair[side] for pair in table["layers"][site.name]) / 2 for site in sites) / whole
        assert bits == pytest.approx(mean) and 4 < mean <= budget
        assert {pair[side] for pairs in table["layers"].values() for pair in pairs} <= {4, 6, 8}
    stored = sum(site.elements * sum({pair[0] for pair in table["layers"][site.name]}) for site in sites) / whole
    assert mixed.stored_bits == pytest.approx(stored) and stored >= mixed.weight_bits
    assert cell.recipe.average_bits(sites) == (mixed.weight_bits, mixed.activation_bits)
    errors = mixed.beside
    assert list(errors) == ["mixed", *(f"weight and activation {bits} bits" for bits in (4, 6, 8))]
    assert errors["weight and activation 8 bits"] < errors["mixed"] < errors["weight and activation 4 bits"]
    assert "of at most 5 bits" in mixed.path.read_text() and mixed.command.endswith(f"method.sites.file={mixed.path}")


def test_proxies_judge_each_kind_and_are_named_so(out):
    words = (*SMALL, ENDS, f"out={out}")
    request = Request(words, by="proxies", group=("kind",), moments=1, budget=6.0, allocation="decoupled", candidates=(4, 8))
    found = measure(request)
    judges = {row.group.name: row.judge for row in found.rows}
    assert judges == {
        "self_attn": "output_error",
        "cross_attn": "guidance_error",
        "ffn": "output_error",
        "temporal_attn": "temporal_error",
    }
    assert found.folder.name == "mini_stdit-dynamic-w4a8-proxies" and found.mixed.weight_bits <= 6
    text = (found.folder / "table.md").read_text()
    assert "proxies: errors of the denoiser" in text and "(decoupled)" in text
    layers = yaml.safe_load(found.mixed.path.read_text())["layers"]
    for alone in ("cross_attn", "attn_temp"):  # half the budget of a kind that has its judge for itself buys nothing
        assert {tuple(pair) for name, (pair,) in layers.items() if f".{alone}." in name} == {(4, 8)}


def test_scores_judge_each_kind_of_layer():
    sites = [site for site in sites_of(stdit(), roles(stdit())) if site.name.startswith("blocks.0.")]
    groups = grouped(sites, stdit_anatomy(stdit()), ["kind"])
    request = Request(SMALL, by="metrics", judges={"time": "flicker"})
    assert {group.name: request.judge(group, mini=False) for group in groups} == {
        "self_attn": "vqa",
        "cross_attn": "clipsim",
        "ffn": "vqa",
        "temporal_attn": "flicker",
    }
    assert request.judge(groups[0], mini=True) == "mini_vqa_t" and not request.fast
    assert {Request(SMALL, by="psnr").judge(group, mini=True) for group in groups} == {"psnr"}


def test_scores_come_from_ordinary_cells_of_the_calibration_prompts(out, capsys):
    words = ["sensitivity", *SMALL, f"out={out}", "by=psnr", "group=kind", "name=slow", "method.sites.only=[cross_attn.*,ffn.*]"]
    assert main(words) == 0
    rows = {row["kind"]: row for row in csv.DictReader((out / "sensitivity" / "slow" / "table.csv").open())}
    assert set(rows) == {"cross_attn", "ffn"} and "ffn" in capsys.readouterr().out
    records = {record.cell["method"]: record for record in map(Record.load, out.glob("runs/*/*/record.json"))}
    assert set(records) == {"dynamic", "dynamic-cross_attn", "dynamic-ffn"}
    for kind, row in rows.items():
        record = records[f"dynamic-{kind}"]
        assert record.cell["prompts"] == "shapes_calib" and record.cell["bits"] == "w4a8"
        assert record.quantization["quantized_layers"] == {"cross_attn": 18, "ffn": 12}[kind]
        assert float(row["value"]) == record.scores["psnr"]["mean"]
        assert float(row["loss"]) == records["dynamic"].scores["psnr"]["mean"] - record.scores["psnr"]["mean"] > 0


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["group=role,blok"], "blok does not tell groups apart (did you mean block"),
        (["ranges=3"], "ranges=3 must divide the 4 steps of the sampler: one of 1, 2, 4"),
        (["allocation=greddy"], "allocation=greddy is not one (did you mean greedy"),
        (["allocation=decoupled"], "judges each kind of layer by its own score"),
        (["candidates=4"], "at least two different widths"),
        (["candidates=4,x"], "candidates=4,x must be whole numbers"),
        (["budget=much"], "budget must be a number"),
        (["judge.text=clipsim"], "judge.text is of by=metrics"),
        (["method=fp"], "quantizes nothing"),
        (["bits=w4a8,w8a8"], "is about one cell"),
        (["by=clipsin"], "by=clipsin is neither an error nor a score"),
        (["moments=0"], "moments=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words, sentence, out, capsys):
    own = [word for word in SMALL if not any(word.split("=")[0] == given.split("=")[0] for given in words)]
    assert main(["sensitivity", *own, f"out={out}", "name=refused", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (out / "sensitivity" / "refused").exists()
