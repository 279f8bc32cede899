"""Conditioning inputs: whose file goes with which prompt, pictures of captions, and what of it is in the keys."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vdqbench import shapes
from vdqbench.errors import ConfigError
from vdqbench.inputs import Input, inputs_of, sketched
from vdqbench.prompts import PromptSet
from vdqbench.store import Store

SET = dict(name="mine", shapes=None, texts=None, file=None, sha256=None, limit=None, inputs={})
CAPTION = "a red circle growing on a dark background"
ITEMS = [("0000", CAPTION), ("0001", "a blue cross moving left on a light background")]


def images(folder, *names):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / name)
    return folder


def test_files_of_a_folder_belong_to_the_prompts_in_natural_order(tmp_path):
    folder = images(tmp_path / "images", "img10.png", "img2.png")
    found = inputs_of({"image": str(folder), "sketch": None}, ITEMS, "prompts.inputs")
    assert [found[pid]["image"].path.name for pid, _ in ITEMS] == ["img2.png", "img10.png"]
    assert all(set(one) == {"image"} for one in found.values())


def test_files_by_the_prompts_id(tmp_path):
    folder = images(tmp_path / "images", "0000.png", "0001.png", "0002.png")
    found = inputs_of({"sketch": str(folder / "{id}.png")}, ITEMS, "prompts.inputs")
    assert found["0001"]["sketch"].path == folder / "0001.png"


def test_poses_are_videos_or_folders_of_frames(tmp_path):
    images(tmp_path / "poses", ".hidden.png")
    images(tmp_path / "poses" / "b", "0.png", "1.png"), images(tmp_path / "poses" / "a", "0.png")
    found = inputs_of({"pose": str(tmp_path / "poses")}, ITEMS, "prompts.inputs")
    assert [found[pid]["pose"].path.name for pid, _ in ITEMS] == ["a", "b"] and len(found["0001"]["pose"].identity) == 2


def test_the_identity_is_the_content_and_not_the_place(tmp_path):
    one, other = (images(tmp_path / name, "x.png") / "x.png" for name in ("one", "other"))
    changed = images(tmp_path / "changed", "y.png", "x.png") / "x.png"
    assert Input("image", one).identity == Input("image", other).identity != Input("image", changed).identity


def test_pictures_of_a_caption_show_its_scene(tmp_path):
    store = Store(tmp_path)
    picture, sketch = (Input(name, caption=CAPTION, index=3) for name in ("image", "sketch"))
    frame = np.asarray(Image.open(picture.file(store)).convert("RGB"))
    assert frame.shape == (32, 32, 3) and picture.file(store) == picture.file(store)
    red = (frame[..., 0] > 200) & (frame[..., 1] < 60)
    assert red.any() and np.array_equal(frame, picture.picture())
    lines = np.asarray(Image.open(sketch.file(store)).convert("RGB"))
    assert set(np.unique(lines)) == {0, 255} and 8 < (lines[..., 0] > 0).sum() < 0.4 * lines[..., 0].size
    assert (lines[red][:, 0] == 0).mean() > 0.3, "the inside of the shape has no lines"
    assert len({str(one.identity) for one in (picture, sketch, Input("image", caption=CAPTION, index=4))}) == 3


def test_a_sketch_has_lines_where_neighbours_differ():
    image = np.zeros((3, 4, 3), np.uint8)
    image[:, 2:, 1] = 24
    image[2, :, 0] = 23
    assert (sketched(image)[..., 0] > 0).tolist() == [[False, True, False, False]] * 3
    assert sketched(np.full((5, 5, 3), 9, np.uint8)).max() == 0


def test_a_prompt_set_gives_its_model_what_that_takes(tmp_path):
    folder = images(tmp_path / "images", "a.png", "b.png", "c.png")
    node = {**SET, "texts": ["x", "y", "z"], "limit": 2, "inputs": {"image": str(folder), "sketch": None, "pose": None}}
    prompts = PromptSet.from_config(node, takes={"image": "optional"})
    assert [prompts.inputs[pid]["image"].path.name for pid, _ in prompts.items] == ["a.png", "b.png"] and len(prompts.inputs) == 2
    assert PromptSet.from_config({**SET, "shapes": "eval"}, takes={"sketch": "optional"}).inputs == {}
    rendered = PromptSet.from_config({**SET, "shapes": "eval", "limit": 2}, takes={"sketch": "required"}).inputs["0001"]["sketch"]
    assert rendered == Input("sketch", caption=shapes.scenes("eval")[1].caption, index=1)


@pytest.mark.parametrize(
    "node, takes, words",
    [
        ({"texts": ["x"], "inputs": {"image": "."}}, {}, r"prompts.inputs.image=\.: this model takes nothing besides the prompt"),
        ({"texts": ["x"]}, {"pose": "required"}, "prompts.inputs.pose is missing: this model needs one for each prompt"),
        ({"texts": ["x"], "inputs": {"image": "shapes"}}, None, "not a caption of a shapes video: 'x'; give a folder"),
        ({"texts": ["x"], "inputs": {"pose": "shapes"}}, None, "no picture of this kind"),
        ({"texts": ["x"], "inputs": {"imgae": "shapes"}}, None, "prompts.inputs.imgae is not an input .did you mean image"),
        ({"texts": ["x"], "inputs": {"image": "/no/such"}}, None, "prompts.inputs.image=/no/such is not a folder"),
        ({"texts": ["x"], "inputs": {"image": "/no/{id}.png"}}, None, "there is no /no/0000.png"),
        ({"texts": ["x"], "inputs": {"image": 3}}, None, "prompts.inputs.image=3 must be"),
        ({"texts": ["x"], "inputs": "shapes"}, None, "prompts.inputs=shapes must be a mapping"),
    ],
)
def test_errors_name_key_and_remedy(node, takes, words):
    with pytest.raises(ConfigError, match=words):
        PromptSet.from_config({**SET, **node}, takes=takes)


def test_as_many_files_as_prompts(tmp_path):
    with pytest.raises(ConfigError, match="holds 1 files for 2 prompts"):
        inputs_of({"image": str(images(tmp_path / "images", "a.png"))}, ITEMS, "prompts.inputs")
