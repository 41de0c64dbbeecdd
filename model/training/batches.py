"""Training batches, gathered from features and captions in memory.

Pooled features of all COCO images are 505 MB in float16, so everything fits on the device and no
loader processes are needed. Features that do not fit are read window by window: see `windows.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.captions import EncodedCaptions
from ...pipeline.stage.ragged import Int32Array, Ints
from ...pipeline.text.vocab import BOS, EOS, PAD
from ..decoders.inputs import Words
from .windows import (
    ROWS_TOGETHER,
    Window,
    WindowReader,
    block_size,
    has_room,
    read_grids,
    read_pooled,
    take_buffer,
)

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
        words: of similar images, for the N images; None without `--neighbours`.
    """

    features: Tensor
    image_rows: Tensor
    image_index: Tensor
    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    nonpad: Tensor
    words: Words | None = None


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
        window: number of images whose features are in memory at a time; default all. Captions are
            then shuffled in windows: see `plan_epoch`.
        words: of similar images, for all images in the store; None without `--neighbours`.
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
        window: int | None = None,
        words: Words | None = None,
    ) -> None:
        self.store, self.batch_size, self.device = store, batch_size, device
        self.words = words
        self.grid, self.by_image, self.window = grid, by_image, window or None
        self.num_views = min(num_views or store.num_views, store.num_views)
        kept = store.has(captions.image_ids).numpy()
        # 32 bits where they suffice: there may be tens of millions of captions.
        self.rows = store.rows(captions.image_ids[kept]).int()  # on the CPU, like the lengths
        stream, starts = join_captions(captions)
        self.stream = torch.from_numpy(stream).to(device)
        self.starts = torch.from_numpy(starts[kept]).to(device)
        # On the CPU: batch shapes are known without a sync.
        self.lengths = torch.from_numpy(captions.lengths[kept].astype(np.int32))
        images, counts = self.rows.unique(return_counts=True)
        self.num_images = len(images)
        self.images_per_batch = max(1, batch_size // int(counts.max()))
        self.views = None
        if not grid and self.window is None:
            self.views = load_views(store, self.num_views, device)
        self.reader = WindowReader()
        self.windows: list[Tensor] = []  # of the epoch: positions of captions
        self.window_of = torch.empty(0, dtype=torch.int32)  # (M,), window of each caption

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        if self.by_image:
            return -(-self.num_images // self.images_per_batch)
        return -(-self.num_captions // self.batch_size)

    @property
    def num_captions(self) -> int:
        """Number of captions in an epoch."""
        return len(self.lengths)

    @property
    def images(self) -> Tensor:
        """(n,) int64, store rows of the images that have captions here."""
        images: Tensor = self.rows.unique()
        return images.long()

    def plan_epoch(self, seed: int) -> list[Tensor]:
        """Assign captions to the batches of an epoch, and let `gather` serve this epoch.

        With windows, this is a block shuffle. Blocks of consecutive images are shuffled, windows
        take their captions in that order, and the captions of a window are shuffled among
        themselves. One window with all images gives the same batches as no windows.

        Args:
            seed: the only source of randomness: a resumed epoch gets the same batches.

        Returns:
            For each batch the positions of its captions, (≤ B,) int64.
        """
        generator = torch.Generator().manual_seed(seed)
        self.reader.stop()
        self.windows = self._split_windows(generator)
        batches = [
            batch for window in self.windows for batch in self._plan_window(window, generator)
        ]
        if self.window is not None:
            self.window_of = torch.empty(self.num_captions, dtype=torch.int32)
            for index, window in enumerate(self.windows):
                self.window_of[window] = index
        return batches

    def _split_windows(self, generator: torch.Generator) -> list[Tensor]:
        """Split all captions into windows of whole batches: their positions, increasing."""
        if self.window is None or self.window >= self.num_images:
            return [torch.arange(self.num_captions)]
        images, image_index, counts = self.rows.unique(return_inverse=True, return_counts=True)
        row_bytes = math.prod(self._row_shape) * torch.float16.itemsize
        size = block_size(self.window, row_bytes)
        blocks = torch.randperm(-(-len(images) // size), generator=generator)
        place = blocks.argsort()[torch.arange(len(images)) // size] * size
        place += torch.arange(len(images)) % size
        order = place[image_index].argsort(stable=True)  # captions in the order of their images
        if self.by_image:
            num_images = self.images_per_batch * max(1, self.window // self.images_per_batch)
            sizes = [int(part.sum()) for part in counts[place.argsort()].split(num_images)]
            windows = order.split(sizes)
        else:
            num_batches = self.window * self.num_captions // len(images) // self.batch_size
            windows = order.split(self.batch_size * max(1, num_batches))
        return [window.sort().values for window in windows]

    def _plan_window(self, window: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        """Assign the captions of a window to batches."""
        if self.by_image:
            _, image_index, counts = self.rows[window].unique(
                return_inverse=True, return_counts=True
            )
            place = torch.randperm(len(counts), generator=generator)
            order = place[image_index].argsort(stable=True)
            sizes = counts[place.argsort()].split(self.images_per_batch)
            return list(window[order].split([int(size.sum()) for size in sizes]))
        order = window[torch.randperm(len(window), generator=generator)]
        batches: list[Tensor] = []
        for bucket in order.split(self.batch_size * BUCKET_BATCHES):
            by_length = bucket[self.lengths[bucket].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def draw_views(self, seed: int) -> Tensor:
        """Draw the view of its image that each caption is trained on in an epoch.

        Args:
            seed: of the epoch.

        Returns:
            (M,) int64; with `by_image` all captions of an image get the same view.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.by_image:
            num_images = len(self.store.image_ids)
            return torch.randint(self.num_views, (num_images,), generator=generator)[self.rows]
        return torch.randint(self.num_views, (self.num_captions,), generator=generator)

    def gather(self, positions: Tensor, views: Tensor | None = None) -> CaptionBatch:
        """Gather a batch.

        Args:
            positions: (B,) int64 on the CPU, from `plan_epoch`.
            views: (M,) int64, from `draw_views`; None takes the first, plain view of every image.
        """
        device = self.device
        positions = positions[self.lengths[positions].argsort(descending=True, stable=True)]
        num_steps = self.lengths[positions].long() + 1
        # The mask is made on the CPU, where the lengths are, so that nothing waits for the device.
        mask = torch.arange(int(num_steps[0])) < num_steps[:, None]  # (B, T)
        nonpad = mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)
        rows, chosen, image_index = self._choose_views(positions, views)
        features = self._gather_features(rows, chosen, positions, views)
        positions, mask = (x.to(device, non_blocking=True) for x in (positions, mask))
        at = self.starts[positions, None] + torch.arange(mask.shape[1], device=device)
        at.clamp_(max=len(self.stream) - 2)
        return CaptionBatch(
            features=features,
            image_rows=rows,
            image_index=image_index.to(device, non_blocking=True),
            inputs=self.stream[at].long().where(mask, PAD),
            targets=self.stream[at + 1].long().where(mask, PAD),
            lengths=num_steps,
            nonpad=nonpad,
            words=None if self.words is None else self.words.take(rows).to(device),
        )

    def _choose_views(
        self, positions: Tensor, views: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of the images of some captions, the view of each, and `image_index`.

        With `by_image`, each image appears once, and rows increase.
        """
        rows, image_index = self.rows[positions].long(), torch.arange(len(positions))
        chosen = torch.zeros_like(rows) if views is None else views[positions]
        if self.by_image:
            rows, image_index = rows.unique(return_inverse=True)
            chosen = torch.empty_like(rows).scatter_(0, image_index, chosen)
        return rows, chosen, image_index

    def _gather_features(
        self, rows: Tensor, chosen: Tensor, positions: Tensor, views: Tensor | None
    ) -> Tensor:
        """Return features of images on the device: (n, D), or (n, P, D) grids, float16."""
        if self.views is not None:
            rows, chosen = (x.to(self.views.device, non_blocking=True) for x in (rows, chosen))
            return self._to_device(self.views[rows, chosen])
        if self.window is not None:
            read = partial(self._read_window, views=views)
            window = self.reader.get(int(self.window_of[positions[0]]), len(self.windows), read)
            return self._to_device(window.gather(rows, chosen))
        read_rows = self.store.gather_grid if self.grid else self.store.gather
        return self._to_device(read_rows(rows, chosen))

    def _to_device(self, features: Tensor) -> Tensor:
        if self.device.type == "cuda" and features.device.type == "cpu":
            features = features.pin_memory()
        return features.to(self.device, non_blocking=True)

    def _read_window(
        self, index: int, buffer: Tensor | None, views: Tensor | None
    ) -> tuple[Window, Tensor]:
        """Read a window of the epoch into a buffer, and copy it to the device if it has room."""
        rows, chosen, _ = self._choose_views(self.windows[index], views)
        if self.by_image:  # one view of each image
            shape = (len(rows), 1, *self._row_shape)
        else:
            rows = rows.unique()
            shape = (len(rows), self.num_views, *self._row_shape)
        buffer = take_buffer(buffer, shape)
        features = buffer[: len(rows)]
        read = read_grids if self.grid else read_pooled
        read(self.store, rows, chosen if self.by_image else None, features)
        if has_room(self.device, 2 * features.nbytes):
            features = features.to(self.device)
        return Window(rows, features), buffer

    @property
    def _row_shape(self) -> tuple[int, ...]:
        """(D,), or (P, D) of grids."""
        if self.grid:
            assert self.store.grid_shape is not None
            return self.store.grid_shape
        return (self.store.feature_dim,)


def join_captions(captions: EncodedCaptions) -> tuple[Int32Array, Ints]:
    """Join captions to one stream BOS words EOS BOS words EOS ….

    The inputs and the targets of a caption are two parts of it.

    Returns:
        The stream, and the position of each caption's BOS, (M,).
    """
    lengths = captions.lengths
    starts = captions.offsets[:-1] + 2 * np.arange(len(captions))
    stream = np.full(len(captions.tokens) + 2 * len(captions) + 1, EOS, np.int32)
    is_word = np.ones(len(stream), bool)
    is_word[starts] = is_word[starts + lengths + 1] = is_word[-1] = False
    stream[is_word] = captions.tokens
    stream[starts] = BOS
    return stream, starts


def load_views(store: FeatureStore, num_views: int, device: torch.device) -> Tensor | None:
    """Return the pooled features (N, V, D) on the device; None if batches read them from the store.

    A memory-mapped store stays in its files, unless a GPU has room for its features.
    """
    is_resident = isinstance(store.pooled, Tensor)
    shape = (len(store.image_ids), num_views, store.feature_dim)
    num_bytes = math.prod(shape) * torch.float16.itemsize
    if device.type == "cpu" or not has_room(device, num_bytes):
        return store.views[:, :num_views] if is_resident else None
    if is_resident:
        return store.views[:, :num_views].to(device)
    views = torch.empty(shape, dtype=torch.float16, device=device)
    for start in range(0, shape[0], ROWS_TOGETHER):
        part = views[start : start + ROWS_TOGETHER]
        part.copy_(store.read(start, start + len(part), num_views))
    return views
