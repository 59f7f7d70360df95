"""What makes another cell; damaged and incomplete folders; what is refused before it costs."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import cifar10, mvtec, network, save

from nnad import InputError, operators
from nnad.datasets import Dataset, Split
from nnad.errors import DatasetError
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.reproduce import keys
from nnad.reproduce import run as run_module
from nnad.reproduce.compute import operator_scores
from nnad.reproduce.data import load_data
from nnad.reproduce.dn2 import DN2
from nnad.reproduce.keys import cell_key, data_key, learner_key, parameters
from nnad.reproduce.run import run
from nnad.reproduce.settings import Settings
from nnad.reproduce.tables import Cell, Entry, System, Table, find_table
from nnad.reproduce.told import markdown


def entry(seeds=(0,), column="DN2", system=DN2) -> Entry:
    return Entry("1", column, "cifar10", "few shot", system, {"count": 1}, over={"seed": seeds})


def table(*entries: Entry) -> Table:
    return Table("dn2", "table", "0", "Few images", entries or (entry(),))


@pytest.fixture
def settings(tmp_path) -> Settings:
    cifar10(tmp_path / "cifar10")
    return Settings(tmp_path / "out", tmp_path, backbones=[network()], workers=1)


# --------------------------------------------------------------------- keys


def test_everything_that_changes_scores_changes_the_key(monkeypatch):
    system = System(backbone="net", operator="auto")
    cell = Cell("cifar10", "few shot", "cat", {"number": 3, "count": 1, "seed": 0}, system)
    base = cell_key(cell, "d", "n")
    changed = [
        cell_key(cell, "e", "n"),
        cell_key(cell, "d", "m"),
        cell_key(replace(cell, data="mnist"), "d", "n"),
        cell_key(replace(cell, protocol="impure"), "d", "n"),
        *(
            cell_key(replace(cell, options={**cell.options, name: 9}), "d", "n")
            for name in cell.options
        ),
        *(
            cell_key(replace(cell, system=replace(system, **change)), "d", "n")
            for change in (
                {"name": "panda"},
                {"backbone": "other"},
                {"operator": "local"},
                {"arguments": {"k": 7}},
                {"transform": "root"},
                {"pooling": "max"},
                {"clean": 0.5},
            )
        ),
    ]
    monkeypatch.setattr(operators, "AUTO", ("local", {"k": 5, "ridge": 4.0, "reduction": "min"}))
    changed.append(cell_key(cell, "d", "n"))
    monkeypatch.setattr(keys, "VERSION", 2)
    changed.append(cell_key(cell, "d", "n"))
    assert len({base, *changed}) == 1 + len(changed)
    assert cell_key(replace(cell, label="Katze"), "d", "n") == changed[-1]  # a name, no number


def test_parameters_hold_what_nobody_chose():
    told = parameters(System(operator="auto"))
    assert (told["operator"], told["k"], told["ridge"], told["n_local"]) == ("local", 5, 3.0, 25)
    assert parameters(System("geom", operator=None)) == {}


def test_labels_and_classes_belong_to_the_data(tmp_path):
    pixels = [np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)]

    def data(labels=(0, 1), classes=("a", "b"), good=(), images=pixels):
        split = Split(("x", "y"), tuple(images), np.array(labels), (None, None))
        return Dataset("d", "l", tuple(classes), split, split, tuple(good))

    same = data_key(data(), tmp_path)
    assert same == data_key(data(), tmp_path / "moved")
    others = [
        data(labels=(1, 0)),
        data(classes=("b", "a")),
        data(good=(0,)),
        data(images=pixels[::-1]),
    ]
    assert len({same, *(data_key(other, tmp_path) for other in others)}) == 5


def test_learners_belong_to_their_weights_and_preset(tmp_path):
    panda, geom = System("panda", "resnet18"), System("geom", operator=None)
    file = tmp_path / "w.pth"
    file.write_bytes(b"1")
    first = learner_key(panda, str(file), "paper")
    file.write_bytes(b"2")
    found = {
        first,
        learner_key(panda, str(file), "paper"),
        learner_key(panda, None, "paper"),
        learner_key(panda, None, "small"),
        learner_key(replace(panda, backbone="resnet34"), None, "paper"),
    }
    assert len(found) == 5
    assert learner_key(geom, str(file), "paper") == learner_key(geom, None, "paper")
    assert learner_key(geom, None, "paper") != learner_key(geom, None, "small")
    assert learner_key(DN2, None, "paper") == ""


def test_other_labels_are_computed_anew(settings):
    assert run(table(), settings).computed == 10
    path = settings.root / "cifar10" / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[0], content[3073] = content[3073], content[0]  # labels of the first two pictures
    path.write_bytes(content)
    again = run(table(), settings)
    assert (again.computed, again.known) == (10, 0)


# --------------------------------------------------------------------- scores


def test_cleaning_sees_transformed_features():
    rng = np.random.default_rng(0)
    train = np.abs(rng.normal(size=(40, 6))).astype(np.float32)
    test = np.abs(rng.normal(size=(9, 6))).astype(np.float32)
    test[4] = np.nan
    rooted, queries = (
        np.sqrt(x) / np.linalg.norm(np.sqrt(x), axis=1, keepdims=True) for x in (train, test)
    )
    # the half with the least distance to its two nearest others is kept
    distances = np.sort(np.square(rooted[:, None] - rooted[None]).sum(axis=2), axis=1)
    kept = np.sort(np.argsort(distances[:, 1:3].mean(axis=1), kind="stable")[:20])
    expected = make_operator("knn", k=2).fit(Bank(rooted[kept])).score(queries[[0, 1, 2, 3]])
    system = System(operator="knn", arguments={"k": 2}, transform="root", clean=0.5)
    scores = operator_scores(system, train, test)
    np.testing.assert_allclose(scores[:4], expected, rtol=1e-5)
    assert np.isnan(scores[4])
    assert np.isfinite(scores[5:]).all()


# --------------------------------------------------------------------- folders


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_cell_with_damaged_scores_keeps_one_row(settings):
    page = markdown(run(table(), settings), "x")
    scores = sorted((settings.out / "scores").iterdir())
    scores[0].unlink()
    scores[1].write_bytes(scores[1].read_bytes()[:50])
    again = run(table(), settings)
    assert (again.computed, again.known) == (2, 8)
    assert markdown(again, "x") == page
    assert len(rows_of(settings.out)) == 10


def test_damaged_features_are_made_anew(settings):
    run(table(), settings)
    for path in (settings.out / "features").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert run(table(entry((1,))), settings).computed == 10


def test_unreadable_images_are_told_every_time(tmp_path):
    for label in range(2):
        for part, count in (("train", 5), ("test", 3)):
            for i in range(count):
                save(tmp_path / "wbc" / part / f"class_{label}" / f"{i}.png", label, i)
    (tmp_path / "wbc" / "test" / "class_1" / "2.png").write_bytes(b"no picture")
    settings = Settings(tmp_path / "out", tmp_path, backbones=[network()], workers=1)
    pages = [markdown(run(find_table("dn2", "table", "4"), settings), "x") for _ in range(2)]
    assert pages[0] == pages[1]
    assert "1 of 6 images, which cannot be read: " in pages[0]
    assert "2.png" in pages[0]


def test_a_split_that_is_not_the_papers_is_told(settings):
    page = markdown(run(table(), settings), "x")
    assert "100 images to train, 20 to test: not the official split of 50,000 and 10,000" in page


def test_a_missing_class_is_told(tmp_path):
    for label in range(9):
        for part in ("train", "test"):
            save(tmp_path / "cifar10" / part / f"class_{label}" / "0.png", label, 0)
    with pytest.raises(DatasetError, match="cifar10 has 10 classes, here are 9: class_0"):
        load_data("cifar10", tmp_path / "cifar10")


def test_sets_of_mvtec_that_are_there_run(tmp_path):
    mvtec(tmp_path / "mvtec", sets=["hazelnut"])
    settings = Settings(tmp_path / "out", tmp_path, backbones=[network()], workers=1)
    found = run(find_table("knnn", "table", "1"), settings)
    rows = {e.row for e, cells in zip(found.table.entries, found.scored, strict=True) if cells}
    assert rows == {"hazelnut"}
    assert "there is no carpet" in found.problems["mvtec carpet"]


# --------------------------------------------------------------------- refused at once


@pytest.mark.parametrize(
    "change, message",
    [
        ({"transform": "rot"}, "transform='rot'; choose one of raw, l2"),
        ({"also": ["atuo"]}, "operator='atuo'; choose one of auto, knn"),
        ({"preset": "smal"}, "preset='smal'; choose one of paper, small"),
        ({"systems": ["gan"]}, "system='gan'; choose one of features, panda"),
    ],
)
def test_typos_are_refused_before_anything_is_read(settings, monkeypatch, change, message):
    monkeypatch.setattr(run_module, "load_data", lambda *_: pytest.fail("was read"))
    with pytest.raises(InputError, match=message):
        run(table(), replace(settings, **change))
    assert not settings.out.exists()
