"""GOAD (Bergman and Hoshen, ICLR 2020): is each transformed image near its transform's centre?

A network f learns on good images under 72 transforms: to tell them apart by a linear head, to keep
f(T(x)) nearer to the centre c_T than to other centres, and to stay small. With the centres of all
good images,

    score(x) = - sum over transforms T of log softmax over T' of -|f(T(x)) - c_T'|^2, at T' = T
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.baselines.contract import Images
from nnad.baselines.geometric import FAMILY_72, apply
from nnad.baselines.networks import Learn, NetworkBaseline, WideResNet, check_square

_K = len(FAMILY_72)
_PAPER = {
    "depth": 10,
    "widen": 4,
    "shrink": 1,
    "shift": 8,
    "epochs": 16,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "triplet": 0.1,
    "margin": 0.1,
    "penalty": 10.0,
    "legacy": False,
}


class GOAD(NetworkBaseline):
    """The paper's settings for CIFAR-10; small has a quarter of the width, half of the pixels to a
    side, one epoch.

    Settings:
        depth, widen: of the wide residual network; 10 and 4, so D = 256.
        shrink: pixels to a side that are averaged into one; 1, so none.
        shift: pixels after that; 8.
        epochs: 16.
        batch_size: images a step, each under all 72 transforms; 4.
        learning_rate: of Adam; 1e-3.
        triplet: weight of the centre-triplet loss; 0.1.
        margin: of that loss; 0.1.
        penalty: weight of the mean square of f; 10.
        legacy: do as the public code does by mistake: batch norm is in eval mode from the second
            epoch on, and missing between the convolutions of each block. Its third, centres of the
            last epoch's batches, is not repeated. For comparisons only.
    """

    name = "goad"
    title = "GOAD"
    presets = {  # noqa: RUF012
        "paper": _PAPER,
        "small": _PAPER | {"widen": 1, "shrink": 2, "shift": 4, "epochs": 1},
    }
    switches = {"legacy": "legacy: with two of the public code's mistakes"}  # noqa: RUF012

    def _build(self) -> nn.Module:
        channels = check_square(self.shape, self.title)
        depth, widen, legacy = (self.settings[key] for key in ("depth", "widen", "legacy"))
        network = nn.Module()
        network.body = WideResNet(channels, depth, widen, skip_norm=legacy)
        network.head = nn.Linear(network.body.dim, _K)
        network.register_buffer("centres", torch.zeros(_K, network.body.dim))
        return network

    def _train(self, images: Images, learn: Learn) -> None:
        settings = self.settings

        def loss(rows: Tensor) -> Tensor:
            features = self._features(self._inputs(images[rows.numpy()]))  # (B, 72, D)
            outputs = self.network.head(features).flatten(0, 1)
            numbers = torch.arange(_K, device=outputs.device).repeat(len(rows))
            nearness = centre_triplet(features, settings["margin"])
            total = functional.cross_entropy(outputs, numbers) + settings["triplet"] * nearness
            return torch.add(total, settings["penalty"] * features.square().mean())

        def on_epoch(epoch: int) -> None:
            self.network.train(epoch == 0 or not settings["legacy"])

        learn(
            "training",
            torch.optim.Adam(self.network.parameters(), lr=settings["learning_rate"]),
            loss,
            len(images),
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            on_epoch=on_epoch,
        )
        with torch.no_grad():
            total = sum(self._features(inputs).sum(dim=0) for inputs in self._batches(images))
            self.network.centres.copy_(total / len(images))

    def _body(self) -> nn.Module:
        body: nn.Module = self.network.body
        return body

    def _scores(self, inputs: Tensor) -> NDArray[np.float64]:
        features = self._features(inputs)  # (B, 72, D)
        distances = sq_distances(features, self.network.centres)  # (B, 72, 72)
        logs = functional.log_softmax(-distances.double(), dim=2)
        return np.asarray(-logs.diagonal(dim1=1, dim2=2).sum(dim=1).cpu().numpy())

    def _features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, 72, D) under all transforms."""
        made = torch.stack([apply(inputs, t, self.settings["shift"]) for t in FAMILY_72], dim=1)
        features: Tensor = self.network.body(made.flatten(0, 1))
        return features.reshape(len(inputs), _K, -1)


def sq_distances(features: Tensor, centres: Tensor) -> Tensor:
    """(B, K, D) and (K, D) -> (B, K, K): of the feature of transform i to the centre j."""
    return (features[:, :, None] - centres).square().sum(dim=-1)


def centre_triplet(features: Tensor, margin: float) -> Tensor:
    """Mean over images and transforms of max(0, margin + to the own centre - to the nearest other).

    Centres are those of the batch; distances are squared.

    Args:
        features: (B, K, D).
        margin: 0 or more.
    """
    distances = sq_distances(features, features.mean(dim=0))
    own = distances.diagonal(dim1=1, dim2=2)
    is_own = torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
    nearest_other = distances.masked_fill(is_own, torch.inf).amin(dim=2)
    return (margin + own - nearest_other).clamp(min=0).mean()
