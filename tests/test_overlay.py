"""Maps as pictures: colours, outlines, and files that can be read again."""

import numpy as np
import pytest
from PIL import Image

from nnad import InputError
from nnad.anomaly_maps import Region
from nnad.overlay import (
    coloured,
    mask,
    overlay,
    resampled,
    save_map,
    save_mask,
    save_overlay,
    shown_size,
)

GREY = Image.new("RGB", (400, 300), (100, 100, 100))
RED = (200, 30, 30)


def test_a_colour_means_the_same_in_every_image():
    pixels = np.full((1, 5, 3), 100, np.uint8)
    found = coloured(pixels, np.array([[-3.0, 0.0, 1.0, 2.0, 50.0]]))
    assert found[0, 0].tolist() == found[0, 1].tolist() == [100, 100, 100]
    assert found[0, 2].tolist() == [178, 160, 50]  # half of it yellow
    assert found[0, 3].tolist() == found[0, 4].tolist() == [190, 25, 25]
    alone = coloured(pixels[:, :1], np.array([[1.0]]))
    assert alone[0, 0].tolist() == found[0, 2].tolist()
    assert coloured(pixels[:, :1], np.array([[np.nan]]))[0, 0].tolist() == [114, 114, 114]


def test_a_good_image_stays_as_it_is():
    found = np.asarray(overlay(GREY, np.full((300, 400), 5.0), usual=5.0, threshold=6.0))
    assert (found[:300, :400] == 100).all()
    assert found.shape[0] > 300  # the legend


def test_a_defect_is_outlined_and_boxed():
    found_map = np.zeros((300, 400), np.float32)
    found_map[100:120, 50:90] = 30
    found = np.asarray(overlay(GREY, found_map, threshold=20))
    assert found[100, 70].tolist() == list(RED)  # outline
    assert found[97, 70].tolist() == list(RED)  # box
    assert (
        found[110, 70].tolist()
        == coloured(np.full((1, 1, 3), 100, np.uint8), np.array([[1.5]]))[0, 0].tolist()
    )
    assert found[200, 200].tolist() == [100, 100, 100]
    moved = [Region(box=(200, 200, 210, 220), area=1, peak=30.0, place=(200, 200))]
    told = np.asarray(overlay(GREY, found_map, threshold=20, found=moved))
    assert told[197, 205].tolist() == list(RED)
    assert told[97, 70].tolist() == [100, 100, 100]


def test_what_nobody_looked_at_is_grey_and_told():
    found_map = np.zeros((300, 400))
    found_map[:10] = np.nan
    found = overlay(GREY, found_map)
    assert found.getpixel((5, 5)) == (114, 114, 114)
    assert found.height > overlay(GREY, np.zeros((300, 400))).height


def test_a_small_defect_in_a_large_image_does_not_disappear():
    assert shown_size(8000, 2000) == (2828, 707)
    assert shown_size(200, 50_000) == (16, 4000)
    assert shown_size(640, 480) == (640, 480)
    assert shown_size(80, 60) == (320, 240)
    large = np.full((2000, 8000), np.nan, np.float32)
    large[1000:] = 0
    large[1500, 4001] = 7
    small = resampled(large, (2828, 707))
    assert small.shape == (707, 2828)
    assert np.nanmax(small) == 7
    assert np.isnan(small[:353]).all()
    assert np.isfinite(small[354:]).all()
    np.testing.assert_array_equal(resampled(np.array([[1, 2]]), (4, 2)), [[1, 1, 2, 2]] * 2)
    strip = overlay(Image.new("RGB", (16, 50_000)), np.zeros((50_000, 16)))
    assert 4000 < strip.height < 4100
    assert strip.width > 200  # room for the legend


def test_a_mask_is_black_and_white():
    found = mask(np.array([[0.9, 1.0, 1.1, np.nan]]))
    assert found.mode == "L"
    assert np.asarray(found).tolist() == [[0, 0, 255, 0]]


def test_files_can_be_read_again(tmp_path):
    found_map = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    found_map[3, 4] = np.nan
    for name in ("map.tiff", "map.npy"):
        save_map(tmp_path / name, found_map.astype(np.float64))
    again = np.load(tmp_path / "map.npy")
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, found_map)
    with Image.open(tmp_path / "map.tiff") as picture:
        assert picture.mode == "F"
        np.testing.assert_array_equal(np.asarray(picture), found_map)
    save_mask(tmp_path / "mask.png", found_map, threshold=0.5)
    with Image.open(tmp_path / "mask.png") as picture:
        assert (np.asarray(picture) == np.where(found_map > 0.5, 255, 0)).all()
    save_overlay(tmp_path / "overlay.png", Image.new("RGB", (40, 30)), found_map)
    with Image.open(tmp_path / "overlay.png") as picture:
        assert picture.format == "PNG"
    assert len(list(tmp_path.iterdir())) == 4


def test_maps_that_cannot_be_shown_or_written(tmp_path):
    with pytest.raises(InputError, match=r"shape \(400, 300\) for \(300, 400\)"):
        overlay(GREY, np.zeros((400, 300)))
    with pytest.raises(InputError, match="more than usual=1"):
        overlay(GREY, np.zeros((300, 400)), usual=1, threshold=1)
    with pytest.raises(InputError, match=r"map\.png: unknown kind of map"):
        save_map(tmp_path / "map.png", np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"mask\.png: cannot be written: No such file"):
        save_mask(tmp_path / "nothing" / "mask.png", np.zeros((2, 2)))
