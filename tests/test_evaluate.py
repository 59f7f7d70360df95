import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnad.errors import BudgetError, InputError
from nnad.evaluate import auroc, evaluate, rate

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))


def nnad(*arguments):
    command = [NNAD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_clopper_pearson_by_hand():
    """0 of n: up to 1 - 0.025^(1/n); n of n: the mirror image."""
    none, every = rate(0, 20), rate(20, 20)
    assert (none.value, none.low, every.value, every.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert every.low == pytest.approx(0.025 ** (1 / 20))
    some = rate(5, 10)
    assert (some.low, some.high) == (
        pytest.approx(0.18709, abs=1e-5),
        pytest.approx(0.81291, abs=1e-5),
    )


def test_auroc_by_hand():
    area = auroc(np.array([1.0, 2, 3]), np.array([2.0, 4]))  # pairs won: 1.5 + 3 of 6
    assert area.value == pytest.approx(4.5 / 6)
    assert 0 < area.low < area.value < area.high < 1
    for limit in (area.low, area.high):  # each is z standard deviations away: m = 5 / 2 - 1
        sd_2 = limit * (1 - limit) / 6
        sd_2 *= 1 + 1.5 * ((1 - limit) / (2 - limit) + limit / (1 + limit))
        assert abs(limit - area.value) == pytest.approx(1.959964 * np.sqrt(sd_2), rel=1e-5)


def test_the_interval_of_a_perfect_auroc_has_a_width():
    perfect = auroc(np.arange(10.0), np.arange(10.0, 30.0))
    assert (perfect.value, perfect.high) == (1, 1)
    assert 0.7 < perfect.low < 0.95
    opposite = auroc(np.arange(10.0, 30.0), np.arange(10.0))
    assert (opposite.low, opposite.value) == (0, 0)
    assert opposite.high == pytest.approx(1 - perfect.low)


def test_the_interval_of_auroc_covers():
    """Normal scores a shift of 1.5 apart: the area is Phi(1.5 / sqrt 2) = 0.8556."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        area = auroc(rng.normal(size=25), rng.normal(1.5, 1, size=15))
        covered.append(area.low <= 0.85557 <= area.high)
    assert np.mean(covered) > 0.9


@pytest.fixture
def labelled(new_folder):
    return [sorted(new_folder.glob(f"{kind}_*")) for kind in ("good", "odd")]


def test_evaluate(detector, labelled, new_folder):
    good, odd = labelled
    told = evaluate(detector, good, [*odd, new_folder / "broken.jpg"])
    results = detector.score(good)
    assert (told.good, told.anomalies, told.unreadable, told.known) == (2, 2, 1, 0)
    assert told.auroc.value == 1
    assert told.at_budget.budget == detector.false_alarms
    assert told.at_budget.detections == rate(2, 2)
    assert told.at_budget.false_alarms == rate(sum(r.is_anomaly for r in results), 2)
    assert [row.budget for row in told.table] == [pytest.approx(1 / 13), 0.1]
    assert evaluate(detector, good, odd, false_alarms=0.5).at_budget.budget == 0.5
    with pytest.raises(BudgetError):
        evaluate(detector, good, odd, false_alarms=0.01)
    with pytest.raises(InputError, match="anomalies: none of 1 image can be read"):
        evaluate(detector, good, [b"no picture"])
    assert evaluate(detector, [*good, detector.names[0]], odd).known == 1


def test_the_command(model, labelled, good_folder, tmp_path):
    good, odd = labelled
    options = ["--good", good[0], "--good", good[1], "--anomalies", odd[0], "--anomalies", odd[1]]
    done = nnad("evaluate", model, *options, "--json", tmp_path / "e.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "tested on        2 good images, 2 anomalous; intervals of 95 %" in done.stdout
    assert "AUROC            1.000 (" in done.stdout
    assert done.stdout.splitlines()[-2].startswith("0.077    ")
    [record] = json.loads((tmp_path / "e.json").read_text())
    assert record["at_budget"]["detections"]["value"] == 1

    done = nnad("evaluate", model, "--good", good_folder, "--anomalies", odd[0], "--json", "-")
    assert json.loads(done.stdout)[0]["known"] == 12
    assert "nnad: 12 good test images of 12 are in the model" in done.stderr
    assert nnad("evaluate", model, "--good", good_folder).returncode == 2
