import io
import threading

import numpy as np
import pytest
from conftest import draw
from PIL import Image, ImageSequence

from nnad import ImageError
from nnad.backbones import load_backbone
from nnad.errors import InputError
from nnad.features import extract
from nnad.preprocessing import FLIPS, Preprocessing


def test_order_is_kept_and_a_bad_image_is_an_error_in_its_place(backbone):
    sources = [(f"{i}", draw(i)) for i in range(9)]
    sources[4] = ("4", b"no picture")
    extracted = list(extract(sources, backbone, workers=3))
    assert [name for name, _ in extracted] == [str(i) for i in range(9)]
    assert isinstance(extracted[4][1], ImageError)
    for (_, feature), (_, source) in zip(extracted[:4], sources[:4], strict=True):
        np.testing.assert_array_equal(feature, backbone.embed(Image.fromarray(source)))


def test_any_number_of_workers_gives_the_same_bits(backbone):
    sources = [(str(i), draw(i)) for i in range(6)]
    one = [feature for _, feature in extract(sources, backbone, workers=1)]
    many = [feature for _, feature in extract(sources, backbone, workers=5)]
    np.testing.assert_array_equal(one, many)


def test_images_are_taken_only_as_fast_as_they_are_embedded(backbone):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield str(taken), draw(taken, size=(8, 8))

    extracted = extract(endless(), backbone, workers=2)
    for _ in range(3):
        next(extracted)
    extracted.close()
    assert taken <= 3 + 8
    assert not [t for t in threading.enumerate() if t.name.startswith("nnad")]


def test_a_buffer_that_is_refilled_and_a_picture_that_is_shared(backbone):
    buffer = np.empty_like(draw(0))

    def camera():
        for i in range(6):
            buffer[:] = draw(i)
            yield str(i), buffer

    expected = [backbone.embed(Image.fromarray(draw(i))) for i in range(6)]
    np.testing.assert_array_equal([f for _, f in extract(camera(), backbone)], expected)

    file = io.BytesIO()
    Image.fromarray(draw(1)).save(file, "PNG")
    shared = [(str(i), Image.open(file)) for i in range(1)] * 8  # not decoded yet
    np.testing.assert_array_equal([f for _, f in extract(shared, backbone)], [expected[1]] * 8)

    frames = [Image.fromarray(draw(i)) for i in range(4)]
    film = io.BytesIO()
    frames[0].save(film, "PNG", save_all=True, append_images=frames[1:])
    shown = ((str(i), f) for i, f in enumerate(ImageSequence.Iterator(Image.open(film))))
    np.testing.assert_array_equal([f for _, f in extract(shown, backbone)], expected[:4])


def test_an_error_of_the_iterator_reaches_the_caller(backbone):
    def failing():
        yield "0", draw(0)
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(extract(failing(), backbone))


def test_crop_is_the_papers_geometry():
    image = Image.fromarray(draw(0, size=(640, 480)))
    expected = image.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    np.testing.assert_array_equal(Preprocessing(224)(image)[0], np.asarray(expected))


def test_letterbox_shows_the_whole_image_in_its_proportions():
    image = Image.new("RGB", (400, 200), (255, 0, 0))
    view = Preprocessing(224, "letterbox")(image)[0]
    assert view.shape == (224, 224, 3)
    assert (view[56:168] == (255, 0, 0)).all()
    assert (view[:56] == 127).all()
    assert (view[168:] == 127).all()
    thin = Preprocessing(224, "letterbox")(Image.new("RGB", (3000, 1), (255, 0, 0)))[0]
    assert (thin == (255, 0, 0)).all(axis=2).sum() == 224


@pytest.mark.parametrize("flips", FLIPS)
def test_features_do_not_change_when_the_image_is_flipped(flips):
    backbone = load_backbone(flips=flips)
    image = draw(0, odd=True)
    feature = backbone.embed(Image.fromarray(image))
    mirrored = backbone.embed(Image.fromarray(np.ascontiguousarray(image[:, ::-1])))
    upended = backbone.embed(Image.fromarray(np.ascontiguousarray(image[::-1])))
    scale = np.linalg.norm(feature)
    assert (np.linalg.norm(feature - mirrored) < 1e-5 * scale) == (flips != "none")
    assert (np.linalg.norm(feature - upended) < 1e-5 * scale) == (flips == "both")


def test_the_fingerprint_covers_preprocessing_and_network(backbone):
    others = [
        load_backbone(geometry="letterbox"),
        load_backbone(flips="both"),
        load_backbone("efficientnet-lite1"),
    ]
    assert len({b.fingerprint for b in [backbone, *others]}) == 4
    assert load_backbone().fingerprint == backbone.fingerprint


def test_unknown_geometry_and_flips():
    with pytest.raises(InputError, match="geometry='square'; choose one of crop, whole, letterbox"):
        load_backbone(geometry="square")
    with pytest.raises(InputError, match="flips='all'; choose one of none, horizontal, both"):
        load_backbone(flips="all")
