"""Dirichlet distributions fitted to softmax outputs, as GEOM scores them (section 5 of its paper).

All of this works on sums over the training set, so that nothing of size (N, K, K) is kept.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, zeta

LEAST = 1e-12  # probabilities below this count as this, so that no logarithm is of 0
_STEPS = 1000
_TOLERANCE = 1e-9
_MOST = 1e6  # largest sum of alpha to begin with: equal outputs would have an infinite one

Floats = NDArray[np.float64]


def log_clipped(probabilities: NDArray[np.floating]) -> Floats:
    """Logarithms of probabilities, finite."""
    return np.asarray(np.log(np.clip(probabilities.astype(np.float64), LEAST, 1.0)))


def fit_dirichlet(mean: Floats, mean_log: Floats) -> Floats:
    """Parameters alpha (..., K) of the greatest likelihood.

    The fixed point of psi(alpha_k) = psi(sum of alpha) + mean of log p_k (Minka, 2000), from the
    approximate sum of alpha that GEOM begins with (Wicker et al., 2008); 1,000 steps at most.

    Args:
        mean: (..., K) mean probabilities of the training images.
        mean_log: (..., K) means of their `log_clipped`.
    """
    mean = np.clip(mean, LEAST, 1.0)
    spread = (mean * (np.log(mean) - mean_log)).sum(axis=-1, keepdims=True)  # 0 if all are equal
    total = (mean.shape[-1] - 1) * -digamma(1.0) / np.maximum(spread, 1e-12)
    alpha = mean * np.minimum(total, _MOST)
    for _ in range(_STEPS):
        before = alpha
        alpha = _inverse_digamma(digamma(alpha.sum(axis=-1, keepdims=True)) + mean_log)
        if np.abs(alpha - before).max() < _TOLERANCE:
            break
    return np.asarray(alpha)


def log_likelihood(alpha: Floats, logs: Floats) -> Floats:
    """sum over k of (alpha_k - 1) log p_k: (..., K), (..., K) -> (...), without its constant."""
    return np.asarray(((alpha - 1) * logs).sum(axis=-1))


def _inverse_digamma(y: Floats) -> Floats:
    """x with digamma(x) = y, by Newton's method, five steps at most (Minka, 2000, appendix C)."""
    small = -1 / np.minimum(y - digamma(1.0), -1.0)
    x = np.where(y >= -2.22, np.exp(np.minimum(y, 700)) + 0.5, small)
    for _ in range(5):
        step = (digamma(x) - y) / zeta(2, x)  # the second is the derivative of digamma
        x = x - step
        if (np.abs(step) <= 1e-13 * x).all():
            break
    return np.asarray(x)
