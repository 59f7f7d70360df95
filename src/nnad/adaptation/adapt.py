"""Good images -> an adapted network, saved as a backbone: what `nnad adapt` does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nnad.adaptation import ewc
from nnad.adaptation.adapted import check_output, save_network
from nnad.adaptation.msad import adapt_msad, kept_pairs, new_pairs
from nnad.adaptation.networks import Network, load_network
from nnad.adaptation.panda import adapt_panda
from nnad.adaptation.pictures import read_pictures, stem_outputs
from nnad.efficientnet import VARIANTS
from nnad.errors import InputError, counted
from nnad.images import Source
from nnad.results import Result
from nnad.training import digest

METHODS = {"panda": 15, "panda-ewc": 50, "msad": 20}  # and the papers' epochs
# what moves the embedded networks, chosen in benchmarks/panda.py; others take the papers'
_PANDA: dict[str, Any] = {"lr": 0.1, "clip_norm": 0.3, "unit": True}
EMBEDDED: dict[str, dict[str, Any]] = {
    "panda": _PANDA,
    "panda-ewc": _PANDA,
    "msad": {"lr": 0.3, "angular": 3.0, "views": 8, "epochs": 10},
}


class Adapted(NamedTuple):
    """What came of an adaptation.

    Attributes:
        network: in torch, adapted.
        losses: (epochs, S) of each step.
        told: how it was adapted.
        names: of the N good images.
        skipped: what could not be read.
    """

    network: Network
    losses: NDArray[np.float64]
    told: str
    names: list[str]
    skipped: tuple[Result, ...]

    @property
    def first_and_last(self) -> tuple[float, float]:
        """The mean loss of the first epoch and of the last."""
        return float(self.losses[0].mean()), float(self.losses[-1].mean())


def adapt(
    images: Source | Iterable[Source],
    out: Path,
    *,
    method: str = "panda",
    network: Network | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    clip_norm: float | None = None,
    unit: bool | None = None,
    views: int | None = None,
    angular: float | None = None,
    fisher: Path | None = None,
    fisher_images: Source | Iterable[Source] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Adapted:
    """Adapt a network to good images and save it as an ONNX file with its sidecar.

    The last epoch is what is saved. A run that was killed goes on from its checkpoint when it is
    started again with the same arguments, to the same weights bit for bit; the checkpoint is
    removed when the network has been saved.

    Args:
        images: see `nnad.Detector.fit`.
        out: `FILE.onnx`; for `nnad.load_backbone` and `nnad fit --backbone`.
        method: `panda`, `panda-ewc` or `msad`.
        network: see `load_network`; `efficientnet-lite0` by default. It is trained in place.
        epochs: 15 by default, 50 for `panda-ewc`, 20 for `msad`, 10 with the embedded networks.
        lr, clip_norm, unit, angular: see `adapt_panda` and `adapt_msad`. By default they are
            `EMBEDDED` for the embedded networks, which the papers' hardly move, and else the
            papers'.
        views: for `msad`, so many of each image are drawn once, and each step takes two of them,
            see `nnad.adaptation.msad.kept_pairs`; 0: new ones in each step, as published, through
            the whole network. 8 by default for the embedded networks, else 0.
        fisher: for `panda-ewc`, a file, see `nnad.adaptation.ewc.read_fisher`.
        fisher_images: or images of the pretraining's task to estimate it from. Without either the
            Fisher diagonal is uniform, which is L2-SP and told as such.
        seed: equal ones give equal weights, on the same machine with as many threads.
        checkpoint: `FILE.onnx.checkpoint` by default.
        overwrite: replace the file that is there.
        progress: show bars on a terminal.

    Raises:
        BackboneError: the network cannot be had or exported.
        InputError: an argument is wrong, or fewer than two images can be read.
        TrainingError: a loss is not finite, or the checkpoint is another run's.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}; choose one of {', '.join(METHODS)}")
    if method != "panda-ewc" and (fisher is not None or fisher_images is not None):
        raise InputError("fisher: goes with method='panda-ewc'")
    if method == "msad" and unit is not None:
        raise InputError("unit: MSAD compares directions anyway; it goes with panda")
    if method != "msad" and (views, angular) != (None, None):
        raise InputError("views, angular: go with method='msad'")
    check_output(out, overwrite=overwrite)
    network = network or load_network()
    checkpoint = checkpoint or Path(f"{out}.checkpoint")
    pictures = read_pictures(images, network.preprocessing, progress=progress)
    chosen: dict[str, Any] = {
        "epochs": epochs,
        "lr": lr,
        "clip_norm": clip_norm,
        "unit": unit,
        "views": views,
        "angular": angular,
    }
    given = {key: value for key, value in chosen.items() if value is not None}
    if network.name in VARIANTS:
        given = EMBEDDED[method] | given
    epochs = given.pop("epochs", METHODS[method])
    views = given.pop("views", 0)
    settings: dict[str, Any] = {
        **given,
        "epochs": epochs,
        "seed": seed,
        "checkpoint": checkpoint,
        "progress": progress,
        "run": {
            "method": method,
            "network": network.name,
            "train_from": network.train_from,
            "weights": digest(*(t.numpy() for t in network.module.state_dict().values())),
            "images": digest(pictures.pixels),
            "given": {**given, "views": views} if method == "msad" else given,
        },
    }
    told = f"by {method}, {counted(epochs, 'epoch')} on {counted(len(pictures.names), 'image')}"
    outputs = stem_outputs(network, pictures.pixels, progress=progress)
    if method == "msad":
        pairs = new_pairs(network, pictures.pixels)
        if views:
            told += f", {views} views of each"
            pairs = kept_pairs(network, pictures.pixels, views, seed=seed, progress=progress)
        losses = adapt_msad(network, outputs, pairs, **settings)
    else:
        penalty = None
        if method == "panda-ewc":
            diagonal = _fisher(network, fisher, fisher_images, seed, progress)
            penalty = ewc.Penalty(network, diagonal)
            settings["run"]["fisher"] = _digest(diagonal)
            told += f" ({ewc.UNIFORM})" if diagonal is None else ""
        losses = adapt_panda(network, outputs, penalty=penalty, **settings)
    told = f"{network.name} from {network.train_from} on, {told}, seed {seed}"
    save_network(network, out, told)
    checkpoint.unlink(missing_ok=True)
    losses = losses.reshape(epochs, -1)
    return Adapted(network, losses, told, pictures.names, pictures.skipped)


def _fisher(
    network: Network,
    path: Path | None,
    images: Source | Iterable[Source] | None,
    seed: int,
    progress: bool,
) -> dict[str, Tensor] | None:
    if path is not None and images is not None:
        raise InputError("fisher: give a file or images, not both")
    if path is not None:
        return ewc.read_fisher(path, network)
    if images is None:
        return None
    pixels = read_pictures(images, network.preprocessing, progress=progress).pixels
    outputs = stem_outputs(network, pixels, progress=progress)
    return ewc.estimate_fisher(network, outputs, seed=seed)


def _digest(diagonal: dict[str, Tensor] | None) -> str:
    return "uniform" if diagonal is None else digest(*(t.numpy() for t in diagonal.values()))
