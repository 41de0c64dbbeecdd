import math
from pathlib import Path

import numpy as np
import pytest
import torch

from showtell.features.store import FeatureStore
from showtell.model.metrics.metric import Floats
from showtell.model.retrieval import search as search_module
from showtell.model.retrieval.search import (
    BLOCK,
    RIDGE,
    WIDTH,
    NeighborSearch,
    gram_matrix,
    mean_features,
    solve,
)
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.stage.ragged import Ints

# Directions on a circle: their angles are easy to read.
ANGLES = {7: 0.0, 3: 1.6, 9: 3.0, 5: 4.7}


def direction(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle), 2.0]


def make(num_neighbors: int = 4) -> NeighborSearch:
    features = torch.tensor([direction(angle) for angle in ANGLES.values()])
    return NeighborSearch([*ANGLES], features.half(), num_neighbors)


def find(
    search: NeighborSearch, features: torch.Tensor, image_ids: Ints | None = None
) -> tuple[Ints, Floats]:
    """Return the ids of the neighbors instead of their rows."""
    rows, weights = search.find(features, image_ids)
    return search.image_ids[rows], weights


def store_of(features: torch.Tensor) -> FeatureStore:
    """A store with the features of images 4 and 8."""
    manifest = Manifest(stage="features", version=1, config={}, inputs={}, outputs={}, counts={})
    return FeatureStore(
        torch.tensor([4, 8]), features.half()[:, None], {}, manifest, Path("features")
    )


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def directions_by_loop(angles: list[float]) -> np.ndarray:
    """Centre on the training images' mean and scale to length 1, in float64."""
    known = [unit(np.array(direction(angle)).astype(np.float16)) for angle in ANGLES.values()]
    mean = np.mean([vector.astype(np.float64) for vector in known], axis=0)
    return np.array([unit(unit(np.array(direction(angle))) - mean) for angle in angles])


def test_mean_features_weighs_distinct_features_equally() -> None:
    one = store_of(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
    other = store_of(torch.tensor([[0.0, 0.0, 100.0], [0.0, 100.0, 0.0]]))
    seen = mean_features([one, other, one], np.array([8, 4]), 1)
    assert seen.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert mean_features([one], np.array([4]), 1).tolist() == [[1, 0]]


def test_neighbors_are_the_most_similar_images() -> None:
    search = make(num_neighbors=2)
    ids, weights = find(search, torch.tensor([direction(1.5), direction(0.1)]))
    assert ids.tolist() == [[7, 3], [7, 3]]  # in the order of the training images
    assert weights.argmax(1).tolist() == [1, 0]


@pytest.mark.parametrize("num_neighbors", [4, 3])
def test_weights_equal_ridge_regression_in_float64(num_neighbors) -> None:
    angles = [0.7, 2.4, 5.1]
    ids, weights = find(make(num_neighbors), torch.tensor([direction(angle) for angle in angles]))
    known = dict(zip(ANGLES, directions_by_loop([*ANGLES.values()]), strict=True))
    for query, own_ids, own_weights in zip(directions_by_loop(angles), ids, weights, strict=True):
        nearest = sorted(ANGLES, key=lambda image_id: -(query @ known[image_id]))
        assert {*own_ids.tolist()} == {*nearest[:num_neighbors]}
        near = np.array([known[image_id] for image_id in own_ids])
        # By definition: the function of the kernel with the smallest penalised squared error.
        kernel = np.exp((near @ near.T - 1) / WIDTH)
        for targets in np.eye(num_neighbors):
            coefficients = np.linalg.lstsq(
                kernel @ kernel + RIDGE * kernel, kernel @ targets, rcond=None
            )[0]
            expected = np.exp((near @ query - 1) / WIDTH) @ coefficients
            assert own_weights @ targets == pytest.approx(expected, abs=1e-4)


def test_duplicate_images_share_their_weight() -> None:
    """In a mean over neighbours each copy would count again."""
    angles = {1: 0.0, 2: 0.0, 3: 0.0, 4: 1.2}
    features = torch.tensor([direction(angle) for angle in angles.values()])
    weights = dict(
        zip(
            *(
                side[0].tolist()
                for side in find(
                    NeighborSearch([*angles], features, 4), torch.tensor([direction(0.6)])
                )
            ),
            strict=True,
        )
    )
    assert weights[1] == pytest.approx(weights[2]) == pytest.approx(weights[3])
    assert weights[1] < 0.6 * weights[4]


def test_whole_kernel_and_kernel_per_image_agree(monkeypatch) -> None:
    features = torch.tensor([direction(angle) for angle in range(7)])
    search = make(3)
    one_by_one = [find(search, row[None])[1] for row in features]
    assert "kernel" in vars(search)  # once the images are more work than the whole kernel
    monkeypatch.setattr(search_module, "MAX_PAIRS", 0)
    search = make(3)
    np.testing.assert_allclose(np.concatenate(one_by_one), find(search, features)[1], rtol=1e-4)
    assert "kernel" not in vars(search)


def test_gram_matrix_equals_the_product() -> None:
    vectors = torch.randn(2 * BLOCK + 89, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram_matrix(vectors), vectors @ vectors.T)


def test_solve_is_more_precise_than_float32() -> None:
    """Against a solution in float64, on a kernel whose largest eigenvalue is 300 times the rest."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(500, 40))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    kernel = (np.exp((points @ points.T - 1) / WIDTH) + RIDGE * np.eye(500)).astype(np.float32)
    target = generator.random(500).astype(np.float32)
    exact = np.linalg.solve(kernel.astype(np.float64), target.astype(np.float64))
    by_cholesky = torch.cholesky_solve(
        torch.from_numpy(target)[:, None], torch.linalg.cholesky(torch.from_numpy(kernel))
    )
    found = solve(torch.from_numpy(kernel), torch.from_numpy(target)).numpy()
    distance = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert distance < np.linalg.norm(by_cholesky[:, 0].numpy() - exact) / np.linalg.norm(exact)
    assert distance < 1e-6
    assert not solve(torch.from_numpy(kernel), torch.zeros(500)).any()


def test_scale_of_features_does_not_matter() -> None:
    search, features = make(), torch.tensor([direction(2.0), direction(5.0)])
    for ones, others in zip(find(search, features), find(search, 9 * features), strict=True):
        np.testing.assert_allclose(ones, others, rtol=1e-4)


def test_no_image_is_its_own_neighbor() -> None:
    search, features = make(), torch.tensor([direction(ANGLES[3]), direction(0.0)])
    ids, weights = find(search, features, np.array([3, 1234]))
    assert dict(zip(ids[0], weights[0], strict=True))[3] == 0
    assert ids[1, weights[1].argmax()] == 7


def test_num_neighbors_is_limited_to_the_training_images() -> None:
    assert find(make(num_neighbors=50), torch.tensor([direction(0)]))[0].shape == (1, 4)
