"""Any function from images to features as a backbone."""

import hashlib
import json
import threading
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone, Features, Run
from nnad.errors import BackboneError, InputError
from nnad.preprocessing import RESIZER, Preprocessing
from nnad.probes import largest_difference, probe_images

TOLERANCE = 1e-3  # of a feature's length: another machine or library may round differently


class CallableBackbone(Backbone):
    """A function from RGB bytes (B, h, w, 3) uint8 to features (B, D).

    It is called with one image at a time and from one thread at a time. No file can hold it: a
    saved model keeps its features of three probe images, and `Detector.load(path, backbone=...)`
    refuses a function whose features of them differ by more than 0.1 % of their length.

    Args:
        function: may return anything that numpy makes floats of, such as a torch tensor on the CPU.
        name: what it is called in a model and in errors; the function's own by default.
        size: side of its input in pixels.
        preprocessing: further settings of `Preprocessing`: geometry, flips, mean (the colour beside
            a letterboxed image and outside of a mask) and so on.
    """

    def __init__(
        self, function: Run, *, name: str | None = None, size: int = 224, **preprocessing: Any
    ) -> None:
        if not callable(function):
            raise InputError(f"function={function!r}: not a callable")
        name = name or getattr(function, "__name__", None) or type(function).__name__
        super().__init__(str(name), Preprocessing(size, **preprocessing), b"")
        self._function = function
        self._lock = threading.Lock()

    @property
    def gives_maps(self) -> bool:
        """A function returns features."""
        return False

    @cached_property
    def probe(self) -> Features:
        """(3, D) features of the probe images."""
        return self.features(probe_images(self.preprocessing.size))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the preprocessing, the name and the probe images' features, in hex."""
        told = json.dumps([self.preprocessing.settings(), RESIZER, self.name], sort_keys=True)
        return hashlib.sha256(told.encode() + b"\0" + self.probe.tobytes()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """All that can be told of it, as JSON, for a saved model."""
        told = super().settings()
        return {**told, "kind": "callable", "probe": self.probe.tolist()}

    @property
    def networks(self) -> list[bytes]:
        """None: a function cannot be stored."""
        return []

    def check_same(self, settings: dict[str, Any]) -> None:
        """Raise a `BackboneError` unless it gives the features of a saved model's function."""
        same = (
            settings["kind"] == "callable"
            and self.preprocessing == Preprocessing.from_settings(settings["preprocessing"])
            and np.shape(settings["probe"]) == self.probe.shape
        )
        difference = largest_difference(self.probe, settings["probe"]) if same else np.inf
        if not difference <= TOLERANCE:
            told = f" (its features differ by {difference:.2g})" if same else ""
            raise BackboneError(
                f"backbone {self.name!r} is not the one the model was made with{told}"
            )

    def describe(self) -> list[tuple[str, str]]:
        """What can be told of it, as lines for `nnad info`."""
        return [("network", f"{self.name}, a callable"), ("preprocessing", str(self.preprocessing))]

    @cached_property
    def dim(self) -> int:
        """D, the length of a feature."""
        return int(self.probe.shape[1])

    def features(self, batch: NDArray[np.uint8]) -> Features:
        """Preprocessed images (B, h, w, 3) -> (B, D)."""
        return np.concatenate([self._call(image[None]) for image in batch])

    def _call(self, image: NDArray[np.uint8]) -> Features:
        with self._lock:
            found = self._function(image)
        try:
            feature = np.array(found, dtype=np.float32)  # (1, D)
        except Exception as error:  # numpy's, or that of whatever came back
            raise BackboneError(f"backbone {self.name!r}: returned no numbers: {error}") from error
        if feature.ndim != 2 or len(feature) != 1 or not np.isfinite(feature).all():
            raise BackboneError(
                f"backbone {self.name!r}: returned shape {feature.shape} for one image; expected "
                f"(1, D), all finite"
            )
        return feature
