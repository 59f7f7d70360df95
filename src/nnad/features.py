"""Images -> features, with decoding and inference overlapped, in order, in bounded memory.

Each worker thread reads one image and embeds it; Pillow and ONNX Runtime both leave Python's lock
while they work, so every core is busy and nothing waits for a batch to fill.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.backbones import Backbone
from nnad.cores import one_of_many, usable_cores
from nnad.errors import ImageError
from nnad.images import Source, read_image

if TYPE_CHECKING:
    from nnad.feature_cache import FeatureCache

Feature = NDArray[np.float32]
T = TypeVar("T")


def extract(
    images: Iterable[tuple[str, Source]],
    backbone: Backbone,
    *,
    workers: int | None = None,
    ahead: int | None = None,
    cache: bool = False,
) -> Iterator[tuple[str, Feature | ImageError]]:
    """Embed named images; yield (name, feature (D,)) or (name, the error) in the order given.

    Args:
        images: pairs of name and picture, as from `find_images`; taken only as fast as needed.
        backbone: the network.
        workers: threads; one for each core this process may use by default.
        ahead: images taken before the first is yielded; four for each worker by default.
        cache: take features of known images from the feature cache, and add new ones to it; not for
            backbones that are functions.
    """

    def read_and_embed(source: Source, name: str) -> Feature:
        return backbone.embed(read_image(source, name))

    backbone.dim  # noqa: B018 (starts the network before threads do)
    with ExitStack() as stack:
        known = _feature_cache(backbone) if cache else None
        if known:
            stack.callback(known.close)
        get_feature = known.embed if known else read_and_embed
        yield from in_threads(images, get_feature, workers=workers, ahead=ahead)


def in_threads(
    images: Iterable[tuple[str, Source]],
    function: Callable[[Source, str], T],
    *,
    workers: int | None = None,
    ahead: int | None = None,
) -> Iterator[tuple[str, T | ImageError]]:
    """Yield (name, function(picture, name)) or (name, its `ImageError`) in the order given.

    `images`, `workers` and `ahead` are those of `extract`.
    """

    def call(name: str, source: Source) -> T | ImageError:
        try:
            return function(source, name)
        except ImageError as error:
            return error

    workers = workers or usable_cores()
    ahead = ahead or 4 * workers
    images = iter(images)
    pending: deque[tuple[str, Future[T | ImageError]]] = deque()
    with ThreadPoolExecutor(workers, "nnad", initializer=one_of_many) as pool:
        try:
            while True:
                for name, source in islice(images, ahead - len(pending)):
                    pending.append((name, pool.submit(call, name, own(source))))
                if not pending:
                    return
                name, future = pending.popleft()
                yield name, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _feature_cache(backbone: Backbone) -> "FeatureCache | None":
    members = getattr(backbone, "members", [backbone])
    if not all(member.networks and member.device == "cpu" for member in members):
        return None  # a function or a GPU may be another one, unnoticed
    try:
        from nnad.feature_cache import FeatureCache
    except ImportError:  # a Python without SQLite
        return None
    return FeatureCache(backbone)


def own(source: Source) -> Source:
    """A copy of a picture in memory: its owner may refill a buffer, and threads may share it."""
    if isinstance(source, np.ndarray):
        return source.copy()
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Image.Image):
        try:
            return source.copy()
        except Exception:  # it cannot be decoded: reading it will say so, with its name
            return source
    return source
