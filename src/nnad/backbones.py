"""A backbone: a network, the preprocessing that belongs to it, and a hash of both.

    image -> preprocessing -> (V, h, w, 3) uint8 -> network -> mean over V views -> (D,) float32

Two features may be compared only when they come from backbones with equal fingerprints.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad import efficientnet
from nnad.cores import int8_overflows
from nnad.errors import BackboneError, InputError

GEOMETRIES = ("crop", "letterbox")
FLIPS = {"none": 1, "horizontal": 2, "both": 4}  # views of one image
RESIZER = "Pillow, bicubic, antialiased"  # another decoder or resizer moves features
_GREY = (127, 127, 127)  # what the network sees as zero


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input. All of it is part of the fingerprint.

    Attributes:
        size: side of the square input in pixels.
        geometry: `crop`, as DN2 section 4.6: the whole image is resized to a square of 256/224 the
            size, then the centre is kept, so the outer 6 % of each side is not seen; `letterbox`:
            the whole image in its own proportions, grey beside it.
        flips: features are averaged over the image and its mirror images: `none`, `horizontal`
            (2 views) or `both` (4 views), for things that have no right way up.
    """

    size: int
    geometry: str = "crop"
    flips: str = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 32 <= self.size <= 4096:
            raise InputError(f"size={self.size!r}; expected 32 to 4096 pixels")
        if self.geometry not in GEOMETRIES:
            raise InputError(f"geometry={self.geometry!r}; choose one of {', '.join(GEOMETRIES)}")
        if self.flips not in FLIPS:
            raise InputError(f"flips={self.flips!r}; choose one of {', '.join(FLIPS)}")

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image of any size -> (V, size, size, 3), V views."""
        pixels = self._crop(image) if self.geometry == "crop" else self._letterbox(image)
        views = [pixels]  # each (size, size, 3)
        if self.flips != "none":
            views += [pixels[:, ::-1]]
        if self.flips == "both":
            views += [pixels[::-1], pixels[::-1, ::-1]]
        return np.stack(views)

    def _crop(self, image: Image.Image) -> NDArray[np.uint8]:
        resized = round(self.size * 256 / 224)
        edge = (resized - self.size) // 2
        image = image.resize((resized, resized), Image.Resampling.BICUBIC)
        return np.asarray(image.crop((edge, edge, edge + self.size, edge + self.size)))

    def _letterbox(self, image: Image.Image) -> NDArray[np.uint8]:
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        square = Image.new("RGB", (self.size, self.size), _GREY)
        corner = ((self.size - width) // 2, (self.size - height) // 2)
        square.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
        return np.asarray(square)

    def __str__(self) -> str:
        resized = round(self.size * 256 / 224)
        way = {
            "crop": f"resized to {resized} x {resized}, centre {self.size} x {self.size} kept "
            f"(the outer {(resized - self.size) / 2 / resized:.0%} of each side is not seen)",
            "letterbox": f"whole image within {self.size} x {self.size}, grey beside it",
        }
        views = "" if self.flips == "none" else f", mean over {FLIPS[self.flips]} flipped views"
        return f"{way[self.geometry]}{views}; {RESIZER}"


class Backbone:
    """An ONNX network that takes RGB bytes (B, h, w, 3) and returns features (B, D) float32.

    Calls may come from many threads at once: each runs on the calling thread alone, one image at a
    time, so a feature never depends on which images shared its batch.
    """

    def __init__(self, name: str, preprocessing: Preprocessing, onnx: bytes) -> None:
        self.name = name
        self.preprocessing = preprocessing
        self.onnx = onnx

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, {self.preprocessing})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the network's bytes and the preprocessing, in hex."""
        preprocessing = json.dumps([asdict(self.preprocessing), RESIZER], sort_keys=True)
        return hashlib.sha256(preprocessing.encode() + b"\0" + self.onnx).hexdigest()

    def settings(self) -> dict[str, Any]:
        """All but the network itself, as JSON, for a saved model."""
        return {
            "name": self.name,
            "preprocessing": asdict(self.preprocessing),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_settings(cls, settings: dict[str, Any], onnx: bytes) -> "Backbone":
        """The backbone of a saved model; one whose fingerprint differs is refused."""
        backbone = cls(settings["name"], Preprocessing(**settings["preprocessing"]), onnx)
        if backbone.fingerprint != settings["fingerprint"]:
            raise BackboneError(
                f"backbone {backbone.name!r} is not the one the model was made with"
            )
        return backbone

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if int8_overflows():  # then multiply in a slower way
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return onnxruntime.InferenceSession(
                self.onnx, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exception types are not public
            raise BackboneError(
                f"backbone {self.name!r}: cannot run the network: {error}"
            ) from error

    @cached_property
    def dim(self) -> int:
        """D, the length of a feature."""
        return int(self._session.get_outputs()[0].shape[1])

    def embed(self, image: Image.Image) -> NDArray[np.float32]:
        """Feature (D,) of an RGB image."""
        views = self.preprocessing(image)  # (V, h, w, 3)
        features: NDArray[np.float32] = self._session.run(["features"], {"image": views})[0]
        return np.asarray(features.mean(axis=0))


def load_backbone(
    name: str = "efficientnet-lite0", *, geometry: str = "crop", flips: str = "none"
) -> Backbone:
    """An embedded backbone by name.

    Args:
        name: `efficientnet-lite0` (the default, 224 px), `efficientnet-lite1` (240 px) or
            `efficientnet-lite2` (260 px); the last two need the pip package with their weights.
        geometry, flips: see `Preprocessing`.

    Raises:
        BackboneError: the name is unknown or the weights are not installed.
        InputError: geometry or flips is unknown.
    """
    if name not in efficientnet.VARIANTS:
        raise BackboneError(
            f"backbone {name!r} is unknown; there are: {', '.join(efficientnet.VARIANTS)}"
        )
    size = efficientnet.VARIANTS[name].image_size
    preprocessing = Preprocessing(size, geometry, flips)
    return Backbone(name, preprocessing, efficientnet.load_onnx(name))
