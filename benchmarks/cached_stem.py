"""An epoch of PANDA on cached outputs of the frozen stem, and through the whole network.

    python benchmarks/cached_stem.py [--images N] [--epochs E]

N pictures of noise through EfficientNet-Lite0, on one thread, with the same seed both ways. `whole`
sends each batch through the whole network, the stem without gradients; `cached` computes the stem's
outputs once (`stem_seconds`) and then trains the tail on them. Times are CPU seconds of an epoch:
the median of `whole`, and the mean of `cached`, the features before the first epoch counted in.
`difference` is the largest relative one between the two curves of losses.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from provenance import write_rows
from torch import nn

from nnad.adaptation.adapt import EMBEDDED as CHOSEN
from nnad.adaptation.networks import load_network
from nnad.adaptation.panda import BATCH_SIZE, MOMENTUM, WEIGHT_DECAY, adapt_panda, compactness
from nnad.adaptation.pictures import stem_outputs

SEED = 0
EMBEDDED = CHOSEN["panda"]


def through_the_whole(pixels: Any, train_from: str, epochs: int) -> tuple[list[float], list[float]]:
    """Losses of all steps, and seconds of each epoch."""
    network = load_network(train_from=train_from)
    stem, tail = network.stem, network.tail

    def features(rows: Any) -> torch.Tensor:
        with torch.no_grad():
            maps = stem(network.normalised(pixels[rows]))
        found: torch.Tensor = nn.functional.normalize(tail(maps))
        return found

    with torch.no_grad():
        batches = [features(range(i, i + BATCH_SIZE)) for i in range(0, len(pixels), BATCH_SIZE)]
    centre = torch.cat(batches).mean(dim=0)
    optimizer = torch.optim.SGD(
        tail.parameters(), lr=EMBEDDED["lr"], momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    torch.manual_seed(SEED)
    losses, seconds = [], []
    for _ in range(epochs):
        start = time.process_time()
        for rows in torch.split(torch.randperm(len(pixels)), BATCH_SIZE):
            loss = compactness(features(rows.numpy()), centre, unit=True)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(tail.parameters(), EMBEDDED["clip_norm"])
            optimizer.step()
            losses.append(loss.item())
        seconds.append(time.process_time() - start)
    return losses, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (options.images, 14, 14, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, axis=1).repeat(16, axis=2)  # (N, 224, 224, 3)
    rows = []
    for train_from in ("head", "s32b"):
        start = time.process_time()
        network = load_network(train_from=train_from)
        outputs = stem_outputs(network, pixels)
        stem_seconds = time.process_time() - start
        network = load_network(train_from=train_from)
        start = time.process_time()
        losses = adapt_panda(network, outputs, epochs=options.epochs, seed=SEED, **EMBEDDED)
        cached = (time.process_time() - start) / options.epochs
        expected, whole = through_the_whole(pixels, train_from, options.epochs)
        rows.append(
            {
                "trained from": train_from,
                "images": options.images,
                "whole": round(statistics.median(whole), 2),
                "cached": round(cached, 2),
                "ratio": round(statistics.median(whole) / cached, 1),
                "stem_seconds": round(stem_seconds, 2),
                "difference": float(f"{np.abs(losses / np.array(expected) - 1).max():.1g}"),
            }
        )
    write_rows("cached_stem", rows)


if __name__ == "__main__":
    main()
