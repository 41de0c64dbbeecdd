"""The training images that `--consensus` and `--neighbours` need, packed into one file of a bundle.

consensus.safetensors
    image_ids      (M,) int64     of the training images, increasing
    features       (M, D) int8    mean of the pooled features of all views
    scales         (M,) float32   what to multiply each row of `features` with
    num_captions   (M,) int64     captions of each image
    captions       (B,) uint8     UTF-8 text: all captions in this order, one a line
    num_views      (1,) int64     number of views in the mean
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..features.store import FeatureStore
from ..model.generation.consensus import Consensus
from ..model.retrieval.search import NeighborSearch, mean_features, training_images
from ..model.retrieval.words import WordRetriever
from ..model.runs.layout import CONSENSUS_NAME
from ..model.runs.tensors import read_tensors, write_tensors
from ..pipeline.captions import read_references
from ..pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ..pipeline.stage.artifacts import reading, require_stage
from ..pipeline.stage.errors import MismatchError
from ..pipeline.stage.files import hash_file
from ..pipeline.text.vocab import Vocab

MAX_INT8 = 127


def pack_neighbors(folder: Path, captions_dir: Path, store: FeatureStore) -> None:
    """Write the training images of a dataset with their captions to `consensus.safetensors`.

    Args:
        folder: of the bundle.
        captions_dir: output folder of the prepare stage.
        store: the features of the run; all its views are averaged.

    Raises:
        MissingArtifactError: no training image has features.
    """
    image_ids = training_images(captions_dir, [store], "--consensus")
    features, scales = quantize(mean_features([store], image_ids, store.num_views))
    references = read_references(captions_dir / CAPTIONS_PARQUET, "words", image_ids)
    captions = [references[image_id] for image_id in image_ids.tolist()]
    text = "\n".join(caption for of_image in captions for caption in of_image)
    tensors = {
        "image_ids": torch.from_numpy(image_ids),
        "features": features,
        "scales": scales,
        "num_captions": torch.tensor([len(of_image) for of_image in captions]),
        "captions": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8),
        "num_views": torch.tensor([store.num_views]),
    }
    write_tensors(folder / CONSENSUS_NAME, tensors)


def hash_neighbors(captions_dir: Path, store: FeatureStore) -> dict[str, str]:
    """Return the fingerprints of everything that `pack_neighbors` reads. Arguments as there.

    Raises:
        MissingArtifactError: the captions are missing.
        DamagedFileError: they are damaged.
    """
    require_stage(captions_dir)
    hashes = {name: hash_file(captions_dir / name) for name in (IMAGES_PARQUET, CAPTIONS_PARQUET)}
    return hashes | {"features": store.sha256}


@dataclass(frozen=True)
class PackedNeighbors:
    """The training images packed into a bundle.

    Attributes:
        path: of the file.
        features: (M, D) float32, mean of the pooled features of all views.
        references: image_id → its captions as words joined by spaces.
        num_views: number of views in the mean.
    """

    path: Path
    features: Tensor
    references: dict[int, list[str]]
    num_views: int

    def consensus(self, num_views: int, num_neighbors: int, precision: float) -> Consensus:
        """Return the `Consensus` over these images.

        Args:
            num_views: views of each image to caption.
            num_neighbors: see `Consensus`.
            precision: see `Consensus`.

        Raises:
            MismatchError: the features were packed for another number of views.
        """
        if num_views != self.num_views:
            raise MismatchError(
                f"{self.path} holds the mean of {self.num_views} views of each training image, so "
                f"--consensus needs --views {self.num_views}, got {num_views}."
            )
        return Consensus(
            [*self.references], self.features, self.references, num_neighbors, precision
        )

    def retriever(self, num_neighbors: int, vocab: Vocab) -> WordRetriever:
        """Return the `WordRetriever` over these images."""
        search = NeighborSearch([*self.references], self.features, num_neighbors)
        captions = (
            [vocab.encode(caption.split(" ")) for caption in of_image]
            for of_image in self.references.values()
        )
        return WordRetriever(search, captions, len(vocab))


def load_neighbors(folder: Path) -> PackedNeighbors | None:
    """Return the training images packed into a bundle; None if a bundle or a run has none.

    Raises:
        DamagedFileError: the file is damaged.
    """
    path = folder / CONSENSUS_NAME
    if not path.exists():
        return None
    tensors, _ = read_tensors(path)
    with reading(path):
        lines = iter(tensors["captions"].numpy().tobytes().decode().split("\n"))
        counts = zip(tensors["image_ids"].tolist(), tensors["num_captions"].tolist(), strict=True)
        return PackedNeighbors(
            path,
            tensors["features"].float() * tensors["scales"][:, None],
            {image_id: [next(lines) for _ in range(count)] for image_id, count in counts},
            int(tensors["num_views"]),
        )


def quantize(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return (M, D) features as (M, D) int8 and the (M,) scale of each row."""
    scales = (features.abs().amax(1) / MAX_INT8).clamp_min(torch.finfo(torch.float32).tiny)
    return (features / scales[:, None]).round().to(torch.int8), scales
