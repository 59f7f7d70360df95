"""Every table and figure with the papers' own networks, random weights, on tiny data sets."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_sets import make_all, mvtec, run_twice, small

from nnad import load_backbone, torch_export
from nnad.backbones import Backbone
from nnad.cli import app
from nnad.reproduce import run as run_module
from nnad.reproduce.settings import Settings
from nnad.reproduce.tables import all_tables, find_table

TABLE_6 = find_table("knnn", "table", "6")
OTHERS = [table for table in all_tables() if table != TABLE_6]
NETWORKS = list(dict.fromkeys(entry.system.backbone for entry in TABLE_6.entries))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    return make_all(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("few")
    mvtec(root / "mvtec", good=3, tested=1)
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module", autouse=True)
def few_pixels_and_exports():
    """Networks see 32 pixels, or 48 where a map is pooled, so that it has 2 x 2 places.

    Three are kept from table to table: all together are 2 GB. They are exported by torch's older
    exporter, which takes less than half of the time; `test_torch_backbones.py` has the other.
    """

    @lru_cache(maxsize=3)
    def load(name: str, *, pooling: str | None, weights: str, **options) -> Backbone:
        assert weights == "random"
        size = 48 if pooling else 32
        backbone = load_backbone(name, pooling=pooling, weights=weights, size=size, **options)
        backbone.reference = None  # torch's copy of the weights
        return backbone

    last: dict[tuple[str, ...], Any] = {}

    def to_onnx(network, inputs, name: str, outputs) -> Any:
        """For the mean and the maximum of the same map once."""
        if (name, *outputs) not in last:
            last.clear()
            last[name, *outputs] = torch_export_to_onnx(network, inputs, name, outputs)
        return last[name, *outputs]

    torch_export_to_onnx = torch_export.to_onnx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "load_backbone", load)
        patch.setattr(torch_export, "find_spec", lambda _: None)
        patch.setattr(torch_export, "to_onnx", to_onnx)
        yield


def features_of(out: Path, split: str) -> list[Path]:
    """The files of its features, in the order in which they were made."""
    return sorted(
        (out / "features").glob(f"{split}-*.npy"), key=lambda path: path.stat().st_mtime_ns
    )


def is_of_features(entry) -> bool:
    return entry.system.name == "features"


@pytest.mark.parametrize("table", OTHERS, ids=lambda table: table.name)
def test_every_table_with_its_own_networks(table, sets, out):
    settings = Settings(out, sets, weights="random", workers=1)
    found = run_twice(small(table), settings, is_of_features)
    assert found.problems == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_poolings(name, few, out):
    """k-NNN's Table 6, a network at a time as `--backbone` does it, on fewer images."""
    settings = Settings(out, few, backbones=[name], weights="random", workers=1)
    found = run_twice(TABLE_6, settings, is_of_features)
    assert found.problems == {}
    assert len(found.scored) == 8
    largest, mean = (np.load(path) for path in features_of(out, "mvtec-test")[-2:])
    assert (largest >= mean).all()
    assert (largest > mean).mean() > 0.5


def test_the_command(sets, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--table", "4", "--data", f"wbc={sets / 'wbc'}", "--out", out, "--workers", 1]
    options += ["--backbone", "resnet18", "--weights", "random"]
    app(["reproduce", "dn2", *map(str, options)], standalone_mode=False)
    told = capsys.readouterr()
    assert "| WBC | 60.5 | **" in told.out
    assert "dior: where is it?" in told.err
