"""Images -> what is seen in them -> results: what a fitted detector does with new images.

image -> feature (D,), and with patches where it is odd -> score -> p-value -> decision
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.anomaly_maps import Region
from nnad.backbones import Backbone
from nnad.calibrate import within
from nnad.cores import usable_cores
from nnad.embedding import extracted
from nnad.errors import ImageError
from nnad.features import in_threads
from nnad.images import Source, read_image
from nnad.located import Located, Patches
from nnad.progress import track
from nnad.results import Neighbor, Result
from nnad.scorer import Scorer

_CHUNK = 64  # images searched at a time; those of an iterator one by one, as it may be a camera


class Seen(NamedTuple):
    """What is seen in an image: its feature (D,), and its patches if they count."""

    feature: NDArray[np.float32]
    located: Located | None


def look(
    named: Iterable[tuple[str, Source]],
    total: int | None,
    backbone: Backbone,
    patches: Patches | None,
    *,
    threshold: float,
    workers: int | None,
    shown: str | None = None,
) -> Iterator[tuple[str, Seen | ImageError]]:
    """Look at images, one after the other, overlapped.

    Args:
        named: names and pictures; an iterator is read at most one image a worker ahead.
        total: how many, if that is known.
        backbone: for features.
        patches: fitted ones, or None.
        threshold: the patch score above which a region is told.
        workers: threads; one a core by default.
        shown: name of a progress bar.
    """
    if patches is None:
        for name, found in extracted(named, total, backbone, workers, shown):
            yield name, found if isinstance(found, ImageError) else Seen(found, None)
        return
    of_patches = patches

    def look_at(source: Source, name: str) -> Seen:
        image = read_image(source, name)
        located = of_patches.locate(image, threshold, workers=cores if one_by_one else 1)
        return Seen(backbone.embed(image), located)

    backbone.dim  # noqa: B018 (starts the network before threads do)
    cores = workers or usable_cores()
    one_by_one = of_patches.tiles is not None  # large images share the cores, and memory
    ahead = cores if total is None else None
    seen = in_threads(named, look_at, workers=1 if one_by_one else cores, ahead=ahead)
    yield from track(seen, total, shown or "", show=shown is not None)


def results(
    seen: Iterator[tuple[str, Seen | ImageError]],
    scorer: Scorer,
    names: tuple[str, ...],
    budget: float,
    total: int | None,
) -> Iterator[tuple[Result, Located | None]]:
    """Decide on what was seen.

    Args:
        seen: from `look`.
        scorer: a fitted one.
        names: (N,) of its good images.
        budget: of false alarms.
        total: how many; None if each result is wanted at once.
    """
    chunk = 1 if total is None else _CHUNK
    while some := list(islice(seen, chunk)):
        good = [found for _, found in some if not isinstance(found, ImageError)]
        decided = iter(_decided(scorer, names, good, budget) if good else ())
        for name, found in some:
            if isinstance(found, ImageError):
                yield Result(name, error=str(found)), None
            else:
                yield Result(name, *next(decided)), found.located


def stacked(seen: list[Seen]) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Features (Q, D), and patch scores (Q,) if patches count."""
    features = np.stack([each.feature for each in seen])
    scores = [each.located.score for each in seen if each.located is not None]
    return features, np.array(scores) if scores else None


def _decided(
    scorer: Scorer, names: tuple[str, ...], seen: list[Seen], budget: float
) -> Iterator[tuple[float, float, bool, tuple[Neighbor, ...], str | None, tuple[Region, ...]]]:
    """Score, p-value, decision, evidence, product and regions of each."""
    scores, _, p_values, found, categories, _ = scorer.score(*stacked(seen))
    distances = np.sqrt(found.sq_dists)
    for i, each in enumerate(seen):
        nearest = tuple(
            Neighbor(names[row], float(distance))
            for row, distance in zip(found.rows[i], distances[i], strict=True)
        )
        product = scorer.calibration.product_names[categories[i]] or None
        is_anomaly = within(float(p_values[i]), budget)
        regions = each.located.regions if each.located else ()
        yield float(scores[i]), float(p_values[i]), is_anomaly, nearest, product, regions
