import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnad.calibrate import Calibration
from nnad.conformal import (
    MOST_JACKKNIFE,
    Method,
    calibrate,
    fold_models,
    guarantee,
)
from nnad.crossfit import folds_of, ranks
from nnad.errors import BudgetError, InputError
from nnad.fitted import Fitted
from nnad.operators import make_operator
from nnad.products import parse_products, products_by_cluster, products_by_folder
from nnad.scorer import Scorer

NAMES = ("leave-one-out", "split", "cross", "jackknife+")


def fitting(operator="knn", transform="raw"):
    """features -> Fitted"""
    return lambda features: Fitted(features, transform, make_operator(operator))


def calibrated(name, features, fit=None, products=None, product_names=("",)):
    """A calibration, and what turns new features (Q, D) into p-values (Q,)."""
    fit, method = fit or fitting(), Method.parse(name)
    rows = method.bank_rows(features)
    main, models = fit(features[rows]), fold_models(method, features, fit)
    labels = None if products is None else products[rows]
    calibration = calibrate(method, features, main, models, labels, product_names)

    def p_values(new):
        scores = np.stack([model.score(new) for model in models or [main]], axis=1)
        return calibration.p_values(scores, None if labels is None else labels[main.nearest(new)])

    return calibration, p_values


def cloud(n, dim=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(0, 3)),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_folds_are_balanced_and_do_not_know_the_order(features, count, random):
    order = list(range(len(features)))
    random.shuffle(order)
    folds, shuffled = folds_of(features, count), folds_of(features[order], count)
    sizes = np.bincount(folds, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    assert sorted(ranks(features)) == list(range(len(features)))

    def contents(given, folds):  # copies may change places, what a fold holds may not
        return [sorted(map(tuple, given[folds == fold])) for fold in range(count)]

    assert contents(features, folds) == contents(features[order], shuffled)


def test_a_new_image_moves_others_by_one_place_at_most():
    features = cloud(50)
    moved = ranks(features)[:-1] - ranks(features[:-1])
    assert set(moved) == {0, 1}
    assert (folds_of(features, 5)[:-1] != folds_of(features[:-1], 5)).sum() <= 5


def test_copies_are_split_as_any_two_images():
    """Were copies kept together or apart, calibration scores would be too high or too low."""
    together = 0
    for seed in range(300):
        pair = np.repeat(cloud(1, seed=seed), 2, axis=0)
        folds = folds_of(np.concatenate([pair, cloud(18, seed=1000 + seed)]), 2)
        together += folds[0] == folds[1]
    assert 100 < together < 185  # 9 / 19 of them are expected: 142, sd 8.6


def test_methods_by_name():
    assert Method.parse("split") == Method("split", share=0.5)
    assert str(Method.parse("split:0.25")) == "split:0.25"
    assert str(Method.parse("cross:10")) == "cross:10"
    for share in (0.50000001, 1 / 3, 1e-9):
        assert Method.parse(str(Method("split", share))) == Method("split", share)
    assert Method("split", 0.50000001).calibrating(100) == 51
    for percent in range(1, 100):  # 0.07 * 100 is a little above 7
        assert Method("split", percent / 100).calibrating(100) == percent
    for name in NAMES:
        assert str(Method.parse(name)) == name
    for wrong in ("", "loo", "split:", "split:1", "split:nan", "cross:1", "cross:2.5", "full:3"):
        with pytest.raises(InputError, match="choose one of leave-one-out, split"):
            Method.parse(wrong)
    with pytest.raises(InputError, match="choose cross"):
        Method("jackknife+").check(MOST_JACKKNIFE + 1)
    with pytest.raises(InputError, match="leaves no bank"):
        Method("split", share=0.9).check(5)
    with pytest.raises(InputError, match="4 good images are too few"):
        Method("cross").check(4)


def test_split_by_hand():
    features = cloud(11)
    method = Method("split")
    bank = method.bank_rows(features)
    assert len(bank) == 5
    assert (np.diff(bank) > 0).all()
    others = np.setdiff1d(np.arange(11), bank)
    sq_dists = np.square(features[others][:, None].astype(float) - features[bank]).sum(2)
    expected = np.sort(sq_dists, axis=1)[:, :2].mean(axis=1)
    calibration, _ = calibrated("split", features)
    np.testing.assert_allclose(calibration.good_scores, expected, rtol=1e-9)
    assert len(Method("split", share=0.25).bank_rows(cloud(100))) == 75


@pytest.mark.parametrize("name", ["cross:3", "jackknife+"])
def test_cross_by_hand(name):
    """p = (1 + #{i : s_i >= s of the new image by the model without i's fold}) / (n + 1)."""
    features, new = cloud(10), cloud(25, seed=1) * 1.5
    folds = Method.parse(name).scored_by(features)
    assert folds.max() == (2 if name == "cross:3" else 9)

    def score(bank, query):
        return np.sort(np.square(bank.astype(float) - query).sum(1))[:2].mean()

    own = [score(features[folds != folds[i]], features[i]) for i in range(10)]
    expected = [
        (1 + sum(own[i] >= score(features[folds != folds[i]], query) for i in range(10))) / 11
        for query in new
    ]
    calibration, p_values = calibrated(name, features)
    np.testing.assert_allclose(calibration.good_scores, own, rtol=1e-9)
    np.testing.assert_allclose(p_values(new), expected)
    with pytest.raises(InputError, match="decide by p-values"):
        calibration.threshold(0.2)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_p_values_do_not_know_the_order_of_the_good_images(name, random):
    features, new = cloud(23), cloud(9, seed=1) * 2
    order = list(range(23))
    random.shuffle(order)
    products = (features[:, 0] > 0).astype(np.int64)
    expected = calibrated(name, features, products=products, product_names=("a", "b"))[1](new)
    shuffled = calibrated(
        name, features[order], products=products[order], product_names=("a", "b")
    )[1](new)
    np.testing.assert_array_equal(shuffled, expected)


@pytest.mark.parametrize("name", ["split", "cross", "jackknife+"])
def test_transform_and_operator_learn_from_the_bank_only(name):
    features, banks = np.abs(cloud(20)), []
    fit = fitting(transform="white")

    def spying(bank):
        banks.append({tuple(row) for row in bank})
        return fit(bank)

    calibrated(name, features, spying)
    for held_out in range(20):
        absent = [tuple(features[held_out]) not in bank for bank in banks]
        if name == "split":
            assert len(absent) == 1
        else:
            assert sum(absent) == 1  # of the models of the folds; the main one has all
            assert not absent[0]
    assert name != "split" or len(banks[0]) == 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operator", ["knn", "auto"])
def test_the_promise_holds_on_average(name, operator):
    """Independent trials with n = 24 and one new image each, at a budget of 20 %."""
    rng, budget = np.random.default_rng(3), 0.2
    trials, alarms = 30 if name == "jackknife+" else 80, []
    for _ in range(trials):
        features = rng.standard_t(3, size=(24 + 10, 2)).astype(np.float32)
        _, p_values = calibrated(name, features[:24], fitting(operator))
        alarms.append(np.mean(p_values(features[24:]) <= budget))
    error = np.std(alarms, ddof=1) / np.sqrt(trials)
    assert 0.5 * budget < np.mean(alarms) <= budget + 3 * error


def test_what_is_proven():
    cross, jackknife = Method("cross"), Method("jackknife+")
    assert Method("split").bound(0.05, 50) == 0.05
    assert Method().bound(0.05, 50) == 1
    assert jackknife.bound(0.05, 50) == pytest.approx(0.1)
    # Barber et al.: 2 b + (1 - 2 b) (m - 1) / (n + m), m = 10; Vovk: 2 b + 2 (1 - b) 4 / 55
    assert cross.bound(0.05, 50) == pytest.approx(0.1 + 0.9 * 9 / 60)
    assert cross.bound(0.05, 51) == pytest.approx(0.1 + 2 * 0.95 * 4 / 56)
    assert cross.bound(0.05, 5000) == pytest.approx(0.1 + 2 * 0.95 * 4 / 5005)
    assert cross.bound(0.9, 50) == 1

    def told(method, **known):
        return guarantee(method, 0.05, 50, **{"k_nn": False, "measured": False} | known)

    neither = "neither proven nor measured"
    assert told(Method(), k_nn=True, measured=True) == ("proven for k-NN distances", "")
    assert told(Method(), measured=True) == ("measured, not proven", "split proves it")
    assert told(Method()) == (neither, "split proves it")
    assert told(Method(), k_nn=True, measured=True, products=True)[0] == neither
    assert told(Method("split")) == ("proven", "")
    assert (
        told(Method("split"), products=True)[0] == "proven for the images assigned to each product"
    )
    assert told(Method("split"), int8=True)[0] == neither
    assert told(Method(), k_nn=True, measured=True, int8=True)[0] == neither
    adapted = told(Method("split"), k_nn=True, adapted=True)
    assert adapted[0] == neither
    assert "if these are others" in adapted[1]
    assert told(cross)[0] == "proven is at most 0.235"
    assert told(cross, measured=True)[1].startswith("the budget itself is measured, not proven")
    assert told(jackknife) == (
        "proven is at most 0.1",
        f"the budget itself is {neither}; split proves it",
    )


def two_products(n, seed=0):
    """(2n, 2): product a varies little around 0, product b much around 100."""
    a, b = cloud(n, 2, seed) * 0.1, cloud(n, 2, seed + 1) * 3 + 100
    return np.concatenate([a, b]).astype(np.float32), np.repeat([0, 1], n)


@pytest.mark.parametrize("name", NAMES)
def test_each_product_keeps_its_own_budget(name):
    features, products = two_products(40)
    _, together = calibrated(name, features)
    calibration, apart = calibrated(name, features, None, products, ("a", "b"))
    assert sum(calibration.sizes) == (40 if name == "split" else 80)
    odd = np.array([[2, 0]], dtype=np.float32)  # far out in a, near by the standard of b
    assert apart(odd)[0] == 1 / (calibration.sizes[0] + 1)
    assert together(odd)[0] > 0.05
    new, which = two_products(300, seed=10)
    for product in (0, 1):
        assert np.mean(apart(new[which == product]) <= 0.1) < 0.2
    assert np.mean(together(new[which == 1]) <= 0.1) > 0.1


def test_overlapping_products_borrow_from_each_other():
    """The budget holds for the images assigned to a product, not for those that truly show it."""
    rng, budget, method = np.random.default_rng(1), 0.1, Method("split")
    assigned, true = ([], []), ([], [])

    def draw(n):  # product 1 varies three times as much as product 0, which lies within it
        which = rng.integers(2, size=n)
        points = rng.normal(size=(n, 8)) * np.where(which, 3, 1)[:, None]
        points[:, 0] += 3 * which
        return points.astype(np.float32), which

    for _ in range(100):
        features, which = draw(160)
        names = [f"{'ab'[product]}/{i}.png" for i, product in enumerate(which)]
        scorer = Scorer(
            features, "raw", make_operator("knn"), method=method, products="folders", names=names
        )
        new, which = draw(300)
        scored = scorer.score(new)
        alarms = scored.p_values <= budget
        for product in (0, 1):
            assigned[product].append(alarms[scored.categories == product].mean())
            true[product].append(alarms[which == product].mean())
    for rates in assigned:
        error = np.std(rates, ddof=1) / 10
        assert 0.7 * budget < np.mean(rates) <= budget + 3 * error
    assert np.mean(true[0]) < 0.2 * budget
    assert np.mean(true[1]) > 1.5 * budget


def test_products_by_hand():
    calibration = Calibration(
        np.array([1.0, 2.0, 10.0, 20.0, 30.0]), None, np.array([0, 0, 1, 1, 1]), ("a", "b")
    )
    assert calibration.sizes == (2, 3)
    p = calibration.p_values(np.array([1.5, 1.5, 25.0, 25.0]), np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(p, [2 / 3, 1, 1 / 3, 2 / 4])
    assert calibration.smallest_budget == calibration.default_budget() == 1 / 3
    assert calibration.smallest_p_value == 1 / 4
    assert (calibration.threshold(0.5, 0), calibration.threshold(0.5, 1)) == (2, 20)
    with pytest.raises(BudgetError, match=r"2 good images of product 'a' .* needs at least 3"):
        calibration.check(0.25)


def test_the_category_is_the_product_of_the_nearest_other_image():
    """Image 3 is labelled b and lies among a's: it calibrates a, as a new image there would."""
    features = np.array([[0.0], [1.0], [2.1], [1.4], [50.0], [51.0], [53.0]], dtype=np.float32)
    products = np.array([0, 0, 0, 1, 1, 1, 1])
    calibration, _ = calibrated("leave-one-out", features, None, products, ("a", "b"))
    # nearest others: 1, 3, 3, 1, 5, 4, 5
    np.testing.assert_array_equal(calibration.products, [0, 1, 1, 0, 1, 1, 1])
    alone = np.array([0, 0, 0, 2, 1, 1, 1])
    with pytest.raises(InputError, match="no good image calibrates 'c'"):
        calibrated(
            "leave-one-out",
            features[[0, 1, 2, 3, 4, 5]] * [[1], [1], [1], [30], [1], [1]],
            None,
            alone[:6],
            ("a", "b", "c"),
        )


def test_products_by_folder():
    names = ["x/good/nut/1.png", "x/good/bolt/1.png", "other/nut/2.png", "parts.zip/a/bolt/3.png"]
    products, found = products_by_folder(names)
    assert found == ("bolt", "nut")
    np.testing.assert_array_equal(products, [1, 0, 1, 0])
    with pytest.raises(InputError, match="all good images are in a folder 'nut'"):
        products_by_folder([names[0], names[2]])
    with pytest.raises(InputError, match=r"image\[1\] is in no folder"):
        products_by_folder([names[0], "image[1]"])


def test_products_by_cluster():
    features, products = two_products(15)
    features, products = features[:20], products[:20]  # 15 of a, 5 of b
    clusters, names = products_by_cluster(features, 2)
    assert names == ("cluster 1", "cluster 2")
    np.testing.assert_array_equal(clusters, products)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(products_by_cluster(features[order], 2)[0], products[order])
    three = np.repeat([[0.0], [10.0], [20.0]], [3, 6, 9], axis=0).astype(np.float32)
    three += cloud(18, 1) / 10
    np.testing.assert_array_equal(products_by_cluster(three, 3)[0], np.repeat([2, 1, 0], [3, 6, 9]))
    noise = cloud(60)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(60)
        expected = products_by_cluster(noise, 7)[0][order]
        np.testing.assert_array_equal(products_by_cluster(noise[order], 7)[0], expected)
    with pytest.raises(InputError, match="products=3: only 1 different"):
        products_by_cluster(np.zeros((5, 2), dtype=np.float32), 3)


def test_products_argument():
    assert parse_products(None) is None
    assert parse_products("folders") == "folders"
    assert parse_products("3") == parse_products(3) == 3
    for wrong in ("1", 0, True, "", "folder", 2.5, "-3"):
        with pytest.raises(InputError, match="folders, or a number of clusters"):
            parse_products(wrong)
