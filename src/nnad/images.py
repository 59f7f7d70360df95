"""Any picture -> an 8-bit RGB image that says the same whatever it came from.

| source                     | result                                                              |
|----------------------------|---------------------------------------------------------------------|
| EXIF orientation           | applied                                                             |
| grey, palette, CMYK, YCbCr | converted to RGB                                                    |
| alpha                      | composited over white                                               |
| 16-bit grey, uint16 array  | value / 257: the full range 0..65535 maps to 0..255; `ImageWarning` |
|                            | when nothing is brighter than 4095                                  |
| 16-bit colour files        | Pillow's reading: the upper 8 bits                                  |
| float image or array       | must lie in 0..1, times 255                                         |
| animation, multi-page      | first frame, with an `ImageWarning`                                 |
| one pixel, all transparent | as it is, with an `ImageWarning`                                    |
| wrong extension            | the content decides                                                 |
| above `MAX_PIXELS`, or too | an `ImageError`, before it is decoded                               |
| costly, see image_limits   |                                                                     |
| anything else              | an `ImageError` that begins with the image's name                   |
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from nnad.errors import ImageError, ImageWarning
from nnad.image_limits import check_cost, check_tags, check_turn
from nnad.zips import read_member


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image file: `box` is (left, top, right, bottom) in pixels, right and bottom not
    included; what lies outside of the image is cut off.
    """

    path: str
    box: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{self.path}[{','.join(map(str, self.box))}]"


Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Crop

# Named one by one: Pillow would otherwise also try formats that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000")
RAW_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split())  # noqa: SIM905
MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it only warns
_SHADES_16_BIT = 257  # 65535 / 255
_BLOCK = 1024  # side of the squares in which pictures are converted that would need copies
_LARGEST_CONTENT = 256_000_000  # bytes that `content_of` takes into memory


def read_image(source: Source, name: str | None = None) -> Image.Image:
    """Read one picture as a PIL image of mode RGB, by the rules at the top of this file.

    Args:
        source: a path, also of a file in a zip archive (`archive.zip/picture.png`), the bytes of an
            image file, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
            uint16, bool or float in 0..1, or a `Crop`.
        name: what to call it in errors and warnings; a path's or crop's own name by default.

    Raises:
        ImageError: it cannot be read; the message begins with `name`.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "image"
        name = str(source) if isinstance(source, Crop) else name
    try:
        match source:
            case np.ndarray():
                return _from_array(source, name)
            case Image.Image():
                _check_size(source.width, source.height)
                return _to_rgb(source.copy(), name)
            case bytes() | bytearray() | memoryview():
                return _from_bytes(source, name)
            case str() | os.PathLike():
                return _from_file(Path(source), name)
            case Crop(path, box):
                return _crop(_from_file(Path(path), name), box)
        raise ImageError(f"cannot read an image from a {type(source).__name__}")
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except ImageWarning as warning:  # whoever calls has made warnings errors
        raise ImageError(str(warning)) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format nnad reads ({_formats()})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels; cut or shrink it") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it") from None
    except (
        Exception
    ) as error:  # decoders raise many types on damaged data: OSError, struct.error...
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged or truncated image: {reason}") from error


def _formats() -> str:
    return ", ".join(f for f in FORMATS if f != "DIB")


def _from_bytes(content: bytes | bytearray | memoryview, name: str) -> Image.Image:
    if not len(content):
        raise ImageError("is empty (0 bytes)")
    return _decode(io.BytesIO(content), name)


def _from_file(path: Path, name: str) -> Image.Image:
    try:
        if path.suffix.lower() in RAW_SUFFIXES:  # Pillow would read the thumbnail inside
            raise ImageError("a camera's raw file; convert it to TIFF, PNG or JPEG")
        if path.is_dir():
            os.scandir(path).close()  # one that cannot be looked into says so
            raise ImageError("is a folder, not an image")
        if path.exists() and not path.is_file():
            raise ImageError("is not a regular file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageError("is empty (0 bytes)")
            file.seek(0)
            return _decode(file, name)
    except (FileNotFoundError, NotADirectoryError):
        content = read_member(path)
        if content is None:
            raise ImageError("no such file") from None
        return _from_bytes(content, name)
    except OSError as error:
        if error.errno is None:  # the decoder's, not the system's
            raise
        raise ImageError(f"cannot be read: {error.strerror}") from None


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise ImageError(f"the box is outside of the image, {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))


def _decode(file: IO[bytes], name: str) -> Image.Image:
    check_tags(file)
    with Image.open(file, formats=FORMATS) as image:
        _check_size(image.width, image.height)
        check_cost(image, file)
        several = getattr(image, "is_animated", False)  # counting them (n_frames) can take minutes
        if several and image.format != "MPO":  # MPO: a photo and its preview
            warn(f"{name}: several frames or pages; only the first is used")
        image.load()
        return _to_rgb(image, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    check_turn(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.width == 0 or image.height == 0:
        raise ImageError("has no pixels")
    if image.size == (1, 1):
        warn(f"{name}: a single pixel")
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        levels = _to_8_bit(lambda box: np.asarray(image.crop(box)), image.size, name)
        return Image.fromarray(levels).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image, name)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image, name: str) -> Image.Image:
    result = Image.new("RGB", image.size)
    highest = 0  # alpha
    for box in _blocks(*image.size):
        rgba = image.crop(box).convert("RGBA")
        highest = max(highest, int(np.asarray(rgba)[:, :, 3].max()))
        white = Image.new("RGBA", rgba.size, "white")
        result.paste(Image.alpha_composite(white, rgba).convert("RGB"), box)
    if highest == 0:
        warn(f"{name}: fully transparent: all that is seen is white")
    return result


def _blocks(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Squares that cover a picture: left, top, right, bottom."""
    return [
        (left, top, min(left + _BLOCK, width), min(top + _BLOCK, height))
        for top in range(0, height, _BLOCK)
        for left in range(0, width, _BLOCK)
    ]


def _to_8_bit(
    block: Callable[[tuple[int, int, int, int]], NDArray[Any]], size: tuple[int, int], name: str
) -> NDArray[np.uint8]:
    """Levels of 16 bits or in 0..1 -> 0..255; `block` returns those within a box."""
    boxes = _blocks(*size)
    extremes = [(values.min(), values.max()) for values in map(block, boxes)]
    low, high = np.min(extremes), np.max(extremes)  # NaN if there is one
    first = block(boxes[0])
    if np.issubdtype(first.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ImageError(f"float image with values {low:.9g}..{high:.9g}; scale them to 0..1")
    elif low < 0 or high > 65535:
        raise ImageError(f"values {low}..{high} do not fit 16 bits; scale them to 0..65535")
    elif 0 < high < 4096:
        warn(
            f"{name}: 16-bit image whose brightest value is {high} of 65535: nearly black; if "
            f"the camera has fewer bits, scale the values up before"
        )
    levels = np.empty((size[1], size[0], *first.shape[2:]), np.uint8)
    for box in boxes:
        left, top, right, bottom = box
        values = block(box)
        floating = np.issubdtype(values.dtype, np.floating)
        values = values * 255.0 if floating else values / _SHADES_16_BIT
        levels[top:bottom, left:right] = np.round(values)
    return levels


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"array of shape {array.shape}; expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"channels last"
        )
    if array.size == 0:
        raise ImageError(f"array of shape {array.shape} has no pixels")
    _check_size(array.shape[1], array.shape[0])
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.uint16) or np.issubdtype(array.dtype, np.floating):
        array = _to_8_bit(
            lambda box: array[box[1] : box[3], box[0] : box[2]], array.shape[1::-1], name
        )
    elif array.dtype != np.uint8:
        raise ImageError(f"array of dtype {array.dtype}; expected uint8, uint16, bool or float")
    image = Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))
    return _to_rgb(image, name)


def content_of(source: Source) -> bytes | NDArray[Any] | None:
    """The bytes of an image file, or an array: what the image is, whatever its name.

    None for what only `read_image` can judge or should hold: PIL images, crops, masked arrays,
    raw photos, anything above 256 MB or that cannot be read.
    """
    match source:
        case bytes():
            return source
        case np.ndarray() if not isinstance(source, np.ma.MaskedArray):
            return source if source.nbytes <= _LARGEST_CONTENT else None
        case str() | os.PathLike():
            try:
                return _file_content(Path(source))
            except Exception:  # `read_image` will meet it again, and say what it is
                return None
    return None


def _file_content(path: Path) -> bytes | None:
    if path.suffix.lower() in RAW_SUFFIXES:
        return None
    if not path.is_file():
        return read_member(path)
    return path.read_bytes() if path.stat().st_size <= _LARGEST_CONTENT else None


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """In this thread, until the block ends: what `read_image` warns of goes to a list instead.

    `warnings.catch_warnings` would do that to all threads at once.
    """
    messages: list[str] = []
    token = _collector.set(messages)
    try:
        yield messages
    finally:
        _collector.reset(token)


_collector: ContextVar[list[str] | None] = ContextVar("collector", default=None)


def warn(message: str) -> None:
    """Issue an `ImageWarning`, or collect its text. It begins with the image's name."""
    messages = _collector.get()
    if messages is None:
        warnings.warn(message, ImageWarning, stacklevel=2)
    else:
        messages.append(message)
