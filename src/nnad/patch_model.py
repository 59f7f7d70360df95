"""Patch scores from start to end: good images -> bank and calibration -> maps of new images.

    views of each good image -> a random sample of patches -> whitening
        -> coreset -> bank

The good images' own scores are by models of other good images: whitening, coreset and what is usual
somewhere would all know an image that they were learnt from, and it would score too low. So the
images are dealt into five folds, and each fold is scored by a model of the four others.

The defaults were chosen on the development sets (docs/patches.md). PatchCore is
`PatchModel(**PRESETS["patchcore"])`: a tenth of all patches, as in the paper, but of no more than
500,000, drawn at random. They are in memory about twice while a model is made: 1.2 GB with 304
values each, 6 GB with 1,536.
"""

import copy
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnad.calibrate import Calibration
from nnad.coreset import budget, coreset
from nnad.errors import InputError
from nnad.operators.arguments import check_amount, check_choice, check_count
from nnad.patch_arrays import check_arrays, n_stages
from nnad.patch_features import Maps, Whitening, whitened
from nnad.patch_spool import Spool
from nnad.patches import (
    PatchBank,
    Scores,
    calibrated_scores,
    image_score,
    knn_scores,
    knnn_scores,
    patchcore_score,
)
from nnad.progress import track
from nnad.tiles import View

FOLDS = 5  # of the good images; each is scored by a model of the other folds
OPERATORS = ("calibrated", "knn", "knnn")
PRESETS: dict[str, dict[str, Any]] = {  # arguments of `PatchModel`
    **{operator: {"operator": operator} for operator in OPERATORS},
    "patchcore": {
        "operator": "knn",
        "whiten": False,
        "reweight": True,
        "sample": 500_000,
        "rows": None,
        "share": 0.1,
    },
}


class PatchModel:
    """Patch scores against a coreset of good patches.

    Args:
        operator: `calibrated`, `knn` or `knnn`, see `nnad.patches`.
        whiten: whiten each stage, or take the stages as they are.
        sample: good patches, drawn at random, that whitening and coreset are made from; `rows` if
            those are more.
        rows, share, megabytes: size of the bank, see `budget`; the least of those given. At least
            2 rows; the share, above 0 and at most 1, is one of the sample.
        top: share of a view's patches whose mean is its score; the image has that of its oddest
            view.
        reweight: take PatchCore's image score instead.
        projection: dimensions in which the coreset takes distances, None for all.
        seed: of sample and projection.

    After `fit`: `transforms`, of each stage if they whiten; `grid`, rows and columns of patches in
    a view; `bank`, in which a patch's place counts through all views of its image; `good_scores`
    (n,), the good images' scores; `good_peaks` (n,), their highest patch scores; `usual`, their
    median patch score. Each image was scored by a model of other folds.

    Raises:
        InputError: an argument is out of range.
    """

    transforms: tuple[Whitening, ...]
    grid: tuple[int, int]
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
        self.whiten = bool(check_choice("whiten", whiten, (True, False)))
        self.sample = check_count("sample", sample, least=2)
        self.rows = None if rows is None else check_count("rows", rows, least=2)
        self.share = None if share is None else _share("share", share)
        if megabytes is not None and check_amount("megabytes", megabytes) == 0:
            raise InputError(f"megabytes={megabytes!r}; expected a number above 0")
        self.megabytes = megabytes
        self.top = _share("top", top)
        self.reweight = bool(check_choice("reweight", reweight, (True, False)))
        self.projection = None if projection is None else check_count("projection", projection)
        self.seed = check_count("seed", seed, least=0)

    def fit(
        self,
        images: Iterable[Iterable[View]],
        *,
        total: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn from good images.

        Args:
            images: the views of each, see `nnad.tiles`; their grids are all of the same shape. They
                wait in a temporary file, so that memory is needed for the sample and one view only.
            total: how many images there will be, if that is known: then room for all of them is
                checked when the first has been written.
            progress: show bars on a terminal.

        Raises:
            InputError: fewer than three images, the shapes differ, the disk is too small, or the
                bank has patches of one image only.
        """
        with tempfile.TemporaryFile(buffering=0) as file:
            spool = Spool(file, images, total)
            if len(spool) < 3:
                raise InputError(f"too few good images: {len(spool)}; patches need 3")
            self.grid = spool.grid
            sample, *where = spool.sample(max(self.sample, self.rows or 0), self.seed)
            self._learn(sample, where, progress=progress)
            folds = np.arange(len(spool)) % min(FOLDS, len(spool))
            models = []
            for fold in track(range(folds.max() + 1), folds.max() + 1, "folds", show=progress):
                others = folds[where[0]] != fold
                model = copy.copy(self)
                model._learn([x[others] for x in sample], [x[others] for x in where])
                models.append(model)
            everyone = track(spool, len(spool), "good images, by other folds", show=progress)
            self.calibrate(models[folds[i]].score(views) for i, views in enumerate(everyone))
        return self

    def _learn(
        self, sample: list[Maps], where: list[NDArray[Any]], *, progress: bool = False
    ) -> None:
        """Whitening and bank, from a sample of patches (P, C) of each stage, and where they are."""
        _check_images(where[0], "sample")
        self.transforms = tuple(map(Whitening.fit, sample)) if self.whiten else ()
        patches = self.joined(sample)
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
        bank = PatchBank(patches[chosen], *(x[chosen] for x in where))
        _check_images(bank.images, "bank")
        self._set(bank)
        _ = bank.spacing  # measured here, before threads ask for it

    def calibrate(self, scored: Iterable[tuple[list[Scores], float]]) -> None:
        """Take `score`'s results for good images that its model has not seen."""
        scores, peaks, middles = [], [], []
        for grids, score in scored:
            scores.append(score)
            peaks.append(max(grid.max() for grid in grids))
            middles.append(np.median(np.concatenate([grid.ravel() for grid in grids])))
        self.good_scores, self.good_peaks = np.array(scores), np.array(peaks)
        self.usual = float(np.median(middles))

    def score(self, views: Iterable[View]) -> tuple[list[Scores], float]:
        """Views of an image -> patch scores (H', W') of each, and the image score.

        Views are taken one by one. The image score is that of the oddest view: among many tiles, a
        small defect would not move a mean over all.

        Args:
            views: one or more, as in `fit`.
        """
        scored = [self.score_view(view) for view in views]
        return [grid for grid, _ in scored], max(score for _, score in scored)

    def score_view(self, view: View) -> tuple[Scores, float]:
        """One view -> patch scores (H', W') and the score of the view, see `score`."""
        joined = self.joined(view.stages)
        patches = joined.reshape(-1, joined.shape[-1])
        scores = self._patch_scores(patches)
        if self.reweight:
            score = patchcore_score(self.bank, patches)
        else:
            score = image_score(scores, self.top)
        return scores.reshape(joined.shape[:-1]), score

    def _patch_scores(self, patches: Maps) -> Scores:
        """(P, D) -> (P,)."""
        match self.operator:
            case "calibrated":
                return calibrated_scores(self.bank, patches)
            case "knn":
                return knn_scores(self.bank, patches)
            case _:
                return knnn_scores(self.bank, self._knnn, patches)

    def joined(self, stages: Sequence[Maps]) -> Maps:
        """Stages (..., C) -> patches (..., D) as they are in the bank."""
        return whitened(stages, self.transforms) if self.whiten else np.concatenate(stages, axis=-1)

    def pixel_threshold(self, false_alarms: float | None = None) -> float:
        """The patch score above which a place is a defect.

        At most the share `false_alarms` of good images has any place above it; by default 1 %, or
        the least that so few images support. See `Calibration.threshold`.
        """
        calibration = Calibration(self.good_peaks)
        return calibration.threshold(false_alarms or calibration.default_budget())

    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, as JSON."""
        return {
            "operator": self.operator,
            "whiten": self.whiten,
            "sample": self.sample,
            "rows": self.rows,
            "share": self.share,
            "megabytes": self.megabytes,
            "top": self.top,
            "reweight": self.reweight,
            "projection": self.projection,
            "seed": self.seed,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `fit` has learnt, for a saved model."""
        found = {
            "bank": self.bank.rows.features,
            "bank_images": self.bank.images,
            "bank_places": self.bank.places,
            "bank_boxes": self.bank.boxes,
            "bank_spacing": self.bank.spacing,
            "grid": np.array(self.grid, np.int64),
            "good_scores": self.good_scores,
            "good_peaks": self.good_peaks,
            "usual": np.array([self.usual]),
        }
        for i, transform in enumerate(self.transforms):
            found[f"whitening_{i}_scale"] = np.array([transform.scale])
            found[f"whitening_{i}_mean"] = transform.mean
            found[f"whitening_{i}_matrix"] = transform.matrix
            found[f"whitening_{i}_kept"] = np.array([transform.kept], np.int64)
        return found

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        *,
        n_good: int | None = None,
        n_calibrating: int | None = None,
    ) -> Self:
        """The model with these `settings` and `arrays`; it scores the same, bit for bit.

        Args:
            settings, arrays: what the methods of these names gave.
            n_good: good images in the bank; None does not check that.
            n_calibrating: how many `good_scores` there are; None does not check that.

        Raises:
            InputError: a setting is out of range, or an array is missing or cannot be, see
                `nnad.patch_arrays`.
        """
        model = cls(**settings)
        check_arrays(arrays, whiten=model.whiten, n_good=n_good, n_calibrating=n_calibrating)
        model.transforms = tuple(
            Whitening(
                float(arrays[f"whitening_{i}_scale"][0]),
                arrays[f"whitening_{i}_mean"],
                arrays[f"whitening_{i}_matrix"],
                int(arrays[f"whitening_{i}_kept"][0]),
            )
            for i in range(n_stages(arrays))
        )
        rows, columns = arrays["grid"].tolist()
        model.grid = rows, columns
        where = (arrays[f"bank_{name}"] for name in ("images", "places", "boxes"))
        model._set(PatchBank(arrays["bank"], *where))
        model.bank.spacing = arrays["bank_spacing"]
        model.good_scores, model.good_peaks = arrays["good_scores"], arrays["good_peaks"]
        model.usual = float(arrays["usual"][0])
        return model

    def _set(self, bank: PatchBank) -> None:
        self.bank = bank
        if self.operator == "knnn":
            from nnad.operators.knnn import KNNN

            self._knnn = KNNN(storage="eager").fit(bank.rows)


def _share(name: str, value: Any) -> float:
    if not 0 < check_amount(name, value) <= 1:
        raise InputError(f"{name}={value!r}; expected a share above 0, at most 1")
    return float(value)


def _check_images(images: NDArray[Any], what: str) -> None:
    """Raise an `InputError` unless patches (P,) are of two images or more."""
    if len(np.unique(images)) < 2:
        raise InputError(
            f"{what} too small: {len(images)} patches, all of one image; those of two are "
            f"needed. Raise rows, share, megabytes or sample"
        )
