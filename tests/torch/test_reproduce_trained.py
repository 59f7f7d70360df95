"""Systems that learn, as `nnad reproduce` runs them: one epoch on a tiny CIFAR-10."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_sets import cifar10

from nnad.reproduce import trained
from nnad.reproduce.knnn import SYSTEMS
from nnad.reproduce.run import run
from nnad.reproduce.settings import Settings
from nnad.reproduce.tables import Entry, Table, find_table
from nnad.reproduce.told import markdown, summary


@pytest.fixture
def settings(tmp_path) -> Settings:
    cifar10(tmp_path / "cifar10")
    return Settings(
        tmp_path / "out", tmp_path, backbones=["efficientnet-lite0"], preset="small", workers=1
    )


def test_panda_is_adapted_once_for_both_operators(settings, monkeypatch):
    adapted = []
    backbone = trained.adapted_backbone

    def counting(*arguments, **named):
        adapted.append(arguments[4])
        return backbone(*arguments, **named)

    monkeypatch.setattr("nnad.reproduce.run.adapted_backbone", counting)
    entries = tuple(
        Entry("0", name, "cifar10", "one class", SYSTEMS[name], classes=(0,), paper=0.939)
        for name in ("PANDA", "PANDA + k-NNN")
    )
    table = Table(
        "knnn", "table", "0", "PANDA", entries, percent=False, against={"PANDA + k-NNN": "PANDA"}
    )
    settings = replace(settings, systems=["panda"])
    found = run(table, settings)
    assert all(value is not None for _, value in summary(found)), found.problems
    assert len(set(adapted)) == 1
    assert len(list((settings.out / "adapted").glob("*.onnx"))) == 1
    assert "| cifar10 | PANDA + k-NNN | PANDA |" in markdown(found, "x")
    assert run(table, settings).computed == 0


@pytest.mark.parametrize("system", ["deep-svdd", "geom", "goad", "mhrot"])
def test_baselines(settings, system):
    table = find_table("dn2", "table", "1")
    table = replace(table, entries=table.entries[:6], shows_features=True)  # of class 0
    found = run(table, replace(settings, systems=[system]))
    (value,) = [v for entry, v in summary(found) if entry.system.name == system]
    assert value is not None, found.problems
    (scored,) = [cells[0][1] for cells in found.scored if cells]
    assert np.ptp(scored.scores) > 0
    features = found.shown["0", find_column(table, system)]
    assert features.shape[0] == 20
    assert np.ptp(features, axis=0).max() > 0
    scores = settings.out / "scores"
    for path in scores.iterdir():
        path.unlink()
    again = run(table, replace(settings, systems=[system]))
    assert again.computed == 1
    (same,) = [cells[0][1] for cells in again.scored if cells]
    np.testing.assert_array_equal(same.scores, scored.scores)  # learnt before, only scored


@pytest.mark.parametrize("system", ["panda", "geom"])
def test_a_gpu_that_is_not_there_is_told_before_anything_is_trained(settings, system):
    paper, number = ("knnn", "2") if system == "panda" else ("dn2", "1")
    settings = replace(settings, systems=[system], device="cuda:99")
    table = find_table(paper, "table", number)
    found = run(replace(table, entries=table.entries[:6]), settings)
    assert not any(found.scored)
    assert any("device='cuda:99'" in why for why in found.problems.values()), found.problems
    assert not list(settings.out.rglob("*.onnx"))


def find_column(table: Table, system: str) -> str:
    return next(entry.column for entry in table.entries if entry.system.name == system)
