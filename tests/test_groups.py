import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from nnad import (
    BudgetError,
    CallableBackbone,
    Detector,
    GroupDetector,
    ImageWarning,
    InputError,
    ModelError,
)
from nnad.group_bank import GroupBank
from nnad.group_files import find_groups
from nnad.group_pooling import pooled, spread_parts, trace_of_covariance, without_each
from nnad.model_file import read_model
from nnad.model_writing import write_model
from nnad.operators import make_operator

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))
COOKIES = Path(__file__).parents[1] / "examples" / "cookies"


def colours(batch):
    """Mean colours of a 4 x 4 grid: (B, 48)."""
    cells = batch.reshape(len(batch), 4, 8, 4, 8, 3).mean(axis=(2, 4))
    return cells.reshape(len(batch), -1).astype(np.float32)


BACKBONE = CallableBackbone(colours, size=32)


def lot(seed: int, size: int = 5, odd: int | None = None) -> list[np.ndarray]:
    """Pictures of one lot; number `odd` is an odd one."""
    return [draw(100 * seed + i, odd=i == odd) for i in range(size)]


LOTS = {f"lot {i}": lot(i) for i in range(12)}


def fitted(**arguments) -> GroupDetector:
    return GroupDetector(BACKBONE, **arguments).fit(LOTS)


def write_lots(folder: Path, lots: dict[str, list[np.ndarray]]) -> Path:
    for name, pictures in lots.items():
        (folder / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    return folder


def test_poolings_by_hand():
    members = np.array([[1, 0], [3, 4], [5, -1]], dtype=np.float32)
    np.testing.assert_array_equal(pooled(members, "mean"), [3, 1])
    np.testing.assert_array_equal(pooled(members, "max"), [5, 4])
    np.testing.assert_array_equal(pooled(members, "concat"), [1, 0, 3, 4, 5, -1])
    np.testing.assert_array_equal(without_each(members, "mean"), [[4, 1.5], [3, -0.5], [2, 2]])
    np.testing.assert_array_equal(without_each(members, "max"), [[5, 4], [5, 0], [3, 4]])
    tied = np.array([[2], [2], [1]], dtype=np.float32)
    np.testing.assert_array_equal(without_each(tied, "max"), [[2], [2], [2]])
    # squared distances from (3, 1): 5, 9, 8; over M - 1 = 2
    np.testing.assert_allclose(spread_parts(members), [2.5, 4.5, 4])
    assert trace_of_covariance(members) == pytest.approx(11)
    assert trace_of_covariance(members) == pytest.approx(np.cov(members.T, ddof=1).trace())


members_of_a_group = arrays(
    np.float32, st.tuples(st.integers(2, 8), st.integers(1, 5)), elements=st.integers(-50, 50)
)


@given(members_of_a_group, st.randoms(use_true_random=False))
def test_order_does_not_matter(members, random):
    order = list(range(len(members)))
    random.shuffle(order)
    for pooling in ("mean", "max"):
        np.testing.assert_array_equal(pooled(members, pooling), pooled(members[order], pooling))
    np.testing.assert_allclose(spread_parts(members)[order], spread_parts(members[order]))


@given(members_of_a_group)
def test_the_trace_does_not_favour_large_groups(members):
    pairs = [(i, j) for i in range(len(members)) for j in range(i)]
    of_pairs = [trace_of_covariance(members[list(pair)]) for pair in pairs]
    assert trace_of_covariance(members) == pytest.approx(np.mean(of_pairs), abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max", "concat", "trace"])
def test_an_odd_member_makes_a_group_odd_and_is_named(pooling):
    detector = fitted(pooling=pooling)
    assert detector.false_alarms == pytest.approx(1 / 13)
    results = detector.score({"good": lot(52), "odd": lot(51, odd=3)})
    good, odd = results
    assert (good.name, odd.name) == ("good", "odd")
    assert odd.is_anomaly
    assert odd.p_value == pytest.approx(1 / 13)
    assert odd.score > good.score
    assert good.p_value > odd.p_value
    assert odd.members[0].name == odd.oddest.name == "image[3]"
    parts = [member.contribution for member in odd.members]
    assert parts == sorted(parts, reverse=True)
    assert {m.name for m in odd.members} == {f"image[{i}]" for i in range(5)}
    assert len(odd.nearest) == (0 if pooling == "trace" else 3)
    assert {n.name for n in odd.nearest} <= set(LOTS)


def test_scores_p_values_and_contributions_by_hand():
    detector = fitted(pooling="mean", operator="knn", k=2, transform="l2")
    result = detector.score({"new": lot(51, odd=3)})[0]
    unit = detector.features / np.linalg.norm(detector.features, axis=1, keepdims=True)
    means = unit.reshape(12, 5, -1).astype(np.float64).mean(axis=1)
    raw = np.stack([BACKBONE.embed(Image.fromarray(p)) for p in lot(51, odd=3)])
    members = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float64)

    def score(feature, bank):
        return np.sort(np.square(bank - feature).sum(axis=1))[:2].mean()

    assert result.score == pytest.approx(score(members.mean(axis=0), means), rel=1e-4)
    left_out = [score(means[i], np.delete(means, i, axis=0)) for i in range(12)]
    np.testing.assert_allclose(detector.calibration.good_scores, left_out, rtol=1e-4)
    assert result.p_value == (1 + sum(other >= result.score for other in left_out)) / 13
    for member in result.members:
        without = np.delete(members, int(member.name[6:-1]), axis=0)
        expected = result.score - score(without.mean(axis=0), means)
        assert member.contribution == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert result.nearest[0].distance == pytest.approx(
        np.sqrt(np.square(means - members.mean(axis=0)).sum(axis=1).min()), rel=1e-4
    )


def test_a_group_of_good_members_in_odd_company():
    """DN2's point: each member is good, their combination is not."""
    rng = np.random.default_rng(0)

    def group(classes):
        return np.eye(8, dtype=np.float32)[classes] + rng.normal(0, 0.05, (4, 8)).astype("float32")

    good = [group([0, 1, 2, 3]) for _ in range(40)]
    bank = GroupBank(
        [str(i) for i in range(40)], good, pooling="mean", operator=make_operator("auto")
    )
    images = np.concatenate(good)
    assert np.square(images - images[4]).sum(axis=1)[[0, 8]].max() < 4  # members are like others
    same = bank.compare(group([3, 2, 0, 1])).score
    twice = bank.compare(group([0, 0, 2, 3])).score
    calibration = bank.calibration(4)
    assert calibration.p_values(np.array([same]))[0] > 1 / 41
    assert calibration.p_values(np.array([twice]))[0] == pytest.approx(1 / 41)


@pytest.mark.parametrize("pooling", ["mean", "max", "trace"])
@pytest.mark.parametrize("sizes", [(20, 20), (8, 30)])
def test_false_alarms_of_groups_of_another_size(pooling, sizes):
    """Good lots of 2 and 40 members against good lots of 20, and of 8 to 30."""
    rng = np.random.default_rng(0)
    budget, counts = 0.1, {2: [], 6: [], 40: []}
    plain = []  # false alarms by the scores of full groups
    for _ in range(30):

        def draw_lot(size):
            return (rng.normal(0, 0.3, 6) + rng.normal(0, 1, (size, 6))).astype(np.float32)

        good = [draw_lot(rng.integers(sizes[0], sizes[1] + 1)) for _ in range(9)]
        operator = None if pooling == "trace" else make_operator("knn")
        names = [str(i) for i in range(9)]
        bank = GroupBank(names, good, pooling=pooling, operator=operator)
        for size, alarms in counts.items():
            scores = np.array([bank.compare(draw_lot(size)).score for _ in range(10)])
            alarms.append((scores > bank.calibration(size).threshold(budget)).mean())
            if size == 2:
                plain.append((scores > bank.calibration(20).threshold(budget)).mean())
    for size, alarms in counts.items():
        error = np.std(alarms, ddof=1) / np.sqrt(len(alarms))
        if not (pooling == "max" and size == 40):  # a warning is given there
            assert np.mean(alarms) <= budget + 3 * error, size
    assert np.mean(plain) > 2 * budget


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_group_larger_than_the_good_ones_is_warned_about(pooling):
    with pytest.warns(ImageWarning, match="large: 9 images, more than any good group has"):
        fitted(pooling=pooling).score({"large": lot(50, size=9)})


def test_one_member():
    single = {"single": lot(50, size=1)}
    result = fitted().score(single)[0]
    assert result.members[0].contribution == result.score
    assert result.p_value is not None
    trace = fitted(pooling="trace").score(single)[0]
    assert (trace.score, trace.p_value, trace.is_anomaly) == (None, None, None)
    assert "single: one image has no spread" in trace.error
    assert [m.name for m in trace.members] == ["image[0]"]
    with pytest.raises(InputError, match=r"too few good groups: 0; .*no spread"):
        GroupDetector(BACKBONE, pooling="trace").fit({f"{i}": lot(i, 1) for i in range(9)})


def test_the_trace_needs_no_good_groups():
    detector = GroupDetector(BACKBONE, pooling="trace", transform="raw")
    good, odd = detector.score({"good": lot(52), "odd": lot(51, odd=3)})
    assert odd.score > good.score
    assert (odd.p_value, odd.is_anomaly, odd.nearest) == (None, None, ())
    assert odd.oddest.name == "image[3]"
    features = np.stack([BACKBONE.embed(Image.fromarray(p)) for p in lot(51, odd=3)])
    assert odd.score == pytest.approx(np.var(features, axis=0, ddof=1).sum(), rel=1e-5)
    assert sum(m.contribution for m in odd.members) == pytest.approx(odd.score)
    auto = GroupDetector(BACKBONE, pooling="trace").score({"odd": lot(51, odd=3)})[0]
    assert auto.score < 1  # of vectors of length 1
    with pytest.raises(InputError, match="false_alarms: no good groups were fitted"):
        detector.score({"good": lot(50)}, false_alarms=0.1)
    with pytest.raises(InputError, match="call fit first"):
        GroupDetector(BACKBONE).score({"good": lot(50)})


def test_concatenation_needs_groups_of_equal_size():
    detector = GroupDetector(BACKBONE, pooling="concat").fit({**LOTS, "short": lot(99, 4)})
    assert detector.names == tuple(LOTS)
    assert detector.skipped[0].error.startswith("short: 4 images where the good groups have 5")
    result = detector.score({"long": lot(60, 6)})[0]
    assert result.error.startswith("long: 6 images where the good groups have 5")
    same = detector.score({"lot 3": LOTS["lot 3"]})[0]
    assert same.nearest[0].name == "lot 3"
    assert same.nearest[0].distance == 0
    other = fitted(pooling="concat", seed=1).score({"lot 3": LOTS["lot 3"]})[0]
    assert other.nearest[0].distance == 0


@pytest.mark.parametrize("pooling", ["mean", "max", "concat", "trace"])
def test_neither_the_name_nor_the_order_of_members_changes_a_score(pooling):
    detector = fitted(pooling=pooling)
    new = lot(51, odd=3)
    a, b, c = detector.score({"a": new, "b": new, "c": new[::-1]})
    assert (a.score, a.p_value, a.nearest, a.members) == (b.score, b.p_value, b.nearest, b.members)
    assert (c.score, c.p_value) == (pytest.approx(a.score), a.p_value)
    assert (a.oddest.name, c.oddest.name) == ("image[3]", "image[1]")


def test_the_order_is_drawn_by_seed_and_content():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 3)).astype(np.float32)
    good = [rng.normal(size=(6, 3)).astype(np.float32) for _ in range(5)]
    names = list("abcde")
    banks = [
        GroupBank(names, good, pooling="concat", operator=make_operator("knn"), seed=seed)
        for seed in range(60)
    ]
    orders = [tuple(bank.order(points)) for bank in banks]
    assert orders[0] == tuple(banks[0].order(points))
    assert len(set(orders)) > 40  # of 720
    assert {order[0] for order in orders} == set(range(6))
    shuffled = rng.permutation(6)
    again = points[shuffled]
    np.testing.assert_array_equal(again[banks[7].order(again)], points[banks[7].order(points)])


def test_repeats_count_once_and_copies_give_a_warning(tmp_path, monkeypatch):
    folder = write_lots(tmp_path / "lots", {name: LOTS[name] for name in list(LOTS)[:6]})
    monkeypatch.chdir(tmp_path)
    detector = GroupDetector(BACKBONE).fit(["lots", folder])  # warnings are errors here
    assert detector.names == tuple(str(Path("lots", f"lot {i}")) for i in range(6))
    first = folder / "lot 0"
    lots = {path.name: path for path in sorted(folder.iterdir())}
    twice = {**lots, "lot 0": [*sorted(first.iterdir()), str(Path("lots", "lot 0", "0.png"))]}
    assert GroupDetector(BACKBONE).fit(twice).sizes == (5,) * 6
    part = {**lots, "part": [first / "0.png", first / "1.png"]}  # another group, of shared files
    assert GroupDetector(BACKBONE).fit(part).names == (*lots, "part")
    mixed = {**lots, "mixed": [*sorted(first.iterdir()), draw(7)], "x": [], "y": []}
    detector = GroupDetector(BACKBONE).fit(mixed)
    assert detector.names == (*lots, "mixed")
    assert [skipped.name for skipped in detector.skipped] == ["x", "y"]
    for pooling in ("mean", "trace"):
        with pytest.warns(
            ImageWarning, match=r"1 of 13 good groups \(for example lot 3 and copy\)"
        ):
            GroupDetector(BACKBONE, pooling=pooling).fit({**LOTS, "copy": LOTS["lot 3"][::-1]})


def test_bad_members_and_empty_groups_are_records():
    detector = fitted()
    results = detector.score({"some": [b"x", *lot(50)], "all": [b"x", b""], "none": []})
    some, all_bad, none = results
    whole = detector.score({"some": lot(50)})[0]
    assert (some.score, some.p_value) == (whole.score, whole.p_value)
    assert (some.error, some.members[-1].name) == (None, "image[0]")
    assert "not an image" in some.members[-1].error
    assert some.members[-1].contribution is None
    assert all_bad.error.startswith("all: none of 2 images can be read; image[0]: not an image")
    assert none.error == "none: this group has no images"
    assert (all_bad.score, none.score, none.members) == (None, None, ())

    refitted = GroupDetector(BACKBONE).fit({**LOTS, "all": [b"x"], "some": [b"x", *lot(50)]})
    assert refitted.names == (*LOTS, "some")
    assert refitted.sizes == (5,) * 13
    assert [r.name for r in refitted.skipped] == ["image[0]", "image[0]", "all"]


def test_scores_do_not_depend_on_company():
    for pooling in ("mean", "max", "concat", "trace"):
        detector = fitted(pooling=pooling)
        new = {"a": lot(50), "b": lot(51, odd=3)}
        together = detector.score(new)
        assert [detector.score({name: new[name]})[0] for name in new] == together


@pytest.mark.parametrize("pooling", ["mean", "max", "concat", "trace"])
def test_a_saved_model_scores_the_same(pooling, tmp_path):
    operator = {} if pooling == "trace" else {"operator": "kmeans"}
    detector = fitted(pooling=pooling, false_alarms=0.2, seed=3, **operator)
    detector.save(tmp_path / "m")
    loaded = GroupDetector.load(tmp_path / "m", backbone=BACKBONE)
    new = {"b": lot(51, odd=3), "a": lot(50), "lot 1": LOTS["lot 1"]}
    if pooling != "concat":
        new["small"] = lot(52, size=3)
    assert loaded.score(new) == detector.score(new)
    assert (loaded.names, loaded.sizes, loaded.members) == (
        detector.names,
        detector.sizes,
        detector.members,
    )
    assert loaded.false_alarms == 0.2
    assert repr(loaded) == repr(detector)
    with pytest.raises(ModelError, match="a model of groups"):
        Detector.load(tmp_path / "m", backbone=BACKBONE)


def test_models_of_images_and_damaged_ones(tmp_path):
    Detector(BACKBONE).fit(LOTS["lot 0"] + LOTS["lot 1"]).save(tmp_path / "images")
    with pytest.raises(ModelError, match="a model of single images"):
        GroupDetector.load(tmp_path / "images", backbone=BACKBONE)
    detector = fitted()
    detector.names = detector.names[1:]
    detector.save(tmp_path / "damaged")
    with pytest.raises(ModelError, match="groups and images differ in number"):
        GroupDetector.load(tmp_path / "damaged", backbone=BACKBONE)
    saved = read_model(tmp_path / "images")
    write_model(tmp_path / "none", dataclasses.replace(saved, settings=None))
    for kind in (Detector, GroupDetector):
        with pytest.raises(ModelError, match="damaged or not written by nnad"):
            kind.load(tmp_path / "none", backbone=BACKBONE)


def test_a_callers_fault_is_not_the_models(tmp_path):
    fitted().save(tmp_path / "m")
    with pytest.raises(InputError, match=r"^workers=0"):
        GroupDetector.load(tmp_path / "m", backbone=BACKBONE, workers=0)


def test_the_budget_is_in_words_for_groups():
    with pytest.raises(BudgetError, match=r"12 good groups .*budget is 0\.077, .* at least 99"):
        GroupDetector(BACKBONE, false_alarms=0.01).fit(LOTS)
    with pytest.raises(BudgetError, match="12 good groups to calibrate with cannot support it"):
        fitted().score({"good": lot(50)}, false_alarms=0.05)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pooling": "median"}, "pooling='median'"),
        ({"transform": "white"}, "transform='white'"),
        ({"operator": "svm"}, "operator='svm'"),
        ({"pooling": "trace", "operator": "knn"}, "operator: pooling 'trace'"),
        ({"seed": -1}, "seed=-1"),
        ({"false_alarms": 2.0}, "false_alarms=2.0"),
    ],
)
def test_wrong_arguments_are_named(wrong, told):
    with pytest.raises(InputError, match=f"^{told}"):
        GroupDetector(BACKBONE, **wrong)


def test_groups_from_folders_archives_and_lists(tmp_path):
    folder = write_lots(tmp_path / "lots", {"b": lot(0, 2), "a": lot(1, 1)})
    (folder / "b" / "deep").mkdir()
    shutil.move(folder / "b" / "1.png", folder / "b" / "deep" / "1.png")
    (folder / "empty").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("not a picture")
    found = find_groups(folder)
    assert [Path(name).name for name, _ in found] == ["a", "b", "empty"]
    assert [len(members) for _, members in found] == [1, 2, 0]
    assert found[1].members[1][0] == str(folder / "b" / "deep" / "1.png")
    assert find_groups([folder / "a", str(folder / "b" / "deep")])[0] == found[0]

    with zipfile.ZipFile(tmp_path / "lots.zip", "w") as archive:
        for path in (folder / "a" / "0.png", folder / "b" / "0.png"):
            archive.write(path, path.relative_to(folder))
    zipped = find_groups(tmp_path / "lots.zip")
    assert [(Path(name).name, len(members)) for name, members in zipped] == [("a", 1), ("b", 1)]

    listed = tmp_path / "lots.csv"
    listed.write_text("path,group\nlots/a/0.png,x\nlots/b/0.png,y\nlots/b/1.png,x\n")
    assert [(name, len(members)) for name, members in find_groups(listed)] == [("x", 2), ("y", 1)]
    (tmp_path / "lots.json").write_text(json.dumps([{"path": "lots/a/0.png", "group": "x"}]))
    assert find_groups(tmp_path / "lots.json")[0].name == "x"

    (folder / "astray.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"lots: astray\.png lies beside the sub-folders"):
        find_groups(folder)
    with zipfile.ZipFile(tmp_path / "lots.zip", "a") as archive:
        archive.write(folder / "a" / "0.png", "astray.png")
    with pytest.raises(InputError, match=r"astray\.png lies beside the sub-folders"):
        find_groups(tmp_path / "lots.zip")
    listed.write_text("path,group\nlots/a/0.png,\n")
    with pytest.raises(InputError, match=r"lots\.csv, line 2: no `group`"):
        find_groups(listed)
    listed.write_text("path,group,label\na.png,x,good\nb.png,x,crack\n")
    assert len(find_groups(listed)) == 1
    with pytest.raises(InputError, match="labelled 'crack'"):
        find_groups(listed, only_good=True)
    with pytest.raises(InputError, match="two groups have this name"):
        find_groups([folder / "a", folder / "a"])
    with pytest.raises(InputError, match="missing: groups are folders"):
        find_groups(tmp_path / "missing")
    with pytest.raises(InputError, match="there are none"):
        find_groups({})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no image files"):
        find_groups(tmp_path / "nothing")


def nnad(*arguments, of: tuple[str, ...] = ("groups",)) -> subprocess.CompletedProcess:
    command = [NNAD, *of, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_the_command(tmp_path):
    """Whole cookies in trays of three; one new tray has two broken cookies, one a broken file."""
    cookies = sorted((COOKIES / "train" / "good").iterdir())
    for i, path in enumerate(cookies[:30]):
        (tmp_path / "good" / f"tray {i % 10}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "good" / f"tray {i % 10}")
    normal = sorted((COOKIES / "test" / "good").iterdir())
    broken = sorted((COOKIES / "test" / "anomaly").iterdir())
    for name, paths in {"whole": normal[:3], "odd": [*broken[:2], normal[3]]}.items():
        (tmp_path / "new" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, tmp_path / "new" / name)
    (tmp_path / "new" / "whole" / "x.jpg").write_bytes(b"this is not a picture")
    (tmp_path / "new" / "empty").mkdir()
    (tmp_path / "new" / "whole" / "clip.mp4").write_bytes(b"")
    (tmp_path / "good" / "tray 3" / "notes.txt").write_bytes(b"")

    model, seen = tmp_path / "trays.nnad", ("--geometry", "letterbox", "--flips", "both")
    done = nnad("fit", tmp_path / "good", "--model", model, *seen)
    passed_over = "nnad: passed over 1 file without an image's extension: 1 {}\n"
    assert (done.returncode, done.stderr) == (0, passed_over.format(".txt"))
    assert done.stdout.endswith(
        "fitted on 10 good groups of 30 images; false-alarm budget 0.091 of good groups, "
        "not proven (the smallest for 10 groups; 0.01 needs 99)\n"
    )
    outputs = "--csv", tmp_path / "r.csv", "--json", "-"
    done = nnad("score", model, tmp_path / "new", *outputs, "--fail-on-anomaly")
    assert done.returncode == 1
    results = {Path(r["name"]).name: r for r in json.loads(done.stdout)}
    assert list(results) == ["empty", "odd", "whole"]
    assert results["odd"]["p_value"] < results["whole"]["p_value"]
    assert results["odd"]["is_anomaly"]
    first_two = {Path(m["name"]).name for m in results["odd"]["members"][:2]}
    assert first_two == {path.name for path in broken[:2]}
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("group", "score", "p_value", "is_anomaly", "nearest", "error"),
        *("members", "oddest_member"),
    ]
    assert rows[0]["error"].endswith("empty: this group has no images")
    assert Path(rows[1]["oddest_member"]).name in first_two
    assert "/good/tray " in rows[1]["nearest"]
    assert [row["members"] for row in rows] == ["0", "3", "4"]
    assert done.stderr.startswith(passed_over.format(".mp4"))
    lines = done.stderr.splitlines()[1:]
    assert "ANOMALY" in lines[1]
    assert "/new/odd  (" in lines[1]
    assert lines[-1] == "2 groups scored, 1 anomaly at a budget of 0.091; 2 errors"
    assert any("x.jpg: not an image" in line for line in lines)

    done = nnad("rank", tmp_path / "new", *seen)
    assert done.returncode == 0
    assert done.stderr.startswith(passed_over.format(".mp4"))
    assert "/new/odd  (" in done.stdout.splitlines()[1]
    assert done.stdout.endswith(
        "2 groups scored; without good groups there are no p-values; 2 errors\n"
    )

    done = nnad(model, of=("info",))
    assert (done.returncode, done.stderr) == (0, "")
    told = {line[:17].strip(): line[17:] for line in done.stdout.splitlines()}
    assert told["good groups"] == f"10, first {tmp_path / 'good' / 'tray 0'}"
    assert told["images in each"] == "3 images, 30 in all"
    assert (told["pooling"], told["transform"]) == ("mean", "root")
    assert told["backbone"].startswith("efficientnet-lite0, ")
    assert told["operator"].startswith("local, ")
    assert told["false alarms"].startswith("false-alarm budget 0.091 of good groups")
    assert told["calibration"] == "leave-one-out, 10 groups"
    assert told["threshold"].endswith(" for groups of 3 or more; smaller ones have their own")
    assert told["smallest budget"] == "0.091"
    listed = nnad(model, "--images", of=("info",)).stdout.splitlines()
    assert (len(listed), Path(listed[0]).parent.name) == (30, "tray 0")
    done = nnad(model, of=("log",))
    assert done.stdout.endswith("  fitted on 10 good groups of 30 images\n")
    done = nnad(model, tmp_path / "new", of=("add",))
    assert done.returncode == 2
    assert f"nnad: {model}: a model of groups; `nnad groups score` and" in done.stderr
