"""Deep SVDD: its networks, its contrast, its two stages."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_baselines import GOOD, fitted_once, steps, tiny, weights_at_first
from torch import nn

from nnad.baselines.deep_svdd import Autoencoder, DeepSVDD, away_from_zero
from nnad.errors import InputError

pytestmark = pytest.mark.usefixtures("few_steps")


def test_deep_svdds_centre_keeps_away_from_zero():
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


def test_deep_svdds_contrast():
    baseline = fitted_once("deep-svdd")
    inputs = baseline._inputs(GOOD)
    assert inputs.min().item() == pytest.approx(0, abs=1e-6)
    assert inputs.max().item() == pytest.approx(1, abs=1e-6)
    brighter = (GOOD // 2 + 20).astype(np.uint8)
    contrast = baseline._contrast(GOOD // 2 * 2)
    torch.testing.assert_close(baseline._contrast(brighter), contrast, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(contrast.abs().mean(dim=(1, 2, 3)), torch.ones(len(GOOD)))
    assert torch.isfinite(baseline._contrast(np.full_like(GOOD, 7))).all()


def test_images_that_are_too_small():
    with pytest.raises(InputError, match="needs sides of 16 or more"):
        tiny("deep-svdd").fit(GOOD[:, :12, :12])


def test_the_stages_of_deep_svdd_by_hand(tmp_path):
    """One batch an epoch: the first loss of each stage; the second begins where the first ended."""
    baseline = tiny("deep-svdd", batch_size=5, pretraining_drop=2, drop=1)
    taken = [(kind, told["lr"], told["weight_decay"]) for kind, told in steps(baseline, GOOD)]
    rates = [1e-3, 1e-3, 1e-4, 1e-3, 1e-4, 1e-4]
    assert taken == [("Adam", pytest.approx(rate), 5e-7) for rate in rates]

    inputs = baseline._inputs(GOOD)
    encoder = weights_at_first(tiny("deep-svdd"))
    first = tiny("deep-svdd")._seeded(lambda: Autoencoder(encoder)).train()
    errors = ((first(inputs) - inputs) ** 2).sum(dim=(1, 2, 3))
    assert baseline.losses["pretraining"][0] == pytest.approx(errors.mean().item(), rel=1e-4)

    again = tiny("deep-svdd", batch_size=5, pretraining_drop=2, drop=1)
    again.fit(GOOD, checkpoints=str(tmp_path / "new"))
    kept = load_file(tmp_path / "new" / "pretraining.safetensors")
    mark = "model/encoder."
    state = {key.removeprefix(mark): kept[key] for key in kept if key.startswith(mark)}
    assert not torch.equal(state["convs.0.weight"], encoder.convs[0].weight)
    encoder.load_state_dict(state)
    with torch.no_grad():
        centre = away_from_zero(encoder.eval()(inputs).mean(dim=0))
        distances = ((encoder.train()(inputs) - centre) ** 2).sum(dim=1)
    torch.testing.assert_close(again.network.centre, centre)
    assert again.losses["training"][0] == pytest.approx(distances.mean().item(), rel=1e-4)
