"""Deep SVDD, one-class objective (Ruff et al., ICML 2018): good images are drawn to one point.

    score(x) = |f(x) - c|^2,   training: min over f of the mean score of good images

f begins as the encoder of an autoencoder of the good images; c is the mean of f over them then, and
stays. No layer has a bias and batch norm has no affine part: f could otherwise send all to c.
Weights begin as torch has them by default, not as the paper's (Glorot's).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nnad.baselines.contract import Images
from nnad.baselines.networks import Learn, NetworkBaseline
from nnad.errors import InputError

_SLOPE = 0.1  # of the leaky ReLU (section 4.1 of the paper)
_EPS = 1e-4  # of batch norm
_NEAR = 0.1  # entries of the centre nearer to 0 could be reached by weights of 0
_PAPER = {
    "shrink": 1,
    "pretraining_epochs": 350,
    "pretraining_drop": 250,
    "epochs": 150,
    "drop": 50,
    "batch_size": 200,
    "learning_rate": 1e-4,
    "weight_decay": 5e-7,
}


class DeepSVDD(NetworkBaseline):
    """Colour images: 5 x 5 convolutions of 32, 64, 128 channels and D = 128; grey: 8, 4, D = 32.

    Settings:
        shrink: pixels to a side that are averaged into one; 1, so none.
        pretraining_epochs: of the autoencoder; 350.
        pretraining_drop: the epoch from which its learning rate is a tenth; 250.
        epochs, drop: the same of the second stage; 150 and 50.
        batch_size: 200.
        learning_rate, weight_decay: of Adam; 1e-4 and 5e-7.

    Small has half of the pixels to a side, fewer epochs at ten times the learning rate, and smaller
    batches.
    """

    name = "deep-svdd"
    title = "Deep SVDD"
    presets = {  # noqa: RUF012
        "paper": _PAPER,
        "small": {
            "shrink": 2,
            "pretraining_epochs": 20,
            "pretraining_drop": 15,
            "epochs": 20,
            "drop": 15,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "weight_decay": 5e-7,
        },
    }

    network: "Encoder"

    def _build(self) -> nn.Module:
        assert self.shape is not None  # noqa: S101 (set by `fit`)
        height, width, channels = self.shape
        shrink = self.settings["shrink"]
        return Encoder((height // shrink, width // shrink, channels))

    def _train(self, images: Images, learn: Learn) -> None:
        settings, encoder = self.settings, self.network
        size = settings["batch_size"]
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        extremes = [torch.aminmax(self._contrast(part)) for part in parts]
        encoder.low.copy_(torch.stack([part.min for part in extremes]).min())
        encoder.high.copy_(torch.stack([part.max for part in extremes]).max())

        autoencoder = self._seeded(lambda: Autoencoder(encoder))

        def reconstruction(rows: Tensor) -> Tensor:
            inputs = self._inputs(images[rows.numpy()])
            error: Tensor = autoencoder(inputs) - inputs
            return error.square().flatten(1).sum(dim=1).mean()

        epochs, drop = settings["pretraining_epochs"], settings["pretraining_drop"]
        self._stage(learn, "pretraining", autoencoder, reconstruction, len(images), epochs, drop)

        with torch.no_grad():
            outputs = torch.cat([encoder(inputs) for inputs in self._batches(images)])
            encoder.centre.copy_(away_from_zero(outputs.mean(dim=0)))

        def to_centre(rows: Tensor) -> Tensor:
            error: Tensor = encoder(self._inputs(images[rows.numpy()])) - encoder.centre
            return error.square().sum(dim=1).mean()

        epochs, drop = settings["epochs"], settings["drop"]
        self._stage(learn, "training", encoder, to_centre, len(images), epochs, drop)

    def _stage(
        self,
        learn: Learn,
        name: str,
        model: nn.Module,
        loss: Callable[[Tensor], Tensor],
        items: int,
        epochs: int,
        drop: int,
    ) -> None:
        rate = self.settings["learning_rate"]
        optimizer = torch.optim.Adam(
            model.parameters(), lr=rate, weight_decay=self.settings["weight_decay"]
        )

        def on_epoch(epoch: int) -> None:
            model.train()
            optimizer.param_groups[0]["lr"] = rate if epoch < drop else rate / 10

        size = self.settings["batch_size"]
        learn(
            name, optimizer, loss, items, model, epochs=epochs, batch_size=size, on_epoch=on_epoch
        )

    def _body(self) -> nn.Module:
        encoder: nn.Module = self.network
        return encoder

    def _scores(self, inputs: Tensor) -> NDArray[np.float64]:
        distances = (self.network(inputs) - self.network.centre).double().square().sum(dim=1)
        return np.asarray(distances.cpu().numpy())

    def _inputs(self, images: Images) -> Tensor:
        """Bytes (B, H, W, C) -> (B, C, H, W), 0 to 1 on the training images."""
        low, high = self.network.low, self.network.high
        inputs: Tensor = (self._contrast(images) - low) / (high - low).clamp(min=1e-6)
        return inputs

    def _contrast(self, images: Images) -> Tensor:
        """L1 contrast normalisation: each image less its mean, over its mean deviation from it."""
        inputs = torch.from_numpy(images.copy()).to(self.device).permute(0, 3, 1, 2).float() / 255
        inputs = functional.avg_pool2d(inputs, self.settings["shrink"])
        inputs = inputs - inputs.mean(dim=(1, 2, 3), keepdim=True)
        scale = inputs.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        return torch.div(inputs, scale)


class Encoder(nn.Module):
    """The network f: (B, C, H, W) -> (B, D). Buffers: the `centre` (D,), `low` and `high` of the
    contrast of the training images.

    Args:
        shape: (H, W, C) of the images.
    """

    centre: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        height, width, channels = shape
        self.widths: tuple[int, ...] = (8, 4) if channels == 1 else (32, 64, 128)
        self.dim = 32 if channels == 1 else 128
        halvings = 2 ** len(self.widths)
        if min(height, width) < 2 * halvings:
            raise InputError(f"images: {shape}; Deep SVDD needs sides of {2 * halvings} or more")
        before = (channels, *self.widths[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5, padding=2, bias=False)
            for a, b in zip(before, self.widths, strict=True)
        )
        self.norms = nn.ModuleList(_norm(width) for width in self.widths)
        places = (height // halvings) * (width // halvings)
        self.last = nn.Linear(self.widths[-1] * places, self.dim, bias=False)
        self.register_buffer("centre", torch.zeros(self.dim))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.max_pool2d(functional.leaky_relu(norm(conv(x)), _SLOPE), 2)
        out: Tensor = self.last(x.flatten(1))
        return out


class Autoencoder(nn.Module):
    """An encoder and its mirror image, with upsampling for pooling: images -> images in 0..1."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        height, width, channels = encoder.shape
        self.encoder = encoder
        self.first = nn.BatchNorm1d(encoder.dim, eps=_EPS, affine=False)
        stages = len(encoder.widths)
        self.sizes = [(height >> s, width >> s) for s in reversed(range(stages + 1))]
        after = (*reversed(encoder.widths), channels)
        before = (encoder.dim // 16, *after[:-1])
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 5, padding=2, bias=False)
            for a, b in zip(before, after, strict=True)
        )
        self.norms = nn.ModuleList(_norm(width) for width in after[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = functional.leaky_relu(self.first(self.encoder(x)).unflatten(1, (-1, 4, 4)), _SLOPE)
        x = functional.interpolate(x, self.sizes[0])
        for conv, norm, size in zip(self.convs[:-1], self.norms, self.sizes[1:], strict=True):
            x = functional.interpolate(functional.leaky_relu(norm(conv(x)), _SLOPE), size)
        return torch.sigmoid(self.convs[-1](x))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_EPS, affine=False)


def away_from_zero(centre: Tensor) -> Tensor:
    """Entries within 0.1 of 0 are moved to 0.1 or -0.1; an exact 0 to 0.1."""
    moved = torch.where(centre < 0, -_NEAR, _NEAR).to(centre)
    return torch.where(centre.abs() < _NEAR, moved, centre)
