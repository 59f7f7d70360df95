"""Good images come and go: the model equals a fit from scratch, whoever kills or interrupts."""

import json
import multiprocessing
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nnad import (
    BudgetError,
    CallableBackbone,
    Detector,
    ImageWarning,
    InputError,
    ModelError,
    living,
    load_backbone,
)
from nnad.operators import NAMES, make_operator

NNAD = str(Path(sys.executable).parent / "nnad")
ARGUMENTS = {"kmeans": {"n_centers": 3}}


def corners(batch):
    """(B, 32, 32, 3) -> (B, 12): a quick feature that differs from picture to picture."""
    small = batch.reshape(len(batch), 2, 16, 2, 16, 3).mean(axis=(2, 4))
    return small.reshape(len(batch), -1)


QUICK = CallableBackbone(corners, size=32)
PICTURES = [np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8) for i in range(40)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{i:02}.png") for i in range(40)]
    for path, picture in zip(paths, PICTURES, strict=True):
        Image.fromarray(picture).save(path)
    return paths


def quick(operator="knn", transform="root", **arguments) -> Detector:
    made = make_operator(operator, **{**ARGUMENTS.get(operator, {}), **arguments})
    return Detector(QUICK, transform=transform, operator=made, workers=1)


def assert_equal(changed: Detector, fresh: Detector, queries) -> None:
    assert changed.names == fresh.names
    assert changed.features.tobytes() == fresh.features.tobytes()
    assert changed.calibration.good_scores.tolist() == fresh.calibration.good_scores.tolist()
    assert changed.score(queries) == fresh.score(queries)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("transform", ["root", "log"])
@pytest.mark.parametrize("operator", ["auto", *NAMES])
def test_any_sequence_of_changes_equals_a_fit_from_scratch(operator, transform, pictures, data):
    detector = quick(operator, transform).fit(pictures[:12])
    before = [detector.names]  # what each undo must bring back
    for _ in range(data.draw(st.integers(1, 5))):
        action = data.draw(st.sampled_from(["add", "remove", "undo"]))
        outside = [p for p in pictures if p not in detector.names]
        if action == "add":
            some = data.draw(
                st.lists(st.sampled_from(outside), min_size=1, max_size=5, unique=True)
            )
            detector.add(some)
            before.append(detector.names)
        elif action == "remove" and len(detector.names) > 8:
            known = list(detector.names)
            some = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
            detector.remove(some)
            before.append(detector.names)
        elif action == "undo" and len(before) > 1:
            detector.undo()
            before.pop()
            assert detector.names == before[-1]
    fresh = quick(operator, transform).fit(list(detector.names))
    assert_equal(detector, fresh, pictures[30:33])


@pytest.mark.parametrize("operator", ["auto", "knn", "knnn", "kmeans"])
def test_a_saved_model_lives_on_equally(operator, pictures, tmp_path):
    detector = quick(operator).fit(pictures[:12])
    detector.save(tmp_path / "m")
    again = Detector.load(tmp_path / "m", backbone=QUICK, workers=1)
    for each in (detector, again):
        each.add(pictures[12:15], reason="fine", by="ann")
        each.remove("03.png", by="bob")
    again.save(tmp_path / "m", overwrite=True)
    again = Detector.load(tmp_path / "m", backbone=QUICK, workers=1)
    assert_equal(again, detector, pictures[30:33])
    again.undo()
    again.undo()
    assert_equal(again, quick(operator).fit(pictures[:12]), pictures[30:33])
    told = [(c.number, c.action, c.by, c.undoes) for c in again.log]
    assert [t[:2] for t in told] == [
        (0, "fit"),
        (1, "add"),
        (2, "remove"),
        (3, "undo"),
        (4, "undo"),
    ]
    assert [t[2] for t in told[1:3]] == ["ann", "bob"]
    assert [t[3] for t in told[3:]] == [2, 1]


def test_a_change_writes_what_is_new(pictures, tmp_path):
    quick().fit(pictures[:12]).save(tmp_path / "m")
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("m/bank-*")}
    detector = Detector.load(tmp_path / "m", backbone=QUICK)
    detector.add(pictures[12:14])
    detector.save(tmp_path / "m", overwrite=True)
    after = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("m/bank-*")}
    assert before.items() <= after.items()
    assert len(after) == 2


def test_an_anomaly_becomes_fine_by_a_word(pictures):
    detector = quick().fit(pictures[:20])
    strange = np.zeros((12, 12, 3), np.uint8)
    strange[:6] = 255
    assert detector.score([strange])[0].is_anomaly
    detector.add([strange], reason="white parts are a new variant")
    result = detector.score([strange])[0]
    assert result.nearest[0].name == "image[0]"
    assert result.nearest[0].distance == 0
    detector.undo()
    assert detector.score([strange])[0].is_anomaly


def test_names(pictures):
    detector = quick().fit([*pictures[:8], PICTURES[8]])
    detector.add([PICTURES[9], PICTURES[10]])  # numbers that no other image has
    assert detector.names[8:] == ("image[8]", "image[9]", "image[10]")
    with pytest.warns(ImageWarning, match=r"left out 1 image .*00\.png"):
        detector.add([pictures[0], pictures[11]])
    with pytest.raises(InputError, match="all in the model already"):
        detector.add(pictures[0])
    with pytest.raises(InputError, match="no good image of that name"):
        detector.remove("0.png")
    with pytest.raises(InputError, match="no image to remove"):
        detector.remove([])
    detector.remove(["00.png", pictures[0]])  # twice the same
    assert pictures[0] not in detector.names


def test_another_picture_of_the_same_name(tmp_path):
    for i in range(8):
        Image.fromarray(PICTURES[i]).save(tmp_path / f"{i}.png")
    detector = quick().fit(tmp_path)
    Image.fromarray(PICTURES[20]).save(tmp_path / "3.png")
    with pytest.raises(InputError, match=r"3\.png: another picture of that name"):
        detector.add(tmp_path / "3.png")
    detector.add([tmp_path / "3.png", PICTURES[25]])  # the others go on
    assert [r.name for r in detector.skipped] == [str(tmp_path / "3.png")]
    detector.remove("3.png")
    detector.add(tmp_path / "3.png")
    (tmp_path / "a").mkdir()
    Image.fromarray(PICTURES[21]).save(tmp_path / "a" / "3.png")
    detector.add(tmp_path / "a")
    with pytest.raises(InputError, match=r"stands for 2 good images \(.*3\.png.*say which"):
        detector.remove("3.png")
    detector.remove("a/3.png")


def test_a_picture_counts_once_however_its_path_is_spelt(pictures, tmp_path, monkeypatch):
    detector = quick().fit(pictures[:8])
    monkeypatch.chdir(Path(pictures[0]).parent)
    (tmp_path / "copy.png").write_bytes(Path(pictures[3]).read_bytes())
    for again in ("00.png", "./01.png", tmp_path / "copy.png", PICTURES[2]):
        with pytest.raises(InputError, match="all in the model already"):
            detector.add(again)


def test_what_a_log_cannot_hold_is_refused_before_it_is_written(pictures, tmp_path):
    detector = quick().fit(pictures[:9])
    with pytest.raises(InputError, match="reason=None; expected text"):
        detector.remove("00.png", reason=None)
    with pytest.raises(InputError, match="by=7; expected text"):
        detector.remove("00.png", by=7)
    detector.set_budget(np.float32(0.25))
    detector.save(tmp_path / "m")
    assert Detector.load(tmp_path / "m", backbone=QUICK).false_alarms == 0.25


def test_a_damaged_file_is_replaced_by_a_save(pictures, tmp_path):
    detector = quick().fit(pictures[:9])
    detector.save(tmp_path / "whole")
    detector.save(tmp_path / "damaged")
    (bank,) = (tmp_path / "damaged").glob("bank-*")
    bank.write_bytes(bank.read_bytes()[:-1] + b"x")
    Detector.load(tmp_path / "whole", backbone=QUICK).save(tmp_path / "damaged", overwrite=True)
    assert Detector.load(tmp_path / "damaged", backbone=QUICK).names == detector.names


def test_a_wrong_argument_is_no_damage(pictures, tmp_path):
    quick().fit(pictures[:9]).save(tmp_path / "m")
    with pytest.raises(InputError, match="workers=0"):
        Detector.load(tmp_path / "m", backbone=QUICK, workers=0)


def test_a_function_lives_on_the_disk(pictures, tmp_path):
    quick().fit(pictures[:9]).save(tmp_path / "m")
    living.add(tmp_path / "m", pictures[9], backbone=QUICK)
    changed = living.change(tmp_path / "m", lambda d: d.remove("00.png"), backbone=QUICK)
    assert len(changed.names) == 9
    assert changed.history.removed == 1


def test_what_cannot_be_is_refused_and_changes_nothing(pictures, tmp_path):
    detector = Detector(QUICK, operator="knn", false_alarms=0.1).fit(pictures[:9])
    told = detector.log, detector.names
    with pytest.raises(BudgetError, match="cannot support it"):
        detector.remove(pictures[0])
    with pytest.raises(BudgetError):
        detector.set_budget(0.05)
    with pytest.raises(InputError, match="a fraction"):
        detector.set_budget(5)
    with pytest.raises(InputError, match="nothing to undo"):
        detector.undo()
    with pytest.raises(InputError, match="none of 1 image can be read"):
        detector.add([b"no picture"])
    assert (detector.log, detector.names) == told
    few = quick().fit(pictures[:4])
    with pytest.raises(InputError, match="too few good images: 3; 4 are needed"):
        few.remove(pictures[0])
    with pytest.raises(InputError, match="call fit first"):
        quick().add(pictures[0])
    (tmp_path / "bad.png").write_bytes(b"x")
    change = few.add([pictures[5], str(tmp_path / "bad.png")])
    assert len(change.rows) == 1
    assert [r.name for r in few.skipped] == [str(tmp_path / "bad.png")]


def test_the_budget_is_a_change_like_others(pictures):
    detector = quick().fit(pictures[:19])
    assert detector.false_alarms == 0.05
    detector.set_budget(0.2)
    detector.add(pictures[19])
    detector.set_budget(None)
    assert detector.false_alarms == pytest.approx(1 / 21)
    detector.undo()
    assert detector.false_alarms == 0.2
    detector.undo()
    detector.undo()
    assert (detector.false_alarms, len(detector.names)) == (0.05, 19)


def test_copies_among_new_images_are_warned_about(pictures, tmp_path):
    detector = quick().fit(pictures[:8])
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(pictures[12]).read_bytes())
    with pytest.warns(ImageWarning, match=r"copies of others: 1 of 10 .*12\.png and .*copy\.png"):
        detector.add([pictures[12], copy])
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        detector.add(pictures[9])


def test_200_kills(pictures, tmp_path):
    detector = quick().fit(pictures[:12])
    detector.add(pictures[12:14])
    detector.save(tmp_path / "m")
    command = [sys.executable, str(Path(__file__).with_name("killed_writers.py"))]
    done = subprocess.run([*command, tmp_path / "m", "200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stdout.split()
    steps, old, new, none = map(int, told[1::2])
    assert steps > 5000  # bytes and system calls
    assert old + new + none == 250
    assert min(old, new, none) >= 8


def add_some(folder, paths):
    for path in paths:
        living.add(folder, path, by=Path(path).stem)


def test_several_writers_at_once(model, good_folder, new_folder, tmp_path):
    """Each addition of four processes is there, once, and the model equals a fit on all."""
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(draw(500 + i)).save(path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add_some, args=(model, paths[i::4])) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    detector = Detector.load(model)
    assert sorted(detector.names[12:]) == sorted(map(str, paths))
    assert [change.number for change in detector.log] == list(range(9))
    assert_equal(detector, Detector().fit(list(detector.names)), new_folder)


def test_a_model_that_was_fitted_anew_meanwhile(model, good_folder, new_folder, monkeypatch):
    embed = Detector.embed

    def slow(self, *arguments, **options):
        done = embed(self, *arguments, **options)
        network = load_backbone(geometry="whole")
        Detector(network).fit(good_folder).save(model, overwrite=True)
        return done

    monkeypatch.setattr(Detector, "embed", slow)
    with pytest.raises(ModelError, match="fitted anew with another network"):
        living.add(model, new_folder / "good_0.png")


def run(*arguments, code=0):
    done = subprocess.run([NNAD, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_commands(model, new_folder, tmp_path):
    out, _ = run("add", model, new_folder / "good_0.png", "--reason", "fine\x1b[31m", "--by", "ann")
    assert "ann  added 1 good image" in out
    assert "13 good images; false-alarm budget 0.0715" in out
    assert r'("fine\x1b[31m")' in out  # nothing reaches the terminal
    run("remove", model, "good_03.png")
    run("budget", model, "0.2")
    _, err = run("remove", model, "good_03.png", code=2)
    assert "no good image of that name" in err
    _, err = run("budget", model, "0.001", code=2)
    assert "cannot support it" in err
    _, err = run("budget", model, "much", code=2)
    assert "a fraction such as 0.01" in err
    out, _ = run("undo", model)
    assert "took back 3 (budget 0.2 instead of default)" in out
    out, _ = run("undo", model)
    assert "took back 2 (removed 1 good image: " in out
    run("log", model, "--json", tmp_path / "log.json")
    told = json.loads((tmp_path / "log.json").read_text())
    assert [t["action"] for t in told] == ["fit", "add", "remove", "budget", "undo", "undo"]
    assert told[1]["images"] == [str(new_folder / "good_0.png")]
    names, _ = run("info", model, "--images")
    assert names.splitlines() == list(Detector.load(model).names)
    _, err = run("undo", tmp_path / "nothing", code=2)
    assert "no such model" in err
