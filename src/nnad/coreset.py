"""Few patches that stand for many: the greedy k-centre coreset of PatchCore, exactly and fast.

The next centre is always the patch farthest from all centres so far (Roth et al., CVPR 2022,
algorithm 1; Sener and Savarese, ICLR 2018), the first one the patch nearest to the mean, ties go to
the lower row. The plain loop measures every patch against every centre. Here distances are put off:

- A patch's distance to the centres that it was measured against bounds its distance to all. Patches
  below a level tau cannot be the farthest while another is above, so they wait.
- Those above tau, a few hundred, are measured against each new centre.
- When none is left above tau, tau is lowered, and patches above the new one make up for what they
  missed, in blocks of centres, only until one brings them below tau.

Vectors are first rounded to whole numbers, so small that float32 products of them are exact: the
choice does not depend on the order of sums, and equals that of the plain loop on the rounded ones.
The longest vector has 2,047 steps, so one that is thousands of times longer than all others makes
these equal; `coreset` warns.
"""

import time
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nnad.cores import in_parallel, usable_cores
from nnad.errors import ImageWarning, InputError
from nnad.neighbors import checked_features
from nnad.patch_features import random_projection
from nnad.progress import track

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

PROJECTION = 48  # dimensions in which distances are taken
_LONGEST = 2047  # of a vector: squared distances stay below 2^24, which float32 holds exactly
_FAR = 100  # times the middle length: the middle one has fewer than 21 steps left
_SHRINK = 0.95  # tau is this part of the largest squared distance
_CENTRES, _PATCHES = 256, 2048  # in one product


class Estimate(NamedTuple):
    """What a coreset will cost, about."""

    seconds: float
    megabytes: float

    def __str__(self) -> str:
        return f"about {max(self.seconds, 1):.0f} s and {max(self.megabytes, 1):.0f} MB"


def coreset(
    patches: NDArray[Any],
    n_rows: int,
    *,
    projection: int | None = PROJECTION,
    seed: int = 0,
    progress: bool = False,
) -> Rows:
    """Choose patches by the greedy k-centre rule.

    Args:
        patches: (N, D) float32.
        n_rows: how many to choose, see `budget`.
        projection: dimensions of the seeded random projection in which distances are taken; None
            takes them as they are.
        seed: of the projection.
        progress: show a bar on a terminal, and beside it what it will cost, see `estimate`.

    Returns:
        (n_rows,) rows in the order of their choice; fewer, with an `ImageWarning`, if all others
        are copies of them when rounded.

    Raises:
        InputError: n_rows is not within 1..N, or a value is not finite.
    """
    patches = checked_features(patches, "patches")
    if not 1 <= n_rows <= len(patches):
        raise InputError(f"n_rows={n_rows}: there are {len(patches)} patches to choose from")
    with threadpool_limits(1):
        if projection is not None and projection < patches.shape[1]:
            patches = patches @ random_projection(patches.shape[1], projection, seed)
        told = f": {estimate(len(patches), n_rows, patches.shape[1])}" if progress else ""
        search = _Search(_whole_numbers(patches), n_rows)
        chosen = np.empty(n_rows, dtype=np.int64)
        farthest = int(search.sq_norms.argmin())  # they are centred: nearest to the mean
        for n in track(range(n_rows), n_rows, f"coreset{told}", show=progress, unit="patches"):
            chosen[n] = farthest
            distance, farthest = search.add(farthest)
            if distance == 0 and n + 1 < n_rows:
                warnings.warn(_too_few(n + 1, n_rows, search.sq_norms), ImageWarning, stacklevel=2)
                return chosen[: n + 1]
    return chosen


def _too_few(n_chosen: int, n_rows: int, sq_norms: Vectors) -> str:
    """A warning, with the likely cause."""
    middle, longest = np.sqrt(np.median(sq_norms)), np.sqrt(sq_norms.max())
    cause = "the other patches are copies of these"
    if middle < longest / _FAR:
        cause = (
            f"one patch is over {_FAR} times as far from the mean as most, and beside it these "
            f"look the same. Look for a damaged image, or whiten the patches"
        )
    return f"coreset: {n_chosen} rows instead of {n_rows}; {cause}"


def budget(
    n_patches: int,
    dim: int,
    *,
    share: float | None = None,
    rows: int | None = None,
    megabytes: float | None = None,
) -> int:
    """Rows that a coreset may have: the least that is allowed by what is given, at least 1.

    Args:
        n_patches, dim: N and D of the patches, which are stored as float32.
        share: a fraction of the patches.
        rows: a number of them.
        megabytes: their size in 10^6 bytes.

    Raises:
        InputError: a value is not above 0.
    """
    for name, value in (("share", share), ("rows", rows), ("megabytes", megabytes)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{name}={value!r}; expected a number above 0")
    allowed = [
        n_patches,
        n_patches if share is None else round(share * n_patches),
        n_patches if rows is None else rows,
        n_patches if megabytes is None else int(megabytes * 1e6 / (4 * dim)),
    ]
    return max(1, min(allowed))


def estimate(n_patches: int, n_rows: int, dim: int = PROJECTION) -> Estimate:
    """What `coreset` will need beside the patches, from a product that is timed here (10 ms).

    Args:
        n_patches, n_rows: N and how many are chosen.
        dim: in which distances are taken.
    """
    rng = np.random.default_rng(0)
    points, centres = (rng.random((n, dim), np.float32) for n in (_PATCHES, _CENTRES))
    with threadpool_limits(1):
        _nearest_sq_dists(points, centres, centres[:, 0])
        start = time.perf_counter()
        _nearest_sq_dists(points, centres, centres[:, 0])
        pair = (time.perf_counter() - start) / (_PATCHES * _CENTRES * usable_cores())
    # Measured: three to five of ten pairs are evaluated, and a centre takes 50 us more.
    seconds = 0.5 * pair * n_patches * n_rows + 5e-5 * n_rows
    blocks = usable_cores() * _PATCHES * (_CENTRES + dim) * 4
    return Estimate(seconds, (n_patches * (8 * dim + 20) + n_rows * (4 * dim + 12) + blocks) / 1e6)


class _Search:
    """Which vector is farthest from all centres so far.

    Attributes:
        vectors: (N, D) whole numbers.
        sq_norms: (N,).
        centres, offsets: (K, D) -2 x the centres, and (K,) their squared lengths.
        bounds: (N,) squared distance to the nearest of the centres each has been measured against.
        seen: (N,) how many of them, in their order. Of those not active, `bounds` is below tau.
        active: the rows that are measured against every centre, of which these are copies:
        near: (A, D) vectors, (A,) their squared norms, (A,) their bounds.
    """

    def __init__(self, vectors: Vectors, n_centres: int) -> None:
        self.vectors = vectors
        self.sq_norms = np.square(vectors).sum(axis=1)
        self.centres = np.empty((n_centres, vectors.shape[1]), np.float32)
        self.offsets = np.empty(n_centres, np.float32)
        self.count = 0
        self.bounds = np.full(len(vectors), np.inf, np.float32)
        self.seen = np.zeros(len(vectors), np.int64)
        self.tau = np.float32(np.inf)
        self._activate(np.empty(0, np.int64))

    def add(self, row: int) -> tuple[float, int]:
        """Add a centre; return the largest squared distance to the nearest centre, and its row."""
        self.centres[self.count] = -2 * self.vectors[row]
        self.offsets[self.count] = self.sq_norms[row]
        self.count += 1
        vectors, sq_norms, bounds = self.near
        sq_dists = vectors @ self.centres[self.count - 1]
        sq_dists += sq_norms
        sq_dists += self.offsets[self.count - 1]
        np.minimum(bounds, sq_dists, out=bounds)
        if not len(bounds) or bounds.max() < self.tau:
            self._lower()
        bounds = self.near[2]
        top = int(bounds.argmax())  # active rows are in order: the lowest of ties
        return float(bounds[top]), int(self.active[top])

    def _lower(self) -> None:
        """Lower tau until a row that has been measured against all centres is above it."""
        self.bounds[self.active] = self.near[2]
        self.seen[self.active] = self.count
        above = self.active[:0]
        while not len(above):
            largest = self.bounds.max()
            self.tau = largest * np.float32(_SHRINK) if np.isfinite(largest) else np.float32(np.inf)
            rows = np.flatnonzero(self.bounds >= self.tau)
            parts = [rows[i : i + _PATCHES] for i in range(0, len(rows), _PATCHES)]
            in_parallel(self._measure, parts)
            above = rows[self.bounds[rows] >= self.tau]
        self._activate(above)

    def _measure(self, rows: Rows) -> None:
        """Measure rows against the centres that they missed, until they fall below tau."""
        first = int(self.seen[rows].min()) // _CENTRES * _CENTRES
        for start in range(first, self.count, _CENTRES):
            stop = min(start + _CENTRES, self.count)
            late = rows[self.seen[rows] < stop]
            block = slice(start, stop)
            nearest = _nearest_sq_dists(
                self.vectors[late], self.centres[block], self.offsets[block]
            )
            self.bounds[late] = np.minimum(self.bounds[late], nearest + self.sq_norms[late])
            self.seen[late] = stop
            rows = rows[self.bounds[rows] >= self.tau]

    def _activate(self, rows: Rows) -> None:
        self.active = rows
        self.near = self.vectors[rows], self.sq_norms[rows], self.bounds[rows]


def _nearest_sq_dists(vectors: Vectors, centres: Vectors, offsets: Vectors) -> Vectors:
    """(P, D), -2 x (K, D), (K,) -> (P,) the least of |c|^2 - 2 c.x."""
    products = centres @ vectors.T  # (K, P)
    products += offsets[:, None]
    return np.asarray(products.min(axis=0))


def _whole_numbers(vectors: NDArray[Any]) -> Vectors:
    """Centre the vectors (N, D), and scale them so that the longest has 2,047; then round."""
    vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    longest = float(np.sqrt(np.square(vectors).sum(axis=1).max())) or 1.0
    vectors *= np.float32((_LONGEST - np.sqrt(vectors.shape[1]) / 2) / longest)
    return np.asarray(np.rint(vectors, out=vectors))
