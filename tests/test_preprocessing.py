"""Region, mask, geometry and what else belongs to an image's way into the network."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from nnad import ImageWarning, InputError, load_backbone
from nnad.preprocessing import Preprocessing, read_mask


def test_whole_squashes_the_whole_image():
    image = Image.fromarray(draw(0, size=(640, 480)))
    for name, way in (("bilinear", 2), ("bicubic", 3), ("lanczos", 1)):
        expected = np.asarray(image.resize((64, 64), Image.Resampling(way)))
        found = Preprocessing(64, "whole", interpolation=name)(image)
        np.testing.assert_array_equal(found, expected[None])


def test_the_crop_fraction():
    image = Image.fromarray(draw(0))
    expected = image.resize((100, 100), Image.Resampling.BICUBIC).crop((10, 10, 90, 90))
    found = Preprocessing(80, crop_fraction=0.8)(image)[0]
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_region_is_cut_before_all_else():
    picture = draw(0, size=(200, 100))
    found = Preprocessing(64, "whole", region=(0.25, 0.1, 0.75, 1.0))(Image.fromarray(picture))
    expected = Preprocessing(64, "whole")(Image.fromarray(picture[10:100, 50:150]))
    np.testing.assert_array_equal(found, expected)
    tiny = Image.fromarray(picture[:1, :1])
    assert Preprocessing(64, region=(0.9, 0.9, 1.0, 1.0))(tiny).shape == (1, 64, 64, 3)


def test_nothing_under_the_mask_is_seen():
    mask = np.zeros((30, 40), bool)
    mask[10:20, 10:30] = True
    one, other = draw(0), draw(1)
    seen = np.kron(mask, np.ones((2, 2), bool))  # the mask is stretched over 60 x 80
    other[seen] = one[seen]
    way = Preprocessing(64, "letterbox", mask=read_mask(mask), mean=(10.4, 20.0, 300.0))
    views = [way(Image.fromarray(picture)) for picture in (one, other)]
    np.testing.assert_array_equal(*views)
    assert (views[0][0, 10] == (10, 20, 255)).all()  # mean is the network's zero
    assert (views[0][0, 32, 32] != (10, 20, 255)).any()
    assert "17% of the image seen" in str(way)


def test_a_mask_and_a_region_belong_to_the_fingerprint_and_are_saved(tmp_path):
    Image.fromarray(np.uint8([[0, 255], [255, 255]])).save(tmp_path / "mask.png")
    masked = load_backbone(mask=tmp_path / "mask.png")
    same = load_backbone(mask=np.array([[False, True], [True, True]]))
    cut = load_backbone(region=[0.5, 0, 1, 1])
    assert load_backbone(region=(0.5, 0.0, 1.0, 1.0)).fingerprint == cut.fingerprint
    prints = {b.fingerprint for b in (load_backbone(), masked, cut)}
    assert len(prints) == 3
    assert same.fingerprint == masked.fingerprint
    for backbone in (masked, cut):
        told = json.loads(json.dumps(backbone.preprocessing.settings()))
        assert Preprocessing.from_settings(told) == backbone.preprocessing


def test_every_setting_belongs_to_the_fingerprint(backbone):
    changes = {
        "size": 256,
        "geometry": "whole",
        "flips": "both",
        "interpolation": "bilinear",
        "crop_fraction": 0.9,
        "mean": (1.0, 2.0, 3.0),
        "std": (1.0, 2.0, 3.0),
        "colours": "bgr",
        "region": (0.0, 0.0, 0.5, 1.0),
        "mask": read_mask(np.eye(4, dtype=bool)),
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Preprocessing)}
    prints = set()
    for key, value in changes.items():
        changed = backbone.preprocessing.changed(**{key: value})
        prints.add(type(backbone)(backbone.name, changed, backbone.onnx).fingerprint)
        assert str(changed) != str(backbone.preprocessing)
    assert len(prints - {backbone.fingerprint}) == len(changes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size=0; expected 32 to 4096"),
        ({"size": True}, "size=True"),
        ({"geometry": "round"}, "geometry='round'; choose one of crop, whole, letterbox"),
        ({"flips": 2}, "flips=2; choose one of"),
        ({"interpolation": "nearest"}, "interpolation='nearest'; choose one of bilinear"),
        ({"colours": "grb"}, "colours='grb'; choose one of rgb, bgr"),
        ({"crop_fraction": 2}, "crop_fraction=2; expected 0.25 to 1"),
        ({"crop_fraction": "all"}, "crop_fraction='all'"),
        ({"mean": (1.0, 2.0)}, "expected a tuple of 3 numbers"),
        ({"mean": (1.0, 2.0, float("nan"))}, "expected a tuple of 3 numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "expected three numbers above 0"),
        ({"region": (0.5, 0, 0.5, 1)}, "region=.* expected .left, top, right, bottom. as frac"),
        ({"region": (10, 10, 90, 90)}, "as fractions"),
        ({"region": (0, 0, 1)}, "expected a tuple of 4 numbers"),
        ({"region": (0.5, 0, 1, 1), "mask": read_mask(np.eye(2) * [1, 0])}, "nothing in it"),
        ({"mask": read_mask(np.zeros((4, 4)))}, "mask: nothing in it .* is white"),
        ({"mask": b"no picture"}, "mask: not the bytes of a PNG"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**{"size": 64, **wrong})


def test_a_mask_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"mask: .*none\.png: no such file"):
        load_backbone(mask=tmp_path / "none.png")


def test_what_is_transparent_in_a_mask_is_not_seen(tmp_path):
    rgba = np.full((4, 4, 4), 255, np.uint8)
    rgba[:2, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    expected = read_mask(np.repeat([False, True], 2)[:, None] * np.ones(4, bool))
    assert read_mask(tmp_path / "mask.png") == expected
    assert read_mask(rgba) == expected


def test_a_mask_that_hides_nothing_is_told():
    with pytest.warns(ImageWarning, match="nothing in it is black"):
        read_mask(np.ones((4, 4), bool))
