"""MSAD: mean-shifted contrastive adaptation (Reiss and Hoshen, AAAI 2023, arXiv 2106.03844).

    u = f / |f|,  c = mean of u over the good images before training
    z = (u - c) / |u - c|
    loss = contrastive loss of z over two augmented views of each image, temperature 0.25

The angles are taken around the mean, not around the origin: there good images lie close together
already, and an ordinary contrastive loss would drive them apart. The angular centre loss, PANDA's
on directions, can be added, as by the authors' code with a flag: `angular` times the sum over both
views of the mean of |u - c|^2, with c scaled to length 1 in both losses.

As published, each step draws new views, so it goes through the whole network (`new_pairs`). Here
some views of each image can also be drawn once: the frozen stem's outputs for them are kept, and
each step takes two of an image (`kept_pairs`). Batch norm stays in eval mode, as in PANDA.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn import functional

from nnad.adaptation.networks import Network
from nnad.adaptation.panda import compactness
from nnad.adaptation.pictures import stem_outputs_of, tail_features
from nnad.errors import InputError
from nnad.training import train

BATCH_SIZE = 64  # images, each in two views
TEMPERATURE = 0.25
WEIGHT_DECAY = 5e-5
_JITTER = 0.4  # largest relative change of brightness, contrast and saturation
_DRAWS = 13  # random numbers of a view
Pairs = Callable[[Tensor], Tensor]  # rows (B,) -> the stem's maps (2B, C, h, w) of two views


def adapt_msad(
    network: Network,
    outputs: NDArray[np.float32],
    pairs: Pairs,
    *,
    epochs: int = 20,
    lr: float = 1e-5,
    clip_norm: float | None = None,
    angular: float = 0.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    run: dict[str, Any] | None = None,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Train the network's tail in place.

    Args:
        network: see `load_network`.
        outputs: (N, C, h, w) of its stem for the good images, see `stem_outputs`.
        pairs: two views of each, see `new_pairs` and `kept_pairs`.
        epochs, lr: the public settings for ResNet152; SGD without momentum.
        clip_norm: largest norm of the gradient; none by default.
        angular: weight of the angular centre loss; 1 in the authors' code with its flag.
        seed: of the order of images and of the choice of views; equal ones give equal weights.
        checkpoint, run: see `nnad.training.train`.
        progress: show a bar on a terminal.

    Returns:
        The loss of each step, (S,).

    Raises:
        TrainingError: see `nnad.training.train`.
    """
    tail = network.tail
    first = torch.from_numpy(tail_features(network, outputs))
    centre = functional.normalize(first).mean(dim=0)  # (D,)
    if angular:
        centre = functional.normalize(centre, dim=0)

    def loss(rows: Tensor) -> Tensor:
        features = tail(pairs(rows))  # (2B, D)
        value = mean_shifted_contrastive(functional.normalize(features), centre)
        return value + 2 * angular * compactness(features, centre, unit=True) if angular else value

    optimizer = torch.optim.SGD(tail.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
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
        run=run,
        label="MSAD",
        progress=progress,
    )


def mean_shifted_contrastive(
    units: Tensor, centre: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """NT-Xent of features around their centre.

    Args:
        units: (2B, D) of length 1; rows i and B + i are two views of one image.
        centre: (D,).
        temperature: cosines are divided by it.
    """
    shifted = functional.normalize(units - centre)  # (2B, D)
    cosines = shifted @ shifted.T / temperature
    cosines.fill_diagonal_(-torch.inf)  # a view is not compared with itself
    other = torch.arange(len(units)).roll(len(units) // 2)
    return functional.cross_entropy(cosines, other)


def new_pairs(network: Network, pixels: NDArray[np.uint8]) -> Pairs:
    """Two new views of each image in each step, as published.

    Args:
        network: see `load_network`; each view goes through its stem.
        pixels: (N, h, w, 3) of the good images, see `read_pictures`.
    """
    stem = network.stem

    def pairs(rows: Tensor) -> Tensor:
        drawn = [augmented(pixels[i], torch.rand(_DRAWS)) for _ in range(2) for i in rows.tolist()]
        with torch.no_grad():
            maps: Tensor = stem(network.normalised(np.stack(drawn)))
        return maps

    return pairs


def kept_pairs(
    network: Network,
    pixels: NDArray[np.uint8],
    views: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Pairs:
    """Two different ones of a number of views of each image, drawn once and kept.

    Args:
        network: see `load_network`; each view goes through its stem here.
        pixels: (N, h, w, 3) of the good images, see `read_pictures`.
        views: of each image, at least 2.
        seed: of the views.
        progress: show a bar on a terminal.

    Raises:
        InputError: too few views, or the temporary folder has no room for their maps.
    """
    if views < 2:
        raise InputError(f"views={views}: give 2 or more, or 0 for new ones in each step")
    number = len(pixels) * views  # view v of image i is number i * views + v
    draws = torch.rand((number, _DRAWS), generator=torch.Generator().manual_seed(seed))

    def view(place: int) -> NDArray[np.uint8]:
        return augmented(pixels[place // views], draws[place])

    kept = stem_outputs_of(network, number, view, progress=progress)

    def pairs(rows: Tensor) -> Tensor:
        one = torch.randint(views, rows.shape)
        other = (one + torch.randint(1, views, rows.shape)) % views
        places = torch.cat([rows * views + one, rows * views + other])
        return torch.from_numpy(kept[places.numpy()])

    return pairs


def augmented(pixels: NDArray[np.uint8], draws: Tensor) -> NDArray[np.uint8]:
    """(h, w, 3) -> another view (h, w, 3), as 13 random numbers from [0, 1) have it.

    As SimCLR's (Chen et al., ICML 2020) and the authors', but for the hue: a part of 20 to 100 % of
    the area with sides of 3:4 to 4:3, mirrored in half of the cases; brightness, contrast and
    saturation changed by up to 40 % in 80 %; grey in 20 %; blurred in 50 %.
    """
    height, width = pixels.shape[:2]
    draw = iter(draws.tolist())
    area = (0.2 + 0.8 * next(draw)) * height * width
    aspect = (3 / 4) ** (1 - 2 * next(draw))
    across, down = min((area * aspect) ** 0.5, width), min((area / aspect) ** 0.5, height)
    left, top = next(draw) * (width - across), next(draw) * (height - down)
    picture = Image.fromarray(pixels).resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, left + across, top + down)
    )
    if next(draw) < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if next(draw) < 0.8:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = change(picture).enhance(1 + _JITTER * (2 * next(draw) - 1))
    if next(draw) < 0.2:
        picture = picture.convert("L").convert("RGB")
    if next(draw) < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * next(draw)))
    return np.asarray(picture)
