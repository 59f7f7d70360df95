"""Patch scores from start to end: good images -> bank and calibration -> maps of new images.

    stages of each good image -> a random sample of patches -> whitening
        -> coreset -> bank -> scores of the good images, each left out of the bank

The defaults are those that held up on every set that was tried; PatchCore is
`PatchModel(operator="knn", whiten=False, reweight=True, ...)`.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.coreset import budget, coreset
from nnad.errors import InputError
from nnad.operators.arguments import check_choice, check_count
from nnad.patch_features import Maps, Whitening, whitened
from nnad.patches import (
    PatchBank,
    calibrated_scores,
    image_score,
    knn_scores,
    knnn_scores,
    patchcore_score,
)
from nnad.progress import track

OPERATORS = ("calibrated", "knn", "knnn")


class PatchModel:
    """Patch scores against a coreset of good patches.

    Args:
        operator: `calibrated`, `knn` or `knnn`, see `nnad.patches`.
        whiten: whiten each stage, or take the stages as they are.
        sample: good patches, drawn at random, that whitening and coreset are made from.
        rows, share, megabytes: size of the bank, see `budget`; the least of those given.
        top: share of an image's patches whose mean is its score.
        reweight: take PatchCore's image score instead.
        projection: dimensions in which the coreset takes distances, None for all.
        seed: of sample and projection.

    After `fit`: `transforms`, of each stage if they whiten; `bank`; `good_scores` (n,), the good
    images' scores; `good_peaks` (n,), their highest patch scores; `usual`, their median patch
    score. In these, no image found its own patches in the bank.

    Raises:
        InputError: an argument is out of range.
    """

    transforms: tuple[Whitening, ...]
    bank: PatchBank
    good_scores: NDArray[np.float64]
    good_peaks: NDArray[np.float64]
    usual: float

    def __init__(
        self,
        *,
        operator: str = "calibrated",
        whiten: bool = True,
        sample: int = 30_000,
        rows: int | None = 4000,
        share: float | None = None,
        megabytes: float | None = None,
        top: float = 0.05,
        reweight: bool = False,
        projection: int | None = 48,
        seed: int = 0,
    ) -> None:
        self.operator = check_choice("operator", operator, OPERATORS)
        self.sample = check_count("sample", sample, least=2)
        if not 0 < top <= 1:
            raise InputError(f"top={top!r}; expected a share above 0, at most 1")
        self.whiten, self.reweight, self.top = whiten, reweight, top
        self.rows, self.share, self.megabytes = rows, share, megabytes
        self.projection, self.seed = projection, seed

    def fit(self, images: Iterable[Sequence[Maps]], *, progress: bool = False) -> Self:
        """Learn from good images.

        Args:
            images: their stages (H, W, C), all of the same shapes. They wait in a temporary file,
                so that memory is needed for the sample and one image only.
            progress: show bars on a terminal.

        Raises:
            InputError: fewer than two images, or the shapes differ.
        """
        with tempfile.TemporaryFile() as file:
            spool = _Spool(file, images)
            if len(spool) < 2:
                raise InputError(f"too few good images: {len(spool)}; patches need 2")
            n_patches = len(spool) * spool.places
            rng = np.random.default_rng(self.seed)
            drawn = rng.choice(n_patches, min(self.sample, n_patches), replace=False)
            drawn.sort()
            of_image, places = np.divmod(drawn, spool.places)
            parts = [
                [stage.reshape(spool.places, -1)[places[of_image == i]] for stage in stages]
                for i, stages in enumerate(spool)
            ]
            sample = [np.concatenate(stage) for stage in zip(*parts, strict=True)]  # (P, C) each
            self.transforms = tuple(map(Whitening.fit, sample)) if self.whiten else ()
            patches = self._joined(sample)
            size = budget(
                len(patches),
                patches.shape[1],
                share=self.share,
                rows=self.rows,
                megabytes=self.megabytes,
            )
            chosen = np.arange(len(patches))
            if size < len(patches):
                chosen = np.sort(
                    coreset(
                        patches, size, projection=self.projection, seed=self.seed, progress=progress
                    )
                )
            self._set(PatchBank(patches[chosen], of_image[chosen], places[chosen]))
            scores, peaks, middles = [], [], []
            everyone = track(spool, len(spool), "good images, each left out", show=progress)
            for i, stages in enumerate(everyone):
                found, score = self.score(stages, left_out=i)
                scores.append(score)
                peaks.append(found.max())
                middles.append(np.median(found))
        self.good_scores, self.good_peaks = np.array(scores), np.array(peaks)
        self.usual = float(np.median(middles))
        return self

    def score(
        self, stages: Sequence[Maps], left_out: int | None = None
    ) -> tuple[NDArray[np.float64], float]:
        """Stages (H, W, C) of an image -> patch scores (H, W) and the image score.

        Args:
            stages: as in `fit`.
            left_out: a good image whose patches do not count.
        """
        grid = self._joined(stages)
        patches = grid.reshape(-1, grid.shape[-1])
        match self.operator:
            case "calibrated":
                scores = calibrated_scores(self.bank, patches, left_out=left_out)
            case "knn":
                scores = knn_scores(self.bank, patches, left_out=left_out)
            case "knnn":
                scores = knnn_scores(self.bank, self._knnn, patches, left_out=left_out)
        if self.reweight:
            of_image = patchcore_score(self.bank, patches, left_out=left_out)
        else:
            of_image = image_score(scores, self.top)
        return scores.reshape(grid.shape[:-1]), of_image

    def pixel_threshold(self, false_alarms: float | None = None) -> float:
        """The patch score above which a place is a defect.

        At most the share `false_alarms` of good images has any place above it; by default 1 %, or
        the least that so few images support. See `Calibration.threshold`.
        """
        calibration = Calibration(self.good_peaks)
        return calibration.threshold(false_alarms or calibration.default_budget())

    def _joined(self, stages: Sequence[Maps]) -> Maps:
        return whitened(stages, self.transforms) if self.whiten else np.concatenate(stages, axis=-1)

    def _set(self, bank: PatchBank) -> None:
        self.bank = bank
        if self.operator == "knnn":
            from nnad.operators.knnn import KNNN

            self._knnn = KNNN(storage="eager").fit(bank.rows)


class _Spool:
    """Stages of many images in a file, to be read several times, one image after the other."""

    def __init__(self, file: IO[bytes], images: Iterable[Sequence[Maps]]) -> None:
        self._file, self._count = file, 0
        self._shapes: list[tuple[int, ...]] = []
        for stages in images:
            shapes = [stage.shape for stage in stages]
            self._shapes = self._shapes or shapes
            if shapes != self._shapes:
                raise InputError(f"stages: shapes {shapes} after {self._shapes}")
            for stage in stages:
                file.write(np.ascontiguousarray(stage, np.float32).data)
            self._count += 1

    @property
    def places(self) -> int:
        """Patches of an image."""
        return self._shapes[0][0] * self._shapes[0][1]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[Maps]]:
        self._file.seek(0)
        for _ in range(self._count):
            contents = (self._file.read(4 * int(np.prod(shape))) for shape in self._shapes)
            yield [
                np.frombuffer(content, np.float32).reshape(shape)
                for content, shape in zip(contents, self._shapes, strict=True)
            ]
