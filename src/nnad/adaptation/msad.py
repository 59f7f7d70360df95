"""MSAD: mean-shifted contrastive adaptation (Reiss and Hoshen, AAAI 2023, arXiv 2106.03844).

    u = f / |f|,  c = mean of u over the good images before training
    z = (u - c) / |u - c|
    loss = contrastive loss of z over two augmented views of each image, temperature 0.25

The angles are taken around the mean, not around the origin: there good images lie close together
already, and an ordinary contrastive loss would drive them apart.

Every view is another picture, so the outputs of the frozen stem cannot be kept, and each step goes
through the whole network. Batch norm stays in eval mode, as in PANDA. The authors' code can also
draw u to c, scaled to length 1; that is PANDA with `unit` and not done here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn import functional

from nnad.adaptation.networks import Network
from nnad.operators.arguments import check_amount
from nnad.training import identity, train

BATCH_SIZE = 64  # images, each in two views
TEMPERATURE = 0.25
WEIGHT_DECAY = 5e-5
_JITTER = 0.4  # largest relative change of brightness, contrast and saturation
_CENTRE_BATCH = 32


def adapt_msad(
    network: Network,
    pixels: NDArray[np.uint8],
    *,
    epochs: int = 20,
    lr: float = 1e-5,
    clip_norm: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    run: dict[str, Any] | None = None,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Train the network's tail in place.

    Args:
        network: see `load_network`.
        pixels: (N, h, w, 3) of the good images, see `read_pictures`.
        epochs, lr: the public settings for ResNet152; SGD without momentum.
        clip_norm: largest norm of the gradient; none by default.
        seed: of the order of images and of their views; equal ones give equal weights.
        checkpoint, run: see `nnad.training.train`; `run` need not tell the pixels.
        progress: show a bar on a terminal.

    Returns:
        The loss of each step, (S,).

    Raises:
        InputError: an argument is out of range.
        TrainingError: see `nnad.training.train`.
    """
    check_amount("lr", lr)
    stem, tail = network.stem, network.tail

    def features(views: NDArray[np.uint8]) -> Tensor:
        with torch.no_grad():
            maps = stem(network.normalised(views))
        return functional.normalize(tail(maps))

    starts = range(0, len(pixels), _CENTRE_BATCH)
    with torch.no_grad():
        units = [features(pixels[start : start + _CENTRE_BATCH]) for start in starts]
        centre = torch.cat(units).mean(dim=0)  # (D,)

    def loss(rows: Tensor) -> Tensor:
        views = [augmented(pixels[row]) for _ in range(2) for row in rows.tolist()]
        return mean_shifted_contrastive(features(np.stack(views)), centre)

    optimizer = torch.optim.SGD(tail.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    return train(
        tail,
        optimizer,
        loss,
        len(pixels),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        seed=seed,
        on_epoch=lambda _: None,  # in eval mode throughout
        clip_norm=clip_norm,
        checkpoint=checkpoint,
        run=identity(run, pixels),
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
    other = torch.arange(len(units), device=units.device).roll(len(units) // 2)
    return functional.cross_entropy(cosines, other)


def augmented(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) -> another view (h, w, 3), drawn from torch's random numbers.

    As SimCLR's (Chen et al., ICML 2020) and the authors', but for the hue: a part of 20 to 100 % of
    the area with sides of 3:4 to 4:3, mirrored in half of the cases; brightness, contrast and
    saturation changed by up to 40 % in 80 %; grey in 20 %; blurred in 50 %.
    """
    height, width = pixels.shape[:2]
    draw = iter(torch.rand(13).tolist())
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
