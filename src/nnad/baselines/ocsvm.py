"""One-class SVM (Schölkopf et al., 2001) on raw pixels, as in DN2's Table 1, or on features.

    score(x) = rho - sum over support vectors s of a_s exp(-gamma |x - s|^2)

The papers' figures come from a search over nu and gamma whose winner is chosen by the test set's
AUROC. No user has that: by default both are fixed, and the search needs `hindsight=True`.
"""

from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.svm import OneClassSVM

from nnad.backbones import Backbone, load_backbone
from nnad.baselines.contract import Arrays, Baseline, Images, check_images
from nnad.errors import ImageError, InputError
from nnad.features import extract
from nnad.image_files import find_images
from nnad.operators.arguments import check_amount
from nnad.transforms import root

NUS = tuple(round(0.1 * i, 1) for i in range(1, 10))
GAMMAS = tuple(2.0**i for i in range(-7, 3))
_ROWS = 1000  # scored at a time
_SETTINGS = {
    "features": False,
    "nu": 0.1,
    "gamma": None,
    "backbone": "efficientnet-lite0",
    "hindsight": False,
    "most": None,
}


class OCSVM(Baseline):
    """Scikit-learn's `OneClassSVM` with the kernel exp(-gamma |x - y|^2).

    Settings:
        features: work on features of a backbone under the root transform; by default on pixels as
            numbers in [-1, 1].
        nu: the share of good images outside; 0.1.
        gamma: of the kernel; None is 1 / (D * variance of the training vectors).
        backbone: a name, for features.
        hindsight: `fit` takes test images and labels and keeps the nu of 0.1..0.9 and gamma of
            2^-7..2^2 with the highest AUROC on them. That is how the papers' figures were made; it
            is not what a user would get, and `full_title` says so.
        most: training images that are used, drawn at random; None is all. 1,000 when small.

    Attributes: `nu` and `gamma` as used.
    """

    name = "ocsvm"
    title = "OC-SVM"
    presets = {"paper": _SETTINGS, "small": _SETTINGS | {"most": 1000}}  # noqa: RUF012
    switches = {  # noqa: RUF012
        "features": "on features",
        "hindsight": "hindsight: chosen by the test labels",
    }

    def __init__(
        self, preset: str = "paper", *, seed: int = 0, device: str = "cpu", **changes: Any
    ) -> None:
        super().__init__(preset, seed=seed, device=device, **changes)
        nu, gamma = self.settings["nu"], self.settings["gamma"]
        if not 0 < nu <= 1:
            raise InputError(f"nu={nu!r}; expected a number above 0, at most 1")
        if gamma is not None and not check_amount("gamma", gamma) > 0:
            raise InputError(f"gamma={gamma!r}; expected a number above 0, or None")

    def fit(
        self,
        images: Images,
        *,
        checkpoints: str | Path | None = None,  # noqa: ARG002 (a fit is quick)
        progress: bool = True,  # noqa: ARG002
        test_images: Images | None = None,
        test_labels: NDArray[Any] | None = None,
    ) -> Self:
        """See `Baseline.fit`; with hindsight alone, also test images and labels (1 is odd)."""
        hindsight = self.settings["hindsight"]
        if hindsight != (test_images is not None and test_labels is not None):
            raise InputError(
                "hindsight=True needs test_images and test_labels"
                if hindsight
                else "test_images, test_labels: only with hindsight=True, see OCSVM"
            )
        images = check_images(images, least=2)
        most = self.settings["most"]
        if most is not None and len(images) > most:
            images = images[np.random.default_rng(self.seed).permutation(len(images))[:most]]
        train = self._vectors(images)
        self.nu = float(self.settings["nu"])
        self.gamma = float(self.settings["gamma"] or 1 / (train.shape[1] * (train.var() or 1.0)))
        if test_images is not None and test_labels is not None:
            test = self._vectors(check_images(test_images))
            self.nu, self.gamma = _best_on_test(train, test, test_labels)
        svm = OneClassSVM(nu=self.nu, gamma=self.gamma).fit(train)
        self._supports = svm.support_vectors_  # (S, D)
        self._coefficients = svm.dual_coef_[0]  # (S,)
        self._rho = -svm.intercept_  # (1,)
        self.shape = images.shape[1:]
        return self

    def score(self, images: Images) -> NDArray[np.float64]:
        """See `Baseline.score`: minus scikit-learn's `decision_function`."""
        images = self._check_new(images)
        scores = np.empty(len(images))
        for start in range(0, len(images), _ROWS):
            vectors = self._vectors(images[start : start + _ROWS])
            kernel = np.exp(
                -self.gamma * euclidean_distances(vectors, self._supports, squared=True)
            )
            scores[start : start + _ROWS] = self._rho - kernel @ self._coefficients
        return scores

    @cached_property
    def _backbone(self) -> Backbone:
        return load_backbone(self.settings["backbone"])

    def _vectors(self, images: Images) -> NDArray[np.float64]:
        """Images (N, H, W, C) -> (N, D)."""
        if not self.settings["features"]:
            return images.reshape(len(images), -1) / 127.5 - 1
        found = extract(find_images(images), self._backbone)
        features = []
        for _, feature in found:
            if isinstance(feature, ImageError):
                raise feature
            features.append(feature)
        return root(np.stack(features)).astype(np.float64)

    def _state(self) -> Arrays:
        made_by = self._backbone.fingerprint if self.settings["features"] else ""
        return {
            "fingerprint": np.frombuffer(bytes.fromhex(made_by), np.uint8),
            "supports": self._supports,
            "coefficients": self._coefficients,
            "rho": self._rho,
            "chosen": np.array([self.nu, self.gamma]),
        }

    def _restore(self, state: Arrays) -> None:
        if self.settings["features"]:
            self._backbone.check_same({"fingerprint": state["fingerprint"].tobytes().hex()})
        self._supports, self._coefficients = state["supports"], state["coefficients"]
        self._rho = state["rho"]
        self.nu, self.gamma = state["chosen"].tolist()


def _best_on_test(
    train: NDArray[np.float64], test: NDArray[np.float64], labels: NDArray[Any]
) -> tuple[float, float]:
    """The (nu, gamma) whose AUROC on the test set is highest; the first of equals."""
    within = euclidean_distances(train, squared=True)
    across = euclidean_distances(test, train, squared=True)

    def auroc(chosen: tuple[float, float]) -> float:
        nu, gamma = chosen
        svm = OneClassSVM(kernel="precomputed", nu=nu).fit(np.exp(-gamma * within))
        return float(roc_auc_score(labels, -svm.decision_function(np.exp(-gamma * across))))

    return max(product(NUS, GAMMAS), key=auroc)
