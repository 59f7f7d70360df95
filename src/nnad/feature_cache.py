"""Features by the content of their images, so that no picture is decoded and embedded twice.

The key is a SHA-256 over the backbone's fingerprint, whatever else can change a feature's last bits
(versions, the processor), and the bytes of the file, or those of the array with shape and dtype.
The value is the feature, the warnings of reading the image, and a checksum of both.

All of it is in one SQLite file in `cache_folder()`, for several processes at once, and whole after
a kill. It holds 1 GB, about 180,000 features; those unused for longest make room for new ones. A
cache that is damaged, locked, full or not writable is not used and is no reason to fail; a damaged
one is removed. Images that cannot be read, PIL images and crops are not in it, nor is
what a function or a GPU computed: a function may change unnoticed, and another GPU or driver gives
other last bits.
"""

import hashlib
import json
import platform
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL
from numpy.typing import NDArray

from nnad import __version__
from nnad.backbones import Backbone
from nnad.errors import ImageError, ImageWarning
from nnad.files import cache_folder
from nnad.images import Source, collected_warnings, content_of, read_image, warn

Feature = NDArray[np.float32]

MAX_BYTES = 1_000_000_000
_VERSION = 1  # raise it whenever the same file would give another feature or other warnings
_BATCH = 256  # features written, or marked as used, at a time; a kill loses no more
_EVICTED = 64  # features removed at a time
_PATIENCE = 1.0  # seconds to wait, once, for another process that writes
_CHECKSUM = 16  # bytes
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class FeatureCache:
    """The stored features of one backbone. Threads may share it; `close` writes what is new.

    Args:
        backbone: embeds what is not stored; only its own features are found.
        max_bytes: how large the file may grow, to within one batch; all backbones share it.
    """

    def __init__(self, backbone: Backbone, max_bytes: int = MAX_BYTES) -> None:
        self._backbone = backbone
        self._salt = f"{backbone.fingerprint} {backbone.device} {_makers()}\0".encode()
        self._max_bytes = max_bytes
        self._path = cache_folder() / f"features-v{_VERSION}.sqlite"
        self._lock = threading.Lock()
        self._pending: dict[bytes, tuple[int, bytes | None]] = {}  # key -> time of use, new value
        self._connection: sqlite3.Connection | None = None
        with self._unless_it_fails():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self._path)

    def embed(self, source: Source, name: str) -> Feature:
        """Feature (D,) of an image, stored or new: the same bits, warnings and errors.

        Raises:
            ImageError: it cannot be read; the message begins with `name`.
        """
        content = content_of(source) if self._connection else None
        if content is None:
            return self._backbone.embed(read_image(source, name))
        key = self._key(content)
        feature, warned = self._get(key) or (None, [])
        if feature is None:
            with collected_warnings() as messages:
                feature = self._backbone.embed(read_image(content, name))
            warned = [message.removeprefix(f"{name}: ") for message in messages]
            self._put(key, feature, warned)
        try:
            for text in warned:
                warn(f"{name}: {text}")
        except ImageWarning as warning:  # whoever calls has made warnings errors
            raise ImageError(str(warning)) from None
        return feature

    def close(self) -> None:
        """Write what is new, and let go of the file."""
        with self._unless_it_fails():
            if self._connection:
                self._write(self._connection)
                self._connection.close()
                self._connection = None

    def _key(self, content: bytes | NDArray[Any]) -> bytes:
        digest = hashlib.sha256(self._salt)
        if isinstance(content, bytes):
            digest.update(b"file\0")
            digest.update(content)
        else:
            digest.update(f"array {content.dtype.str} {content.shape}\0".encode())
            digest.update(content.tobytes())
        return digest.digest()

    def _get(self, key: bytes) -> tuple[Feature, list[str]] | None:
        with self._unless_it_fails():
            if self._connection:
                query = "SELECT value FROM feature WHERE key = ?"
                row = self._connection.execute(query, [key]).fetchone()
                if row and (found := _unpacked(key, row[0], self._backbone.dim)):
                    self._note(self._connection, key, None)
                    return found
        return None

    def _put(self, key: bytes, feature: Feature, warned: Sequence[str]) -> None:
        with self._unless_it_fails():
            if self._connection:
                self._note(self._connection, key, _packed(key, feature, warned))

    def _note(self, connection: sqlite3.Connection, key: bytes, value: bytes | None) -> None:
        self._pending[key] = (time.time_ns(), value)
        if len(self._pending) >= _BATCH:
            self._write(connection)

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write new values and times of use in one transaction, then make room."""
        new = [(used, key, value) for key, (used, value) in self._pending.items() if value]
        old = [(used, key) for key, (used, value) in self._pending.items() if not value]
        self._pending = {}
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("UPDATE feature SET used = ? WHERE key = ?", old)
            connection.executemany("REPLACE INTO feature (used, key, value) VALUES (?, ?, ?)", new)
            while _used_bytes(connection) > self._max_bytes:
                oldest = "SELECT key FROM feature ORDER BY used LIMIT ?"
                delete = f"DELETE FROM feature WHERE key IN ({oldest})"  # noqa: S608 (constant)
                if not connection.execute(delete, [_EVICTED]).rowcount:
                    break

    @contextmanager
    def _unless_it_fails(self) -> Iterator[None]:
        """One thread at a time; a cache that fails is not used again, and removed if damaged."""
        with self._lock:
            try:
                yield
            except (OSError, sqlite3.Error) as error:
                if self._connection:
                    with suppress(sqlite3.Error):
                        self._connection.close()
                    self._connection = None
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                    with suppress(OSError):
                        Path(f"{self._path}-journal").unlink(missing_ok=True)
                        self._path.unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS feature (key BLOB PRIMARY KEY, used INTEGER, value BLOB)"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS by_use ON feature (used)")
    return connection


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _packed(key: bytes, feature: Feature, warned: Sequence[str]) -> bytes:
    content = json.dumps(warned).encode() + b"\0" + feature.astype("<f4").tobytes()
    return _checksum(key + content) + content


def _unpacked(key: bytes, value: Any, dim: int) -> tuple[Feature, list[str]] | None:
    """Feature (D,) and warnings; None if they are not what was written."""
    if not isinstance(value, bytes) or value[:_CHECKSUM] != _checksum(key + value[_CHECKSUM:]):
        return None
    warned, _, feature = value[_CHECKSUM:].partition(b"\0")
    if len(feature) != 4 * dim:
        return None
    return np.frombuffer(feature, "<f4").astype(np.float32), json.loads(warned)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM]


def _makers() -> str:
    """What else may change a feature's last bits: libraries, and the processor's instructions."""
    from PIL import features

    simd = np.show_config(mode="dicts").get("SIMD Extensions")
    codecs = [features.version(name) for name in ("libjpeg_turbo", "jpg_2000", "webp", "libtiff")]
    versions = [__version__, PIL.__version__, np.__version__, onnxruntime.__version__, *codecs]
    return json.dumps([versions, platform.machine(), simd])
