"""The papers' protocols: which images are learnt from, which are scored, and which of them are odd.

Functions of class labels, and of a seed where something is drawn: equal arguments give equal rows.
Labels are indices of classes, of training images (T,) and of test images (U,). A `Task` holds rows
of the two, so that features or pictures are taken afterwards: `features[task.train]`.

| protocol                               | function        | used in                              |
|----------------------------------------|-----------------|--------------------------------------|
| one class is normal                    | `one_class`     | DN2 4.1, k-NNN Table 2               |
| all classes but one are normal         | `all_but_one`   | DN2 4.2, k-NNN Table 3               |
| the first 20 classes, by alphabet      | `first_classes` | DN2 Tables 3 and 4                   |
| normal images of several sets together | `sets_together` | k-NNN Tables 1, 4, 6 and 7, 5.2      |
| few training images                    | `few_shot`      | DN2 4.3                              |
| anomalies among the training images    | `impure`        | DN2 4.4                              |
| groups of images                       | `group_task`    | DN2 4.5                              |
| points in a plane                      | `plane_task`    | k-NNN 4.2                            |
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.operators.arguments import check_choice

Rows = NDArray[np.int64]
Points = NDArray[np.float64]


class Task(NamedTuple):
    """Rows of training images (N,), rows of test images (M,), and which of those are odd (M,)."""

    train: Rows
    test: Rows
    is_anomaly: NDArray[np.bool_]


# Classes


def normal_classes(
    train_labels: Any, test_labels: Any, normal: Collection[int], tested: Any = None
) -> Task:
    """Training images of the normal classes; test images of those are normal, others are odd.

    Args:
        train_labels, test_labels: (T,), (U,).
        normal: the normal classes.
        tested: the classes whose test images are scored; all by default.

    Raises:
        InputError: no training image is normal, or normal or odd test images are missing.
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    train = np.flatnonzero(np.isin(train_labels, list(normal)))
    is_tested = np.ones(len(test_labels), bool)
    if tested is not None:
        is_tested = np.isin(test_labels, list(tested))
    test = np.flatnonzero(is_tested)
    is_anomaly = ~np.isin(test_labels[test], list(normal))
    if not len(train) or not is_anomaly.any() or is_anomaly.all():
        raise InputError(
            f"normal classes {sorted(normal)}: {len(train)} images to train, to test "
            f"{np.sum(~is_anomaly)} normal and {np.sum(is_anomaly)} odd; each is needed"
        )
    return Task(train, test, is_anomaly)


def one_class(train_labels: Any, test_labels: Any, normal: int) -> Task:
    """One class is normal, all others are odd (DN2, section 4.1).

    Raises:
        InputError: see `normal_classes`.
    """
    return normal_classes(train_labels, test_labels, [normal])


def all_but_one(train_labels: Any, test_labels: Any, odd: int) -> Task:
    """All classes are normal but one (DN2, section 4.2).

    Raises:
        InputError: see `normal_classes`.
    """
    return normal_classes(train_labels, test_labels, set(np.unique(train_labels).tolist()) - {odd})


def first_classes(names: Sequence[str], count: int = 20) -> list[int]:
    """The indices of the first classes by alphabet; all if there are fewer (DN2, section 4.1)."""
    return sorted(range(len(names)), key=lambda i: names[i])[:count]


def sets_together(
    train_labels: Any,
    test_labels: Any,
    classes: Sequence[str],
    good: Collection[int],
    sets: Collection[str],
) -> Task:
    """Normal images of several sets are normal, their defects odd (k-NNN, Table 4).

    Args:
        train_labels, test_labels: (T,), (U,).
        classes: names `set/class`, as of `nnad.datasets.combine`.
        good: the classes of normal images, one or more a set.
        sets: the sets that take part.

    Raises:
        InputError: a set is missing; see `normal_classes`.
    """
    of_set = [name.partition("/")[0] for name in classes]
    missing = [name for name in sets if name not in of_set]
    if missing:
        raise InputError(f"sets: there is no {', '.join(missing)}")
    tested = [i for i, name in enumerate(of_set) if name in sets]
    return normal_classes(train_labels, test_labels, set(good) & set(tested), tested)


# Training images


def drawn(total: int, count: int | None, seed: int) -> Rows:
    """Rows of `count` of `total` images in the order drawn; all if there are fewer, or for None."""
    return np.random.default_rng(seed).permutation(total)[:count]


def few_shot(task: Task, count: int | None, seed: int) -> Task:
    """The same with `count` of the training images (DN2, section 4.3)."""
    return task._replace(train=task.train[drawn(len(task.train), count, seed)])


def impurities(n_good: int, n_others: int, share: float, seed: int) -> Rows:
    """Rows among `n_others` of as many images as make a share of all, `n_good` being good.

    Args:
        share: of the good images and the impurities together, 0 to below 1; fewer if there are
            not so many others.
    """
    return drawn(n_others, round(share / (1 - share) * n_good), seed)


def impure(task: Task, n_train: int, share: float, seed: int) -> Task:
    """The same with anomalies among the training images, all good ones kept (DN2, section 4.4).

    Args:
        task: whose training images are normal.
        n_train: T; those that are not in the task are odd.
        share: see `impurities`.
        seed: of the draw.
    """
    others = np.setdiff1d(np.arange(n_train), task.train)
    added = others[impurities(len(task.train), len(others), share, seed)]
    return task._replace(train=np.concatenate([task.train, added]))


# Groups


class GroupTask(NamedTuple):
    """Rows of each training group, rows of each test group, and which of those are odd (G,)."""

    train: list[Rows]
    test: list[Rows]
    is_anomaly: NDArray[np.bool_]


OfClass = Sequence[Rows]  # the rows of each class


def drawn_group(rng: np.random.Generator, of_class: OfClass, classes: Rows) -> Rows:
    """Rows (M,) of images of these classes (M,); none twice while they last.

    Of each class as many take part as the smallest has.
    """
    order = rng.permutation(min(len(rows) for rows in of_class))
    return np.array(
        [of_class[c][order[i % len(order)]] for i, c in enumerate(classes.tolist())], np.int64
    )


def one_class_group(rng: np.random.Generator, of_class: OfClass) -> Rows:
    """10 to 50 images of one class, as D'Oro et al. have them (DN2, section 4.5)."""
    size, label = rng.integers(10, 51), rng.integers(len(of_class))
    return drawn_group(rng, of_class, np.full(size, label))


def mixed_group(rng: np.random.Generator, of_class: OfClass) -> Rows:
    """10 to 50 images of classes drawn at random."""
    return drawn_group(rng, of_class, rng.integers(0, len(of_class), rng.integers(10, 51)))


def one_of_each(rng: np.random.Generator, of_class: OfClass) -> Rows:
    """One image of each class, in an order drawn."""
    return drawn_group(rng, of_class, rng.permutation(len(of_class)))


def any_tuple(rng: np.random.Generator, of_class: OfClass) -> Rows:
    """As many images as classes, of classes drawn at random: one of each, too, now and then."""
    return drawn_group(rng, of_class, rng.integers(0, len(of_class), len(of_class)))


def no_permutation(rng: np.random.Generator, of_class: OfClass) -> Rows:
    """The same, drawn again while it is one image of each class; of two classes or more."""
    while True:
        classes = rng.integers(0, len(of_class), len(of_class))
        if len(np.unique(classes)) < len(classes):
            return drawn_group(rng, of_class, classes)


_Group = Callable[[np.random.Generator, OfClass], Rows]
GROUPS: dict[str, tuple[_Group, _Group]] = {  # normal and odd groups
    "sets": (one_class_group, mixed_group),
    "literal": (one_of_each, any_tuple),
    "without permutations": (one_of_each, no_permutation),
}


def group_task(
    train_labels: Any,
    test_labels: Any,
    kind: str,
    m: int | None = None,
    *,
    n_train: int = 1000,
    n_test: int = 500,
    seed: int = 0,
) -> GroupTask:
    """Groups of images that are odd as groups (DN2, section 4.5).

    Args:
        train_labels, test_labels: (T,), (U,).
        kind: `sets`, of 10 to 50 images of one class, odd ones of any; `literal`, one image of each
            of M classes, odd ones M images of any; `without permutations`, where an odd group that
            has one of each after all is drawn again.
        m: the first M classes; all by default.
        n_train: training groups; DN2 has 1,000.
        n_test: normal test groups, and odd ones; DN2 does not say.
        seed: of the draws.

    Raises:
        InputError: no such kind, a class without images, or no two classes for groups without
            permutations.
    """
    check_choice("kind", kind, tuple(GROUPS))
    parts: list[OfClass] = []
    for labels in (train_labels, test_labels):
        known = np.unique(train_labels)[:m]
        parts.append([np.flatnonzero(np.asarray(labels) == label) for label in known])
    if not all(len(rows) for part in parts for rows in part):
        raise InputError("groups: a class has no images to train or to test")
    if kind == "without permutations" and len(parts[0]) < 2:
        raise InputError("groups without permutations: two classes are needed")
    good, odd = GROUPS[kind]
    rng = np.random.default_rng(seed)
    train = [good(rng, parts[0]) for _ in range(n_train)]
    test = [make(rng, parts[1]) for make in (good, odd) for _ in range(n_test)]
    return GroupTask(train, test, np.repeat([False, True], n_test))


# Points in a plane

SHAPES = ("moons", "circles", "swiss roll")


class PlaneTask(NamedTuple):
    """Points to learn from (N, 2), points to score (M, 2), and which of those are odd (M,)."""

    train: Points
    test: Points
    is_anomaly: NDArray[np.bool_]


def plane_points(shape: str, count: int, noise: float, seed: int) -> Points:
    """(count, 2) points of one of `SHAPES`, in an order drawn.

    Args:
        noise: of a unit circle; ten times that for the roll, which is ten times as wide.

    Raises:
        InputError: no such shape.
    """
    from sklearn.datasets import make_circles, make_moons, make_swiss_roll

    check_choice("shape", shape, SHAPES)
    if shape == "moons":
        made = make_moons(count, noise=noise, random_state=seed)[0]
    elif shape == "circles":
        made = make_circles(count, noise=noise, factor=0.5, random_state=seed)[0]
    else:
        made = make_swiss_roll(count, noise=10 * noise, random_state=seed)[0][:, [0, 2]]
    return np.asarray(np.random.default_rng(seed).permutation(made))


def with_holes(points: Points, count: int = 3, share: float = 0.03) -> tuple[Points, Points]:
    """Points of a curve with holes, and the points that were in them (k-NNN, Figure 3).

    Args:
        points: (N, 2).
        count: holes, around the first of the points.
        share: of the points, in each hole; at least one.
    """
    sq_dists = np.square(points[:count, None] - points).sum(axis=2)  # (count, N)
    nearest = sq_dists.argsort(axis=1)[:, : max(round(share * len(points)), 1)]
    is_kept = np.ones(len(points), bool)
    is_kept[nearest] = False
    return points[is_kept], points[~is_kept]


def plane_box(points: Points) -> tuple[Points, Points]:
    """Lower and upper corner (2,) of the box around points (N, 2), a tenth wider on each side."""
    low, high = points.min(axis=0), points.max(axis=0)
    return low - 0.1 * (high - low), high + 0.1 * (high - low)


def plane_task(shape: str, count: int, noise: float, seed: int, *, n_odd: int = 5000) -> PlaneTask:
    """Half of 2 `count` points to learn from, the others normal, uniform ones odd (k-NNN, 4.2).

    Raises:
        InputError: no such shape.
    """
    made = plane_points(shape, 2 * count, noise, seed)
    odd = np.random.default_rng(seed + 100).uniform(*plane_box(made), (n_odd, 2))
    is_anomaly = np.arange(count + n_odd) >= count
    return PlaneTask(made[:count], np.vstack([made[count:], odd]), is_anomaly)
