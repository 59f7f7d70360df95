"""Every table and figure on tiny data sets, killed and resumed; intervals and tests by hand."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny_sets import cifar10, make_all, network, run_twice, save, small

from nnad import InputError
from nnad.errors import BackboneError
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.reproduce import data as data_sets
from nnad.reproduce import figures, workers
from nnad.reproduce.dn2 import DN2
from nnad.reproduce.knnn import SYSTEMS
from nnad.reproduce.run import run
from nnad.reproduce.settings import Settings
from nnad.reproduce.statistics import Scored, interval, resampled, sign_flip_p, weighted_aurocs
from nnad.reproduce.store import COLUMNS, Store
from nnad.reproduce.tables import Entry, Table, all_tables, find_table, full_name, with_backbones
from nnad.reproduce.told import closing, markdown, summary


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------- every table and figure


@pytest.mark.parametrize("table", all_tables(), ids=lambda table: table.name)
def test_every_table_runs_on_tiny_data_sets(table, sets, out):
    settings = Settings(out, sets, backbones=[network()], workers=1)

    def has_number(entry: Entry) -> bool:  # a function cannot be pooled again
        return entry.system.name == "features" and entry.system.pooling is None

    found = run_twice(small(table), settings, has_number)
    text = markdown(found, "nnad reproduce")
    for entry in table.entries:
        if entry.paper is not None and not table.networks:
            assert f"{entry.paper:.{table.digits}f}" in text
    assert closing(found).endswith(table.title)
    assert markdown(run(small(table), settings), "nnad reproduce") == text
    keys = [row["key"] for row in rows_of(out)]
    assert len(keys) == len(set(keys))


def test_the_papers_numbers():
    """Means that the papers print are those of the rows above them."""
    for name, rows, mean, tolerance in (("dn2", 10, "Avg", 0.1), ("knnn", 15, "mean", 6e-4)):
        table = find_table(name, "table", "1")
        for column in table.unique("column"):
            of_column = {e.row: e.paper for e in table.entries if e.column == column}
            values = [value for row, value in of_column.items() if row != mean]
            assert len(values) == rows
            assert np.mean(values) == pytest.approx(of_column[mean], abs=tolerance), column


def test_numbers_are_those_of_the_operator_on_the_features(sets, out, monkeypatch):
    found = run(
        find_table("dn2", "table", "1"),
        Settings(out, sets, backbones=[network()], also=["auto"], workers=1),
    )
    data = data_sets.load_data("cifar10", sets / "cifar10")
    train, test = (
        np.stack([network().features(np.stack([picture_of(s)]))[0] for s in part.sources])
        for part in (data.train, data.test)
    )
    bank = Bank(train[data.train.labels == 3])
    expected = roc_auc_score(data.test.labels != 3, make_operator("knn", k=2).fit(bank).score(test))
    (value,) = [v for e, v in summary(found) if (e.row, e.column) == ("3", "DN2")]
    assert value == pytest.approx(expected, abs=1e-9)
    values = {(e.row, e.column): v for e, v in summary(found)}
    nine = [values[str(c), "auto, ours"] for c in range(10)]
    assert values["Avg", "auto, ours"] == pytest.approx(np.mean(nine))
    assert "| cifar10 | auto, ours | DN2 |" in markdown(found, "x")
    (row,) = [
        r
        for r in rows_of(out)
        if (
            r["data"],
            r["protocol"],
            r["class"],
            r["operator"],
            r["transform"],
            json.loads(r["parameters"]).get("k"),
        )
        == ("cifar10", "one class", "class_3", "knn", "raw", 2)
    ]
    assert float(row["auroc"]) == pytest.approx(expected, abs=1e-6)
    assert row["network"] == network().fingerprint[:8]


def picture_of(source) -> np.ndarray:
    from nnad.images import read_image

    return network().preprocessing(read_image(source))[0]


def test_spade_without_maps_is_spades_image_score():
    from nnad.spade import Spade

    features = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    stages = [[np.zeros((2, 2, 3), np.float32)]] * 9
    spade = Spade(k_images=5, size=4).fit(features[:8], stages[:8])
    system = SYSTEMS["SPADE"]
    fitted = make_operator(system.operator, **system.arguments).fit(Bank(features[:8]))
    assert spade.score(features[8], stages[8])[1] == fitted.score(features[8:])[0]


def test_oc_svm_sees_pictures(sets, out):
    """A system that is no features and an operator, by the same way."""
    table = replace(table_1(), entries=table_1().entries[:6])  # of class 0
    found = run(table, Settings(out, sets, backbones=[network()], systems=["ocsvm"], workers=1))
    values = {entry.column: value for entry, value in summary(found)}
    assert values["OC-SVM"] is not None, found.problems
    assert [name for name, value in values.items() if value is not None] == ["OC-SVM"]
    assert rows_of(out)[-1]["operator"] == ""


def table_1() -> Table:
    return find_table("dn2", "table", "1")


@pytest.mark.parametrize("paper, number", [("dn2", "1"), ("dn2", "6"), ("knnn", "3")])
def test_pictures(paper, number, sets, out, monkeypatch):
    from nnad.cli.reproduce import _draw

    monkeypatch.setitem(figures.PANELS, "3", (("moons", 30),))
    monkeypatch.setattr(figures, "_SIDE", 12)
    names = [network(name) for name in ("a", "b")] if number == "1" else [network()]
    figure = find_table(paper, "figure", number)
    found = run(figure, Settings(out, sets, backbones=names, workers=1))
    path = out / f"{figure.name}.png"
    assert _draw(found, path)
    with Image.open(path) as image:
        assert min(image.size) > 100
    nothing = run(figure, Settings(out, out, backbones=names, workers=1))
    assert _draw(nothing, out / "x.png") == (paper == "knnn")


# --------------------------------------------------------------------- killed and resumed


def one_table(seeds=(0, 1)) -> Table:
    entries = tuple(
        Entry(str(size), "DN2", "cifar10", "few shot", DN2, {"count": size}, over={"seed": seeds})
        for size in (1, 2)
    )
    return Table("dn2", "table", "0", "Few images", entries)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 17])
def test_a_killed_run_goes_on_and_gives_the_same_table(tmp_path, sets, monkeypatch, after):
    def settings(name):
        return Settings(tmp_path / name, sets, backbones=[network()], workers=1)

    whole = run(one_table(), settings("whole"))
    assert (whole.computed, whole.known) == (40, 0)
    computed = []
    compute = workers.compute

    def counting(job, labels):
        if len(computed) == after:
            computed.append("killed")
            raise Killed
        computed.append(job.key)
        return compute(job, labels)

    monkeypatch.setattr(workers, "compute", counting)
    with pytest.raises(Killed):
        run(one_table(), settings("killed"))
    with (tmp_path / "killed" / "cells.csv").open("ab") as file:
        file.write(b"cifar10,half a r")  # what a kill in the middle of a write leaves
    resumed = run(one_table(), settings("killed"))
    assert (resumed.computed, resumed.known) == (40 - after, after)
    computed.remove("killed")
    assert len(computed) == len(set(computed)) == 40
    assert markdown(resumed, "x") == markdown(whole, "x")
    ours, theirs = (
        {r["key"]: r["auroc"] for r in rows_of(tmp_path / n)} for n in ("killed", "whole")
    )
    assert ours == theirs


def test_embedding_goes_on_at_the_last_block(tmp_path, sets, monkeypatch):
    from nnad.reproduce import features as module

    monkeypatch.setattr(module, "_BLOCK", 7)
    embedded = []
    killing = True

    def counted(images, backbone, **_):
        for name, source in images:
            if killing and len(embedded) == 16:
                raise Killed
            embedded.append(name)
            yield name, backbone.embed(module_image(source))

    def module_image(source):
        from nnad.images import read_image

        return read_image(source)

    monkeypatch.setattr(module, "extract", counted)
    split = data_sets.load_data("cifar10", sets / "cifar10").train
    with pytest.raises(Killed):
        module.features_on_disk(split, network(), tmp_path, "x")
    killing = False
    path = module.features_on_disk(split, network(), tmp_path, "x")
    assert len(embedded) == 16 + 100 - 14
    expected = np.stack([network().embed(module_image(s)) for s in split.sources])
    np.testing.assert_array_equal(np.load(path), expected)
    assert module.features_on_disk(split, network(), tmp_path, "x") == path
    assert len(embedded) == 102
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert module.features_on_disk(split.take([0, 1]), network(), tmp_path, "x") != path


def test_the_command_killed_with_its_workers(tmp_path):
    """SIGKILL in the middle of 50 cells by two processes; the same command then does the rest."""
    cifar10(tmp_path / "cifar10")
    command = [
        *(sys.executable, "-c", "from nnad.cli import main; main()"),
        *("reproduce", "dn2", "--table", "6", "--data", f"cifar10={tmp_path / 'cifar10'}"),
        *("--backbone", "efficientnet-lite0", "--workers", "2", "--out", str(tmp_path / "out")),
    ]
    cells = tmp_path / "out" / "cells.csv"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not (cells.exists() and cells.read_bytes().count(b"\n") > 5):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    known = cells.read_bytes().count(b"\n") - 1  # whole rows
    before = rows_of(tmp_path / "out")[:known]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = rows_of(tmp_path / "out")
    assert after[:known] == before
    assert len(after) == len({row["key"] for row in after}) == 50
    assert f"{50 - known} cells computed, {known} known before" in done.stderr
    assert "| CIFAR10 | **" in done.stdout
    assert "--data cifar10=DIR" in done.stdout
    assert (tmp_path / "out" / "dn2-table-6.md").read_text() == done.stdout


def test_other_pictures_or_another_network_are_not_taken_for_the_same(tmp_path):
    cifar10(tmp_path / "cifar10")
    settings = Settings(tmp_path / "out", tmp_path, backbones=[network()], workers=1)
    assert run(one_table((0,)), settings).computed == 20
    assert run(one_table((0,)), replace(settings, backbones=[network("other")])).computed == 20
    test = tmp_path / "cifar10" / "test_batch.bin"
    test.write_bytes(test.read_bytes()[:-1] + b"\0")
    assert run(one_table((0,)), settings).computed == 20


# --------------------------------------------------------------------- what cannot be


def test_what_is_missing_is_told_and_the_rest_is_computed(tmp_path, sets):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wbc").symlink_to(sets / "wbc")
    table = find_table("dn2", "table", "4")
    settings = Settings(tmp_path / "out", tmp_path / "data", backbones=[network()], workers=1)
    found = run(table, settings)
    values = {(e.row, e.column): v for e, v in summary(found)}
    assert values["WBC", "DN2"] is not None
    assert values["DIOR", "DN2"] is None
    assert "holds no dior or DIOR" in found.problems["dior"]
    assert "Not computed: dior" in markdown(found, "x")
    lite = replace(settings, backbones=["efficientnet-lite0"], device="cuda")
    assert any("onnxruntime-gpu" in why for why in run(table, lite).problems.values())
    with pytest.raises(BackboneError, match=r"none\.onnx"):
        run(table, replace(settings, backbones=["onnx:none.onnx"]))


def test_unreadable_images_are_left_out(tmp_path):
    for label in range(2):
        for part, count in (("train", 5), ("test", 3)):
            for i in range(count):
                save(tmp_path / "wbc" / part / f"class_{label}" / f"{i}.png", label, i)
    for name in ("train/class_0/0.png", "test/class_1/2.png"):
        (tmp_path / "wbc" / name).write_bytes(b"no picture")
    settings = Settings(tmp_path / "out", tmp_path, backbones=[network()], workers=1)
    found = run(find_table("dn2", "table", "4"), settings)
    ((first, second),) = [[s for _, s in cells] for cells in found.scored if cells]
    assert (len(first.items), len(second.items)) == (5, 5)
    assert "class folders" in found.layouts["wbc"]


def test_folders_of_classes_without_a_split(tmp_path):
    for label in range(2):
        for i in range(5):
            save(tmp_path / f"class_{label}" / f"{i}.png", label, i)
    found = data_sets.load_data("wbc", tmp_path)
    assert (len(found.train), found.test.labels.tolist()) == (8, [0, 1])
    assert found.layout.endswith("the first 80 % of each class to train")
    with pytest.raises(InputError, match="no such file"):
        data_sets.load_data("wbc", tmp_path / "class_0")


def test_wrong_arguments(tmp_path, sets):
    table = find_table("dn2", "table", "1")
    with pytest.raises(InputError, match="DN2 has no table 9 that can be run; there are: 1, 2, 3"):
        find_table("dn2", "table", "9")
    with pytest.raises(InputError, match="paper='dn3'; choose one of dn2, knnn"):
        find_table("dn3", "table", "1")
    with pytest.raises(InputError, match="DN2, Table 1 takes one; it was given 2"):
        run(table, Settings(tmp_path, sets, backbones=["a", "b"]))
    with pytest.raises(InputError, match="device='gpu'; choose cpu, cuda"):
        run(table, Settings(tmp_path, sets, device="gpu"))
    (tmp_path / "cells.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"cells\.csv: no table of nnad reproduce"):
        Store(tmp_path)


def test_networks_as_rows():
    figure = find_table("dn2", "figure", "1")
    other = with_backbones(figure, [full_name("resnet18"), "efficientnet-lite0"])
    assert other.unique("row") == ["resnet18", "efficientnet-lite0"]
    table = find_table("knnn", "table", "6")
    known = with_backbones(table, ["torchvision:resnet50", "efficientnet-lite1"])
    papers = {(e.row, e.column): e.paper for e in known.entries}
    assert papers["mean of resnet50", "k-NNN"] == 0.7350
    assert papers["max of efficientnet-lite1", "k-NNN"] is None
    assert len(papers) == 16


def test_a_second_command_in_the_same_folder_is_refused(tmp_path, sets):
    from filelock import FileLock

    settings = Settings(tmp_path, sets, backbones=[network()], workers=1)
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another nnad reproduce"):
        run(one_table(), settings)


def test_half_a_header(tmp_path):
    (tmp_path / "cells.csv").write_bytes(b"data,fil")
    Store(tmp_path)
    assert (tmp_path / "cells.csv").read_text() == ",".join(COLUMNS) + "\n"


# --------------------------------------------------------------------- statistics


def scored(seed=0, count=60, ties=True) -> Scored:
    rng = np.random.default_rng(seed)
    is_anomaly = rng.random(count) < 0.4
    scores = rng.normal(size=count) + is_anomaly
    return Scored("x", np.arange(count), is_anomaly, np.round(scores, 1) if ties else scores)


@pytest.mark.parametrize("ties", [True, False])
def test_weighted_aurocs_are_sklearns(ties):
    cell = scored(ties=ties)
    counts = np.random.default_rng(1).integers(0, 4, (20, 60))
    expected = [roc_auc_score(cell.is_anomaly, cell.scores, sample_weight=c) for c in counts]
    np.testing.assert_allclose(weighted_aurocs(cell, counts, np.arange(60)), expected)


def test_an_interval_by_bootstrap():
    cell = scored(count=400, ties=False)
    low, high = interval(resampled([cell])[0])
    area = roc_auc_score(cell.is_anomaly, cell.scores)
    assert low < area < high
    from nnad.evaluate import auroc

    newcombe = auroc(cell.scores[~cell.is_anomaly], cell.scores[cell.is_anomaly])
    assert high - low == pytest.approx(newcombe.high - newcombe.low, rel=0.25)
    np.testing.assert_array_equal(resampled([cell]), resampled([cell]))


def test_cells_of_the_same_images_are_drawn_together():
    cell = scored()
    better = cell._replace(scores=cell.scores + 5 * cell.is_anomaly)
    turned = cell._replace(is_anomaly=~cell.is_anomaly, scores=-cell.scores)
    drawn = resampled([cell, cell, turned, better, cell._replace(space="y")])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_allclose(drawn[0], drawn[2])
    assert (drawn[3] == 1).all()
    assert not np.array_equal(drawn[0], drawn[4])


def test_sign_flips_by_hand():
    assert sign_flip_p([1.0]) is None
    assert sign_flip_p([0.0, 0.0]) == 1
    assert sign_flip_p([1.0, 2, 3]) == 2 / 8
    assert sign_flip_p([3.0, -1, 1]) == 6 / 8  # |sums|: 3 5 1 3 3 1 5 3; six are 3 or more
    assert sign_flip_p([0.01] * 20) == pytest.approx(1e-4)
    assert sign_flip_p([0.01, -0.01] * 10) == 1
