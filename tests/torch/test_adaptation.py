"""Adaptation: what is trained and what stays, what is computed once, what is saved."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from torch import nn
from torch.nn import functional

from nnad import Detector, load_backbone, training
from nnad.adaptation import ewc
from nnad.adaptation.adapt import adapt
from nnad.adaptation.adapted import save_network
from nnad.adaptation.msad import (
    adapt_msad,
    augmented,
    kept_pairs,
    mean_shifted_contrastive,
    new_pairs,
)
from nnad.adaptation.networks import Network, load_network, resnet
from nnad.adaptation.panda import adapt_panda, compactness
from nnad.adaptation.pictures import read_pictures, stem_outputs, tail_features
from nnad.efficientnet import VARIANTS
from nnad.errors import BackboneError, ImageWarning, InputError, TrainingError
from nnad.preprocessing import Preprocessing
from nnad.probes import largest_difference, probe_images

torch.set_num_threads(1)
SMALL = Preprocessing(32, mean=(120.0, 110.0, 100.0), std=(60.0, 60.0, 60.0))


class TinyResNet(nn.Module):
    """In the way of torchvision: modules one after the other, then a mean and a classifier."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(8)
            self.relu = nn.ReLU()
            for i, (a, b) in enumerate([(8, 8), (8, 12), (12, 16), (16, 24)], 1):
                conv = nn.Conv2d(a, b, 3, 1 + i % 2, 1, bias=False)
                setattr(self, f"layer{i}", nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU()))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(24, 5)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer4(self.layer3(self.layer2(x)))).flatten(1))


def tiny(train_from=None) -> Network:
    return resnet(TinyResNet(), "tiny", SMALL, train_from)


@pytest.fixture(scope="module")
def good():
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pixels(good):
    return read_pictures(good, SMALL).pixels


def train(network, pixels, **changes):
    settings = {"epochs": 3, "lr": 0.05, "clip_norm": 1.0} | changes
    return adapt_panda(network, stem_outputs(network, pixels), **settings)


def contrast(network, pixels, views=0, seed=0, **changes):
    pairs = kept_pairs(network, pixels, views, seed=seed) if views else new_pairs(network, pixels)
    settings = {"epochs": 1, "lr": 0.1, "seed": seed} | changes
    return adapt_msad(network, stem_outputs(network, pixels), pairs, **settings)


def adapted_backbone(path, **options):
    with pytest.warns(ImageWarning, match="adapted to good images; fit on others"):
        return load_backbone(path, **options)


def state(network):
    return {name: t.clone() for name, t in network.module.state_dict().items()}


def equal(one, other):
    ours, theirs = state(one), state(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_trainable_network_equals_the_onnx_backbone(name):
    network = load_network(name)
    images = probe_images(VARIANTS[name].image_size)
    with torch.no_grad():
        found = network.module(network.normalised(images)).numpy()
        cut = network.tail(network.stem(network.normalised(images))).numpy()
    assert largest_difference(found, load_backbone(name).features(images)) <= 1e-4
    np.testing.assert_array_equal(cut, found)


@pytest.mark.parametrize("train_from", [None, "layer2", "layer4"])
@pytest.mark.parametrize("method", ["panda", "panda-ewc", "msad"])
def test_all_of_the_tail_moves_and_nothing_else(train_from, method, pixels):
    network = tiny(train_from)
    trained = set(ewc.trained_weights(network))
    first = train_from or "layer3"
    assert trained == {
        name for name, _ in network.module.named_parameters() if "layer" in name and name >= first
    }
    before = state(network)
    if method == "msad":
        losses = contrast(network, pixels, epochs=2)
    else:
        penalty = ewc.Penalty(network) if method == "panda-ewc" else None
        losses = train(network, pixels, penalty=penalty)
    moved = {name for name, t in state(network).items() if not torch.equal(t, before[name])}
    assert moved == trained  # so the statistics of batch norm, which are buffers, have stayed
    assert any("1.weight" in name for name in trained)  # and its scale was trained
    assert not any(module.training for module in network.module.modules())
    assert np.isfinite(losses).all()


def test_the_loss_falls_and_features_come_together(pixels):
    network = tiny()
    outputs = stem_outputs(network, pixels)
    before = tail_features(network, outputs)
    losses = train(network, pixels, epochs=10, lr=1.0)
    after = tail_features(network, outputs)
    centre = before.mean(axis=0)
    assert losses[-2:].mean() < 0.7 * losses[:2].mean()
    assert np.square(after - centre).mean() < 0.7 * np.square(before - centre).mean()


def test_the_losses_by_hand():
    features, centre = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0])
    assert compactness(features, centre).item() == pytest.approx((4 + 16 + 0 + 0) / 2 / 2)
    expected = ((0.6 - 1) ** 2 + 0.8**2 + 0) / 2
    assert compactness(features, centre, unit=True).item() == pytest.approx(expected)
    # around the centre the four views lie east, north, east, west
    shifts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    cosines = np.array([[0, 1, -1], [0, 0, 0], [1, 0, -1], [-1, 0, -1]]) / 0.25  # but with itself
    positive = [1, 2, 0, 1]  # the other view's place among the rest
    by_hand = np.mean(
        [np.log(np.exp(row).sum()) - row[i] for row, i in zip(cosines, positive, strict=True)]
    )
    found = mean_shifted_contrastive(centre + 0.1 * shifts, centre)
    assert found.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_first_step_of_panda_by_hand(pixels):
    """One batch: w - lr * (clipped gradient + weight decay * w)."""
    network, reference = tiny(), tiny()
    few = pixels[:20]
    outputs = torch.tensor(stem_outputs(network, few))
    centre = reference.tail(outputs).detach().mean(dim=0)
    ((reference.tail(outputs) - centre) ** 2).mean().backward()
    weights = ewc.trained_weights(reference)
    norm = torch.stack([w.grad.norm() for w in weights.values()]).norm()
    train(network, few, epochs=1, lr=0.5, clip_norm=1e-3)
    for name, after in ewc.trained_weights(network).items():
        before = weights[name]
        step = before.grad * (1e-3 / norm) + 5e-5 * before
        torch.testing.assert_close(after, before - 0.5 * step, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("angular", [0.0, 3.0])
def test_the_first_loss_of_msad_by_hand(angular, pixels):
    """One batch of two equal views. With the angular centre loss the centre is of length 1."""
    network = tiny()
    outputs = stem_outputs(network, pixels[:20])
    maps = torch.tensor(outputs)
    units = functional.normalize(network.tail(maps).detach())
    centre = units.mean(dim=0)
    centre = centre / centre.norm() if angular else centre
    expected = mean_shifted_contrastive(torch.cat([units, units]), centre)
    expected += angular * 2 * (units - centre).norm(dim=1).square().mean()
    losses = adapt_msad(
        network, outputs, lambda rows: maps[rows].repeat(2, 1, 1, 1), epochs=1, angular=angular
    )
    np.testing.assert_allclose(losses, expected.item(), rtol=1e-5)


def test_cached_outputs_of_the_stem_change_nothing(pixels):
    """The same curve as training in which every batch goes through the whole network."""
    cached, whole = tiny(), tiny()
    losses = train(cached, pixels, epochs=2, seed=4)
    with torch.no_grad():
        centre = whole.module(whole.normalised(pixels)).mean(dim=0)
    optimizer = torch.optim.SGD(
        ewc.trained_weights(whole).values(), lr=0.05, momentum=0.9, weight_decay=5e-5
    )
    expected = []
    torch.manual_seed(4)
    for _ in range(2):
        for rows in torch.randperm(len(pixels)).split(32):
            loss = ((whole.module(whole.normalised(pixels[rows.numpy()])) - centre) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(list(whole.tail.parameters()), 1.0)
            optimizer.step()
            expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["panda", "msad", "msad of kept views"])
def test_equal_seeds_equal_weights(method, pixels):
    def run(seed):
        network = tiny()
        if method == "panda":
            train(network, pixels, seed=seed)
        else:
            contrast(network, pixels, 4 if "views" in method else 0, seed)
        return network

    one, same, other = run(1), run(1), run(2)
    assert equal(one, same)
    assert not equal(one, other)


def test_views_are_drawn_from_torch_and_differ(pixels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, two = (augmented(pixels[0], torch.rand(13)) for _ in range(2))
        torch.manual_seed(0)
        again = augmented(pixels[0], torch.rand(13))
    assert one.shape == pixels[0].shape
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    assert (one != two).any()


def test_kept_views_are_views_and_two_of_an_image_differ(pixels):
    """Each view by hand through the stem; which ones a step takes is told from what it got."""
    network = tiny()
    few, views, drawn = pixels[:5], 3, torch.Generator().manual_seed(7)
    pairs = kept_pairs(network, few, views, seed=7)
    by_hand = np.stack(
        [augmented(image, torch.rand(13, generator=drawn)) for image in few for _ in range(views)]
    )
    with torch.no_grad():
        expected = network.stem(network.normalised(by_hand)).numpy()
    rows = torch.tensor([4, 0, 2] * 40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        got = pairs(rows).numpy()
    gaps = np.abs(got[:, None] - expected).max(axis=(2, 3, 4))  # (240, 15)
    assert gaps.min(axis=1).max() < 1e-5
    image, view = np.divmod(gaps.argmin(axis=1), views)
    np.testing.assert_array_equal(image, np.tile(rows.numpy(), 2))
    taken = view.reshape(2, -1)
    assert (taken[0] != taken[1]).all()
    assert len(set(zip(*taken.tolist(), strict=True))) == views * (views - 1)
    for wrong in (1, -2):
        with pytest.raises(InputError, match=f"views={wrong}: give 2 or more, or 0"):
            kept_pairs(network, few, wrong)


def test_ewc_pulls_towards_the_pretrained_weights(pixels):
    def moved(strength):
        network = tiny()
        start = state(network)
        ones = {n: torch.ones_like(w) for n, w in ewc.trained_weights(network).items()}
        train(network, pixels, epochs=5, penalty=ewc.Penalty(network, ones, strength))
        return sum(float((t - start[n]).square().sum()) for n, t in state(network).items())

    assert moved(1.0) < 0.5 * moved(0.0)


def test_the_penalty_by_hand():
    network = tiny("layer4")
    weights = ewc.trained_weights(network)
    fisher = {name: torch.full_like(w, 3.0) for name, w in weights.items()}
    penalty = ewc.Penalty(network, fisher, strength=10.0)
    assert penalty().item() == 0
    with torch.no_grad():
        weights["layer4.1.bias"] += 2.0  # 24 entries
    assert penalty().item() == pytest.approx(10 / 2 * 3 * 24 * 4)
    uniform = ewc.Penalty(network)
    with torch.no_grad():
        weights["layer4.1.bias"] += 1.0
    assert uniform().item() == pytest.approx(ewc.STRENGTH / 2 * ewc.UNIFORM_FISHER * 24)


def test_the_fisher_diagonal_is_the_mean_of_squared_slopes(pixels, tmp_path):
    network = tiny("layer4")
    outputs, labels = stem_outputs(network, pixels[:6]), [0, 1, 2, 3, 4, 0]
    found = ewc.estimate_fisher(network, outputs, np.array(labels))
    kernel, bias = network.classifier
    weights = ewc.trained_weights(network)
    expected = {name: torch.zeros_like(w) for name, w in weights.items()}
    for maps, label in zip(outputs, labels, strict=True):
        logits = functional.linear(network.tail(torch.tensor(maps[None])), kernel, bias)
        functional.cross_entropy(logits, torch.tensor([label])).backward()
        for name, weight in weights.items():
            expected[name] += weight.grad**2 / 6
            weight.grad = None
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    drawn = ewc.estimate_fisher(network, outputs, seed=1)
    again = ewc.estimate_fisher(network, outputs, seed=1)
    assert all(torch.equal(drawn[n], again[n]) and (drawn[n] >= 0).all() for n in drawn)

    path = tmp_path / "fisher.safetensors"
    ewc.write_fisher(path, found)
    read = ewc.read_fisher(path, network)
    assert all(torch.equal(read[name], found[name]) for name in found)
    with pytest.raises(InputError, match=r"fisher\.safetensors: holds no Fisher .* for layer3"):
        ewc.read_fisher(path, tiny())
    ewc.write_fisher(path, {name: -value - 1 for name, value in found.items()})
    with pytest.raises(InputError, match="below 0"):
        ewc.read_fisher(path, network)


def test_the_saved_network_is_a_backbone(good, tmp_path):
    out = tmp_path / "adapted.onnx"
    network = tiny()
    adapted = adapt(good, out, network=network, epochs=2, lr=0.05, clip_norm=1.0)
    backbone = adapted_backbone(out)
    assert backbone.preprocessing == SMALL
    images = probe_images(32)
    with torch.no_grad():
        expected = network.module(network.normalised(images)).numpy()
    assert largest_difference(backbone.features(images), expected) <= 1e-4
    before = tiny()
    with torch.no_grad():
        initial = before.module(before.normalised(images)).numpy()
    assert largest_difference(expected, initial) > 1e-3
    assert "tiny from layer3 on, by panda, 2 epochs on 40 images, seed 0" in str(backbone.details)
    assert adapted.losses.shape == (2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapted.onnx", "adapted.onnx.json"]


def test_an_embedded_network_is_adapted_saved_and_detects(tmp_path):
    out = tmp_path / "adapted.onnx"
    network = load_network(geometry="whole", train_from="s32b")
    good = [draw(i) for i in range(12)]
    adapt(good, out, network=network, epochs=2, lr=1e-2, clip_norm=0.1)
    backbone = adapted_backbone(str(out))
    assert backbone.preprocessing == Preprocessing(224, geometry="whole")
    images = probe_images(224)
    with torch.no_grad():
        expected = network.module(network.normalised(images)).numpy()
    assert largest_difference(backbone.features(images), expected) <= 1e-4
    assert largest_difference(backbone.features(images), load_backbone().features(images)) > 1e-4
    frozen, whole = adapted_backbone(out, stages=("s16b",)), load_backbone(stages=("s16b",))
    np.testing.assert_array_equal(frozen.features(images), whole.features(images))

    scores = {}
    for operator in ("knn", "knnn"):
        detector = Detector(backbone, operator=operator, k=3).fit(good)
        scores[operator] = [r.score for r in detector.score([draw(99), draw(98, odd=True)])]
    assert all(odd > fine for fine, odd in scores.values())


@pytest.mark.parametrize("method", ["panda", "panda-ewc", "msad", "msad of kept views"])
def test_an_interrupted_adaptation_ends_in_the_same_weights(method, good, tmp_path, monkeypatch):
    method, *kept = method.split(" of ")
    settings = {"method": method, "epochs": 3, "lr": 0.05, "clip_norm": 1.0}
    settings |= {"views": 4} if kept else {}

    def run(out, stop=None):
        network = tiny()
        calls = [0]
        step = torch.optim.SGD.step

        def interrupted(*arguments, **named):
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt
            return step(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", interrupted)
            adapt(good, out, network=network, **settings)
        return network

    defaults = training.train.__kwdefaults__ | {"save_seconds": 0.0}
    monkeypatch.setattr(training.train, "__kwdefaults__", defaults)
    whole = run(tmp_path / "whole.onnx")
    out = tmp_path / "resumed.onnx"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop=3)
    assert not out.exists()
    assert Path(f"{out}.checkpoint").exists()
    with pytest.raises(TrainingError, match=r"resumed\.onnx\.checkpoint: .* another run"):
        adapt(good[:30], out, network=tiny(), **settings)
    if kept:
        with pytest.raises(TrainingError, match="another run: its given is"):
            adapt(good, out, network=tiny(), **settings | {"views": 5})
    assert equal(run(out), whole)
    assert not Path(f"{out}.checkpoint").exists()
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def python(code, *arguments) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for i in range(6):
        Image.fromarray(draw(i)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"this is no picture")
    return folder


def test_the_command_goes_on_after_a_kill(few, tmp_path):
    out, whole = tmp_path / "adapted.onnx", tmp_path / "whole.onnx"
    told = ["--epochs", "2", "--lr", "0.05", "--clip-norm", "0.2", "--seed", "3"]
    killed_after_one_step = """
import os, signal, nnad.training as training
from nnad.cli import main
training.train.__kwdefaults__["save_seconds"] = 0
write = training._write
training._write = lambda *state: [write(*state), os.kill(os.getpid(), signal.SIGKILL)]
main()
"""
    killed = python(killed_after_one_step, "adapt", few, *told, "--out", out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    done = python("from nnad.cli import main; main()", "adapt", few, *told, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "from head on, by panda, 2 epochs on 6 images, seed 3; mean loss of the" in done.stdout
    assert "broken.jpg" in done.stderr
    network = load_network()
    adapt(few, whole, network=network, epochs=2, lr=0.05, clip_norm=0.2, seed=3)
    assert out.read_bytes() == whole.read_bytes()
    assert adapted_backbone(out).fingerprint == adapted_backbone(whole).fingerprint


def test_only_the_adaptation_needs_torch(few, tmp_path):
    save_network(tiny(), tmp_path / "tiny.onnx", "for a test")
    code = """
import sys
sys.modules["torch"] = None
from nnad import Detector, load_backbone
from nnad.cli import main
folder, model = sys.argv[1:]
Detector(load_backbone(f"{model}/tiny.onnx"), operator="knn").fit(folder, cache=False)
sys.argv[1:] = ["adapt", folder, "--out", f"{model}/new.onnx"]
main()
"""
    done = python(code, few, tmp_path)
    assert done.stderr.endswith("nnad: adapt needs torch: pip install 'nnad[torch]'\n")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method='magic'; choose one of panda, panda-ewc, msad"),
        ({"fisher": Path("f.safetensors")}, "fisher: goes with method='panda-ewc'"),
        ({"method": "msad", "unit": True}, "unit: MSAD"),
        ({"method": "msad", "views": 1}, "views=1: give 2 or more"),
        ({"views": 8}, "views, angular: go with method='msad'"),
        ({"angular": 1.0}, "views, angular: go with method='msad'"),
        ({"out": Path("net.pt")}, r"net\.pt: an adapted network is an ONNX file"),
        ({"out": Path("nowhere/net.onnx")}, "not a place where a file can be written"),
        ({"epochs": 0}, "epochs=0"),
        ({"images": []}, "too few good images: 0 images"),
        ({"images": [b"no picture"]}, r"too few good images: 0 images can be read; image\[0\]"),
    ],
)
def test_what_adapt_refuses(changes, message, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"images": good, "out": Path("net.onnx"), "network": tiny()} | changes
    with pytest.raises((BackboneError, InputError), match=message):
        adapt(arguments.pop("images"), arguments.pop("out"), **arguments)


def test_what_is_no_network_to_adapt():
    with pytest.raises(InputError, match="train_from='layer9'; tiny can be trained from one of"):
        tiny("layer9")
    with pytest.raises(InputError, match="leaves nothing to train"):
        tiny("head")
    with pytest.raises(BackboneError, match="'timm:x' cannot be adapted; there are: efficientnet"):
        load_network("timm:x")
    with pytest.raises(InputError, match="weights: goes with torchvision:NAME"):
        load_network(weights="random")
    with pytest.raises(BackboneError, match="has no layer1"):
        resnet(nn.Sequential(nn.Conv2d(3, 4, 3)), "flat", SMALL)

    class Twice(TinyResNet):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.raises(BackboneError, match="is more than its modules one after the other"):
        resnet(Twice(), "twice", SMALL)


def test_a_torchvision_resnet_by_name(monkeypatch):
    """torchvision itself is in tests/backbones."""

    def made(*asked):
        assert asked == ("torchvision", "resnet18", None, "random")
        return TinyResNet(), SMALL, "random"

    monkeypatch.setattr("nnad.torch_networks.torch_network", made)
    network = load_network("torchvision:resnet18", weights="random", geometry="whole")
    assert network.preprocessing == SMALL.changed(geometry="whole")
    assert network.train_from == "layer3"


def test_a_file_in_the_way_stays(tmp_path, good):
    out = tmp_path / "net.onnx"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"net\.onnx: there is a file already"):
        adapt(good, out, network=tiny())
    assert out.read_text() == "mine"
    save_network(tiny(), out, "for a test")
    assert adapted_backbone(out).details["adapted"] == "for a test"
