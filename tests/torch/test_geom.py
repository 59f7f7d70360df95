"""GEOM: its 72 transforms, its Dirichlet distributions and its first step."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_baselines import GOOD, TEST, check_step, steps, tiny, weights_at_first

from nnad.baselines.dirichlet import LEAST, fit_dirichlet, log_clipped, log_likelihood
from nnad.baselines.geometric import FAMILY_36, FAMILY_72, Transform, apply, apply_each

pytestmark = pytest.mark.usefixtures("few_steps")


def test_the_families():
    assert len(set(FAMILY_72)) == 72
    assert len(set(FAMILY_36)) == 36
    assert FAMILY_72[0] == FAMILY_36[0] == Transform(False, 0, 0, 0)


def ramp(side=7):
    return torch.arange(2 * 3 * side * side).reshape(2, 3, side, side)


@pytest.mark.parametrize("transform", FAMILY_72)
def test_each_transform_is_numpys_and_scipys(transform):
    images = ramp().numpy()
    flipped = images[..., ::-1] if transform.flip else images
    for repeat_edge, mode in ((True, "reflect"), (False, "mirror")):  # scipy's names
        moved = scipy.ndimage.shift(
            flipped, (0, 0, 2 * transform.down, 2 * transform.across), order=0, mode=mode
        )
        expected = np.rot90(moved, transform.turn, (2, 3))
        found = apply(torch.from_numpy(images), transform, 2, repeat_edge=repeat_edge)
        np.testing.assert_array_equal(found, expected)


def test_shifts_by_hand():
    row = torch.arange(5).expand(1, 1, 5, 5)
    right, left = Transform(False, 1, 0, 0), Transform(False, -1, 0, 0)
    assert apply(row, right, 2)[0, 0, 0].tolist() == [1, 0, 0, 1, 2]
    assert apply(row, right, 2, repeat_edge=False)[0, 0, 0].tolist() == [2, 1, 0, 1, 2]
    assert apply(row, left, 2)[0, 0, 0].tolist() == [2, 3, 4, 4, 3]
    assert apply(row, left, 2, repeat_edge=False)[0, 0, 0].tolist() == [2, 3, 4, 3, 2]
    assert apply(row, Transform(False, 0, 1, 0), 2).equal(row)
    assert apply(row, Transform(True, 0, 0, 0), 2)[0, 0, 0].tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("transform", [t for t in FAMILY_72 if t.across == t.down == 0])
def test_mirrors_and_turns_are_permutations(transform):
    made = apply(ramp(), transform, 3)
    assert made.flatten(2).sort().values.equal(ramp().flatten(2))
    assert made.equal(ramp()) == (transform == FAMILY_72[0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 71), min_size=1, max_size=12), st.integers(0, 6))
def test_each_image_by_its_own_transform(numbers, step):
    images = torch.rand(len(numbers), 1, 7, 7)
    made = apply_each(images, torch.tensor(numbers), FAMILY_72, step)
    for i, number in enumerate(numbers):
        assert made[i].equal(apply(images[i : i + 1], FAMILY_72[number], step)[0])


def test_dirichlet_is_the_greatest_likelihood(monkeypatch):
    monkeypatch.setattr("nnad.baselines.dirichlet._STEPS", 1000)
    true = np.array([[0.5, 2.0, 7.0], [3.0, 3.0, 0.9]])
    rng = np.random.default_rng(0)
    samples = np.stack([rng.dirichlet(alpha, 400) for alpha in true])
    found = fit_dirichlet(samples.mean(axis=1), log_clipped(samples).mean(axis=1))
    for alpha, part in zip(found, samples, strict=True):
        part = np.clip(part, 1e-300, 1)

        def minus(logs, part=part):
            return -scipy.stats.dirichlet.logpdf(part.T / part.sum(axis=1), np.exp(logs)).sum()

        best = scipy.optimize.minimize(
            minus,
            np.zeros(3),
            method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 4000},
        )
        np.testing.assert_allclose(alpha, np.exp(best.x), rtol=1e-4)


def test_dirichlet_likelihood_by_hand():
    alpha, p = np.array([2.0, 3.0]), np.array([0.25, 0.75])
    expected = np.log(0.25) + 2 * np.log(0.75)
    assert log_likelihood(alpha, log_clipped(p)) == pytest.approx(expected)
    constant = scipy.stats.dirichlet.logpdf(p, alpha) - expected
    q = np.array([0.6, 0.4])
    assert log_likelihood(alpha, log_clipped(q)) == pytest.approx(
        scipy.stats.dirichlet.logpdf(q, alpha) - constant
    )


@pytest.mark.parametrize("p", [[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
def test_equal_outputs_and_zeros_give_finite_parameters(p):
    p = np.array(p)
    logs = log_clipped(p)
    assert logs.min() >= np.log(LEAST)
    alpha = fit_dirichlet(p, logs)
    assert np.isfinite(alpha).all()
    assert (alpha > 0).all()
    assert np.isfinite(log_likelihood(alpha, log_clipped(p[::-1])))


def test_geom_with_a_network_that_is_sure_of_itself():
    baseline = tiny("geom").fit(GOOD)
    with torch.no_grad():
        baseline.network[1].weight.mul_(1e6)  # softmax outputs of exactly 0 and 1
    assert np.isfinite(baseline._fitted_alpha(GOOD)).all()
    assert np.isfinite(baseline.score(TEST)).all()


def test_the_first_step_of_geom_by_hand():
    few = GOOD[:2]
    baseline = tiny("geom", batch_size=200)
    (told,) = steps(baseline, few)
    assert told[0] == "Adam"
    assert told[1].items() >= {"lr": 1e-3, "weight_decay": 5e-4, "betas": (0.9, 0.999)}.items()
    network = weights_at_first(tiny("geom")).train()
    inputs = baseline._inputs(few)
    outputs = network(torch.cat([apply(inputs, t, 4) for t in FAMILY_72]))  # (144, 72)
    own = outputs.log_softmax(dim=1)[range(144), np.arange(144) // 2]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4)
    check_step(baseline, network, -own.mean(), optimizer)
