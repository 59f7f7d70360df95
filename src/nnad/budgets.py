"""False-alarm budgets for a batch and for a stream of images.

The budget of a single image bounds how often a good image is called an anomaly. Somebody who looks
at every alarm may rather ask how many of the alarms are false (the false discovery rate), or for at
most so many false alarms in so many images.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nnad.calibrate import images_needed, round_up, within
from nnad.errors import BudgetError, InputError, counted
from nnad.files import replacing

_DECAY = 1.6  # of the stream's levels: gamma_j = j^-1.6 / zeta(1.6), which add up to 1
_ZETA = 2.2857656656801293  # zeta(1.6)


def within_fdr(p_values: NDArray[Any], fdr: float) -> NDArray[np.bool_]:
    """Which of a batch are anomalies: on average at most a fraction `fdr` of those is good.

    The procedure of Benjamini and Hochberg (1995). Conformal p-values of one batch share their
    calibration images, which makes them positively dependent; it holds for these, too (Bates,
    Candes, Lei, Romano and Sesia 2023, "Testing for outliers with conformal p-values"), proven for
    the method `split`.

    Args:
        p_values: (M,) of the batch.
        fdr: the false discovery rate, between 0 and 1.

    Returns:
        (M,)

    Raises:
        InputError: fdr is not between 0 and 1.
    """
    from scipy.stats import false_discovery_control

    _check_fdr(fdr)
    if not len(p_values):
        return np.zeros(0, dtype=bool)
    return np.asarray(false_discovery_control(p_values) <= fdr * (1 + 1e-9))


def fewest_alarms(images: int, smallest: float, fdr: float) -> int:
    """The fewest anomalies that `within_fdr` can find in a batch: it finds that many or none.

    Args:
        images: M of the batch.
        smallest: the smallest p-value there is, 1 / (n + 1).
        fdr: the false discovery rate.

    Raises:
        InputError: fdr is not between 0 and 1.
        BudgetError: the smallest p-value is above fdr, so that it can never find any.
    """
    _check_fdr(fdr)
    if not within(smallest, fdr):
        raise BudgetError(
            f"fdr={fdr:g}: no p-value is below {round_up(smallest):g}, so that no batch could have "
            f"an anomaly; at least {images_needed(fdr)} good images to calibrate with are needed"
        )
    return max(1, math.ceil(images * smallest / fdr * (1 - 1e-9)))


def _check_fdr(fdr: float) -> None:
    if not 0 < fdr < 1:
        raise InputError(f"fdr={fdr!r}: a false discovery rate is between 0 and 1, such as 0.1")


def alarms_budget(alarms: int, images: int, good: int, *, confidence: float | None = None) -> float:
    """The budget for at most so many false alarms in so many good images.

    On average that is alarms / images. With a confidence it is the largest r / (n + 1) for which

        P(Z <= alarms) >= confidence,  Z ~ BetaBinomial(images, r, n + 1 - r),

    the distribution, over the draw of n good images and of the new ones, of the number of false
    alarms under the method `split` (the false-alarm rate of a threshold at the r-th highest of n
    good scores is Beta(r, n + 1 - r), Vovk 2012).

    Args:
        alarms: that may be false.
        images: good ones that come.
        good: n, the images that calibrate.
        confidence: for example 0.95; by default `alarms` is an average.

    Raises:
        InputError: a number out of range.
        BudgetError: n good images cannot promise that.
    """
    if not 0 < alarms < images:
        raise InputError(f"alarms={alarms!r}, images={images!r}: expected 0 < alarms < images")
    if confidence is None:
        budget = alarms / images
        if not within(1 / (good + 1), budget):
            raise BudgetError(
                f"{counted(alarms, 'alarm')} in {images} images is a budget of {budget:g}, which "
                f"needs at least {images_needed(budget)} good images, not {good}"
            )
        return budget
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence!r}; expected a number between 0 and 1")
    from scipy.stats import betabinom

    ranks = np.arange(1, good + 1)
    sure = betabinom.cdf(alarms, images, ranks, good + 1 - ranks) >= confidence  # falls with rank
    if not sure[0]:
        raise BudgetError(
            f"{counted(alarms, 'alarm')} in {images} images with a confidence of {confidence:g}: "
            f"more than {good} good images are needed"
        )
    return float(sure.sum() / (good + 1))


@dataclass
class Stream:
    """Alarms in a stream of images, of which on average at most a fraction `fdr` is false.

    LORD++ (Ramdas, Yang, Wainwright and Jordan 2017, "Online control of the false discovery rate
    with decaying memory"): image t is an anomaly if its p-value is at most

        level_t = gamma_t W + (fdr - W) gamma_(t - t1) + fdr * sum over j >= 2 of gamma_(t - tj)

    with the earlier alarms t1 < t2 < ..., W = fdr / 2 and gamma_j = j^-1.6 / zeta(1.6). Proven for
    independent p-values; those that share their calibration images depend on each other a little.

    The level falls with every image without an alarm, and p-values are at least 1 / (n + 1): after
    `patience` images without an alarm it is silent for good. Anomalies that are rare need many good
    images, or a plain budget.

    Args:
        fdr: the false discovery rate, between 0 and 1.
        seen: images so far.
        alarms: which of them, from 1, were anomalies.

    Raises:
        InputError: a value out of range.
    """

    fdr: float = 0.1
    seen: int = 0
    alarms: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_fdr(self.fdr)
        ordered = [0, *self.alarms, self.seen + 1]
        if any(a >= b for a, b in pairwise(ordered)):
            raise InputError("stream: alarms must be ascending numbers of images seen")

    @property
    def level(self) -> float:
        """The largest p-value with which the next image is an anomaly."""
        t, start = self.seen + 1, self.fdr / 2
        since = t - np.array(self.alarms, dtype=np.float64)
        earned = np.full(len(since), self.fdr)
        earned[:1] -= start
        return float(start * _gamma(t) + (earned * _gamma(since)).sum())

    def decide(self, p_value: float) -> bool:
        """Take the next image's p-value; whether it is an anomaly."""
        is_anomaly = within(p_value, self.level)
        self.seen += 1
        if is_anomaly:
            self.alarms.append(self.seen)
        return is_anomaly

    def silent(self, smallest: float) -> bool:
        """Whether no image can be an anomaly any more, if no p-value is smaller."""
        return not within(smallest, self.level)

    def check(self, smallest: float) -> None:
        """Raise a `BudgetError` if the stream is silent from the start."""
        if self.silent(smallest):
            raise BudgetError(
                f"fdr={self.fdr:g}: a stream needs at least {images_needed(self.level)} good "
                f"images to calibrate with, and many more if anomalies are rare "
                f"(docs/calibration.md)"
            )

    def patience(self, smallest: float) -> int:
        """After how many images without a first alarm none can come any more.

        Args:
            smallest: the smallest p-value there is, 1 / (n + 1).
        """
        return int((self.fdr / 2 / _ZETA / smallest) ** (1 / _DECAY) * (1 + 1e-9))

    def save(self, path: Path) -> None:
        """Write the state as JSON, in one step.

        Raises:
            InputError: the disk refuses.
        """
        try:
            with replacing(path) as file:
                file.write(json.dumps(asdict(self)).encode())
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error

    @staticmethod
    @contextmanager
    def locked(path: Path) -> Iterator[None]:
        """Keep other processes out of a stream's file, from `load` to the last `save`.

        Raises:
            InputError: another process has it, or its folder cannot be written.
        """
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(f"{path}: another process is deciding on this stream") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Go on where a saved stream ended.

        Raises:
            InputError: the file is not one that `save` wrote.
        """
        try:
            state = json.loads(path.read_bytes())
            fdr, seen, alarms = (state[key] for key in ("fdr", "seen", "alarms"))
            return cls(float(fdr), int(seen), [int(alarm) for alarm in alarms])
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not the state of a stream: {error}") from error


def _gamma(j: Any) -> Any:
    return np.asarray(j, dtype=np.float64) ** -_DECAY / _ZETA
