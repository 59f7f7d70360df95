"""Look over folders of pictures before a fit: duplicates, leaks, pictures of another kind.

    paths -> facts of each file (in threads) -> comparisons -> findings

Two pictures are the same if their files are, or their pixels after decoding and EXIF rotation; they
are nearly the same by `nnad.near_duplicates`. Clusters are told, not pairs: what is linked over
others is in one cluster. `KINDS` lists what can be found; errors are certain to falsify a fit or a
test, warnings have to be looked at, notes are only told.
"""

import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nnad.cores import usable_cores
from nnad.errors import ImageError, InputError, counted
from nnad.image_files import describe_passed_over, find_images, passed_over
from nnad.image_limits import is_turned
from nnad.images import FORMATS, collected_warnings, read_image
from nnad.near_duplicates import near_pairs, thumbnail
from nnad.progress import track
from nnad.zips import read_member

# kind: its severity and what to do
KINDS = {
    "unreadable": ("error", "nnad leaves them out; mend or remove them"),
    "leak": ("error", "the same picture in two sets: a test must not repeat what was fitted"),
    "duplicates": ("error", "copies find each other and break the promise; keep one of each"),
    "near-leak": ("warning", "one part in two sets? A test must not repeat what was fitted"),
    "near-duplicates": ("warning", "a burst of one part? It breaks the promise; keep one of each"),
    "size": ("warning", "few of this size in their set: a thumbnail, a screenshot?"),
    "shape": ("warning", "few of this shape in their set: cut differently, turned?"),
    "mode": ("warning", "few of this kind in their set: another camera or program?"),
    "sets-differ": ("warning", "test pictures must come from the same source as good ones"),
    "single-colour": ("warning", "nothing is on them; remove them"),
    "tiny": ("warning", "too small to show a part; remove them"),
    "reading": ("warning", "read, but perhaps not as you expect"),
    "mixed": ("note", "no size or mode is usual, or there are several"),
    "rotated": ("note", "turned by their EXIF orientation, as in fit and score"),
    "passed-over": ("note", "not looked at, as in fit and score"),
}
MINORITY = 0.1  # the share of a set that is few; in a set of three or more a single one always is
ODD_SHAPE = 1.5  # width / height differs by more than this factor from the set's median
TINY = 32  # pixels a side
_CHUNK = 64  # pictures given to the threads at a time
_MODES = {"1": "black and white", "L": "grey", "P": "palette", "RGB": "colour"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know: its kind (of `KINDS`), severity, one line of text, and the files."""

    kind: str
    severity: str
    message: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in `sets`: pictures `read`, and findings in the order of `KINDS`."""

    sets: tuple[str, ...]
    read: int
    findings: tuple[Finding, ...]

    @property
    def serious(self) -> bool:
        """Whether anything should be mended or looked at before a fit: all but notes."""
        return any(finding.severity != "note" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Facts:
    name: str
    subset: int  # which of the sets
    size: tuple[int, int]
    mode: str
    single_colour: bool
    rotated: bool
    warnings: tuple[str, ...]
    file_hash: bytes
    pixel_hash: bytes
    thumbnail: NDArray[np.float32]  # (3072,)


def preflight(
    sets: Sequence[str | os.PathLike[str]], *, workers: int | None = None, progress: bool = False
) -> Report:
    """Look over sets of pictures. The report depends on nothing but the files and their names.

    Args:
        sets: folders, archives, lists, globs or files; each is a set, such as the good images
            or those of a test.
        workers: threads that decode; one a core by default.
        progress: show a bar on a terminal.

    Memory: 50 KB a picture beside the few that are being decoded.

    Raises:
        InputError: no set, or one without image files.
    """
    paths = [os.fspath(one) for one in sets]
    if not paths:
        raise InputError("preflight: no folder given")
    named = [(name, i) for i, one in enumerate(paths) for name in _names(one)]
    seen, unreadable = [], []
    looked = _look_at_all(named, workers or usable_cores())
    for facts in track(looked, len(named), "looking", show=progress):
        if isinstance(facts, Finding):
            unreadable.append(facts)
        else:
            seen.append(facts)
    findings = [
        *unreadable,
        *_duplicates(seen, paths),
        *_odd_ones(seen, paths),
        *_single_pictures(seen),
    ]
    if others := passed_over(paths):
        findings.append(_finding("passed-over", describe_passed_over(others)))
    order = list(KINDS)
    findings.sort(key=lambda finding: order.index(finding.kind))
    return Report(tuple(paths), len(seen), tuple(findings))


def _finding(kind: str, message: str, files: Sequence[str] = ()) -> Finding:
    return Finding(kind, KINDS[kind][0], message, tuple(files))


def _names(one: str) -> list[str]:
    """The image files of a set; one that is there twice by links counts once."""
    places = {os.path.realpath(name): name for name, _ in reversed(list(find_images(one)))}
    return list(reversed(places.values()))


def _look_at_all(named: list[tuple[str, int]], workers: int) -> Iterator[_Facts | Finding]:
    with ThreadPoolExecutor(workers, thread_name_prefix="nnad") as pool:
        for start in range(0, len(named), _CHUNK):
            yield from pool.map(_look, *zip(*named[start : start + _CHUNK], strict=True))


def _look(name: str, subset: int) -> _Facts | Finding:
    try:
        with collected_warnings() as warned:
            image = read_image(name)
        path = Path(name)
        content = path.read_bytes() if path.is_file() else read_member(path) or b""
        with Image.open(io.BytesIO(content), formats=FORMATS) as original:
            mode, rotated = _mode(original), is_turned(original)
    except ImageError as error:
        return _finding("unreadable", str(error), [name])
    except Exception as error:  # as in read_image: it changed in between, or its EXIF is damaged
        return _finding("unreadable", f"{name}: damaged image: {error}", [name])
    small = thumbnail(image)
    channels = small.reshape(-1, 3)
    if mode.startswith("colour") and np.ptp(channels, axis=1).max() < 1e-3:
        mode = mode.replace("colour", "grey saved as colour")
    return _Facts(
        name=name,
        subset=subset,
        size=image.size,
        mode=mode,
        single_colour=image.getcolors(maxcolors=1) is not None,
        rotated=rotated,
        warnings=tuple(message.removeprefix(f"{name}: ") for message in warned),
        file_hash=hashlib.sha256(content).digest(),
        pixel_hash=hashlib.sha256(b"%d %d " % image.size + image.tobytes()).digest(),
        thumbnail=small,
    )


def _mode(image: ImageFile.ImageFile) -> str:
    """`colour`, `16-bit grey`, `colour with alpha`, ..., or Pillow's own name of a rarer mode."""
    mode, alpha = image.mode, image.has_transparency_data
    if mode.startswith("I") or ";16" in str(image.tile):  # 16-bit colour comes as 8-bit RGB
        mode = "16-bit " + ("grey" if mode[0] in "IL" else "colour")
    else:
        mode = _MODES.get(mode.removesuffix("A"), mode)
    return f"{mode} with alpha" if alpha else mode


def _duplicates(seen: list[_Facts], sets: Sequence[str]) -> Iterator[Finding]:
    same = _components(len(seen), _equal_pairs(seen))  # (N,) number of the group of each picture
    _, firsts = np.unique(same, return_index=True)
    if not len(firsts):
        return
    pairs = near_pairs(np.stack([seen[i].thumbnail for i in firsts]))
    near = _components(len(firsts), pairs)[same]  # (N,)
    for groups, near_, what in ((same, "", "the same"), (near, "near-", "nearly the same")):
        for rows in _groups(groups):
            if near_ and len(set(same[rows])) == 1:
                continue  # told already: exactly the same
            inside = list(dict.fromkeys(sets[seen[i].subset] for i in rows))
            message = f"{len(rows)} pictures, {what}, in {' and '.join(inside)}"
            kind = "leak" if len({seen[i].subset for i in rows}) > 1 else "duplicates"
            yield _finding(near_ + kind, message, [seen[i].name for i in rows])


def _equal_pairs(seen: list[_Facts]) -> NDArray[np.int64]:
    """Rows (P, 2): each picture and the first with the same file, or with the same pixels."""
    firsts: dict[bytes, int] = {}
    pairs = [
        (firsts.setdefault(digest, row), row)
        for row, facts in enumerate(seen)
        for digest in (b"file" + facts.file_hash, b"pixels" + facts.pixel_hash)
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _components(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number (N,) of the connected component of each row, in the order of their first rows."""
    ones = np.ones(len(pairs), dtype=bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _groups(numbers: NDArray[np.int64]) -> list[list[int]]:
    """Rows with the same number, where there are two or more."""
    rows = defaultdict(list)
    for row, number in enumerate(numbers):
        rows[number].append(row)
    return [group for group in rows.values() if len(group) > 1]


def _odd_ones(seen: list[_Facts], sets: Sequence[str]) -> Iterator[Finding]:
    for kind in ("size", "mode"):
        usual = {}
        for subset, path in enumerate(sets):
            files = defaultdict(list)  # value -> names
            members = [facts for facts in seen if facts.subset == subset]
            for facts in members:
                files[facts.mode if kind == "mode" else _size(facts)].append(facts.name)
            total = len(members)
            ordered = sorted(files, key=lambda value: -len(files[value]))
            few: list[str] = []
            if ordered and len(files[ordered[0]]) > total / 2:
                most = usual[path] = ordered[0]
                few = [value for value in ordered[1:] if _is_few(len(files[value]), total)]
                if few:
                    message = f"{_listed(files, few)}; {len(files[most])} of {total} in {path} are "
                    odd = [name for value in few for name in files[value]]
                    yield _finding(kind, message + most, odd)
            elif kind == "size":
                yield from _odd_shapes(members, path)
            if len(ordered) - len(few) > 1:
                told = f"{counted(len(ordered), kind)}: {_listed(files, ordered)}"
                yield _finding("mixed", f"{path}: {told}")
        if len(set(usual.values())) > 1:
            told = "; ".join(f"{value} in {path}" for path, value in usual.items())
            yield _finding("sets-differ", f"usual {kind}: {told}")


def _listed(files: dict[str, list[str]], values: list[str]) -> str:
    told = ", ".join(f"{value} ({len(files[value])})" for value in values[:5])
    return told + (", ..." if len(values) > 5 else "")


def _odd_shapes(members: list[_Facts], path: str) -> Iterator[Finding]:
    if members:
        shapes = np.log([facts.size[0] / facts.size[1] for facts in members])
        odd = np.flatnonzero(np.abs(shapes - np.median(shapes)) > np.log(ODD_SHAPE))
        if len(odd) and _is_few(len(odd), len(members)):
            usual = np.exp(np.median(shapes))
            message = f"width / height is usually about {usual:.2g} in {path}, and far from it in "
            message += counted(len(odd), "picture")
            yield _finding("shape", message, [members[i].name for i in odd])


def _is_few(count: int, total: int) -> bool:
    return total > 2 and count <= max(1, MINORITY * total)


def _size(facts: _Facts) -> str:
    return f"{facts.size[0]} x {facts.size[1]}"


def _single_pictures(seen: list[_Facts]) -> Iterator[Finding]:
    warned = defaultdict(list)  # the same warning, but for its numbers -> (warning, name)
    for facts in seen:
        for text in facts.warnings:
            warned[re.sub(r"\d+", "0", text)].append((text, facts.name))
    told = [("reading", like[0][0], [name for _, name in like]) for like in warned.values()]
    told += [
        ("single-colour", "a single colour", [f.name for f in seen if f.single_colour]),
        ("tiny", f"a side below {TINY} pixels", [f.name for f in seen if min(f.size) < TINY]),
        ("rotated", "stored turned or mirrored", [f.name for f in seen if f.rotated]),
    ]
    for kind, message, files in told:
        if files:
            yield _finding(kind, f"{counted(len(files), 'picture')}: {message}", files)
