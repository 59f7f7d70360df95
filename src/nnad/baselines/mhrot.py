"""MHRot (Hendrycks et al., NeurIPS 2019, section 4): three heads tell rotation and two shifts.

    score(x) = - sum over 36 transforms and three heads of the probability of what was done

For 224 pixels this follows the public code, but for its attention modules (CBAM) and its random
crops, which need images larger than the network's input. For 32 pixels nothing was published: that
preset is our reconstruction, and its name says so.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.baselines.contract import Images
from nnad.baselines.geometric import FAMILY_36, SHIFTS, TURNS, apply, apply_each
from nnad.baselines.networks import Learn, NetworkBaseline, ResNet18, WideResNet, check_square
from nnad.operators.arguments import check_choice, check_count

_K = len(FAMILY_36)
_HEADS = (len(SHIFTS), len(SHIFTS), len(TURNS))
# (36, 3): what each head should say of a transform
_LABELS = torch.tensor(
    [(SHIFTS.index(t.across), SHIFTS.index(t.down), TURNS.index(t.turn)) for t in FAMILY_36]
)
_PAPER = {
    "network": "resnet18",
    "depth": None,
    "widen": None,
    "shrink": 1,
    "epochs": 5,
    "batch_size": 256,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "flip": True,
}
_RECONSTRUCTION = "32px reconstruction"
_RECONSTRUCTED = {"network": "wrn", "depth": 16, "widen": 4, "batch_size": 128}
_LESS = {"depth": 10, "widen": 1, "shrink": 2, "epochs": 2}


class MHRot(NetworkBaseline):
    """`paper` is for 224 pixels, `32px reconstruction` for 32; `small` is that one with less of it.

    Settings:
        network: `resnet18`, or `wrn` with `depth` and `widen` (16 and 4).
        shrink: pixels to a side that are averaged into one; 1, so none.
        epochs: over all images under all transforms; 5.
        batch_size: transformed images a step; 256 (64 times 4 rotations), 128 with `wrn`.
        learning_rate: of SGD with Nesterov momentum 0.9, falling to 0 by a cosine; 0.1.
        weight_decay: 5e-4.
        flip: whether half of the training images are mirrored, which no head has to tell.

    Shifts are by a quarter of the side: 56 of 224 pixels, 8 of 32.
    """

    name = "mhrot"
    title = "MHRot"
    presets = {  # noqa: RUF012
        "paper": _PAPER,
        _RECONSTRUCTION: _PAPER | _RECONSTRUCTED,
        "small": _PAPER | _RECONSTRUCTED | _LESS,
    }

    def _notes(self) -> list[str]:
        own = [] if self.settings["network"] == "resnet18" else [_RECONSTRUCTION]
        return list(dict.fromkeys([*own, *super()._notes()]))

    def _build(self) -> nn.Module:
        channels = check_square(self.shape, self.title)
        check_choice("network", self.settings["network"], ("resnet18", "wrn"))
        body: ResNet18 | WideResNet
        if self.settings["network"] == "resnet18":
            body = ResNet18(channels)
        else:
            depth, widen = (check_count(key, self.settings[key]) for key in ("depth", "widen"))
            body = WideResNet(channels, depth, widen)
        return nn.Sequential(body, nn.Linear(body.dim, sum(_HEADS)))

    def _train(self, images: Images, learn: Learn) -> None:
        settings = self.settings

        def loss(rows: Tensor) -> Tensor:
            numbers = rows % _K
            inputs = self._inputs(images[(rows // _K).numpy()])
            if settings["flip"]:
                mirrored = torch.rand(len(rows)) < 0.5
                inputs = torch.where(
                    mirrored.to(inputs.device)[:, None, None, None], inputs.flip(3), inputs
                )
            step = inputs.shape[2] // 4
            outputs = self.network(apply_each(inputs, numbers, FAMILY_36, step, repeat_edge=False))
            labels = _LABELS[numbers].to(outputs.device)
            heads = outputs.split(_HEADS, dim=1)
            parts = [functional.cross_entropy(head, labels[:, i]) for i, head in enumerate(heads)]
            return torch.stack(parts).mean()

        items = len(images) * _K
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=settings["learning_rate"],
            momentum=0.9,
            nesterov=True,
            weight_decay=settings["weight_decay"],
        )

        def on_step(step: int, steps: int) -> None:
            fallen = 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = settings["learning_rate"] * fallen

        learn(
            "training",
            optimizer,
            loss,
            items,
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            on_step=on_step,
        )

    def _scores(self, inputs: Tensor) -> NDArray[np.float64]:
        step = inputs.shape[2] // 4
        normality = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
        for transform, labels in zip(FAMILY_36, _LABELS.tolist(), strict=True):
            outputs = self.network(apply(inputs, transform, step, repeat_edge=False))
            for head, label in zip(outputs.split(_HEADS, dim=1), labels, strict=True):
                normality += head.softmax(dim=1)[:, label]
        return np.asarray(-normality.cpu().numpy())
