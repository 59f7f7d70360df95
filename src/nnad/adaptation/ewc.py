"""Elastic weight consolidation: weights that the pretraining's task needs are held where they were.

    penalty = strength * 1/2 * sum over weights of F (w - w0)^2

w0 are the pretrained weights and F is the diagonal of their Fisher information on the task of the
pretraining (Kirkpatrick et al., PNAS 2017; in PANDA, Reiss et al., CVPR 2021, section 3.2, with
strength 1e4). Without data or a file for F, one number stands for all of it, and that is not EWC
but L2-SP (Li, Grandvalet and Davoine, ICML 2018): `UNIFORM` says so wherever it is told.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.adaptation.networks import Network
from nnad.checkpoints import read_checkpoint, without_prefixes
from nnad.errors import InputError
from nnad.files import replacing

STRENGTH = 1e4
UNIFORM_FISHER = 1e-5  # times STRENGTH it is L2-SP's alpha = 0.1
UNIFORM = "L2-SP: a uniform Fisher diagonal, as no file and no images of the pretraining were given"

Fisher = Mapping[str, Tensor]  # name of a trained weight in the network -> as large as the weight


class Penalty:
    """The penalty of trained weights, which are where they should be held when this is made.

    Args:
        network: its tail is what is held.
        fisher: of every trained weight, from `estimate_fisher` or `read_fisher`; None is uniform.
        strength: of the penalty.
    """

    def __init__(
        self, network: Network, fisher: Fisher | None = None, strength: float = STRENGTH
    ) -> None:
        self._weights = trained_weights(network)
        self._start = {name: w.detach().clone() for name, w in self._weights.items()}
        uniform = torch.tensor(UNIFORM_FISHER)
        self._fisher = {
            n: (uniform if fisher is None else fisher[n]).to(w.device)
            for n, w in self._weights.items()
        }
        self._strength = strength

    def __call__(self) -> Tensor:
        """The penalty now, a scalar with a gradient."""
        parts = [
            (self._fisher[name] * (weight - self._start[name]) ** 2).sum()
            for name, weight in self._weights.items()
        ]
        return self._strength / 2 * torch.stack(parts).sum()


def trained_weights(network: Network) -> dict[str, nn.Parameter]:
    """The weights that are trained, by their names in the whole network."""
    return {name: w for name, w in network.module.named_parameters() if w.requires_grad}


def estimate_fisher(
    network: Network,
    outputs: NDArray[np.float32],
    labels: NDArray[Any] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The Fisher diagonal, from images of the task that the network was pretrained on.

    F = mean over images of (d log p(y | x) / dw)^2, with one class y for each image.

    Args:
        network: with a `classifier`.
        outputs: of its stem (N, C, h, w), for images of that task, ImageNet's for the embedded
            networks; see `stem_outputs`.
        labels: (N,) their classes, 0 to K - 1. Without them classes are drawn from what the
            network itself believes, which is the Fisher information's own definition.
        seed: of these draws.

    Raises:
        InputError: the network has no classifier, or there are no images.
    """
    if network.classifier is None:
        raise InputError(f"{network.name}: its classifier is not known; give a file of its Fisher")
    if not len(outputs):
        raise InputError("fisher: no images")
    tail, weights = network.tail, trained_weights(network)
    kernel, bias = (each.to(network.device) for each in network.classifier)
    drawn = torch.Generator().manual_seed(seed)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for i, maps in enumerate(outputs):
        inputs = torch.tensor(maps[None], device=network.device)
        logits = functional.linear(tail(inputs), kernel, bias)[0]  # (K,)
        if labels is None:
            label = int(torch.multinomial(logits.detach().cpu().softmax(0), 1, generator=drawn))
        else:
            label = int(labels[i])
        slopes = torch.autograd.grad(logits.log_softmax(0)[label], list(weights.values()))
        for sum_of_squares, slope in zip(total.values(), slopes, strict=True):
            sum_of_squares += slope**2
    return {name: value.cpu() / len(outputs) for name, value in total.items()}


def write_fisher(path: Path, fisher: Fisher) -> None:
    """Save a Fisher diagonal as safetensors."""
    content = safetensors.torch.save({n: t.contiguous() for n, t in fisher.items()})
    with replacing(path) as file:
        file.write(content)


def read_fisher(path: Path, network: Network) -> dict[str, Tensor]:
    """A Fisher diagonal: one tensor for each trained weight, under its name in the network.

    Args:
        path: safetensors, or a file of `torch.save` that holds tensors and nothing else.
        network: whose weights are trained; tensors of others are left out.

    Raises:
        BackboneError: it cannot be read.
        InputError: a trained weight has none, or one of another shape, or a value below 0.
    """
    own = trained_weights(network)
    found = without_prefixes(read_checkpoint(path)[0], own)
    for name, weight in own.items():
        if name not in found or found[name].shape != weight.shape:
            raise InputError(f"{path}: holds no Fisher of {tuple(weight.shape)} for {name}")
        if not (found[name] >= 0).all():
            raise InputError(f"{path}: the Fisher of {name} is below 0 or no number")
    return {name: found[name].float() for name in own}
