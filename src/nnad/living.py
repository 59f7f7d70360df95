"""Changes of a saved model: good images come and go, a budget moves, an undo takes it back.

Each function opens the model, changes it, and writes it in one step while it holds the model's
lock: several processes may change one model at once, and a reader never waits.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nnad.detector import Detector
from nnad.errors import ModelError
from nnad.history import Change
from nnad.images import Source
from nnad.model_writing import locked, replace_model, version
from nnad.saving import to_saved


def add(
    folder: str | os.PathLike[str],
    images: Source | Iterable[Source],
    *,
    reason: str = "",
    by: str | None = None,
    cache: bool = True,
    progress: bool = False,
    **opening: Any,
) -> Detector:
    """`Detector.add` of a saved model; other writers wait only after the images are embedded.

    `opening`: arguments of `Detector.load`, such as `device` or, for a function, `backbone`.

    Raises:
        ModelError: it cannot be opened or written, or its network was replaced meanwhile.
        InputError: as `Detector.add`.
    """
    folder = Path(folder)
    before = version(folder)
    detector = Detector.load(folder, **opening)
    embedded = detector.embed(images, cache=cache, progress=progress)
    with locked(folder):
        if version(folder) != before:
            fingerprint = detector.backbone.fingerprint
            detector = Detector.load(folder, **opening)
            if detector.backbone.fingerprint != fingerprint:
                raise ModelError(f"{folder}: was fitted anew with another network; try again")
        detector.add_embedded(embedded, reason, by)
        replace_model(folder, to_saved(detector))
    return detector


def change(
    folder: str | os.PathLike[str], make: Callable[[Detector], Change], **opening: Any
) -> Detector:
    """Any other change of a saved model: `change(folder, lambda d: d.remove("a.png"))`.

    `opening`: as of `add`.

    Raises:
        ModelError: it cannot be opened or written.
        InputError: as `make` raises it; the model is as before.
    """
    folder = Path(folder)
    with locked(folder):
        detector = Detector.load(folder, **opening)
        make(detector)
        replace_model(folder, to_saved(detector))
    return detector
