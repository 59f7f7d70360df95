"""Writing models: one writer at a time, in one step; see `model_file` for what is written."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from nnad.errors import ModelError
from nnad.files import replacing
from nnad.history import Segment
from nnad.model_file import FORMAT, MAX_MANIFEST, OURS, SCHEMA, Saved, checksum, read_manifest

_PATIENCE = 60  # seconds that a writer waits for another
_PASSING = re.compile(r"\.lock|\..*\.tmp")


def check_writable(folder: Path, *, overwrite: bool = False) -> None:
    """Raise a `ModelError` if a model may not be written to `folder`."""
    if not folder.parent.is_dir():
        raise ModelError(f"{folder}: the folder {folder.parent} does not exist")
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder}: a file is in the way; a model is a folder")
    if not folder.exists():
        return
    if (folder / "manifest.json").exists():
        if not _is_manifest(folder / "manifest.json"):
            raise ModelError(f"{folder}: its manifest.json is not nnad's; choose another folder")
        if not overwrite:
            raise ModelError(
                f"{folder}: holds a model already; pass overwrite (--overwrite) to replace it"
            )
    elif strangers := [p.name for p in folder.iterdir() if not _is_ours(p.name)]:
        raise ModelError(f"{folder}: holds other files ({strangers[0]}); choose another folder")


def _is_ours(name: str) -> bool:
    return bool(OURS.fullmatch(name) or _PASSING.fullmatch(name))


def _is_manifest(path: Path) -> bool:
    return path.is_file() and FORMAT.encode() in path.read_bytes()[:200]


def write_model(folder: Path, saved: Saved, *, overwrite: bool = False) -> None:
    """Write a model in one step.

    Raises:
        ModelError: `folder` holds a model and `overwrite` is false, holds other files, is being
            written by another process, or the disk refuses.
    """
    with _told(folder):
        check_writable(folder, overwrite=overwrite)
        folder.mkdir(exist_ok=True)
    with locked(folder):
        check_writable(folder, overwrite=overwrite)
        replace_model(folder, saved)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other writers of a model out; readers need no lock.

    Raises:
        ModelError: another process has been writing for a minute, or there is no such folder.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model; nnad fit makes one")
    # whoever may write the folder may lock it, whoever made the lock
    lock = FileLock(folder / ".lock", timeout=_PATIENCE, mode=0o666)
    try:
        with _told(folder):
            lock.acquire()
    except Timeout:
        busy = "another process has been writing it for a minute; try again"
        raise ModelError(f"{folder}: {busy}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise ModelError(f"{folder}: cannot write the model: {error.strerror or error}") from error


def replace_model(folder: Path, saved: Saved) -> None:
    """Write a model over the one that is there, under its lock.

    Raises:
        ModelError: the disk refuses; the old model is still there.
    """
    with _told(folder):
        _write(folder, saved)


def _write(folder: Path, saved: Saved) -> None:
    def put(kind: str, suffix: str, content: bytes) -> str:
        name = f"{kind}-{hashlib.sha256(content).hexdigest()}.{suffix}"
        if not _holds(folder / name, content):
            with replacing(folder / name) as file:
                file.write(content)
        return name

    def put_segment(segment: Segment) -> str:
        if segment.file and segment.file.parent == folder.resolve() and segment.file.is_file():
            return segment.file.name
        names = {"names": json.dumps(segment.names)}
        return put("bank", "safetensors", _packed({"features": segment.features}, names))

    history, known = saved.history, saved.known
    state: dict[str, NDArray[Any]] = {
        "good_scores": known.calibration.good_scores,
        "graph_rows": known.graph.rows.astype(np.int32),
        "graph_sq_dists": known.graph.sq_dists,
    }
    if known.products is not None and known.calibration.products is not None:
        state["categories"] = known.calibration.products
        state["products"] = known.products
    log = json.dumps([asdict(change) for change in history.changes], indent=1).encode()
    content: dict[str, Any] = {
        "settings": saved.settings,
        "encoder": [put("encoder", "onnx", encoder) for encoder in saved.encoders],
        "bank": [put_segment(segment) for segment in history.segments],
        "state": put("state", "safetensors", _packed(state)),
        "log": put("log", "json", log),
        "operator": [put("operator", "safetensors", _packed(known.operator_state))]
        if known.operator_state
        else [],
        "patches": saved.patches
        and {
            "encoder": [put("encoder", "onnx", network) for network in saved.patches.networks],
            "bank": put("patches", "safetensors", _packed(saved.patches.arrays)),
        },
    }
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "checksum": checksum(content),
        "content": content,
    }
    written = json.dumps(manifest, indent=1).encode()
    if len(written) > MAX_MANIFEST:  # it could never be read again
        raise ModelError(f"{folder}: the mask or the backbone's probe is too large to be saved")
    with replacing(folder / "manifest.json") as file:
        file.write(written)

    kept = {content["state"], content["log"]}
    kept.update(content["encoder"], content["bank"], content["operator"])
    if content["patches"]:
        kept.update(content["patches"]["encoder"], [content["patches"]["bank"]])
    for path in folder.iterdir():  # what an older model or a killed process left
        if path.name not in kept and (OURS.fullmatch(path.name) or path.suffix == ".tmp"):
            path.unlink(missing_ok=True)


def _packed(arrays: dict[str, NDArray[Any]], metadata: dict[str, str] | None = None) -> bytes:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(safetensors.numpy.save(contiguous, metadata=metadata))


def _holds(path: Path, content: bytes) -> bool:
    """Whether the file is there, whole."""
    is_there = path.is_file() and path.stat().st_size == len(content)
    return is_there and path.read_bytes() == content


def version(folder: Path) -> str:
    """What changes whenever the model does.

    Raises:
        ModelError: see `read_model`.
    """
    return checksum(read_manifest(folder))
