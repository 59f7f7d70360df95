"""torchvision and timm networks with random weights, exported to ONNX; no download."""

import hashlib
import json
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from conftest import draw
from PIL import Image
from torch import nn

from nnad import BackboneError, Detector, InputError, load_backbone, torch_export, torch_networks
from nnad.adaptation.adapt import adapt
from nnad.adaptation.networks import load_network
from nnad.checkpoints import read_checkpoint
from nnad.ensemble import Ensemble
from nnad.errors import ImageWarning
from nnad.preprocessing import Preprocessing
from nnad.probes import largest_difference, probe_images
from nnad.transforms import l2, root

IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def random(name, **options):
    return load_backbone(name, weights="random", **options)


@pytest.fixture(scope="module")
def resnet18():
    return random("torchvision:resnet18", size=64)


@pytest.mark.parametrize(
    ("name", "size", "dim"),
    [
        ("torchvision:resnet50", 64, 2048),
        ("torchvision:resnet101", 64, 2048),
        ("torchvision:resnet152", 64, 2048),
        ("torchvision:wide_resnet50_2", 64, 2048),
        ("torchvision:resnext50_32x4d", 64, 2048),
        ("torchvision:resnext101_32x8d", 64, 2048),
        ("timm:vit_small_patch8_224.dino", 64, 384),
    ],
)
def test_the_networks_of_the_papers(name, size, dim):
    backbone = random(name, size=size)
    assert backbone.dim == dim
    assert backbone.details["weights"] == "random (seed 0)"
    assert (backbone.preprocessing.mean, backbone.preprocessing.std) == IMAGENET
    probes = probe_images(size)
    expected = backbone.reference(probes)
    at_once = backbone._session.run(["features"], {"image": probes})[0]
    assert largest_difference(backbone.features(probes), expected) <= 1e-4
    assert largest_difference(at_once, expected) <= 1e-4
    assert np.linalg.norm(expected[0] - expected[1]) > 1e-3 * np.linalg.norm(expected[0])


def test_dinov2_in_the_form_it_is_published(tmp_path):
    """Position embeddings of 518 pixels, here resampled, a mask token, and no classifier."""
    torch.manual_seed(7)
    state = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0)
    state = {**state.state_dict(), "mask_token": torch.zeros(1, 384)}
    for key, value in state.items():
        if key.endswith(".gamma"):  # at first 1e-5, and the image would hardly count
            value.fill_(1)
    torch.save(state, tmp_path / "dinov2.pth")
    backbone = load_backbone(
        "timm:vit_small_patch14_dinov2.lvd142m", weights=tmp_path / "dinov2.pth", size=70
    )
    assert backbone.details["weights"].startswith("dinov2.pth, SHA-256 ")
    assert backbone.dim == 384
    probes = probe_images(70)
    expected = backbone.reference(probes)
    assert largest_difference(backbone.features(probes), expected) <= 1e-4
    assert np.linalg.norm(expected[0] - expected[1]) > 1e-2 * np.linalg.norm(expected[0])
    assert (expected < 0).mean() > 0.2


def test_the_feature_is_the_plain_networks(resnet18):
    """Against torchvision alone: nothing of nnad's normalisation, hooks or pooling."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.resnet18(weights=None).eval()
    probes = probe_images(64)
    x = torchvision.transforms.functional.normalize(
        torch.tensor(probes).permute(0, 3, 1, 2) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        expected = nn.Sequential(*list(network.children())[:-1])(x).flatten(1).numpy()
    assert largest_difference(resnet18.features(probes), expected) <= 1e-4
    assert random("torchvision:resnet18", size=64).fingerprint == resnet18.fingerprint


def test_the_preprocessing_is_the_librarys():
    mean, std = IMAGENET
    with torch_networks._seeded():
        _, old, _ = torch_networks._from_torchvision("resnet50", None, "random")
        _, dino, _ = torch_networks._from_timm("vit_small_patch8_224.dino", None, "random")
        _, dinov2, _ = torch_networks._from_timm("vit_small_patch14_dinov2.lvd142m", None, "random")
    assert old == Preprocessing(224, interpolation="bilinear", mean=mean, std=std)
    cfg = timm.get_pretrained_cfg("vit_small_patch8_224.dino")
    assert dino == Preprocessing(
        224, crop_fraction=224 / int(224 / cfg.crop_pct), mean=mean, std=std
    )
    assert (dinov2.size, dinov2.crop_fraction, dinov2.interpolation) == (518, 1, "bicubic")


def test_stages_and_poolings_of_a_resnet():
    probes = probe_images(64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torchvision.models.resnet18(weights=None).eval()
    maps = {}
    for stage in ("layer2", "layer3"):
        network.get_submodule(stage).register_forward_hook(
            lambda _m, _i, out, stage=stage: maps.update({stage: out.numpy()})
        )
    preprocessing = Preprocessing(64, mean=IMAGENET[0], std=IMAGENET[1])
    with torch.no_grad():
        network(torch_export.normalised(probes, preprocessing))
    backbone = random("torchvision:resnet18", size=64, stages=tuple(maps), pooling="gem")
    assert backbone.dim == 128 + 256
    pooled = [np.cbrt((np.maximum(x, 1e-6) ** 3).mean(axis=(2, 3))) for x in maps.values()]
    expected = np.concatenate([l2(x) for x in pooled], axis=1)
    assert largest_difference(backbone.features(probes), expected) <= 1e-4
    assert largest_difference(backbone.reference(probes), expected) <= 1e-4


@pytest.mark.parametrize("pooling", [None, "mean", "max", "gem"])
def test_torch_and_onnx_pool_alike(pooling):
    """On a small network of maps, places last and channels last, and of tokens."""

    class Small(nn.Module):
        num_prefix_tokens = 1

        def __init__(self, output_fmt):
            super().__init__()
            self.output_fmt = output_fmt
            self.places, self.tokens = nn.Conv2d(3, 5, 3), nn.Identity()

        def forward(self, x):
            x = self.places(x)
            self.tokens(x.flatten(2).transpose(1, 2))
            return x if self.output_fmt == "NCHW" else x.permute(0, 2, 3, 1)

    probes = probe_images(32)
    dims = set()
    for output_fmt, stages in (("NCHW", ("tokens", "head")), ("NHWC", ("head",))):
        torch.manual_seed(0)
        backbone = torch_export.export(
            Small(output_fmt).eval(), "small", Preprocessing(32), stages, pooling
        )
        dims.add(backbone.dim)
        found, expected = backbone.features(probes), backbone.reference(probes)
        assert largest_difference(found, expected) <= 1e-4
    assert dims == {5, 10}


def test_a_stage_called_features():
    """As in torchvision's VGG, DenseNet and MobileNet; nnad's own output has that name."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 5, 3)

        def forward(self, x):
            return self.features(x).relu()

    torch.manual_seed(0)
    small = Small().eval()
    probes = probe_images(32)
    backbone = torch_export.export(small, "small", Preprocessing(32), ("features",))
    with torch.no_grad():
        maps = small.features(torch_export.normalised(probes, Preprocessing(32)))
    expected = maps.mean(dim=(2, 3)).numpy()
    assert largest_difference(backbone.features(probes), expected) <= 1e-4


def test_tokens_of_a_vit_and_their_signs():
    options = {"size": 64, "stages": ("blocks.3", "norm")}
    by_class = random("timm:test_vit", **options)  # timm's smallest
    by_mean = random("timm:test_vit", pooling="mean", **options)
    probes = probe_images(64)
    for backbone in (by_class, by_mean):
        assert backbone.dim == 128
        assert largest_difference(backbone.features(probes), backbone.reference(probes)) <= 1e-4
    features = by_mean.features(probes)
    assert (features < 0).mean() > 0.2
    rooted = root(features)
    np.testing.assert_array_equal(np.sign(rooted), np.sign(features))
    np.testing.assert_allclose(np.linalg.norm(rooted, axis=1), 1, rtol=1e-6)
    assert largest_difference(by_class.features(probes), features) > 1e-2


def test_wrong_names_and_sizes():
    with pytest.raises(
        BackboneError, match=r"torchvision has no 'resnet19'; there are: .*resnet18"
    ):
        random("torchvision:resnet19")
    with pytest.raises(BackboneError, match=r"timm has no 'resnet19'; near it: .*resnet"):
        random("timm:resnet19")
    with pytest.raises(InputError, match=r"has no 'layer9'; there are: head, conv1, .*layer4"):
        random("torchvision:resnet18", stages=("layer9",))
    with pytest.raises(InputError, match="'head' is one vector an image, already pooled"):
        random("torchvision:resnet18", size=64, pooling="gem")
    with pytest.raises(BackboneError, match="cannot run on a 100 x 100"):
        random("torchvision:vit_b_16", size=100)


def test_a_download_that_fails_says_what_else_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    for name in ("torchvision:resnet18", "timm:vit_small_patch8_224.dino"):
        with pytest.raises(
            BackboneError, match=r"\(no network\); give a checkpoint file: weights="
        ):
            load_backbone(name)


@pytest.fixture(scope="module")
def trained():
    """A state dict that is not the seeded one."""
    torch.manual_seed(7)
    return torchvision.models.resnet18(weights=None).state_dict()


def test_checkpoint_files(trained, tmp_path, resnet18):
    headless = {k: v for k, v in trained.items() if not k.startswith("fc.")}
    contents = {
        "plain.pth": trained,
        "wrapped.pth": {"state_dict": {f"module.{k}": v for k, v in trained.items()}, "epoch": 3},
        "teacher.pt": {
            "teacher": {f"module.backbone.{k}": v for k, v in headless.items()}
            | {"module.head.mlp.weight": torch.zeros(2)},
        },
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    torch.save(trained, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(headless, tmp_path / "plain.safetensors")
    read = []
    for path in sorted(tmp_path.iterdir()):
        with torch_networks._seeded():
            network, _, told = torch_networks._from_torchvision("resnet18", None, path)
        assert told.startswith(f"{path.name}, SHA-256 ")
        read.append(network.state_dict())
    assert len(read) == 5
    for state in read:
        assert set(state) == set(headless)
        assert all(torch.equal(state[key], headless[key]) for key in state)
    backbone = load_backbone(
        "torchvision:resnet18", weights=tmp_path / "plain.safetensors", size=64
    )
    probes = probe_images(64)
    assert largest_difference(backbone.features(probes), resnet18.features(probes)) > 1e-2
    assert backbone.fingerprint != resnet18.fingerprint


def test_the_hash_is_of_the_weights_that_were_read(tmp_path, monkeypatch):
    """Also if another program replaces the file just after it was read."""
    path, read = tmp_path / "w.pth", Path.read_bytes
    torch.save({"bias": torch.ones(2)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def read_and_replace(path):
        content = read(path)
        torch.save({"bias": torch.zeros(2)}, path)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    state, told = read_checkpoint(path)
    assert told == sha256
    assert state["bias"].tolist() == [1, 1]


class Touch:
    """Pickles to a call that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_and_foreign_checkpoints(trained, tmp_path):
    def refused(content, message, name="w.pth"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(BackboneError, match=rf"w\.\w+: {message}"):
            load_backbone("torchvision:resnet18", weights=path)

    victim = tmp_path / "victim"
    refused({"state_dict": Touch(victim)}, "not a file of tensors and nothing else")
    refused(pickle.dumps(Touch(victim)), "not a file of tensors and nothing else")
    assert not victim.exists()
    refused(b"", "not a file of tensors")
    refused(b"nothing", "not a safetensors file", "w.safetensors")
    refused([1, 2], "holds no state dict")
    refused({"epoch": 3}, "holds no state dict")
    lacking = {k: v for k, v in trained.items() if k != "layer1.0.conv1.weight"}
    refused(lacking, r"not the weights of this network: lacks 1 \(layer1\.0\.conv1\.weight\)")
    refused({**trained, "neck.weight": torch.zeros(2)}, r".*has unknown 1 \(neck\.weight\)")
    refused({**trained, "conv1.weight": torch.zeros(2)}, r".*size mismatch for conv1\.weight")
    with pytest.raises(BackboneError, match=r"none\.pth: cannot read the weights: No such file"):
        load_backbone("torchvision:resnet18", weights=tmp_path / "none.pth")


def test_a_detector_measures_the_export_and_needs_no_torch_later(
    resnet18, good_folder, new_folder, tmp_path
):
    detector = Detector(resnet18).fit(good_folder)
    assert 0 < detector.export["features"] < 1e-5
    assert 0 < detector.export["scores"] < 1e-5
    expected = detector.score(new_folder)
    detector.save(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["content"]["settings"]["export"] == detector.export
    loaded = Detector.load(tmp_path / "m")
    assert loaded.score(new_folder) == expected
    assert loaded.export == detector.export
    assert loaded.backbone.details == resnet18.details


def test_an_export_that_says_something_else_is_refused(resnet18, good_folder, monkeypatch):
    true = resnet18.reference
    for factor, what in ((1.01, "features"), (np.nan, "features")):
        monkeypatch.setattr(resnet18, "reference", lambda batch, f=factor: true(batch) * f)
        with pytest.raises(BackboneError, match=f"its export to ONNX changes {what} by"):
            Detector(resnet18).fit(good_folder)

    class Noisy(nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, training=True).mean(dim=(2, 3))

    with pytest.raises(BackboneError, match=r"features differ by .*; use it as a callable"):
        torch_export.export(Noisy(), "noisy", Preprocessing(32))

    class Sized(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3)) * (2 if bool((x > 0).all()) else 1)

    with pytest.raises(BackboneError, match=r"torch cannot export it to ONNX .*use it as a call"):
        torch_export.export(Sized(), "sized", Preprocessing(32))


def test_features_and_scores_of_a_changed_reference(resnet18, good_folder, monkeypatch):
    """Scores of features that differ by 5e-5, here computed by hand: DN2's, k = 2, raw."""
    true = resnet18.reference
    monkeypatch.setattr(resnet18, "reference", lambda batch: true(batch) * np.float32(1 + 5e-5))
    good = [Image.open(path) for path in sorted(good_folder.iterdir())]
    bank = np.stack([resnet18.embed(image) for image in good]).astype(float)

    def scores(embed):
        turned = [image.transpose(Image.Transpose.ROTATE_90) for image in good[:8]]
        queries = np.stack([embed(image) for image in turned]).astype(float)
        squares = ((queries[:, None] - bank[None]) ** 2).sum(axis=2)  # (8, 12)
        return np.sort(squares, axis=1)[:, :2].mean(axis=1)

    found, expected = scores(resnet18.embed), scores(resnet18.embed_reference)
    size = np.maximum(expected, np.median(expected))
    difference = (np.abs(found - expected) / size).max()

    detector = Detector(resnet18, operator="knn", transform="raw").fit(good_folder)
    assert detector.export["features"] == pytest.approx(5e-5, rel=0.05)
    assert detector.export["scores"] == pytest.approx(difference, rel=0.05)

    bounds = {"features": 1e-4, "scores": difference / 2}
    monkeypatch.setattr("nnad.export_check.BOUNDS", bounds)
    with pytest.raises(BackboneError, match="its export to ONNX changes scores by") as raised:
        detector.fit(good_folder)
    told = float(re.search(r"scores by (\S+), more", str(raised.value))[1])
    assert told == pytest.approx(difference, rel=0.1)  # two digits


def test_an_ensemble_of_a_torch_and_an_embedded_network(resnet18, good_folder, tmp_path):
    both = Ensemble([load_backbone(size=64), resnet18])
    detector = Detector(both).fit(good_folder)
    assert 0 < detector.export["features"] <= 1e-4
    detector.save(tmp_path / "m")
    assert Detector.load(tmp_path / "m").score(draw(100)) == detector.score(draw(100))


def test_one_picture_one_score_on_every_path(resnet18, good_folder, tmp_path):
    detector = Detector(resnet18, operator="knn").fit(good_folder)
    path = tmp_path / "a.png"
    Image.fromarray(draw(100)).save(path)
    ways = [path, path.read_bytes(), draw(100), Image.open(path)]
    assert len({detector.score(way)[0].score for way in ways}) == 1
    assert len({result.score for result in detector.score([draw(100)] * 32)}) == 1


def test_loading_is_quiet_and_leaves_random_numbers_alone(capfd):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random("torchvision:resnet18", size=32)
    assert torch.equal(torch.rand(3), expected)
    assert capfd.readouterr() == ("", "")
    assert not [p for p in Path().iterdir() if p.suffix == ".onnx"]


def test_a_resnet_is_adapted_and_saved(tmp_path):
    network = load_network("torchvision:resnet18", weights="random", train_from="layer4")
    out = tmp_path / "adapted.onnx"
    adapt([draw(i) for i in range(4)], out, network=network, epochs=1)
    with pytest.warns(ImageWarning, match="adapted"):
        backbone = load_backbone(out)
    probes = probe_images(224)
    with torch.no_grad():
        expected = network.module(network.normalised(probes)).numpy()
    assert largest_difference(backbone.features(probes), expected) <= 1e-4
