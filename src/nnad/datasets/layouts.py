"""Your own images, in the layouts that people keep them in.

| layout              | files                                                                  |
|---------------------|------------------------------------------------------------------------|
| MVTec               | `train/good`, `test/<defect>`, `test/good`, and if there are masks     |
|                     | `ground_truth/<defect>/<image>_mask.png`                               |
| class folders       | `train/<class>` and `test/<class>`, or `<class>` alone: all train      |
| folders by argument | `normal_dir`, `abnormal_dir`, `normal_test_dir`, `mask_dir`, as in     |
|                     | anomalib's `Folder`                                                    |
| list                | CSV or JSON with `path` and, where wanted, `label`, `split`, `mask`    |

The root of all but the list may be a folder or a zip archive.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from nnad.datasets.dataset import Dataset, file_split
from nnad.errors import DatasetError, InputError
from nnad.image_files import find_in_folder
from nnad.lists import GOOD_NAMES, LIST_SUFFIXES, Entry, read_list

_LAYOUTS = (
    "train/good and test/<defect> (MVTec), train/<class> and test/<class>, <class> folders, "
    "a .csv or .json list, or folders named by normal_dir= and abnormal_dir="
)
_Tree = dict[PurePosixPath, str]  # path below the root -> path that can be opened
_Row = tuple[str, str, str | None]  # file, class, mask


def load_dataset(
    path: str | os.PathLike[str],
    *,
    normal_dir: str | None = None,
    abnormal_dir: str | Sequence[str] = (),
    normal_test_dir: str | None = None,
    mask_dir: str | Sequence[str] = (),
) -> Dataset:
    """Load labelled images; the layout is recognised, and told by `Dataset.layout`.

    Classes called `good` or `normal` are good, and the class of train if it has but one.

    Args:
        path: a folder, a zip archive or a folder in one, or a `.csv` or `.json` list.
        normal_dir: the folder of good images for training, below `path`. When it is given, so are
            the other folders, and nothing is guessed.
        abnormal_dir: one or more folders of anomalies; each is a class, named as the folder.
        normal_test_dir: the folder of good images for testing.
        mask_dir: for each `abnormal_dir` the folder with its masks, named as the images or with
            `_mask` added.

    Raises:
        DatasetError: the layout is none of those above, or a part of it is missing.
        InputError: the archive cannot be read, or folder arguments do not fit each other.
    """
    path = os.fspath(path)
    abnormal_dirs, mask_dirs = _as_list(abnormal_dir), _as_list(mask_dir)
    if normal_dir is None and (abnormal_dirs or normal_test_dir or mask_dirs):
        raise InputError("normal_dir: is needed when other folders are named")
    if path.lower().endswith(LIST_SUFFIXES) and Path(path).is_file():
        if normal_dir is not None:
            raise InputError(f"{path}: a list takes no folder arguments")
        return _from_list(path)
    files = find_in_folder(path)
    if files is None:
        what = "not a folder" if Path(path).exists() else "no such folder"
        raise DatasetError(f"{path}: {what}, .zip archive, or .csv or .json list")
    tree = as_tree(path, files)
    if normal_dir is not None:
        return _from_folders(path, tree, normal_dir, abnormal_dirs, normal_test_dir, mask_dirs)
    return _recognised(path, tree)


def as_tree(root: str, files: Iterable[str]) -> _Tree:
    """Files by their path below a root."""
    return {PurePosixPath(Path(file).relative_to(root).as_posix()): file for file in files}


def _recognised(path: str, tree: _Tree) -> Dataset:
    tops = {file.parts[0] for file in tree}
    if tops & {"train", "test"}:
        return split_folders(path, tree)
    shallow = min(len(file.parts) for file in tree)
    if len(tops) == 1 and shallow >= 3:  # a folder in between, as archives often have
        (top,) = tops
        return _recognised(f"{path}/{top}", {f.relative_to(top): p for f, p in tree.items()})
    if shallow == 1:
        stray = next(file for file in tree if len(file.parts) == 1)
        raise DatasetError(f"{path}: {stray} is in no class folder; known layouts: {_LAYOUTS}")
    labelled: list[_Row] = [(file, below.parts[0], None) for below, file in tree.items()]
    return _dataset(path, "class folders without a split", labelled, [])


def split_folders(path: str, tree: _Tree) -> Dataset:
    """The MVTec layout, or train and test with class folders."""
    masks = _masks(tree, "ground_truth")
    parts: dict[str, list[_Row]] = {"train": [], "test": []}
    others: Counter[str] = Counter()
    for below, file in tree.items():
        part, *inner = below.parts
        if part in parts:
            if len(inner) < 2:
                raise DatasetError(f"{file}: in no class folder; expected {part}/<class>/<image>")
            mask = masks.get(_stem(PurePosixPath(*inner))) if part == "test" else None
            parts[part].append((file, inner[0], mask))
        elif part != "ground_truth":
            others[part] += 1
    if not parts["train"]:
        raise DatasetError(f"{path}: no images in train; known layouts: {_LAYOUTS}")
    alone = len({name for _, name, _ in parts["train"]}) == 1
    split = "with train and test" if parts["test"] else "in train alone"
    layout = "MVTec layout" if alone and parts["test"] else f"class folders {split}"
    left_out = tuple(f"{top} ({count} images)" for top, count in sorted(others.items()))
    return _dataset(path, layout, parts["train"], parts["test"], left_out)


def _from_folders(
    path: str,
    tree: _Tree,
    normal_dir: str,
    abnormal_dirs: list[str],
    normal_test_dir: str | None,
    mask_dirs: list[str],
) -> Dataset:
    if len(mask_dirs) not in (0, len(abnormal_dirs)):
        raise InputError(f"mask_dir: {len(mask_dirs)} for {len(abnormal_dirs)} of abnormal_dir")

    def images(argument: str, folder: str) -> list[tuple[PurePosixPath, str]]:
        root = PurePosixPath(folder)
        found = [(p.relative_to(root), f) for p, f in tree.items() if p.is_relative_to(root)]
        if not found:
            raise DatasetError(f"{argument}={folder!r}: no images in {path}/{folder}")
        return found

    good = GOOD_NAMES[0]
    train: list[_Row] = [(file, good, None) for _, file in images("normal_dir", normal_dir)]
    test: list[_Row] = []
    if normal_test_dir is not None:
        test += [(file, good, None) for _, file in images("normal_test_dir", normal_test_dir)]
    for i, folder in enumerate(abnormal_dirs):
        masks = _masks(tree, mask_dirs[i]) if mask_dirs else {}
        for below, file in images("abnormal_dir", folder):
            test.append((file, PurePosixPath(folder).name, masks.get(_stem(below))))
    return _dataset(path, "folders by argument", train, test)


def _from_list(path: str) -> Dataset:
    entries = read_list(path)
    labels = _complete(entries, "label", GOOD_NAMES[0])
    splits = _complete(entries, "split", "train")
    first: dict[str, str] = {}
    parts: dict[str, list[_Row]] = {"train": [], "test": []}
    for entry, label, part in zip(entries, labels, splits, strict=True):
        if part not in parts:
            raise DatasetError(f"{entry.place}: split {part!r}; it is either train or test")
        if first.setdefault(entry.path, entry.place) != entry.place:
            raise DatasetError(
                f"{entry.place}: {entry.path} is there twice, see {first[entry.path]}"
            )
        parts[part].append((entry.path, label, entry.mask or None))
    return _dataset(path, "list", parts["train"], parts["test"])


def _complete(entries: list[Entry], key: str, default: str) -> list[str]:
    """One field of all entries: told for every one, or for none."""
    values: list[str] = [getattr(entry, key) for entry in entries]
    if not any(values):
        return [default] * len(values)
    if "" in values:
        raise DatasetError(f"{entries[values.index('')].place}: `{key}` is empty")
    return values


def _dataset(
    path: str,
    layout: str,
    train: list[_Row],
    test: list[_Row],
    left_out: tuple[str, ...] = (),
) -> Dataset:
    """Build a data set from (file, class, mask)."""
    found = sorted({name for _, name, _ in train + test})
    in_train = {name for _, name, _ in train}
    alone = in_train if len(in_train) == 1 else set()
    good = [name for name in found if name.casefold() in GOOD_NAMES or name in alone]
    classes = (*good, *(name for name in found if name not in good))
    numbers = {name: i for i, name in enumerate(classes)}

    root = Path(path).resolve()
    return Dataset(
        root.stem if root.is_file() else root.name,
        layout,
        classes,
        file_split((file, numbers[name], mask) for file, name, mask in train),
        file_split((file, numbers[name], mask) for file, name, mask in test),
        good=tuple(range(len(good))),
        left_out=left_out,
    )


def _masks(tree: _Tree, folder: str) -> dict[str, str]:
    """The masks in a folder by the image they belong to."""
    found = {p.relative_to(folder): f for p, f in tree.items() if p.is_relative_to(folder)}
    return {_stem(below).removesuffix("_mask"): file for below, file in found.items()}


def _stem(below: PurePosixPath) -> str:
    return str(below.with_suffix(""))


def _as_list(folders: str | Sequence[str]) -> list[str]:
    return [folders] if isinstance(folders, str) else list(folders)
