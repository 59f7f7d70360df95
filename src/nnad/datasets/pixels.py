"""Data sets whose original is a block of pixels: CIFAR-10 and -100, MNIST, Fashion-MNIST."""

import gzip
import io
import math
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnad.datasets.dataset import Dataset, Split, original, require
from nnad.errors import DatasetError
from nnad.opcodes import MalformedError, interpret

_CIFAR_ORIGIN = "in {} or {} from https://www.cs.toronto.edu/~kriz/cifar.html"
_MNIST_ORIGIN = (
    "train-images-idx3-ubyte.gz and three like it from http://yann.lecun.com/exdb/mnist/"
)
_FASHION_ORIGIN = (
    "train-images-idx3-ubyte.gz and three like it from "
    "https://github.com/zalandoresearch/fashion-mnist, or Debian's package dataset-fashion-mnist"
)
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_SIDE = 32  # of a CIFAR image
_PIXELS = 3 * _SIDE * _SIDE
_LARGEST = 2**28  # bytes of one file; the largest original, CIFAR-100's train, has 155 MB

Path_ = str | os.PathLike[str]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def cifar10(path: Path_) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32 x 32 pixels, 10 classes.

    Args:
        path: `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, or the folder one unpacks to.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    archives = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
    trains = [f"data_batch_{i}" for i in range(1, 6)]
    pickled = ["batches.meta", *trains, "test_batch"]
    binary = ["batches.meta.txt", *(f"{name}.bin" for name in (*trains, "test_batch"))]
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin")
    files = _files(Path(path), folders, (pickled, binary), _CIFAR_ORIGIN.format(*archives))
    if "batches.meta" in files:
        classes = _texts(_unpickle(files, "batches.meta"), "label_names")
        parts = [_pickled_batch(files, name, "labels", len(classes)) for name in pickled[1:]]
    else:
        classes = _lines(files, "batches.meta.txt")
        parts = [_binary_batch(files, name, (1, 0), len(classes)) for name in binary[1:]]
    return _dataset("CIFAR-10", path, classes, parts[:-1], parts[-1])


def cifar100(path: Path_, *, coarse: bool = True) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32 x 32 pixels.

    Args:
        path: `cifar-100-python.tar.gz`, `cifar-100-binary.tar.gz`, or the folder one unpacks to.
        coarse: the 20 coarse classes (the default, as in DN2, Table 2), or the 100 fine ones.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    archives = ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz")
    kind = "coarse" if coarse else "fine"
    pickled = ["meta", "train", "test"]
    binary = [f"{kind}_label_names.txt", "train.bin", "test.bin"]
    folders = ("cifar-100-python", "cifar-100-binary")
    files = _files(Path(path), folders, (pickled, binary), _CIFAR_ORIGIN.format(*archives))
    if "meta" in files:
        classes = _texts(_unpickle(files, "meta"), f"{kind}_label_names")
        parts = [_pickled_batch(files, n, f"{kind}_labels", len(classes)) for n in pickled[1:]]
    else:
        classes = _lines(files, binary[0])
        place = (2, 0) if coarse else (2, 1)
        parts = [_binary_batch(files, name, place, len(classes)) for name in binary[1:]]
    return _dataset(f"CIFAR-100 {kind}", path, classes, parts[:1], parts[1])


def mnist(folder: Path_) -> Dataset:
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 grey images of 28 x 28 pixels, ten digits.

    Args:
        folder: holds the four original idx files, packed with gzip or not.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    return _from_idx("MNIST", Path(folder), list("0123456789"), _MNIST_ORIGIN)


def fashion_mnist(folder: Path_) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017): as MNIST, ten kinds of clothing.

    Args:
        folder: holds the four original idx files, packed with gzip or not.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    return _from_idx("Fashion-MNIST", Path(folder), _FASHION.split(","), _FASHION_ORIGIN)


def read_idx(path: Path) -> Images:
    """Read an idx file of unsigned bytes, packed with gzip (`.gz`) or not, in its own shape.

    Raises:
        DatasetError: it is damaged, or holds something else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08":
                raise DatasetError(f"{path}: not an idx file of bytes (it begins with {magic!r})")
            header = file.read(4 * magic[3])
            shape = np.frombuffer(header[: len(header) // 4 * 4], ">u4").tolist()
            size = math.prod(shape)
            content = file.read(min(size, _LARGEST) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: damaged idx file: {error}") from None
    if len(shape) != magic[3] or len(content) != size:
        raise DatasetError(f"{path}: damaged idx file: its size is not that of {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _from_idx(name: str, folder: Path, classes: list[str], origin: str) -> Dataset:
    def part(prefix: str) -> tuple[Images, Labels]:
        paths = []
        for stem in (f"{prefix}-images{{}}idx3-ubyte", f"{prefix}-labels{{}}idx1-ubyte"):
            spellings = [folder / (stem.format(mark) + end) for mark in "-." for end in ("", ".gz")]
            found = [path for path in spellings if path.is_file()]
            paths.append(found[0] if found else require(spellings[1], origin))
        images, labels = (read_idx(path) for path in paths)
        if images.ndim != 3 or labels.ndim != 1:
            raise DatasetError(f"{paths[0]}: not a stack of images with a list of labels")
        return _checked(images, labels, len(classes), paths[1])

    return _dataset(name, folder, classes, [part("train")], part("t10k"))


def _files(
    path: Path, folders: tuple[str, str], variants: tuple[list[str], list[str]], origin: str
) -> dict[str, bytes]:
    """The bytes of all files of one of two variants, from a folder or a tar archive."""
    require(path, origin)
    wanted = {name for names in variants for name in names}
    if path.is_file():
        found = _from_tar(path, wanted)
    else:
        places = [path, *(path / folder for folder in folders)]
        inside = [p for p in places if any((p / names[0]).is_file() for names in variants)]
        folder = inside[0] if inside else path
        found = {n: (folder / n).read_bytes() for n in wanted if (folder / n).is_file()}
    names = next((names for names in variants if names[0] in found), variants[0])
    for name in names:
        if name not in found:
            raise DatasetError(f"{path / name}: no such file; the original is {origin}")
    return {name: found[name] for name in names}


def _from_tar(path: Path, wanted: set[str]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile() and member.size <= _LARGEST:
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: not a tar archive, or damaged: {error}") from None
    return found


class _Array:
    """A numpy array that a pickle describes; `state` is what numpy would be given."""

    state: Any = None


def _reduce(function: Any, arguments: Any) -> Any:
    if function == "numpy.core.multiarray _reconstruct":
        return _Array()
    if function == "numpy dtype" and arguments[0] == "u1":
        return "u1"
    raise MalformedError(f"the file wants to call {str(function)[:60]!r}")


def _build(value: Any, state: Any) -> None:
    if isinstance(value, _Array):
        value.state = state


def _unpickle(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """One of the original pickles, written by Python 2, as plain data; nothing is executed.

    Its bytes are taken out of `files`, to be freed.
    """
    try:
        content = interpret(io.BytesIO(files.pop(name)), _reduce, _build)
        if not isinstance(content, dict):
            raise MalformedError("not a dictionary")
        return content
    except Exception as error:  # whatever a mutilated file makes of the interpreter's stack
        raise DatasetError(f"{name}: damaged, or not the original file: {error}") from error


def _pickled_batch(
    files: dict[str, bytes], name: str, key: str, classes: int
) -> tuple[Images, Labels]:
    batch = _unpickle(files, name)
    try:
        _, shape, dtype, fortran, raw = batch["data"].state
        if dtype != "u1":
            raise TypeError("the pixels are not bytes")
        flat = np.frombuffer(raw.encode("latin-1"), np.uint8)
        images = _channels_last(flat.reshape(shape, order="F" if fortran else "C"))
        labels = np.array(batch[key], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DatasetError(f"{name}: damaged, or not the original file: {error!r}") from error
    return _checked(images, labels, classes, name)


def _binary_batch(
    files: dict[str, bytes], name: str, place: tuple[int, int], classes: int
) -> tuple[Images, Labels]:
    """Records of `place[0]` labels, of which `place[1]` is the one wanted, and the pixels."""
    count, wanted = place
    content = np.frombuffer(files.pop(name), np.uint8)
    if not len(content) or len(content) % (count + _PIXELS):
        raise DatasetError(f"{name}: damaged: {len(content):,} bytes are not whole records")
    records = content.reshape(-1, count + _PIXELS)
    return _checked(_channels_last(records[:, count:]), records[:, wanted], classes, name)


def _channels_last(flat: Images) -> Images:
    """Rows of red, green and blue planes (N, 3072) -> (N, 32, 32, 3)."""
    planes = flat.reshape(-1, 3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _checked(
    images: Images, labels: NDArray[Any], classes: int, name: object
) -> tuple[Images, Labels]:
    if labels.shape != (len(images),):
        raise DatasetError(f"{name}: damaged: {len(images)} images, labels {labels.shape}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise DatasetError(f"{name}: damaged: labels beyond the {classes} classes")
    return images, labels.astype(np.int64)


def _texts(content: dict[str, Any], key: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"no list of class names {key!r} in the meta file: damaged")
    return names


def _lines(files: dict[str, bytes], name: str) -> list[str]:
    return files[name].decode("ascii", "replace").split()


def _dataset(
    name: str,
    path: Path_,
    classes: list[str],
    train: list[tuple[Images, Labels]],
    test: tuple[Images, Labels],
) -> Dataset:
    joined = np.concatenate([images for images, _ in train])
    labels = np.concatenate([labels for _, labels in train])
    splits = (_split("train", joined, labels), _split("test", *test))
    return Dataset(name, original(path), tuple(classes), *splits)


def _split(part: str, images: Images, labels: Labels) -> Split:
    names = tuple(f"{part}[{i}]" for i in range(len(images)))
    return Split(names, tuple(images), labels, (None,) * len(images))
