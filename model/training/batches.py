"""Training batches, gathered from features and captions that stay in memory.

Pooled features of all COCO images are 505 MB in float16, so everything fits on the device and no
loader processes are needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import EncodedCaptions
from ...pipeline.text.vocab import BOS, EOS, PAD

# Batches that are sorted by length together: enough that a batch holds captions of one length, few
# enough that every epoch forms different batches.
BUCKET_BATCHES = 64


@dataclass(frozen=True)
class CaptionBatch:
    """The data of one training step, for N ≤ B images. On the device unless stated otherwise.

    Attributes:
        features: (N, D) float16, or (N, P, D) grids.
        image_rows: (N,) int64 on the CPU, rows of the images in the feature store.
        image_index: (B,) int64, which of the N images each caption describes.
        inputs: (B, T) int64, BOS and the words, then PAD.
        targets: (B, T) int64, the words and EOS, then PAD.
        lengths: (B,) int64 on the CPU, number of words plus BOS, descending.
        nonpad: (R,) int64, flat indices of the non-padding tokens in (B, T).
    """

    features: Tensor
    image_rows: Tensor
    image_index: Tensor
    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    nonpad: Tensor


class CaptionBatches:
    """The captions of a split and the features of their images, in batches.

    Args:
        store: features of the dataset's images.
        captions: to train on; captions of images without features are left out.
        batch_size: B, at most this many captions per batch, but at least one whole image
            with `by_image`.
        device: of the batches; pooled features stay there.
        grid: use memory-mapped grids instead of pooled features.
        by_image: keep all captions of an image in one batch, so that costly work is done once per
            image; otherwise a batch holds captions of similar length.
        num_views: draw from this many views of each image; default all that are cached.
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
        self.rows = store.rows(captions.image_ids[kept.numpy()])  # on the CPU, like the lengths
        lengths = torch.from_numpy(captions.lengths).long()

        # One stream BOS words EOS BOS words EOS …: inputs and targets are two windows into it.
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
        self.lengths = lengths[kept]  # on the CPU: batch shapes are known without a sync

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return (
            len(self._split_images()) if self.by_image else -(-self.num_captions // self.batch_size)
        )

    @property
    def num_captions(self) -> int:
        """Number of captions in an epoch."""
        return len(self.lengths)

    @property
    def images(self) -> Tensor:
        """(n,) int64, store rows of the images that have captions here."""
        images: Tensor = self.rows.unique()
        return images

    def plan_epoch(self, seed: int) -> list[Tensor]:
        """Assign captions to the batches of an epoch.

        Args:
            seed: the only source of randomness: a resumed epoch gets the same batches.

        Returns:
            For each batch the positions of its captions, (≤ B,) int64.
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
        """Form batches of whole images, in random order if there is a generator."""
        images, image_index, counts = self.rows.unique(return_inverse=True, return_counts=True)
        num_images = max(1, self.batch_size // int(counts.max()))
        place = torch.arange(len(images))
        if generator is not None:
            place = torch.randperm(len(images), generator=generator)
        order = place[image_index].argsort(stable=True)  # captions in the order of their images
        sizes = counts[place.argsort()].split(num_images)
        return list(order.split([int(size.sum()) for size in sizes]))

    def draw_views(self, seed: int) -> Tensor:
        """Draw the view of its image that each caption is trained on in an epoch.

        Args:
            seed: of the epoch.

        Returns:
            (M,) int64; with `by_image` all captions of an image get the same view.
        """
        generator = torch.Generator().manual_seed(seed)
        num_images, num_views = self.views.shape[:2]
        if self.by_image:
            return torch.randint(num_views, (num_images,), generator=generator)[self.rows]
        return torch.randint(num_views, (self.num_captions,), generator=generator)

    def gather(self, positions: Tensor, views: Tensor | None = None) -> CaptionBatch:
        """Gather a batch.

        Args:
            positions: (B,) int64 on the CPU, from `plan_epoch`.
            views: (M,) int64, from `draw_views`; None takes the first, plain view of every image.
        """
        device = self.device
        positions = positions[self.lengths[positions].argsort(descending=True, stable=True)]
        num_steps = self.lengths[positions] + 1
        # The mask is made on the CPU, where the lengths are, so that nothing waits for the device.
        mask = torch.arange(int(num_steps[0])) < num_steps[:, None]  # (B, T)
        nonpad = mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        rows, image_index = self.rows[positions], torch.arange(len(positions))
        chosen = torch.zeros_like(rows) if views is None else views[positions]
        if self.by_image:
            rows, image_index = rows.unique(return_inverse=True)
            chosen = torch.empty_like(rows).scatter_(0, image_index, chosen)
        positions, mask = (x.to(device, non_blocking=True) for x in (positions, mask))
        at = self.starts[positions, None] + torch.arange(mask.shape[1], device=device)
        at.clamp_(max=len(self.stream) - 2)
        return CaptionBatch(
            features=self.gather_features(rows, chosen),
            image_rows=rows,
            image_index=image_index.to(device, non_blocking=True),
            inputs=self.stream[at].where(mask, PAD),
            targets=self.stream[at + 1].where(mask, PAD),
            lengths=num_steps,
            nonpad=nonpad,
        )

    def gather_features(self, rows: Tensor, views: Tensor) -> Tensor:
        """Return features of images on the device: (n, D), or (n, P, D) grids, float16."""
        if self.grid:
            return self.store.gather_grid(rows, views).to(self.device, non_blocking=True)
        rows, views = (x.to(self.device, non_blocking=True) for x in (rows, views))
        return self.views[rows, views]
