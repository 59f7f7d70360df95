"""Pictures inside zip archives, read where they are: `archive.zip/folder/picture.png` is a path.

Nothing is unpacked, so an entry can write nowhere, whatever its name.
"""

import os
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from nnad.errors import ImageError, InputError

MAX_BYTES = 256 * 2**20  # of one entry; the largest picture nnad reads has as many in RGB


def zip_members(archive: str) -> list[str]:
    """The names of all files in an archive, sorted; hidden ones are left out.

    Raises:
        InputError: it is no zip archive, is damaged, or has entries that point out of it.
    """
    try:
        names = _open(archive)[1]
    except OSError as error:
        raise InputError(f"{archive}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{archive}: not a zip archive, or damaged: {error}") from None
    for name in names:
        path = PureWindowsPath(name)  # knows both slashes, and drives
        if path.anchor or ".." in path.parts:
            raise InputError(f"{archive}: the entry {name!r} points out of the archive; repack it")
    shown = (n for n in names if not any(p.startswith((".", "__MACOSX")) for p in n.split("/")))
    return sorted(shown)


def read_member(path: Path) -> bytes | None:
    """The bytes of `archive.zip/member`, or None if no archive is on the way to it.

    Raises:
        ImageError: the archive has no such member, or one that is too large or encrypted.
    """
    archive = next((p for p in path.parents if p.suffix.lower() == ".zip" and p.is_file()), None)
    if archive is None:
        return None
    opened, names = _open(str(archive))
    entry = names.get(path.relative_to(archive).as_posix())
    if entry is None:
        raise ImageError(f"no such file in {archive.name}")
    if entry.flag_bits & 1:
        raise ImageError("is encrypted; unpack the archive first")
    if entry.file_size > MAX_BYTES:
        raise ImageError(
            f"has {entry.file_size:,} bytes; at most {MAX_BYTES:,} are read from a zip"
        )
    with opened.open(entry) as file:
        return file.read(MAX_BYTES)


def _open(archive: str) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    state = os.stat(archive)  # noqa: PTH116
    return _open_version(archive, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _open_version(
    archive: str,
    version: tuple[int, int],  # noqa: ARG001 (an archive that has changed is opened anew)
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """The archive, whose members several threads may read, and its files by name."""
    opened = zipfile.ZipFile(archive)
    files = (entry for entry in opened.infolist() if not entry.is_dir())
    return opened, {str(PurePosixPath(entry.filename)): entry for entry in files}
