"""How long PANDA should train the embedded network where there are many good images.

    python benchmarks/panda_epochs.py --fashion-mnist DIR

Official training split only: 5,000 images of a class to learn from, 500 more and 120 of each other
class to score. AUROC x 100 by k-NN (k = 2) before training and after each of some epochs, with the
settings of `nnad.adaptation.adapt.EMBEDDED`, which were chosen with 300 images of CIFAR-10 and 15
epochs: 150 steps. An epoch is 157 steps here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from auto import auroc
from datasets import FASHION_MNIST_HELP, fashion_mnist
from numpy.typing import NDArray
from provenance import write_rows

from nnad.adaptation.adapt import EMBEDDED
from nnad.adaptation.networks import load_network
from nnad.adaptation.panda import adapt_panda
from nnad.adaptation.pictures import read_pictures, stem_outputs, tail_features
from nnad.neighbors import Bank
from nnad.operators import make_operator
from nnad.transforms import fit_transform

CLASSES = (0, 6, 8)
EPOCHS = (0, 1, 4)
GOOD, HELD_OUT, ODD = 5000, 500, 120
Array = NDArray[Any]


def maps_of(images: Sequence[Array]) -> Array:
    network = load_network()
    return stem_outputs(network, read_pictures(images, network.preprocessing).pixels)


def measured(parts: Sequence[Array], epochs: int) -> dict[str, float]:
    network = load_network()
    if epochs:
        adapt_panda(network, parts[0], epochs=epochs, **EMBEDDED)
    train, good, odd = (tail_features(network, part) for part in parts)
    found = {}
    for name in ("raw", "root", "l2"):
        transform = fit_transform(name, train)
        knn = make_operator("knn").fit(Bank(transform(train)))
        found[name] = round(auroc(knn.score(transform(np.vstack([good, odd]))), len(good)), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    arguments = parser.parse_args()
    images, labels = fashion_mnist(arguments.fashion_mnist, "train")
    rows = []
    for number in CLASSES:
        own = np.flatnonzero(labels == number)
        odd = [np.flatnonzero(labels == other)[-ODD:] for other in range(10) if other != number]
        chosen = own[:GOOD], own[GOOD : GOOD + HELD_OUT], np.concatenate(odd)
        parts = [maps_of(list(images[part])) for part in chosen]
        for epochs in EPOCHS:
            rows.append({"class": number, "epochs": epochs, **measured(parts, epochs)})
            print(rows[-1], flush=True)
    write_rows("panda_epochs", rows)


if __name__ == "__main__":
    main()
