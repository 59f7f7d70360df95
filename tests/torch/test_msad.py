"""MSAD: its objective by hand on two known views of each image."""

import numpy as np
import pytest
import torch
from tiny_network import SMALL, noise, tiny

from nnad.adaptation.adapt import adapt
from nnad.adaptation.pictures import read_pictures

GOOD = noise(20, seed=3)


@pytest.fixture
def known_views(monkeypatch):
    """The two views of an image are itself and its mirror image, whatever the order of calls."""
    seen = {}

    def view(pixels, *draws):
        times = seen[pixels.tobytes()] = seen.get(pixels.tobytes(), 0) + 1
        return pixels if times % 2 else pixels[:, ::-1]

    monkeypatch.setattr("nnad.adaptation.msad.augmented", view)


def units(network, pixels):
    features = network.module(network.normalised(pixels))
    return features / features.norm(dim=1, keepdim=True)


def test_the_first_step_of_msad_by_hand(known_views, tmp_path):
    """One batch of all images: loss, and w - lr * (gradient + weight decay * w)."""
    pixels = read_pictures(GOOD, SMALL).pixels
    reference = tiny()
    centre = units(reference, pixels).mean(dim=0).detach()
    shifted = [units(reference, views) - centre for views in (pixels, pixels[:, :, ::-1].copy())]
    z = torch.cat([part / part.norm(dim=1, keepdim=True) for part in shifted])
    parts = []
    for i in range(40):
        likeness = torch.stack([(z[i] @ z[j] / 0.25).exp() for j in range(40) if j != i])
        parts.append(likeness.sum().log() - z[i] @ z[(i + 20) % 40] / 0.25)
    loss = torch.stack(parts).mean()
    before = [w.detach().clone() for w in reference.tail.parameters()]
    loss.backward()

    network = tiny()
    arguments = {"method": "msad", "epochs": 1, "lr": 0.5}
    done = adapt(GOOD, tmp_path / "net.onnx", network=network, **arguments)
    assert done.losses.shape == (1, 1)
    assert done.losses.item() == pytest.approx(loss.item(), rel=1e-4)
    for old, hand, new in zip(
        before, reference.tail.parameters(), network.tail.parameters(), strict=True
    ):
        torch.testing.assert_close(
            new.detach(), old - 0.5 * (hand.grad + 5e-5 * old), rtol=1e-3, atol=1e-6
        )


def test_its_loss_falls(known_views, tmp_path):
    arguments = {"method": "msad", "epochs": 10, "lr": 0.5}
    losses = adapt(GOOD, tmp_path / "net.onnx", network=tiny(), **arguments).losses
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.05
