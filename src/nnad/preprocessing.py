"""How a picture becomes a network's input: what is cut out, how it is resized, what is flipped.

    image -> region, mask -> geometry -> flips -> (V, size, size, 3) uint8

Mean, standard deviation and colour order are told here too, because they belong to the same
network, but are carried out inside its graph (`nnad.onnx_graph`).
"""

import base64
import io
import math
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from nnad.errors import ImageError, InputError
from nnad.images import content_of, read_image, warn

GEOMETRIES = ("crop", "whole", "letterbox")
FLIPS = {"none": 1, "horizontal": 2, "both": 4}  # views of one image
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
COLOURS = ("rgb", "bgr")
RESIZER = "Pillow, antialiased"  # another decoder or resizer moves features

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input. All of it is part of the fingerprint.

    Attributes:
        size: side of the square input in pixels.
        geometry: `crop`, as DN2 section 4.6: the whole image is resized to a square of size /
            crop_fraction, then the centre is kept, so the outer 6 % of each side is not seen;
            `whole`: the whole image is resized to the square, whatever its proportions;
            `letterbox`: the whole image in its own proportions, the network's zero beside it.
        flips: features are averaged over the image and its mirror images: `none`, `horizontal`
            (2 views) or `both` (4 views), for things that have no right way up.
        interpolation: `bilinear`, `bicubic` or `lanczos`, always antialiased.
        crop_fraction: the share of the side that `crop` keeps.
        mean, std: (red, green, blue) on the scale 0..255; the network sees (x - mean) / std.
        colours: the order in which the network takes them, `rgb` or `bgr`.
        region: (left, top, right, bottom) as fractions of the image's width and height; all else is
            cut away first. None is the whole image.
        mask: a picture of what counts, as bytes of a PNG, see `read_mask`; stretched over the whole
            image (before the region is cut out), white is seen and black is painted with `mean`,
            the network's zero. Empty for none.
    """

    size: int
    geometry: str = "crop"
    flips: str = "none"
    interpolation: str = "bicubic"
    crop_fraction: float = 224 / 256
    mean: Triple = (127.0, 127.0, 127.0)
    std: Triple = (128.0, 128.0, 128.0)
    colours: str = "rgb"
    region: tuple[float, float, float, float] | None = None
    mask: bytes = b""

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 32 <= self.size <= 4096:
            raise InputError(f"size={self.size!r}; expected 32 to 4096 pixels")
        _check_choice("geometry", self.geometry, GEOMETRIES)
        _check_choice("flips", self.flips, FLIPS)
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        _check_choice("colours", self.colours, COLOURS)
        if not (_is_number(self.crop_fraction) and 0.25 <= self.crop_fraction <= 1):
            raise InputError(f"crop_fraction={self.crop_fraction!r}; expected 0.25 to 1")
        _check_numbers("mean", self.mean, 3)
        _check_numbers("std", self.std, 3)
        if min(self.std) <= 0:
            raise InputError(f"std={self.std!r}; expected three numbers above 0")
        if self.region is not None:
            _check_numbers("region", self.region, 4)
            left, top, right, bottom = self.region
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise InputError(
                    f"region={self.region!r}; expected (left, top, right, bottom) as fractions of "
                    f"width and height, 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
                )
            # 0 and 0.0 are the same region, and shall have the same fingerprint
            object.__setattr__(self, "region", tuple(map(float, self.region)))
        if self.mask and not np.asarray(self._cut(_open_mask(self.mask))).any():
            raise InputError("mask: nothing in it (or in the region) is white; white is seen")

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image of any size -> (V, size, size, 3), V views."""
        image = self.masked(image)
        ways = {"crop": self._crop, "whole": self._whole, "letterbox": self._letterbox}
        pixels = np.asarray(ways[self.geometry](self._cut(image)))
        views = [pixels]  # each (size, size, 3)
        if self.flips != "none":
            views += [pixels[:, ::-1]]
        if self.flips == "both":
            views += [pixels[::-1], pixels[::-1, ::-1]]
        return np.stack(views)

    def masked(self, image: Image.Image) -> Image.Image:
        """The image with what the mask hides painted over."""
        if not self.mask:
            return image
        seen = _open_mask(self.mask).resize(image.size, Image.Resampling.NEAREST)
        return Image.composite(image, Image.new("RGB", image.size, self.zero), seen)

    @property
    def zero(self) -> tuple[int, int, int]:
        """The colour that the network sees as zero."""
        red, green, blue = (min(max(round(value), 0), 255) for value in self.mean)
        return red, green, blue

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image that fills the network's input: left, top, right, bottom in pixels.

        With `letterbox` it reaches beyond the image.
        """
        left, top, right, bottom = self._box(width, height)
        across, down = right - left, bottom - top
        if self.geometry == "letterbox":
            inner = self._letter(across, down)
        else:
            side = self._resized if self.geometry == "crop" else self.size
            inner = -((side - self.size) // 2), -((side - self.size) // 2), side, side
        x, y, inner_width, inner_height = inner  # where the region lies in the input
        per_x, per_y = across / inner_width, down / inner_height
        first, above = left - x * per_x, top - y * per_y
        return first, above, first + self.size * per_x, above + self.size * per_y

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The region in pixels, one pixel at least."""
        sides = (width, height, width, height)
        left, top, right, bottom = (
            round(fraction * side)
            for fraction, side in zip(self.region or (0, 0, 1, 1), sides, strict=True)
        )
        left, top = min(left, width - 1), min(top, height - 1)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def _cut(self, image: Image.Image) -> Image.Image:
        return image if self.region is None else image.crop(self._box(*image.size))

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image.resize((width, height), INTERPOLATIONS[self.interpolation])

    @property
    def _resized(self) -> int:
        return round(self.size / self.crop_fraction)

    def _crop(self, image: Image.Image) -> Image.Image:
        edge = (self._resized - self.size) // 2
        image = self._resize(image, self._resized, self._resized)
        return image.crop((edge, edge, edge + self.size, edge + self.size))

    def _whole(self, image: Image.Image) -> Image.Image:
        return self._resize(image, self.size, self.size)

    def _letterbox(self, image: Image.Image) -> Image.Image:
        x, y, width, height = self._letter(*image.size)
        square = Image.new("RGB", (self.size, self.size), self.zero)
        square.paste(self._resize(image, width, height), (x, y))
        return square

    def _letter(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Where an image lies in its letterbox: left, top, width, height."""
        scale = self.size / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        return (self.size - width) // 2, (self.size - height) // 2, width, height

    def settings(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {**asdict(self), "mask": base64.b64encode(self.mask).decode()}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """What `settings` returned, after a trip through JSON."""
        lists = {key: tuple(v) for key, v in settings.items() if isinstance(v, list)}
        mask = base64.b64decode(settings["mask"], validate=True)
        return cls(**{**settings, **lists, "mask": mask})

    def changed(self, **changes: Any) -> Self:
        """The same with some settings replaced; None keeps what there is."""
        return replace(self, **{key: v for key, v in changes.items() if v is not None})

    def __str__(self) -> str:
        resized, size = self._resized, self.size
        lost = (resized - size) / 2 / resized
        whole = f"whole image resized to {size} x {size}"
        way = {
            "crop": f"resized to {resized} x {resized}, centre {size} x {size} kept "
            f"(the outer {lost:.0%} of each side is not seen)",
            "whole": whole,
            "letterbox": f"whole image within {size} x {size}, the network's zero beside it",
        }["whole" if resized == size and self.geometry == "crop" else self.geometry]
        before = ""
        if self.region is not None:
            before += "region {:g}, {:g}, {:g}, {:g} of the image; ".format(*self.region)
        if self.mask:
            seen = np.asarray(_open_mask(self.mask)).mean()
            before += f"mask, {seen:.0%} of the image seen; "
        views = "" if self.flips == "none" else f", mean over {FLIPS[self.flips]} flipped views"
        mean, std = (" ".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{before}{way}{views}; {RESIZER}, {self.interpolation}; "
            f"{self.colours.upper()}, mean {mean}, std {std} of 255"
        )


def read_mask(mask: "str | os.PathLike[str] | NDArray[Any]") -> bytes:
    """A mask for `Preprocessing`: what is brighter than half is seen, all else is painted over.

    What is transparent is painted over, too.

    Args:
        mask: a picture's path, or an array (H, W) of bool or uint8.

    Raises:
        InputError: it cannot be read as a picture.
    """
    try:
        picture = read_image(mask, str(mask) if isinstance(mask, str | os.PathLike) else "array")
    except ImageError as error:
        raise InputError(f"mask: {error}") from error
    seen = ImageChops.darker(picture.convert("L"), _opacity(mask, picture.size))
    seen = seen.point(lambda level: 255 * (level > 127)).convert("1")
    if seen.getextrema() == (255, 255):
        warn(f"mask {mask if isinstance(mask, str) else ''}: nothing in it is black; all is seen")
    file = io.BytesIO()
    seen.save(file, "PNG")
    return file.getvalue()


def _opacity(mask: "str | os.PathLike[str] | NDArray[Any]", size: tuple[int, int]) -> Image.Image:
    """How opaque a picture is, (H, W), 255 where it has no transparency; it can be read."""
    content = content_of(mask)
    if isinstance(content, bytes):
        with Image.open(io.BytesIO(content)) as original:
            if original.has_transparency_data:
                turned = ImageOps.exif_transpose(original)
                return turned.convert("RGBA").getchannel("A")
    elif content is not None and content.ndim == 3 and content.shape[2] == 4:
        return Image.fromarray(content).getchannel("A")
    return Image.new("L", size, 255)


@lru_cache(maxsize=4)
def _open_mask(mask: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(mask), formats=["PNG"]) as picture:
            return picture.convert("1")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"mask: not the bytes of a PNG ({error}); make it with read_mask"
        ) from error


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}={value!r}; choose one of {', '.join(choices)}")


def _check_numbers(name: str, values: Any, count: int) -> None:
    if not isinstance(values, tuple) or len(values) != count or not all(map(_is_number, values)):
        raise InputError(f"{name}={values!r}; expected a tuple of {count} numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
