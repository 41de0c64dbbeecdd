"""Cached features and encoded captions, resident on the device, as batches of similar length.

Everything fits: the pooled features of all COCO are 505 MB in float16. So there are no loader
processes; a batch is a handful of gathers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import EncodedCaptions
from ...pipeline.text.vocab import BOS, EOS, PAD

# Batches drawn together before sorting by length: wide enough that a batch has captions of one
# length, narrow enough that every epoch mixes its batches anew.
BUCKET_BATCHES = 64


@dataclass(frozen=True)
class CaptionBatch:
    """One training step's data, on the device but for `rows` and `lengths`. N images, N ≤ B.

    Attributes:
        features: (N, D) float16, or (N, P, D) grids.
        rows: (N,) int64 on the CPU, rows of the images in the feature store.
        owners: (B,) int64, which of the N images each caption is of.
        inputs: (B, T) int64, BOS and the words; PAD behind the end.
        targets: (B, T) int64, the words and EOS; PAD behind the end.
        lengths: (B,) int64 on the CPU, words and BOS; descending.
        real: (R,) int64, positions in the flattened (B·T) targets that are no padding.
    """

    features: Tensor
    rows: Tensor
    owners: Tensor
    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    real: Tensor


class CaptionBatches:
    """All captions of a split with the features of their images.

    Args:
        store: features of the dataset's images.
        captions: those to train on; captions of images without features are left out.
        batch_size: B, the most captions in a batch; of whole images at least one.
        device: where batches go, and where pooled features stay.
        grid: give grids, memory-mapped, in place of pooled features.
        by_image: keep all captions of an image in one batch, so that what is costly is done once an
            image; else batches hold captions of similar length.
        num_views: views of each image to draw from; default all that are cached.
    """

    def __init__(
        self,
        store: FeatureStore,
        captions: EncodedCaptions,
        batch_size: int,
        device: torch.device,
        *,
        grid: bool = False,
        by_image: bool = False,
        num_views: int | None = None,
    ) -> None:
        self.store, self.batch_size, self.device = store, batch_size, device
        self.grid, self.by_image = grid, by_image
        kept = store.has(captions.image_ids).nonzero()[:, 0]
        self.rows = store.rows(captions.image_ids[kept.numpy()])  # on the CPU, as the lengths are
        lengths = torch.from_numpy(captions.lengths).long()

        # One stream of BOS words EOS, BOS words EOS, … : inputs and targets are two views of it.
        tokens = torch.from_numpy(captions.tokens).long()
        caption_of_token = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        self.starts = torch.from_numpy(captions.offsets[:-1]).long() + 2 * torch.arange(
            len(lengths)
        )
        stream = torch.full((len(tokens) + 2 * len(lengths) + 1,), EOS)
        stream[self.starts] = BOS
        stream[torch.arange(len(tokens)) + 2 * caption_of_token + 1] = tokens

        views = store.views[:, :num_views]
        self.views = views if grid else views.to(device)  # (N, V, D)
        self.stream = stream.to(device)
        self.starts = self.starts[kept].to(device)
        self.lengths = lengths[kept]  # stays on the CPU: batch shapes are known without a sync

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (
            len(self._split_images()) if self.by_image else -(-self.num_captions // self.batch_size)
        )

    @property
    def num_captions(self) -> int:
        """Captions in an epoch."""
        return len(self.lengths)

    @property
    def images(self) -> Tensor:
        """(n,) int64, rows in the store of the images that have captions here."""
        images: Tensor = self.rows.unique()
        return images

    def plan_epoch(self, seed: int) -> list[Tensor]:
        """Which captions make up each batch of an epoch.

        Args:
            seed: decides everything, so that a resumed epoch goes on with the same batches.

        Returns:
            (≤ B,) int64 positions, for each batch in turn.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.by_image:
            return self._split_images(generator)
        order = torch.randperm(self.num_captions, generator=generator)
        batches: list[Tensor] = []
        for bucket in order.split(self.batch_size * BUCKET_BATCHES):
            by_length = bucket[self.lengths[bucket].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _split_images(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """Batches of whole images, as many as surely fit; in random order with a generator."""
        images, owners, counts = self.rows.unique(return_inverse=True, return_counts=True)
        num_images = max(1, self.batch_size // int(counts.max()))
        place = torch.arange(len(images))
        if generator is not None:
            place = torch.randperm(len(images), generator=generator)
        order = place[owners].argsort(stable=True)  # captions by the place of their image
        sizes = counts[place.argsort()].split(num_images)
        return list(order.split([int(size.sum()) for size in sizes]))

    def draw_views(self, seed: int) -> Tensor:
        """Draw which view of its image each caption is trained on in an epoch.

        Args:
            seed: of the epoch.

        Returns:
            (M,) int64; captions that share a batch because they share an image share the view too.
        """
        generator = torch.Generator().manual_seed(seed)
        num_images, num_views = self.views.shape[:2]
        if self.by_image:
            return torch.randint(num_views, (num_images,), generator=generator)[self.rows]
        return torch.randint(num_views, (self.num_captions,), generator=generator)

    def gather(self, positions: Tensor, views: Tensor | None = None) -> CaptionBatch:
        """Make the batch of some captions.

        Args:
            positions: (B,) int64 on the CPU.
            views: (M,) int64, from `draw_views`; None is the plain view of every image.
        """
        device = self.device
        positions = positions[self.lengths[positions].argsort(descending=True, stable=True)]
        num_steps = self.lengths[positions] + 1
        # The mask is made where the lengths are, so that nothing waits for the device.
        mask = torch.arange(int(num_steps[0])) < num_steps[:, None]  # (B, T)
        real = mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        rows, owners = self.rows[positions], torch.arange(len(positions))
        seen = torch.zeros_like(rows) if views is None else views[positions]
        if self.by_image:
            rows, owners = rows.unique(return_inverse=True)
            seen = torch.empty_like(rows).scatter_(0, owners, seen)
        positions, mask = (x.to(device, non_blocking=True) for x in (positions, mask))
        at = self.starts[positions, None] + torch.arange(mask.shape[1], device=device)
        at.clamp_(max=len(self.stream) - 2)
        return CaptionBatch(
            features=self.gather_features(rows, seen),
            rows=rows,
            owners=owners.to(device, non_blocking=True),
            inputs=self.stream[at].where(mask, PAD),
            targets=self.stream[at + 1].where(mask, PAD),
            lengths=num_steps,
            real=real,
        )

    def gather_features(self, rows: Tensor, views: Tensor) -> Tensor:
        """The features of some images: (n, D), or (n, P, D) grids, float16, on the device."""
        if self.grid:
            return self.store.gather_grid(rows, views).to(self.device, non_blocking=True)
        rows, views = (x.to(self.device, non_blocking=True) for x in (rows, views))
        return self.views[rows, views]
