"""Pictures inside zip archives, read where they are: `archive.zip/folder/picture.png` is a path.

Nothing is unpacked, so an entry can write nowhere, whatever its name.
"""

import os
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from nnad.errors import ImageError, InputError

MAX_BYTES = 256 * 2**20  # of one entry; the largest picture nnad reads has as many in RGB


def zip_folder(path: str) -> list[str] | None:
    """The paths of all files but hidden ones in `archive.zip` or `archive.zip/folder`, sorted.

    None if `path` is neither, but a file of an archive, say, or has nothing to do with one.

    Raises:
        InputError: the archive cannot be read, or has entries that point out of it.
    """
    place = Path(path)
    archive = _archive_of(place)
    if archive is None:
        return None
    try:
        names = _open(archive)[1]
    except OSError as error:
        raise InputError(f"{archive}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{archive}: not a zip archive, or damaged: {error}") from None
    folder = place.relative_to(archive)
    if folder.as_posix() in names:
        return None
    for name in names:
        windows = PureWindowsPath(name)  # knows both slashes, and drives
        if windows.anchor or ".." in windows.parts:
            raise InputError(f"{archive}: the entry {name!r} points out of the archive; repack it")
    inside = [name for name in names if PurePosixPath(name).is_relative_to(folder.as_posix())]
    if not inside and place != archive:
        return None
    return sorted(str(archive / name) for name in inside if not _is_hidden(name))


def read_member(path: Path) -> bytes | None:
    """The bytes of the file `archive.zip/member`, or None if no archive is on the way to it.

    Raises:
        ImageError: the archive has no such file, or one that is too large or encrypted.
    """
    archive = _archive_of(path)
    if archive is None:
        return None
    opened, names = _open(archive)
    entry = names.get(path.relative_to(archive).as_posix())
    if entry is None:
        raise ImageError(f"no such file in {archive.name}")
    if entry.flag_bits & 1:
        raise ImageError("is encrypted; unpack the archive first")
    if entry.file_size > MAX_BYTES:
        raise ImageError(f"{entry.file_size:,} bytes; at most {MAX_BYTES:,} are read from a zip")
    with opened.open(entry) as file:
        return file.read(MAX_BYTES)


def _archive_of(path: Path) -> Path | None:
    """The archive that `path` is, or leads into."""
    if ".zip" not in str(path).lower():
        return None
    places = (path, *path.parents)
    return next((p for p in places if p.suffix.lower() == ".zip" and p.is_file()), None)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _open(archive: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    state = archive.stat()
    return _open_version(archive, (state.st_mtime_ns, state.st_size), os.getpid())


@lru_cache(maxsize=4)
def _open_version(
    archive: Path,
    version: tuple[int, int],  # noqa: ARG001 (an archive that has changed is opened anew)
    process: int,  # noqa: ARG001 (a file's position would be shared with a forked one)
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """The archive, whose members several threads may read, and its files by name."""
    opened = zipfile.ZipFile(archive)
    files = (entry for entry in opened.infolist() if not entry.is_dir())
    return opened, {str(PurePosixPath(entry.filename)): entry for entry in files}
