"""Results as pictures, tables and files that people and programs can read."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from nnad.anomaly_maps import Box
from nnad.errors import ImageError, InputError
from nnad.files import replacing
from nnad.image_files import EXTENSIONS
from nnad.images import read_image
from nnad.results import GroupResult, Result

CSV_COLUMNS = ("path", "score", "p_value", "is_anomaly", "nearest", "error")
REGION_COLUMNS = (*CSV_COLUMNS, "regions")
GROUP_COLUMNS = ("group", *CSV_COLUMNS[1:], "members", "oddest_member")
SIDE = 200  # pixels of a picture in a contact sheet
MARGIN = 8
CAPTION = 40
RED, GREEN, INK = (200, 30, 30), (30, 140, 60), (30, 30, 30)
FONT = ImageFont.load_default(13)
Colour = tuple[int, int, int]


class Card(NamedTuple):
    """A picture on a sheet: its file, a caption, and the colour of caption and frame."""

    name: str
    caption: str
    colour: Colour


@contextmanager
def csv_writer(path: str, columns: Sequence[str] = CSV_COLUMNS) -> Iterator[Any]:
    """Yield a function that adds a result to a CSV file; `-` is standard output.

    With `GROUP_COLUMNS` results of groups are added. With `REGION_COLUMNS` the regions are told, as
    `left top right bottom` in pixels, the highest peak first, separated by semicolons.

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
        writer.writerow(columns)

        def add(result: Result | GroupResult) -> None:
            nearest = result.nearest[0].name if result.nearest else None
            flag = None if result.is_anomaly is None else int(result.is_anomaly)
            row = [result.name, result.score, result.p_value, flag, nearest, result.error]
            if isinstance(result, GroupResult):
                row += [len(result.members), result.oddest.name if result.oddest else None]
            elif columns == REGION_COLUMNS:
                row.append("; ".join(" ".join(map(str, r.box)) for r in result.regions))
            writer.writerow(row)

        yield add


@contextmanager
def json_writer(path: str) -> Iterator[Any]:
    """Like `csv_writer`, as a JSON array with all neighbours and distances."""
    with _json_file(path) as out:
        separator = b"[\n"

        def add(result: Any) -> None:  # a dataclass or a dict
            nonlocal separator
            told = result if isinstance(result, dict) else asdict(result)
            out.write(separator + json.dumps(told).encode())
            separator = b",\n"

        yield add
        out.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def write_json(path: str, told: Any) -> None:
    """Write a dataclass as a JSON object; `-` is standard output."""
    with _json_file(path) as out:
        out.write(json.dumps(asdict(told), indent=1).encode() + b"\n")


@contextmanager
def _json_file(path: str) -> Iterator[IO[bytes]]:
    _refuse_picture_name(path)
    with nullcontext(sys.stdout.buffer) if path == "-" else _replacing(path) as out:
        yield out
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
    scored = [r for r in results if r.score is not None]
    shown = sorted(scored, key=lambda r: -(r.score or 0))[:most]
    if not shown:
        raise InputError("contact sheet: no scored image to show")
    pairs = []
    for r in shown:
        verdict, colour = ("anomaly", RED) if r.is_anomaly else ("good", GREEN)
        left = Card(r.name, f"{verdict}, p = {r.p_value:.2g}", colour)
        pairs.append((left, Card(r.nearest[0].name, "nearest good image", INK)))
    save_picture(pair_sheet(pairs), path, [r.name for r in results])


def pair_sheet(pairs: Sequence[tuple[Card, Card]]) -> Image.Image:
    """A picture of pairs, four in a row; at least one."""
    columns = min(len(pairs), 4)
    rows = -(-len(pairs) // columns)
    width, height = 2 * SIDE + 3 * MARGIN, SIDE + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * width, rows * height + MARGIN), "white")
    for i, (left, right) in enumerate(pairs):
        x, y = i % columns * width + MARGIN, i // columns * height + MARGIN
        draw_captioned(sheet, (x, y), *left)
        draw_captioned(sheet, (x + SIDE + MARGIN, y), *right)
    return sheet


def save_picture(picture: Image.Image, path: str, scored: Sequence[str]) -> None:
    """Save a picture of results; an `InputError` if it would go over one of the scored files."""
    kind = check_picture(path)
    if os.path.realpath(path) in {os.path.realpath(name) for name in scored}:
        raise InputError(f"{path}: is one of the scored pictures; choose another name")
    with _replacing(path) as file:
        picture.save(file, format=kind)


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


def draw_captioned(
    sheet: Image.Image,
    corner: tuple[int, int],
    name: str,
    caption: str,
    colour: Colour,
    box: Box | None = None,
    *,
    crop: bool = False,
) -> None:
    """A framed picture of SIDE x SIDE pixels; below it the caption and the file's name.

    With a box, in pixels, it is marked; with `crop` only what is around it is shown.
    """
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    sheet.paste(_thumbnail(name, box, crop), (x, y))
    draw.rectangle((x - 2, y - 2, x + SIDE + 1, y + SIDE + 1), outline=colour, width=2)
    draw.text((x, y + SIDE + 4), caption, fill=colour, font=FONT)
    draw.text((x, y + SIDE + 20), _shortened(Path(name).name), fill=INK, font=FONT)


def _thumbnail(name: str, box: Box | None = None, crop: bool = False) -> Image.Image:
    """The picture within a grey square, which says so if it is no file that can be read now."""
    square = Image.new("RGB", (SIDE, SIDE), (225, 225, 225))
    try:
        image = read_image(name)
    except ImageError:
        ImageDraw.Draw(square).text((50, 90), "file not found", INK, ImageFont.load_default(14))
        return square
    part = _around(box, image.size) if box and crop else (0, 0, *image.size)
    shown = image.crop(part)
    if crop:
        shown = ImageOps.contain(shown, (SIDE, SIDE))
    shown.thumbnail((SIDE, SIDE))
    left, top = (SIDE - shown.width) // 2, (SIDE - shown.height) // 2
    square.paste(shown, (left, top))
    if box:
        scale = shown.width / (part[2] - part[0])
        x, y = left - part[0] * scale, top - part[1] * scale
        marked = [at * scale + (y if i % 2 else x) for i, at in enumerate(box)]
        ImageDraw.Draw(square).rectangle(marked, outline=RED, width=2)
    return square


def _around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square of three times the box's side around its middle, moved into the image."""
    side = 3 * max(box[2] - box[0], box[3] - box[1])
    starts, stops = [], []
    for start, stop, length in zip(box[:2], box[2:], size, strict=True):
        wide = round(min(side, length))
        first = min(max(round((start + stop - wide) / 2), 0), length - wide)
        starts.append(first)
        stops.append(first + wide)
    return starts[0], starts[1], stops[0], stops[1]


def _shortened(name: str) -> str:
    """The name as wide as a picture, its middle left out if it is longer."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    told, kept = name, len(name)
    while FONT.getlength(told) > SIDE:
        kept -= 1
        told = f"{name[: kept // 2]}…{name[len(name) - kept + kept // 2 :]}"
    return told
