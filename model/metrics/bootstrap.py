"""Confidence intervals and p-values by a bootstrap over images.

Images are drawn with replacement, as many as there are, and each draw is scored as a test set. This
measures the uncertainty from the choice of images, not that from the seed of training.

Source: Efron 1979, doi:10.1214/aos/1176344552; for translation scores Koehn 2004, ACL W04-3250.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from .image_scores import ImageScores
from .metric import Floats

NUM_DRAWS = 1000
SEED = 0
LEVEL = 0.95
BLOCK_SIZE = 4_000_000  # weights in memory at once


def draw_scores(
    images: ImageScores, num_draws: int = NUM_DRAWS, seed: int = SEED
) -> dict[str, Floats]:
    """Score random draws of the images.

    Args:
        images: scores of N captions.
        num_draws: D.
        seed: the same seed and N give the same draws, so that two evaluations of the same images
            are paired.

    Returns:
        Name → (D,) float64.
    """
    blocks = [images.of_draws(weights) for weights in draw_weights(len(images), num_draws, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def draw_weights(num_images: int, num_draws: int, seed: int) -> Iterator[Floats]:
    """Yield how often each draw contains each image, (d, N) float64 in blocks of `num_draws`."""
    rng = np.random.default_rng(seed)
    block_draws = max(1, BLOCK_SIZE // num_images)
    for start in range(0, num_draws, block_draws):
        shape = min(block_draws, num_draws - start), num_images
        places = rng.integers(num_images, size=shape) + num_images * np.arange(shape[0])[:, None]
        counts = np.bincount(places.ravel(), minlength=shape[0] * num_images)
        yield counts.reshape(shape).astype(np.float64)


def interval(values: Floats) -> tuple[float, float]:
    """Return the percentiles that enclose 95 % of the drawn values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(images: ImageScores) -> dict[str, tuple[float, float]]:
    """Return the 95 % confidence interval of each score."""
    return {name: interval(values) for name, values in draw_scores(images).items()}


def format_score(score: float, interval: Sequence[float]) -> str:
    """Return a score and its interval for people, such as "20.6  (19.4 to 21.8)"."""
    low, high = interval
    return f"{100 * score:.1f}  ({100 * low:.1f} to {100 * high:.1f})"


def p_value(differences: Floats) -> float:
    """Return the two-sided p-value of "there is no difference", from (D,) drawn differences.

    It is twice the share of draws on the other side of zero, with the observed difference counted
    as one draw. The smallest possible value is 2 / (D + 1).

    Source: Davison and Hinkley 1997, "Bootstrap methods and their application", section 4.2.
    """
    other_side = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * float(1 + other_side) / (1 + len(differences)))
