"""How many synthetic near duplicates of real pictures does preflight find, and what else?

Of each set up to 300 pictures, and changed copies of up to 50 of them are put among them. Under
each change stands the share of copies paired with their original. `pairs` counts pairs of the
set's own pictures, where no copy was added: real near duplicates or false ones, which only eyes can
tell (docs/near-duplicates.md). `bursts` is five pictures with thirty frames each, more alike
pictures than each is compared with.

    python benchmarks/near_duplicates.py magnetic_tile DIR crackcv DIR ...
"""

import argparse
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from provenance import write_rows

from nnad.image_files import find_images
from nnad.images import read_image
from nnad.near_duplicates import near_pairs, thumbnail

MOST, COPIES, FRAMES = 300, 50, 30


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def noisy(image: Image.Image, sigma: float, seed: int = 0) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64)
    pixels = pixels + np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def shifted(image: Image.Image, right: int, down: int) -> Image.Image:
    """What comes in at the edge repeats the edge."""
    pixels = np.pad(np.asarray(image), ((down, 0), (right, 0), (0, 0)), mode="edge")
    return Image.fromarray(np.ascontiguousarray(pixels[: image.height, : image.width]))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without this share of width and height, at the left and the top."""
    left, top = round(share * image.width), round(share * image.height)
    return image.crop((left, top, image.width, image.height))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


def brighter(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 90": lambda image: jpeg(image, 90),
    "JPEG 60": lambda image: jpeg(image, 60),
    "brightness x 0.9": lambda image: brighter(image, 0.9),
    "noise of 6 levels": lambda image: noisy(image, 6),
    "size x 0.9": lambda image: scaled(image, 0.9),
    "shift by 1 pixel": lambda image: shifted(image, 1, 0),
    "shift by 3, 2 pixels": lambda image: shifted(image, 3, 2),
    "crop of 2 %": lambda image: cropped(image, 0.02),
    "turn by 1 degree": lambda image: image.rotate(1, Image.Resampling.BICUBIC),
    "second shot": lambda image: jpeg(
        noisy(brighter(shifted(image, image.width // 100, 0), 1.05), 3), 85
    ),
}


def share_found(originals: NDArray[np.float32], copies: NDArray[np.float32], step: int) -> float:
    """Of copies of every `step`-th original."""
    pairs = {tuple(pair) for pair in near_pairs(np.concatenate([originals, copies])).tolist()}
    hits = [(i * step, len(originals) + i) in pairs for i in range(len(copies))]
    return float(np.mean(hits))


def share_of_frames(images: list[Image.Image]) -> float:
    """Frames of five bursts that have a near duplicate."""
    frames = [
        thumbnail(noisy(image, 3, seed)) for image in images[:5] for seed in range(1, FRAMES + 1)
    ]
    others = [thumbnail(image) for image in images[5:]]
    pairs = near_pairs(np.stack(frames + others))
    return float((np.unique(pairs) < len(frames)).sum()) / len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", help="NAME DIR of each set")
    sets = parser.parse_args().sets
    rows = []
    for name, folder in zip(sets[::2], sets[1::2], strict=True):
        files = [path for path, _ in find_images(folder)]
        files = files[:: -(-len(files) // MOST)]
        step = -(-len(files) // COPIES)
        originals = np.stack([thumbnail(read_image(path)) for path in files])
        images = [read_image(path) for path in files[::step]]
        row = {"data": name, "pictures": len(files), "pairs": len(near_pairs(originals))}
        for told, change in CHANGES.items():
            copies = np.stack([thumbnail(change(image)) for image in images])
            row[told] = f"{share_found(originals, copies, step):.2f}"
        rows.append({**row, "bursts": f"{share_of_frames(images):.2f}"})
    write_rows("near_duplicates", rows)


if __name__ == "__main__":
    main()
