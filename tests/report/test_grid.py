"""Sheets and side-by-side videos: where each video stands, sizes, and the file-size limit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vdqbench import video
from vdqbench.report import grid

LABELS = ("real", "FP", "W8A8", "W4A4")


def plain_video(colour: tuple[int, int, int], frames: int = 16) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (frames, 32, 32, 3)).copy()


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture.reshape(-1, 3) == colour).all(1).sum())


def test_a_sheet_shows_four_enlarged_frames_of_each_video(tmp_path):
    red, blue = (255, 0, 0), (0, 0, 255)
    path = grid.write_contact_sheet(tmp_path / "new" / "sheet.png", {"a": [plain_video(red)], "b": [plain_video(blue)]}, ["x"])
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert count(picture, red) == count(picture, blue) == 4 * 64 * 64
    columns = np.flatnonzero((picture == red).all(2).any(0)), np.flatnonzero((picture == blue).all(2).any(0))
    assert columns[0].max() < columns[1].min()


def test_frames_are_evenly_spaced(tmp_path):
    frames = np.stack([np.full((32, 32, 3), 10 * t, np.uint8) for t in range(16)])
    path = grid.write_contact_sheet(tmp_path / "s.png", {"a": [frames]})
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert [count(picture, (10 * t,) * 3) // 4096 for t in range(16)] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_files_are_read_and_a_missing_video_stays_visible(tmp_path):
    video.write_lossless(tmp_path / "a.mkv", plain_video((0, 200, 0)), 8)
    path = grid.write_contact_sheet(tmp_path / "s.png", {"a": [tmp_path / "a.mkv", None], "b": [None, str(tmp_path / "a.mkv")]})
    assert count(np.asarray(Image.open(path).convert("RGB")), (0, 200, 0)) == 2 * 4 * 64 * 64


def test_the_worst_sheet_stays_below_a_megabyte(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 4, 16, 32, 32, 3), dtype=np.uint8)
    columns = {label: list(noise[:, i]) for i, label in enumerate(LABELS)}
    path = grid.write_contact_sheet(tmp_path / "sheet.png", columns, [f"prompt {i}" for i in range(16)])
    assert path.stat().st_size < 1_000_000
    picture = Image.open(path)
    assert picture.width >= 4 * 4 * 64 and picture.height >= 16 * 64


def test_a_small_sheet_keeps_its_colours_exactly(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    path = grid.write_contact_sheet(tmp_path / "sheet.png", {"a": [frames]})
    picture = np.asarray(Image.open(path).convert("RGB"))
    places = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], (64, 64))
    y, x = np.argwhere((places[:, :, 0, 0] == frames[0, 0, 0, 0]) & (places == frames[0, :, :, 0]).all((2, 3)))[0]
    assert (picture[y : y + 64, x : x + 256] == np.concatenate(list(frames), axis=1)).all()


def test_side_by_side_plays_in_step(tmp_path):
    left = np.stack([np.full((32, 32, 3), 20 * t, np.uint8) for t in range(8)])
    path = grid.write_side_by_side(tmp_path / "new" / "s.mp4", {"a": [left], "b": [left[::-1].copy()]}, fps=8)
    frames = video.read(path)
    assert len(frames) == 8 and frames.shape[1] % 2 == 0 and frames.shape[2] >= 2 * 64
    middle = frames.shape[1] - 40
    a, b = (frames[:, middle, x, 0].astype(int) for x in (8 + 32, 16 + 64 + 32))
    assert np.abs(a - 20 * np.arange(8)).max() <= 6 and np.abs(b - 20 * np.arange(8)[::-1]).max() <= 6


def test_columns_must_be_alike():
    with pytest.raises(ValueError, match="one video per prompt"):
        grid.write_contact_sheet("s.png", {"a": [None], "b": [None, None]})
