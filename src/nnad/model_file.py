"""A model on disk: a folder of immutable, hash-named files and one manifest that names them.

    M/manifest.json                        what the model is, and the hash of every file below
    M/encoder-<hash>.onnx                  the backbone's network, so no other download is needed;
                                           one for each member of an ensemble, none of a callable
    M/bank-<hash>.safetensors              features of good images, with their names; one file of
                                           the fit and one of each addition
    M/log-<hash>.json                      every change, and so which of them are in use
    M/state-<hash>.safetensors             their leave-one-out scores and nearest neighbours
    M/operator-<hash>.safetensors          what the operator learnt, for some operators
    M/patches-<hash>.safetensors           the bank of patches, with --mode patch or both; the
                                           network that gives them is one more encoder

Nothing in it can run code when it is opened. Files are written first and the manifest is replaced
last, in one step, so a kill or a full disk leaves the old model or the new one. A change writes
what is new and leaves the other files as they are.
"""

import errno
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from nnad.calibrate import Calibration
from nnad.conformal import Method
from nnad.errors import ModelError
from nnad.graph import Neighbors
from nnad.history import UNDOABLE, Change, History, Segment
from nnad.scorer import Known

FORMAT = "nnad-model"
SCHEMA = 4
MAX_MANIFEST = 16_000_000  # bytes; most have some 2,000, a mask or a probe can be large
OURS = re.compile(
    r"(encoder-[0-9a-f]{64}\.onnx|(bank|state|operator|patches)-[0-9a-f]{64}\.safetensors"
    r"|log-[0-9a-f]{64}\.json)"
)


class SavedPatches(NamedTuple):
    """What it holds of patches."""

    networks: list[bytes]  # ONNX
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Saved:
    """What a model folder holds."""

    settings: dict[str, Any]  # JSON: backbone, transform, operator, budget, versions
    encoders: list[bytes]  # ONNX
    history: History
    known: Known
    patches: SavedPatches | None = None


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_model(folder: Path) -> Saved:
    """Open a model and check every byte of it.

    Raises:
        ModelError: there is no model, or it is damaged, foreign or from a newer nnad.
    """
    while True:
        content = read_manifest(folder)
        try:
            return _read_files(folder, content)
        except ModelError:
            if read_manifest(folder) == content:
                raise  # nobody replaced the model while it was read


def _read_files(folder: Path, content: dict[str, Any]) -> Saved:
    try:
        segments = tuple(_read_segment(folder, name) for name in content["bank"])
        if len({segment.features.shape[1] for segment in segments}) != 1:
            raise ValueError("features of different lengths")
        state = safetensors.numpy.load(_checked(folder, content["state"]))
        changes = json.loads(_checked(folder, content["log"]))
        learnt: dict[str, NDArray[Any]] = {}
        for name in content["operator"]:
            learnt |= safetensors.numpy.load(_checked(folder, name))
        stored = sum(len(segment.names) for segment in segments)
        history = History(segments, _read_log(changes, stored))
        known = _checked_known(state, history, learnt, content["settings"])
        encoders = [_checked(folder, name) for name in content["encoder"]]
        patches = None
        if told := content["patches"]:
            networks = [_checked(folder, name) for name in told["encoder"]]
            arrays = safetensors.numpy.load(_checked(folder, told["bank"]))
            patches = SavedPatches(networks, arrays)
        return Saved(content["settings"], encoders, history, known, patches)
    except (
        AttributeError,
        KeyError,
        OverflowError,
        TypeError,
        ValueError,
        RecursionError,
        SafetensorError,
    ) as error:
        reason = str(error)[:200]
        raise ModelError(f"{folder}: damaged or not written by nnad: {reason}") from error


def _read_segment(folder: Path, name: str) -> Segment:
    content = _checked(folder, name)
    features = safetensors.numpy.load(content)["features"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = json.loads(header["__metadata__"]["names"])
    if not all(isinstance(name, str) for name in names):
        raise ValueError("the names of the good images are not text")
    if features.ndim != 2 or features.dtype != np.float32 or len(names) != len(features):
        raise ValueError("the features are not a table of float32 with a name for each row")
    if not np.isfinite(features).all():
        raise ValueError("the features are not finite numbers")
    return Segment(tuple(names), features, folder.resolve() / name)


def _checked_known(
    state: dict[str, NDArray[Any]],
    history: History,
    learnt: dict[str, NDArray[Any]],
    settings: dict[str, Any],
) -> Known:
    method = Method.parse(settings["calibration"])
    method.check(len(history.rows))
    features = history.features()
    count = len(method.bank_rows(features))
    scores, rows, dists = (state[name] for name in ("good_scores", "graph_rows", "graph_sq_dists"))
    calibrating = method.calibrating(len(features))
    if scores.shape != (calibrating,) or scores.dtype != np.float64:
        raise ValueError("the good images' scores are not a number for each")
    if not np.isfinite(scores).all():
        raise ValueError("the good images' scores are not finite")
    if rows.shape != dists.shape or rows.ndim != 2 or len(rows) != count:
        raise ValueError("the neighbours are not a list for each good image")
    if rows.dtype != np.int32 or dists.dtype != np.float64 or np.isnan(dists).any():
        raise ValueError("the neighbours are not rows and distances")
    if rows.size and not -1 <= rows.min() <= rows.max() < count:
        raise ValueError("a neighbour is not among the good images")
    graph = Neighbors(dists, rows.astype(np.int64))
    folds = method.scored_by(features) if method.has_folds else None
    if settings["products"] is None:
        return Known(graph, learnt, Calibration(scores, folds), None)
    names = tuple(settings["product_names"])
    for name, size in (("categories", calibrating), ("products", count)):
        if state[name].shape != (size,) or state[name].dtype != np.int64:
            raise ValueError("the products are not a number for each good image")
        if not 0 <= state[name].min() <= state[name].max() < len(names):
            raise ValueError("a product has no name")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("the names of the products are not text")
    calibration = Calibration(scores, folds, state["categories"], names)
    return Known(graph, learnt, calibration, state["products"])


def _read_log(told: Any, stored: int) -> tuple[Change, ...]:
    changes: list[Change] = []
    for entry in told:
        runs = tuple((int(first), int(beyond)) for first, beyond in entry["runs"])
        budgets = entry["budgets"] and tuple(entry["budgets"])
        change = Change(**{**entry, "runs": runs, "budgets": budgets})
        if not _is_entry(change, changes) or not all(0 <= a < b <= stored for a, b in runs):
            raise ValueError(f"entry {len(changes)} of the log is none")
        changes.append(change)
    if sum(len(change.rows) for change in changes if change.action in ("fit", "add")) != stored:
        raise ValueError("the log and the stored images differ in number")
    return tuple(changes)


def _is_entry(change: Change, before: list[Change]) -> bool:
    texts = change.time, change.by, change.action, change.reason
    if change.number != len(before) or not all(isinstance(text, str) for text in texts):
        return False
    for budget in change.budgets or ():
        if budget is not None and not (isinstance(budget, float) and 0 < budget < 1):
            return False
    if change.action == "undo":
        is_number = type(change.undoes) is int and 0 <= change.undoes < len(before)
        return is_number and before[change.undoes or 0].action in UNDOABLE
    return change.undoes is None and change.action in ("fit", *UNDOABLE)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a model's manifest; raises as `read_model` does."""
    path = folder / "manifest.json"
    try:
        if path.exists() and path.stat().st_size > MAX_MANIFEST:
            raise ValueError(f"a manifest has at most {MAX_MANIFEST:,} bytes")
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
    if not isinstance(content, dict) or manifest.get("checksum") != checksum(content):
        raise ModelError(f"{path}: damaged: its checksum does not match")
    return content


def _read(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device would never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def _checked(folder: Path, name: Any) -> bytes:
    """The bytes of one of the model's files, whose name holds their hash."""
    if not isinstance(name, str) or not OURS.fullmatch(name):
        raise ModelError(f"{folder}: damaged: the manifest names {str(name)[:80]!r}")
    path = folder / name
    try:
        content = _read(path)
    except OSError as error:
        raise ModelError(f"{path}: missing or unreadable: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
        raise ModelError(f"{path}: damaged: its hash does not match")
    return content
