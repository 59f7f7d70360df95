"""What every baseline offers: fit, score, save, load; presets that say what they are."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import check_device
from nnad.errors import ImageError, InputError, ModelError, counted, first_line
from nnad.features import in_threads
from nnad.files import replacing
from nnad.image_files import find_images
from nnad.images import Source, read_image
from nnad.operators.arguments import check_amount, check_choice, check_count
from nnad.preprocessing import Preprocessing

Images = NDArray[np.uint8]  # (N, H, W, C)
Arrays = dict[str, NDArray[Any]]
_FORMAT = "nnad-baseline-1"


class Baseline(ABC):
    """A system that learns from good images and scores others; higher is more anomalous.

    Args:
        preset: `paper`, the published settings, or `small`, for a CPU: fewer epochs and smaller
            networks; its numbers say nothing about the paper's.
        seed: equal seeds give equal scores on the same machine.
        device: `cpu`, or `cuda` or `cuda:1` for what is trained with torch.
        changes: settings that shall differ from the preset's; see each class.

    Attributes: `settings`, all of them; `shape`, the images' (H, W, C) after `fit`.

    Raises:
        InputError: no such preset, setting or device; that torch has no such GPU is told, by a
            `BackboneError`, when it is needed.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # as the paper writes it
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    switches: ClassVar[Mapping[str, str]] = {}  # settings that are off, and what they are called

    def __init__(
        self, preset: str = "paper", *, seed: int = 0, device: str = "cpu", **changes: Any
    ) -> None:
        self.preset = check_choice("preset", preset, tuple(self.presets))
        known = self.presets[preset]
        for setting in changes:
            if setting not in known:
                raise InputError(f"{self.title} has no {setting}; it has {', '.join(known)}")
        self.settings: dict[str, Any] = {**known, **changes}
        for setting, value in changes.items():
            self._check_setting(setting, value)
        self.seed = check_count("seed", seed, least=0)
        self.device = check_device(device)
        self.shape: tuple[int, ...] | None = None

    def _check_setting(self, setting: str, value: Any) -> None:
        """Raise an `InputError` unless the value is of a kind that the setting has in a preset."""
        kinds = {type(preset[setting]) for preset in self.presets.values()}
        if value is None and type(None) in kinds:
            return
        if int in kinds:
            check_count(setting, value)
        elif float in kinds:
            check_amount(setting, value)
        elif bool in kinds:
            check_choice(setting, value, (True, False))

    def __repr__(self) -> str:
        told = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"<{self.full_title}: {told}, seed={self.seed}>"

    @property
    def full_title(self) -> str:
        """The title, and how this differs from the paper's system: `GEOM (small)`."""
        notes = self._notes()
        return f"{self.title} ({', '.join(notes)})" if notes else self.title

    def _notes(self) -> list[str]:
        own = self.presets[self.preset]
        changed = {key for key in own if self.settings[key] != own[key]}
        notes = [] if self.preset == "paper" else [self.preset]
        notes += [told for key, told in self.switches.items() if key in changed]
        return notes + (["changed settings"] if changed - self.switches.keys() else [])

    @abstractmethod
    def fit(
        self, images: Images, *, checkpoints: str | Path | None = None, progress: bool = True
    ) -> Self:
        """Learn from good images (N, H, W, C).

        Args:
            images: two or more.
            checkpoints: a folder for what a killed fit goes on from; it must be that of the same
                images and settings. Without one, a killed fit begins anew.
            progress: a bar on a terminal.

        Raises:
            InputError: not such images.
            TrainingError: the checkpoints are another run's, or a loss is not finite.
        """

    @abstractmethod
    def score(self, images: Images) -> NDArray[np.float64]:
        """Images (N, H, W, C) -> (N,), higher is more anomalous.

        Raises:
            InputError: not fitted, or images of another shape.
        """

    @abstractmethod
    def _state(self) -> Arrays:
        """All that was learnt, as arrays."""

    @abstractmethod
    def _restore(self, state: Arrays) -> None:
        """Take what `_state` gave."""

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            InputError: not fitted.
            ModelError: it cannot be written.
        """
        self._check_fitted()
        told = {
            "format": _FORMAT,
            "name": self.name,
            "preset": self.preset,
            "settings": self.settings,
            "seed": self.seed,
            "shape": self.shape,
        }
        content = safetensors.numpy.save(
            {name: np.ascontiguousarray(array) for name, array in self._state().items()},
            {"nnad": json.dumps(told)},
        )
        try:
            with replacing(Path(path)) as file:
                file.write(content)
        except OSError as error:
            raise ModelError(f"{path}: cannot be written: {error.strerror}") from error

    def restored(self, path: Path) -> Self:
        """This system as the file holds it; for `load_baseline`."""
        self.shape = read_header(path)["shape"]
        try:
            self._restore(safetensors.numpy.load(path.read_bytes()))
        except (OSError, KeyError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
            raise ModelError(f"{path}: damaged: {first_line(error)}") from error
        return self

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Self:
        """Open what `save` wrote.

        Raises:
            ModelError: the file is missing, damaged or holds another system.
        """
        told = read_header(Path(path))
        if told["name"] != cls.name:
            raise ModelError(f"{path}: holds {told['name']}, not {cls.name}")
        empty = cls(told["preset"], seed=told["seed"], device=device, **told["settings"])
        return empty.restored(Path(path))

    def _check_fitted(self) -> None:
        if self.shape is None:
            raise InputError(f"{self.title}: not fitted; call fit first")

    def _check_new(self, images: Any) -> Images:
        """Images to score, or an `InputError`."""
        self._check_fitted()
        checked = check_images(images)
        if checked.shape[1:] != self.shape:
            raise InputError(
                f"images: {checked.shape[1:]} each; {self.title} was fitted on {self.shape}"
            )
        return checked


def check_images(images: Any, least: int = 0) -> Images:
    """Images (N, H, W, C) as they are, or an `InputError`."""
    is_array = isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[3] in (1, 3)
    if not is_array or images.dtype != np.uint8:
        what = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images)
        raise InputError(f"images: {what}; expected uint8 of shape (N, H, W, 1) or (N, H, W, 3)")
    if len(images) < least:
        raise InputError(f"images: {counted(len(images), 'image')}; expected {least} or more")
    checked: Images = images
    return checked


def read_images(
    images: Source | Iterable[Source], size: int, *, grey: bool = False
) -> tuple[Images, list[str], list[ImageError]]:
    """Read a folder (or what else `find_images` takes) as one array.

    Args:
        images: a folder, list, archive, glob or pictures.
        size: side in pixels, 32 or more; the whole image is resized to a square.
        grey: one channel instead of three.

    Returns:
        Images (N, size, size, C); their names; and the errors of those that could not be read.

    Raises:
        InputError: there is no image, or none can be read.
    """
    preprocessing = Preprocessing(size, geometry="whole")

    def pixels(source: Source, name: str) -> Images:
        image = Image.fromarray(preprocessing(read_image(source, name))[0])
        return np.asarray(image.convert("L"))[:, :, None] if grey else np.asarray(image)

    arrays, names, errors = [], [], []
    for name, read in in_threads(find_images(images), pixels):
        if isinstance(read, ImageError):
            errors.append(read)
        else:
            arrays.append(read)
            names.append(name)
    if not arrays:
        raise InputError(f"images: none of {len(errors)} can be read; the first: {errors[0]}")
    return np.stack(arrays), names, errors


def read_header(path: Path) -> dict[str, Any]:
    """What a saved baseline says of itself.

    Raises:
        ModelError: the file is missing, damaged or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            told = json.loads((file.metadata() or {})["nnad"])
        if told["format"] != _FORMAT:
            raise ModelError(f"{path}: of format {told['format']}; this nnad reads {_FORMAT}")
        found: dict[str, Any] = {
            key: kind(told[key])
            for key, kind in (
                ("name", str),
                ("preset", str),
                ("settings", dict),
                ("seed", int),
                ("shape", tuple),
            )
        }
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a saved baseline ({first_line(error)})") from error
    return found
