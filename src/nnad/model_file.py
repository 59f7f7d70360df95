"""A model on disk: a folder of immutable, hash-named files and one manifest that names them.

    M/manifest.json                        what the model is, and the hash of every file below
    M/encoder-<hash>.onnx                  the backbone's network, so no other download is needed;
                                           one for each member of an ensemble, none of a callable
    M/bank-<hash>.safetensors              features of good images, with their names
    M/calibration-<hash>.safetensors       their leave-one-out scores
    M/operator-<hash>.safetensors          what the operator learnt, for some operators

Nothing in it can run code when it is opened. Files are written first and the manifest is replaced
last, in one step, so a kill or a full disk leaves the old model or the new one.
"""

import errno
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError

from nnad.errors import ModelError
from nnad.files import replacing

FORMAT = "nnad-model"
SCHEMA = 2
_MAX_MANIFEST = 16_000_000  # bytes; most have some 2,000, a mask or a probe can be large
_OURS = re.compile(
    r"(encoder-[0-9a-f]{64}\.onnx|(bank|calibration|operator)-[0-9a-f]{64}\.safetensors)"
)
_PASSING = re.compile(r"\.lock|\..*\.tmp")


@dataclass(frozen=True)
class Saved:
    """What a model folder holds."""

    settings: dict[str, Any]  # JSON: backbone, transform, operator, budget, versions
    encoders: list[bytes]  # ONNX
    names: tuple[str, ...]  # (N,) of the good images
    features: NDArray[np.float32]  # (N, D) as the backbone returned them
    good_scores: NDArray[np.float64]  # (N,) leave-one-out
    operator_state: dict[str, NDArray[Any]]  # what the operator would be slow to find again


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
    return bool(_OURS.fullmatch(name) or _PASSING.fullmatch(name))


def _is_manifest(path: Path) -> bool:
    return path.is_file() and FORMAT.encode() in path.read_bytes()[:200]


def write_model(folder: Path, saved: Saved, *, overwrite: bool = False) -> None:
    """Write a model in one step.

    Raises:
        ModelError: `folder` holds a model and `overwrite` is false, holds other files, is being
            written by another process, or the disk refuses.
    """
    try:
        check_writable(folder, overwrite=overwrite)
        folder.mkdir(exist_ok=True)
        with FileLock(folder / ".lock", timeout=30):
            check_writable(folder, overwrite=overwrite)
            _write(folder, saved)
    except Timeout:
        raise ModelError(f"{folder}: another process has been writing it for 30 s") from None
    except OSError as error:
        raise ModelError(f"{folder}: cannot write the model: {error.strerror or error}") from error


def _write(folder: Path, saved: Saved) -> None:
    def put(kind: str, suffix: str, content: bytes) -> str:
        name = f"{kind}-{hashlib.sha256(content).hexdigest()}.{suffix}"
        with replacing(folder / name) as file:
            file.write(content)
        return name

    bank = safetensors.numpy.save(
        {"features": saved.features}, metadata={"names": json.dumps(saved.names)}
    )
    calibration = safetensors.numpy.save({"good_scores": saved.good_scores})
    operator = safetensors.numpy.save(saved.operator_state)
    content = {
        "settings": saved.settings,
        "encoder": [put("encoder", "onnx", encoder) for encoder in saved.encoders],
        "bank": [put("bank", "safetensors", bank)],
        "calibration": put("calibration", "safetensors", calibration),
        "operator": [put("operator", "safetensors", operator)] if saved.operator_state else [],
    }
    manifest = {
        "format": FORMAT,
        "schema": SCHEMA,
        "checksum": _checksum(content),
        "content": content,
    }
    written = json.dumps(manifest, indent=1).encode()
    if len(written) > _MAX_MANIFEST:  # it could never be read again
        raise ModelError(f"{folder}: the mask or the backbone's probe is too large to be saved")
    with replacing(folder / "manifest.json") as file:
        file.write(written)

    kept = {content["calibration"]}.union(content["encoder"], content["bank"], content["operator"])
    for path in folder.iterdir():  # what an older model or a killed process left
        if path.name not in kept and (_OURS.fullmatch(path.name) or path.suffix == ".tmp"):
            path.unlink(missing_ok=True)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(folder: Path) -> Saved:
    """Open a model and check every byte of it.

    Raises:
        ModelError: there is no model, or it is damaged, foreign or from a newer nnad.
    """
    while True:
        content = _read_manifest(folder)
        try:
            return _read_files(folder, content)
        except ModelError:
            if _read_manifest(folder) == content:
                raise  # nobody replaced the model while it was read


def _read_files(folder: Path, content: dict[str, Any]) -> Saved:
    try:
        parts = [_read_bank(_checked(folder, name)) for name in content["bank"]]
        calibration = safetensors.numpy.load(_checked(folder, content["calibration"]))
        state: dict[str, NDArray[Any]] = {}
        for name in content["operator"]:
            state |= safetensors.numpy.load(_checked(folder, name))
        saved = Saved(
            settings=content["settings"],
            encoders=[_checked(folder, name) for name in content["encoder"]],
            names=tuple(name for names, _ in parts for name in names),
            features=np.concatenate([features for _, features in parts]),
            good_scores=calibration["good_scores"],
            operator_state=state,
        )
        if not all(isinstance(name, str) for name in saved.names):
            raise ValueError("the names of the good images are not text")
        if saved.features.ndim != 2 or saved.features.dtype != np.float32:
            raise ValueError("the features are not a table of float32")
        if not np.isfinite(saved.features).all():
            raise ValueError("the features are not finite numbers")
        if not len(saved.names) == len(saved.features) == len(saved.good_scores):
            raise ValueError("names, features and scores differ in number")
        if saved.good_scores.ndim != 1 or not np.isfinite(saved.good_scores).all():
            raise ValueError("the good images' scores are not finite numbers")
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder}: damaged or not written by nnad: {error}") from error
    return saved


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        if path.exists() and path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"a manifest has at most {_MAX_MANIFEST:,} bytes")
        manifest = json.loads(_read(path))
    except FileNotFoundError:
        there = "no model here (no manifest.json)" if folder.is_dir() else "no such model"
        raise ModelError(f"{folder}: {there}; nnad fit makes one") from None
    except NotADirectoryError:
        raise ModelError(f"{folder}: a file, not a model folder") from None
    except OSError as error:
        raise ModelError(f"{folder}: cannot read the model: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{path}: not the manifest of an nnad model")
    if manifest.get("schema") != SCHEMA:
        raise ModelError(
            f"{folder}: written in schema {manifest.get('schema')}, this nnad reads schema "
            f"{SCHEMA}; upgrade nnad or fit again"
        )
    content = manifest.get("content")
    if not isinstance(content, dict) or manifest.get("checksum") != _checksum(content):
        raise ModelError(f"{path}: damaged: its checksum does not match")
    return content


def _read(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device would never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def _checked(folder: Path, name: Any) -> bytes:
    """The bytes of one of the model's files, whose name holds their hash."""
    if not isinstance(name, str) or not _OURS.fullmatch(name):
        raise ModelError(f"{folder}: damaged: the manifest names {str(name)[:80]!r}")
    path = folder / name
    try:
        content = _read(path)
    except OSError as error:
        raise ModelError(f"{path}: missing or unreadable: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
        raise ModelError(f"{path}: damaged: its hash does not match")
    return content


def _read_bank(content: bytes) -> tuple[list[str], NDArray[np.float32]]:
    features = safetensors.numpy.load(content)["features"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = json.loads(header["__metadata__"]["names"])
    return names, features
