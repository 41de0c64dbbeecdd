"""The bootstrap over images: how far a score, or a difference, depends on which images there were.

Images are drawn with replacement, as many as there are, a thousand times over; each draw is scored
as a set of its own. It says nothing of what another seed of the training would change.

Source: Efron 1979, doi:10.1214/aos/1176344552; for translation scores Koehn 2004, ACL W04-3250.
"""

from collections.abc import Iterator

import numpy as np

from .ngrams import Floats
from .per_image import ImageScores

NUM_DRAWS = 1000
SEED = 0
LEVEL = 0.95
BLOCK_SIZE = 4_000_000  # weights in memory at once


def draw_scores(
    images: ImageScores, num_draws: int = NUM_DRAWS, seed: int = SEED
) -> dict[str, Floats]:
    """Score random draws of the images.

    Args:
        images: N captions' scores.
        num_draws: D.
        seed: of the draws; the same seed and N give the same images, so that two evaluations of
            them are paired.

    Returns:
        Name → (D,) float64.
    """
    blocks = [images.of_draws(weights) for weights in draw_weights(len(images), num_draws, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def draw_weights(num_images: int, num_draws: int, seed: int) -> Iterator[Floats]:
    """Yield (d, N) float64, how often each draw holds each image, until there were `num_draws`."""
    rng = np.random.default_rng(seed)
    most = max(1, BLOCK_SIZE // num_images)
    for start in range(0, num_draws, most):
        shape = min(most, num_draws - start), num_images
        places = rng.integers(num_images, size=shape) + num_images * np.arange(shape[0])[:, None]
        counts = np.bincount(places.ravel(), minlength=shape[0] * num_images)
        yield counts.reshape(shape).astype(np.float64)


def interval(values: Floats) -> tuple[float, float]:
    """The percentiles between which 95 % of the drawn values lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(images: ImageScores) -> dict[str, tuple[float, float]]:
    """95 % interval of each score."""
    return {name: interval(values) for name, values in draw_scores(images).items()}


def p_value(differences: Floats) -> float:
    """Two-sided p-value of "there is no difference", from drawn differences.

    Twice the share of draws on the other side of zero, the observed set counting as one draw; of
    D draws it is at least 2 / (D + 1).

    Source: Davison and Hinkley 1997, "Bootstrap methods and their application", section 4.2.
    """
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * float(1 + beyond) / (1 + len(differences)))
