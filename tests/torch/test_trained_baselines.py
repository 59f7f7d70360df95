"""Deep SVDD, GEOM, GOAD and MHRot, and the faults that published versions of them had."""

from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from nnad.baselines import load_baseline, make_baseline
from nnad.baselines.deep_svdd import DeepSVDD, away_from_zero
from nnad.baselines.dirichlet import LEAST, fit_dirichlet, log_clipped, log_likelihood
from nnad.baselines.geom import GEOM
from nnad.baselines.geometric import FAMILY_36, FAMILY_72, Transform, apply, apply_each
from nnad.baselines.goad import GOAD, centre_triplet, sq_distances
from nnad.baselines.mhrot import MHRot
from nnad.baselines.networks import ResNet18, WideResNet
from nnad.errors import BackboneError, InputError, ModelError, TrainingError
from nnad.training import train

torch.set_num_threads(1)

# small enough for a test: 16 pixels, a thin network, few images
TINY = {
    "deep-svdd": {"pretraining_epochs": 3, "epochs": 3, "batch_size": 3},
    "geom": {"epochs": 1, "batch_size": 96},
    "goad": {"epochs": 2, "batch_size": 2},
    "mhrot": {"epochs": 2, "batch_size": 54, "learning_rate": 0.02},
}
NAMES = tuple(TINY)


def pictures(count, seed=0, *, odd=False, channels=3, side=32):
    """(N, H, W, C): a bright disc above the middle, or a bar across."""
    rng = np.random.default_rng([seed, odd])
    y, x = np.mgrid[:side, :side]
    made = rng.normal(90, 8, (count, side, side, channels))
    for picture in made:
        across, down = rng.uniform(-2, 2, 2)
        disc = (x - side / 2 - across) ** 2 + (y - side / 3 - down) ** 2 < (side / 4) ** 2
        picture[np.abs(x - y * rng.uniform(0.5, 1.5)) < 3 if odd else disc] += 80
    return np.clip(made, 0, 255).astype(np.uint8)


GOOD = pictures(5)
TEST = np.concatenate([pictures(2, 1), pictures(2, 2, odd=True)])


def tiny(name, seed=0, **changes):
    return make_baseline(name, "small", seed=seed, **{**TINY[name], **changes})


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnad.baselines.dirichlet._STEPS", 30)
        yield


@pytest.fixture(scope="module", params=NAMES)
def fitted(request):
    return tiny(request.param).fit(GOOD)


def weights_at_first(baseline):
    """The network with its random weights, before any training."""
    baseline.shape = GOOD.shape[1:]
    return baseline._seeded(baseline._build)


def equal_weights(one, other):
    ours, theirs = one.network.state_dict(), other.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- training ---


def test_losses_fall(fitted):
    for stage, losses in fitted.losses.items():
        third = max(len(losses) // 3, 1)
        assert losses[-third:].mean() < losses[:third].mean(), stage


def test_every_trained_weight_moves(fitted):
    before = dict(weights_at_first(tiny(fitted.name)).named_parameters())
    moved = {n: not torch.equal(w, before[n]) for n, w in fitted.network.named_parameters()}
    assert len(moved) > 2
    assert all(moved.values()), moved


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_learns_while_training_and_rests_while_scoring(name, monkeypatch):
    modes = []

    def watched(self, x, forward=nn.modules.batchnorm._BatchNorm.forward):
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, x)

    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", watched)
    baseline = tiny(name, epochs=2).fit(GOOD)
    assert {training for training, with_gradient in modes if with_gradient} == {True}
    assert {training for training, with_gradient in modes if not with_gradient} <= {False}
    modes.clear()
    norms = [
        m for m in baseline.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    kept = [m.running_mean.clone() for m in norms]
    baseline.network.train()  # whatever happened to it
    baseline.score(TEST)
    assert {training for training, _ in modes} == {False}
    assert all(torch.equal(m.running_mean, was) for m, was in zip(norms, kept, strict=True))
    assert all(m.running_mean.abs().max() > 0 for m in norms)


def test_legacy_goad_repeats_the_public_codes_mistakes(monkeypatch):
    modes = []

    def watched(self, x, forward=nn.BatchNorm2d.forward):
        if torch.is_grad_enabled():
            modes.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", watched)
    baseline = tiny("goad", legacy=True).fit(GOOD)
    half = len(modes) // 2
    assert modes == [True] * half + [False] * half  # two epochs
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in baseline.network.modules())
    assert norms == 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in weights_at_first(tiny("goad")).modules()) == 7
    assert (
        baseline.full_title
        == "GOAD (small, legacy: with two of the public code's mistakes, changed settings)"
    )


# --- scores ---


def test_scores_are_finite_and_differ(fitted):
    scores = fitted.score(TEST)
    assert scores.dtype == np.float64
    assert scores.shape == (len(TEST),)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == len(TEST)


def test_scores_do_not_depend_on_company(fitted):
    scores = fitted.score(TEST)
    alone = np.concatenate([fitted.score(TEST[i : i + 1]) for i in range(len(TEST))])
    np.testing.assert_allclose(alone, scores, rtol=1e-4)
    assert fitted.score(TEST[:0]).shape == (0,)


def test_equal_seeds_give_equal_scores(fitted):
    torch.manual_seed(99)  # of no account
    again = tiny(fitted.name).fit(GOOD)
    np.testing.assert_array_equal(again.score(TEST), fitted.score(TEST))
    other = tiny(fitted.name, seed=1).fit(GOOD)
    assert not np.array_equal(other.score(TEST), fitted.score(TEST))


def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved")
    assert repr(loaded) == repr(fitted)
    np.testing.assert_array_equal(loaded.score(TEST), fitted.score(TEST))
    kind = {"geom": GOAD}.get(fitted.name, GEOM)
    with pytest.raises(ModelError, match=f"holds {fitted.name}, not {kind.name}"):
        kind.load(tmp_path / "saved")


@pytest.mark.parametrize("name", ["deep-svdd", "geom"])
def test_a_trained_disc_is_told_from_a_bar(name):
    settings = {"geom": {}, "deep-svdd": {"pretraining_epochs": 20, "epochs": 20}}[name]
    baseline = tiny(name, **settings).fit(pictures(16, channels=1))
    test = np.concatenate([pictures(12, 1, channels=1), pictures(12, 2, odd=True, channels=1)])
    assert roc_auc_score(np.repeat([0, 1], 12), baseline.score(test)) > 0.8


# --- interruption ---


@pytest.mark.parametrize(
    ("name", "stop"), [("deep-svdd", 4), ("deep-svdd", 8), ("geom", 4), ("goad", 3), ("mhrot", 5)]
)
def test_an_interrupted_fit_ends_in_the_same_weights(
    name, stop, fitted_once, tmp_path, monkeypatch
):
    whole = fitted_once(name)
    kind, calls = type(whole), [0]

    def stopping(self, images, inputs=kind._inputs):
        calls[0] += torch.is_grad_enabled()
        if calls[0] == stop:
            raise KeyboardInterrupt
        return inputs(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_inputs", stopping)
        patch.setattr("nnad.baselines.networks.train", partial(train, save_seconds=0))
        with pytest.raises(KeyboardInterrupt):
            tiny(name).fit(GOOD, checkpoints=tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    again = tiny(name).fit(GOOD, checkpoints=tmp_path)
    assert equal_weights(again, whole)
    for stage, losses in whole.losses.items():
        np.testing.assert_array_equal(again.losses[stage], losses)
    with pytest.raises(TrainingError, match=r"another run: its run\.data is"):
        tiny(name).fit(GOOD[::-1], checkpoints=tmp_path)
    with pytest.raises(
        TrainingError, match=r"another run: its run\.settings\.learning_rate is 0\.\d+, here 0\.5"
    ):
        tiny(name, learning_rate=0.5).fit(GOOD, checkpoints=tmp_path)


@pytest.fixture(scope="module")
def fitted_once():
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny(name).fit(GOOD)
        return made[name]

    return get


def test_a_fit_that_failed_is_no_fit():
    baseline = tiny("goad")
    with pytest.raises(InputError, match="make them square"):
        baseline.fit(GOOD[:, :30])
    with pytest.raises(InputError, match="not fitted"):
        baseline.score(GOOD)


# --- transforms ---


def test_a_gpu_that_is_not_there_is_an_error(fitted_once, tmp_path):
    with pytest.raises(InputError, match="device='gpu'; choose cpu, cuda"):
        make_baseline("geom", device="gpu")
    for name in NAMES:
        fitted = make_baseline(name, "small", device="cuda:99", **TINY[name])
        with pytest.raises(BackboneError, match=r"device='cuda:99': torch .* sees \d+ GPUs"):
            fitted.fit(GOOD, progress=False)
    fitted_once("geom").save(tmp_path / "geom.safetensors")
    with pytest.raises(BackboneError, match="device='cuda:99'"):
        load_baseline(tmp_path / "geom.safetensors", device="cuda:99")


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


# --- Dirichlet ---


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


# --- what each system computes ---


def test_goads_distances_and_triplet_by_hand():
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 2.0], [2.0, 2.0]]])  # (2, 2, 2)
    centres = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert sq_distances(features, centres).tolist() == [[[1, 5], [5, 1]], [[1, 5], [5, 1]]]
    assert centre_triplet(features, 0.1).item() == 0.0  # 0.1 + 1 - 5 is below 0
    assert centre_triplet(features, 4.5).item() == pytest.approx(0.5)


def test_goads_score_is_that_of_its_centres(fitted_once):
    baseline = fitted_once("goad")
    with torch.no_grad():
        features = baseline._features(baseline._inputs(GOOD)).double()
        torch.testing.assert_close(
            baseline.network.centres.double(), features.mean(dim=0), rtol=1e-4, atol=1e-5
        )
        centres = baseline.network.centres.double()
        expected = [
            -sum((-((z - centres) ** 2).sum(dim=1)).log_softmax(0)[t] for t, z in enumerate(image))
            for image in features
        ]
    np.testing.assert_allclose(baseline.score(GOOD), expected, rtol=1e-4)


def test_mhrots_score_is_minus_the_sum_of_true_probabilities(fitted_once):
    baseline = fitted_once("mhrot")
    inputs = baseline._inputs(TEST)
    expected = np.zeros(len(TEST))
    with torch.no_grad():
        for across, down, turn in ((a, d, r) for a in range(3) for d in range(3) for r in range(4)):
            made = apply(
                inputs,
                Transform(False, (0, -1, 1)[across], (0, -1, 1)[down], turn),
                4,
                repeat_edge=False,
            )
            outputs = baseline.network(made)
            for head, label in (
                (outputs[:, :3], across),
                (outputs[:, 3:6], down),
                (outputs[:, 6:], turn),
            ):
                expected -= head.softmax(dim=1)[:, label].numpy()
    scores = baseline.score(TEST)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert (scores >= -108).all() and (scores <= 0).all()


def test_mhrots_labels_and_presets():
    assert MHRot().settings["network"] == "resnet18"
    assert MHRot("32px reconstruction").full_title == "MHRot (32px reconstruction)"
    assert MHRot("small").full_title == "MHRot (32px reconstruction, small)"


def test_deep_svdds_centre_keeps_away_from_zero(fitted_once):
    moved = away_from_zero(torch.tensor([0.0, 0.05, -0.05, 0.1, -0.3, 2.0]))
    torch.testing.assert_close(moved, torch.tensor([0.1, 0.1, -0.1, 0.1, -0.3, 2.0]))
    assert fitted_once("deep-svdd").network.centre.abs().min() >= 0.1


def test_deep_svdd_cannot_send_all_to_one_point():
    network = weights_at_first(DeepSVDD("small"))
    assert all(name.endswith("weight") for name, _ in network.named_parameters())
    assert not any(m.affine for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert [m.bias for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == [None] * 4


@pytest.mark.parametrize(
    ("shape", "widths", "dim"), [((32, 32, 3), (32, 64, 128), 128), ((28, 28, 1), (8, 4), 32)]
)
def test_deep_svdds_networks(shape, widths, dim):
    baseline = DeepSVDD()
    baseline.shape = shape
    network = baseline._build()
    assert tuple(conv.out_channels for conv in network.convs) == widths
    images = torch.rand(2, shape[2], *shape[:2])
    assert network(images).shape == (2, dim)


def test_deep_svdds_contrast(fitted_once):
    baseline = fitted_once("deep-svdd")
    inputs = baseline._inputs(GOOD)
    assert inputs.min().item() == pytest.approx(0, abs=1e-6)
    assert inputs.max().item() == pytest.approx(1, abs=1e-6)
    brighter = (GOOD // 2 + 20).astype(np.uint8)
    contrast = baseline._contrast(GOOD // 2 * 2)
    torch.testing.assert_close(baseline._contrast(brighter), contrast, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(contrast.abs().mean(dim=(1, 2, 3)), torch.ones(len(GOOD)))
    assert torch.isfinite(baseline._contrast(np.full_like(GOOD, 7))).all()


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_of_28_pixels(name):
    baseline = tiny(
        name, **({"pretraining_epochs": 1, "epochs": 1} if name == "deep-svdd" else {"epochs": 1})
    )
    grey = pictures(4, channels=1, side=28)
    assert np.isfinite(baseline.fit(grey).score(grey)).all()


@pytest.mark.parametrize("name", NAMES)
def test_paper_presets(name):
    baseline = make_baseline(name)
    assert "small" not in repr(baseline)
    assert "small)" in make_baseline(name, "small").full_title
    expected = {
        "deep-svdd": {
            "pretraining_epochs": 350,
            "epochs": 150,
            "batch_size": 200,
            "weight_decay": 5e-7,
        },
        "geom": {"depth": 10, "widen": 4, "shift": 8, "epochs": 3, "batch_size": 128},
        "goad": {
            "epochs": 16,
            "batch_size": 4,
            "triplet": 0.1,
            "margin": 0.1,
            "penalty": 10.0,
            "legacy": False,
        },
        "mhrot": {"network": "resnet18", "epochs": 5},
    }[name]
    assert baseline.settings.items() >= expected.items()


def test_networks():
    torch.manual_seed(0)
    thin = WideResNet(3, 10, 4)
    assert thin(torch.rand(2, 3, 32, 32)).shape == (2, 256)
    assert sum(p.numel() for p in WideResNet(3, 16, 4).parameters()) > sum(
        p.numel() for p in thin.parameters()
    )
    resnet = ResNet18(3)
    assert resnet(torch.rand(2, 3, 64, 64)).shape == (2, 512)
    assert (
        sum(p.numel() for p in resnet.parameters()) == 11_176_512
    )  # He et al.'s without classifier
    with pytest.raises(InputError, match="depth=12"):
        WideResNet(3, 12, 1)


def test_images_that_are_too_small():
    with pytest.raises(InputError, match="needs sides of 16 or more"):
        tiny("deep-svdd").fit(GOOD[:, :12, :12])
