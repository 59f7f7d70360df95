"""Pages of hand-made scores: numbers, intervals, differences, what is compared with what."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nnad.cli.reproduce import _command
from nnad.reproduce.dn2 import DN2
from nnad.reproduce.knnn import OPERATORS, SYSTEMS
from nnad.reproduce.settings import Run
from nnad.reproduce.statistics import Scored, sign_flip_p
from nnad.reproduce.tables import (
    Entry,
    System,
    Table,
    all_tables,
    find_table,
    with_backbones,
    with_operators,
    with_systems,
)
from nnad.reproduce.told import markdown

CLASSES = ("a", "b", "c")


def scored(wrong: int, space: str = "x") -> Scored:
    """10 good and 10 odd images; `wrong` odd ones lie below all good ones: AUROC 1 - wrong / 10."""
    scores = np.r_[np.arange(10) + 20.0, np.where(np.arange(10) < wrong, 0.0, 50.0)]
    return Scored(space, np.arange(20), np.arange(20) >= 10, scores)


def run_of(table: Table, wrong: dict[str, list[int]]) -> Run:
    """Column -> the wrong images of each cell, in the order of its entries' cells."""
    found = Run(table, table)
    left = {column: list(numbers) for column, numbers in wrong.items()}
    for entry in table.entries:
        cells = list(entry.cells(CLASSES)) if entry.column in left else []
        found.scored.append([(cell, scored(left[entry.column].pop(0))) for cell in cells])
    return found


def table_of(*columns: tuple[str, float | None], **named) -> Table:
    entries = tuple(Entry("row", n, "cifar10", "one class", DN2, paper=p) for n, p in columns)
    return Table("dn2", "table", "0", "Caption", entries, **named)


def test_a_page_by_hand():
    table = table_of(("old", 90.0), ("new", 75.5), against={"new": "old"})
    page = markdown(run_of(table, {"old": [1, 2, 3], "new": [0, 0, 3]}), "the command")
    (line,) = [line for line in page.splitlines() if line.startswith("| row |")]
    old, new = line.split("|")[2:4]
    # the bootstrap draws 10 odd images of which on average 1, 2 and 3 are wrong
    assert old.startswith(" **80.0** [") and old.endswith("] 90.0, -10.0 ")
    assert new.startswith(" **90.0** [") and new.endswith("] 75.5, +14.5 ")
    low, high = (float(x) for x in new.split("[")[1].split("]")[0].split(", "))
    # wrong ones of a binomial(10, 0.3): P(0) = 0.028, P(6 or more) = 0.047, P(7 or more) = 0.011
    assert (low, high) == (80.0, 100.0)
    (told,) = [line for line in page.splitlines() if line.startswith("| cifar10 |")]
    cells = [cell.strip() for cell in told.split("|")[1:-1]]
    assert cells[:4] == ["cifar10", "new", "old", "+10.00"]
    low, high = (float(x) for x in cells[4].strip("[]").split(", "))
    assert 0 <= low < 10 < high  # the common draw: never negative
    assert cells[5:] == [f"{sign_flip_p([0.1, 0.2, 0.0]):.2g}", "3"]
    assert page.startswith("# DN2, Table 0\n\nCaption.\n\n    the command\n")


def test_worse_is_negative():
    table = table_of(("old", None), ("new", None), against={"new": "old"})
    page = markdown(run_of(table, {"old": [0, 0, 0], "new": [5, 5, 5]}), "x")
    assert "| cifar10 | new | old | -50.00 | [-80.00, -20.00] | 0.25 | 3 |" in page


def test_an_incomplete_column_is_neither_told_nor_compared():
    table = table_of(("old", 90.0), ("new", 75.5), ("ours, ours", None), against={"new": "old"})
    page = markdown(run_of(table, {"old": [1, 2, 3]}), "x")
    assert "| 75.5 | - |" in page
    assert "is this better" not in page


def test_draws_of_one_class_are_one_unit_and_rows_are_apart():
    entries = tuple(
        Entry(row, name, "cifar10", "few shot", DN2, {"count": count}, over={"seed": (0, 1)})
        for row, count in (("1", 1), ("2", 2))
        for name in ("old", "new")
    )
    table = Table("dn2", "figure", "0", "x", entries, against={"new": "old"}, by_row=True)
    wrong = {"old": [1] * 12, "new": [0] * 6 + [1] * 6}
    page = markdown(run_of(table, wrong), "x")
    assert "| cifar10, 1 | new | old | +10.00 | [" in page
    assert "| 0.25 | 3 |" in page  # three classes of two draws each
    assert "| cifar10, 2 | new | old | +0.00 | [+0.00, +0.00] | 1 | 3 |" in page


def test_networks_are_averaged_before_a_test():
    entries = tuple(
        Entry(
            net, name, "mvtec", "sets", System(backbone=net), {}, None, {"sets": (("a",), ("b",))}
        )
        for net in ("r1", "r2", "r3")
        for name in ("k-NN", "Local")
    )
    table = Table(
        "knnn", "table", "0", "x", entries, against={"Local": "k-NN"}, networks=True, digits=2
    )
    page = markdown(run_of(table, {"k-NN": [2] * 6, "Local": [1] * 6}), "x")
    assert "| mvtec | Local | k-NN | +10.000 | [" in page
    assert "| 0.5 | 2 |" in page


def test_columns_are_compared_with_what_they_build_on():
    against = {
        ("dn2", "1"): {"GEOM": "DN2", "OC-SVM": "DN2"},
        ("dn2", "6"): {"C=1": "kNN", "C=10": "kNN"},
        ("knnn", "2"): {"resnet18 + k-NNN": "resnet18 + k-NN", "SPADE + k-NNN": "SPADE"},
        ("knnn", "5"): {"Local": "k-NN", "k-NNN": "k-NN"},
    }
    for (paper, number), expected in against.items():
        table = with_backbones(find_table(paper, "table", number), [])
        assert {name: table.against[name] for name in expected} == expected
        assert table.main in table.unique("column")
    for table in all_tables():
        table = with_backbones(table, [])
        columns = table.unique("column")
        for new, old in table.against.items():
            assert old in columns and new != old, table.name


def test_columns_of_ours():
    table = with_operators(find_table("dn2", "table", "2"), ["auto"], "root")
    table = with_systems(table, ["features", "panda", "geom"])
    ours = [e for e in table.entries if e.column.endswith(", ours")]
    assert [(e.row, e.column) for e in ours] == [
        ("FashionMNIST", "auto, ours"),
        ("CIFAR100", "auto, ours"),
        ("FashionMNIST", "panda, ours"),  # GEOM is in the table
        ("CIFAR100", "panda, ours"),
    ]
    assert ours[2].system == System(
        "panda", "torchvision:resnet101", "knn", {"k": 2}, transform="l2"
    )
    plane = with_systems(find_table("knnn", "table", "5"), ["panda"])
    assert plane == find_table("knnn", "table", "5")


def test_another_network_is_told():
    table = with_backbones(find_table("knnn", "table", "2"), ["efficientnet-lite0"])
    assert "efficientnet-lite0 + k-NN" in table.unique("column")
    declared = find_table("knnn", "table", "2")
    found = replace(run_of(table, {}), declared=declared, commits=["abc"])
    found.networks["efficientnet-lite0"] = "12345678"
    page = markdown(found, "x")
    assert "Features of efficientnet-lite0 (12345678), not of the paper's resnet18" in page
    assert "Computed by commit abc." in page
    rooted = replace(table.entries[0].system, transform="root")
    table = replace(table, entries=(replace(table.entries[0], system=rooted),))
    assert "Transform root; the paper's features are raw." in markdown(run_of(table, {}), "x")


def test_what_is_declared():
    """What a table computes, and every number that it tells of its paper."""

    def of(name):
        return next(t for t in all_tables() if t.name == name)

    def kinds(table, column=None):
        return {
            (e.protocol, e.system.operator, json.dumps(dict(e.system.arguments)), e.system.clean)
            for e in table.entries
            if e.system.name == "features" and column in (None, e.column)
        }

    knn = '{"k": 2}'
    assert kinds(of("dn2-table-1")) == {("one class", "knn", knn, 0)}
    assert kinds(of("dn2-table-3")) == {("one class", "knn", knn, 0)}
    assert {e.classes for e in of("dn2-table-3").entries} == {"first 20"}
    assert kinds(of("dn2-table-5")) == {("all but one", "knn", knn, 0)}
    assert kinds(of("dn2-figure-5"), "DN2, cleaned") == {("impure", "knn", knn, 0.5)}
    assert {e.system.transform for t in all_tables() for e in t.entries} == {"raw"}
    assert OPERATORS["Local"] == ("local", {"k": 3, "p": 1, "ridge": 1e-3, "n_local": 25})
    assert SYSTEMS["SPADE"].arguments == {"k": 5, "squared": False}
    sums = {
        table.name: round(sum(e.paper for e in table.entries if e.paper is not None), 4)
        for table in all_tables()
        if any(e.paper for e in table.entries)
    }
    assert sums == PAPER_SUMS


# when they were last compared with the printed tables, one by one
PAPER_SUMS = {
    "dn2-table-1": 5321.4,
    "dn2-table-2": 605.4,
    "dn2-table-3": 505.4,
    "dn2-table-4": 318.8,
    "dn2-table-5": 261.7,
    "dn2-table-6": 459.97,
    "dn2-section-4.5": 92.0,
    "knnn-table-1": 84.3,
    "knnn-table-2": 16.247,
    "knnn-table-3": 12.3,
    "knnn-table-4": 18.342,
    "knnn-table-5": 10.572,
    "knnn-table-6": 31.7999,
    "knnn-table-7": 7.077,
}


@pytest.mark.parametrize(
    "typed, told",
    [
        ("reproduce dn2 --table 1 --data /a/b", "reproduce dn2 --table 1 --data DIR"),
        ("reproduce dn2 --data=/a/b --out=/c", "reproduce dn2 --data=DIR --out=DIR"),
        ("reproduce dn2 --data cifar10=c --out o", "reproduce dn2 --data cifar10=DIR --out DIR"),
        ("reproduce dn2 --weights /a/best.pth", "reproduce dn2 --weights best.pth"),
    ],
)
def test_the_command_is_told_without_paths(typed, told, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nnad", *typed.split()])
    assert _command() == f"nnad {told}"
