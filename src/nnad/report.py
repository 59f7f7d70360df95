"""Results as pictures, tables and files that people and programs can read."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageDraw, ImageFont

from nnad.errors import ImageError, InputError
from nnad.files import replacing
from nnad.image_files import EXTENSIONS
from nnad.images import read_image
from nnad.results import Result

CSV_COLUMNS = ("path", "score", "p_value", "is_anomaly", "nearest", "error")
_SIDE = 200  # pixels of a picture in a contact sheet
_MARGIN = 8
_CAPTION = 40
_RED, _GREEN, _INK = (200, 30, 30), (30, 140, 60), (30, 30, 30)


@contextmanager
def csv_writer(path: str) -> Iterator[Any]:
    """Yield a function that adds a result to a CSV file; `-` is standard output.

    The file appears, complete, when the block ends.
    """
    with ExitStack() as stack:
        _refuse_picture_name(path)
        if path == "-":
            text: IO[str] = sys.stdout
        else:
            file = stack.enter_context(_replacing(path))
            text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
            stack.callback(text.detach)
            stack.callback(text.flush)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)

        def add(result: Result) -> None:
            nearest = result.nearest[0].name if result.nearest else None
            flag = None if result.is_anomaly is None else int(result.is_anomaly)
            writer.writerow(
                [result.name, result.score, result.p_value, flag, nearest, result.error]
            )

        yield add


@contextmanager
def json_writer(path: str) -> Iterator[Any]:
    """Like `csv_writer`, as a JSON array with all neighbours and distances."""
    with ExitStack() as stack:
        _refuse_picture_name(path)
        if path == "-":
            out: IO[bytes] = sys.stdout.buffer
        else:
            out = stack.enter_context(_replacing(path))
        separator = b"[\n"

        def add(result: Any) -> None:  # a dataclass or a dict
            nonlocal separator
            told = result if isinstance(result, dict) else asdict(result)
            out.write(separator + json.dumps(told).encode())
            separator = b",\n"

        yield add
        out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")
        out.flush()


def _refuse_picture_name(path: str) -> None:
    if Path(path).suffix.lower() in EXTENSIONS:
        raise InputError(f"{path}: has the name of a picture; choose another for CSV or JSON")


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    target = Path(os.path.realpath(path))  # a link stays a link
    _check_place(target)
    try:
        if target.exists() and not target.is_file():  # a device or a pipe is written into
            with target.open("wb") as file:
                yield file
        else:
            with replacing(target) as file:
                yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _check_place(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: not a place where a file can be written")


def contact_sheet(results: Sequence[Result], path: str, *, most: int = 24) -> None:
    """Save a picture in which each image stands beside its nearest good image.

    Args:
        results: of images that are files; the highest scores come first.
        path: where to; its extension chooses the format (`.png`, `.jpg`, ...).
        most: how many pairs at the most.

    Raises:
        InputError: nothing to show, or the picture cannot be written there.
    """
    kind = check_picture(path)
    if os.path.realpath(path) in {os.path.realpath(r.name) for r in results}:
        raise InputError(f"{path}: is one of the scored pictures; choose another name")
    scored = [r for r in results if r.score is not None]
    shown = sorted(scored, key=lambda r: -(r.score or 0))[:most]
    if not shown:
        raise InputError("contact sheet: no scored image to show")
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    width, height = 2 * _SIDE + 3 * _MARGIN, _SIDE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * width, rows * height + _MARGIN), "white")
    for i, result in enumerate(shown):
        corner = (i % columns * width + _MARGIN, i // columns * height + _MARGIN)
        _draw_pair(sheet, corner, result)
    with _replacing(path) as file:
        sheet.save(file, format=kind)


def check_outputs(
    paths: Sequence[str], model: Path | None = None, inputs: Sequence[str] = ()
) -> None:
    """Raise an `InputError` if an output would destroy another, the model or an input."""
    given = {os.path.realpath(path) for path in inputs}
    real = [os.path.realpath(path) for path in paths]
    for path, place in zip(paths, real, strict=True):
        if not path:
            raise InputError("an output has an empty name")
        if real.count(place) > 1:
            raise InputError(f"{path}: two outputs cannot go to the same place")
        if place in given:
            raise InputError(f"{path}: is an input; choose another name")
        if model and Path(place).is_relative_to(os.path.realpath(model)):
            raise InputError(f"{path}: is in the model's own folder; choose another place")


def check_picture(path: str) -> str:
    """The format that the extension of `path` stands for.

    Raises:
        InputError: no such format, or no folder to write in.
    """
    Image.init()
    kind = Image.EXTENSION.get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path}: unknown kind of picture; use .png or .jpg")
    _check_place(Path(path))
    return str(kind)


def _draw_pair(sheet: Image.Image, corner: tuple[int, int], result: Result) -> None:
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    colour = _RED if result.is_anomaly else _GREEN
    nearest = result.nearest[0].name
    pair = ((result.name, colour), (nearest, _INK))
    for side, (name, ink) in enumerate(pair):
        left = x + side * (_SIDE + _MARGIN)
        sheet.paste(_thumbnail(name), (left, y))
        draw.rectangle((left - 2, y - 2, left + _SIDE + 1, y + _SIDE + 1), outline=ink, width=2)
    verdict = "anomaly" if result.is_anomaly else "good"
    left_lines = (f"{verdict}, p = {result.p_value:.2g}", _shorten(Path(result.name).name))
    right_lines = ("nearest good image", _shorten(Path(nearest).name))
    for side, lines in enumerate((left_lines, right_lines)):
        left = x + side * (_SIDE + _MARGIN)
        draw.text((left, y + _SIDE + 4), lines[0], fill=colour if side == 0 else _INK, font=font)
        draw.text((left, y + _SIDE + 20), lines[1], fill=_INK, font=font)


def _thumbnail(name: str) -> Image.Image:
    """The picture within a grey square, which says so if it is no file that can be read now."""
    square = Image.new("RGB", (_SIDE, _SIDE), (225, 225, 225))
    try:
        image = read_image(name)
    except ImageError:
        ImageDraw.Draw(square).text((50, 90), "file not found", _INK, ImageFont.load_default(14))
        return square
    image.thumbnail((_SIDE, _SIDE))
    square.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
    return square


def _shorten(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[:12]}…{name[-(length - 13) :]}"
