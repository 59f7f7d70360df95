"""What all baselines that are trained have in common, and the contract of all five."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_baselines import GOOD, TEST, TINY, fitted_once, pictures, tiny, weights_at_first
from torch import nn

from nnad.baselines import NAMES, Baseline, load_baseline, make_baseline
from nnad.baselines.geom import GEOM
from nnad.baselines.goad import GOAD
from nnad.baselines.networks import ResNet18, WideResNet
from nnad.errors import BackboneError, InputError, ModelError, TrainingError
from nnad.training import train

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module", params=TINY)
def fitted(request):
    return fitted_once(request.param)


def equal_weights(one, other):
    ours, theirs = one.network.state_dict(), other.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_losses_fall(fitted):
    for stage, losses in fitted.losses.items():
        third = max(len(losses) // 3, 1)
        assert losses[-third:].mean() < losses[:third].mean(), stage


def test_every_trained_weight_moves(fitted):
    before = dict(weights_at_first(tiny(fitted.name)).named_parameters())
    moved = {n: not torch.equal(w, before[n]) for n, w in fitted.network.named_parameters()}
    assert len(moved) > 2
    assert all(moved.values()), moved


@pytest.mark.parametrize("name", TINY)
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


@pytest.mark.parametrize(
    ("name", "stop"), [("deep-svdd", 4), ("deep-svdd", 8), ("geom", 4), ("goad", 3), ("mhrot", 5)]
)
def test_an_interrupted_fit_ends_in_the_same_weights(name, stop, tmp_path, monkeypatch):
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


def test_a_fit_that_failed_is_no_fit():
    baseline = tiny("goad")
    with pytest.raises(InputError, match="make them square"):
        baseline.fit(GOOD[:, :30])
    with pytest.raises(InputError, match="not fitted"):
        baseline.score(GOOD)


def test_a_gpu_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="device='gpu'; choose cpu, cuda"):
        make_baseline("geom", device="gpu")
    for name in TINY:
        fitted = make_baseline(name, "small", device="cuda:99", **TINY[name])
        with pytest.raises(BackboneError, match=r"device='cuda:99': torch .* sees \d+ GPUs"):
            fitted.fit(GOOD, progress=False)
    fitted_once("geom").save(tmp_path / "geom.safetensors")
    with pytest.raises(BackboneError, match="device='cuda:99'"):
        load_baseline(tmp_path / "geom.safetensors", device="cuda:99")


@pytest.mark.parametrize("name", TINY)
def test_grey_images_of_28_pixels(name):
    baseline = tiny(
        name, **({"pretraining_epochs": 1, "epochs": 1} if name == "deep-svdd" else {"epochs": 1})
    )
    grey = pictures(4, channels=1, side=28)
    assert np.isfinite(baseline.fit(grey).score(grey)).all()


@pytest.mark.parametrize(
    ("name", "rate"), [("deep-svdd", 1e-4), ("geom", 1e-3), ("goad", 1e-3), ("mhrot", 0.1)]
)
def test_paper_presets(name, rate):
    baseline = make_baseline(name)
    assert "small" not in repr(baseline)
    assert "small)" in make_baseline(name, "small").full_title
    published = {
        "deep-svdd": {
            "pretraining_epochs": 350,
            "pretraining_drop": 250,
            "epochs": 150,
            "drop": 50,
            "batch_size": 200,
            "weight_decay": 5e-7,
        },
        "geom": {
            "depth": 10,
            "widen": 4,
            "shift": 8,
            "epochs": 3,
            "batch_size": 128,
            "weight_decay": 5e-4,
        },
        "goad": {
            "depth": 10,
            "widen": 4,
            "shift": 8,
            "epochs": 16,
            "batch_size": 4,
            "triplet": 0.1,
            "margin": 0.1,
            "penalty": 10.0,
            "legacy": False,
        },
        "mhrot": {
            "network": "resnet18",
            "depth": None,
            "widen": None,
            "epochs": 5,
            "batch_size": 256,
            "weight_decay": 5e-4,
            "flip": True,
        },
    }
    assert baseline.settings == published[name] | {"shrink": 1, "learning_rate": rate}


@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_keeps_to_the_contract(name, tmp_path):
    changes = {"epochs": 1} | ({"pretraining_epochs": 1} if name == "deep-svdd" else {})
    baseline = tiny(name, seed=2, **(changes if name in TINY else {}))
    assert isinstance(baseline, Baseline)
    for early in (lambda: baseline.score(TEST), lambda: baseline.save(tmp_path / "saved")):
        with pytest.raises(InputError, match="not fitted"):
            early()
    for wrong in (GOOD[:1], GOOD.astype(float), GOOD[0], list(GOOD)):
        with pytest.raises(InputError, match=r"^images: "):
            baseline.fit(wrong)
    assert baseline.fit(GOOD, checkpoints=str(tmp_path / "kept"), progress=False) is baseline
    scores = baseline.score(TEST)
    assert scores.dtype == np.float64 and scores.shape == (len(TEST),)
    assert np.isfinite(scores).all() and np.ptp(scores) > 0
    with pytest.raises(InputError, match="was fitted on"):
        baseline.score(TEST[..., :1])
    baseline.save(str(tmp_path / "saved"))
    for loaded in (load_baseline(tmp_path / "saved"), type(baseline).load(str(tmp_path / "saved"))):
        assert repr(loaded) == repr(baseline) and type(loaded) is type(baseline)
        np.testing.assert_array_equal(loaded.score(TEST), scores)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("geom", {"shrink": 0}, "shrink=0; expected a whole number, at least 1"),
        ("geom", {"epochs": "2"}, "epochs='2'"),
        ("geom", {"depth": None}, "depth=None"),
        ("goad", {"legacy": 1.5}, "legacy=1.5; choose one of True, False"),
        ("goad", {"margin": float("nan")}, "margin=nan"),
        ("mhrot", {"learning_rate": -1.0}, "learning_rate=-1.0; expected a number of at least 0"),
        ("mhrot", {"network": "wrn", "depth": "16"}, "depth='16'"),
        ("ocsvm", {"gamma": "auto"}, "gamma='auto'; expected a number"),
        ("ocsvm", {"most": 0}, "most=0"),
    ],
)
def test_wrong_settings_of_each(name, change, told):
    with pytest.raises(InputError, match=told):
        make_baseline(name, **change)


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
