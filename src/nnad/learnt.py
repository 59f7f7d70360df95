"""What a detector has learnt of good images, and how it changes when these do.

good images -> their features -> history: which of them count, and every change
                              -> scorer: bank, operator, calibration
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone
from nnad.calibrate import Calibration
from nnad.conformal import Method
from nnad.embedding import Embedded, embed, warn_of_twins
from nnad.errors import InputError
from nnad.history import Change, History
from nnad.images import Source
from nnad.located import Patches
from nnad.operators import Operator
from nnad.operators.arguments import check_amount
from nnad.results import Result
from nnad.scorer import Scorer
from nnad.sources import good_images


class Learnt:
    """The good images of a `Detector`, which see; each change leaves it as if fitted anew."""

    backbone: Backbone
    operator: Operator
    method: Method
    mode: str
    patches: Patches | None
    workers: int | None
    asked_false_alarms: float | None
    skipped: tuple[Result, ...]
    _scorer: Scorer | None
    _history: History | None

    @property
    def false_alarms(self) -> float:
        """The false-alarm budget in force."""
        return self.asked_false_alarms or self.calibration.default_budget()

    @property
    def names(self) -> tuple[str, ...]:
        """(N,) the good images."""
        return self.history.names

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, D) features of the good images, as the backbone returned them."""
        return self.history.features()

    @property
    def calibration(self) -> Calibration:
        """What turns scores into p-values."""
        return self.scorer.calibration

    @property
    def log(self) -> tuple[Change, ...]:
        """All changes of the good images and the budget, oldest first."""
        return self.history.changes

    @property
    def scorer(self) -> Scorer:
        """What scores features. Raises an `InputError` before the fit."""
        if self._scorer is None:
            raise InputError("this detector has seen no good images; call fit first")
        return self._scorer

    @property
    def history(self) -> History:
        """The good images and their changes. Raises an `InputError` before the fit."""
        if self._history is None:
            raise InputError("this detector has seen no good images; call fit first")
        return self._history

    def add(
        self,
        images: Source | Iterable[Source],
        *,
        reason: str = "",
        by: str | None = None,
        cache: bool = True,
        progress: bool = False,
    ) -> Change:
        """Take more good images. The detector is then equal to one fitted on all of them.

        Args:
            images: see `fit`; one that is in the detector already, under any name, is left out
                with a warning. `skipped` has those that could not be read, and those whose name
                stands for another picture.
            reason: why, for the log.
            by: who, for the log; the user's login by default.
            cache: see `fit`.
            progress: see `fit`.

        Raises:
            InputError: nothing to read, or nothing new.
        """
        return self.add_embedded(self.embed(images, cache=cache, progress=progress), reason, by)

    def embed(
        self, images: Source | Iterable[Source], *, cache: bool = True, progress: bool = False
    ) -> Embedded:
        """The slow part of `add`: it changes nothing."""
        self._check_changeable()
        named, total = good_images(images)
        return embed(
            named, total, self.backbone, workers=self.workers, cache=cache, progress=progress
        )

    def add_embedded(self, images: Embedded, reason: str = "", by: str | None = None) -> Change:
        """The fast part of `add`."""
        names, features, refused = self.history.new_among(images.names, images.features)
        skipped = (*images.skipped, *refused)
        if not names:
            why = refused[0].error if refused else "these images are all in the model already"
            raise InputError(f"nothing to add: {why}")
        history = self.history.add(names, features, reason, by)
        warn_of_twins(names, features, total=len(history.names))
        self._change(history, self.asked_false_alarms)
        self.skipped = skipped
        return self.log[-1]

    def remove(
        self, names: str | Iterable[str], *, reason: str = "", by: str | None = None
    ) -> Change:
        """Forget good images. The detector is then equal to one fitted on the others.

        Args:
            names: as in `names`, or the end of a path that fits one image only.
            reason: why, for the log.
            by: who, for the log; the user's login by default.

        Raises:
            InputError: no such image, or too few are left.
            BudgetError: those that are left cannot support the budget that was asked for.
        """
        self._check_changeable()
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise InputError("names: no image to remove")
        self._change(self.history.remove(names, reason, by), self.asked_false_alarms)
        return self.log[-1]

    def set_budget(
        self, false_alarms: float | None, *, reason: str = "", by: str | None = None
    ) -> Change:
        """Change the false-alarm budget; None is the default one. No image is looked at again.

        Raises:
            InputError: it is not a fraction.
            BudgetError: the good images cannot support it.
        """
        after = checked_budget(false_alarms)
        history = self.history.set_budget(self.asked_false_alarms, after, reason, by)
        self._change(history, after)
        return self.log[-1]

    def undo(self, *, reason: str = "", by: str | None = None) -> Change:
        """Take back the last change that is in force, see `log`; once more, the one before it.

        Raises:
            InputError: there is none.
            BudgetError: without it the good images cannot support the budget.
        """
        last = self.history.last()
        budget = last.budgets[0] if last.budgets else self.asked_false_alarms
        self._change(self.history.undo(reason, by), budget)
        return self.log[-1]

    def _change(self, history: History, budget: float | None) -> None:
        """Take other good images and another budget, or raise and stay as before."""
        self.check_count(len(history.rows))
        scorer = self.scorer
        if not np.array_equal(history.rows, self.history.rows):
            self._check_changeable()
            old_rows = self.history.old_rows(history.rows)
            scorer = scorer.edited(history.features(), old_rows, history.names)
        check_budget(budget, scorer.calibration)
        self.asked_false_alarms = budget
        self.set_fitted(scorer, history)

    def _check_changeable(self) -> None:
        if self.patches:
            raise InputError(
                f"mode={self.mode!r}: a bank of patches is chosen among those of all good images; "
                f"fit again on the images that shall be in it"
            )

    def set_fitted(self, scorer: Scorer, history: History) -> None:
        """Become a fitted detector; `fit`, `load` and changes end here."""
        self._scorer, self._history = scorer, history
        self.operator = scorer.operator

    def check_count(self, count: int, skipped: tuple[Result, ...] = ()) -> None:
        """Raise an `InputError` if so many good images are too few."""
        needed = max(4, getattr(self.operator, "k", 1) + 1)
        if count < needed:
            reason = f" ({skipped[0].error})" if skipped else ""
            raise InputError(f"too few good images: {count}; {needed} are needed{reason}")
        self.method.check(count)


def checked_budget(false_alarms: float | None) -> float | None:
    """A false-alarm budget that is a fraction, or None; else an `InputError`."""
    if false_alarms is None:
        return None
    false_alarms = check_amount("false_alarms", false_alarms)
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms={false_alarms!r}; a fraction such as 0.01 for 1 %")
    return false_alarms


def check_budget(budget: float | None, calibration: Calibration) -> None:
    """Raise a `BudgetError` if a calibration cannot support it; None is always supported."""
    if budget is not None:
        calibration.check(budget)
