"""Damaged files of many kinds, and the contract that reading them must keep.

Run as a program it reads many of them and prints one line of JSON for each; `test_fuzz.py` and
`benchmarks/fuzz.py` run it as a child process, which a crash, a hang or too much memory ends.
"""

import hashlib
import io
import json
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from nnad import NnadError, model_file, model_writing
from nnad.backbones import Backbone, Preprocessing
from nnad.detector import Detector
from nnad.efficientnet import _weights_path
from nnad.errors import BackboneError, ImageError, ImageWarning, ModelError
from nnad.history import History
from nnad.images import MAX_PIXELS, read_image
from nnad.operators import make_operator, settings
from nnad.scorer import Known, Scorer
from nnad.weights import parse_state_dict

NAME = "the/file"


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # saving can leave settings behind in the image
    return file.getvalue()


def tiff(*tags: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    """Tags (number, type, count, value), little-endian; then `tail`."""
    place, entries, values = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for number, kind, count, value in tags:
        entries += struct.pack("<HHI", number, kind, count)
        if len(value) <= 4:
            entries += value.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", place + len(values))
            values += value
    head = b"II*\0\10\0\0\0" + struct.pack("<H", len(tags)) + entries
    return head + bytes(4) + values + tail


def grey_tags(width: int, height: int, compression: int = 1) -> list[tuple[int, int, int, bytes]]:
    numbers = {256: width, 257: height, 258: 8, 259: compression, 262: 1}
    return [(tag, 4, 1, struct.pack("<I", number)) for tag, number in numbers.items()]


@cache
def image_seeds() -> dict[str, bytes]:
    """One small file of each format and variant."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :56]
    smooth = np.stack([x * 4, y * 6, (x + y) * 2], axis=-1) + rng.integers(0, 16, (40, 56, 3))
    rgb = Image.fromarray(smooth.astype(np.uint8))
    grey, palette, cmyk = rgb.convert("L"), rgb.quantize(16), rgb.convert("CMYK")
    rgba = rgb.copy()
    rgba.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    turned = {"exif": exif.tobytes()}
    profile = {"icc_profile": rng.bytes(500)}

    def pages(kind: str, **options) -> bytes:
        more = [rgb.rotate(90), rgb.rotate(180)]
        return encoded(rgb, kind, save_all=True, append_images=more, **options)

    text = encoded(rgb, "PPM").split(b"255\n", 1)[1]
    return {
        "JPEG": encoded(rgb, "JPEG", quality=80),
        "JPEG progressive": encoded(rgb, "JPEG", progressive=True, **turned),
        "JPEG grey": encoded(grey, "JPEG", restart_marker_blocks=2),
        "JPEG CMYK": encoded(cmyk, "JPEG", **profile),
        "MPO": pages("MPO", **turned),
        "PNG": encoded(rgb, "PNG", **profile),
        "PNG palette": encoded(palette, "PNG", transparency=3),
        "PNG 16 bit": encoded(deep, "PNG"),
        "PNG alpha": encoded(rgba, "PNG", **turned),
        "PNG 1 bit": encoded(grey.convert("1"), "PNG"),
        "PNG animated": pages("PNG"),
        "TIFF": encoded(rgb, "TIFF", **turned),
        "TIFF 16 bit": encoded(deep, "TIFF"),
        "TIFF float": encoded(floats, "TIFF"),
        "TIFF LZW": encoded(rgba, "TIFF", compression="tiff_lzw"),
        "TIFF deflate": encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": encoded(rgb, "TIFF", compression="jpeg"),
        "TIFF fax": encoded(grey.convert("1"), "TIFF", compression="group4"),
        "TIFF CMYK": encoded(cmyk, "TIFF", compression="packbits"),
        "TIFF pages": pages("TIFF"),
        "TIFF big": encoded(rgb, "TIFF", big_tiff=True),
        "BMP": encoded(rgb, "BMP"),
        "BMP palette": encoded(palette, "BMP"),
        "DIB": encoded(grey, "DIB"),
        "WEBP": encoded(rgb, "WEBP", **turned),
        "WEBP lossless": encoded(rgba, "WEBP", lossless=True, **profile),
        "WEBP animated": pages("WEBP"),
        "GIF": encoded(palette, "GIF", transparency=2),
        "GIF animated": pages("GIF"),
        "PPM": encoded(rgb, "PPM"),
        "PPM text": b"P3 56 40 255\n" + " ".join(map(str, text)).encode(),
        "PGM 16 bit": encoded(deep.convert("I"), "PPM"),
        "JPEG2000": encoded(rgb, "JPEG2000"),
        "JPEG2000 tiles": encoded(rgba, "JPEG2000", tile_size=(32, 32), irreversible=True),
    }


def tensor(name: str, key: str, shape: tuple[int, ...], offset: int = 0) -> bytes:
    """Opcodes that put one float tensor under `name` into the dict on the stack."""

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1].split(b"q\0")[0]

    stride = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    out = plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
    out += plain("storage") + b"ctorch\nFloatStorage\n" + plain(key) + plain("cpu")
    out += plain(int(np.prod(shape))) + b"NtQ" + plain(offset)
    for numbers in (shape, stride):
        out += b"(" + b"".join(map(plain, numbers)) + b"t"
    return out + b"\x89ccollections\nOrderedDict\n)RtRs"


@cache
def weight_seeds() -> dict[str, bytes]:
    """Legacy torch checkpoints of a few tensors."""

    def checkpoint(shapes: dict[str, tuple[int, ...]]) -> bytes:
        head = b"".join(pickle.dumps(p, 2) for p in (0x1950A86A20F9469CFC6C, 1001, {"v": 1}))
        state = b"".join(tensor(name, name, shape) for name, shape in shapes.items())
        head += b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"."
        head += pickle.dumps(list(shapes), 2)
        for shape in shapes.values():
            size = int(np.prod(shape))
            head += struct.pack("<q", size) + np.arange(size, dtype="<f4").tobytes()
        return head

    return {
        "two tensors": checkpoint({"a": (3, 4), "b": (5,)}),
        "nine tensors": checkpoint({f"layer.{i}": (i + 1, 3, 2) for i in range(9)}),
    }


@cache
def network() -> bytes:
    return _weights_path("efficientnet-lite0").read_bytes()


@cache
def network_head() -> dict[str, bytes]:
    """The pickles of real weights; 18 MB of numbers follow, in which there is nothing to break."""
    file = io.BytesIO(network())
    for _ in range(5):
        deque(pickletools.genops(file), maxlen=0)
    return {"EfficientNet-Lite0": network()[: file.tell() + 8]}


@cache
def model_seed() -> dict[str, bytes]:
    """The files of a small model, by name."""
    rng = np.random.default_rng(0)
    backbone = Backbone("small", Preprocessing(32), b"no network")
    operator = make_operator("knn")
    names = [f"good-{i}.png" for i in range(6)]
    features = rng.random((6, 8), np.float32)
    history = History.begin(names[:4], features[:4], "me")
    history = history.add(names[4:], features[4:], "", "me").remove(names[1:3], "", "me")
    history = history.undo("", "me").set_budget(None, 0.2, "", "me")
    scorer = Scorer(features, "root", operator, products=2)
    saved = model_file.Saved(
        settings={
            "nnad": "0",
            "created": "2020-01-01T00:00:00+00:00",
            "backbone": backbone.settings(),
            "transform": "root",
            "operator": {"name": "knn", "settings": settings(operator)},
            "reason": "as asked for",
            "dropped_unseen": 0,
            "false_alarms": None,
            "calibration": "leave-one-out",
            "products": 2,
            "product_names": scorer.calibration.product_names,
            "export": None,
            "mode": "image",
            "patches": None,
            "combined": None,
        },
        encoders=backbone.networks,
        history=history,
        known=Known(scorer.bank.graph, {}, scorer.calibration, scorer.products),
    )
    with tempfile.TemporaryDirectory() as folder:
        model_writing.write_model(Path(folder, "m"), saved)
        return {p.name: p.read_bytes() for p in Path(folder, "m").iterdir() if p.name != ".lock"}


def flip_bits(content: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def overwrite_run(content: bytearray, other: bytes, rng: random.Random) -> None:
    start, size = rng.randrange(len(content)), rng.choice((1, 4, 30, 200))
    run = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    content[start : start + size] = run


def truncate(content: bytearray, other: bytes, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def delete_run(content: bytearray, other: bytes, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 2, 4, 50))]


def splice(content: bytearray, other: bytes, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:] = other[min(start, rng.randrange(len(other))) :]


def extreme_number(content: bytearray, other: bytes, rng: random.Random) -> None:
    """Where a length, a size or an offset may stand: mostly among the first bytes."""
    for _ in range(rng.randint(1, 2)):
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
        top = 1 << 8 * size
        values = (0, 1, top - 1, top // 2, top // 2 - 1, 9_400, 65_535, 10**6, 2**31 - 1, 2**24)
        number = (rng.choice(values) % top).to_bytes(size, order)
        start = rng.randrange(min(len(content), rng.choice((40, 200, 10**9))))
        content[start : start + size] = number


def duplicate_part(content: bytearray, other: bytes, rng: random.Random) -> None:
    start, size = rng.randrange(len(content)), rng.choice((1, 12, 60, 500))
    content[start:start] = content[start : start + size] * rng.choice((1, 3, 200))


MUTATIONS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    flip_bits,
    overwrite_run,
    truncate,
    delete_run,
    splice,
    extreme_number,
    duplicate_part,
)


def mutate(content: bytes, other: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage, and the damaged bytes."""
    mutation = rng.choice(MUTATIONS)
    damaged = bytearray(content)
    mutation(damaged, other, rng)
    return mutation.__name__, bytes(damaged)


def mutate_model(files: dict[str, bytes], rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """One file damaged, mostly with all hashes made to fit, so that the damage is read."""
    name = rng.choice(sorted(files))
    kind, damaged = mutate(files[name], files[rng.choice(sorted(files))], rng)
    if rng.random() < 0.2:
        return kind, {**files, name: damaged}
    others = {k: v for k, v in files.items() if k not in (name, "manifest.json")}
    manifest = files["manifest.json"].decode()
    if name == "manifest.json":
        part = json.dumps(json.loads(manifest)["content"]).encode()
        kind, damaged = mutate(part, part, rng)
        manifest = damaged.decode("utf-8", "replace")
    else:
        stem, _, suffix = name.rpartition(".")
        renamed = f"{stem[:-64]}{hashlib.sha256(damaged).hexdigest()}.{suffix}"
        others[renamed] = damaged
        manifest = json.dumps(json.loads(manifest.replace(name, renamed))["content"])
    try:
        content = json.loads(manifest)
        checksum = model_file.checksum(content)
    except (ValueError, RecursionError):
        content, checksum = manifest, ""
    head = {
        "format": model_file.FORMAT,
        "schema": model_file.SCHEMA,
        "checksum": checksum,
        "content": content,
    }
    return kind, {**others, "manifest.json": json.dumps(head).encode()}


def checked(
    read: Callable[[], object], error_type: type[NnadError] | tuple[type[NnadError], ...], name: str
) -> str:
    """`read` or `refused`; anything else that happens is an AssertionError."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read()
            outcome = "read"
        except error_type as error:
            message = str(error)
            assert message.startswith(name), message
            assert len(message) < 500, message
            assert "\n" not in message, message
            outcome = "refused"
    for warning in caught:  # Pillow's and pickletools' own are left to Python's filters
        ours = warning.category is ImageWarning and str(warning.message).startswith(name)
        path = Path(warning.filename)
        assert ours or "PIL" in path.parts or path.stem == "pickletools", warning
    return outcome


def check_image(content: bytes, path: Path | None = None) -> str:
    """Read it from memory, or from `path`, where it is written first."""

    def read() -> None:
        image = read_image(content if path is None else path, NAME)
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= MAX_PIXELS
        assert len(image.crop((0, 0, 1, 1)).tobytes()) == 3

    if path is not None:
        path.write_bytes(content)
    return checked(read, ImageError, f"{NAME}: ")


def check_weights(content: bytes) -> str:
    def read() -> None:
        for name, array in parse_state_dict(content, NAME).items():
            assert isinstance(name, str | int)
            assert isinstance(array, np.ndarray)

    return checked(read, BackboneError, f"{NAME}: ")


def check_model(files: dict[str, bytes], folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    outcome = checked(lambda: model_file.read_model(folder), ModelError, str(folder))
    loaded = checked(lambda: Detector.load(folder), NnadError, "")
    assert loaded == "refused" or outcome == "read"
    return loaded


def read_one(target: str, index: int, folder: Path) -> tuple[str, str, Callable[[], str]]:
    """File number `index`: the seed it was made from, the damage, and how to read it."""
    rng = random.Random(f"{target} {index}")
    if target == "models":
        kind, files = mutate_model(model_seed(), rng)
        return "small model", kind, lambda: check_model(files, folder / "model")
    seeds = {"images": image_seeds, "weights": weight_seeds, "network": network_head}[target]()
    seed, other = rng.choice(sorted(seeds)), rng.choice(sorted(seeds))
    kind, content = mutate(seeds[seed], seeds[other], rng)
    if target == "network":
        content += network()[len(seeds[seed]) :]
    if target != "images":
        return seed, kind, lambda: check_weights(content)
    return seed, kind, lambda: check_image(content, folder / "image" if index % 2 else None)


def memory(key: str) -> int | None:
    """VmHWM, the peak, or VmSize, the address space, in kB, where the system tells (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(li.split()[1]) for li in status.read_text().splitlines() if li.startswith(key))


def peak_megabytes() -> float:
    peak = memory("VmHWM")  # ru_maxrss would begin with the peak of the process that started this
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return peak * 1024 / 1e6


def limit_memory(megabytes: int) -> None:
    if used := memory("VmSize"):
        limit = used * 1024 + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(target: str, start: int, stop: int, seconds: int) -> None:
    """Read files `start` to `stop`; SIGALRM ends the process when one takes too long."""
    for seed in (*image_seeds().values(), *weight_seeds().values()):
        (check_weights if seed in weight_seeds().values() else check_image)(seed)
    baseline = peak_megabytes()
    limit_memory(4000)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(start, stop):
            seed, kind, read = read_one(target, index, Path(folder))
            print(json.dumps({"index": index, "seed": seed, "kind": kind}), flush=True)
            signal.alarm(seconds)
            began = time.perf_counter()
            try:
                outcome = read()
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            took = time.perf_counter() - began
            megabytes = peak_megabytes() - baseline
            told = {"outcome": outcome, "seconds": took, "megabytes": megabytes}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
