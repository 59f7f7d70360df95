import io
import os
import random
import warnings

import numpy as np
import pytest
from conftest import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nnad import ImageError, ImageWarning, InputError, images
from nnad.image_files import find_images
from nnad.images import read_image

PICTURE = draw(0)
GREY = PICTURE[:, :, 0]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source) -> np.ndarray:
    image = read_image(source, "it")
    assert image.mode == "RGB"
    return np.asarray(image)


def test_path_bytes_pil_and_arrays_give_the_same_pixels(tmp_path):
    image = Image.fromarray(PICTURE)
    image.save(tmp_path / "a.png")
    sources = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        image,
        PICTURE,
        PICTURE.astype(np.uint16) * 257,
        PICTURE.astype(np.float32) / 255,
        PICTURE.astype(np.float64) / 255,
        PICTURE[::-1][::-1],  # not contiguous
    ]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), PICTURE)


def test_grey_sources_give_the_same_pixels(tmp_path):
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    deep.save(tmp_path / "a.tif")
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "f.tif")
    sources = [GREY, GREY[:, :, None], Image.fromarray(GREY), deep, encoded(deep)]
    sources += [tmp_path / "a.tif", tmp_path / "f.tif", GREY.astype(np.uint16) * 257]
    for source in sources:
        np.testing.assert_array_equal(pixels(source), np.dstack([GREY] * 3))


def test_16_bit_keeps_what_convert_would_saturate():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(pixels(ramp)[:, :, 0].ravel(), np.arange(256))
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(ramp))), pixels(ramp))


def test_a_12_bit_camera_in_a_16_bit_file_is_warned_about():
    for dark in (GREY.astype(np.uint16) * 15, GREY.astype(np.uint16)):
        for source in (encoded(Image.fromarray(dark)), dark, dark.astype(">u2")):
            with pytest.warns(ImageWarning, match=r"^it: 16-bit image whose brightest value is"):
                pixels(source)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    turned = encoded(Image.fromarray(PICTURE), exif=exif.tobytes())
    np.testing.assert_array_equal(pixels(turned), np.rot90(PICTURE, -1))


def test_a_pil_image_of_the_caller_is_left_alone():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(PICTURE).convert("RGBA"))))
    before = image.mode, image.size
    pixels(image)
    assert (image.mode, image.size) == before


def test_alpha_is_composited_over_white():
    rgba = np.dstack([PICTURE, np.full(GREY.shape, 255, np.uint8)])
    rgba[:10, :, :] = (0, 0, 0, 0)
    expected = PICTURE.copy()
    expected[:10] = 255
    for source in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba))):
        np.testing.assert_array_equal(pixels(source), expected)
    colours = Image.fromarray(GREY // 128 * 200, "P")
    colours.putpalette([v for i in range(256) for v in (i, i, i, 255 if i else 0)], "RGBA")
    assert (pixels(colours)[GREY < 128] == 255).all()
    half = np.array([[[0, 0, 0, 128]] * 2], np.uint8)
    assert pixels(half)[0, 0, 0] == 127
    palette = Image.fromarray(GREY // 128).convert("P")
    transparent = pixels(encoded(palette, transparency=0))
    assert (transparent[GREY < 128] == 255).all()


def test_other_modes():
    image = Image.fromarray(PICTURE)
    cmyk = pixels(encoded(image.convert("CMYK"), "TIFF"))
    assert np.abs(cmyk.astype(int) - PICTURE).max() <= 2
    palette = image.quantize(16)
    np.testing.assert_array_equal(pixels(encoded(palette)), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(GREY > 128)
    np.testing.assert_array_equal(pixels(encoded(bits))[:, :, 0], (GREY > 128) * 255)
    np.testing.assert_array_equal(pixels(GREY > 128)[:, :, 0], (GREY > 128) * 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_use_the_first_frame_with_a_warning(kind):
    frames = [Image.fromarray(draw(i)) for i in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(ImageWarning, match=r"^it: several frames or pages; only the first"):
        first = pixels(animated)
    assert np.abs(first.astype(int) - draw(0)).mean() < (12 if kind == "GIF" else 0.01)


def test_the_content_decides_not_the_extension(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(PICTURE)))
    np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000"])
def test_truncated_files_are_errors(kind, tmp_path):
    whole = encoded(Image.fromarray(PICTURE), kind)
    pixels(whole)
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"cut: damaged or truncated image"):
        read_image(tmp_path / "cut")


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    messages = {
        "text.png": "not an image in a format nnad reads (JPEG, PNG, ",
        "empty.png": "is empty (0 bytes)",
        "page.eps": "not an image in a format",
        "none.png": "no such file",
        ".": "is a folder",
    }
    for name, message in messages.items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
    with pytest.raises(ImageError, match=r"^it: is empty"):
        read_image(b"", "it")


def test_a_named_pipe_does_not_hang(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 20), np.uint8), "channels last"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((0, 5), np.uint8), "no pixels"),
        (PICTURE.astype(np.float32), "scale them to 0..1"),
        (np.full((4, 4), np.nan), "scale them to 0..1"),
        (np.full((4, 4), -0.1), "scale them to 0..1"),
        (PICTURE.astype(np.int64), "dtype int64"),
        (np.zeros((3, 3), complex), "dtype complex128"),
    ],
)
def test_arrays_that_cannot_be_pictures(array, message):
    with pytest.raises(ImageError, match=message):
        read_image(array, "it")


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match=r"^it: more than [\d,]+ pixels"):
            read_image(bomb, "it")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    for source in (PICTURE, encoded(Image.fromarray(PICTURE)), Image.fromarray(PICTURE)):
        with pytest.raises(ImageError, match="more than 100 pixels"):
            read_image(source, "it")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000"])
def test_mutated_files_give_a_picture_or_a_clear_error(kind):
    whole = encoded(Image.fromarray(PICTURE), kind)
    rng = random.Random(kind)
    for _ in range(150):
        mutated = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            mutated[rng.randrange(min(len(mutated), 400))] = rng.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read_image(bytes(mutated), "it")
            except ImageError as error:
                assert str(error).startswith("it: ")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_clear_error(content):
    with pytest.raises(ImageError, match=r"^it: "):
        read_image(content, "it")


def test_find_images_in_folders_globs_and_lists(tmp_path):
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("b/2.JPG", "b/1.png", "a.tif", "b/.hidden/3.png", "b/.4.png", "b/notes.txt"):
        (tmp_path / name).write_bytes(b"x")

    def found(source) -> list[str]:
        return [name.removeprefix(f"{tmp_path}/") for name, _ in find_images(source)]

    assert found(tmp_path) == ["a.tif", "b/1.png", "b/2.JPG"]
    assert found(str(tmp_path / "b" / "*.png")) == ["b/1.png"]
    assert found(str(tmp_path / "**" / "*.png")) == ["b/1.png"]
    assert found(str(tmp_path / "*")) == ["a.tif", "b/1.png", "b/2.JPG"]
    assert found([tmp_path / "a.tif", tmp_path / "b", PICTURE, b"x"]) == [
        "a.tif",
        "b/1.png",
        "b/2.JPG",
        "image[2]",
        "image[3]",
    ]
    assert found(tmp_path / "b" / "notes.txt") == ["b/notes.txt"]  # named: it is tried
    (tmp_path / "a[1].png").write_bytes(b"x")
    assert found(str(tmp_path / "a[1].png")) == ["a[1].png"]  # a file first, then a glob


def test_arrays_can_be_stacked():
    assert len(list(find_images(np.zeros((5, 28, 28), np.uint8)))) == 5
    assert len(list(find_images(np.zeros((5, 28, 28, 3), np.uint8)))) == 5
    assert len(list(find_images(np.zeros((28, 28, 3), np.uint8)))) == 1
    assert len(list(find_images(np.zeros((28, 28), np.uint8)))) == 1


def test_photos_that_cannot_be_read_are_found_so_that_they_are_reported(tmp_path):
    for name in ("a.heic", "b.NEF"):
        (tmp_path / name).write_bytes(encoded(Image.fromarray(PICTURE), "TIFF"))
    names = [name for name, _ in find_images(tmp_path)]
    assert len(names) == 2
    with pytest.raises(ImageError, match=r"b\.NEF: a camera's raw file; convert it"):
        read_image(names[1])


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(b"x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    names = [name.removeprefix(f"{tmp_path}/a/") for name, _ in find_images(tmp_path / "a")]
    assert names == ["1.png", "link/2.png"]


def test_a_folder_that_cannot_be_looked_into_is_one_bad_image(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may look everywhere
    names = [name for name, _ in find_images(tmp_path)]
    assert [n.removeprefix(f"{tmp_path}/") for n in names] == ["1.png", "locked"]
    with pytest.raises(ImageError, match="locked: cannot be read: Permission denied"):
        read_image(names[1])


def test_a_name_that_is_too_long_is_one_bad_image():
    ((name, source),) = find_images("x" * 5000)
    with pytest.raises(ImageError, match="File name too long"):
        read_image(source, name)


def test_channels_first_or_a_stack():
    with pytest.raises(InputError, match=r"shape \(3, 20, 20\) could be channels first"):
        list(find_images(np.zeros((3, 20, 20), np.uint8)))


def test_nothing_to_find(tmp_path):
    with pytest.raises(InputError, match="holds no image files"):
        list(find_images(tmp_path))
    with pytest.raises(InputError, match=r"\*\.png: no file matches"):
        list(find_images(str(tmp_path / "*.png")))
    with pytest.raises(InputError, match="cannot read images from a int"):
        list(find_images(7))
    with pytest.raises(InputError, match="an empty string"):
        list(find_images(""))
    with pytest.raises(ImageError, match="from a dict"):
        read_image({}, "it")
