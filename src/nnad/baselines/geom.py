"""GEOM (Golan and El-Yaniv, NeurIPS 2018): which of 72 transforms was applied to this image?

A network learns to tell on good images. Under each transform, its softmax outputs on good images
are described by a Dirichlet distribution; an image whose outputs are unlikely is an anomaly:

    score(x) = - 1/72 * sum over transforms T of log Dir(softmax(T(x)); alpha_T)

Weights begin as in GOAD's public code, scaled by the number of outputs; GEOM's scales by inputs.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.baselines.contract import Images
from nnad.baselines.dirichlet import fit_dirichlet, log_clipped, log_likelihood
from nnad.baselines.geometric import FAMILY_72, apply, apply_each
from nnad.baselines.networks import Learn, NetworkBaseline, WideResNet, check_square

_K = len(FAMILY_72)
_PAPER = {
    "depth": 10,
    "widen": 4,
    "shrink": 1,
    "shift": 8,
    "epochs": math.ceil(200 / _K),
    "batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 5e-4,
}


class GEOM(NetworkBaseline):
    """The paper's settings; small has a quarter of its width, half of its pixels a side, one epoch.

    Settings:
        depth, widen: of the wide residual network; 10 and 4.
        shrink: pixels to a side that are averaged into one; 1, so none.
        shift: pixels after that; 8.
        epochs: over all images under all transforms; ceil(200 / 72) = 3.
        batch_size: transformed images a step; 128.
        learning_rate, weight_decay: of Adam; 1e-3 and 5e-4, which adds up to the public code's L2
            penalty.
    """

    name = "geom"
    title = "GEOM"
    presets = {  # noqa: RUF012
        "paper": _PAPER,
        "small": _PAPER | {"widen": 1, "shrink": 2, "shift": 4, "epochs": 1},
    }

    def _build(self) -> nn.Module:
        channels = check_square(self.shape, self.title)
        body = WideResNet(channels, self.settings["depth"], self.settings["widen"])
        network = nn.Sequential(body, nn.Linear(body.dim, _K))
        network.register_buffer("alpha", torch.zeros(_K, _K, dtype=torch.float64))
        return network

    def _train(self, images: Images, learn: Learn) -> None:
        settings = self.settings

        def loss(rows: Tensor) -> Tensor:
            numbers = rows % _K
            inputs = self._inputs(images[(rows // _K).numpy()])
            outputs = self.network(apply_each(inputs, numbers, FAMILY_72, settings["shift"]))
            return functional.cross_entropy(outputs, numbers.to(outputs.device))

        optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
        )
        learn(
            "training",
            optimizer,
            loss,
            len(images) * _K,
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
        )
        self.network.alpha.copy_(torch.from_numpy(self._fitted_alpha(images)))

    def _fitted_alpha(self, images: Images) -> NDArray[np.float64]:
        """(72, 72): a Dirichlet distribution for each transform, from good images."""
        mean, mean_log = np.zeros((_K, _K)), np.zeros((_K, _K))
        with torch.inference_mode():
            for inputs in self._batches(images):
                for number, probabilities in self._softmax(inputs):
                    mean[number] += probabilities.sum(axis=0) / len(images)
                    mean_log[number] += log_clipped(probabilities).sum(axis=0) / len(images)
        return fit_dirichlet(mean, mean_log)

    def _scores(self, inputs: Tensor) -> NDArray[np.float64]:
        alpha = self.network.alpha.cpu().numpy()
        normality = np.zeros(len(inputs))
        for number, probabilities in self._softmax(inputs):
            normality += log_likelihood(alpha[number], log_clipped(probabilities))
        return -normality / _K

    def _softmax(self, inputs: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """For each transform: its number, and the softmax (B, 72) of the transformed images."""
        for number, transform in enumerate(FAMILY_72):
            outputs = self.network(apply(inputs, transform, self.settings["shift"]))
            yield number, outputs.softmax(dim=1).cpu().numpy()
