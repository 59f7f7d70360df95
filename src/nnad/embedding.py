"""Images -> names and features: what a fit and an addition do before anything is learnt."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone
from nnad.cores import usable_cores
from nnad.errors import ImageError, ImageWarning, InputError, counted
from nnad.features import extract
from nnad.images import Source
from nnad.progress import track
from nnad.results import Result


class Embedded(NamedTuple):
    """Images that could be read, and those that could not."""

    names: list[str]  # (N,)
    features: NDArray[np.float32]  # (N, D)
    skipped: tuple[Result, ...]


def embed(
    named: Iterable[tuple[str, Source]],
    total: int | None,
    backbone: Backbone,
    *,
    workers: int | None,
    cache: bool,
    progress: bool,
) -> Embedded:
    """Features of all images.

    Raises:
        InputError: there is none, or none can be read.
    """
    names, features, skipped = [], [], []
    shown = "good images" if progress else None
    for name, feature in extracted(named, total, backbone, workers, shown, cache=cache):
        if isinstance(feature, ImageError):
            skipped.append(Result(name, error=str(feature)))
        else:
            names.append(name)
            features.append(feature)
    if skipped and not features:
        raise InputError(
            f"none of {counted(len(skipped), 'image')} can be read; {skipped[0].error}"
        )
    if not features:
        raise InputError("too few good images: none was given")
    return Embedded(names, np.stack(features), tuple(skipped))


def extracted(
    named: Iterable[tuple[str, Source]],
    total: int | None,
    backbone: Backbone,
    workers: int | None,
    shown: str | None,
    *,
    cache: bool = False,
) -> Iterator[tuple[str, NDArray[np.float32] | ImageError]]:
    """Features one after the other; with `shown`, under a progress bar of that name."""
    workers = workers or usable_cores()
    ahead = workers if total is None else None
    features = extract(named, backbone, workers=workers, ahead=ahead, cache=cache)
    return track(features, total, shown or "", show=shown is not None)


def warn_of_twins(
    names: Sequence[str],
    features: Iterable[NDArray[np.float32]],
    *,
    total: int | None = None,
    noun: str = "good image",
) -> None:
    """Warn if some of N features (D,) equal others bit for bit; of `total`, N by default."""
    first: dict[bytes, str] = {}
    twins = []
    for name, feature in zip(names, features, strict=True):
        other = first.setdefault(feature.tobytes(), name)
        if other != name:
            twins.append((other, name))
    if twins:
        warnings.warn(
            f"copies of others: {len(twins)} of {counted(total or len(names), noun)} (for example "
            f"{' and '.join(twins[0])}): the false-alarm budget may not hold; keep one of each",
            ImageWarning,
            stacklevel=3,
        )
