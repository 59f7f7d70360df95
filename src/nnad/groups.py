"""Groups of pictures that are odd as groups, even where each picture is good (DN2 3.3 and 4.5).

Members are embedded and transformed one by one, then pooled (group_pooling.py); the pooled feature
is scored against those of good groups by any operator, or the spread within the group is its score
(group_bank.py, which also tells how groups of any size get p-values).
"""

import copy
import os
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nnad import __version__
from nnad.backbones import Backbone, Run
from nnad.calibrate import Calibration
from nnad.conformal import LEAVE_ONE_OUT
from nnad.detector import Detector
from nnad.embedding import extracted, warn_of_twins
from nnad.errors import ImageError, ImageWarning, InputError, ModelError, counted
from nnad.graph import unknown
from nnad.group_bank import GroupBank, of_spread
from nnad.group_files import Group, Groups, find_groups, without_repeated
from nnad.group_pooling import POOLINGS
from nnad.history import History
from nnad.model_file import Saved, read_model
from nnad.model_writing import write_model
from nnad.operators import Operator, make_operator, operator_name, settings
from nnad.operators.arguments import check_choice, check_count
from nnad.results import GroupResult, Member, Result
from nnad.saving import check_opening, opened_backbone
from nnad.scorer import Known
from nnad.transforms import fit_transform, usual_transform

TRANSFORMS = ("auto", "root", "l2", "raw")  # those that learn nothing


class _Embedded(NamedTuple):
    """A group whose members have been read, or not."""

    name: str
    members: list[str]  # (M,)
    features: list[NDArray[np.float32]]  # M of (D,)
    unread: list[Member]


class GroupDetector:
    """Finds groups of images unlike the good groups it was shown. Nothing is trained.

    Args:
        backbone, false_alarms, workers: as of `Detector`, with groups in the place of images.
        pooling: `mean`, `max`, `concat` or `trace`, see `nnad.group_pooling`. Only `trace` can
            score without a `fit`: then there are no p-values and no decisions.
        transform: of each member before pooling: `root`, `l2`, `raw`, or `auto`, as of `Detector`.
            The mean of vectors of length 1 is not scaled again: its length tells of the spread.
        operator, k: as of `Detector`, for pooled features; not for `trace`.
        seed: of the order of members in `concat`, and of those drawn for calibration.

    After `fit` (also after `load`): `names` (G,), the good groups; `sizes` (G,); `members` (N,) and
    `features` (N, D), their images in order; `calibration`; `false_alarms`, the budget in force;
    `skipped`, the images and groups left out.

    Raises:
        InputError: an argument is out of range.
        BackboneError: the backbone cannot be loaded.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    members: tuple[str, ...]
    features: NDArray[np.float32]
    skipped: tuple[Result, ...]

    def __init__(
        self,
        backbone: str | os.PathLike[str] | Backbone | Run = "efficientnet-lite0",
        *,
        pooling: str = "mean",
        transform: str = "auto",
        operator: str | Operator = "auto",
        k: int | None = None,
        false_alarms: float | None = None,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        self.pooling = check_choice("pooling", pooling, POOLINGS)
        if pooling == "trace" and (operator, k) != ("auto", None):
            raise InputError("operator: pooling 'trace' is a score of its own; leave it out")
        self.transform = self._asked_transform = check_choice("transform", transform, TRANSFORMS)
        self.seed = check_count("seed", seed, least=0)
        checked = Detector(
            backbone, operator=operator, k=k, false_alarms=false_alarms, workers=workers
        )
        self.backbone, self.workers = checked.backbone, checked.workers
        self.operator = None if pooling == "trace" else checked.operator
        self.asked_false_alarms = checked.asked_false_alarms

    def __repr__(self) -> str:
        fitted = f"{len(self.names)} good groups" if hasattr(self, "names") else "not fitted"
        return f"GroupDetector({self.backbone.name!r}, pooling={self.pooling!r}): {fitted}"

    @property
    def calibration(self) -> Calibration:
        """Of groups that have as many members as the largest good group, or more."""
        return self._fitted()._bank.calibration(max(self.sizes))

    @property
    def false_alarms(self) -> float:
        """The false-alarm budget in force; by default 0.01, or 1 / (G + 1) if that is larger."""
        return self.asked_false_alarms or self._fitted().calibration.default_budget()

    def fit(self, groups: Groups, *, cache: bool = True, progress: bool = False) -> Self:
        """Learn what good groups look like.

        Members that cannot be read are left out, and so are groups without any, for `trace` with
        only one, for `concat` with another number of them than most; `skipped` tells. A file that
        is twice in a group counts once, and so do groups of the same files; other copies of groups
        give a warning.

        Args:
            groups: see `find_groups`; at least 4, and more than the operator's k.
            cache: neither decode nor embed again what was fitted before.
            progress: show a bar on a terminal.

        Raises:
            InputError: nothing to read, or too few groups.
            BudgetError: too few groups for the false-alarm budget that was asked for.
        """
        found = without_repeated(find_groups(groups, only_good=True))
        self._check_asked_budget(len(found))
        embedded = list(self._embedded(found, cache, progress))
        size = mode([len(group.members) for group in embedded if group.members] or [0])
        faults = [self._fault(group, size) for group in embedded]
        skipped = [Result(m.name, error=m.error) for group in embedded for m in group.unread]
        for group, fault in zip(embedded, faults, strict=True):
            if fault:
                skipped.append(Result(group.name, error=fault))
        kept = [group for group, fault in zip(embedded, faults, strict=True) if not fault]
        needed = max(4, getattr(self.operator, "k", 1) + 1)
        if len(kept) < needed:
            reason = f" ({skipped[0].error})" if skipped else ""
            raise InputError(f"too few good groups: {len(kept)}; {needed} are needed{reason}")
        self._check_asked_budget(len(kept))
        fitted = copy.copy(self)  # what fails below leaves this detector as it was
        features = np.stack([feature for group in kept for feature in group.features])  # (N, D)
        if self._asked_transform == "auto":
            fitted.transform = usual_transform(features)
        fitted._set(
            tuple(group.name for group in kept),
            tuple(len(group.members) for group in kept),
            tuple(name for group in kept for name in group.members),
            features,
        )
        fitted.skipped = tuple(skipped)
        bank = fitted._bank
        ordered = (points[bank.order(points)] for points in bank.points)
        warn_of_twins(bank.names, ordered, noun="good group")
        self.__dict__ = fitted.__dict__
        return self

    def score(
        self, groups: Groups, *, false_alarms: float | None = None, progress: bool = False
    ) -> list[GroupResult]:
        """Score groups; one result each, in order. One that cannot be scored has an error.

        Args:
            groups: see `find_groups`.
            false_alarms: another budget than the detector's, for this call.
            progress: show a bar on a terminal.

        Without `fit`, which only `trace` allows, `auto` is the usual transform of all these images.

        Raises:
            InputError: nothing to read, the budget is not a fraction, or there was no `fit`.
            BudgetError: the good groups cannot support the budget.
        """
        if hasattr(self, "names"):
            budget = self.false_alarms if false_alarms is None else false_alarms
            _check_budget(len(self.names), budget)
            embedded = self._embedded(find_groups(groups), False, progress)
            return [self._result(group, budget) for group in embedded]
        if self.pooling != "trace":
            self._fitted()
        if false_alarms is not None:
            raise InputError("false_alarms: no good groups were fitted, so nothing can be promised")
        listed = list(self._embedded(find_groups(groups), False, progress))
        scorer = copy.copy(self)
        every = [feature for group in listed for feature in group.features]
        if self._asked_transform == "auto" and every:
            scorer.transform = usual_transform(np.stack(every))
        return [scorer._result(group, None) for group in listed]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder, see `nnad.model_file`.

        Raises:
            ModelError: it exists and `overwrite` is false, holds other files, or cannot be written.
        """
        self._fitted()
        told: dict[str, Any] = {
            "nnad": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "backbone": self.backbone.settings(),
            "transform": self.transform,
            "operator": self.operator
            and {"name": operator_name(self.operator), "settings": settings(self.operator)},
            "calibration": str(LEAVE_ONE_OUT),
            "products": None,
            "false_alarms": self.asked_false_alarms,
            "groups": {
                "pooling": self.pooling,
                "seed": self.seed,
                "names": self.names,
                "sizes": self.sizes,
            },
        }
        of_members = np.repeat(self.calibration.good_scores, self.sizes)  # (N,) of their groups
        known = Known(
            graph=unknown(len(self.members), 0),
            operator_state=getattr(self.operator, "state", dict)(),
            calibration=Calibration(of_members),
            products=None,
        )
        history = History.begin(self.members, self.features, None)
        saved = Saved(told, self.backbone.networks, history, known)
        write_model(Path(path), saved, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: Backbone | None = None,
        device: str = "cpu",
        workers: int | None = None,
    ) -> Self:
        """Open a saved model. It scores exactly as it did when it was saved.

        Args:
            path: the model's folder.
            backbone, device, workers: as of `Detector.load`.

        Raises:
            ModelError: it is missing, damaged, foreign, from a newer nnad or one of single images.
            BackboneError: the backbone is another one, or the device is not there.
            InputError: the device or `workers` is none.
        """
        check_opening(backbone, device, workers)
        saved = read_model(Path(path))
        try:
            if "groups" not in saved.settings:
                raise ModelError(f"{path}: a model of single images; `nnad score` opens it")
            groups = saved.settings["groups"]
            backbone = opened_backbone(saved, backbone, device)
            operator = saved.settings["operator"]
            detector = cls(
                backbone,
                pooling=groups["pooling"],
                transform=saved.settings["transform"],
                false_alarms=saved.settings["false_alarms"],
                seed=groups["seed"],
                workers=workers,
            )
            if operator is not None:
                detector.operator = make_operator(operator["name"], **operator["settings"])
            names, sizes = tuple(map(str, groups["names"])), tuple(map(int, groups["sizes"]))
            members, features = saved.history.names, saved.history.features()
            if len(names) != len(sizes) or min(sizes) < 1 or sum(sizes) != len(members):
                raise ValueError("groups and images differ in number")
            detector._set(
                names,
                sizes,
                members,
                features,
                operator_state=saved.known.operator_state,
                good_scores=saved.known.calibration.good_scores[np.cumsum((0, *sizes[:-1]))],
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            reason = repr(error)[:200]
            raise ModelError(f"{path}: damaged or not written by nnad: {reason}") from error
        detector.skipped = ()
        return detector

    def _fitted(self) -> Self:
        if not hasattr(self, "names"):
            raise InputError("this detector has seen no good groups; call fit first")
        return self

    def _check_asked_budget(self, count: int) -> None:
        if self.asked_false_alarms is not None:
            _check_budget(count, self.asked_false_alarms)

    def _embedded(self, groups: list[Group], cache: bool, progress: bool) -> Iterator[_Embedded]:
        """Embed all members of all groups side by side; yield group after group."""
        every = [member for group in groups for member in group.members]
        shown = "members of groups" if progress else None
        features = extracted(every, len(every), self.backbone, self.workers, shown, cache=cache)
        for name, members in groups:
            group = _Embedded(name, [], [], [])
            for member, feature in islice(features, len(members)):
                if isinstance(feature, ImageError):
                    group.unread.append(Member(member, error=str(feature)))
                else:
                    group.members.append(member)
                    group.features.append(feature)
            yield group

    def _fault(self, group: _Embedded, size: int) -> str | None:
        """Why a group cannot be scored; `size` is how many members `concat` needs."""
        count = len(group.members)
        if group.unread and not count:
            unread = f"none of {counted(len(group.unread), 'image')} can be read"
            return f"{group.name}: {unread}; {group.unread[0].error}"
        if not count:
            return f"{group.name}: this group has no images"
        if self.pooling == "trace" and count == 1:
            return f"{group.name}: one image has no spread; pooling mean can score it"
        if self.pooling == "concat" and count != size:
            return (
                f"{group.name}: {counted(count, 'image')} where the good groups have {size}; "
                f"pooling mean can score any number"
            )
        return None

    def _set(
        self,
        names: tuple[str, ...],
        sizes: tuple[int, ...],
        members: tuple[str, ...],
        features: NDArray[np.float32],
        **found: Any,
    ) -> None:
        """Take good groups; `found` is what a bank of them had found before."""
        self.names, self.sizes, self.members, self.features = names, sizes, members, features
        points = np.split(self._transformed(features), np.cumsum(sizes)[:-1])  # G of (M, D)
        self._bank = GroupBank(
            names, points, pooling=self.pooling, operator=self.operator, seed=self.seed, **found
        )
        if self._bank.fitted:
            self.operator = self._bank.fitted.operator

    def _transformed(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return fit_transform(self.transform, features)(features)

    def _result(self, group: _Embedded, budget: float | None) -> GroupResult:
        """Score, p-value, decision and evidence; with `budget` None only the score of `trace`."""
        if fault := self._fault(group, self.sizes[0] if budget is not None else 0):
            read = (Member(name) for name in group.members)
            return GroupResult(group.name, members=(*read, *group.unread), error=fault)
        points = self._transformed(np.stack(group.features))  # (M, D)
        compared = of_spread(points) if budget is None else self._bank.compare(points)
        parts = compared.contributions
        told = [Member(n, float(part)) for n, part in zip(group.members, parts, strict=True)]
        told.sort(key=lambda member: -(member.contribution or 0))
        members = (*told, *group.unread)
        if budget is None:
            return GroupResult(group.name, compared.score, members=members)
        if len(points) > max(self.sizes):
            effect = (
                "the maximum grows with their number, so the false-alarm budget may not hold"
                if self.pooling == "max"
                else "so many differ less by chance, and even odd groups may pass as good; fit on "
                "groups as large"
            )
            warnings.warn(
                f"{group.name}: {len(points)} images, more than any good group has; {effect}",
                ImageWarning,
                stacklevel=3,
            )
        calibration = self._bank.calibration(len(points))
        return GroupResult(
            group.name,
            compared.score,
            float(calibration.p_values(np.array([compared.score]))[0]),
            compared.score > calibration.threshold(budget),
            compared.nearest,
            members,
        )


def _check_budget(count: int, budget: float) -> None:
    """Raise the errors of `Calibration.check`, in words for groups."""
    Calibration(np.empty(count)).check(budget, "good group")
