"""Find the training images most similar to an image (its neighbors), and weigh them.

The weights are those of kernel ridge regression: they sum what is known of the neighbors to an
estimate for the image. Unlike a plain mean, the regression does not count near-duplicate neighbors
several times.

Letters in shapes: M training images, N images to find neighbors of, D feature width, n neighbors.

Source: kernel ridge regression as in Murphy 2012, Machine Learning, section 14.4.3.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import read_images
from ...pipeline.layout import IMAGES_PARQUET
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.errors import MissingArtifactError
from ...pipeline.stage.ragged import Ints
from ..metrics.metric import Floats

# Tuned on the validation images of Flickr8k; docs/results.md compares other values.
WIDTH = 0.8  # of the Gaussian kernel exp((cosine - 1) / WIDTH)
RIDGE = 1.0  # noise variance: references are only a sample of the captions that fit an image
ROWS_TOGETHER = 4096  # features read at a time
TOLERANCE = 1e-4  # of each of two rounds of conjugate gradients
BLOCK = 256  # largest symmetric product that is computed whole
MAX_PAIRS = 100_000_000  # largest precomputed kernel: 400 MB


class NeighborSearch:
    """Finds the training images most similar to any image.

    Args:
        image_ids: ids of the M training images.
        features: (M, D) pooled features of the training images, any float dtype.
        num_neighbors: n, the number of similar images to use, at most M. The time grows with n².
    """

    def __init__(self, image_ids: Sequence[int], features: Tensor, num_neighbors: int) -> None:
        self.image_ids = np.array(image_ids, np.int64)
        self.num_neighbors = min(num_neighbors, len(self.image_ids))
        self.mean = F.normalize(features.float(), dim=1).mean(0)
        self.directions = self._directions(features)
        self._pairs_so_far = 0

    def find(self, features: Tensor, image_ids: Ints | None = None) -> tuple[Ints, Floats]:
        """Find the neighbors of images and their regression weights.

        Args:
            features: (N, D) pooled features.
            image_ids: (N,) int64. If given, an image that is its own neighbor gets weight 0.

        Returns:
            rows: (N, n) int64, rows of the most similar training images, ascending.
            weights: (N, n) float64, positive or negative.
        """
        cosines = self._directions(features) @ self.directions.T  # (N, M)
        if image_ids is not None:
            own = torch.from_numpy(image_ids[:, None] == self.image_ids)
            cosines = cosines.masked_fill(own.to(cosines.device), -torch.inf)
        index = cosines.topk(self.num_neighbors, 1, sorted=False).indices.sort(1).values.int()
        to_images = _kernel(cosines.gather(1, index.long()))
        # Once the kernels of single images take more work than one of all training images.
        self._pairs_so_far += len(index) * index.shape[1] ** 2
        use_whole_kernel = len(self.image_ids) ** 2 < min(self._pairs_so_far, MAX_PAIRS)
        whole = self.kernel.view(-1) if use_whole_kernel else None
        weights = torch.zeros(index.shape, dtype=torch.float64)
        for neighbors, to_image, weight in zip(index, to_images, weights, strict=True):
            is_other = to_image > 0  # the kernel is 0 for the image itself
            neighbors = neighbors[is_other]
            if whole is None:
                kernel = _kernel(gram_matrix(self.directions[neighbors]))
            with one_thread():
                if whole is not None:
                    cells = neighbors[:, None] * len(self.image_ids) + neighbors
                    kernel = whole.index_select(0, cells.view(-1)).view(cells.shape)
                kernel.diagonal().add_(RIDGE)
                weight[is_other.cpu()] = solve(kernel.cpu(), to_image[is_other].cpu())
        return index.cpu().long().numpy(), weights.numpy()

    @cached_property
    def kernel(self) -> Tensor:
        """(M, M) float32, the kernel between all training images."""
        return _kernel(self.directions @ self.directions.T)

    def _directions(self, features: Tensor) -> Tensor:
        """Centre (N, D) features on the mean training feature, and scale them to length 1."""
        centered = F.normalize(features.float(), dim=1) - self.mean.to(features.device)
        return F.normalize(centered, dim=1)


def _kernel(cosines: Tensor) -> Tensor:
    """Turn cosines into similarities: 1 for equal images, 0 for a cosine of −inf."""
    return ((cosines - 1) / WIDTH).exp()


def gram_matrix(vectors: Tensor) -> Tensor:
    """Return `vectors @ vectors.T`; large blocks above the diagonal are copied from below it.

    Args:
        vectors: (n, D).

    Returns:
        (n, n).
    """
    if len(vectors) <= BLOCK:
        return vectors @ vectors.T
    first, second = vectors.chunk(2)
    corner = second @ first.T
    upper = torch.cat([gram_matrix(first), corner.T], 1)
    return torch.cat([upper, torch.cat([corner, gram_matrix(second)], 1)])


def solve(matrix: Tensor, target: Tensor) -> Tensor:
    """Solve `matrix @ x = target`, faster than by a Cholesky factorization and more precisely.

    Conjugate gradients take few steps, because the ridge keeps the eigenvalues away from 0. The
    second round solves for what rounding errors left of the first.

    Args:
        matrix: (n, n) float32, symmetric and positive definite.
        target: (n,) float32.

    Returns:
        (n,) float64.
    """
    found = _conjugate_gradients(matrix, target).double()
    residual = target.double() - matrix.double() @ found
    return found + _conjugate_gradients(matrix, residual.float())


def _conjugate_gradients(matrix: Tensor, target: Tensor) -> Tensor:
    """Solve `matrix @ x = target` until the residual is `TOLERANCE` times the target: (n,)."""
    found, residual, direction = torch.zeros_like(target), target.clone(), target.clone()
    square = residual.dot(residual).item()
    enough = TOLERANCE**2 * square
    for _ in range(len(target)):
        if square <= enough:
            break
        product = matrix.mv(direction)
        step = square / direction.dot(product).item()
        found.add_(direction, alpha=step)
        residual.add_(product, alpha=-step)
        last, square = square, residual.dot(residual).item()
        direction.mul_(square / last).add_(residual)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in the block: two that wait for each other make short work slower.

    If other programs use the cores, each of a thousand short products would wait for a free one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training_images(captions_dir: Path, stores: Sequence[FeatureStore], option: str) -> Ints:
    """Return the ids of the train images that have features in all stores: (M,) int64.

    Args:
        captions_dir: output folder of the prepare stage.
        stores: features of the dataset's images.
        option: that needs them, for the error, such as `--consensus`.

    Raises:
        MissingArtifactError: no train image has features.
    """
    image_ids: Ints = read_images(captions_dir / IMAGES_PARQUET).select("train")
    has_features = torch.stack([store.has(image_ids) for store in stores]).all(0).numpy()
    image_ids = image_ids[has_features]
    if not len(image_ids):
        folder = captions_dir.parent
        command = command_line(folder.parent, "features", "--dataset", folder.name)
        raise MissingArtifactError(
            f"{option} needs features of the train images, but {stores[0].directory} has none. "
            f"Leave out {option}, or run '{command}' again."
        )
    return image_ids


def mean_features(stores: Sequence[FeatureStore], image_ids: Ints, num_views: int) -> Tensor:
    """Return the mean of the first `num_views` views of each image: (N, D) float32.

    Each mean has length 1. If the decoders of an ensemble use different features, the means of all
    these features are concatenated, and D is the sum of their widths.

    Args:
        stores: the features of each decoder; equal ones are used once.
        image_ids: (N,) int64.
        num_views: number of views to average.
    """
    distinct = {store.sha256: store for store in stores}.values()
    means = [_mean_of_views(store, store.rows(image_ids), num_views) for store in distinct]
    return torch.cat([F.normalize(mean, dim=1) for mean in means], 1)


def _mean_of_views(store: FeatureStore, rows: Tensor, num_views: int) -> Tensor:
    """Return the mean of the first views of some rows, read part by part: (n, D) float32."""
    means = []
    for part in rows.split(ROWS_TOGETHER):
        views = [store.gather(part, torch.full_like(part, view)) for view in range(num_views)]
        means.append(torch.stack(views, 1).float().mean(1))
    return torch.cat(means)
