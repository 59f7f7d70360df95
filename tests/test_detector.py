import dataclasses
import shutil

import numpy as np
import pytest
from conftest import draw

from nnad import BudgetError, CallableBackbone, Detector, ImageWarning, InputError, load_backbone
from nnad.operators import make_operator
from nnad.operators.knn import KNN
from nnad.scorer import Scorer
from nnad.transforms import TRANSFORMS, root


def test_odd_pictures_stand_out_and_the_bad_file_is_a_record(detector, new_folder):
    results = detector.score(new_folder)
    assert [r.name.rpartition("/")[2] for r in results] == [
        "broken.jpg",
        "good_0.png",
        "good_1.png",
        "odd_0.png",
        "odd_1.png",
    ]
    broken, good_0, good_1, odd_0, odd_1 = results
    assert broken.error.startswith(broken.name)
    assert (broken.score, broken.p_value, broken.is_anomaly, broken.nearest) == (None,) * 3 + ((),)
    assert min(odd_0.score, odd_1.score) > max(good_0.score, good_1.score)
    assert odd_0.is_anomaly
    assert odd_1.is_anomaly
    assert odd_0.p_value == pytest.approx(1 / 13)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_score_is_equation_2_of_the_paper(good_folder, new_folder, transform):
    detector = Detector(transform=transform, operator="knn", k=4).fit(good_folder)
    result = detector.score(new_folder / "odd_0.png")[0]
    distances = np.array([n.distance for n in result.nearest])
    assert len(distances) == 4
    assert (np.diff(distances) >= 0).all()
    assert result.score == pytest.approx(np.mean(distances**2), rel=1e-12)
    assert {n.name for n in result.nearest} <= set(detector.names)


def test_auto_is_the_default_and_says_why(detector, good_folder, tmp_path):
    named = Detector(operator=make_operator("auto")).fit(good_folder)
    np.testing.assert_array_equal(named.calibration.good_scores, detector.calibration.good_scores)
    assert (detector.reason[:5], named.reason) == ("auto:", "as asked for")
    detector.save(tmp_path / "m")
    assert Detector.load(tmp_path / "m").reason == detector.reason


def test_calibration_is_leave_one_out(good_folder):
    detector = Detector(operator="knn").fit(good_folder)
    bank = root(detector.features).astype(np.float64)
    sq_dists = np.square(bank[:, None] - bank[None]).sum(axis=2)
    np.fill_diagonal(sq_dists, np.inf)
    expected = np.sort(sq_dists, axis=1)[:, :2].mean(axis=1)
    np.testing.assert_allclose(detector.calibration.good_scores, expected, rtol=1e-9)


def test_a_training_image_finds_itself_at_distance_zero(detector):
    result = detector.score(detector.names[3])[0]
    assert result.nearest[0].name == detector.names[3]
    assert result.nearest[0].distance == 0


def test_paths_arrays_and_iterators_score_the_same(detector):
    arrays = [draw(100), draw(200, odd=True)]
    listed = detector.score(arrays)
    assert [r.name for r in listed] == ["image[0]", "image[1]"]
    assert detector.score(np.stack(arrays)) == listed
    assert detector.score(iter(arrays)) == listed
    assert list(detector.iter_scores(arrays)) == listed
    assert [dataclasses.replace(r, name="") for r in detector.score(arrays[1])] == [
        dataclasses.replace(listed[1], name="")
    ]
    assert detector.score([]) == []


def test_scores_do_not_depend_on_company(detector, new_folder):
    together = {r.name: r for r in detector.score(new_folder)}
    for name, result in together.items():
        if result.error is None:
            assert detector.score(name) == [result]


def test_the_budget(good_folder, detector, new_folder):
    assert detector.false_alarms == pytest.approx(1 / 13)  # 12 images cannot support 1 %
    with pytest.raises(BudgetError, match=r"12 good images.*smallest possible budget is 0\.077"):
        Detector(false_alarms=0.01).fit(good_folder)
    with pytest.raises(BudgetError, match="smallest possible budget"):
        detector.score(new_folder, false_alarms=0.05)
    lenient = Detector(false_alarms=0.5).fit(good_folder)
    assert lenient.false_alarms == 0.5
    flagged = sum(bool(r.is_anomaly) for r in lenient.score(new_folder))
    assert flagged >= sum(bool(r.is_anomaly) for r in detector.score(new_folder))
    assert detector.score(new_folder, false_alarms=0.5) == lenient.score(new_folder)


def test_the_budget_is_checked_before_any_work(monkeypatch):
    def unexpected(*_):
        raise AssertionError("embedded an image")

    monkeypatch.setattr("nnad.backbones.Backbone.embed", unexpected)
    with pytest.raises(BudgetError):
        Detector(false_alarms=0.01).fit([draw(i) for i in range(20)], cache=False)


def test_the_default_budget_is_one_percent_once_there_are_99_images(detector):
    from nnad.calibrate import Calibration

    assert Calibration(np.zeros(99)).default_budget() == 0.01
    assert Calibration(np.zeros(98)).default_budget() == 1 / 99
    assert Calibration(np.zeros(5000)).default_budget() == 0.01


def test_fit_goes_on_without_unreadable_images(good_folder):
    images = [*sorted(good_folder.iterdir()), b"no picture", good_folder / "missing.png"]
    detector = Detector().fit(images)
    assert len(detector.names) == 12
    assert [r.name for r in detector.skipped] == ["image[12]", str(good_folder / "missing.png")]
    assert "no such file" in detector.skipped[1].error


def test_too_little_to_fit(tmp_path):
    with pytest.raises(InputError, match="too few good images: 2; 6 are needed"):
        Detector().fit([draw(0), draw(1)])
    with pytest.raises(InputError, match=r"none of 7 images can be read; image\[0\]: not an image"):
        Detector().fit([b"x"] * 7)
    with pytest.raises(InputError, match="holds no image files"):
        Detector().fit(tmp_path)
    with pytest.raises(InputError, match=r"none of 1 image .*no such file"):
        Detector().fit(tmp_path / "missing")
    with pytest.raises(InputError, match="too few"):
        Detector().fit([])


def test_not_fitted(tmp_path):
    detector = Detector()
    assert "not fitted" in repr(detector)
    for call in (
        lambda: detector.score([]),
        lambda: detector.save(tmp_path / "m"),
        lambda: detector.false_alarms,
    ):
        with pytest.raises(InputError, match="call fit first"):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        {"transform": "cube"},
        {"operator": "svm"},
        {"k": 0},
        {"k": 1.5},
        {"k": True},
        {"false_alarms": 0},
        {"false_alarms": 1.0},
        {"false_alarms": -1},
        {"precision": "float16"},
        {"workers": 0},
        {"workers": 1.5},
        {"false_alarms": "0.1"},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}="):
        Detector(**wrong)


def test_an_operator_of_ones_own(good_folder, new_folder):
    by_name = Detector(operator="knn", k=5).fit(good_folder)
    assert by_name.score(new_folder) == Detector(operator=KNN(5)).fit(good_folder).score(new_folder)
    shared = KNN(3)
    first = Detector(operator=shared).fit(good_folder)
    before = first.score(new_folder)
    Detector(operator=shared, transform="raw").fit(good_folder)
    assert first.score(new_folder) == before
    with pytest.raises(InputError, match="k: goes with the name of an operator"):
        Detector(operator=KNN(5), k=2)
    with pytest.raises(InputError, match="operator 'kmeans' has no k"):
        Detector(operator="kmeans", k=2)
    with pytest.raises(InputError, match="too few good images: 12; 13"):
        Detector(operator="knn", k=12).fit(good_folder)


def test_a_backbone_of_ones_own(good_folder):
    backbone = load_backbone("efficientnet-lite1", geometry="letterbox", flips="horizontal")
    detector = Detector(backbone).fit(good_folder)
    assert "efficientnet-lite1" in repr(detector)
    assert detector.score(draw(200, odd=True))[0].is_anomaly


def test_a_camera_gets_its_results_at_once(detector):
    shown = 0

    def camera():
        nonlocal shown
        for i in range(50):
            shown += 1
            yield draw(i, size=(8, 8))

    results = Detector.iter_scores(detector, camera())
    next(results)
    from nnad.cores import usable_cores

    assert shown <= usable_cores()


def test_paths_given_twice_count_once_and_copies_are_warned_about(good_folder, tmp_path):
    paths = sorted(good_folder.iterdir())
    assert len(Detector().fit([*paths, good_folder]).names) == 12
    (tmp_path / "link").symlink_to(good_folder)
    assert len(Detector().fit([good_folder, tmp_path / "link"]).names) == 12
    shutil.copy(paths[0], tmp_path / "copy.png")
    with pytest.warns(ImageWarning, match=r"copies of others: 1 of 13 good images .*copy\.png"):
        Detector().fit([*paths, tmp_path / "copy.png"])


@pytest.mark.filterwarnings("ignore::nnad.ImageWarning")
def test_identical_good_images():
    detector = Detector().fit([draw(0)] * 8)
    assert not detector.calibration.good_scores.any()
    same, other = detector.score([draw(0), draw(200, odd=True)])
    assert (same.score, same.p_value, same.is_anomaly) == (0, 1, False)
    assert other.is_anomaly


def test_whitening_does_not_know_the_images_it_is_calibrated_on(good_folder):
    detector = Detector(transform="white", operator="knn", false_alarms=0.2).fit(good_folder)
    results = detector.score([draw(300 + i) for i in range(20)])
    assert sum(bool(r.is_anomaly) for r in results) <= 10


def test_a_list_that_labels_anomalies_is_not_learned_from(good_folder, tmp_path):
    paths = sorted(good_folder.glob("*"))
    labels = ["good"] * (len(paths) - 1) + ["crack"]
    lines = [f"{path.resolve()},{label}" for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    with pytest.raises(InputError, match=r"list\.csv: images labelled 'crack' are in this list"):
        Detector().fit(tmp_path / "list.csv")
    blank = [line.removesuffix("good") for line in lines]
    (tmp_path / "blank.csv").write_text("\n".join(["path,label", *blank]))
    with pytest.raises(InputError, match="'crack'"):
        Detector().fit(iter([tmp_path / "blank.csv"]))
    (tmp_path / "good.csv").write_text("\n".join(["path,label", *lines[:-1]]))
    assert len(Detector().fit([tmp_path / "good.csv"]).names) == len(paths) - 1


def test_a_fit_that_fails_leaves_the_detector_as_it_was(good_folder, monkeypatch):
    detector = Detector().fit(good_folder)
    before = detector.score(good_folder)
    monkeypatch.setattr(Scorer, "_calibrate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detector.fit(sorted(good_folder.glob("*"))[:8])
    assert detector.score(good_folder) == before


def test_a_device_that_is_not_the_backbones(detector, tmp_path):
    detector.save(tmp_path / "m")
    with pytest.raises(InputError, match="the backbone given runs on cpu"):
        Detector.load(tmp_path / "m", backbone=detector.backbone, device="cuda")


@pytest.mark.parametrize(("shift", "expected"), [(0, "root"), (128, "l2")])
def test_the_usual_transform_depends_on_signs(good_folder, tmp_path, shift, expected):
    def shifted(batch):
        return batch.astype(np.float32).reshape(len(batch), -1)[:, ::37] - shift

    function = CallableBackbone(shifted, size=32)
    detector = Detector(function).fit(good_folder)
    assert detector.transform == expected
    detector.save(tmp_path / "m")
    assert Detector.load(tmp_path / "m", backbone=function).transform == expected
    assert Detector(function, transform="raw").fit(good_folder).transform == "raw"
