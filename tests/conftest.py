"""Shared pictures and models, all made here."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["SCIPY_ARRAY_API"] = "1"  # scikit-learn's own checks then leave none out

import numpy as np
import pytest
from PIL import Image

from nnad import Backbone, Detector, load_backbone


def draw(seed: int, *, odd: bool = False, size: tuple[int, int] = (80, 60)) -> np.ndarray:
    """A (H, W, 3) uint8 picture: a bright disc on noise, or with `odd` a dark bar across it."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    picture = rng.normal(90, 6, (height, width, 3))
    disc = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (height * rng.uniform(0.28, 0.34)) ** 2
    picture[disc] += (110, 80, 20)
    if odd:
        picture[(np.abs(x - y * 1.3) < 9)] = (10, 10, 60)
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Graphs are built anew: a stale one in the user's cache must not pass for the code's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for i in range(12):
        Image.fromarray(draw(i)).save(folder / f"good_{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good pictures, two odd ones and a file that is no picture."""
    folder = tmp_path_factory.mktemp("new")
    for i in range(2):
        Image.fromarray(draw(100 + i)).save(folder / f"good_{i}.png")
        Image.fromarray(draw(200 + i, odd=True)).save(folder / f"odd_{i}.png")
    (folder / "broken.jpg").write_bytes(b"this is not a picture")
    return folder


@pytest.fixture(scope="session")
def detector(good_folder: Path) -> Detector:
    return Detector().fit(good_folder)


@pytest.fixture
def model(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "disc.nnad")
    return tmp_path / "disc.nnad"


@pytest.fixture(scope="module")
def few_steps():
    """GEOM's Dirichlet distributions are fitted roughly; for tests that have torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnad.baselines.dirichlet._STEPS", 30)
        yield
