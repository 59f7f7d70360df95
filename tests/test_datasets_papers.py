"""The papers' data sets, each on a tiny tree with the structure and the formats of the original."""

import gzip
import hashlib
import io
import itertools
import os
import pickle
import struct
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image
from scipy.io import savemat

from nnad import DatasetError, InputError
from nnad.datasets import (
    cats_vs_dogs,
    cifar10,
    cifar100,
    combine,
    cub_200_2011,
    dior,
    fashion_mnist,
    load_dataset,
    mnist,
    mvtec_ad,
    oxford_flowers_102,
    wbc,
)
from nnad.datasets.pixels import read_idx
from nnad.images import read_image

COARSE_NAMES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
    vehicles_2
"""
FINE_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
    plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
TEN_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
TEN, COARSE, FINE = (names.split() for names in (TEN_NAMES, COARSE_NAMES, FINE_NAMES))


def draw(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 10, 200)).save(path)


def counts(split, classes) -> list[int]:
    return np.bincount(split.labels, minlength=len(classes)).tolist()


# CIFAR


def pickled(value) -> bytes:
    """What Python 2's cPickle writes for a value, with its memo."""
    puts = itertools.count(1)

    def put() -> bytes:
        n = next(puts)
        return b"q" + bytes([n]) if n < 256 else b"r" + struct.pack("<i", n)

    def text(raw: bytes) -> bytes:
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        return head + raw + put()

    def write(value) -> bytes:
        match value:
            case str():
                return text(value.encode("latin-1"))
            case int():
                return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
            case list():
                return b"]" + put() + b"(" + b"".join(map(write, value)) + b"e"
            case dict():
                head = b"}" + put() + b"("
                return head + b"".join(write(k) + write(v) for k, v in value.items()) + b"u"
            case np.ndarray():
                new = (
                    b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
                )
                new += b"K\0\x85" + text(b"b") + b"\x87" + put() + b"R" + put()
                shape = b"".join(map(write, value.shape)) + b"\x86" + put()
                dtype = b"cnumpy\ndtype\n" + put() + text(value.dtype.str[1:].encode())
                dtype += b"K\0K\x01\x87" + put() + b"R" + put() + b"(K\x03" + text(b"|")
                dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t" + put() + b"b"
                return new + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        raise TypeError(value)

    return b"\x80\x02" + write(value) + b"."


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def rows(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32, 3) -> (N, 3072), red first, then green, then blue."""
    return np.concatenate([images[..., c].reshape(len(images), 1024) for c in range(3)], axis=1)


def batch(images: np.ndarray, **labels: list[int]) -> dict:
    names = [f"x_s_{i:06}.png" for i in range(len(images))]
    return {"batch_label": "batch 1 of 5", **labels, "data": rows(images), "filenames": names}


META_10 = {"num_cases_per_batch": 10_000, "label_names": TEN, "num_vis": 3072}
META_100 = {"fine_label_names": FINE, "coarse_label_names": COARSE}


def test_the_pickles_of_these_tests_are_those_of_the_originals():
    """Byte for byte: these are the known MD5 sums of `batches.meta` and `meta`."""
    for meta, known in (
        (META_10, "5ff9c542aee3614f3951f8cda6e48888"),
        (META_100, "7973b15100ade9c7d40fb424638fde48"),
    ):
        assert hashlib.md5(pickled(meta)).hexdigest() == known


IMAGES = pixels(12)
LABELS = [3, 1, 9, 0, 0, 5, 2, 8, 7, 6, 4, 1]


def cifar10_files(kind: str) -> dict[str, bytes]:
    parts = [(f"data_batch_{i}", slice(2 * i - 2, 2 * i)) for i in range(1, 6)]
    parts.append(("test_batch", slice(10, 12)))
    if kind == "python":
        files = {n: pickled(batch(IMAGES[s], labels=LABELS[s])) for n, s in parts}
        files["batches.meta"] = pickled(
            {"num_cases_per_batch": 2, "label_names": TEN, "num_vis": 1}
        )
        return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
    records = np.concatenate([np.array(LABELS, np.uint8)[:, None], rows(IMAGES)], axis=1)
    files = {f"{name}.bin": records[s].tobytes() for name, s in parts}
    files["batches.meta.txt"] = "".join(f"{name}\n" for name in [*TEN, ""]).encode()
    return {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}


def cifar100_files(kind: str) -> dict[str, bytes]:
    coarse, fine = [19, 0, 4], [99, 3, 4]
    if kind == "python":
        train = batch(IMAGES[:2], fine_labels=fine[:2], coarse_labels=coarse[:2])
        test = batch(IMAGES[2:3], fine_labels=fine[2:], coarse_labels=coarse[2:])
        files = {"meta": pickled(META_100), "train": pickled(train), "test": pickled(test)}
        return {f"cifar-100-python/{name}": content for name, content in files.items()}
    labels = np.array([coarse, fine], np.uint8).T
    records = np.concatenate([labels, rows(IMAGES[:3])], axis=1)
    files = {"train.bin": records[:2].tobytes(), "test.bin": records[2:].tobytes()}
    files["fine_label_names.txt"] = "\n".join(FINE).encode()
    files["coarse_label_names.txt"] = "\n".join(COARSE).encode()
    return {f"cifar-100-binary/{name}": content for name, content in files.items()}


def write(root: Path, files: dict[str, bytes], way: str) -> Path:
    """As an archive, as the folder it unpacks to, or as the folder around that."""
    if way == "archive":
        with tarfile.open(root / "cifar.tar.gz", "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return root / "cifar.tar.gz"
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return root / next(iter(files)).split("/")[0] if way == "folder" else root


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("way", ["archive", "folder", "around"])
def test_cifar10(tmp_path, kind, way):
    data = cifar10(write(tmp_path, cifar10_files(kind), way))
    assert (data.name, data.classes, data.good) == ("CIFAR-10", tuple(TEN), ())
    np.testing.assert_array_equal(np.stack(data.train.sources), IMAGES[:10])
    np.testing.assert_array_equal(np.stack(data.test.sources), IMAGES[10:])
    assert data.train.labels.tolist() + data.test.labels.tolist() == LABELS
    assert data.train.names[:2] == ("train[0]", "train[1]")
    np.testing.assert_array_equal(np.asarray(read_image(data.test.sources[1])), IMAGES[11])
    birds = data.with_good("bird")
    assert list(birds.good_train().names) == ["train[6]"]


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("way", ["archive", "folder", "around"])
def test_cifar100(tmp_path, kind, way):
    path = write(tmp_path, cifar100_files(kind), way)
    data = cifar100(path)
    assert (data.name, data.classes) == ("CIFAR-100 coarse", tuple(COARSE))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([19, 0], [4])
    np.testing.assert_array_equal(np.stack(data.train.sources), IMAGES[:2])
    fine = cifar100(path, coarse=False)
    assert (fine.name, fine.classes) == ("CIFAR-100 fine", tuple(FINE))
    assert (fine.train.labels.tolist(), fine.test.labels.tolist()) == ([99, 3], [4])


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_cifar_file_that_wants_to_run_something_runs_nothing(tmp_path, protocol):
    path = write(tmp_path, cifar10_files("python"), "folder")
    evil = pickle.dumps({"data": Call(os.mkdir, str(tmp_path / "victim")), "labels": []}, protocol)
    (path / "data_batch_2").write_bytes(evil)
    with pytest.raises(DatasetError, match="data_batch_2: damaged, or not the original file"):
        cifar10(path)
    assert not (tmp_path / "victim").exists()


BATCH = batch(IMAGES[:2], labels=[1, 2])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickled(["no", "dict"]),
        pickled(BATCH)[:3000],
        pickled({**BATCH, "labels": [1]}),
        pickled({**BATCH, "labels": [1, 10]}),
        pickled({**BATCH, "labels": ["a", "b"]}),
        pickled({**BATCH, "labels": [[1], [2]]}),
        pickled({"data": BATCH["data"]}),
        pickled({**BATCH, "data": "text"}),
        pickled({**BATCH, "data": BATCH["data"][:, :-1]}),
        pickled({**BATCH, "data": BATCH["data"].astype(np.uint16)}),
        pickled(BATCH).replace(b"M" + struct.pack("<H", 3072), b"M" + struct.pack("<H", 3000), 1),
    ],
)
def test_damaged_cifar_pickles(tmp_path, content):
    path = write(tmp_path, cifar10_files("python"), "folder")
    (path / "data_batch_1").write_bytes(content)
    with pytest.raises(DatasetError, match=r"^data_batch_1: damaged"):
        cifar10(path)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7000), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_cifar_pickles_give_a_dataset_or_a_clear_error(changes):
    files = cifar10_files("python")
    mutated = bytearray(files["cifar-10-batches-py/test_batch"])
    for place, value in changes:
        mutated[place % len(mutated)] = value
    files["cifar-10-batches-py/test_batch"] = bytes(mutated)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), files, "folder")
        try:
            assert cifar10(path).test.sources[0].shape == (32, 32, 3)
        except DatasetError as error:
            assert str(error).startswith("test_batch: damaged")


def test_damaged_cifar_binaries_and_meta_files(tmp_path):
    path = write(tmp_path, cifar10_files("binary"), "folder")
    (path / "test_batch.bin").write_bytes(b"x" * 3074)
    with pytest.raises(DatasetError, match=r"test_batch\.bin: damaged: 3,074 bytes are not whole"):
        cifar10(path)
    path = write(tmp_path, cifar100_files("python"), "folder")
    (path / "meta").write_bytes(pickled({"coarse_label_names": 7}))
    with pytest.raises(DatasetError, match="no list of class names 'coarse_label_names'"):
        cifar100(path)


def test_missing_cifar_files_are_named_with_their_origin(tmp_path):
    origin = (
        r"the original is in cifar-10-python\.tar\.gz or cifar-10-binary\.tar\.gz from https://"
    )
    with pytest.raises(DatasetError, match=f"nowhere: no such file or folder; {origin}"):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=rf"batches\.meta: no such file; {origin}"):
        cifar10(tmp_path)
    for kind, missing in (("python", "data_batch_4"), ("binary", "data_batch_4.bin")):
        path = write(tmp_path, cifar10_files(kind), "folder")
        (path / missing).unlink()
        with pytest.raises(DatasetError, match=f"{missing}: no such file; {origin}"):
            cifar10(path)
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"x\.tar\.gz: not a tar archive, or damaged"):
        cifar100(tmp_path / "x.tar.gz")
    archive = write(tmp_path, cifar10_files("python"), "archive")
    archive.write_bytes(archive.read_bytes()[:9000])
    with pytest.raises(DatasetError, match=r"cifar\.tar\.gz: not a tar archive, or damaged"):
        cifar10(archive)


# MNIST and Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def idx_files(folder: Path, mark: str = "-", pack: bool = True) -> Path:
    for part, count in (("train", 5), ("t10k", 3)):
        images = np.full((count, 28, 28), count, np.uint8)
        for name, array in (("images", images), ("labels", np.arange(count, dtype=np.uint8))):
            content = idx(array)
            path = folder / f"{part}-{name}{mark}idx{array.ndim}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content) if pack else content)
    return folder


@pytest.mark.parametrize("mark, pack", [("-", True), ("-", False), (".", False)])
def test_mnist_and_fashion_mnist(tmp_path, mark, pack):
    idx_files(tmp_path, mark, pack)
    for load, first in ((mnist, "0"), (fashion_mnist, "T-shirt/top")):
        data = load(tmp_path)
        assert (data.classes[0], len(data.classes), data.good) == (first, 10, ())
        assert data.train.labels.tolist() == [0, 1, 2, 3, 4]
        assert (len(data.test), data.test.sources[0].shape) == (3, (28, 28))
        assert {int(source[0, 0]) for source in data.test.sources} == {3}
        assert read_image(data.test.sources[0]).size == (28, 28)


@settings(max_examples=60, deadline=None)
@given(
    st_numpy.arrays(np.uint8, st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0)),
    st.sampled_from(["", ".gz"]),
)
def test_idx_round_trip(array, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
        read = read_idx(path)
        np.testing.assert_array_equal(read, array)
        assert read.shape == array.shape
        if array.size:
            path.write_bytes(idx(array)[:-1])
            with pytest.raises(DatasetError, match=r"damaged idx file|not an idx file"):
                read_idx(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0",  # floats
        b"\0\0\x08\x01\0\0\0",
        b"\0\0\x08\x03\0\0\0\x01",
        b"\0\0\x08\x01\0\0\0\x02a",
        b"\0\0\x08\x01\0\0\0\x02abc",
        b"\0\0\x08\x03" + b"\xff" * 12,
        b"\x1f\x8b",
    ],
)
def test_damaged_idx_files(tmp_path, content):
    for path in (tmp_path / "x", tmp_path / "x.gz"):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=rf"{path.name}: (not an|damaged) idx file"):
            read_idx(path)
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DatasetError, match=r"x\.gz: (not an|damaged) idx file"):
        read_idx(tmp_path / "x.gz")


def test_wrong_idx_files(tmp_path):
    idx_files(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    for content, message in (
        (idx(np.zeros(4, np.uint8)), r"labels-idx1-ubyte\.gz: damaged: 3 images, labels \(4,\)"),
        (idx(np.full(3, 10, np.uint8)), "labels beyond the 10 classes"),
        (idx(np.zeros((3, 28), np.uint8)), "not a stack of images with a list of labels"),
    ):
        labels.write_bytes(gzip.compress(content))
        with pytest.raises(DatasetError, match=message):
            mnist(tmp_path)
    labels.unlink()
    origin = "https://github.com/zalandoresearch/fashion-mnist, or Debian's package"
    with pytest.raises(DatasetError, match=rf"t10k-labels-idx1-ubyte\.gz: no such file.*{origin}"):
        fashion_mnist(tmp_path)


# Oxford Flowers 102


def flowers_files(folder: Path) -> Path:
    """Nine images; trnid, valid and tstid have three each, in no order."""
    (folder / "jpg").mkdir()
    for i in range(1, 10):
        draw(folder / "jpg" / f"image_{i:05}.jpg", i)
    labels = np.array([[77, 77, 77, 1, 1, 1, 102, 102, 102]], np.uint8)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    ids = {"trnid": [[7, 4, 1]], "valid": [[2, 5, 8]], "tstid": [[3, 6, 9]]}
    savemat(folder / "setid.mat", {key: np.array(value, np.uint16) for key, value in ids.items()})
    return folder


def numbers(split) -> list[int]:
    return [int(Path(name).stem.split("_")[-1]) for name in split.names]


def test_oxford_flowers_102(tmp_path):
    flowers_files(tmp_path)
    data = oxford_flowers_102(tmp_path)
    assert (len(data.classes), data.classes[76], data.good) == (102, "077", ())
    assert (numbers(data.train), data.train.labels.tolist()) == ([7, 4, 1], [101, 0, 76])
    assert (numbers(data.test), data.test.labels.tolist()) == ([3, 6, 9], [76, 0, 101])
    assert data.left_out == ("validation (3 images)",)
    trained = oxford_flowers_102(tmp_path, validation="train")
    assert (numbers(trained.train), numbers(trained.test)) == ([7, 4, 1, 2, 5, 8], [3, 6, 9])
    tested = oxford_flowers_102(tmp_path, validation="test")
    assert (numbers(tested.train), numbers(tested.test)) == ([7, 4, 1], [3, 6, 9, 2, 5, 8])
    with pytest.raises(InputError, match="validation='both'; choose out, train or test"):
        oxford_flowers_102(tmp_path, validation="both")


def test_damaged_flowers(tmp_path):
    flowers_files(tmp_path)
    (tmp_path / "jpg" / "image_00006.jpg").unlink()
    with pytest.raises(DatasetError, match=r"image_00006\.jpg: no such file.*102flowers\.tgz"):
        oxford_flowers_102(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[10]]})
    with pytest.raises(DatasetError, match=r"setid\.mat: damaged: no image of such a number"):
        oxford_flowers_102(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[1]]})
    with pytest.raises(
        DatasetError, match=r"setid\.mat: damaged, or not the original file: .*valid"
    ):
        oxford_flowers_102(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": np.zeros((1, 0))})
    with pytest.raises(DatasetError, match=r"setid\.mat: damaged: tstid is empty"):
        oxford_flowers_102(tmp_path)
    flowers = tmp_path / "imagelabels.mat"
    savemat(tmp_path / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[3]]})
    savemat(flowers, {"labels": [[0, 1, 2]]})
    with pytest.raises(DatasetError, match="labels are not 1 to 102"):
        oxford_flowers_102(tmp_path)
    flowers.write_bytes(b"no matlab file" * 20)
    with pytest.raises(DatasetError, match=r"imagelabels\.mat: damaged, or not the original"):
        oxford_flowers_102(tmp_path)
    flowers.unlink()
    with pytest.raises(DatasetError, match=r"imagelabels\.mat: no such file.*robots\.ox\.ac\.uk"):
        oxford_flowers_102(tmp_path)


# CUB-200-2011


def cub_files(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    names = [
        "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
        "001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
        "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
    ]
    for name in names:
        draw(folder / "images" / name)
    texts = {
        "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
        "images.txt": "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)),
        "image_class_labels.txt": "1 1\n2 1\n3 2\n",
        "train_test_split.txt": "1 0\n2 1\n3 1\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def test_cub_200_2011(tmp_path):
    folder = cub_files(tmp_path)
    for path in (folder, tmp_path):
        data = cub_200_2011(path)
        assert data.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross")
        assert (numbers(data.train), data.train.labels.tolist()) == ([34, 1027], [0, 1])
        assert (numbers(data.test), data.test.labels.tolist()) == ([18], [0])


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("train_test_split.txt", "1 0\n2 1\n", "image 3 of images.txt: '3' is unknown in another"),
        ("train_test_split.txt", "1 0\n2 1\n3 2\n", "image 3 of images.txt: '2' is unknown"),
        ("image_class_labels.txt", "1 1\n2 7\n3 2\n", "image 2 of images.txt: '7' is unknown"),
        ("classes.txt", "1 a\n2\n", r"classes\.txt, line 2: expected a number and a value"),
        ("images.txt", "1 none.jpg\n", r"images/none\.jpg: no such file.*CUB_200_2011\.tgz"),
    ],
)
def test_damaged_cub(tmp_path, name, text, message):
    folder = cub_files(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        cub_200_2011(folder)
    (folder / name).write_bytes(b"1 \xff\n")
    with pytest.raises(DatasetError, match=f"{name}: cannot be read"):
        cub_200_2011(folder)
    (folder / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name}: no such file.*CUB_200_2011\.tgz from https"):
        cub_200_2011(folder)


# Cats vs Dogs


@pytest.mark.parametrize("form", ["train/{}.{}.jpg", "{}.{}.jpg", "PetImages/{}/{}.jpg"])
def test_cats_vs_dogs(tmp_path, form):
    for kind in ("cat", "dog"):
        kind = kind.title() if "Pet" in form else kind
        for number in (0, 2, 10, 9_999, 10_000, 12_499):
            draw(tmp_path / form.format(kind, number))
    draw(tmp_path / "other.jpg")
    data = cats_vs_dogs(tmp_path)
    assert (data.classes, data.left_out) == (("cat", "dog"), ())
    found = [int(Path(name).stem.split(".")[-1]) for name in data.train.names]
    assert found == [0, 2, 10, 9_999] * 2
    assert (counts(data.train, "cd"), counts(data.test, "cd")) == ([4, 4], [2, 2])


def test_the_empty_files_of_microsofts_archive_are_left_out(tmp_path):
    for name in ("Cat/0.jpg", "Cat/666.jpg", "Dog/0.jpg", "Dog/11702.jpg"):
        draw(tmp_path / name)
    for name in ("Cat/666.jpg", "Dog/11702.jpg"):
        (tmp_path / name).write_bytes(b"")
    data = cats_vs_dogs(tmp_path)
    assert (counts(data.train, "cd"), len(data.test)) == ([1, 1], 0)
    assert data.left_out == (f"{tmp_path}/Cat/666.jpg (empty)", f"{tmp_path}/Dog/11702.jpg (empty)")


def test_missing_cats_or_dogs(tmp_path):
    with pytest.raises(DatasetError, match=r"x: no such file or folder.*kagglecatsanddogs_5340"):
        cats_vs_dogs(tmp_path / "x")
    with pytest.raises(DatasetError, match=r"holds no image files; the original is train\.zip"):
        cats_vs_dogs(tmp_path)
    draw(tmp_path / "cat.0.jpg")
    with pytest.raises(DatasetError, match=r"no images of a dog; the original is train\.zip"):
        cats_vs_dogs(tmp_path)
    with pytest.raises(DatasetError, match=r"cat\.0\.jpg: not a folder; unpack train\.zip"):
        cats_vs_dogs(tmp_path / "cat.0.jpg")


# DIOR


def annotation(*objects: tuple[str, tuple[int, int, int, int]]) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    items = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><bndbox>"
        + "".join(f"<{c}>{v}</{c}>" for c, v in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    )
    return (
        "<annotation><filename>x.jpg</filename><source><database>DIOR</database></source>"
        f"<size><width>300</width><height>300</height><depth>3</depth></size>{items}</annotation>"
    )


LARGE, WIDE, SMALL = (10, 20, 130, 160), (0, 0, 300, 119), (5, 5, 20, 20)
DIOR = {
    "00001": annotation(("ship", LARGE), ("ship", SMALL), ("dam", (100, 100, 300, 300))),
    "00002": annotation(("ship", WIDE)),
    "00003": annotation(("dam", LARGE), ("golffield", LARGE)),
    "11726": annotation(("ship", LARGE), ("bridge", SMALL)),
}


def dior_files(folder: Path, notes: str, lists: str, trainval: dict[str, str]) -> Path:
    for number, text in DIOR.items():
        path = folder / notes / f"{number}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        part = "test" if number > "11725" else "trainval"
        draw(folder / f"JPEGImages-{part}" / f"{number}.jpg", 0, (300, 300))
    (folder / lists).mkdir(parents=True)
    for name, text in {**trainval, "test": "11726\n"}.items():
        (folder / lists / f"{name}.txt").write_text(text)
    return folder


APART = {"train": "00001\n00002\n", "val": "00003\n"}
TOGETHER = {"trainval": "00001\n00002\n00003\n", "train": "00001\n"}


@pytest.mark.parametrize(
    "notes, lists, trainval",
    [
        ("Annotations/Horizontal Bounding Boxes", "ImageSets/Main", APART),
        ("Annotations", "Main", TOGETHER),
    ],
)
def test_dior(tmp_path, notes, lists, trainval):
    data = dior(dior_files(tmp_path, notes, lists, trainval), more_than=1)
    assert (data.classes, data.left_out) == (("dam", "ship"), ("golffield (1 objects)",))
    names = [f"{Path(name).name}" for name in data.train.names]
    assert names == [
        "00001.jpg[10,20,130,160]",
        "00001.jpg[100,100,300,300]",
        "00003.jpg[10,20,130,160]",
    ]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([1, 0, 0], [1])
    assert [read_image(source).size for source in data.train.sources] == [
        (120, 140),
        (200, 200),
        (120, 140),
    ]
    everything = dior(tmp_path, more_than=0, min_side=1)
    assert everything.classes == ("bridge", "dam", "golffield", "ship")
    assert (len(everything.train), len(everything.test)) == (6, 2)
    with pytest.raises(DatasetError, match="no class has more than 50 objects of that size"):
        dior(tmp_path)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><object><name>&b;</name></object></annotation>"
)


@pytest.mark.parametrize(
    "text, message",
    [
        (BOMB, "a document type, 'a', has no place here"),
        ("", "no element found"),
        ("<annotation>", "no element found"),
        ("<annotation><object><name>x</name></object></annotation>", "could not convert"),
        (annotation(("", LARGE)), "an object has no name"),
        (annotation(("x", (1, 2, 3, "inf"))), "cannot convert float infinity"),
        (annotation(("x", (1, 2, 3, "nan"))), "cannot convert float NaN"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_damaged_annotations(tmp_path, text, message, encoding):
    dior_files(tmp_path, "Annotations", "Main", APART)
    (tmp_path / "Annotations" / "00002.xml").write_bytes(text.encode(encoding) if text else b"")
    with pytest.raises(DatasetError, match=rf"00002\.xml: damaged, or not the original.*{message}"):
        dior(tmp_path)


@pytest.mark.parametrize(
    "missing",
    ["JPEGImages-test", "Main/train.txt", "Annotations/00003.xml", "JPEGImages-trainval/00001.jpg"],
)
def test_missing_parts_of_dior(tmp_path, missing):
    dior_files(tmp_path, "Annotations", "Main", APART)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(DatasetError, match=f"{missing}: no such file.*JPEGImages-trainval.zip"):
        dior(tmp_path)


# WBC


def wbc_files(folder: Path) -> Path:
    """Six of class 1, three of class 2, one of class 5, mixed."""
    labels = [1, 2, 1, 1, 5, 1, 2, 1, 2, 1]
    for i in range(1, 11):
        draw(folder / "Dataset 1" / f"{i:03}.bmp", i)
        draw(folder / "Dataset 1" / f"{i:03}.png", i)  # the mask of the cell, not an image
    lines = ["image ID,class label", *(f"{i},{label}" for i, label in enumerate(labels, 1))]
    (folder / "Class Labels of Dataset 1.csv").write_text("\r\n".join(lines) + "\r\n")
    return folder


def test_wbc(tmp_path):
    data = wbc(wbc_files(tmp_path), more_than=2)
    assert data.classes == ("neutrophil", "lymphocyte")
    assert data.left_out == (
        "monocyte (0 images)",
        "eosinophil (0 images)",
        "basophil (1 images)",
    )
    assert (numbers(data.train), counts(data.train, "ab")) == ([1, 3, 4, 6, 2, 7], [4, 2])
    assert (numbers(data.test), counts(data.test, "ab")) == ([8, 10, 9], [2, 1])
    assert {Path(name).suffix for name in data.train.names} == {".bmp"}
    with pytest.raises(DatasetError, match="no class has more than 20 images"):
        wbc(tmp_path)


def test_damaged_wbc(tmp_path):
    labels = wbc_files(tmp_path) / "Class Labels of Dataset 1.csv"
    for line in ("7", "7,x", "7,0", "7,6", "7,1,1"):
        labels.write_text(f"image ID,class label\n1,1\n{line}\n")
        with pytest.raises(DatasetError, match=r"1\.csv, line 3: expected the number of an image"):
            wbc(tmp_path)
    labels.write_text("image ID,class label\n11,1\n")
    with pytest.raises(DatasetError, match=r"011\.bmp: no such file.*zxaoyou/segmentation_WBC"):
        wbc(tmp_path, more_than=0)
    labels.unlink()
    with pytest.raises(DatasetError, match=r"Class Labels of Dataset 1\.csv: no such file"):
        wbc(tmp_path)


# MVTec AD


def mvtec_files(root: Path, *categories: str) -> Path:
    for category in categories:
        for name in (
            "train/good/000",
            "test/good/000",
            "test/cut/000",
            "ground_truth/cut/000_mask",
        ):
            draw(root / category / f"{name}.png")
        (root / category / "readme.txt").write_text("x")
    return root


def test_mvtec_ad(tmp_path):
    mvtec_files(tmp_path, "bottle", "tile")
    found = mvtec_ad(tmp_path, ["tile", "bottle"])
    assert list(found) == ["tile", "bottle"]
    assert (found["tile"].name, found["tile"].classes) == ("tile", ("good", "cut"))
    assert found["tile"].test.masks == (f"{tmp_path}/tile/ground_truth/cut/000_mask.png", None)
    everything = combine(found.values(), "MVTec AD")
    assert everything.classes == ("tile/good", "tile/cut", "bottle/good", "bottle/cut")
    assert everything.is_anomaly(everything.test).tolist() == [True, False, True, False]
    assert len(everything.good_train()) == 2
    same = load_dataset(tmp_path / "tile")
    assert same.test.names == found["tile"].test.names


def test_incomplete_mvtec_ad(tmp_path):
    mvtec_files(tmp_path, "bottle")
    with pytest.raises(DatasetError, match=r"cable: no such .*mvtec_anomaly_detection\.tar\.xz"):
        mvtec_ad(tmp_path)
    mask = tmp_path / "bottle" / "ground_truth" / "cut" / "000_mask.png"
    mask.unlink()
    with pytest.raises(DatasetError, match=r"cut/000\.png: no mask in ground_truth"):
        mvtec_ad(tmp_path, ["bottle"])
    (tmp_path / "bottle" / "train" / "good").rename(tmp_path / "bottle" / "train" / "fine")
    with pytest.raises(DatasetError, match="train is not one folder `good`"):
        mvtec_ad(tmp_path, ["bottle"])
    (tmp_path / "tile").mkdir()
    with pytest.raises(DatasetError, match="tile: this folder holds no image files; the original"):
        mvtec_ad(tmp_path, ["tile"])
