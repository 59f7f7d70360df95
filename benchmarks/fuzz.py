"""Damaged and hostile files: what nnad makes of them, and what the largest pictures cost.

Mutated: files damaged by `tests/mutations.py`, read in child processes with an address space
limited to 4 GB and 60 s a file. Outcomes: `read`, `refused` (nnad's own error that begins with the
file's name), `broken` (any other exception or warning), `crashes`, `hangs`. The models' files are
read by `Detector.load`. Megabytes are the peak of the process so far, seconds the slowest file.
Largest: files as large as nnad admits, of noise, each in a process of its own.
Hostile: files made to cost much, each in a process of its own.

    python benchmarks/fuzz.py
"""

import io
import json
import math
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from provenance import write_rows

from nnad.image_limits import MAX_BYTES
from nnad.images import MAX_PIXELS

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
from mutations import encoded, grey_tags, tiff  # type: ignore[import-not-found] # noqa: E402

FILES = {"images": 20_000, "weights": 20_000, "network": 1_000, "models": 5_000}
SECONDS = 60
READ_ONE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from mutations import peak_megabytes
from nnad import ImageError
from nnad.images import read_image
import PIL.Image, numpy
read_image(numpy.zeros((9, 9), numpy.uint16)), PIL.Image.preinit()
before, began = peak_megabytes(), time.perf_counter()
try:
    read_image(sys.argv[2], "it")
    outcome = "read"
except ImageError as error:
    outcome = str(error)
seconds = f"{time.perf_counter() - began:.2f}"
print(json.dumps([outcome, f"{peak_megabytes() - before:.0f}", seconds]))
"""


def mutated(target: str) -> list[dict[str, Any]]:
    """One row for each kind of damage; a child that dies is succeeded by another."""
    told: list[dict[str, Any]] = []
    start, count = 0, FILES[target]
    while start < count:
        program = [sys.executable, str(TESTS / "mutations.py"), target]
        program += [str(start), str(count), str(SECONDS)]
        child = subprocess.run(program, capture_output=True, text=True)
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        told += [{**made, **found} for made, found in zip(lines[::2], lines[1::2], strict=False)]
        if child.returncode == 0:
            break
        if not lines:
            raise RuntimeError(child.stderr)
        fatal = "hangs" if child.returncode == -signal.SIGALRM else "crashes"
        told.append({**lines[-1], "outcome": fatal, "seconds": SECONDS, "megabytes": 0})
        start = lines[-1]["index"] + 1
    for line in told:
        if line["outcome"] not in ("read", "refused"):
            print(target, line, file=sys.stderr)
    kinds = defaultdict(list)
    for line in told:
        kinds[line["kind"]].append(line)
    rows = []
    for kind, lines in sorted(kinds.items()):
        outcomes = [line["outcome"] for line in lines]
        counts = {o: outcomes.count(o) for o in ("read", "refused", "crashes", "hangs")}
        rows.append(
            {
                "question": f"mutated {target}",
                "case": kind,
                "files": len(lines),
                **counts,
                "broken": len(lines) - sum(counts.values()),
                "megabytes": f"{max(line['megabytes'] for line in lines):.0f}",
                "seconds": f"{max(line['seconds'] for line in lines):.2f}",
            }
        )
    return rows


def largest() -> Iterator[tuple[str, bytes]]:
    """As many pixels as the costs in `nnad.image_limits` admit, noise in small squares."""
    kinds: list[tuple[str, str, dict[str, Any], float]] = [
        ("RGB", "JPEG", {}, 4),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}, 12),
        ("CMYK", "JPEG", {}, 9.2),
        ("RGB", "PNG", {"compress_level": 1}, 4),
        ("L", "PNG", {"compress_level": 1}, 5),
        ("I;16", "PNG", {"compress_level": 1}, 7.2),
        ("RGBA", "PNG", {"compress_level": 1}, 9.2),
        ("F", "TIFF", {}, 9.2),
        ("RGB", "TIFF", {"compression": "packbits", "tiffinfo": {278: 10**6}}, 16),
        ("RGB", "WEBP", {"quality": 50, "method": 0}, 22),
        ("RGBA", "WEBP", {"lossless": True, "quality": 0, "method": 0}, 22),
        ("RGB", "JPEG2000", {}, 28),
        ("RGBA", "JPEG2000", {}, 28),
    ]
    for mode, kind, options, cost in kinds:
        side = math.isqrt(int(min(MAX_PIXELS, MAX_BYTES / (cost + 0.02))))
        grey = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16), np.uint8)
        image = Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        elif mode == "F":
            image = Image.fromarray(np.asarray(image).astype(np.float32) / 255)
        else:
            image = image.convert(mode)
        name = f"{kind} {mode}{' progressive' if 'progressive' in options else ''}"
        yield f"{name}, {side:,} x {side:,}", encoded(image, kind, **options)


def hostile() -> Iterator[tuple[str, bytes]]:
    grey = Image.new("L", (8, 8), 99)
    png, gif = encoded(grey, "PNG"), encoded(grey, "GIF")
    empty = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    yield "PNG of 10^6 chunks", png[:33] + empty * 10**6 + png[33:]
    yield "PNG, 1 bit, 30,000 x 30,000", encoded(Image.new("1", (30_000, 30_000)), "PNG")
    yield "PNG, 1 bit, 9,400 x 9,400", encoded(Image.new("1", (9_400, 9_400)), "PNG")
    yield "PNG, 16 bit, 1 x 6,000,000", encoded(Image.new("I;16", (1, 6_000_000), 60_000), "PNG")
    yield "PNG, 16 bit, 44,000,000 x 1", encoded(Image.new("I;16", (44_000_000, 1), 60_000), "PNG")
    frame = gif[gif.index(b",", 13 + (3 << ((gif[10] & 7) + 1))) : -1]
    yield "GIF of 10^5 frames", gif[:-1] + frame * 10**5 + b";"
    scans = encoded(Image.new("L", (6_000, 6_000)), "JPEG", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    yield "JPEG, 6,000 x 6,000, 2,000 scans", scans[:-2] + last * 2_000 + scans[-2:]
    yield "JPEG, 6,000 x 6,000, 100 scans", scans[:-2] + last * 94 + scans[-2:]
    offsets = struct.pack("<4000000I", *range(4_000_000))
    yield "TIFF of 4 x 10^6 strips", tiff(*grey_tags(2_000, 2_000), (324, 4, 4_000_000, offsets))
    pages = io.BytesIO(encoded(grey, "TIFF"))
    start = len(pages.getvalue())
    chain = b"".join(struct.pack("<HI", 0, start + 6 * (i + 1)) for i in range(200_000))
    first = struct.unpack("<I", pages.getvalue()[4:8])[0]
    count = struct.unpack_from("<H", pages.getvalue(), first)[0]
    content = bytearray(pages.getvalue() + chain)
    struct.pack_into("<I", content, first + 2 + 12 * count, start)
    yield "TIFF of 200,000 pages", bytes(content)
    bomb = zlib.compress(bytes(10**9), 9)
    text = b"zTXt" + b"key\0\0" + bomb
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    yield "PNG with 1 GB of text", png[:33] + chunk + png[33:]
    jpeg = encoded(grey, "JPEG")
    yield "JPEG with 10 MB of padding", jpeg[:2] + b"\xff" * 10**7 + jpeg[2:]
    yield "PPM, 16 bit colour, 1,300 x 1,300", b"P6 1300 1300 65535 " + bytes(1300 * 1300 * 6)
    run = bytearray(encoded(Image.new("P", (3_100, 1)), "BMP"))
    struct.pack_into("<i", run, 22, 3_100)
    struct.pack_into("<I", run, 30, 1)
    at = struct.unpack_from("<I", run, 10)[0]
    yield "BMP, run lengths, 3,100 x 3,100", bytes(run[:at]) + b"\1\7\0\0" * 3_100


def alone(question: str, files: Iterator[tuple[str, bytes]]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, content in files:
            path = Path(folder, "file")
            path.write_bytes(content)
            program = [sys.executable, "-W", "ignore", "-c", READ_ONE, str(TESTS), str(path)]
            child = subprocess.run(
                program, capture_output=True, text=True, check=True, timeout=10 * SECONDS
            )
            outcome, megabytes, seconds = json.loads(child.stdout)
            rows.append(
                {
                    "question": question,
                    "case": f"{case}, {len(content) / 1e6:.2f} MB",
                    "outcome": outcome,
                    "megabytes": megabytes,
                    "seconds": seconds,
                }
            )
    return rows


def main() -> None:
    rows = [row for target in FILES for row in mutated(target)]
    rows += alone("largest", largest())
    rows += alone("hostile", hostile())
    write_rows("fuzz", rows)


if __name__ == "__main__":
    main()
