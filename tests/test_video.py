"""Video files: bit-exact lossless round trips, browser-playable copies, and plain errors."""

from __future__ import annotations

import numpy as np
import pytest

from vdqbench import video
from vdqbench.errors import ConfigError
from vdqbench.sheet import contact_sheet, grid


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 32, 32, 3), (3, 61, 63, 3), (1, 7, 5, 3), (2, 1, 1, 3), (4, 48, 17, 3)])
@pytest.mark.parametrize("suffix", video.LOSSLESS)
def test_lossless_round_trip_is_bit_exact(tmp_path, shape, suffix):
    frames = noise(*shape)
    video.write_lossless(tmp_path / "a" / f"v{suffix}", frames, fps=8)
    back = video.read(tmp_path / "a" / f"v{suffix}")
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, frames)


def test_lossless_files_are_reproducible_and_leave_nothing_behind(tmp_path):
    for name in ("a.mkv", "b.mkv", "a.mkv"):
        video.write_lossless(tmp_path / name, noise(4, 16, 16, 3), fps=8)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]


@pytest.mark.parametrize(("side", "expected"), [((32, 32), (256, 256)), ((33, 20), (430, 260)), ((301, 299), (302, 300))])
def test_mp4_is_large_enough_even_and_close(tmp_path, side, expected):
    y, x = np.mgrid[: side[0], : side[1]]
    smooth = np.stack([255 * y / side[0], 255 * x / side[1], 128 + 0 * x], -1).astype(np.uint8)
    video.write_mp4(tmp_path / "v.mp4", np.stack([smooth] * 6), fps=8)
    back = video.read(tmp_path / "v.mp4")
    assert back.shape == (6, *expected, 3)
    factor = expected[0] // side[0]
    shown = np.stack([smooth] * 6).repeat(factor, 1).repeat(factor, 2)
    difference = np.abs(back[:, : shown.shape[1], : shown.shape[2]].astype(int) - shown)
    assert difference.mean() < 4


def test_mp4_plays_in_browsers(tmp_path):
    import av

    video.write_mp4(tmp_path / "v.mp4", noise(5, 32, 32, 3), fps=7.5)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 7.5
    head = (tmp_path / "v.mp4").read_bytes()
    assert 0 < head.index(b"moov") < head.index(b"mdat")


@pytest.mark.parametrize("bad", [noise(4, 8, 8, 3).astype(np.float32), noise(8, 8, 3), noise(4, 8, 8, 4), noise(0, 8, 8, 3), [1]])
def test_wrong_frames_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r"uint8 array \[T, H, W, 3\]"):
        video.write_lossless(tmp_path / "v.mkv", bad, fps=8)
    assert not list(tmp_path.iterdir())


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    for name in ("text.mp4", "missing.mp4"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            video.read(tmp_path / name)
    with pytest.raises(ValueError, match=r"v\.mkv or v\.mp4, not v\.gif"):
        video.write_lossless(tmp_path / "v.gif", noise(1, 8, 8, 3), fps=8)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    video.write_lossless(tmp_path / "v.mkv", noise(2, 8, 8, 3), fps=8)
    before = (tmp_path / "v.mkv").read_bytes()
    with pytest.raises(ValueError, match="NaN"):
        video.write_lossless(tmp_path / "v.mkv", noise(2, 8, 8, 3), fps=float("nan"))
    assert (tmp_path / "v.mkv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.mkv"]


def test_contact_sheet_shows_first_and_last_frame_of_each_video():
    red, blue = np.zeros((2, 16, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, np.arange(16)[:, None, None] * 17
    sheet = np.asarray(contact_sheet([[red, blue], [None, red]], ["real", "W4A4"], ["one", "two"], frames=4, min_side=16))
    gap, line, wide, high = 8, 18, 4 * 16, 16
    assert sheet.shape == (gap + line + 2 * (high + gap + line), gap + 2 * (wide + gap), 3)
    y, second = gap + line + line, gap + wide + gap
    assert (sheet[y : y + high, gap : gap + wide] == [255, 0, 0]).all()
    assert (sheet[y : y + high, second : second + 16] == [0, 0, 0]).all()
    assert (sheet[y : y + high, second + 48 : second + 64] == [0, 0, 255]).all()
    assert sheet[y + high + gap + line + 15, gap + 60].tolist() == [208, 208, 208]


def test_grid_plays_all_and_holds_the_last_frame():
    short, long = noise(2, 8, 8, 3), noise(5, 8, 8, 3)
    frames = grid([[short, long]], ["a", "b"], min_side=8)
    assert frames.shape[0] == 5
    np.testing.assert_array_equal(frames[4, 26:34, 8:16], short[1])
    np.testing.assert_array_equal(frames[4, 26:34, 24:32], long[4])
    with pytest.raises(ValueError, match="every row needs 2 videos"):
        grid([[short]], ["a", "b"])
    with pytest.raises(ValueError, match="no video"):
        grid([[None]], ["a"])


def test_folders_of_images_are_videos_in_natural_order(tmp_path):
    from PIL import Image

    frames = noise(12, 7, 5, 3)
    (tmp_path / "v").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "v" / f"f{i}.png")
    (tmp_path / "v" / ".hidden.png").write_bytes(b"?")
    (tmp_path / "v" / "notes.txt").write_text("?")
    np.testing.assert_array_equal(video.read(tmp_path / "v"), frames)
    assert [file.name for file in video.images(tmp_path / "v")][:3] == ["f0.png", "f1.png", "f2.png"]

    Image.fromarray(frames[0, :4]).save(tmp_path / "v" / "f12.png")
    with pytest.raises(ConfigError, match=r"several sizes \(4x5, 7x5\)"):
        video.read(tmp_path / "v")
    Image.fromarray(np.full((7, 5), 40000, np.uint16)).save(tmp_path / "v" / "f12.png")
    with pytest.raises(ConfigError, match=r"f12\.png has pixels of mode I;16"):
        video.read(tmp_path / "v")
    (tmp_path / "v" / "f12.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"f12\.png cannot be read"):
        video.read(tmp_path / "v")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no frame"):
        video.read(tmp_path / "empty")


def test_grey_and_transparent_images_become_rgb(tmp_path):
    from PIL import Image

    for mode, value, expected in (("L", 90, (90, 90, 90)), ("RGBA", (1, 2, 3, 0), (1, 2, 3)), ("1", 1, (255, 255, 255))):
        folder = tmp_path / mode
        folder.mkdir()
        Image.new(mode, (4, 3), value).save(folder / "0.png")
        assert video.read(folder).shape == (1, 3, 4, 3) and video.read(folder)[0, 1, 2].tolist() == list(expected)


def test_a_damaged_file_is_not_taken_for_a_shorter_video(tmp_path):
    video.write_mp4(tmp_path / "v.mp4", noise(24, 64, 64, 3), fps=8)
    whole = (tmp_path / "v.mp4").read_bytes()
    assert len(video.read(tmp_path / "v.mp4")) == 24
    (tmp_path / "v.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"v\.mp4 (is damaged: \d+ of its 24 frames|cannot be read)"):
        video.read(tmp_path / "v.mp4")


def test_listing_sorts_naturally_and_names_what_is_left(tmp_path):
    for name in ("v10.mp4", "v9.GIF", "a.mkv", "v9.txt", ".x.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "0.JPG").write_bytes(b"")
    (tmp_path / "v2").mkdir()
    found, others = video.listing(tmp_path)
    assert [path.name for path in found] == ["a.mkv", "v1", "v9.GIF", "v10.mp4"]
    assert [path.name for path in others] == ["v2", "v9.txt"]
