"""What a run is asked, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnad.backbones import Backbone
from nnad.operators.arguments import check_choice
from nnad.reproduce.statistics import Scored
from nnad.reproduce.tables import (
    FEATURES,
    SYSTEMS,
    Cell,
    Table,
    full_name,
    with_backbones,
    with_operators,
    with_systems,
    with_transform,
)
from nnad.transforms import TRANSFORMS

PRESETS = ("paper", "small")


@dataclass(frozen=True)
class Settings:
    """How a table is to be run.

    Attributes:
        out: the folder of results, shared by all tables.
        root: the folder that holds the data sets; or none, if `given` names all.
        given: data set -> where it is.
        backbones: networks instead of the paper's: names, or `Backbone` objects.
        weights: of torchvision's and timm's networks, see `load_backbone`.
        transform: of the features instead of the paper's.
        also: operators as further columns.
        also_transform: of the features for those.
        systems: which are computed; of others the paper's numbers are told. Those that learn and
            that the table does not have become further columns.
        preset: of systems that learn, `paper` or `small`.
        workers: processes; by default one for each core, if memory allows.
        device: of networks, `cpu`, `cuda` or `cuda:1`; what another one computed is taken as it is.
        progress: show bars on a terminal.
    """

    out: Path
    root: Path | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    backbones: Sequence[str | Backbone] = ()
    weights: str | None = None
    transform: str | None = None
    also: Sequence[str] = ()
    also_transform: str = "auto"
    systems: Sequence[str] = (FEATURES,)
    preset: str = "paper"
    workers: int | None = None
    device: str = "cpu"
    progress: bool = False

    @property
    def named_backbones(self) -> list[str]:
        """Those that are given by name."""
        return [b for b in self.backbones if isinstance(b, str)]

    def applied(self, table: Table) -> Table:
        """The table with the networks, transform, operators and systems that were asked for.

        Raises:
            InputError: one of them is unknown.
        """
        check_choice("preset", self.preset, PRESETS)
        for name in self.systems:
            check_choice("system", name, SYSTEMS)
        for name in filter(None, (self.transform, self.also_transform)):
            check_choice("transform", name, (*TRANSFORMS, "auto"))
        names = [full_name(b) if isinstance(b, str) else b.name for b in self.backbones]
        table = with_backbones(table, names)
        if self.transform:
            table = with_transform(table, self.transform)
        return with_systems(with_operators(table, self.also, self.also_transform), self.systems)


@dataclass
class Run:
    """What came of a run.

    Attributes:
        table: as it was run.
        declared: as the paper has it.
        scored: the cells of each entry, in its order; empty if one is missing.
        layouts: of the data sets.
        networks: name -> the first hex digits of the fingerprint of its features.
        commits: of the program that computed the cells.
        problems: what could not be had, and why.
        computed, known: cells computed now, and before.
        shown: the test features (U, D) that a figure shows, by row and column; and labels (U,).
    """

    table: Table
    declared: Table
    scored: list[list[tuple[Cell, Scored]]] = field(default_factory=list)
    layouts: dict[str, str] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    known: int = 0
    shown: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
