"""What a cell depends on, as a key: equal keys mean equal scores.

The pictures and their labels, the network, the system with every number of its operator, the
protocol with its options, and `VERSION`.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnad.datasets import Dataset, Split
from nnad.images import Crop
from nnad.operators import make_operator, operator_name, settings
from nnad.reproduce.tables import ADAPTED, BASELINES, Cell, System

VERSION = 1  # raised when protocols or operators come to compute something else


def picture_key(split: Split, place: Path | None = None) -> str:
    """Of the pictures of a split: pixels in memory; or names, sizes and times of files; in hex.

    Args:
        split: the pictures.
        place: the folder that names are relative to.
    """
    found = hashlib.sha256()
    for name, source in zip(split.names, split.sources, strict=True):
        if isinstance(source, np.ndarray):
            found.update(source.tobytes())
            found.update(str(source.shape).encode())
        else:
            at = Path(source.path if isinstance(source, Crop) else str(source)).stat()
            told = os.path.relpath(name, place) if place else name
            found.update(f"{told}\0{at.st_size} {at.st_mtime_ns}\0".encode())
    return found.hexdigest()


def data_key(data: Dataset, place: Path) -> str:
    """Of both splits with their labels, in hex."""
    found = hashlib.sha256()
    for split in (data.train, data.test):
        found.update(picture_key(split, place).encode())
        found.update(np.asarray(split.labels, np.int64).tobytes())
    found.update(json.dumps([data.classes, list(map(int, data.good))]).encode())
    return found.hexdigest()


def learner_key(system: System, weights: str | None, preset: str) -> str:
    """Of what a system that learns starts from, in hex; empty for others."""
    told: list[str | None]
    if system.name in ADAPTED:
        is_file = weights is not None and Path(weights).is_file()
        content = (
            hashlib.sha256(Path(str(weights)).read_bytes()).hexdigest() if is_file else weights
        )
        told = [system.backbone, content, preset]
    elif system.name in BASELINES:
        told = [preset]
    else:
        return ""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def parameters(system: System) -> dict[str, Any]:
    """Every number of the operator of a system, those that nobody chose among them."""
    if system.operator is None:
        return {}
    operator = make_operator(system.operator, **system.arguments)
    return {"operator": operator_name(operator), **settings(operator)}


def cell_key(cell: Cell, data: str, network: str) -> str:
    """Of a cell, 16 hex digits.

    Args:
        cell: what is asked.
        data: its `data_key`; empty for points in the plane.
        network: the fingerprint of its backbone, or its `learner_key`.
    """
    told = {**asdict(cell), "label": "", "operator": parameters(cell.system)}
    text = json.dumps([VERSION, data, network, told], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
