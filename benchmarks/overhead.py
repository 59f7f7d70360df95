"""What an operator adds to the embedding of one image, on one bank of real features.

    python benchmarks/overhead.py --fashion-mnist DIR

Embedding: one 448 x 448 JPEG decoded and embedded by the default backbone, one thread. Scoring: one
query at a time against features of N training images of Fashion-MNIST (root transform), search
included, and N = 300 and 5,000. Fitting: leave-one-out scores included, over N embeddings. The
operators take turns with the embedding; medians over the turns.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import FASHION_MNIST_HELP, fashion_mnist_features
from PIL import Image
from provenance import write_rows

from nnad.backbones import load_backbone
from nnad.images import read_image
from nnad.neighbors import Bank
from nnad.operators import make_operator

TURNS, QUERIES = 5, 40
OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "knn": ("knn", {}),
    "knnn lazy": ("knnn", {"storage": "lazy"}),
    "knnn eager": ("knnn", {"storage": "eager"}),
    "local": ("local", {}),
    "global": ("global", {}),
}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def photo() -> bytes:
    """A 448 x 448 JPEG of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((448, 448), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion-mnist", type=Path, required=True, help=FASHION_MNIST_HELP)
    features, queries = fashion_mnist_features(parser.parse_args().fashion_mnist, 5000, QUERIES)
    backbone, picture = load_backbone(), photo()

    def embed() -> None:
        for _ in range(20):
            backbone.embed(read_image(picture))

    embed()
    rows = []
    for count in (300, 5000):
        for label, (name, settings) in OPERATORS.items():
            fit, score, embedding = [], [], []
            for _ in range(TURNS):
                embedding.append(seconds(embed) / 20)
                operator = make_operator(name, **settings)
                bank = Bank(features[:count])

                def calibrate(operator: Any = operator, bank: Bank = bank) -> None:
                    operator.fit(bank).left_out_scores()

                def score_all(operator: Any = operator) -> None:
                    for query in queries:
                        operator.score(query[None])

                fit.append(seconds(calibrate) / count)
                score.append(seconds(score_all) / QUERIES)
            pairs = list(zip(fit, score, embedding, strict=True))
            rows.append(
                {
                    "good_images": count,
                    "operator": label,
                    "embed_ms": f"{1000 * statistics.median(embedding):.2f}",
                    "score_ms": f"{1000 * statistics.median(score):.3f}",
                    "score_over_embed": f"{statistics.median(s / e for _, s, e in pairs):.3f}",
                    "fit_over_embed": f"{statistics.median(f / e for f, _, e in pairs):.3f}",
                }
            )
            print(rows[-1])
    write_rows("overhead", rows)


if __name__ == "__main__":
    main()
