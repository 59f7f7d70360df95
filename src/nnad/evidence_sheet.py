"""Explanations as a picture: each image, its nearest good images, and where its score lies."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nnad.calibrate import Calibration
from nnad.errors import InputError, counted
from nnad.evidence import Explanation
from nnad.report import CAPTION, FONT, GREEN, INK, MARGIN, RED, SIDE, draw_captioned, save_picture

_NEAREST = 3
_WIDTH = (1 + _NEAREST) * (SIDE + MARGIN) + MARGIN
_LINE = 18  # pixels of a line of text
_BARS = 44  # height of the histogram
_BINS = 80
_STRIP = _LINE + _BARS + _LINE
_ROW = SIDE + CAPTION + MARGIN + _STRIP + 2 * MARGIN
_GREY = (150, 150, 150)
_LEGEND = (
    "Usual here: the distance of that good image, or patch, to its own nearest one.",
    "Grey bars: scores of the good images, each by others alone. Red dashes: the threshold.",
)
_TOP = len(_LEGEND) * _LINE + 2 * MARGIN


def evidence_sheet(
    explanations: Sequence[Explanation],
    calibration: Calibration,
    path: str,
    *,
    most: int = 24,
) -> None:
    """Save a picture with a row for each image, the highest scores first.

    A row shows the image and its 3 nearest good images, with their distances; in a model with
    patches, the image, its oddest place, the good patch that comes nearest to that, and the nearest
    good image. Below them the
    scores of the good images of its product as bars, the threshold and the image's score. The axis
    is the same in all rows. It reaches beyond the good scores and the threshold by as much again,
    on either side; a score further out is drawn at the edge, as an arrow.

    Args:
        explanations: of one detector under one budget; those of errors are left out.
        calibration: the detector's.
        path: where to; its extension chooses the format (`.png`, `.jpg`, ...).
        most: how many rows at the most.

    Raises:
        InputError: nothing to show, or the picture cannot be written there.
    """
    scored = [e for e in explanations if e.error is None]
    shown = sorted(scored, key=lambda e: -_score(e))[:most]
    if not shown:
        raise InputError("evidence: no scored image to show")
    axis = axis_of(calibration.good_scores, shown)
    sheet = Image.new("RGB", (_WIDTH, _TOP + len(shown) * _ROW), "white")
    for i, line in enumerate(_LEGEND):
        corner = (MARGIN, MARGIN // 2 + i * _LINE)
        ImageDraw.Draw(sheet).text(corner, line, fill=INK, font=FONT)
    for i, explanation in enumerate(shown):
        top = _TOP + i * _ROW
        _draw_row(sheet, top, explanation)
        product = calibration.product_names.index(explanation.product or "")
        good_scores = calibration.good_scores[calibration.of_product(product)]
        _draw_strip(sheet, top + SIDE + CAPTION + MARGIN, explanation, good_scores, axis)
    save_picture(sheet, path, [e.name for e in explanations])


def axis_of(
    good_scores: NDArray[np.float64], explanations: Sequence[Explanation]
) -> tuple[float, float]:
    """The lowest and highest score on the axis."""
    thresholds = [e.threshold for e in explanations if e.threshold is not None]
    low = min([float(good_scores.min()), *thresholds])
    high = max([float(good_scores.max()), *thresholds])
    room = (high - low) or abs(high) or 1.0
    scores = [_score(e) for e in explanations]
    return max(min(low, *scores), low - room), min(max(high, *scores), high + room)


def rank_of(explanation: Explanation) -> str:
    """How many good images score lower, in words."""
    e = explanation
    by = "by the models of the folds " if e.threshold is None else ""
    of_product = f" of {e.product}" if e.product else ""
    good = counted(e.good_images, "good image")
    return f"{by}higher than {e.higher_than} of {good}{of_product}"


def _score(explanation: Explanation) -> float:
    return explanation.score or 0.0


def _draw_row(sheet: Image.Image, y: int, explanation: Explanation) -> None:
    verdict = "ANOMALY" if explanation.is_anomaly else "good"
    colour = RED if explanation.is_anomaly else GREEN
    caption = f"{verdict}, p = {explanation.p_value:.3g}"
    patch = explanation.patch
    box = patch.box if patch else None
    draw_captioned(sheet, (MARGIN, y), explanation.name, caption, colour, box)
    if patch:
        column = SIDE + MARGIN
        caption = f"oddest place, {patch.score:.2g} (threshold 1)"
        corner = (MARGIN + column, y)
        draw_captioned(sheet, corner, explanation.name, caption, colour, box, crop=True)
        caption = f"{patch.distance:.3g} away (usual here {patch.usual:.3g})"
        corner = (MARGIN + 2 * column, y)
        draw_captioned(sheet, corner, patch.good_name, caption, INK, patch.good_box, crop=True)
    first = 2 if patch else 0
    for i, near in enumerate(explanation.nearest[: _NEAREST - first], first):
        corner = (MARGIN + (i + 1) * (SIDE + MARGIN), y)
        caption = f"{near.distance:.3g} away (usual here {near.usual:.3g})"
        draw_captioned(sheet, corner, near.name, caption, INK)


def _draw_strip(
    sheet: Image.Image,
    y: int,
    explanation: Explanation,
    good_scores: NDArray[np.float64],
    axis: tuple[float, float],
) -> None:
    """A line of text, the bars, and a line of numbers below the axis."""
    draw = ImageDraw.Draw(sheet)
    low, high = axis
    left, right = 2 * MARGIN, _WIDTH - 2 * MARGIN
    base = y + _LINE + _BARS  # the axis

    def place(score: float) -> int:
        share = (score - low) / (high - low) if high > low else 0.5
        return round(left + min(max(share, 0), 1) * (right - left))

    bars, edges = np.histogram(good_scores, bins=_BINS, range=(low, high))
    for count, start, stop in zip(bars, edges[:-1], edges[1:], strict=True):
        if count:
            tall = max(2, round(count / bars.max() * (_BARS - 2)))
            draw.rectangle((place(start), base - tall, place(stop) - 2, base), fill=_GREY)
    draw.line((left, base, right, base), fill=INK)

    taken = (0.0, 0.0)
    if explanation.threshold is not None:
        at = place(explanation.threshold)
        for dash in range(y + _LINE, base, 6):
            draw.line((at, dash, at, dash + 3), fill=RED)
        taken = _write(draw, f"threshold {explanation.threshold:.4g}", at, base + 2, RED)
    for score, end in ((low, left), (high, right)):
        text = f"{score:.4g}"
        half = FONT.getlength(text)
        if not taken[0] - MARGIN < min(end + half, right) or taken[1] + MARGIN < end - half:
            _write(draw, text, end, base + 2, INK)

    score = _score(explanation)
    colour = RED if explanation.is_anomaly else GREEN
    at = place(score)
    middle = y + _LINE + _BARS // 2
    if low <= score <= high:
        draw.line((at, y + _LINE, at, base), fill=colour, width=3)
        draw.polygon(
            [(at - 5, y + _LINE - 2), (at + 5, y + _LINE - 2), (at, y + _LINE + 6)], colour
        )
    else:
        back = 14 if score < low else -14
        draw.line((at + 4 * back, middle, at, middle), fill=colour, width=3)
        draw.polygon([(at, middle), (at + back, middle - 7), (at + back, middle + 7)], colour)
    told = f"score {score:.4g}, {rank_of(explanation)}"
    _write(draw, told, at, y, colour)


def _write(
    draw: ImageDraw.ImageDraw, text: str, at: int, y: int, colour: tuple[int, int, int]
) -> tuple[float, float]:
    """Text centred at a place, but within the sheet; its ends."""
    width = FONT.getlength(text)
    x = min(max(at - width / 2, MARGIN), _WIDTH - MARGIN - width)
    draw.text((x, y), text, fill=colour, font=FONT)
    return x, x + width
