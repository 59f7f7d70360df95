"""The geometric transforms that GEOM, GOAD and MHRot tell apart, applied batch by batch.

A transform is mirror, then shift, then rotation. Mirrors and rotations are permutations of pixels;
a shift moves the image and fills the gap with its reflection.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

SHIFTS = (0, -1, 1)
TURNS = (0, 1, 2, 3)


class Transform(NamedTuple):
    """One transform: `flip`, mirrored left to right; `across` and `down`, shifts in units of the
    family's step; `turn`, quarter turns anti-clockwise.
    """

    flip: bool
    across: int
    down: int
    turn: int


FAMILY_72 = tuple(Transform(*t) for t in product((False, True), SHIFTS, SHIFTS, TURNS))
FAMILY_36 = tuple(t for t in FAMILY_72 if not t.flip)


def apply(images: Tensor, transform: Transform, step: int, *, repeat_edge: bool = True) -> Tensor:
    """Square images (B, C, H, H) -> (B, C, H, H).

    Args:
        images: any type.
        transform: what to do.
        step: pixels of a shift.
        repeat_edge: whether the reflection begins with the pixel at the edge, `dcba|abcd`, as in
            GEOM's code, or with the next, `dcb|abcd`, as in MHRot's.
    """
    height, width = images.shape[2:]
    rows = _reflected(height, transform.down * step, repeat_edge)
    columns = _reflected(width, transform.across * step, repeat_edge)
    if transform.flip:
        columns = width - 1 - columns
    moved = images[:, :, rows[:, None].to(images.device), columns.to(images.device)]
    return torch.rot90(moved, transform.turn, (2, 3))


def apply_each(
    images: Tensor,
    numbers: Tensor,
    family: tuple[Transform, ...],
    step: int,
    *,
    repeat_edge: bool = True,
) -> Tensor:
    """Image i of (B, C, H, H) by the transform of the number (B,) i."""
    made = torch.empty_like(images)
    for number in set(numbers.tolist()):
        chosen = (numbers == number).to(images.device)
        made[chosen] = apply(images[chosen], family[number], step, repeat_edge=repeat_edge)
    return made


def _reflected(size: int, shift: int, repeat_edge: bool) -> Tensor:
    """For each of `size` places after a shift: the place before it (size,)."""
    places = torch.arange(size) - shift
    period = 2 * size if repeat_edge else 2 * size - 2
    places = places.remainder(max(period, 1))
    mirror = period - 1 - places if repeat_edge else period - places
    return torch.where(places < size, places, mirror)
