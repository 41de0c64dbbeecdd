"""torch datasets of cached features and captions, to train and evaluate models of your own.

N images, D feature width, P grid cells, T tokens, B batch size.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..pipeline.captions import read_captions, read_images, read_references
from ..pipeline.datasets.records import SPLITS
from ..pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from ..pipeline.stage.errors import MissingArtifactError
from ..pipeline.stage.options import require_choice
from ..pipeline.stage.ragged import Ints
from ..pipeline.text.vocab import BOS, EOS, PAD, Vocab
from .store import FeatureStore, extend_command

Target = TypeVar("Target")


class PaddedCaptions(NamedTuple):
    """Captions and the features of their images.

    Attributes:
        features: (B, D) float32, or (B, P, D) grids.
        token_ids: (B, T) int64: BOS, the words, EOS, then PAD.
        lengths: (B,) int64, number of tokens with BOS and EOS.
    """

    features: Tensor
    token_ids: Tensor
    lengths: Tensor


class ListedReferences(NamedTuple):
    """Images and their reference captions.

    Attributes:
        features: (B, D) float32, or (B, P, D) grids.
        references: the captions of each image, as words joined by single spaces.
    """

    features: Tensor
    references: list[list[str]]


class FeatureDataset(Dataset[tuple[Tensor, Target]], ABC, Generic[Target]):
    """The features of a split, each with a target. Images without features are left out.

    A `DataLoader` may use it in several worker processes, with any start method: pooled features
    are in memory, or memory-mapped if they do not fit, and grids are memory-mapped.

    Args:
        dataset_dir: `data/<dataset>`.
        split: "train", "val" or "test".
        features: folder name of the features, such as `resnet50-caffe`; default the newest.
        grid: return grids instead of pooled features.

    Attributes:
        store: all features of the dataset.
        vocab: the vocabulary of the dataset.
        image_ids: image of each item, (len(self),) int64.

    Raises:
        MissingArtifactError: prepare or features has not run, or no image has features.
        ConfigError: there is no such split.
        DamagedFileError: a file is damaged.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str = "train",
        *,
        features: str | None = None,
        grid: bool = False,
    ) -> None:
        require_choice("split", split, SPLITS)
        captions_dir = Path(dataset_dir) / "captions"
        self.store, self.grid = FeatureStore.find(dataset_dir, features, is_mapped=None), grid
        self.vocab = Vocab.read(captions_dir / VOCAB_JSON)
        image_ids = read_images(captions_dir / IMAGES_PARQUET).select(split)
        image_ids = image_ids[self.store.has(image_ids).numpy()]
        if not len(image_ids):
            raise MissingArtifactError(
                f"{self.store.directory} has no features of {split} images. Mark images as "
                f"{split!r}, then run 'showtell prepare' and 'showtell features' again."
            )
        if grid and self.store.grids is None:
            command = extend_command(self.store, self.store.num_views, grid=True)
            raise MissingArtifactError(f"{self.store.directory} has no grids. Run '{command}'.")
        self.image_ids = torch.from_numpy(self._read_targets(captions_dir, image_ids))
        self.rows = self.store.rows(self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.__getitems__([index])[0]

    def __iter__(self) -> Iterator[tuple[Tensor, Target]]:
        return map(self.__getitem__, range(len(self)))

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Target]]:
        """Return several items; grids are read in the order on disk."""
        items = [range(len(self))[index] for index in indices]  # negative ones count from the end
        rows = self.rows[items]
        features = self.store.gather_grid(rows) if self.grid else self.store.gather(rows)
        return list(zip(features.float(), map(self._target, items), strict=True))

    @abstractmethod
    def _read_targets(self, captions_dir: Path, image_ids: Ints) -> Ints:
        """Read the targets of some images, and return the image of each item."""

    @abstractmethod
    def _target(self, index: int) -> Target:
        """Return the target of an item."""


class CaptionDataset(FeatureDataset[Tensor]):
    """One item per caption: the features of its image, and its token ids.

    `dataset[i]` is `(features, token_ids)`: (D,) or (P, D) float32, and (T,) int64: BOS, the words,
    EOS. See `FeatureDataset` for the arguments.

    Example:
        dataset = CaptionDataset("data/flickr8k", "train")
        loader = DataLoader(dataset, 128, shuffle=True, num_workers=2, collate_fn=dataset.collate)
        for features, token_ids, lengths in loader:
            ...
    """

    def _read_targets(self, captions_dir: Path, image_ids: Ints) -> Ints:
        self.captions = read_captions(captions_dir / CAPTIONS_PARQUET).select(image_ids)
        return self.captions.image_ids

    def _target(self, index: int) -> Tensor:
        start, stop = self.captions.offsets[index], self.captions.offsets[index + 1]
        return torch.tensor([BOS, *self.captions.tokens[start:stop].tolist(), EOS])

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Tensor]]) -> PaddedCaptions:
        """Stack features and pad captions; for `DataLoader(collate_fn=…)`."""
        features, captions = zip(*items, strict=True)
        lengths = torch.tensor([len(caption) for caption in captions])
        token_ids = pad_sequence(list(captions), batch_first=True, padding_value=PAD)
        return PaddedCaptions(torch.stack(features), token_ids, lengths)


class ReferenceDataset(FeatureDataset[list[str]]):
    """One item per image: its features and its reference captions.

    `dataset[i]` is `(features, references)`: (D,) or (P, D) float32, and captions as words joined
    by single spaces, as `CaptionScorer` takes them. See `FeatureDataset` for the arguments.
    """

    def _read_targets(self, captions_dir: Path, image_ids: Ints) -> Ints:
        self.references = read_references(captions_dir / CAPTIONS_PARQUET, "words", image_ids)
        return image_ids

    def _target(self, index: int) -> list[str]:
        return self.references[int(self.image_ids[index])]

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, list[str]]]) -> ListedReferences:
        """Stack features and list references; for `DataLoader(collate_fn=…)`."""
        features, references = zip(*items, strict=True)
        return ListedReferences(torch.stack(features), list(references))
