"""`adapt`: what it passes on, what a run's checkpoint is compared with, what it tells."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import SMALL, equal, noise, tiny

from nnad import training
from nnad.adaptation import adapted, ewc
from nnad.adaptation.adapt import adapt, usual_epochs
from nnad.adaptation.networks import load_network
from nnad.adaptation.panda import adapt_panda
from nnad.adaptation.pictures import read_pictures, stem_outputs
from nnad.errors import InputError, TrainingError

GOOD = noise(12)
OTHERS = noise(5, seed=1)


class StopError(Exception):
    pass


@pytest.fixture
def stopped(monkeypatch):
    """Each training ends after its first step, which is in the checkpoint."""
    write = training._write

    def stopping(*state):
        write(*state)
        raise StopError

    monkeypatch.setattr(training, "_write", stopping)
    defaults = training.train.__kwdefaults__ | {"save_seconds": 0.0}
    monkeypatch.setattr(training.train, "__kwdefaults__", defaults)


def write_fisher(path, value, network=None):
    weights = ewc.trained_weights(network or tiny("layer2"))
    ewc.write_fisher(path, {name: torch.full_like(w, value) for name, w in weights.items()})
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "panda", "fisher": None}, "run.method is"),
        ({"method": "msad", "fisher": None, "unit": None}, "run.method is"),
        ({"network": tiny(name="other")}, 'run.network is "tiny", here "other"'),
        ({"network": tiny("layer4")}, 'run.train_from is "layer3", here "layer4"'),
        ({"network": tiny(seed=1)}, "run.weights is"),
        ({"images": GOOD[::-1]}, "run.data is"),
        ({"unit": False}, "run.settings.unit is true, here false"),
        ({"unit": None}, "run.unit is true, here false"),
        ({"clip_norm": 1e-3}, "run.settings.clip_norm is 1.0, here 0.001"),
        ({"lr": 0.5}, "run.settings.lr is 0.05, here 0.5"),
        ({"fisher": None}, "run.fisher is"),
        ({"fisher": 3.0}, "run.fisher is"),
        ({"fisher": None, "fisher_images": OTHERS}, "run.fisher is"),
        ({"seed": 1}, "training.seed is 0, here 1"),
        ({"epochs": 3}, "training.epochs is 2, here 3"),
    ],
)
def test_the_checkpoint_of_another_adaptation_is_refused(change, told, tmp_path, stopped):
    out = tmp_path / "net.onnx"
    fisher = write_fisher(tmp_path / "held.safetensors", 2.0)
    given = {"method": "panda-ewc", "fisher": fisher, "lr": 0.05, "clip_norm": 1.0, "unit": True}
    given |= {"images": GOOD, "epochs": 2}

    def run(network=None, *, images, **arguments):
        adapt(images, str(out), network=network or tiny(), **arguments)

    with pytest.raises(StopError):
        run(**given)
    if change.get("fisher"):
        change = {"fisher": write_fisher(tmp_path / "other.safetensors", change["fisher"])}
    with pytest.raises(TrainingError, match=re.escape(f"another run: its {told}")):
        run(**given | change)
    with pytest.raises(StopError):  # its own is taken
        run(**given)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unit": True}, "run.unit is false, here true"),
        ({"clip_norm": 0.5}, "training.clip_norm is 0.001, here 0.5"),
        ({"outputs": OTHERS}, "run.data is"),
    ],
)
def test_panda_itself_tells_runs_apart(change, told, tmp_path, stopped):
    def run(outputs=GOOD[:5], **arguments):
        network = tiny()
        pixels = read_pictures(outputs, SMALL).pixels
        path = tmp_path / "checkpoint"
        adapt_panda(network, stem_outputs(network, pixels), checkpoint=path, **arguments)

    with pytest.raises(StopError):
        run()
    with pytest.raises(TrainingError, match=re.escape(f"another run: its {told}")):
        run(**change)


def test_the_penalty_and_its_fisher_are_used(tmp_path):
    """Plain PANDA, L2-SP, EWC by two files and by images: each told as what it is."""
    light = write_fisher(tmp_path / "light.safetensors", 1e-4)
    heavy = write_fisher(tmp_path / "heavy.safetensors", 1e-3)
    ways = {
        "settings as published but lr 0.05, clip_norm 1.0, seed": {"method": "panda"},
        ewc.UNIFORM: {},
        "(Fisher diagonal of the file light.safetensors)": {"fisher": str(light)},
        "(Fisher diagonal of the file heavy.safetensors)": {"fisher": heavy},
        "(Fisher diagonal estimated from 5 images)": {"fisher_images": OTHERS},
    }
    networks = []
    for number, (told, way) in enumerate(ways.items()):
        arguments = {"method": "panda-ewc", "epochs": 3, "lr": 0.05, "clip_norm": 1.0} | way
        done = adapt(GOOD, tmp_path / f"{number}.onnx", network=tiny(), **arguments)
        assert told in done.told
        networks.append(done.network)
    for number, one in enumerate(networks):
        assert not any(equal(one, other) for other in networks[number + 1 :])
    start, (_, _, held, more, _) = tiny(), networks

    def moved(network):
        ours, first = ewc.trained_weights(network), ewc.trained_weights(start)
        return sum((ours[name] - first[name]).square().sum().item() for name in first)

    assert moved(more) < moved(held) < moved(networks[0])


def test_embedded_networks_have_settings_of_their_own(tmp_path, monkeypatch):
    asked = []

    def seen(network, outputs, **arguments):
        asked.append({key: arguments.get(key) for key in ("lr", "clip_norm", "unit", "epochs")})
        raise StopError

    monkeypatch.setattr("nnad.adaptation.adapt.adapt_panda", seen)
    for network, changes in (
        (load_network(), {}),
        (load_network(), {"lr": 0.01, "unit": False, "method": "panda-ewc"}),
        (tiny(), {}),
    ):
        with pytest.raises(StopError):
            adapt(GOOD[:2], tmp_path / "net.onnx", network=network, **changes)
    assert asked == [
        {"lr": 0.1, "clip_norm": 0.3, "unit": True, "epochs": 15},
        {"lr": 0.01, "clip_norm": 0.3, "unit": False, "epochs": 50},
        {"lr": None, "clip_norm": None, "unit": None, "epochs": 15},
    ]


def test_a_run_without_settings_is_told_as_published(tmp_path):
    done = adapt(GOOD, tmp_path / "net.onnx", network=tiny(), epochs=1)
    assert done.told == (
        "tiny from layer3 on, by panda, 1 epoch on 12 images, settings as published, seed 0"
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_between_network_and_sidecar_can_go_on(overwrite, tmp_path, monkeypatch):
    def run(out):
        adapt(GOOD, out, network=tiny(), epochs=2, lr=0.1, clip_norm=1.0, overwrite=overwrite)

    out, sidecar = tmp_path / "net.onnx", tmp_path / "net.onnx.json"
    run(tmp_path / "whole.onnx")
    if overwrite:
        adapted.save_network(tiny("layer4"), out, "before")
    calls = []

    def killed(path, replacing=adapted.replacing):
        calls.append(path)
        if len(calls) == 2:
            raise StopError
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(adapted, "replacing", killed)
        with pytest.raises(StopError):
            run(out)
    assert sidecar.exists() and not out.exists()  # never an old network with the new sidecar
    adapted.check_output(out)  # as the command asks before it loads anything
    run(out)
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert not Path(f"{out}.checkpoint").exists()
    with pytest.raises(InputError, match=r"net\.onnx: there is a file already"):
        adapted.check_output(out)


@pytest.mark.parametrize(("change", "told"), [({"lr": -1}, "lr=-1"), ({"lr": "fast"}, "lr='fast'")])
@pytest.mark.parametrize("method", ["panda", "msad"])
def test_wrong_steps_are_refused(method, change, told, tmp_path):
    with pytest.raises(InputError, match=told):
        adapt(GOOD[:2], tmp_path / "net.onnx", method=method, network=tiny(), **change)
    with pytest.raises(InputError, match="clip_norm=-1"):
        adapt(GOOD[:2], tmp_path / "net.onnx", method=method, network=tiny(), clip_norm=-1)
    assert not list(tmp_path.iterdir())


def test_other_pictures_for_the_fisher_give_another_run(tmp_path, stopped):
    def run(images):
        out = tmp_path / "net.onnx"
        adapt(GOOD, out, network=tiny(), method="panda-ewc", fisher_images=images, epochs=1)

    with pytest.raises(StopError):
        run(OTHERS)
    with pytest.raises(TrainingError, match=r"its run\.fisher is"):
        run(OTHERS[:4])


def test_epochs_are_fewer_for_many_images_on_embedded_networks():
    counts = (10, 300, 320, 640, 800, 4800, 60_000)
    lite = [usual_epochs("panda", "efficientnet-lite0", n) for n in counts]
    assert lite == [15, 15, 15, 8, 6, 1, 1]
    lite = [usual_epochs("msad", "efficientnet-lite0", n) for n in counts]
    assert lite == [20, 10, 9, 5, 4, 1, 1]
    assert {usual_epochs("panda", "torchvision:resnet152", n) for n in counts} == {15}
    assert {usual_epochs("panda-ewc", "efficientnet-lite0", n) for n in counts} == {50}


def test_pictures_that_are_all_the_same_are_refused(tmp_path):
    grey = np.full((40, 40, 3), 128, np.uint8)
    with pytest.raises(InputError, match="to the network they are all the same picture"):
        adapt([grey] * 5, tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
