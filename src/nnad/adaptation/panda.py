"""PANDA: features of good images are drawn to the mean they had before (Reiss et al., CVPR 2021).

    loss = mean over images of |f(x) - c|^2 / D,  c = mean of the features before training, fixed

SGD with momentum, short steps by a bound on the gradient's norm, batch norm in eval mode, no
augmentation, the last epoch. Against collapse to one point: few epochs (early stopping), or a
penalty that holds the weights (`nnad.adaptation.ewc`) and more of them.

Nothing is augmented and the stem is frozen, so training reads outputs of the stem made once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nnad.adaptation.networks import Network
from nnad.adaptation.pictures import tail_features
from nnad.operators.arguments import check_amount
from nnad.training import identity, train

BATCH_SIZE = 32
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-5


def adapt_panda(
    network: Network,
    outputs: NDArray[np.float32],
    *,
    epochs: int = 15,
    lr: float = 1e-2,
    clip_norm: float = 1e-3,
    unit: bool = False,
    penalty: Callable[[], Tensor] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    run: dict[str, Any] | None = None,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Train the network's tail in place.

    Args:
        network: see `load_network`.
        outputs: (N, C, h, w) of its stem for the good images, see `stem_outputs`.
        epochs: 15 is the paper's early stopping, 50 its number with EWC.
        lr, clip_norm: learning rate, and largest norm of the gradient; the paper's for ResNet152
            by default.
        unit: scale features to length 1 before the loss, which is then not divided by D: for
            detectors that compare directions only.
        penalty: added to each step's loss, see `nnad.adaptation.ewc.Penalty`.
        seed: of the order of images; equal ones give equal weights.
        checkpoint, run: see `nnad.training.train`; `run` need not tell `unit`, nor the outputs.
        progress: show a bar on a terminal.

    Returns:
        The loss of each step, penalty included, (S,).

    Raises:
        InputError: an argument is out of range.
        TrainingError: see `nnad.training.train`.
    """
    check_amount("lr", lr)
    told = identity(run, outputs) | {"unit": unit}
    tail, device = network.tail, network.device
    first = torch.from_numpy(tail_features(network, outputs)).to(device)
    centre = (functional.normalize(first) if unit else first).mean(dim=0)  # (D,)

    def loss(rows: Tensor) -> Tensor:
        features = tail(torch.from_numpy(outputs[rows.numpy()]).to(device))  # (B, D)
        value = compactness(features, centre, unit=unit)
        return value if penalty is None else value + penalty()

    optimizer = torch.optim.SGD(
        tail.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    return train(
        tail,
        optimizer,
        loss,
        len(outputs),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        on_epoch=lambda _: None,  # in eval mode throughout
        clip_norm=clip_norm,
        checkpoint=checkpoint,
        run=told,
        label="PANDA",
        progress=progress,
    )


def compactness(features: Tensor, centre: Tensor, *, unit: bool = False) -> Tensor:
    """Mean over features (B, D) of |f - c|^2 / D; with `unit` of |f / |f| - c|^2."""
    if unit:
        return (functional.normalize(features) - centre).square().sum(dim=1).mean()
    return (features - centre).square().mean()
