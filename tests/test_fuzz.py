"""Damaged and hostile files: a result or nnad's own error, in bounded memory and time."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace

import mutations
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import check_image, check_model, check_weights, encoded, grey_tags, tensor, tiff
from PIL import Image

from nnad import (
    BackboneError,
    ImageError,
    ImageWarning,
    ModelError,
    image_limits,
    model_file,
    model_writing,
    opcodes,
)
from nnad.history import History, Segment
from nnad.images import read_image
from nnad.model_file import read_model
from nnad.model_writing import check_writable
from nnad.weights import parse_state_dict

GREY = Image.new("L", (8, 8), 99)


def test_the_seeds_are_read():
    for name, content in mutations.image_seeds().items():
        assert check_image(content) == "read", name
    for content in mutations.weight_seeds().values():
        assert check_weights(content) == "read"
    state = parse_state_dict(mutations.weight_seeds()["two tensors"], "w")
    assert (state["a"].shape, state["b"].tolist()) == ((3, 4), [0, 1, 2, 3, 4])


def test_the_model_is_read(tmp_path):
    assert check_model(mutations.model_seed(), tmp_path / "m") == "read"


@pytest.mark.parametrize(("target", "files"), [("images", 900), ("weights", 400), ("models", 200)])
def test_mutated_files(target, files):
    """In a child, so that a crash or a hang is a failure of this test and not of the tests."""
    program = [sys.executable, mutations.__file__, target, "0", str(files), "30"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (told[-1:], done.stderr[-2000:])
    outcomes = [line["outcome"] for line in told if "outcome" in line]
    assert len(outcomes) == files
    assert set(outcomes) == {"read", "refused"}
    assert max(line.get("megabytes", 0) for line in told) < 500


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(mutations.image_seeds())),
    st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=4),
    st.floats(0.3, 1),
)
def test_any_change_to_an_image(seed, changes, kept):
    content = bytearray(mutations.image_seeds()[seed])
    for place, new in changes:
        start = int(place * len(content))
        content[start : start + len(new)] = new
    check_image(bytes(content[: int(kept * len(content)) + 1]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), max_size=4))
def test_any_change_to_weights(changes):
    content = bytearray(mutations.weight_seeds()["nine tensors"])
    for place, new in changes:
        start = int(place * len(content))
        content[start : start + len(new)] = new
    check_weights(bytes(content))


# Images that ask for too much


@pytest.mark.parametrize(
    ("mode", "kind", "options", "bytes_per_pixel"),
    [
        ("RGB", "PNG", {}, 4),
        ("L", "PNG", {}, 5),
        ("I;16", "PNG", {}, 7.2),
        ("RGBA", "PNG", {}, 9.2),
        ("CMYK", "JPEG", {}, 9.2),
        ("RGB", "JPEG", {}, 4),
        ("RGB", "JPEG", {"progressive": True}, 12),
        ("RGB", "WEBP", {}, 22),
        ("RGB", "JPEG2000", {}, 28),
        ("RGB", "TIFF", {}, 4),
        ("RGB", "TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: 10}}, 4 + 12 * 10 / 100),
    ],
)
def test_memory_is_counted_before_decoding(mode, kind, options, bytes_per_pixel, monkeypatch):
    content = encoded(Image.new(mode, (100, 100)), kind, **options)
    needed = int(bytes_per_pixel * 10_000 + 64 * 100)
    monkeypatch.setattr(image_limits, "MAX_BYTES", needed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # 16 bits, all black
        read_image(content)
    monkeypatch.setattr(image_limits, "MAX_BYTES", needed - 1)
    with pytest.raises(ImageError, match=r"^it: needs 0 MB to decode, more than 0; shrink or cut"):
        read_image(content, "it")


def test_a_jpeg_in_separate_scans_is_counted_as_progressive(monkeypatch):
    """Each colour in a scan of its own: libjpeg then keeps all coefficients."""
    content = encoded(Image.new("RGB", (100, 100)), "JPEG", subsampling=0)
    scan = content.index(b"\xff\xda")
    assert content[scan + 4] == 3
    alone = content[:scan] + b"\xff\xda\0\x08\1" + content[scan + 5 :]
    monkeypatch.setattr(image_limits, "MAX_BYTES", 100_000)
    read_image(content)
    with pytest.raises(ImageError, match="to decode"):
        read_image(alone)


def test_turning_a_picture_needs_room_for_two(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 3
    for kind in ("PNG", "JPEG", "TIFF"):
        turned = encoded(Image.new("RGB", (100, 100)), kind, exif=exif.tobytes())
        monkeypatch.setattr(image_limits, "MAX_BYTES", 100_000)
        read_image(turned)
        monkeypatch.setattr(image_limits, "MAX_BYTES", 70_000)
        with pytest.raises(ImageError, match="to decode"):
            read_image(turned)


def test_blocks_give_what_the_whole_would():
    """Wider and higher than the squares in which pictures are converted."""
    rng = np.random.default_rng(0)
    for shape in ((3, 2050), (1030, 5)):
        deep = rng.integers(0, 65536, shape).astype(np.uint16)
        expected = np.dstack([np.round(deep / 257).astype(np.uint8)] * 3)
        for source in (deep, encoded(Image.fromarray(deep), "PNG")):
            np.testing.assert_array_equal(np.asarray(read_image(source)), expected)
        floats = rng.random(shape, np.float32)
        expected = np.round(floats * np.float32(255)).astype(np.uint8)
        for source in (floats, encoded(Image.fromarray(floats), "TIFF")):
            np.testing.assert_array_equal(np.asarray(read_image(source))[:, :, 0], expected)
        rgba = Image.fromarray(rng.integers(0, 256, (*shape, 4)).astype(np.uint8))
        white = Image.new("RGBA", rgba.size, "white")
        whole = Image.alpha_composite(white, rgba).convert("RGB")
        np.testing.assert_array_equal(np.asarray(read_image(rgba)), np.asarray(whole))


def test_one_bad_number_anywhere_is_noticed():
    floats = np.full((3, 2050), 0.5)
    for bad in (np.nan, 1.5, -0.5):
        floats[2, 2049] = bad
        with pytest.raises(ImageError, match=r"scale them to 0\.\.1"):
            read_image(floats)


def test_a_jpeg_of_thousands_of_scans_is_refused():
    content = encoded(Image.new("L", (64, 64), 99), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    many = content[:-2] + last * 1000 + content[-2:]
    hidden = content[:-2] + b"\xff\xfe\0\4\xff\xd9" + last * 1000 + content[-2:]  # in a comment
    with pytest.raises(ImageError, match="a JPEG of more than 100 scans"):
        read_image(hidden)
    with pytest.raises(ImageError, match="a JPEG of more than 100 scans"):
        read_image(many)


def test_a_film_behind_a_jpeg_is_not_counted():
    for options in ({}, {"progressive": True}):
        content = encoded(GREY, "JPEG", **options)
        assert read_image(content + b"\xff\xda\0\4" * 1000).size == (8, 8)


@pytest.mark.parametrize("tag", [(324, 1, 200_000, bytes(200_000)), (282, 5, 150_000, b"12345")])
def test_a_tiff_of_countless_numbers_is_refused(tag):
    content = tiff(*grey_tags(500, 400), tag)
    big_endian = b"MM\0*" + struct.pack(">IH", 8, 1) + struct.pack(">HHII", *tag[:3], 99)
    big_tiff = b"II+\0\10\0\0\0" + struct.pack("<QQHHQQ", 16, 1, *tag[:3], 99)
    for each in (content, big_endian, big_tiff):
        with pytest.raises(ImageError, match=f"tag {tag[0]} holds {tag[2]:,} numbers"):
            read_image(each)


def test_a_tile_larger_than_memory_is_refused():
    bomb = zlib.compress(bytes(1_000_000))
    sides = [(322, 4, 1, struct.pack("<I", 30_000)), (323, 4, 1, struct.pack("<I", 30_000))]
    places = [(324, 4, 1, struct.pack("<I", 200)), (325, 4, 1, struct.pack("<I", len(bomb)))]
    with pytest.raises(ImageError, match="needs 10,800 MB to decode"):
        read_image(tiff(*grey_tags(16, 16, compression=8), *sides, *places, tail=bytes(60) + bomb))


def test_pages_are_not_counted():
    """A chain of 100,000 pages: to find its end would take Pillow two minutes."""
    page = struct.pack("<H", 3)
    page += b"".join(struct.pack("<HHII", tag, 4, 1, 8) for tag in (256, 257, 273))
    content = bytearray(b"II*\0\10\0\0\0")
    for _ in range(100_000):
        content += page + struct.pack("<I", len(content) + len(page) + 4)
    with pytest.warns(ImageWarning, match="several frames or pages"):
        assert read_image(bytes(content)).size == (8, 8)
    gif = encoded(GREY, "GIF", save_all=True, append_images=[Image.new("L", (8, 8))])
    frame = gif[gif.rindex(b"\x21\xf9") : -1]
    with pytest.warns(ImageWarning, match="several frames or pages"):
        read_image(gif[:-1] + frame * 100_000 + b";")


def test_a_large_run_length_bmp_is_refused():
    head = bytearray(encoded(Image.new("P", (4000, 1)), "BMP"))
    struct.pack_into("<i", head, 22, 4000)
    struct.pack_into("<I", head, 30, 1)
    with pytest.raises(ImageError, match="run-length encoded BMP"):
        read_image(bytes(head[: struct.unpack_from("<I", head, 10)[0]]) + b"\1\7\0\0" * 4000)


def test_metadata_bombs_are_refused():
    png = encoded(GREY, "PNG")
    bomb = zlib.compress(bytes(50_000_000))

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    for kind, start in ((b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")):
        content = png[:33] + chunk(kind, start + bomb) + png[33:]
        with pytest.raises(ImageError, match="damaged or truncated image: Decompressed data"):
            read_image(content)


def test_files_that_never_end_or_start(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match=r"loop\.png: cannot be read: Too many levels"):
        read_image(tmp_path / "loop.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image("/dev/zero")
    with pytest.raises(ImageError, match="null"):
        read_image("a\0.png")


# Weights that ask for too much


def weights(state: bytes, keys: list[str], data: bytes = b"") -> bytes:
    """A checkpoint whose state dict is made by these opcodes."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    return head + b"\x80\x02" + state + b"." + pickle.dumps(keys, 2) + data


FOUR = struct.pack("<q", 4) + np.arange(4, dtype="<f4").tobytes()
NESTED = b")" + b"\x85" * 80_000  # a tuple in a tuple in a tuple...
LAUGHS = b")" + b"q\0h\0\x86" * 100  # a pair of the same pair of the same pair...


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"}" + NESTED + b"Ns", "a key or name is neither text nor a number"),
        (b"}" + LAUGHS + b"Ns", "a key or name is neither text nor a number"),
        (b"}(" + LAUGHS + b"Nu", "a key or name is neither text nor a number"),
        (LAUGHS + b")R", "a key or name is neither text nor a number"),
        (b"K\1" * 50_000 + b"(t" * 20_000, "no state dict"),
        (b"X\xff\xff\xff\x7fabc", "expected 2147483647 bytes"),
        (b"\x8d" + b"\xff" * 8, "not a plain torch state dict"),
        (b"\x8b\xff\xff\xff\x7f", "not a plain torch state dict"),
        (b"I" + b"9" * 100_000 + b"\n", "not a plain torch state dict"),
        (b"L" + b"9" * 100_000 + b"L\n", "not a plain torch state dict"),
        (b"cos\nsystem\n(X\1\0\0\0xtR", "wants to call 'os system'"),
        (b"}h\1s", "not a plain torch state dict: 1"),
    ],
)
def test_pickles_that_would_never_end(state, message):
    content = weights(state, [])
    assert check_weights(content) == "refused"
    with pytest.raises(BackboneError, match=message):
        parse_state_dict(content, "w")


def test_too_many_opcodes(monkeypatch):
    """Each may be an object: the memory they need is bounded by their number."""
    monkeypatch.setattr(opcodes, "MAX_OPCODES", 100)
    with pytest.raises(BackboneError, match="too many opcodes"):
        parse_state_dict(weights(b"]" * 100, []), "w")


def test_nested_values_that_are_no_tensors_are_let_go():
    for value in (NESTED, LAUGHS, b"]" + b"]a" * 40_000):
        assert parse_state_dict(weights(b"}X\1\0\0\0a" + value + b"s", []), "w") == {}


def test_one_storage_as_many_tensors_is_refused():
    """A few bytes for each name would otherwise become a copy of the whole storage."""
    one = tensor("a", "k", (4,))
    assert check_weights(weights(b"}" + one, ["k"], FOUR)) == "read"
    two = one + tensor("b", "k", (4,))
    with pytest.raises(BackboneError, match="the tensors are larger than their storages"):
        parse_state_dict(weights(b"}" + two, ["k"], FOUR), "w")


def test_a_tensor_of_a_thousand_dimensions_is_refused():
    with pytest.raises(BackboneError, match="too many dimensions"):
        parse_state_dict(weights(b"}" + tensor("a", "k", (1,) * 1000), ["k"], FOUR), "w")


# Models that ask for too much


@pytest.fixture
def small_model(tmp_path):
    for name, content in mutations.model_seed().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_manifest_of_brackets(small_model):
    (small_model / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(ModelError, match=r"manifest\.json: damaged"):
        read_model(small_model)
    (small_model / "manifest.json").write_bytes(b" " * 20_000_000)
    with pytest.raises(ModelError, match="a manifest has at most"):
        read_model(small_model)


def test_pipes_in_a_model_do_not_hang(small_model):
    names = [n for n in mutations.model_seed() if n != "manifest.json"]
    for name in (*names, "manifest.json"):
        content = (small_model / name).read_bytes()
        (small_model / name).unlink()
        os.mkfifo(small_model / name)
        with pytest.raises(ModelError, match="not a regular file"):
            read_model(small_model)
        if name != "manifest.json":
            (small_model / name).unlink()
            (small_model / name).write_bytes(content)
    with pytest.raises(ModelError, match="not nnad's"):
        check_writable(small_model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": (1, 2, 3, 4, 5, 6)}, "names of the good images are not text"),
        ({"names": ("a",) * 5}, "with a name for each"),
        ({"features": np.zeros((6, 8))}, "not a table of float32"),
        ({"features": np.zeros(6, np.float32)}, "not a table of float32"),
        ({"features": np.full((6, 8), np.nan, np.float32)}, "the features are not finite"),
    ],
)
def test_features_that_nnad_did_not_write(change, message, tmp_path, small_model):
    saved = read_model(small_model)
    names, features = saved.history.stored_names, saved.history.stored_features
    segment = Segment(**{"names": names, "features": features, **change})
    history = History((segment,), saved.history.changes)
    model_writing.write_model(tmp_path / "wrong", replace(saved, history=history))
    with pytest.raises(ModelError, match=message):
        read_model(tmp_path / "wrong")


def places(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of everything within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*place, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*place, key))


def test_every_setting_of_another_type(tmp_path):
    files = mutations.model_seed()
    manifest = json.loads(files["manifest.json"])
    for place in places(manifest["content"]):
        for value in (None, True, -1, 1e300, "x" * 2000, [], {}, [[]], float("nan")):
            content = json.loads(json.dumps(manifest["content"]))
            parent = content
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            told = {**manifest, "content": content, "checksum": model_file.checksum(content)}
            check_model({**files, "manifest.json": json.dumps(told).encode()}, tmp_path / "m")


def test_exif_tags_that_would_take_much_memory_are_refused():
    tag = struct.pack(">HHII", 274, 3, 600_000, 26)  # orientation: 600,000 numbers
    exif = b"MM\0*" + struct.pack(">IH", 8, 1) + tag + bytes(4) + bytes(1_200_000)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", exif=b"Exif\0\0" + exif)
    with pytest.raises(ImageError, match="EXIF tags of more than 1,000,000 bytes"):
        read_image(file.getvalue())
