import numpy as np
import pytest

from showtell.model.metrics import bootstrap
from showtell.model.metrics.bleu import BleuCounts
from showtell.model.metrics.bootstrap import (
    draw_scores,
    draw_weights,
    interval,
    intervals,
    p_value,
)
from showtell.model.metrics.image_scores import ImageScores
from showtell.model.metrics.meteor.counts import NUM_COUNTS


def make_images(cider, **others) -> ImageScores:
    """Return images with these scores and with drawn counts for BLEU and METEOR."""
    rng, size = np.random.default_rng(1), len(cider)
    totals = rng.integers(5, 12, size)[:, None] - np.arange(4)
    matches = rng.integers(0, totals + 1)
    bleu = BleuCounts(matches, totals, totals[:, 0], rng.integers(5, 12, size))
    counts = rng.integers(1, 9, (size, NUM_COUNTS)).astype(float)
    return ImageScores(np.arange(size), bleu, counts, {"CIDEr": np.asarray(cider), **others})


def test_each_draw_scores_as_the_images_it_contains() -> None:
    images = make_images(np.random.default_rng(0).random(30))
    drawn = draw_scores(images, num_draws=20, seed=3)
    weights = np.concatenate(list(draw_weights(30, 20, seed=3)))
    assert (weights.sum(axis=1) == 30).all() and weights.shape == (20, 30)
    for row, counts in enumerate(weights):
        chosen = images.select(np.repeat(np.arange(30), counts.astype(int)))
        assert {k: v[row] for k, v in drawn.items()} == pytest.approx(chosen.of_all())


def test_interval_of_a_mean_agrees_with_the_central_limit_theorem() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    low, high = intervals(make_images(values))["CIDEr"]
    error = values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_interval_contains_95_percent() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))


def test_draws_depend_only_on_the_seed(monkeypatch) -> None:
    images = make_images(np.random.default_rng(0).random(30))
    first = draw_scores(images, 50, seed=0)["CIDEr"]
    assert (draw_scores(images, 50, seed=0)["CIDEr"] == first).all()
    assert (draw_scores(images, 50, seed=1)["CIDEr"] != first).any()
    monkeypatch.setattr(bootstrap, "BLOCK_SIZE", 100)  # three draws per block
    np.testing.assert_allclose(draw_scores(images, 50, seed=0)["CIDEr"], first)


def test_counts_of_an_image_in_draws_are_binomial() -> None:
    weights = np.concatenate(list(draw_weights(50, 2000, seed=0)))
    assert weights.mean(axis=0) == pytest.approx(np.ones(50), abs=0.12)
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)


def test_p_value_counts_draws_on_the_other_side() -> None:
    assert p_value(np.array([1.0] * 98 + [-1.0])) == pytest.approx(2 * 2 / 100)
    assert p_value(np.array([-1.0] * 98 + [1.0])) == pytest.approx(2 * 2 / 100)
    assert p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(99)) == 1


def test_p_value_of_noise_is_uniform() -> None:
    rng = np.random.default_rng(0)
    values = [
        p_value(draw_scores(make_images(rng.normal(size=100)), 400, seed)["CIDEr"])
        for seed in range(200)
    ]
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.12)
