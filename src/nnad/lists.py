"""Lists of images, as CSV with a header or as JSON.

CSV: a column `path`, and, where wanted, `label`, `split`, `mask` and `group`. JSON: a list of
objects with the same keys, or of paths alone. Paths are relative to the folder of the list.
"""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnad.errors import DatasetError

LIST_SUFFIXES = (".csv", ".json")
GOOD_NAMES = ("good", "normal")  # classes with these names are good, in any case of letters


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a list; all but `path` are empty when the list does not tell."""

    path: str
    label: str
    split: str
    mask: str
    group: str
    place: str  # "list.csv, line 3", for errors


def read_list(path: str) -> list[Entry]:
    """Read a list of images.

    Args:
        path: a file whose name ends in `.csv` or `.json`.

    Raises:
        DatasetError: it cannot be read, has no paths, or a line is malformed; told with its number.
    """
    parse = _json_rows if path.lower().endswith(".json") else _csv_rows
    try:  # file names need not be UTF-8, and keep their bytes
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = parse(file, path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except csv.Error as error:
        raise DatasetError(f"{path}: not a CSV file: {error}") from None
    if not rows:
        raise DatasetError(f"{path}: this list names no images")
    return [_entry(row, place, Path(path).parent) for row, place in rows]


def _csv_rows(file: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    reader = csv.DictReader(file, skipinitialspace=True)
    if "path" not in (reader.fieldnames or ()):
        found = ascii(",".join(reader.fieldnames or ()))[:200]
        raise DatasetError(f"{path}, line 1: no column `path`; the header is {found}")
    return [(row, f"{path}, line {reader.line_num}") for row in reader]


def _json_rows(file: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    try:
        content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, list):
        raise DatasetError(f"{path}: not a list but a {type(content).__name__}")
    rows = [({"path": row} if isinstance(row, str) else row) for row in content]
    places = [f"{path}, entry {i}" for i in range(1, len(rows) + 1)]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise DatasetError(f"{place}: neither a path nor an object with a `path`")
    return list(zip(rows, places, strict=True))


def _entry(row: dict[str, Any], place: str, folder: Path) -> Entry:
    if None in row:
        raise DatasetError(f"{place}: more fields than the header has names")
    told = {key: row.get(key) or "" for key in ("path", "label", "split", "mask", "group")}
    wrong = [key for key, value in told.items() if not isinstance(value, str)]
    if wrong:
        raise DatasetError(f"{place}: `{wrong[0]}` is not a text")
    if not told["path"]:
        raise DatasetError(f"{place}: `path` is empty")
    if any("\0" in value for value in told.values()):
        raise DatasetError(f"{place}: a NUL character is in it")
    for key in ("path", "mask"):
        told[key] = told[key] and os.fspath(folder / told[key])
    return Entry(**told, place=place)
