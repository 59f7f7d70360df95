"""Do these images still come from where the calibration came from, and does the promise hold?

| bulk or neighbours | flagged or tail | order | verdict |
|---|---|---|---|
| - | - | - | no change seen |
| - | seen | any | more anomalies |
| - | - | seen | a change along the way |
| seen | not beyond the shift | any | everything shifted |
| seen | beyond the shift | any | both |

A shift of everything (light, focus, camera) moves the bulk of the images; more defects only add to
the tail. The five tests are in `nnad.drift_tests`; Holm's procedure keeps the probability of any
verdict but the first, when nothing has changed, at `alpha`. "Flagged" and "tail" are one test,
above the threshold of the budget and in the range of the highest tenth of the good scores. A shift
lifts the tail, too; beyond the shift means: these two tests at `alpha / 2`, after the new scores
were divided by the ratio of the medians. That errs towards "everything shifted".
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from nnad import drift_tests
from nnad.calibrate import within
from nnad.detector import Detector
from nnad.errors import ImageError, InputError, counted
from nnad.image_files import find_images
from nnad.images import Source
from nnad.picture_measures import Compared, compare, measures
from nnad.results import Result
from nnad.scorer import Scorer
from nnad.scoring import stacked
from nnad.sources import readable, without_repeats
from nnad.transforms import fit_transform, usual_transform

NO_CHANGE = "no change seen"
MORE_ANOMALIES = "more anomalies"
ALONG_THE_WAY = "a change along the way"
SHIFTED = "everything shifted"
BOTH = "both"
ALPHA = 0.01
_CONFIDENCE = 0.95
_MEASURED = 50  # pictures of a side that are looked at for hints

Named = tuple[str, Source]


@dataclass(frozen=True, slots=True)
class Tested:
    """One test: its p-value, whether it counts (by Holm's procedure), and what was seen."""

    name: str  # flagged, tail, bulk, neighbours, order
    p_value: float
    rejected: bool
    seen: str


@dataclass(frozen=True, slots=True)
class Promise:
    """The false-alarm budget and how many images were flagged at it.

    `holds`: False if broken, True if images that are known to be good agree with it, None if that
    cannot be said. `low`, `high`: a 95 % Clopper-Pearson interval of the share that is flagged,
    which for good images is the false-alarm rate of this model now.
    """

    budget: float
    flagged: int
    low: float
    high: float
    holds: bool | None
    told: str


class Judgement(NamedTuple):
    """What the tests say; `begins` is the row of the new image where a change of order begins."""

    verdict: str
    tests: tuple[Tested, ...]
    flagged: int
    least: int | None  # flagged images from which on the tail test alone would count
    begins: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """What `drift` found in `images` new images.

    `copies` were left out: exact copies of a good or an earlier image. `least`: so many of the
    images must be flagged for "more anomalies". `begins`: the image where "a change along the
    way" seems to begin. `pictures`: measures of good and new pictures; nothing is decided by them,
    as a network may not mind what they show. Empty if the good pictures cannot be read any more.
    """

    verdict: str
    images: int
    good_images: int
    alpha: float
    promise: Promise
    tests: tuple[Tested, ...]
    least: int | None
    begins: str | None
    copies: tuple[str, ...]
    unread: tuple[Result, ...]
    pictures: tuple[Compared, ...]

    @property
    def changed(self) -> bool:
        """Whether any change was seen."""
        return self.verdict != NO_CHANGE


def drift(
    detector: Detector,
    images: Source | Iterable[Source],
    *,
    good: bool = False,
    false_alarms: float | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Compare new images with the good ones of a fitted detector.

    Args:
        detector: fitted or loaded.
        images: see `find_images`; in the order in which they were taken, if that is known.
        good: these images are known to be good, so whatever is flagged is a false alarm.
        false_alarms: another budget than the detector's.
        alpha: the probability of seeing a change where there is none.
        seed: of permutations and ties.
        progress: show a bar on a terminal.

    Raises:
        InputError: no image can be read, all are copies of good ones, or an argument is out of
            range.
        BudgetError: the good images cannot support the budget.
    """
    budget = detector.false_alarms if false_alarms is None else false_alarms
    detector.calibration.check(budget)
    if not 0 < alpha < 1:
        raise InputError(f"alpha={alpha!r}; a fraction such as 0.01 for 1 %")
    named = without_repeats(find_images(images))
    known = {_digest(feature) for feature in detector.features}
    rows, seen, copies, unread = [], [], [], []
    shown = "images" if progress else None
    read = detector.look(named, len(named), false_alarms=budget, shown=shown)
    for row, (name, found) in enumerate(read):
        if isinstance(found, ImageError):
            unread.append(Result(name, error=str(found)))
        elif (digest := _digest(found.feature)) in known:
            copies.append(name)
        else:
            known.add(digest)
            rows.append(row)
            seen.append(found)
    if not seen:
        raise InputError(_nothing(copies, unread))
    new, of_patches = stacked(seen)
    judged = judge(
        detector.features, new, detector.scorer, budget, of_patches, alpha=alpha, seed=seed
    )
    used = [named[row] for row in rows]
    return Report(
        verdict=judged.verdict,
        images=len(new),
        good_images=len(detector.names),
        alpha=alpha,
        promise=_promise(judged, budget, len(new), good),
        tests=judged.tests,
        least=judged.least,
        begins=None if judged.begins is None else used[judged.begins][0],
        copies=tuple(copies),
        unread=tuple(unread),
        pictures=_pictures(detector.names, used),
    )


def _digest(feature: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(feature.tobytes(), digest_size=16).digest()


def _nothing(copies: list[str], unread: list[Result]) -> str:
    if copies:
        return f"nothing to compare: {copies[0]} and all others are copies of the good images"
    if unread:
        return f"none of {counted(len(unread), 'image')} can be read; {unread[0].error}"
    return "images: none was given"


def judge(
    good: NDArray[np.float32],
    new: NDArray[np.float32],
    scorer: Scorer,
    budget: float,
    patch_scores: NDArray[np.float64] | None = None,
    *,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Judgement:
    """The verdict on features of new images.

    Args:
        good: (N, D) features of the good images, as the backbone returned them. For the test on
            features they are transformed as by default, whatever the scorer does, because what is
            learnt from the good images would favour them.
        new: (m, D), the same of the new ones.
        scorer: of the good images.
        budget: the share of good images that may be flagged.
        patch_scores: (m,) of the new ones, if the scorer joins both.
        alpha: see `drift`.
        seed: see `drift`.
    """
    rng = np.random.default_rng(seed)
    m, top = len(new), drift_tests.TAIL
    scored = scorer.score(new, patch_scores)
    calibration, products = scorer.calibration, scored.categories
    known = [
        calibration.good_scores[calibration.of_product(product)]
        for product in range(len(calibration.product_names))
    ]
    samples = [(known[c], scored.scores[products == c]) for c in np.unique(products)]
    parts = drift_tests.tail_parts(samples, budget)
    at_least = drift_tests.exceedances(parts)  # (m + 1,) P(K >= k)
    flagged = int(sum(within(p_value, budget) for p_value in scored.p_values))
    median = np.array([np.median(alike) for alike in known])[products]  # (m,)
    of_bank = np.zeros_like(scorer.rows) if scorer.products is None else scorer.products
    transformed = fit_transform(usual_transform(good), good)
    near, share, usual = drift_tests.neighbor_test(
        transformed(good[scorer.rows]), transformed(new), np.append(of_bank, products), rng
    )
    p_values = drift_tests.online_p_values(known, scored.scores, products, rng)
    capital = drift_tests.simple_jumper(p_values)  # (m,)
    peak = int(np.argmax(capital))

    def expected(parts: Sequence[tuple[int, int, int]]) -> str:
        return f"{sum(m * r / (n + 1) for m, r, n in parts):.1f} expected"

    tests = [
        (
            "flagged",
            float(at_least[flagged]),
            f"{flagged} of {m} at a budget of {budget:.3g}; {expected(parts)}",
        ),
        (
            "tail",
            drift_tests.tail_test(samples, top),
            f"{drift_tests.tail_count(samples, top)} of {m} above the highest tenth of the good "
            f"scores; {expected(drift_tests.tail_parts(samples, top))}",
        ),
        (
            "bulk",
            drift_tests.bulk_test(samples),
            f"{np.mean(scored.scores > median):.0%} of the scores above the good images' median",
        ),
        (
            "neighbours",
            near,
            f"{share:.0%} of the nearest images of new ones are new; {usual:.0%} expected",
        ),
        (
            "order",
            min(1.0, 1 / float(capital[peak])),
            f"bets against an unchanged source turned 1 into {capital[peak]:.3g} at most",
        ),
    ]
    rejected = drift_tests.holm([p_value for _, p_value, _ in tests], alpha)
    flags, tail, bulk, neighbours, order = rejected
    verdict, begins = NO_CHANGE, None
    if bulk or neighbours:
        moved = np.median(scored.scores / np.where(median > 0, median, 1)) or 1.0
        back = [(alike, scores / moved) for alike, scores in samples]
        beyond = any(drift_tests.tail_test(back, cut) <= alpha / 2 for cut in (budget, top))
        verdict = BOTH if beyond else SHIFTED
    elif flags or tail:
        verdict = MORE_ANOMALIES
    elif order:
        verdict = ALONG_THE_WAY
        begins = int(np.argmin(np.append(1.0, capital[: peak + 1])))
    enough = np.flatnonzero(at_least <= alpha / len(tests))
    return Judgement(
        verdict,
        tuple(
            Tested(name, p_value, seen, told)
            for (name, p_value, told), seen in zip(tests, rejected, strict=True)
        ),
        flagged,
        int(enough[0]) if len(enough) else None,
        begins,
    )


def _promise(found: Judgement, budget: float, m: int, good: bool) -> Promise:
    interval = binomtest(found.flagged, m).proportion_ci(_CONFIDENCE, method="exact")
    low, high = float(interval.low), float(interval.high)
    holds: bool | None = None
    if good:
        holds = not found.tests[0].rejected
        rate = f"{found.flagged / m:.1%} false alarms ({low:.1%} to {high:.1%} with 95 % confidence"
        told = f"{rate}, {m} images), budget {budget:.2%}: "
        if not holds:
            told += "broken; fit again with good images of now"
        elif low > budget:
            told += "above it, but the luck in drawing the good images can explain that"
        else:
            told += "nothing speaks against it"
        if holds and found.verdict == MORE_ANOMALIES:
            told += "; but scores are higher than the good images' own: bursts among those?"
    elif found.verdict == NO_CHANGE:
        told = "nothing speaks against it"
    elif found.verdict == MORE_ANOMALIES:
        told = (
            "stands, as far as can be seen: most images lie where the good ones did. Look at those "
            "with the highest scores; if they are good, it is broken"
        )
    else:
        told = (
            "has lost its ground: it was made for images like the good ones. Fit again with good "
            "images of now, or measure it on images known to be good"
        )
    return Promise(budget, found.flagged, low, high, holds, told)


def _pictures(good_names: Sequence[str], new: Sequence[Named]) -> tuple[Compared, ...]:
    """Measures of good and new pictures; nothing if less than half of the good can be read now."""
    good: list[Named] = [(name, name) for name in good_names]
    chosen, shown = _some(good), _some(new)
    there = [measures(image) for image in readable(chosen)]
    if len(there) < max(len(chosen) / 2, 2):
        return ()
    return compare(there, [measures(image) for image in readable(shown)])


def _some(named: Sequence[Named]) -> list[Named]:
    rows = np.linspace(0, len(named) - 1, min(len(named), _MEASURED)).round().astype(int)
    return [named[row] for row in rows]
