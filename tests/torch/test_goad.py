"""GOAD: its losses, its score, and what its public code does by mistake."""

import numpy as np
import pytest
import torch
from tiny_baselines import GOOD, check_step, fitted_once, steps, tiny, weights_at_first
from torch import nn

from nnad.baselines.geometric import FAMILY_72, apply
from nnad.baselines.goad import centre_triplet, sq_distances

pytestmark = pytest.mark.usefixtures("few_steps")


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


def test_goads_distances_and_triplet_by_hand():
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 2.0], [2.0, 2.0]]])  # (2, 2, 2)
    centres = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert sq_distances(features, centres).tolist() == [[[1, 5], [5, 1]], [[1, 5], [5, 1]]]
    assert centre_triplet(features, 0.1).item() == 0.0  # 0.1 + 1 - 5 is below 0
    assert centre_triplet(features, 4.5).item() == pytest.approx(0.5)


def test_goads_score_is_that_of_its_centres():
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


def test_the_first_step_of_goad_by_hand():
    few = GOOD[:2]
    margin = 5.0  # of some account: with the paper's, 0.1, all of these lie apart
    baseline = tiny("goad", epochs=1, margin=margin)
    (told,) = steps(baseline, few)
    assert told[0] == "Adam"
    assert told[1].items() >= {"lr": 1e-3, "weight_decay": 0, "betas": (0.9, 0.999)}.items()
    network = weights_at_first(tiny("goad")).train()
    inputs = baseline._inputs(few)
    made = torch.stack([apply(inputs, t, 4) for t in FAMILY_72], dim=1)
    z = network.body(made.flatten(0, 1)).reshape(2, 72, -1)
    own = network.head(z).log_softmax(dim=2)[:, range(72), range(72)]
    centres = z.mean(dim=0)
    behind = []
    for image in z:
        for t, feature in enumerate(image):
            distances = ((feature - centres) ** 2).sum(dim=1)
            nearest = distances[[other for other in range(72) if other != t]].min()
            behind.append((margin + distances[t] - nearest).clamp(min=0))
    loss = -own.mean() + 0.1 * torch.stack(behind).mean() + 10 * (z**2).mean()
    assert 1 < torch.stack(behind).mean() < 4.9
    check_step(baseline, network, loss, torch.optim.Adam(network.parameters(), lr=1e-3))
