"""A review of a cleaning: a list for a person to decide in, and the way back from it.

    FOLDER/review.csv    a line for each image, the most suspicious first; its column `accept` is
                         for a person, in a spreadsheet: yes, no, or empty for what is proposed
    FOLDER/review.json   the same as it was proposed, and the options it was made with
    FOLDER/top.jpg       the most suspicious images, each beside its nearest one
    FOLDER/border.jpg    those on either side of the border between drop and keep

Paths are relative to the folder, so that folder and images can be moved together. No image is
changed or moved.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnad.clean import Cleaning
from nnad.errors import InputError
from nnad.files import replacing
from nnad.image_files import is_image
from nnad.report import GREEN, INK, RED, Card, pair_sheet, save_picture
from nnad.results import Result

COLUMNS = ("path", "rank", "score", "proposed", "nearest", "distance", "accept")
NETWORK = ("backbone", "geometry", "flips", "transform")  # options that a model needs, too
YES = ("yes", "y", "true", "1", "keep")
NO = ("no", "n", "false", "0", "drop")
_SHEETS = ("top.jpg", "border.jpg")
_PAIRS = 24  # on a sheet


@dataclass(frozen=True)
class Decided:
    """Images after a person's word, in the order of the review.

    Attributes:
        kept: paths.
        accepted, rejected: how many a person spoke for and against.
        unseen: how many are dropped that no person rejected.
        options: what the review was made with.
    """

    kept: tuple[str, ...]
    accepted: int
    rejected: int
    unseen: int
    options: dict[str, Any]


def write_review(
    folder: Path,
    names: Sequence[str],
    cleaning: Cleaning,
    options: dict[str, Any],
    skipped: Sequence[Result] = (),
) -> None:
    """Write a review into a folder that `check_review` allows; it is made if need be.

    Args:
        folder: where to.
        names: (N,) paths of the images.
        cleaning: what is proposed.
        options: of `NETWORK`, for the fit.
        skipped: images that could not be read.

    Raises:
        InputError: it cannot be written.
    """
    order = cleaning.order
    paths = [relative(name, folder) for name in names]
    rows = [
        {
            "path": paths[row],
            "rank": rank,
            "score": float(cleaning.scores[row]),
            "proposed": "keep" if cleaning.kept[row] else "drop",
            "nearest": paths[cleaning.nearest[row]],
            "distance": float(cleaning.distances[row]),
        }
        for rank, row in enumerate(order.tolist(), start=1)
    ]
    told = {
        "options": options,
        "rounds": cleaning.rounds,
        "images": rows,
        "unreadable": [{"path": relative(r.name, folder), "error": str(r.error)} for r in skipped],
    }
    border = int((~cleaning.kept).sum())  # the dropped come first
    try:
        folder.mkdir(exist_ok=True)
        for sheet, first in zip(_SHEETS, (0, max(0, border - _PAIRS // 2)), strict=True):
            pairs = []
            for place, row in enumerate(order[first : first + _PAIRS].tolist(), start=first):
                proposed, colour = ("drop", RED) if place < border else ("keep", GREEN)
                caption = f"{place + 1}: {proposed}, score {cleaning.scores[row]:.3g}"
                near = f"its nearest, at {cleaning.distances[row]:.3g}"
                right = Card(names[cleaning.nearest[row]], near, INK)
                pairs.append((Card(names[row], caption, colour), right))
            save_picture(pair_sheet(pairs), os.fspath(folder / sheet), names)
        with replacing(folder / "review.json") as file:
            file.write(json.dumps(told, indent=1).encode())
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    write_list(folder / "review.csv", COLUMNS, rows)


def check_review(folder: Path, images: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Raise an `InputError` if a review may not be written to `folder`.

    Its pictures must not come among others: neither in a folder that holds some, nor in one of
    `images`, which the next cleaning would search.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file is in the way; a review is a folder")
    if not folder.exists() and not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist")
    if any(Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(i)) for i in images):
        raise InputError(f"{folder}: is in a folder of images; choose another place")
    present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    ours = _SHEETS if "review.json" in present else ()
    if strangers := [n for n in present if is_image(n) and n not in ours]:
        raise InputError(f"{folder}: holds other pictures ({min(strangers)}); choose another place")
    if "review.csv" in present and not overwrite:
        raise InputError(
            f"{folder}: holds a review, perhaps with decisions; pass --overwrite to replace it"
        )


def relative(path: str, folder: Path) -> str:
    """A path as a list in `folder` names it."""
    return os.path.relpath(Path(path).absolute(), os.path.realpath(folder))


def write_list(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV file; one with a column `path` is a list that `nnad fit` takes.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            text.detach()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_decisions(path: Path) -> Decided:
    """Apply what a person wrote into `review.csv` to what was proposed.

    Lines may be in any order, and separated by `;` or tabs as some spreadsheets do.

    Args:
        path: the list, in the folder of its review.

    Raises:
        InputError: there is no review, it is damaged, or the list names an image that the review
            does not, names one twice or not at all, or has a word that is neither yes nor no.
    """
    options, proposed = _read_proposals(path.parent / "review.json")
    accept: dict[str, str] = {}
    for row, place in _lines(path):
        name, word = row["path"] or "", (row["accept"] or "").strip().lower()
        if name not in proposed:
            raise InputError(f"{place}: {name!r} is not in this review; nothing was fitted")
        if name in accept:
            raise InputError(f"{place}: {name!r} is in this list already")
        if word not in ("", *YES, *NO):
            raise InputError(f"{place}: accept is {word!r}; write yes, no, or nothing")
        accept[name] = word
    if missing := [name for name in proposed if name not in accept]:
        raise InputError(
            f"{path}: {len(missing)} of {len(proposed)} images of the review are missing, for "
            f"example {missing[0]!r}; to leave an image out, keep its line and write no"
        )
    kept = [n for n, was in proposed.items() if accept[n] in YES or (not accept[n] and was)]
    dropped = [name for name in proposed if name not in set(kept)]
    return Decided(
        kept=tuple(_found(name, path.parent) for name in kept),
        accepted=sum(word in YES for word in accept.values()),
        rejected=sum(word in NO for word in accept.values()),
        unseen=sum(not accept[name] for name in dropped),
        options=options,
    )


def _found(path: str, folder: Path) -> str:
    """Where a list in `folder` says an image is, relative to the current folder if below it."""
    place = os.path.normpath(Path(os.path.realpath(folder), path))
    here = f"{Path.cwd()}{os.sep}"
    return place.removeprefix(here)


def _read_proposals(path: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    """Options, and for each path whether it was proposed to keep it."""
    try:
        told = json.loads(path.read_bytes())
        proposed = {str(row["path"]): row["proposed"] == "keep" for row in told["images"]}
        return {name: told["options"][name] for name in NETWORK}, proposed
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; the list of decisions must stay beside it"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: damaged, or not nnad's: {error!r}"[:300]) from None


def _lines(path: Path) -> list[tuple[dict[str, str], str]]:
    """The lines of a list and where each is, for errors."""
    try:  # file names need not be UTF-8, and keep their bytes
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        lines = [(row, f"{path}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file: {error}") from None
    for column in ("path", "accept"):
        if column not in (reader.fieldnames or ()):
            raise InputError(f"{path}, line 1: no column `{column}`")
    return lines
