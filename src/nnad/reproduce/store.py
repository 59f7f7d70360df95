"""All cells that were computed: one CSV file with a row each, and the scores they rest on.

A row is added when its scores are written. After a kill the file may end in half a row, which is
cut off when it is opened again; a cell whose scores are missing or damaged is computed again.
"""

import csv
import io
import json
import subprocess
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from nnad import __version__
from nnad.errors import InputError
from nnad.files import replacing
from nnad.reproduce.compute import Computed
from nnad.reproduce.keys import parameters
from nnad.reproduce.statistics import Scored, auroc
from nnad.reproduce.tables import Cell

COLUMNS = (
    "data",
    "files",
    "protocol",
    "class",
    "system",
    "backbone",
    "network",
    "transform",
    "operator",
    "parameters",
    "auroc",
    "seconds",
    "memory_mb",
    "commit",
    "date",
    "key",
)


class Store:
    """The cells in a folder.

    Args:
        folder: made if it is not there.

    Raises:
        InputError: `cells.csv` there is another file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cells.csv"
        self._scores = folder / "scores"
        self._scores.mkdir(parents=True, exist_ok=True)
        self._commits: dict[str, str] = {}  # of each key
        if self.path.exists():
            self._open()
        else:
            self._append(COLUMNS)

    def _open(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = list(csv.reader(io.StringIO(whole.decode("utf-8", "replace"), newline="")))
        if not rows:
            whole = b""
        elif tuple(rows[0]) != COLUMNS:
            raise InputError(f"{self.path}: no table of nnad reproduce; choose another --out")
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        if not rows:
            self._append(COLUMNS)
        self._commits = {row[-1]: row[COLUMNS.index("commit")] for row in rows[1:]}

    def commits(self, keys: Collection[str]) -> list[str]:
        """Of the program that computed these cells."""
        return sorted({self._commits[key] for key in keys})

    def scored(self, key: str) -> Scored | None:
        """The scores of a cell, if it was computed."""
        if key not in self._commits:
            return None
        try:
            with (self._scores / f"{key}.npz").open("rb") as file, np.load(file) as found:
                return Scored(
                    str(found["space"]), found["items"], found["is_anomaly"], found["scores"]
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def add(self, cell: Cell, computed: Computed, files: str, network: str) -> None:
        """Keep a cell.

        Args:
            cell: what was asked.
            computed: with scores.
            files, network: what its data and its network were, in hex.
        """
        scored = computed.scored
        assert scored is not None  # noqa: S101 (the caller's part)
        arrays = {**scored._asdict(), "space": np.array(scored.space)}
        np.savez(self._scores / f"{computed.key}.npz", **arrays)
        system = cell.system
        told = {"pooling": system.pooling, "clean": system.clean or None}
        given = {
            **cell.options,
            **parameters(system),
            **{name: value for name, value in told.items() if value is not None},
        }
        row = {
            "data": cell.data,
            "files": files[:8],
            "protocol": cell.protocol,
            "class": cell.label,
            "system": system.name,
            "backbone": system.backbone or "",
            "network": network[:8],
            "transform": system.transform,
            "operator": system.operator or "",
            "parameters": json.dumps(given),
            "auroc": f"{auroc(scored):.6f}",
            "seconds": f"{computed.seconds:.3f}",
            "memory_mb": f"{computed.memory_mb:.0f}",
            "commit": commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "key": computed.key,
        }
        if computed.key in self._commits:  # its scores were damaged
            self._drop(computed.key)
        self._append([row[name] for name in COLUMNS])
        self._commits[computed.key] = commit()

    def _drop(self, key: str) -> None:
        """Take the row of a cell away."""
        rows = self.path.read_bytes().splitlines(keepends=True)
        with replacing(self.path) as file:
            file.write(b"".join(row for row in rows if not row.endswith(f",{key}\n".encode())))

    def _append(self, row: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(row)
        with self.path.open("ab") as file:
            file.write(text.getvalue().encode())


@cache
def commit() -> str:
    """The commit of this source tree, `-dirty` if files have changed; else nnad's version."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return f"nnad {__version__}"
    run = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(run, capture_output=True, text=True, cwd=root, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return f"nnad {__version__}"
    return done.stdout.strip()
