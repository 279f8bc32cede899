"""Which layers are quantized, and with how many bits."""

from __future__ import annotations

import json

import pytest

from vdqbench.errors import ConfigError
from vdqbench.quant.parts import Site
from vdqbench.quant.recipe import Recipe

SITES = [
    Site(name, role, (4, 4), None, None)
    for name, role in (("in", "embed"), ("b.0.q", "self_attn.q"), ("b.0.up", "ffn.up"), ("out", "head"))
]
METHOD = {"name": "m", "weight": {"grid": "minmax"}, "activation": {"grid": "dynamic"}}


def recipe(sites, weight=4, activation=4, steps=4):
    return Recipe.from_config({**METHOD, "sites": sites}, {"weight": weight, "activation": activation}, steps)


def bits(sites, weight=4, activation=4):
    return {s.name: (s.weight_bits, s.activation_bits) for s in recipe(sites, weight, activation).assign(SITES)}


def test_only_leaves_the_others_out_of_the_account():
    made = recipe({"only": ["self_attn.*", "temporal_attn.*", "ffn.*"]})
    assert [site.name for site in made.assign(SITES)] == ["b.0.q", "b.0.up"] and made.average_bits(SITES) == (4, 4)
    assert recipe({"only": ["*"], "keep_fp": ["head"]}).average_bits(SITES) == (7, 7)
    with pytest.raises(ConfigError, match=r"method\.sites\.only=\['fnn\.\*'\] matches no layer"):
        recipe({"only": ["fnn.*"]}).assign(SITES)


def test_first_and_last_layer_at_eight_bits():
    eight = {"bits": {"embed": 8, "head": 8}}
    assert bits(eight) == {"in": (8, 8), "b.0.q": (4, 4), "b.0.up": (4, 4), "out": (8, 8)}
    assert bits(eight, 16, 6)["in"] == (None, 8)  # what the cell leaves in floating point stays there
    assert bits({"bits": {"ffn.*": {"activation": 16}}})["b.0.up"] == (4, None)
    assert bits({"bits": {"*": 6, "b.0.*": {"weight": 3}}})["b.0.q"] == (3, 6)
    assert recipe({"bits": {}}).semantic() == recipe({}).semantic()
    with pytest.raises(ConfigError, match=r"method\.sites\.bits\.head=32 must be a whole number in 2\.\.16"):
        recipe({"bits": {"head": 32}})


def test_a_file_gives_bits_of_layers_in_ranges(tmp_path):
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps({"ranges": 2, "layers": {"b.0.*": [[8, 8], [4, 16]], "b.0.up": [[6, 6], [6, 6]]}}))
    made = recipe({"file": str(path)}, 16, 16)
    assert not made.is_fp
    sites = {site.name: site for site in made.assign(SITES)}
    assert sites["b.0.q"].plan(4) == [(8, 8), (8, 8), (4, None), (4, None)] and sites["b.0.up"].plan(4) == [(6, 6)] * 4
    assert sites["in"].plan(4) == [(None, None)] * 4
    assert made.average_bits(SITES) == ((6 + 6 + 16 + 16) / 4, (12 + 6 + 16 + 16) / 4)
    other = tmp_path / "copy.json"
    other.write_text(path.read_text())
    assert recipe({"file": str(other)}).semantic() == recipe({"file": str(path)}).semantic()  # the content counts, not its place
    assert recipe({"file": None}).semantic() == recipe({}).semantic()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read: "),
        ("[]", "must hold `layers`"),
        ('{"ranges": 2, "layers": {"b": [[4, 4]]}}', "b must list 2 pairs"),
        ('{"ranges": 1, "layers": {"b": [[4, 1]]}}', r"b has \[4, 1\] where"),
        ('{"ranges": 3, "layers": {"b": [[4, 4], [4, 4], [4, 4]]}}', "its ranges must divide the 4 steps"),
    ],
)
def test_files_that_are_not_right(tmp_path, content, message):
    path = tmp_path / "mixed.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        recipe({"file": str(path)})


def test_a_file_that_is_not_there_or_about_other_layers(tmp_path):
    with pytest.raises(ConfigError, match=r"method\.sites\.file=/none\.yaml cannot be read: .*No such file"):
        recipe({"file": "/none.yaml"})
    (tmp_path / "m.yaml").write_text("ranges: 1\nlayers: {b.7.q: [[4, 4]]}")
    with pytest.raises(ConfigError, match=r"b\.7\.q matches no layer"):
        recipe({"file": str(tmp_path / "m.yaml")}).assign(SITES)


def test_bits_by_parts_of_the_trajectory():
    mixed = {"bits": {"*": {"weight": [8, None]}, "ffn.*": {"weight": 8}, "head": {"activation": [8, 16]}}}
    made = recipe(mixed, 4, 6)
    sites = {site.name: site.plan(4) for site in made.assign(SITES)}
    assert sites["in"] == [(8, 6), (8, 6), (4, 6), (4, 6)] and sites["b.0.up"] == [(8, 6)] * 4
    assert sites["out"] == [(8, 8), (8, 8), (4, None), (4, None)]
    assert made.average_bits(SITES)[0] == (6 + 6 + 8 + 6) / 4
    with pytest.raises(ConfigError, match=r"method\.sites\.bits\.head lists 3 parts, which do not divide the 4 steps"):
        recipe({"bits": {"head": [4, 4, 8]}})
