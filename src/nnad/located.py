"""The patch part of a detector: where an image is odd, from its pixels to maps and regions.

    image -> views: the whole frame or tiles -> stages of each -> patch scores
        -> image score, anomaly map, regions above the threshold

Maps and peaks are told on the scale of the good images: 0 is what is usual, 1 the threshold that at
most a false-alarm budget of good images is meant to exceed anywhere: proven with the calibration
`split`, not with `leave-one-out`. Regions and the decision on the image are two tests: an anomaly
may have no region, and a good image one.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnad.anomaly_maps import Box, Region, patch_box, regions, to_image
from nnad.backbones import Backbone, Run, from_settings, load_backbone
from nnad.efficientnet import VARIANTS
from nnad.errors import BackboneError, ImageError, InputError
from nnad.images import Source
from nnad.patch_model import PatchModel
from nnad.progress import track
from nnad.tiles import Tiles, View, views, views_of

T = TypeVar("T", float, NDArray[np.float64])
SIZE = 320  # pixels of the network's input
_STAGES = {"efficientnet": ("s16b", "s32a"), "resne": ("layer2", "layer3")}


@dataclass(frozen=True)
class OddPatch:
    """The patch of an image with the highest score, and the good patch nearest to it.

    Attributes:
        score: on the maps' scale: 0 is usual, 1 the threshold.
        box: what it covers: left, top, right, bottom in pixels of the image.
        distance: to the good patch.
        usual: of that good patch to the nearest one of another good image.
        good: which good image that is, 0..N-1.
        good_box: what the good patch covers there.
    """

    score: float
    box: Box
    distance: float
    usual: float
    good: int
    good_box: Box


@dataclass(frozen=True)
class Located:
    """Where one image is odd.

    Attributes:
        score: of the image, by its patches.
        oddest: the patch with the highest score.
        grids: patch scores (H, W) of each view.
        seen: the part of the image that each view covers, in pixels.
        size: width and height of the image.
        regions: those above the threshold, the highest peak first; peaks are on the maps' scale.
    """

    score: float
    oddest: OddPatch
    grids: list[NDArray[np.float64]]
    seen: list[Box]
    size: tuple[int, int]
    regions: tuple[Region, ...]


class Patches:
    """How a detector looks at patches, and what it learnt of good ones.

    Args:
        backbone: loaded with the pooling `map`, see `patch_backbone`; None for one made of the
            detector's own network.
        tiles: cut images into tiles at their own resolution, for large ones; by default the whole
            frame is seen at the network's size.
        model: what learns and scores patches, unfitted.
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        *,
        tiles: Tiles | None = None,
        model: PatchModel | None = None,
    ) -> None:
        if backbone is not None and not backbone.gives_maps:
            raise InputError(f"patches: load {backbone.name!r} with pooling='map'")
        self.given, self.tiles = backbone, tiles
        self.model = model or PatchModel()

    @property
    def backbone(self) -> Backbone:
        """What gives the maps."""
        assert self.given is not None  # noqa: S101 (a detector sees to it)
        return self.given

    def with_backbone_of(self, network: "Backbone | Run | str | os.PathLike[str]") -> Self:
        """These, with maps of a detector's own network if no other backbone was given."""
        new = copy.copy(self)
        if new.given is None:
            new.given = maps_of(network)
        return new

    def fit(
        self,
        named: Sequence[tuple[str, Source]],
        *,
        workers: int | None = None,
        progress: bool = False,
    ) -> Self:
        """A copy that has learnt from good images, in this order.

        Raises:
            ImageError: one cannot be read.
            InputError: too few, or they do not fit on the disk for the time of the fit.
        """
        new = copy.copy(self)
        images = self._views_of(named, workers, "patches" if progress else None)
        new.model = copy.copy(self.model).fit(images, total=len(named), progress=progress)
        return new

    def recalibrated(
        self,
        named: Sequence[tuple[str, Source]],
        *,
        workers: int | None = None,
        progress: bool = False,
    ) -> Self:
        """A copy whose good scores and peaks are those of other good images than the bank's."""
        new = copy.copy(self)
        new.model = copy.copy(self.model)
        images = self._views_of(named, workers, "patches that calibrate" if progress else None)
        new.model.calibrate(new.model.score(image) for image in images)
        return new

    def _views_of(
        self, named: Sequence[tuple[str, Source]], workers: int | None, shown: str | None
    ) -> Iterator[Iterable[View]]:
        found = views_of(named, self.backbone, self.tiles, workers=workers)
        for _, image in track(found, len(named), shown or "", show=shown is not None):
            if isinstance(image, ImageError):
                raise image
            yield image

    def locate(self, image: Image.Image, threshold: float, *, workers: int = 1) -> Located:
        """Patch scores of an RGB image, and its regions above a patch score.

        Args:
            image: of any size.
            threshold: see `PatchModel.pixel_threshold`.
            workers: threads that embed tiles.
        """
        grids, seen, highest, score = [], [], -np.inf, -np.inf
        for view in self._views(image, workers):  # one at a time: large images have hundreds
            grid, of_view = self.model.score_view(view)
            grids.append(grid)
            seen.append(view.seen)
            score = max(score, of_view)
            if grid.max() > highest:
                highest, odd_view, odd_grid = float(grid.max()), view, grid
        oddest = self._oddest(odd_view, odd_grid, threshold)
        located = Located(score, oddest, grids, seen, image.size, ())
        if oddest.score <= 1:
            return located
        return replace(located, regions=tuple(regions(self.map(located, threshold), 1.0)))

    def _oddest(self, view: View, grid: NDArray[np.float64], threshold: float) -> OddPatch:
        bank = self.model.bank
        row, column = map(int, np.unravel_index(int(grid.argmax()), grid.shape))
        patch = self.model.joined([stage[row, column] for stage in view.stages])  # (D,)
        found = bank.nearest(patch[None], 1)
        nearest = int(found.rows[0, 0])
        left, top, right, bottom = bank.boxes[nearest].tolist()
        return OddPatch(
            score=self._scaled(float(grid[row, column]), threshold),
            box=patch_box(view.seen, grid.shape, row, column),
            distance=float(np.sqrt(found.sq_dists[0, 0])),
            usual=float(bank.spacing[nearest]),
            good=int(bank.images[nearest]),
            good_box=(left, top, right, bottom),
        )

    def map(self, located: Located, threshold: float) -> NDArray[np.float32]:
        """(H, W) of an image in pixels: 0 is usual, 1 the threshold, NaN not looked at."""
        grids = [self._scaled(grid, threshold) for grid in located.grids]
        return to_image(grids, located.size, located.seen)

    def _scaled(self, scores: T, threshold: float) -> T:
        """On the maps' scale; a threshold that is not above what is usual is 1, too."""
        span = threshold - self.model.usual
        return 1 + (scores - threshold) / (span if span > 0 else 1.0)

    def _views(self, image: Image.Image, workers: int) -> Iterator[View]:
        return views(self.backbone, image, self.tiles, workers=workers)

    def settings(self) -> dict[str, Any]:
        """All but the arrays and the network, as JSON."""
        return {
            "backbone": self.backbone.settings(),
            "tiles": self.tiles and [self.tiles.size, self.tiles.overlap],
            "model": self.model.settings(),
        }

    @classmethod
    def restore(
        cls,
        settings: dict[str, Any],
        networks: Sequence[bytes],
        arrays: dict[str, NDArray[Any]],
        device: str = "cpu",
        **numbers: int,
    ) -> Self:
        """What `settings` and the model's arrays were taken from.

        Args:
            settings, arrays: those.
            networks: the backbone's.
            device: see `Detector.load`.
            numbers: what the arrays must fit, see `PatchModel.restore`.

        Raises:
            InputError: they do not.
        """
        tiles = settings["tiles"] and Tiles(*settings["tiles"])
        return cls(
            from_settings(settings["backbone"], networks, device),
            tiles=tiles,
            model=PatchModel.restore(settings["model"], arrays, **numbers),
        )


def patch_backbone(
    name: str, *, size: int = SIZE, stages: Sequence[str] | None = None, **arguments: Any
) -> Backbone:
    """A backbone that gives maps for patches.

    Args:
        name: see `load_backbone`; an ensemble has no maps.
        size: side of the input in pixels, the whole frame by default.
        stages: two layers in the middle of the network by default: `s16b` and `s32a` of
            EfficientNet-Lite, `layer2` and `layer3` of a ResNet; of others they must be named.
        arguments: others of `load_backbone`.

    Raises:
        InputError: the stages must be named.
        BackboneError: it cannot be loaded.
    """
    if stages is None:
        network = name.partition(":")[2] or name
        stages = next((usual for kind, usual in _STAGES.items() if kind in network), None)
    if stages is None:
        raise InputError(f"stages: say which layers of {name!r} make patches")
    arguments = {"geometry": "whole", **arguments}
    return load_backbone(name, size=size, stages=stages, pooling="map", **arguments)


def maps_of(network: Backbone | Run | str | os.PathLike[str], size: int = SIZE) -> Backbone:
    """Maps of the network that a detector has for features; with its region and mask.

    Args:
        network: see `Detector`.
        size: see `patch_backbone`.
    """
    if isinstance(network, str | os.PathLike):
        return patch_backbone(os.fspath(network), size=size)
    if not isinstance(network, Backbone) or network.name not in VARIANTS:
        raise BackboneError("patches: pass the network again, as Patches(patch_backbone(...))")
    maps = patch_backbone(network.name, size=size, device=network.device)
    own = network.preprocessing
    maps.preprocessing = maps.preprocessing.changed(
        region=own.region, mask=own.mask or None, interpolation=own.interpolation
    )
    return maps
