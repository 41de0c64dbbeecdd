"""Cached features and encoded captions, resident on the device, as batches of similar length.

Everything fits: the pooled features of all COCO are 505 MB in float16. So there are no loader
processes; a batch is a handful of gathers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..features.store import FeatureStore
from ..pipeline.captions import EncodedCaptions
from ..pipeline.vocab import BOS, EOS, PAD

# Batches drawn together before sorting by length: wide enough that a batch has captions of one
# length, narrow enough that every epoch mixes its batches anew.
BUCKET_BATCHES = 64


@dataclass(frozen=True)
class CaptionBatch:
    """One training step's data, on the device.

    Attributes:
        features: (B, D) float16.
        inputs: (B, T) int64, BOS and the words; PAD behind the end.
        targets: (B, T) int64, the words and EOS; PAD behind the end.
        real: (R,) int64, positions in the flattened (B·T) targets that are no padding.
    """

    features: Tensor
    inputs: Tensor
    targets: Tensor
    real: Tensor


class CaptionBatches:
    """All captions of a split with the features of their images.

    Args:
        store: features of the dataset's images.
        captions: those to train on; captions of images without features are left out.
        batch_size: B.
        device: where everything is kept.
    """

    def __init__(
        self, store: FeatureStore, captions: EncodedCaptions, batch_size: int, device: torch.device
    ) -> None:
        self.batch_size = batch_size
        kept = store.has(captions.image_ids).nonzero()[:, 0]
        rows = store.rows(captions.image_ids[kept.numpy()])
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

        self.features = store.features.to(device)
        self.rows = rows.to(device)
        self.stream = stream.to(device)
        self.starts = self.starts[kept].to(device)
        self.lengths = lengths[kept]  # stays on the CPU: batch shapes are known without a sync

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def num_captions(self) -> int:
        """Captions in an epoch."""
        return len(self.lengths)

    def plan_epoch(self, seed: int) -> list[Tensor]:
        """Which captions make up each batch of an epoch.

        Args:
            seed: decides everything, so that a resumed epoch goes on with the same batches.

        Returns:
            (≤ B,) int64 positions, for each batch in turn.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.num_captions, generator=generator)
        batches: list[Tensor] = []
        for bucket in order.split(self.batch_size * BUCKET_BATCHES):
            by_length = bucket[self.lengths[bucket].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def gather(self, positions: Tensor) -> CaptionBatch:
        """Make the batch of the captions at `positions`, (B,) int64 on the CPU."""
        device = self.starts.device
        num_steps = self.lengths[positions] + 1
        # The mask is made where the lengths are, so that nothing waits for the device.
        mask = torch.arange(int(num_steps.max())) < num_steps[:, None]  # (B, T)
        real = mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        positions, mask = (x.to(device, non_blocking=True) for x in (positions, mask))
        at = self.starts[positions, None] + torch.arange(mask.shape[1], device=device)
        at.clamp_(max=len(self.stream) - 2)
        return CaptionBatch(
            features=self.features[self.rows[positions]],
            inputs=self.stream[at].where(mask, PAD),
            targets=self.stream[at + 1].where(mask, PAD),
            real=real,
        )
