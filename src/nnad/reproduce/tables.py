"""What a table of a paper is made of.

    table -> entries, the numbers printed -> cells, what is computed: one AUROC each

An entry is the mean of its cells, such as those of all classes and draws. The same cell may be part
of entries of several tables; it is computed once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from nnad.baselines import NAMES
from nnad.errors import InputError

_NETWORK = "{network}"
OURS = ", ours"  # the end of the name of a column that is not the paper's
FEATURES = "features"  # the system that is nothing but features and an operator
ADAPTED = ("panda", "panda-ewc", "msad")  # features of a network that was adapted
BASELINES = NAMES  # score pictures by themselves
SYSTEMS = (FEATURES, *ADAPTED, *BASELINES)


@dataclass(frozen=True)
class System:
    """What scores images.

    Attributes:
        name: `features`, or what is trained: see `trained`.
        backbone: as for `load_backbone`; None for systems without one.
        operator: a name for `make_operator`; None for systems that score by themselves.
        arguments: of the operator.
        transform: of the features; `auto` as in `Detector`.
        pooling: of the backbone's last map, `mean` or `max`; None for its own.
        clean: the share of training images that DN2's cleaning drops before the fit.
    """

    name: str = FEATURES
    backbone: str | None = None
    operator: str | None = "knn"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: str = "raw"
    pooling: str | None = None
    clean: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One AUROC.

    Attributes:
        data: a name of `data.DATA`, or of `protocols.SHAPES`.
        protocol: `one class`, `groups`, ...: see `compute.task_of`.
        label: the class or set that the protocol is about, or empty.
        options: of the protocol: everything that its task depends on but the data.
        system: what scores.
    """

    data: str
    protocol: str
    label: str
    options: Mapping[str, Any]
    system: System

    def task(self) -> str:
        """What is learnt from and scored, as text that differs for different tasks."""
        return json.dumps([self.data, self.protocol, self.options], sort_keys=True)

    def unit(self) -> str:
        """What stands for itself in a test: the class, the sets, else the draw."""
        names = ("number", "sets", "seed")
        return next((f"{name} {self.options[name]}" for name in names if name in self.options), "")


@dataclass(frozen=True)
class Entry:
    """A number of a table.

    Attributes:
        row, column: where it stands; `{network}` in them is replaced by the backbone's name.
        data, protocol, options, system: see `Cell`; options without the class and `over`.
        classes: of which it is the mean: `all`, `first 20` by alphabet, the numbers of some; None
            if the protocol is not about a class.
        over: further options, each with the values of which it is the mean, such as seeds.
        paper: what the paper says, as it is printed; None if it cannot be read from it.
    """

    row: str
    column: str
    data: str
    protocol: str
    system: System
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: str | tuple[int, ...] | None = "all"
    over: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    paper: float | None = None

    def cells(self, names: Sequence[str]) -> Iterator[Cell]:
        """Its cells, for data whose classes have these names."""
        from nnad.protocols import first_classes

        chosen: Sequence[int | None]
        if self.classes is None:
            chosen = [None]
        elif isinstance(self.classes, tuple):
            chosen = self.classes
        else:
            chosen = first_classes(names, 20 if self.classes == "first 20" else len(names))
        for number in chosen:
            for values in product(*self.over.values()):
                options = {**self.options, **dict(zip(self.over, values, strict=True))}
                label = " ".join(options.get("sets", ()))
                if number is not None:
                    options["number"], label = number, names[number]
                yield Cell(self.data, self.protocol, label, options, self.system)


@dataclass(frozen=True)
class Table:
    """A table or a figure of a paper.

    Attributes:
        paper: `dn2` or `knnn`.
        kind: `table`, `figure`, or `section` where numbers stand in the text alone.
        number: as in the paper.
        caption: what it shows, in our words.
        entries: in the order of the paper.
        percent: whether the paper prints percentages.
        digits: that the paper prints after the point.
        against: column -> the column that it is compared with.
        main: the column that columns of ours are compared with; none if empty.
        by_row: each row is compared by itself.
        networks: its rows are networks.
        shows_features: it is a picture of the test features of its entries.
        notes: what the paper leaves open, and what is done here.
    """

    paper: str
    kind: str
    number: str
    caption: str
    entries: tuple[Entry, ...]
    percent: bool = True
    digits: int = 1
    against: Mapping[str, str] = field(default_factory=dict)
    main: str = ""
    by_row: bool = False
    networks: bool = False
    shows_features: bool = False
    notes: str = ""

    @property
    def name(self) -> str:
        """Such as `dn2-table-1`: the name of its files."""
        return f"{self.paper}-{self.kind}-{self.number}"

    @property
    def title(self) -> str:
        """Such as `DN2, Table 1`."""
        return f"{TITLES[self.paper]}, {self.kind.capitalize()} {self.number}"

    @property
    def backbones(self) -> list[str]:
        """Of its entries, in their order."""
        return list(dict.fromkeys(e.system.backbone for e in self.entries if e.system.backbone))

    def unique(self, what: str) -> list[str]:
        """Its rows, columns or data, in their order."""
        return list(dict.fromkeys(getattr(entry, what) for entry in self.entries))


TITLES = {"dn2": "DN2", "knnn": "k-NNN"}


def all_tables() -> list[Table]:
    """Of both papers, in their order."""
    from nnad.reproduce import dn2, knnn

    return [*dn2.TABLES, *knnn.TABLES]


def find_table(paper: str, kind: str, number: str) -> Table:
    """One of them.

    Raises:
        InputError: there is no such paper, table or figure here.
    """
    of_paper = [table for table in all_tables() if table.paper == paper]
    if not of_paper:
        raise InputError(f"paper={paper!r}; choose one of {', '.join(TITLES)}")
    for table in of_paper:
        if (table.kind, table.number) == (kind, number):
            return table
    known = ", ".join(table.number for table in of_paper if table.kind == kind)
    raise InputError(f"{TITLES[paper]} has no {kind} {number} that can be run; there are: {known}")


def full_name(backbone: str) -> str:
    """`resnet101` -> `torchvision:resnet101`; other names as they are."""
    if backbone.startswith(("resnet", "resnext", "wide_resnet")):
        return f"torchvision:{backbone}"
    return backbone


def short_name(backbone: str) -> str:
    """`torchvision:resnet101` -> `resnet101`, for people."""
    return backbone.partition(":")[2] or backbone


def with_backbones(table: Table, names: Sequence[str]) -> Table:
    """The same with other networks.

    Args:
        table: as declared.
        names: one network, which takes the place of all; or for a table of networks, its rows.

    Raises:
        InputError: several for a table of one.
    """
    if not names:
        return _networks_told(table)
    if not table.networks:
        if len(names) > 1:
            raise InputError(f"backbone: {table.title} takes one; it was given {len(names)}")
        changed = tuple(
            replace(e, system=replace(e.system, backbone=names[0])) if e.system.backbone else e
            for e in table.entries
        )
        return _networks_told(replace(table, entries=changed))
    own = table.backbones
    entries = []
    for name in names:
        like = name if name in own else own[0]
        for entry in table.entries:
            if entry.system.backbone == like:
                system = replace(entry.system, backbone=name)
                paper = entry.paper if name == like else None
                entries.append(replace(entry, system=system, paper=paper))
    return _networks_told(replace(table, entries=tuple(entries)))


def _networks_told(table: Table) -> Table:
    def told(entry: Entry) -> Entry:
        name = short_name(entry.system.backbone or "")
        row, column = (text.replace(_NETWORK, name) for text in (entry.row, entry.column))
        return replace(entry, row=row, column=column)

    columns = {e.column: told(e).column for e in table.entries}
    against = {columns.get(a, a): columns.get(b, b) for a, b in table.against.items()}
    main = columns.get(table.main, table.main)
    entries = tuple(told(entry) for entry in table.entries)
    return replace(table, entries=entries, against=against, main=main)


def with_transform(table: Table, name: str) -> Table:
    """The same with another transform of all features."""
    entries = tuple(
        replace(e, system=replace(e.system, transform=name)) if e.system.backbone else e
        for e in table.entries
    )
    return replace(table, entries=entries)


def with_operators(table: Table, names: Sequence[str], transform: str) -> Table:
    """The same with further columns: other operators on the features of each row's first system.

    Args:
        table: as declared.
        names: of operators, or of presets, which bring their own transform.
        transform: of the features for the others.
    """
    return _with_columns(table, {name: _operator(name, transform) for name in names})


def with_systems(table: Table, names: Sequence[str]) -> Table:
    """The same with further columns: systems that learn, where the table has none of that name.

    Adapted networks are scored by k-NN (k = 2) on features of length 1.
    """
    known = {entry.system.name for entry in table.entries}
    knn = {"operator": "knn", "arguments": {"k": 2}, "transform": "l2"}
    own: dict[str, Any] = {"operator": None, "arguments": {}, "transform": "raw", "backbone": None}
    changes = {
        name: {"name": name, **(knn if name in ADAPTED else own)}
        for name in names
        if name not in known
    }
    return _with_columns(table, changes, without=("plane", "groups"))


def _with_columns(
    table: Table, changes: Mapping[str, Mapping[str, Any]], without: Sequence[str] = ()
) -> Table:
    """The same with a column for each change of each row's first system of features.

    Rows of some protocols are left `without`.
    """
    entries = list(table.entries)
    for name, change in changes.items():
        seen = set()
        for entry in table.entries:
            of_features = entry.system.name == FEATURES and entry.protocol not in without
            if of_features and (entry.row, entry.data) not in seen:
                seen.add((entry.row, entry.data))
                system = replace(entry.system, **change)
                column = name if table.kind != "figure" else f"{name}, {entry.column}"
                entries.append(replace(entry, column=column + OURS, system=system, paper=None))
    return replace(table, entries=tuple(entries))


def _operator(name: str, transform: str) -> dict[str, Any]:
    """What `--also` changes in a system."""
    from nnad.operators import make_operator
    from nnad.presets import PRESETS

    if name not in PRESETS or name == "auto":
        make_operator(name)  # says if there is none
        return {"operator": name, "arguments": {}, "transform": transform}
    arguments = dict(PRESETS[name])
    own = arguments.pop("transform", "raw")
    return {"operator": arguments.pop("operator"), "arguments": arguments, "transform": own}
