"""Tiles, regions of interest, and maps of images larger than the network's input."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import draw
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nnad import Backbone, ImageError, InputError, load_backbone
from nnad.anomaly_maps import to_image
from nnad.images import read_image
from nnad.patch_features import patch_stages
from nnad.patch_model import PatchModel
from nnad.preprocessing import Preprocessing, read_mask
from nnad.tiles import Tiles, pixel_box, views, views_of

SIZE, CELL = 32, 4  # of the input, and of a place


class Colours(Backbone):
    """Not a network: its map is the mean colour of each cell of its input."""

    gives_maps = True

    def __init__(self, **settings):
        super().__init__("colours", Preprocessing(SIZE, **settings), b"")

    def outputs(self, pixels):
        n = SIZE // CELL
        cells = pixels.reshape(n, CELL, n, CELL, 3).astype(np.float32)
        return [cells.mean(axis=(1, 3))[None]]


def bare_views(backbone, image, *args, **kwargs):
    """Without the mean over neighbouring places, which sees the edges of a tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnad.patch_features.neighborhood_mean", lambda stage, _: stage)
        return list(views(backbone, image, *args, **kwargs))


# -------------------------------------------------------------------------------- tiles


def test_tiles_by_hand():
    tiles = Tiles(overlap=0.25)
    assert tiles.boxes(8, 8, 8) == [(0, 0, 8, 8)]
    assert [box[0] for box in tiles.boxes(20, 8, 8)] == [0, 6, 12]
    assert [box[0] for box in tiles.boxes(21, 8, 8)] == [0, 6, 12, 13]  # moved back inside
    assert tiles.boxes(3, 5, 8) == [(0, 0, 8, 8)]
    assert Tiles(20, overlap=0).boxes(40, 30, 8) == [
        *[(0, 0, 20, 20), (20, 0, 40, 20)],
        *[(0, 10, 20, 30), (20, 10, 40, 30)],
    ]


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(16, 100),
    overlap=st.floats(0, 0.5),
)
def test_tiles_cover_every_pixel(width, height, size, overlap):
    boxes = Tiles(size, overlap).boxes(width, height, 1)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (size, size)
        assert right <= max(width, size)
        assert bottom <= max(height, size)
        covered[top:bottom, left:right] = True
    assert covered.all()
    lefts = sorted({box[0] for box in boxes})
    assert all(b - a <= size * (1 - overlap) for a, b in pairwise(lefts))


def test_tiles_that_cannot_be():
    with pytest.raises(InputError, match="size=4"):
        Tiles(4)
    with pytest.raises(InputError, match=r"overlap=0\.6"):
        Tiles(overlap=0.6)


# --------------------------------------------------------------------- region of interest


def test_a_region_in_pixels_or_fractions():
    assert pixel_box((0.5, 0, 1, 0.5), (90, 60)) == (45, 0, 90, 30)
    assert pixel_box((10, 20, 300, 40), (90, 60)) == (10, 20, 90, 40)
    assert pixel_box((0, 0, 1, 1), (90, 60)) == (0, 0, 90, 60)
    assert pixel_box((0.999, 0.999, 1, 1), (90, 60)) == (89, 59, 90, 60)
    with pytest.raises(ImageError, match="outside of the image, 90 x 60 pixels"):
        pixel_box((90, 0, 120, 60), (90, 60))
    for roi in ((5, 0, 5, 9), (-1, 0, 5, 9), (0, 0, np.nan, 9)):
        with pytest.raises(InputError, match="roi="):
            pixel_box(roi, (90, 60))


@pytest.mark.parametrize("geometry", ["crop", "whole", "letterbox"])
def test_a_region_of_interest_is_the_same_as_a_region(geometry):
    image = Image.fromarray(draw(0))
    region = (0.25, 0.1, 0.75, 1.0)
    (by_roi,) = views(Colours(geometry=geometry), image, roi=region)
    own = Colours(geometry=geometry, region=region)
    (by_region,) = views(own, image)
    for one, other in ((by_roi, by_region), (by_roi.stages, patch_stages(own, image))):
        np.testing.assert_array_equal(one[0], other[0])
    assert by_roi.seen == pytest.approx(own.preprocessing.seen(*image.size))
    with pytest.raises(InputError, match="give one of both"):
        views(own, image, roi=region)


# -------------------------------------------------------------------------------- views


@pytest.mark.parametrize("geometry", ["crop", "whole", "letterbox"])
def test_the_whole_frame_is_one_view(geometry):
    image, backbone = Image.fromarray(draw(0)), Colours(geometry=geometry)
    (view,) = views(backbone, image)
    np.testing.assert_array_equal(view.stages[0], patch_stages(backbone, image)[0])
    assert view.seen == backbone.preprocessing.seen(*image.size)


@pytest.mark.parametrize("size", [(100, 60), (20, 130), (130, 20), (9, 9)])
@pytest.mark.parametrize("geometry", ["crop", "whole"])
def test_tiles_show_the_image_at_native_detail(size, geometry):
    y, x = np.mgrid[: size[1], : size[0]]
    levels = 127 + 100 * np.sin(x / 15) * np.cos(y / 18)
    image = Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    found = bare_views(Colours(geometry=geometry), image, Tiles(), workers=2)
    assert len(found) == len(Tiles().boxes(*size, SIZE))
    red = to_image([v.stages[0][:, :, 0] for v in found], size, [v.seen for v in found])
    assert np.isfinite(red).all()
    assert np.abs(red - levels).mean() < 4


def test_an_image_smaller_than_a_tile_is_continued_by_its_mirror_image():
    image = Image.fromarray(np.arange(20 * 12, dtype=np.uint8).reshape(12, 20)).convert("RGB")
    (view,) = bare_views(Colours(), image, Tiles())
    assert view.seen == (0, 0, SIZE, SIZE)
    levels = np.asarray(image)[:, :, 0].astype(np.float32)
    assert view.stages[0][2, 1, 0] == levels[8:12, 4:8].mean()
    assert view.stages[0][3, 1, 0] == levels[8:12, 4:8].mean()  # rows 11, 10, 9, 8
    assert view.stages[0][0, 5, 0] == levels[:4, 16:20].mean()


def test_a_tile_of_another_size_is_resized():
    image = Image.fromarray(np.repeat(np.arange(128, dtype=np.uint8)[None], 64, 0)).convert("RGB")
    found = bare_views(Colours(), image, Tiles(64, overlap=0))
    assert [view.seen for view in found] == [(0, 0, 64, 64), (64, 0, 128, 64)]
    np.testing.assert_allclose(found[1].stages[0][3, :, 0], 64 + 3.5 + 8 * np.arange(8), atol=0.6)


def test_positions_are_those_of_the_whole_image():
    image = Image.fromarray(draw(3, size=(150, 120)))
    picture = np.asarray(image).copy()
    picture[70:74, 90:94] = 255
    roi = (40, 30, 140, 115)
    found = bare_views(Colours(), Image.fromarray(picture), Tiles(), roi)
    brightness = [v.stages[0].min(axis=-1) for v in found]
    grown = to_image(brightness, image.size, [v.seen for v in found])
    row, column = np.unravel_index(np.nanargmax(grown), grown.shape)
    assert abs(row + 0.5 - 72) <= CELL
    assert abs(column + 0.5 - 92) <= CELL
    assert np.isnan(grown[:30]).all()
    assert np.isnan(grown[:, 140:]).all()
    assert np.isfinite(grown[30:115, 40:140]).all()


def test_a_mask_lies_over_the_whole_image():
    mask = np.zeros((60, 90), bool)
    mask[:, :45] = True
    backbone = Colours(mask=read_mask(mask))
    image = Image.new("RGB", (180, 120), (200, 10, 10))
    for found in (
        bare_views(backbone, image, Tiles()),
        bare_views(backbone, image, roi=(0, 60, 180, 120)),
    ):
        red = to_image([v.stages[0][:, :, 0] for v in found], (180, 120), [v.seen for v in found])
        assert np.nanmin(red[:, :70]) == pytest.approx(200)
        assert np.nanmax(red[:, 120:]) == pytest.approx(127, abs=6)


@pytest.mark.parametrize("tiles", [None, Tiles()])
def test_many_images_one_of_which_cannot_be_read(tiles, new_folder):
    paths = [new_folder / name for name in ("good_0.png", "broken.jpg", "odd_1.png")]
    named = [(path.name, path) for path in paths]
    found = [
        (name, got if isinstance(got, ImageError) else list(got))
        for name, got in views_of(named, Colours(), tiles)
    ]
    assert [name for name, _ in found] == [path.name for path in paths]
    assert str(found[1][1]).startswith("broken.jpg: not an image")
    for at in (0, 2):
        expected = list(views(Colours(), Image.open(paths[at]), tiles))
        assert len(found[at][1]) == len(expected) == (1 if tiles is None else 9)
        for one, other in zip(found[at][1], expected, strict=True):
            np.testing.assert_array_equal(one.stages[0], other.stages[0])
            assert one.seen == other.seen
    outside = list(views_of(named[:1], Colours(), tiles, roi=(500, 0, 600, 9)))
    assert str(outside[0][1]).startswith("good_0.png: roi (500, 0, 600, 9) lies outside")


def test_a_defect_in_a_large_image_is_found_in_tiles_with_a_real_network():
    backbone = load_backbone(size=64, stages=("s8", "s16b"), pooling="map")

    def picture(seed, odd=False):
        pixels = np.random.default_rng(seed).normal(120, 8, (64, 250, 3))
        if odd:
            pixels[20:32, 201:213] = (230, 30, 30)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    model = PatchModel(sample=2000, rows=300)
    model.fit((views(backbone, picture(i), Tiles()) for i in range(6)), total=6)
    boxes = Tiles().boxes(250, 64, 64)
    grids, score = model.score(views(backbone, picture(90, odd=True), Tiles()))
    assert score > model.good_scores.max()
    found = to_image(grids, (250, 64), boxes)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 14 <= row <= 38
    assert 195 <= column <= 219
    assert found.max() > model.pixel_threshold()


# ------------------------------------------------------------------------- large images


@pytest.mark.parametrize("size", [(8000, 2000), (200, 5000)])
def test_a_large_image_is_looked_at_few_tiles_at_a_time(size, tmp_path):
    picture = Image.new("RGB", size, (90, 120, 60))
    at = size[0] // 2, size[1] - 40
    picture.paste((200, 30, 30), (*at, at[0] + 30, at[1] + 30))
    picture.save(tmp_path / "large.png", compress_level=1)
    embedded, taken = [], []

    class Counting(Colours):
        def outputs(self, pixels):
            embedded.append(1)
            assert len(embedded) - len(taken) <= 12  # four for each worker, and those at work
            return super().outputs(pixels)

    named = [("large", tmp_path / "large.png")]
    ((_, found),) = views_of(named, Counting(), Tiles(320), workers=2)
    grids, seen = [], []
    for view in found:
        taken.append(1)
        grids.append(view.stages[0][:, :, 0])
        seen.append(view.seen)
    assert seen == Tiles().boxes(*size, 320)
    red = to_image(grids, size, seen)
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert abs(row - at[1] - 15) <= 60
    assert abs(column - at[0] - 15) <= 60


@pytest.mark.parametrize("how", [{}, {"progressive": True}])
def test_16_megapixels_can_be_decoded(tmp_path, how):
    path = tmp_path / ("large.jpg" if how else "large.tif")
    Image.new("RGB", (8000, 2000), (9, 9, 9)).save(path, **how)
    assert read_image(path).size == (8000, 2000)
