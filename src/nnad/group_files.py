"""Folders of folders, lists with a column `group` and mappings -> named groups of pictures."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from nnad.errors import InputError
from nnad.image_files import EXTENSIONS, find_images, find_in_folder
from nnad.images import Source
from nnad.lists import LIST_SUFFIXES, read_list
from nnad.sources import without_repeats

PathLike: TypeAlias = str | os.PathLike[str]
Groups: TypeAlias = PathLike | Iterable[PathLike] | Mapping[str, Source | Iterable[Source]]


class Group(NamedTuple):
    """A named group; `members` are named pictures, none if a folder is empty."""

    name: str
    members: list[tuple[str, Source]]


def find_groups(groups: Groups, *, only_good: bool = False) -> list[Group]:
    """Name every group and its pictures, in order.

    Each sub-folder of a folder or a `.zip` archive is a group of all pictures in it and below,
    named by its path; a folder of pictures without sub-folders is one group. In a list, `.csv` or
    `.json`, see `nnad.lists`, the column `group` tells.

    Args:
        groups: a path of these, several, or a mapping from names to what `find_images` takes.
        only_good: refuse lists as `find_images` does.

    Raises:
        InputError: nothing is found, a name is given twice, or pictures belong to no group.
    """
    if isinstance(groups, Mapping):
        found = [
            Group(str(name), list(find_images(images, only_good=only_good)))
            for name, images in groups.items()
        ]
    else:
        paths = [groups] if isinstance(groups, str | os.PathLike) else groups
        found = [group for path in paths for group in _in_path(os.fspath(path), only_good)]
    seen: set[str] = set()
    for name, _ in found:
        if name in seen:
            raise InputError(f"{name}: two groups have this name")
        seen.add(name)
    if not found:
        raise InputError("groups: there are none")
    return found


def without_repeated(groups: list[Group]) -> list[Group]:
    """Each file once in a group, and groups of the same files, however spelt, once."""
    kept = []
    seen: set[frozenset[str]] = set()
    for name, members in groups:
        group = Group(name, without_repeats(members))
        paths = [source for _, source in group.members if isinstance(source, str | os.PathLike)]
        files = frozenset(map(os.path.realpath, paths))
        if files and len(files) == len(group.members):  # pictures in memory have no place
            if files in seen:
                continue
            seen.add(files)
        kept.append(group)
    return kept


def _in_path(path: str, only_good: bool) -> list[Group]:
    if os.path.isdir(path):  # noqa: PTH112 (as image_files)
        return _in_folder(path)
    if path.lower().endswith(LIST_SUFFIXES):
        return _in_list(path, only_good)
    members = find_in_folder(path)  # of an archive
    if members is None:
        raise InputError(f"{path}: groups are folders, zip archives or lists (.csv, .json)")
    return _by_first_part(path, members)


def _in_folder(path: str) -> list[Group]:
    try:
        entries = [e for e in sorted(os.scandir(path), key=lambda e: e.name) if e.name[0] != "."]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    folders = [str(Path(path, e.name)) for e in entries if e.is_dir()]
    beside = [
        e.name for e in entries if not e.is_dir() and Path(e.name).suffix.lower() in EXTENSIONS
    ]
    if not folders:
        return [_named(path, find_in_folder(path) or [])]
    if beside:
        raise _in_no_group(path, beside[0])
    return [_named(folder, _pictures(folder)) for folder in folders]


def _pictures(folder: str) -> list[str]:
    try:
        return find_in_folder(folder) or []
    except InputError:  # an empty one is told of when it is scored
        return []


def _by_first_part(path: str, members: list[str]) -> list[Group]:
    parts = {member: Path(member).relative_to(path).parts for member in members}
    beside = [member for member in members if len(parts[member]) == 1]
    if len(beside) == len(members):
        return [_named(path, members)]
    if beside:
        raise _in_no_group(path, parts[beside[0]][0])
    found: dict[str, list[str]] = {}
    for member in members:
        found.setdefault(str(Path(path, parts[member][0])), []).append(member)
    return [_named(name, paths) for name, paths in found.items()]


def _in_list(path: str, only_good: bool) -> list[Group]:
    list(find_images(path, only_good=only_good))  # refuses what is not to be learnt from
    found: dict[str, list[str]] = {}
    for entry in read_list(path):
        if not entry.group:
            raise InputError(f"{entry.place}: no `group`; a list of groups has one in each line")
        found.setdefault(entry.group, []).append(entry.path)
    return [_named(name, paths) for name, paths in found.items()]


def _named(name: str, paths: list[str]) -> Group:
    return Group(name, [(path, path) for path in paths])


def _in_no_group(path: str, picture: str) -> InputError:
    return InputError(
        f"{path}: {picture} lies beside the sub-folders, which are the groups; move it into one"
    )
