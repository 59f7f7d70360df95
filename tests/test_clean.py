import csv
import json
import math
import re
import shutil
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

from nnad import Detector, InputError
from nnad.calibrate import Calibration
from nnad.clean import clean, limit, rough_rate
from nnad.cli import main
from nnad.fitted import Fitted
from nnad.operators import make_operator
from nnad.review import read_decisions

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))


def points(*values: float) -> np.ndarray:
    """(N, 1) features on a line."""
    return np.array(values, dtype=np.float32)[:, None]


def test_one_round_by_hand():
    # nearest two others of each: 0 -> 1, 3; 1 -> 0, 3 ...: mean squared distances
    cleaned = clean(points(0, 1, 3, 10, 4, 3.5), k=2, fraction=1 / 3, rounds=1)
    np.testing.assert_allclose(cleaned.scores, [5, 2.5, 0.625, 39.125, 0.625, 0.25])
    assert cleaned.kept.tolist() == [False, True, True, False, True, True]
    assert cleaned.order.tolist() == [3, 0, 1, 2, 4, 5]  # 2 and 4 are equal: the first goes first
    assert cleaned.nearest.tolist() == [1, 0, 5, 4, 5, 2]
    np.testing.assert_allclose(cleaned.distances, [1, 1, 0.5, 6, 0.5, 0.5])
    assert cleaned.rounds == 1


def test_rounds_by_hand():
    # a pair at 20 and 21 vouches for itself; 8 does not, but is nearer to what is kept
    features = points(0, 1, 2, 3, 8, 20, 21)
    one = clean(features, k=1, fraction=3 / 7, rounds=1)
    np.testing.assert_allclose(one.scores, [1, 1, 1, 1, 25, 1, 1])
    assert one.kept.tolist() == [False, False, True, True, False, True, True]
    two = clean(features, k=2, fraction=3 / 7, rounds=1)  # with k = 2 the pair stands alone
    assert two.kept.tolist() == [True, True, True, True, False, False, False]
    # fraction 1/7: 8 goes first; against the others 20 and 21 are company, and stay
    again = clean(features, k=2, fraction=3 / 7)
    assert again.rounds == 3  # the second changes nothing of the core, the third of what is kept
    np.testing.assert_allclose(again.scores[4:], [30.5, (17**2 + 18**2) / 2, (18**2 + 19**2) / 2])
    np.testing.assert_allclose(again.scores[:4], [2.5, 1, 1, 2.5])
    assert again.nearest.tolist() == [1, 0, 1, 2, 3, 3, 3]  # always one that is kept


def test_rounds_bring_an_image_back_by_hand():
    # 6 scores (9 + 16) / 2, the outer ones of the trio 22.5, its middle one 9 and stays; alone, it
    # scores (20^2 + 21^2) / 2, and the others of the trio have no other company
    features = points(0, 1, 2, 3, 6, 20, 23, 26)
    first = clean(features, k=2, fraction=3 / 8, rounds=1)
    np.testing.assert_allclose(first.scores[4:], [12.5, 22.5, 9, 22.5])
    assert first.kept.tolist() == [True] * 4 + [False, False, True, False]
    last = clean(features, k=2, fraction=3 / 8)
    assert last.kept.tolist() == [True] * 5 + [False] * 3
    assert last.rounds == 4  # core of four, and again; five stay, and again
    np.testing.assert_allclose(last.scores[5:], [(14**2 + 17**2) / 2, 344.5, 464.5])


def test_a_core_of_half_by_hand():
    # seven good images close together, five far apart, and four anomalies in company
    good, odd = [0, 1, 2, 3, 4, 5, 6, 20, 40, 60, 80, 100], [200, 210, 220, 230]
    features = points(*good, *odd)
    one = clean(features, k=2, fraction=1 / 4, rounds=1)
    np.testing.assert_allclose(one.scores[:7], [2.5, 1, 1, 1, 1, 1, 2.5])
    np.testing.assert_allclose(one.scores[7:12], [(14**2 + 15**2) / 2, 400, 400, 400, 1000])
    np.testing.assert_allclose(one.scores[12:], [250, 100, 100, 250])
    assert np.flatnonzero(~one.kept).tolist() == [8, 9, 10, 11]  # and so it would stay
    # the core is 0 to 6 and 220, of the equal 210 and 220 the last; then 20 in place of 220; now
    # four go, the anomalies; and nothing changes
    best = clean(features, k=2, fraction=1 / 4)
    assert np.flatnonzero(~best.kept).tolist() == [12, 13, 14, 15]
    assert best.rounds == 5
    np.testing.assert_allclose(best.scores[11:13], [(20**2 + 40**2) / 2, (100**2 + 120**2) / 2])
    core = clean(features, k=2, fraction=1 / 2)
    assert np.flatnonzero(core.kept).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert core.rounds == 4
    assert clean(features, k=2, fraction=0).kept.all()


def test_the_defaults_drop_35_percent_and_small_folders_have_a_core_too():
    rng = np.random.default_rng(2)
    for count in (4, 5, 6, 7, 40):
        cleaned = clean(rng.normal(size=(count, 3)).astype(np.float32), k=2, fraction=0)
        assert cleaned.kept.all()
    assert (~clean(rng.normal(size=(40, 3)).astype(np.float32)).kept).sum() == 14


def test_duplicates_count_and_copies_of_a_defect_need_a_larger_k():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(60, 8)).astype(np.float32)
    defect = np.full((5, 8), 9, dtype=np.float32)
    features = np.vstack([good, defect])
    few = clean(features, k=2, fraction=5 / 65, rounds=1)
    assert few.kept[60:].all()  # each has two copies at distance 0: they are not left out
    np.testing.assert_array_equal(few.scores[60:], 0)
    many = clean(features, k=5, fraction=5 / 65, rounds=1)
    assert not many.kept[60:].any()
    assert clean(features, fraction=5 / 65).scores.shape == (65,)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(8, 40),
    fraction=st.floats(0, 0.5),
    rounds=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_exactly_the_fraction_is_dropped_in_any_order(seed, count, fraction, rounds):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 3)).astype(np.float32)
    cleaned = clean(features, k=2, fraction=fraction, rounds=rounds)
    assert (~cleaned.kept).sum() == math.floor(fraction * count + 1e-9)
    assert cleaned.rounds <= (2 * rounds if rounds > 1 else 1)
    assert cleaned.scores[cleaned.kept].max() <= cleaned.scores[~cleaned.kept].min(initial=np.inf)
    order = rng.permutation(count)
    again = clean(features[order], k=2, fraction=fraction, rounds=rounds)
    np.testing.assert_array_equal(again.scores, cleaned.scores[order])
    np.testing.assert_array_equal(again.kept, cleaned.kept[order])
    assert again.rounds == cleaned.rounds


@pytest.mark.parametrize("fraction", [0.29, 0.57, 0.58])
def test_fractions_that_rounding_would_miss(fraction):  # 0.29 * 100 is 28.999999999999996
    features = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    assert (~clean(features, fraction=fraction).kept).sum() == round(100 * fraction)


def test_equal_scores_go_in_their_order():
    cleaned = clean(points(*range(10)) * 0, fraction=0.3)  # all alike
    assert cleaned.kept.tolist() == [False] * 3 + [True] * 7


@pytest.mark.parametrize("name", ["auto", "knnn", "hull", "global", "kmeans"])
def test_any_operator_ranks(name):
    features = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    features[7] += 20
    cleaned = clean(features, operator=name, fraction=0.1)
    assert cleaned.order[0] == 7
    given = make_operator(name)
    np.testing.assert_array_equal(clean(features, operator=given, fraction=0.1).kept, cleaned.kept)
    assert not hasattr(given, "bank")  # it is copied, not fitted


def test_limit_by_hand():
    # log scores 0, 1, 2, 3, 4: median 2, lower quartile 1, spread 1 / 0.6745
    scores = np.exp(np.arange(5.0))
    assert math.log(limit(scores, 0.25)) == pytest.approx(3)
    assert math.log(limit(scores, 0.5)) == pytest.approx(2)
    assert limit(np.array([0.0, 0, 0, 1, 2]), 0.1) == limit(np.ones(5), 0.1) == math.inf


def test_a_budget_drops_about_that_share_of_normal_log_scores_and_less_with_anomalies():
    rng = np.random.default_rng(0)
    good = np.exp(rng.normal(size=100_000))
    for budget in (0.01, 0.05, 0.2):
        assert (good > limit(good, budget)).mean() == pytest.approx(budget, rel=0.1)
        mixed = np.concatenate([good, np.exp(rng.normal(4, 1, size=20_000))])
        assert (good > limit(mixed, budget)).mean() < budget


def test_a_budget_keeps_a_clean_folder_and_drops_what_stands_out():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(200, 10)).astype(np.float32)
    assert (~clean(good, drop_good=0.01).kept).mean() < 0.05
    odd = rng.normal(size=(20, 10)).astype(np.float32) + 6 * rng.choice([-1, 1], (20, 10))
    cleaned = clean(np.vstack([good, odd.astype(np.float32)]), drop_good=0.01)
    assert not cleaned.kept[200:].any()
    assert cleaned.kept[:200].mean() > 0.95


@pytest.mark.parametrize(("dropped", "least", "most"), [(0, 0.02, 0.08), (0.3, 0.4, 0.7)])
def test_false_alarms_after_a_cleaning_are_far_above_the_budget(dropped, least, most):
    # 60 good images of 22 varieties, some with one picture only: these go first
    budget, rng, rates = 0.05, np.random.default_rng(0), []
    for _ in range(15):
        varieties = rng.normal(size=(22, 50))
        drawn = varieties[rng.integers(22, size=360)] + 0.05 * rng.normal(size=(360, 50))
        good, new = np.split(drawn.astype(np.float32), [60])
        kept = good[clean(good, fraction=dropped).kept]
        model = Fitted(kept, "raw", make_operator("knn"))
        p_values = Calibration(model.left_out_scores(kept)).p_values(model.score(new))
        rates.append((p_values <= budget).mean())
    assert least < np.mean(rates) < most
    rough = rough_rate(budget, len(kept), len(good) - len(kept))
    assert rough / 2 < np.mean(rates) < 2 * rough  # its order, and not a bound:
    assert (np.mean(rates) > rough) == (dropped > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 1}, "fraction=1; expected less than 1"),
        ({"fraction": -0.1}, "fraction=-0.1"),
        ({"fraction": 0.9}, "would leave 1 of 10 images"),
        ({"drop_good": 0.6}, "drop_good=0.6; a share"),
        ({"drop_good": 0}, "drop_good=0; a share"),
        ({"fraction": 0.5, "drop_good": 0.1}, "give one of them"),
        ({"rounds": 0}, "rounds=0"),
        ({"operator": "svm"}, "operator='svm'"),
        ({"operator": make_operator("knn"), "k": 2}, "goes with the name"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        clean(points(*range(10)), **arguments)
    with pytest.raises(InputError, match="would leave 3 of 3 images"):
        clean(points(1, 2, 3))


# the command


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Twelve good pictures, two odd ones and a file that is no picture."""
    folder = tmp_path_factory.mktemp("messy") / "parts"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(draw(i)).save(folder / f"good_{i:02}.png")
    for i in range(2):
        Image.fromarray(draw(200 + i, odd=True)).save(folder / f"odd_{i}.png")
    (folder / "broken.jpg").write_bytes(b"this is not a picture")
    return folder


@pytest.fixture
def here(parts, tmp_path, monkeypatch) -> Path:
    """A folder with `parts` in it."""
    shutil.copytree(parts, tmp_path / "parts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, monkeypatch, capsys):
    """Runs the command in this process: exit code, standard output and error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnad", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code, *capsys.readouterr())

    return run


def lines(path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def decide(words: dict[str, str], path="review/review.csv", **more) -> None:
    """Write words into the column `accept`, as a person would in a spreadsheet."""
    rows = lines(path)
    for row in rows:
        row["accept"] = words.get(Path(row["path"]).name, row["accept"])
    with Path(path).open("w", newline="", **more) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";" if more else ",")
        writer.writeheader()
        writer.writerows(rows)


def test_the_round_trip(here, run):
    before = {path: path.read_bytes() for path in here.glob("parts/*")}
    command = [NNAD, "clean", "parts", "--review", "review", "--fraction", "0.25"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("nnad: parts/broken.jpg: not an image")
    assert "14 images: drop 3, keep 11" in done.stdout
    rows = lines("review/review.csv")
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 15)]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [row["proposed"] for row in rows] == ["drop"] * 3 + ["keep"] * 11
    dropped = [Path(row["path"]).name for row in rows[:3]]
    assert {"odd_0.png", "odd_1.png"} < set(dropped)
    assert all((here / "review" / row[key]).exists() for row in rows for key in ("path", "nearest"))
    assert not any(row["accept"] for row in rows)
    told = json.loads(Path("review/review.json").read_text())
    assert [row["path"] for row in told["images"]] == [row["path"] for row in rows]
    assert "not an image" in told["unreadable"][0]["error"]
    for sheet in ("top.jpg", "border.jpg"):
        with Image.open(here / "review" / sheet) as picture:
            assert picture.width == 4 * 424

    # a person: both odd ones are bad, the third proposal is fine, and so is one that is kept
    third = next(name for name in dropped if name.startswith("good"))
    decide(
        {
            "odd_0.png": "no",
            "odd_1.png": "NO ",
            third: "yes",
            "good_05.png": "TRUE",
            "good_06.png": "1",
        }
    )
    arguments = ["clean", "--decisions", "review/review.csv", "--kept", "kept.csv", "--model", "m"]
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "3 accepted and 2 rejected by a person; 12 kept, 0 dropped as proposed" in out
    assert "m: fitted on 12 images; false-alarm budget 0.077 of good images" in out
    names = [f"parts/good_{i:02}.png" for i in range(12)]
    model = Detector.load("m")
    assert sorted(model.names) == names
    assert model.dropped_unseen == 0
    assert "not hold" not in out
    assert sorted(row["path"] for row in lines("kept.csv")) == names
    again = Detector().fit("kept.csv")
    assert [Path(name).name for name in again.names] == [Path(name).name for name in model.names]
    np.testing.assert_array_equal(again.features, model.features)
    assert {path: path.read_bytes() for path in here.glob("parts/*")} == before

    assert run(*arguments)[0] == 2  # the model is there
    code, _, err = run("clean", "parts", "--review", "review")
    assert (code, err) == (
        2,
        "nnad: review: holds a review, perhaps with decisions; pass --overwrite to replace it\n",
    )
    assert lines("review/review.csv")[0]["accept"]


def test_without_a_person_the_model_tells_what_its_budget_is_worth(run):
    code, out, _ = run(
        "clean", "parts", "--model", "m", "--drop-good", "5/100", "--geometry", "whole"
    )
    assert code == 0
    model = Detector.load("m")
    unseen = 14 - len(model.names)
    assert 2 <= unseen <= 5
    assert not any("odd" in name for name in model.names)
    assert model.dropped_unseen == unseen
    assert model.reason == Detector().reason
    budget = rough_rate(model.false_alarms, len(model.names), unseen)
    assert re.search(
        rf"that does not hold: cleaning dropped {unseen} images .* {budget:.2g} of", out
    )
    info = run("info", "m")[1]
    assert "cleaned          that does not hold" in info
    assert "whole image" in info
    run("add", "m", "parts/odd_0.png", "--reason", "seen and fine")
    after = run("add", "m", "parts/odd_1.png")[1]  # counted anew
    rough = rough_rate(Detector.load("m").false_alarms, len(model.names) + 2, unseen)
    assert f"roughly {rough:.2g} of good images" in after
    assert Detector.load("m").fit("parts").dropped_unseen == 0


def test_a_list_of_kept_images_warns_that_a_fit_will_not(here, run):
    code, _, err = run("clean", "parts", "--kept", "kept.csv", "--fraction", 0.25)
    assert code == 0
    assert "kept.csv: 3 images dropped that no person rejected" in err
    run("clean", "parts", "--review", "review", "--fraction", 0.25)
    rows = lines("review/review.csv")[:3]
    decide({Path(row["path"]).name: "no" for row in rows})
    assert run("clean", "--decisions", "review/review.csv", "--kept", "kept.csv")[2] == ""


def test_decisions_that_are_wrong(run):
    assert run("clean", "parts", "--review", "review")[0] == 0
    written = Path("review/review.csv").read_text()
    rows = written.splitlines(keepends=True)

    def refused(text: str) -> str:
        Path("review/review.csv").write_text(text)
        with pytest.raises(InputError) as error:
            read_decisions(Path("review/review.csv"))
        return str(error.value)

    first = rows[1].partition(",")[0]
    assert "line 2: accept is 'maybe'; write yes, no, or nothing" in refused(
        rows[0] + rows[1].rstrip("\n") + "maybe\n" + "".join(rows[2:])
    )
    assert "line 2: '../parts/new.png' is not in this review" in refused(
        written.replace(first + ",1,", "../parts/new.png,1,", 1)
    )
    assert f"1 of 14 images of the review are missing, for example {first!r}" in refused(
        rows[0] + "".join(rows[2:])
    )
    assert f"line 16: {first!r} is in this list already" in refused(written + rows[1])
    assert "line 1: no column `accept`" in refused(written.replace("accept", "x"))
    assert "missing" in refused(rows[0])

    Path("review/review.csv").write_text(written)
    decide({"odd_0.png": "no"}, encoding="utf-8-sig")  # with ; and a byte order mark
    decided = read_decisions(Path("review/review.csv"))
    assert (decided.rejected, decided.accepted, decided.unseen, len(decided.kept)) == (1, 0, 3, 10)
    assert decided.kept[0].startswith("parts/")
    Path("review/review.json").write_text('{"images": [3]}')
    with pytest.raises(InputError, match="damaged, or not nnad's"):
        read_decisions(Path("review/review.csv"))
    Path("review/review.json").unlink()
    code, _, err = run("clean", "--decisions", "review/review.csv", "--model", "m")
    assert code == 2
    assert "review.json: cannot be read: No such file or directory; the list" in err
    assert not Path("m").exists()


def test_an_image_that_is_gone_is_told_and_the_rest_goes_on(here, run):
    assert run("clean", "parts", "--review", "review", "--fraction", 0.2)[0] == 0
    gone = next(r["path"] for r in reversed(lines("review/review.csv")))
    (here / "review" / gone).unlink()
    moved = here / "elsewhere"
    moved.mkdir()
    for name in ("parts", "review"):  # together, so that paths hold
        shutil.move(here / name, moved / name)
    code, _, err = run("clean", "--decisions", "elsewhere/review/review.csv", "--model", "m")
    assert code == 0
    assert f"elsewhere/parts/{Path(gone).name}: no such file" in err
    assert len(Detector.load("m").names) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of them"),
        (["parts", "--decisions", "r.csv", "--model", "m"], "one of them"),
        (["parts"], "nothing to do"),
        (["--decisions", "r.csv", "--review", "r"], "not both"),
        (["--decisions", "r.csv", "--kept", "r.csv"], "is an input"),
        (["parts", "--kept", "kept.txt"], "ends in .csv"),
        (["parts", "--review", "no/where"], "does not exist"),
        (["parts", "--review", "parts/good_00.png"], "a file is in the way"),
        (["parts", "--review", "parts/review"], "is in a folder of images"),
        (["parts/*.png", "--review", "parts"], "holds other pictures (broken.jpg)"),
        (["parts", "--kept", "k.csv", "--fraction", "2"], "fraction=2"),
        (["--decisions", "r.csv", "--kept", "k.csv", "--k", "2"], "--k: --decisions takes it"),
        (["--decisions", "r.csv", "--model", "m", "--rounds", "10"], "--rounds: --decisions"),
        (["--decisions", "r.csv", "--model", "m", "--operator", "x"], "--operator: --decisions"),
        (["--decisions", "r.csv", "--kept", "k.csv", "--device", "cpu"], "--device: no network"),
        (["parts", "--kept", "k.csv", "--false-alarms", "0.1"], "goes with --model"),
        (["parts", "--kept", "k.csv", "--overwrite"], "goes with --review or --model"),
        (["parts", "--kept", "k.csv", "--drop-good", "few"], "few: a fraction such as 0.01"),
        (["parts", "--kept", "k.csv", "--budget", "0.1"], "No such option: --budget"),
        (["parts/good_00.png", "--kept", "k.csv"], "would leave 1 of 1"),
        (["parts/broken.jpg", "--kept", "k.csv"], "none of 1 image can be read"),
    ],
)
def test_wrong_use(here, run, arguments, message):
    code, _, err = run("clean", *arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert sorted(path.name for path in here.iterdir()) == ["parts"]


def test_copies_are_told(here, run):
    shutil.copy(here / "parts" / "good_03.png", here / "parts" / "copy.png")
    code, out, _ = run("clean", "parts", "--kept", "kept.csv", "--fraction", 0.2)
    assert code == 0
    assert "2 images with an exact copy among those kept: copies vouch for each other" in out
    assert {"parts/copy.png", "parts/good_03.png"} < {row["path"] for row in lines("kept.csv")}
