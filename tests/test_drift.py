import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from nnad import Detector, InputError
from nnad.conformal import Method
from nnad.drift import ALONG_THE_WAY, BOTH, MORE_ANOMALIES, NO_CHANGE, SHIFTED, drift, judge
from nnad.drift_tests import (
    bulk_test,
    exceedances,
    holm,
    neighbor_test,
    online_p_values,
    simple_jumper,
    tail_count,
    tail_parts,
    tail_test,
)
from nnad.errors import BudgetError
from nnad.operators import make_operator
from nnad.picture_measures import compare, measures
from nnad.scorer import Scorer

NNAD = shutil.which("nnad", path=str(Path(sys.executable).parent))
NEW = 20


def nnad(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([NNAD, *map(str, arguments)], capture_output=True, text=True)


# the tests ---------------------------------------------------------------------------------------


def counted(n, m, r):
    """P(K >= k) over all orders of n good and m new scores, which are equally likely."""
    counts = []
    for new in combinations(range(n + m), m):
        cut = sorted(set(range(n + m)) - set(new))[n - r]
        counts.append(sum(rank > cut for rank in new))
    return [np.mean(np.array(counts) >= k) for k in range(m + 1)]


def test_exceedances_by_counting_all_orders():
    for r in range(1, 5):
        np.testing.assert_allclose(exceedances([(3, r, 4)]), counted(4, 3, r))


def test_exceedances_of_two_products_by_hand():
    one, other = counted(2, 1, 1), counted(3, 1, 1)  # 1/3 and 1/4 to be the highest
    assert (one[1], other[1]) == (pytest.approx(1 / 3), pytest.approx(1 / 4))
    both = exceedances([(1, 1, 2), (1, 1, 3)])
    np.testing.assert_allclose(both, [1, 1 - 2 / 3 * 3 / 4, 1 / 3 * 1 / 4])


def test_tail_test_by_hand():
    good = np.array([1.0, 2.0])
    assert tail_test([(good, np.array([3.0, 4.0]))], 0.34) == pytest.approx(1 / 6)  # 2! 2! / 4!
    assert tail_test([(good, np.array([0.0, 4.0]))], 0.01) == pytest.approx(1 / 2)
    assert tail_test([(good, np.array([2.0, 2.0]))], 0.34) == pytest.approx(1)  # not above
    many = np.arange(99.0)
    assert tail_parts([(many, good)], 0.1) == [(2, 10, 99)]
    samples = [(many, np.array([88.5, 89.5, 99])), (good, np.array([1.5, 3]))]
    assert tail_count(samples, 0.1) == 2 + 1


def test_bulk_test_by_hand():
    good = np.array([1.0, 2.0, 3.0])
    # all 4 above the median; one may be odd. 3 new above the second of 3 good ones: 4 of the
    # 6! / 3! 3! = 20 orders have it, those with the lowest good one first to fourth
    assert bulk_test([(good, np.full(4, 9.0))]) == pytest.approx(2 * 4 / 20)
    # all 4 below it: 5 of 7! / 4! 3! = 35 orders
    assert bulk_test([(good, np.zeros(4))]) == pytest.approx(2 * 5 / 35)
    assert bulk_test([(good, np.full(4, 2.0))]) == pytest.approx(1)
    # two products of this kind
    both = [(good, np.zeros(4)), (good + 9, np.zeros(4))]
    assert bulk_test(both) == pytest.approx(2 * (5 / 35) ** 2)


def test_a_quarter_of_odd_images_does_not_move_the_bulk():
    good = np.linspace(0, 1, 200)
    usual = np.linspace(0, 1, 150)
    assert bulk_test([(good, np.append(usual, np.full(50, 9)))]) > 0.3
    assert bulk_test([(good, np.append(usual, np.full(150, 9)))]) < 1e-3
    assert bulk_test([(good, usual + 0.3)]) < 1e-3
    assert bulk_test([(good, usual - 0.3)]) < 1e-3


def test_online_p_values_by_hand():
    class FirstOfTies:
        def random(self):
            return 0.75

    good = np.array([3.0, 1.0, 2.0])
    # 2.5: one above, itself a quarter, of 4; 9: of 5; 2.5 again: two above, two ties, of 6
    scores, one = np.array([2.5, 9.0, 2.5]), np.zeros(3, dtype=int)
    p_values = online_p_values([good], scores, one, FirstOfTies())
    np.testing.assert_allclose(p_values, [1.25 / 4, 0.25 / 5, (2 + 0.25 * 2) / 6])
    # the second is of another product, with one good image
    p_values = online_p_values([good, good[:1]], scores, np.array([0, 1, 0]), FirstOfTies())
    np.testing.assert_allclose(p_values, [1.25 / 4, 0.25 / 2, (1 + 0.25 * 2) / 5])


def test_simple_jumper_by_hand():
    # bets 1 + b (p - 1/2): at p = 0 they are 2, 1, 0; then 0.99 of each third stays where it is
    second = 2 * (0.99 * 2 / 3 + 0.01 / 3) + (0.99 / 3 + 0.01 / 3)
    np.testing.assert_allclose(simple_jumper([0.0, 0.0]), [1, second])
    np.testing.assert_allclose(simple_jumper([0.5] * 5), 1)
    assert simple_jumper([0.1] * 30)[-1] > 1000
    assert simple_jumper([0.9] * 30)[-1] > 1000
    assert len(simple_jumper([])) == 0


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 1))
def test_the_simple_jumper_is_a_martingale(past, p):
    """Its bets are linear, so a fair game is one in which p and 1 - p even out."""
    now = simple_jumper(past)[-1] if past else 1.0
    following = [simple_jumper([*past, value])[-1] for value in (p, 1 - p)]
    assert np.mean(following) == pytest.approx(now)
    assert min(following) >= 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03], 0.06) == [True, True, True]  # 0.02, 0.03, 0.06
    assert holm([0.01, 0.04, 0.04], 0.06) == [True, False, False]
    assert holm([0.03, 0.03, 0.03], 0.06) == [False, False, False]


def neighbors(good, new, rng, products=None):
    products = np.zeros(len(good) + len(new), dtype=int) if products is None else products
    return neighbor_test(good, new, products, rng)


def test_neighbor_test_sees_a_shift_and_not_a_cluster_of_odd_images():
    rng = np.random.default_rng(0)
    good, new = (rng.normal(size=(60, 16)).astype(np.float32) for _ in range(2))
    p_value, share, expected = neighbors(good, new, rng)
    assert p_value > 0.1
    assert share == pytest.approx(expected, abs=0.1)
    assert expected == pytest.approx(60 / 119, abs=0.02)
    assert neighbors(good, new + 1, rng)[0] == 0.001
    new[:12] = 5 + 0.1 * new[:12]
    assert neighbors(good, new, rng)[0] > 0.1
    assert neighbors(good[:4], new[:1], rng)[0] == 1


def test_neighbor_test_does_not_mind_another_mixture_of_products():
    rng = np.random.default_rng(0)
    good, new = (rng.normal(size=(80, 16)).astype(np.float32) for _ in range(2))
    good[:60] += 5
    new[:20] += 5
    products = np.r_[np.zeros(60), np.ones(20), np.zeros(20), np.ones(60)]
    assert neighbors(good, new, rng)[0] < 0.01
    assert neighbors(good, new, rng, products)[0] > 0.1
    assert neighbors(good, new + 1, rng, products)[0] < 0.01


# the verdict -------------------------------------------------------------------------------------


def verdict(good, new, alpha=0.01, seed=0, budget=0.1):
    scorer = Scorer(good, "raw", make_operator("knn"))
    return judge(good, new, scorer, budget, alpha=alpha, seed=seed)


def normals(seed, *sizes):
    """Rows (size, 6) of almost one length, so that a scaling to length 1 leaves them alike."""
    rng = np.random.default_rng(seed)
    mean = np.array([9, -9, 9, -9, 9, -9])
    return [rng.normal(mean, size=(size, 6)).astype(np.float32) for size in sizes]


def test_false_verdicts_are_as_rare_as_promised():
    wrong = 0
    for seed in range(100):
        good, new = normals(seed, *((20, 15) if seed % 2 else (60, 30)))
        wrong += verdict(good, new, alpha=0.1, seed=seed).verdict != NO_CHANGE
    assert wrong <= 20  # 10 or fewer are expected; more than 20 have a probability of 0.0008


@pytest.mark.parametrize("seed", range(3))
def test_verdicts(seed):
    good, new = normals(seed, 100, 60)
    assert verdict(good, new).verdict == NO_CHANGE
    assert verdict(good, new + np.float32([2, 2, 2, 0, 0, 0])).verdict == SHIFTED
    odd = new.copy()
    odd[::6] += np.float32([12, 0, 0, 12, 0, 0])
    assert verdict(good, odd).verdict == MORE_ANOMALIES
    odd[::6] += np.float32([40, 0, 0, 40, 0, 0])
    assert verdict(good, odd + np.float32([2, 2, 2, 0, 0, 0]), budget=0.01).verdict == BOTH


@pytest.mark.parametrize("seed", range(3))
def test_a_change_along_the_way_has_a_beginning(seed):
    good, new = normals(seed, 300, 150)
    new[90:120] += np.float32([1.6, 0, 0, 1.6, 0, 0])  # then the other way, so that the
    new[120:] = 0.6 * new[120:] + 0.4 * good.mean(axis=0)  # set as a whole looks as usual
    found = verdict(good, new)
    assert found.verdict == ALONG_THE_WAY
    assert 80 <= found.begins <= 100


@pytest.mark.parametrize("method", ["split", "cross", "jackknife+"])
def test_other_calibrations(method):
    good, new = normals(4, 100, 60)
    scorer = Scorer(good, "raw", make_operator("knn"), method=Method.parse(method))
    found = judge(good, new, scorer, 0.1)
    assert found.verdict == NO_CHANGE
    p_values = scorer.score(new).p_values
    assert found.flagged == (p_values <= 0.1 + 1e-9).sum()
    shifted = new + np.float32([2, 2, 2, 0, 0, 0])
    assert judge(good, shifted, scorer, 0.1).verdict == SHIFTED


def test_products_are_compared_with_themselves():
    good, new = normals(5, 120, 60)
    good[:90] += np.float32([0, 0, 0, 0, 9, 0])  # many of the first, ragged product
    good[:90, 0] *= 1.5
    new[:10] += np.float32([0, 0, 0, 0, 9, 0])
    new[:10, 0] *= 1.5
    names = [f"{'first' if i < 90 else 'second'}/{i}.png" for i in range(120)]
    operator = make_operator("knn")
    scorer = Scorer(good, "raw", operator, products="folders", names=names)
    assert judge(good, new, scorer, 0.1).verdict == NO_CHANGE
    assert judge(good, new, Scorer(good, "raw", operator), 0.1).verdict == SHIFTED
    assert judge(good, new[:10], scorer, 0.1).verdict == NO_CHANGE  # one product only
    shifted = new + np.float32([2, 2, 2, 0, 0, 0])
    assert judge(good, shifted, scorer, 0.1).verdict == SHIFTED


def test_equal_scores_and_few_images_are_no_change():
    good = np.ones((10, 4), dtype=np.float32)
    assert verdict(good, good[:8]).verdict == NO_CHANGE
    good, new = normals(0, 30, 1)
    found = verdict(good, new + 50)
    assert (found.verdict, found.least) == (NO_CHANGE, None)  # one image proves nothing


# pictures ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drift")

    def save(folder, pictures):
        (root / folder).mkdir()
        for i, picture in enumerate(pictures):
            picture.save(root / folder / f"{i:02}.png")

    fresh = [Image.fromarray(draw(500 + i)) for i in range(NEW)]
    save("good", [Image.fromarray(draw(i)) for i in range(50)])
    save("fresh", fresh)
    save("dark", [picture.point(lambda value: value * 0.6) for picture in fresh])
    save("blurred", [picture.filter(ImageFilter.GaussianBlur(1)) for picture in fresh])
    odd = [Image.fromarray(draw(700 + i, odd=True)) for i in range(5)]
    save("mixed", [*fresh[5:12], *odd, *fresh[12:]])
    return root


@pytest.fixture(scope="module")
def fitted(folders, backbone) -> Detector:
    detector = Detector(backbone, false_alarms=0.02).fit(folders / "good")
    detector.save(folders / "m.nnad")
    return detector


def test_pictures_of_the_same_source_and_others(folders, fitted):
    found = {name: drift(fitted, folders / name) for name in ("fresh", "dark", "blurred", "mixed")}
    verdicts = {name: report.verdict for name, report in found.items()}
    assert verdicts == {
        "fresh": NO_CHANGE,
        "dark": SHIFTED,
        "blurred": SHIFTED,
        "mixed": MORE_ANOMALIES,
    }
    assert not any(one.differs for one in found["fresh"].pictures)
    dark = {one.measure: one for one in found["dark"].pictures}
    assert dark["brightness"].new / dark["brightness"].good == pytest.approx(0.6, abs=0.05)
    assert dark["brightness"].differs
    assert not dark["size"].differs
    sharp = {one.measure: one for one in found["blurred"].pictures}["sharpness"]
    assert sharp.differs
    assert sharp.new < sharp.good / 2
    assert drift(fitted, folders / "dark") == found["dark"]
    assert found["mixed"].promise.flagged >= 5


def test_the_promise_on_images_known_to_be_good(folders, fitted):
    kept = drift(fitted, folders / "fresh", good=True).promise
    assert kept.holds is True
    assert kept.low <= kept.flagged / NEW <= kept.high
    broken = drift(fitted, folders / "blurred", good=True).promise
    assert (broken.flagged, broken.high) == (NEW, 1)
    assert broken.low == pytest.approx(0.025 ** (1 / NEW))  # Clopper and Pearson, by hand
    assert broken.holds is False
    assert "broken" in broken.told
    assert drift(fitted, folders / "dark").promise.holds is None


def test_copies_are_left_out_and_files_that_cannot_be_read_are_told(folders, fitted, tmp_path):
    shutil.copy(folders / "good" / "03.png", tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        shutil.copy(folders / "fresh" / "03.png", tmp_path / name)
    (tmp_path / "d.png").write_bytes(b"no picture")
    report = drift(fitted, tmp_path)
    assert report.images == 1
    assert [Path(name).name for name in report.copies] == ["a.png", "c.png"]
    assert [Path(result.name).name for result in report.unread] == ["d.png"]
    with pytest.raises(InputError, match="copies of the good images"):
        drift(fitted, folders / "good")
    with pytest.raises(InputError, match="none of 1 image can be read"):
        drift(fitted, tmp_path / "d.png")


def test_wrong_arguments(folders, fitted):
    with pytest.raises(InputError, match="alpha=0"):
        drift(fitted, folders / "fresh", alpha=0)
    with pytest.raises(BudgetError):
        drift(fitted, folders / "fresh", false_alarms=0.001)


def test_without_the_good_pictures_there_are_no_hints(folders, backbone):
    arrays = [np.asarray(Image.open(p)) for p in sorted((folders / "good").iterdir())[:12]]
    detector = Detector(backbone).fit(arrays)
    report = drift(detector, folders / "dark")
    assert (report.verdict, report.pictures) == (SHIFTED, ())


def test_the_command(folders, fitted, tmp_path):
    model = folders / "m.nnad"
    done = nnad("drift", model, folders / "fresh")
    assert (done.returncode, done.stderr) == (0, "")
    first = done.stdout.splitlines()[0]
    assert first == f"no change seen: {NEW} images with 50 good images"

    done = nnad("drift", model, folders / "dark", "--good", "--json", tmp_path / "r.json")
    assert done.returncode == 1
    assert done.stdout.startswith("everything shifted: ")
    assert "brightness" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verdict"] == SHIFTED
    assert report["promise"]["holds"] is False
    assert [test["name"] for test in report["tests"]] == [
        "flagged",
        "tail",
        "bulk",
        "neighbours",
        "order",
    ]

    done = nnad("drift", model, folders / "mixed", "--json", "-")
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == MORE_ANOMALIES
    assert done.stderr.startswith("more anomalies: ")

    done = nnad("drift", model, folders / "fresh" / "00.png")
    assert done.returncode == 0
    assert "few images: more anomalies could not be seen" in done.stdout

    done = nnad("drift", model, folders / "good")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_measures_by_hand():
    flat = Image.new("RGB", (40, 10), (200, 100, 100))
    brightness, contrast, saturation, sharpness, size = measures(flat)
    assert brightness == pytest.approx(0.299 * 200 + 0.701 * 100, abs=1)
    assert (contrast, sharpness, size) == (0, 0, 20)
    assert saturation == 0.5
    checks = Image.fromarray(
        np.uint8(255) * (np.indices((64, 64)).sum(axis=0) % 2).astype(np.uint8)
    ).convert("RGB")
    brightness, contrast, saturation, sharpness, _ = measures(checks)
    assert (brightness, contrast, saturation) == (127.5, 127.5, 0)
    assert sharpness > measures(checks.filter(ImageFilter.GaussianBlur(1)))[3]
    assert measures(Image.new("RGB", (2000, 1000)))[4] == pytest.approx(2000000**0.5)
    same, *_ = compare([(1, 1, 1, 1, 1)] * 9, [(1, 1, 1, 1, 1)] * 9)
    assert (same.measure, same.good, same.new, same.differs) == ("brightness", 1, 1, False)
