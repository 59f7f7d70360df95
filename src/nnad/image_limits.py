"""What decoding one image may cost: a file of a few kilobytes can ask for gigabytes and minutes.

Each check refuses a file before it is decoded. The costs are those of Pillow's decoders, measured
by `benchmarks/fuzz.py`; memory is counted besides the file itself.
"""

import re
import struct
from typing import IO, Any

from nnad.errors import ImageError

_MAX_EXIF = 1_000_000  # bytes; a JPEG has room for 65,533 in one piece
MAX_BYTES = 500_000_000  # decoding and converting one image
MAX_TAG_VALUES = 100_000  # of one TIFF tag; Pillow spends up to 400 bytes and 10 µs on each
MAX_SCANS = 100  # of a JPEG; ten are usual, and each is as slow as a whole picture
MAX_RUN_LENGTH_PIXELS = 10_000_000  # of a BMP; Pillow decodes runs in Python

_BYTES_PER_PIXEL = {"RGB": 4, "1": 5, "L": 5, "P": 5, "I;16": 7.2}  # decoded, and as RGB beside it
_OTHER_MODES = 9.2
_BYTES_PER_ROW = 64
_ORIENTATION = 274
_COMPRESSION, _STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 259, 278, 322, 323  # tags of TIFF
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of JPEG, those with a length, and the end
_BYTE_TYPES = (2, 6, 7)  # types of TIFF that Pillow does not take apart


def check_tags(file: IO[bytes]) -> None:
    """Refuse a TIFF with a tag of absurdly many numbers; Pillow would make an object of each."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or not {42, 43} & set(head[2:4]):
        return
    big = 43 in head[2:4]  # BigTIFF
    try:
        file.seek(struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0])
        (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
        size = 20 if big else 12
        entries = file.read(min(count, 65_535) * size)
    except (struct.error, ValueError, OSError):
        return  # too short: Pillow says so
    whole = entries[: len(entries) // size * size]
    for tag, kind, values in struct.iter_unpack(order + ("HHQ8x" if big else "HHI4x"), whole):
        offsets = tag in (273, 324)  # of strips or tiles: of bytes, too, each would be one
        if values > MAX_TAG_VALUES and (offsets or kind not in (1, *_BYTE_TYPES)):
            raise ImageError(f"tag {tag} holds {values:,} numbers; save it anew")


def check_cost(image: Any, file: IO[bytes]) -> None:
    """Refuse an opened image that would take more than MAX_BYTES, or minutes, to decode."""
    pixels = image.width * image.height
    bytes_per_pixel = _BYTES_PER_PIXEL.get(image.mode, _OTHER_MODES)
    buffer = 0
    match image.format:
        case "WEBP":
            bytes_per_pixel = 22
        case "JPEG2000":
            bytes_per_pixel = 28
        case "JPEG" | "MPO":
            in_first_scan, scans = _jpeg_scans(file)
            if scans > MAX_SCANS:
                raise ImageError(f"a JPEG of more than {MAX_SCANS} scans; save it anew")
            if image.info.get("progressive") or in_first_scan < len(image.getbands()):
                bytes_per_pixel = 12  # libjpeg keeps the coefficients of the whole picture
        case "TIFF":
            tags = image.tag_v2
            if tags.get(_ORIENTATION, 1) != 1:  # Pillow turns it while it loads
                bytes_per_pixel = _OTHER_MODES
            if tags.get(_COMPRESSION, 1) != 1:  # a strip or tile, of up to six 16-bit channels
                rows = tags.get(_TILE_HEIGHT, min(tags.get(_STRIP_ROWS, pixels), image.height))
                buffer = 12 * rows * tags.get(_TILE_WIDTH, image.width)
        case "BMP" | "DIB":
            if image.info.get("compression") in (1, 2) and pixels > MAX_RUN_LENGTH_PIXELS:
                raise ImageError(
                    f"a run-length encoded BMP of more than {MAX_RUN_LENGTH_PIXELS:,} pixels; "
                    f"save it as PNG"
                )
    check_bytes(int(bytes_per_pixel * pixels + _BYTES_PER_ROW * image.height + max(0, buffer)))


def is_turned(image: Any) -> bool:
    """Whether its EXIF orientation is another than upright."""
    return bool(image.getexif().get(_ORIENTATION, 1) != 1)


def check_turn(image: Any) -> None:
    """Refuse an image that must be turned when there is no room for it and its copy.

    Its EXIF tags, which Pillow makes a Python object of for each number, may have 1 MB.
    """
    if len(image.info.get("exif", b"")) > _MAX_EXIF:
        raise ImageError(f"EXIF tags of more than {_MAX_EXIF:,} bytes; save it without them")
    if is_turned(image):
        bytes_per_pixel = 1 if image.mode in ("1", "L", "P") else 4
        check_bytes(2 * bytes_per_pixel * image.width * image.height)


def check_bytes(needed: int) -> None:
    """Refuse what needs more than MAX_BYTES."""
    if needed > MAX_BYTES:
        raise ImageError(
            f"needs {needed // 10**6:,} MB to decode, more than {MAX_BYTES // 10**6}; shrink or "
            f"cut it, or save it as PNG"
        )


def _jpeg_scans(file: IO[bytes]) -> tuple[int, int]:
    """Components in the first scan, and the number of scans, counted up to MAX_SCANS + 1."""
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    in_first_scan, scans, at = 0, 0, 2
    while scans <= MAX_SCANS and (marker := _MARKER.search(content, at)):
        at = marker.end()
        if marker[0] == b"\xff\xd9":  # the end; a preview or a film may follow
            break
        if marker[0] == b"\xff\xda":
            scans += 1
            in_first_scan = in_first_scan or int.from_bytes(content[at + 2 : at + 3], "big")
        at += int.from_bytes(content[at : at + 2], "big")
    return in_first_scan, scans
