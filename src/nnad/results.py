"""What is told of a scored image or group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.anomaly_maps import Region


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A good image near the scored one, and the Euclidean distance of their features."""

    name: str
    distance: float


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of one scored image.

    Attributes:
        name: its path, or `image[i]` for one that was passed in memory.
        score: the operator's; higher is more anomalous.
        p_value: how rare such a score is among good images: at most a share p of them has a
            p-value of p or less.
        is_anomaly: whether the p-value is within the false-alarm budget.
        nearest: the nearest good images, nearest first: the reason for the decision.
        product: in a model of several products the one it is assigned to, that of the nearest good
            image.
        regions: in a model with patches, where the image is odd: the regions above the threshold
            of patches, the highest peak first.
        error: why the image could not be read, or None; with an error all else is None or empty.

    A score can be compared with those of the same model only; a p-value with any.
    """

    name: str
    score: float | None = None
    p_value: float | None = None
    is_anomaly: bool | None = None
    nearest: tuple[Neighbor, ...] = ()
    product: str | None = None
    regions: tuple[Region, ...] = ()
    error: str | None = None


def decided(
    results: Sequence[Result], decide: Callable[[NDArray[np.float64]], NDArray[Any]]
) -> list[Result]:
    """The same results, those that could be read decided anew: p-values (M,) -> whether (M,)."""
    read = np.array([r.p_value for r in results if r.p_value is not None], dtype=np.float64)
    decisions = iter(decide(read).tolist())
    return [r if r.p_value is None else replace(r, is_anomaly=next(decisions)) for r in results]


@dataclass(frozen=True, slots=True)
class Member:
    """A picture of a group.

    Attributes:
        name: its path, or `image[i]`.
        contribution: how odd it makes the group. For `mean` and `max`: the group's score less its
            score without this member; a lone member's is the whole score. For `concat`: its part
            of the squared distance to the nearest good group. For `trace`: its part of the trace,
            |x - mean|^2 / (M - 1). None with an error.
        error: why it could not be read, or None.
    """

    name: str
    contribution: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What is known of one scored group.

    Attributes:
        name: the folder, the group in a list, or the key of a mapping.
        score: higher is more anomalous.
        p_value: how rare such a score is among good groups of this size; None without good groups.
        is_anomaly: whether the p-value is within the false-alarm budget; None without good groups.
        nearest: the nearest good groups and the distances of the pooled features; none for `trace`.
        members: the highest contribution first, those that could not be read last.
        error: why the group has no score, or None.

    Scores of groups of different sizes cannot be compared, p-values can.
    """

    name: str
    score: float | None = None
    p_value: float | None = None
    is_anomaly: bool | None = None
    nearest: tuple[Neighbor, ...] = ()
    members: tuple[Member, ...] = ()
    error: str | None = None

    @property
    def oddest(self) -> Member | None:
        """The member with the highest contribution; None for a group without a score."""
        return None if self.score is None else self.members[0]
