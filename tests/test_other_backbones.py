"""Functions, ensembles, devices and what load_backbone refuses."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from conftest import draw
from PIL import Image

from nnad import Backbone, BackboneError, Detector, InputError, load_backbone
from nnad.callable_backbone import CallableBackbone
from nnad.ensemble import Ensemble
from nnad.probes import largest_difference, probe_images
from nnad.transforms import l2


def colours(batch):
    """(B, h, w, 3) -> (B, 6): mean and deviation of each colour"""
    return np.concatenate([batch.mean(axis=(1, 2)), batch.std(axis=(1, 2))], axis=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: load_backbone(stages=("s8", "head"), pooling="gem", size=96),
        lambda: load_backbone("efficientnet-lite0+efficientnet-lite1", size=64, flips="both"),
        lambda: CallableBackbone(colours, size=64),
    ],
    ids=["stages", "ensemble", "callable"],
)
def test_one_picture_one_score_on_every_path(make, good_folder, tmp_path):
    """Path, bytes, array and PIL image; alone and among 32; before and after saving."""
    detector = Detector(make(), operator="knn").fit(good_folder)
    Image.fromarray(draw(100)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    ways = [tmp_path / "a.png", content, draw(100), Image.open(io.BytesIO(content))]
    (score,) = {detector.score(way)[0].score for way in ways}
    assert {r.score for r in detector.score([draw(100)] * 32)} == {score}
    detector.save(tmp_path / "m")
    given = make() if isinstance(detector.backbone, CallableBackbone) else None
    assert Detector.load(tmp_path / "m", backbone=given).score(draw(100))[0].score == score


def test_batches_are_rows_one_by_one(backbone):
    batch = np.concatenate([backbone.preprocessing(Image.fromarray(draw(i))) for i in range(4)] * 8)
    together = backbone.features(batch)
    alone = np.concatenate([backbone.features(image[None]) for image in batch])
    np.testing.assert_array_equal(together, alone)
    at_once = backbone._session.run(["features"], {"image": batch})[0]
    assert largest_difference(at_once, together) < 1e-5


def test_an_ensemble_is_its_members_side_by_side(backbone):
    other = load_backbone("efficientnet-lite1")
    both = load_backbone("efficientnet-lite0+efficientnet-lite1")
    image = Image.fromarray(draw(0))
    expected = [l2(member.embed(image)[None])[0] for member in (backbone, other)]
    np.testing.assert_array_equal(both.embed(image), np.concatenate(expected))
    assert (both.name, both.dim) == ("efficientnet-lite0+efficientnet-lite1", 2560)
    turned = Ensemble([other, backbone])
    assert len({both.fingerprint, turned.fingerprint, backbone.fingerprint}) == 3
    for members in ([backbone], [], [both, backbone]):
        with pytest.raises(InputError, match="two or more backbones"):
            Ensemble(members)


def test_what_only_the_members_of_an_ensemble_have(backbone):
    both = Ensemble([backbone, CallableBackbone(colours, size=64)])
    for name in ("preprocessing", "onnx", "details", "reference"):
        with pytest.raises(BackboneError, match=rf"no '{name}' of its own.*members\[0\]\.{name}$"):
            getattr(both, name)
        getattr(both.members[1], name)
    with pytest.raises(BackboneError, match=r"'efficientnet-lite0\+colours': .* no 'features'"):
        both.features(probe_images(64))
    assert isinstance(both, Backbone)
    assert not both.exported


def test_a_model_holds_and_checks_every_member(good_folder, tmp_path):
    names = "efficientnet-lite0+efficientnet-lite1"
    Detector(load_backbone(names, size=64)).fit(good_folder).save(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("encoder-*.onnx"))) == 2
    told = json.loads((tmp_path / "m" / "manifest.json").read_text())["content"]["settings"]
    assert [m["name"] for m in told["backbone"]["members"]] == names.split("+")
    Detector.load(tmp_path / "m", backbone=load_backbone(names, size=64))
    for other in (load_backbone(names, size=96), load_backbone(size=64)):
        with pytest.raises(BackboneError, match="is not the one the model was made with"):
            Detector.load(tmp_path / "m", backbone=other)


def test_a_model_of_a_callable_needs_it_again(good_folder, tmp_path):
    Detector(CallableBackbone(colours, size=64, flips="both")).fit(good_folder).save(tmp_path / "m")
    assert not list((tmp_path / "m").glob("encoder-*"))
    with pytest.raises(BackboneError, match=r"callable 'colours', which no file can hold: pass"):
        Detector.load(tmp_path / "m")

    def given(function, **changes):
        backbone = CallableBackbone(function, **{"size": 64, "flips": "both", **changes})
        return Detector.load(tmp_path / "m", backbone=backbone)

    given(lambda batch: colours(batch) * 1.0001)  # another machine's rounding
    with pytest.raises(BackboneError, match=r"its features differ by 0\.01"):
        given(lambda batch: colours(batch) * 1.01)
    wrong = [(lambda batch: colours(batch)[:, :5], {}), (colours, {"geometry": "whole"})]
    for function, changes in wrong:
        with pytest.raises(BackboneError, match="is not the one the model was made with"):
            given(function, **changes)
    with pytest.raises(BackboneError, match="is not the one the model was made with"):
        Detector.load(tmp_path / "m", backbone=load_backbone())


def test_a_model_of_an_ensemble_with_a_callable_needs_the_ensemble(backbone, good_folder, tmp_path):
    def both():
        return Ensemble([backbone, CallableBackbone(colours, size=64)])

    detector = Detector(both()).fit(good_folder)
    detector.save(tmp_path / "m")
    with pytest.raises(
        BackboneError, match=r"callable 'colours', .*, backbone=Ensemble\(\[\.\.\.\]\)"
    ):
        Detector.load(tmp_path / "m")
    with pytest.raises(BackboneError, match="is not the one the model was made with"):
        Detector.load(tmp_path / "m", backbone=CallableBackbone(colours, size=64))
    loaded = Detector.load(tmp_path / "m", backbone=both())
    assert loaded.score(draw(100)) == detector.score(draw(100))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], r"returned shape \(2,\) for one image"),
        ([[1.0], [2.0]], r"returned shape \(2, 1\)"),
        ([[np.nan]], "all finite"),
        ("text", "returned no numbers"),
    ],
)
def test_a_callable_that_returns_something_else(returned, message):
    with pytest.raises(BackboneError, match=message):
        CallableBackbone(lambda batch: returned, name="f").dim  # noqa: B018


def test_a_callable_is_called_with_views_alone():
    shapes = []

    def count(batch):
        shapes.append((batch.shape, batch.dtype))
        return batch.mean(axis=(1, 2))

    backbone = load_backbone(count, size=32, flips="both")
    assert isinstance(backbone, CallableBackbone)
    assert backbone.name == "count"
    feature = backbone.embed(Image.new("RGB", (8, 8), (10, 20, 30)))
    assert feature.tolist() == [10, 20, 30]
    assert shapes == [((1, 32, 32, 3), np.uint8)] * 4
    with pytest.raises(InputError, match="a callable chooses its stages"):
        load_backbone(count, device="cuda")
    with pytest.raises(InputError, match="not a callable"):
        CallableBackbone("count")


def test_probe_images_are_the_same_everywhere():
    probes = probe_images(64)
    assert (probes.shape, probes.dtype) == ((3, 64, 64, 3), np.uint8)
    assert [int(probe.sum()) for probe in probes] == PROBE_SUMS
    assert largest_difference([[3.0, 4.0]], [[0.0, 5.0]]) == pytest.approx(10**0.5 / 5)


PROBE_SUMS = [1560637, 1548480, 1536386]


def test_device_names():
    for device in ("gpu", "cuda:", "cuda:x", "CPU", None):
        with pytest.raises(InputError, match=r"device=.*; choose cpu, cuda or"):
            load_backbone(device=device)


def test_a_gpu_that_is_not_there_is_an_error(good_folder, tmp_path, monkeypatch, model):
    for device in ("cuda", "cuda:1"):
        with pytest.raises(BackboneError, match="pip install 'onnxruntime-gpu"):
            load_backbone(device=device).embed(Image.fromarray(draw(0)))
    with pytest.raises(BackboneError, match="pip install 'onnxruntime-gpu"):
        Detector.load(model, device="cuda").score(draw(0))

    class Silent:  # what onnxruntime-gpu does without a GPU: it warns and goes on with the CPU
        def __init__(self, *arguments, providers):
            assert providers == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})]

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Silent)
    with pytest.raises(BackboneError, match="onnxruntime cannot use the GPU"):
        load_backbone(device="cuda:1").dim  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, r"'resnet18' is unknown; there are: .*torchvision:NAME, timm:NAME"),
        ("efficientnet-lite0", {"weights": "random"}, "weights: goes with torchvision:NAME"),
        ("efficientnet-lite0", {"declared": {}}, "declared: goes with onnx:FILE"),
        ("efficientnet-lite0+onnx:none.onnx", {}, r"none\.onnx: cannot read"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises((BackboneError, InputError), match=message):
        load_backbone(name, **options)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_a_missing_extra_says_what_to_install(name):
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, timm=None)\n"
        "from nnad import load_backbone, BackboneError\n"
        "try: load_backbone(sys.argv[1])\n"
        "except BackboneError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True)
    assert re.search(rf"'{name}' needs \w+: pip install 'nnad\[torch\]'", done.stdout), done.stderr


def test_the_settings_of_a_backbone_of_an_unknown_kind(model):
    from nnad.backbones import from_settings

    with pytest.raises(InputError, match="kind 'quantum' is unknown"):
        from_settings({"kind": "quantum"}, [])
    assert isinstance(Detector.load(model).backbone, Backbone)
