"""Trained baselines small enough for a test: thin networks, few images; and their steps."""

from functools import cache

import numpy as np
import pytest
import torch

from nnad.baselines import make_baseline

torch.set_num_threads(1)

TINY = {
    "deep-svdd": {"pretraining_epochs": 3, "epochs": 3, "batch_size": 3},
    "geom": {"epochs": 1, "batch_size": 96},
    "goad": {"epochs": 2, "batch_size": 2},
    "mhrot": {"epochs": 2, "batch_size": 54, "learning_rate": 0.02},
}


def pictures(count, seed=0, *, odd=False, channels=3, side=32):
    """(N, H, W, C): a bright disc above the middle, or a bar across."""
    rng = np.random.default_rng([seed, odd])
    y, x = np.mgrid[:side, :side]
    made = rng.normal(90, 8, (count, side, side, channels))
    for picture in made:
        across, down = rng.uniform(-2, 2, 2)
        disc = (x - side / 2 - across) ** 2 + (y - side / 3 - down) ** 2 < (side / 4) ** 2
        picture[np.abs(x - y * rng.uniform(0.5, 1.5)) < 3 if odd else disc] += 80
    return np.clip(made, 0, 255).astype(np.uint8)


GOOD = pictures(5)
TEST = np.concatenate([pictures(2, 1), pictures(2, 2, odd=True)])


def tiny(name, seed=0, **changes):
    return make_baseline(name, "small", seed=seed, **{**TINY.get(name, {}), **changes})


@cache
def fitted_once(name):
    return tiny(name).fit(GOOD)


def weights_at_first(baseline):
    """The network with its random weights, before any training."""
    baseline.shape = GOOD.shape[1:]
    return baseline._seeded(baseline._build)


def steps(baseline, images):
    """Fit; of each step, the kind of optimizer and what it was told."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.optim.Adam, torch.optim.SGD):

            def step(self, closure=None, step=kind.step):
                (group,) = self.param_groups
                taken.append((type(self).__name__, group | {"params": None}))
                return step(self)

            patch.setattr(kind, "step", step)
        baseline.fit(images)
    return taken


def check_step(fitted, network, loss, optimizer):
    """The only step of a fit began at the loss and is the optimizer's on the network."""
    (found,) = fitted.losses["training"]
    assert found == pytest.approx(loss.item(), rel=1e-4)
    before = weights(network)
    loss.backward()
    optimizer.step()
    expected, moved = weights(network) - before, weights(fitted.network) - before
    assert (moved - expected).norm() < 0.02 * expected.norm()


def weights(network):
    return torch.cat([w.detach().flatten() for w in network.parameters()])
