"""Write files so that a kill or a full disk leaves the old file or the new one, never half.

And where files go that may be deleted at any time.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; when the block ends well, it becomes `path`.

    The content is flushed to the disk before the name changes. When the block raises, or the disk
    is full, the temporary file is removed and whatever stood at `path` stays.
    """
    temporary = path.with_name(f".{path.name[:40]}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cache_folder() -> Path:
    """`$NNAD_CACHE`, else `$XDG_CACHE_HOME/nnad`, else `~/.cache/nnad`.

    A user without a home gets a folder that cannot be made, so that nothing is cached.
    """
    if chosen := os.environ.get("NNAD_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "nnad"
    try:
        return Path("~/.cache").expanduser() / "nnad"
    except RuntimeError:
        return Path(os.devnull) / "nnad"
