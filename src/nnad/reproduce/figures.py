"""Pictures: curves of a figure's entries, t-SNE of features, and scores in the plane.

They need matplotlib: pip install 'nnad[bench]'.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.errors import InputError
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.protocols import plane_box, plane_points, with_holes
from nnad.reproduce.knnn import IN_PLANE
from nnad.reproduce.settings import Run
from nnad.reproduce.told import summary

PANELS = {"3": (("moons", 500),), "8": (("moons", 500), ("circles", 500), ("swiss roll", 500))}
_DPI = 100
_SIDE = 160  # scores along a side of a heat map
_TSNE_IMAGES = 2000  # at most: of more, a picture shows nothing new and takes minutes
Array = NDArray[Any]


def curves(run: Run, path: Path) -> bool:
    """A panel for each data set, a line for each column; whether there was anything to draw."""
    plt = _pyplot()
    found = [(entry, value) for entry, value in summary(run) if value is not None]
    panels: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for entry, value in found:
        panel = f"{entry.data}, {entry.protocol}"
        panels.setdefault(panel, {}).setdefault(entry.column, []).append((entry.row, 100 * value))
    if not panels:
        return False
    picture, axes = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.6), layout="constrained", squeeze=False
    )
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        ticks = list(dict.fromkeys(row for points in lines.values() for row, _ in points))
        for column, points in lines.items():
            places = [ticks.index(row) for row, _ in points]
            axis.plot(places, [value for _, value in points], "o-", markersize=4, label=column)
        axis.set_xticks(range(len(ticks)), ticks, rotation=30 if len(ticks) > 5 else 0)
        axis.set(title=title, ylabel="image AUROC, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    title = f"{run.table.title}: {run.table.caption}"
    picture.suptitle(textwrap.fill(title, 50 * len(panels)))
    _save(plt, picture, path)
    return True


def embedding(
    shown: Mapping[tuple[str, str], Array], labels: Array, normal: Mapping[str, int], path: Path
) -> None:
    """t-SNE of test features, the normal class in yellow.

    Args:
        shown: features (U, D) by row and column.
        labels: (U,).
        normal: row -> its normal class.
        path: of the picture.
    """
    from sklearn.manifold import TSNE

    plt = _pyplot()
    columns = list(dict.fromkeys(column for _, column in shown))
    chosen = np.random.default_rng(0).permutation(len(labels))[:_TSNE_IMAGES]
    size = 4 * len(columns), 4 * len(normal)
    picture, axes = plt.subplots(
        len(normal), len(columns), figsize=size, layout="constrained", squeeze=False
    )
    for (row, column), features in shown.items():
        points = np.asarray(features[chosen], np.float64)
        read = ~np.isnan(points[:, 0])
        points, is_normal = points[read], labels[chosen][read] == normal[row]
        perplexity = min(30, max((len(points) - 1) // 3, 1))
        placed = TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(points)
        axis = axes[list(normal).index(row), columns.index(column)]
        for group, colour in ((~is_normal, "tab:blue"), (is_normal, "gold")):
            axis.scatter(*placed[group].T, s=4, color=colour, linewidths=0)
        axis.set(title=f"{column}, {row}", xticks=[], yticks=[])
    _save(plt, picture, path)


def heat_maps(
    path: Path,
    panels: Sequence[tuple[str, int]],
    operators: Mapping[str, tuple[str, Mapping[str, Any]]] = IN_PLANE,
) -> None:
    """Scores of every operator (columns) around points of a shape and number (rows).

    A place's colour is the share of the plane that scores lower: dark where little does, yellow
    from 30 % on. So operators of any scale are compared at equal area. The curves have holes, see
    `with_holes`; below each panel stands that share of the points that were in them (median).
    """
    from scipy.stats import percentileofscore, rankdata

    plt = _pyplot()
    picture = plt.figure(figsize=(3 * len(operators), 2.6 * len(panels)), layout="constrained")
    axes = picture.subplots(len(panels), len(operators), squeeze=False)
    for line, (shape, count) in zip(axes, panels, strict=True):
        points = plane_points(shape, count, 0.0, 0)
        low, high = plane_box(points)
        good, hidden = with_holes(points)
        x, y = np.meshgrid(*(np.linspace(*ends, _SIDE) for ends in zip(low, high, strict=True)))
        grid = np.column_stack([x.ravel(), y.ravel()])
        for axis, (title, (name, arguments)) in zip(line, operators.items(), strict=True):
            fitted = make_operator(name, **arguments).fit(Bank(good))
            scores = fitted.score(grid)
            ranks = rankdata(scores).reshape(_SIDE, _SIDE) / len(scores)
            axis.pcolormesh(x, y, ranks, vmax=0.3, rasterized=True)
            axis.scatter(*good.T, s=1, color="cyan", linewidths=0)
            rank = np.median(percentileofscore(scores, fitted.score(hidden)))
            axis.set(xticks=[], yticks=[], title=f"{title}, {shape}")
            axis.set_xlabel(f"in the holes: above {rank:.0f} % of the plane")
    _save(plt, picture, path)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("pictures need matplotlib: pip install 'nnad[bench]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(plt: Any, picture: Any, path: Path) -> None:
    picture.savefig(path, dpi=_DPI, metadata={"Software": None})
    plt.close(picture)
