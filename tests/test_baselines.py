"""The contract of all baselines, and the one-class SVM: what needs no torch."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import draw
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM

from nnad.baselines import NAMES, load_baseline, make_baseline, read_images
from nnad.baselines.ocsvm import GAMMAS, NUS, OCSVM
from nnad.errors import BackboneError, InputError, ModelError


def pictures(count, *, odd=False, first=0):
    return np.stack([draw(first + i, odd=odd, size=(12, 12)) for i in range(count)])


@pytest.fixture(scope="module")
def good():
    return pictures(40)


@pytest.fixture(scope="module")
def test():
    return np.concatenate([pictures(15, first=100), pictures(15, odd=True, first=200)])


LABELS = np.repeat([0, 1], 15)


def vectors(images):
    return images.reshape(len(images), -1) / 127.5 - 1


def test_ocsvm_scores_are_minus_scikit_learns_decision(good, test):
    baseline = OCSVM().fit(good)
    x = vectors(good)
    assert baseline.nu == 0.1
    assert baseline.gamma == pytest.approx(1 / (x.shape[1] * x.var()))
    svm = OneClassSVM(nu=0.1, gamma=baseline.gamma).fit(x)
    scores = baseline.score(test)
    np.testing.assert_allclose(scores, -svm.decision_function(vectors(test)), atol=1e-12)
    assert roc_auc_score(LABELS, scores) > 0.9


def test_ocsvm_on_features(good, test, tmp_path):
    baseline = OCSVM("small", features=True).fit(good[:8])
    scores = baseline.score(test[[0, 1, -2, -1]])
    assert max(scores[:2]) < min(scores[2:])
    baseline.save(tmp_path / "svm")
    np.testing.assert_array_equal(
        load_baseline(tmp_path / "svm").score(test[[0, 1, -2, -1]]), scores
    )
    assert baseline.full_title == "OC-SVM (small, on features)"


def test_ocsvm_on_features_of_another_backbone_is_not_loaded(good, tmp_path):
    path = tmp_path / "svm"
    OCSVM(features=True).fit(good[:3]).save(path)
    with safe_open(path, framework="np") as file:
        told = file.metadata()
    arrays = load_file(path)
    arrays["fingerprint"][0] += 1
    save_file(arrays, path, told)
    with pytest.raises(BackboneError, match="is not the one the model was made with"):
        load_baseline(path)


def test_hindsight_is_the_best_of_the_grid_and_says_so(good, test):
    plain = OCSVM().fit(good)
    told = OCSVM(hindsight=True)
    assert "hindsight" not in plain.full_title and "hindsight" not in repr(plain).partition(":")[0]
    assert told.full_title == "OC-SVM (hindsight: chosen by the test labels)"
    assert told.full_title in repr(told)
    told.fit(good, test_images=test, test_labels=LABELS)
    best = max(
        roc_auc_score(
            LABELS,
            -OneClassSVM(nu=nu, gamma=gamma).fit(vectors(good)).decision_function(vectors(test)),
        )
        for nu in NUS[::4]
        for gamma in GAMMAS
    )
    assert told.nu in NUS and told.gamma in GAMMAS
    assert roc_auc_score(LABELS, told.score(test)) >= best - 1e-12


def test_the_grid_is_the_papers():
    assert NUS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert (GAMMAS[0], GAMMAS[-1], len(GAMMAS)) == (1 / 128, 4.0, 10)


def test_labels_go_with_hindsight_only(good, test):
    with pytest.raises(InputError, match="hindsight=True needs test_images"):
        OCSVM(hindsight=True).fit(good)
    with pytest.raises(InputError, match="only with hindsight=True"):
        OCSVM().fit(good, test_images=test, test_labels=LABELS)


def test_small_draws_by_the_seed(good, test):
    def scores(seed):
        return OCSVM("small", seed=seed, most=20).fit(good).score(test)

    np.testing.assert_array_equal(scores(1), scores(1))
    assert not np.array_equal(scores(1), scores(2))


def test_save_and_load(good, test, tmp_path):
    baseline = OCSVM(hindsight=True, seed=7).fit(good, test_images=test, test_labels=LABELS)
    baseline.save(tmp_path / "svm.safetensors")
    for loaded in (
        OCSVM.load(tmp_path / "svm.safetensors"),
        load_baseline(tmp_path / "svm.safetensors"),
    ):
        assert repr(loaded) == repr(baseline)
        np.testing.assert_array_equal(loaded.score(test), baseline.score(test))


def test_what_cannot_be_loaded(good, tmp_path):
    path = tmp_path / "svm"
    with pytest.raises(ModelError, match="svm: no such file"):
        load_baseline(path)
    path.write_bytes(b"no")
    with pytest.raises(ModelError, match="svm: not a saved baseline"):
        load_baseline(path)
    save_file({"a": np.ones(2)}, path)
    with pytest.raises(ModelError, match="svm: not a saved baseline"):
        load_baseline(path)
    OCSVM().fit(good).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="svm: not a saved baseline"):
        load_baseline(path)
    with pytest.raises(ModelError, match="cannot be written"):
        OCSVM().fit(good).save(tmp_path / "no" / "svm")
    save_file(load_file(_saved(good, path)) | {"rho": np.ones(1)}, path)
    with pytest.raises(ModelError, match="svm: not a saved baseline"):
        load_baseline(path)


def _saved(good, path):
    OCSVM().fit(good).save(path)
    return path


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 8, 8, 3)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((4, 3, 8, 8), np.uint8),
        [np.zeros((8, 8, 3), np.uint8)] * 4,
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused(wrong):
    with pytest.raises(InputError, match=r"^images: "):
        OCSVM().fit(wrong)


def test_images_of_another_size_are_refused(good):
    baseline = OCSVM().fit(good)
    with pytest.raises(InputError, match="fitted on"):
        baseline.score(good[:, :8])
    assert baseline.score(good[:0]).shape == (0,)


def test_scoring_before_fit_is_refused(good, tmp_path):
    with pytest.raises(InputError, match="not fitted"):
        OCSVM().score(good)
    with pytest.raises(InputError, match="not fitted"):
        OCSVM().save(tmp_path / "svm")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("svm",), "choose one of ocsvm, deep-svdd"),
        (("ocsvm", "tiny"), "preset='tiny'; choose one of paper, small"),
    ],
)
def test_unknown_names(arguments, told):
    with pytest.raises(InputError, match=told):
        make_baseline(*arguments)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"depth": 3}, "OC-SVM has no depth; it has features, nu"),
        ({"nu": 0}, "nu=0"),
        ({"nu": 1.5}, "nu=1.5"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_settings(change, told):
    with pytest.raises(InputError, match=told):
        make_baseline("ocsvm", **change)


def test_changed_settings_are_told():
    assert OCSVM().full_title == "OC-SVM"
    assert repr(OCSVM(nu=0.2)).startswith("<OC-SVM (changed settings): features=False, nu=0.2, ")
    assert repr(OCSVM("small")).startswith("<OC-SVM (small): ")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ocsvm"])
def test_without_torch_the_extra_is_named(name, monkeypatch):
    for module in [m for m in sys.modules if m.startswith(("nnad.baselines.", "nnad.training"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=rf"baseline '{name}' needs torch: pip install 'nnad\[torch\]'"
    ):
        make_baseline(name)


def test_the_package_and_ocsvm_do_without_torch():
    program = (
        "import sys; from nnad.baselines import make_baseline;"
        "print(make_baseline('ocsvm'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("<OC-SVM: "), done.stderr
    assert done.stdout.endswith("> False\n")


def test_read_images(tmp_path):
    Image.fromarray(draw(0)).save(tmp_path / "a.png")
    Image.fromarray(draw(1)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    images, names, errors = read_images(tmp_path, 32)
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    assert [name[-5:] for name in names] == ["a.png", "b.png"]
    assert len(errors) == 1 and "c.png" in str(errors[0])
    same = draw(2, size=(32, 32))
    np.testing.assert_array_equal(read_images([same], 32)[0][0], same)
    grey = read_images([same], 32, grey=True)[0]
    np.testing.assert_array_equal(grey[0, :, :, 0], np.asarray(Image.fromarray(same).convert("L")))
    with pytest.raises(InputError, match=r"none of 1 can be read; the first: .*c\.png"):
        read_images([tmp_path / "c.png"], 32)
