"""The state of a Transformer decoder: keys and values of the image and of earlier tokens.

Letters in shapes: N images, K rows (beams or samples) per image, R = N·K rows, A attention heads, W
width of a head, P image cells, C cached rows per image, V vocabulary. The rows of an image are
adjacent.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

STEPS_AHEAD = 8  # a full cache makes room for the rows of this many steps


class RowCache:
    """Keys and values of one layer, of all rows that the earlier steps have read.

    Rows are appended to a buffer with free space. States that follow from one another share the
    buffer; each uses the first rows of it. Only the newest state appends in place.

    Args:
        buffer: (2, N, A, C', W), keys and values. C' is the capacity.
        num_used: rows of an image that are in use by any state.
    """

    def __init__(self, buffer: Tensor, num_used: int = 0) -> None:
        self.buffer, self.num_used = buffer, num_used

    def append(self, num_rows: int, added: Tensor) -> tuple["RowCache", Tensor]:
        """Append rows to the first `num_rows` of each image.

        Args:
            num_rows: C.
            added: (2, N, A, K, W), keys and values.

        Returns:
            The cache, and a view of its keys and values (2, N, A, C + K, W).
        """
        total = num_rows + added.shape[3]
        cache = self
        # Autograd needs the values of each step: with gradients, rows are never added in place.
        is_newest = self.num_used == num_rows and not torch.is_grad_enabled()
        if not is_newest or total > self.buffer.shape[3]:
            capacity = max(self.buffer.shape[3], num_rows + STEPS_AHEAD * added.shape[3])
            buffer = added.new_empty(*added.shape[:3], capacity, added.shape[4])
            buffer[..., :num_rows, :] = self.buffer[..., :num_rows, :]
            cache = RowCache(buffer)
        cache.buffer[..., num_rows:total, :] = added
        cache.num_used = total
        return cache, cache.buffer[..., :total, :]

    def take(self, images: Tensor, num_rows: int) -> "RowCache":
        """Return a cache with the first `num_rows` of some images; `images` is (N',) int64."""
        # With the free space, so that the next rows need no other copy.
        return RowCache(self.buffer.index_select(1, images), num_rows)


@dataclass(frozen=True)
class TransformerState:
    """The state of a Transformer decoder.

    Beams that survive are not copied: a row attends to the cached rows of its image that
    `ancestors` marks.

    Attributes:
        memory: keys and values of the image cells, of each layer in turn; (N, A, P, W) each. The
            rows of an image share one entry.
        caches: of each layer; empty before the first token.
        num_cached: C.
        num_steps: tokens that each row has read.
        num_rows_per_image: K.
        ancestors: (N, K, C) bool, which cached rows each row continues. None if K was always 1: all
            of them.
        attention: (R, P), non-negative: the weights of the grid cells at the last token, a mean
            over the heads of the last layer. The sum is at most 1. None before the first token.
        word_output: (N, H), added to every output of an image's rows: the words of similar images.
            None without `--neighbours`.
    """

    memory: tuple[Tensor, ...]
    caches: tuple[RowCache, ...] = ()
    num_cached: int = 0
    num_steps: int = 0
    num_rows_per_image: int = 1
    ancestors: Tensor | None = None
    attention: Tensor | None = None
    word_output: Tensor | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.memory[0])

    def __len__(self) -> int:
        return self.num_images * self.num_rows_per_image

    def select(self, images: Tensor, parents: Tensor) -> "TransformerState":
        """See `State.select`."""
        memory, caches, word_output = self.memory, self.caches, self.word_output
        ancestors = self.ancestors
        if len(images) < self.num_images:  # some images have left
            memory = tuple(part.index_select(0, images) for part in memory)
            caches = tuple(cache.take(images, self.num_cached) for cache in caches)
            ancestors = None if ancestors is None else ancestors.index_select(0, images)
            word_output = None if word_output is None else word_output.index_select(0, images)
        num_rows = parents.shape[1]
        if ancestors is not None:
            ancestors = ancestors.gather(1, parents[:, :, None].expand(-1, -1, self.num_cached))
        elif num_rows > 1:
            shape = (len(images), num_rows, self.num_cached)
            ancestors = torch.ones(shape, dtype=torch.bool, device=images.device)
        return replace(
            self,
            memory=memory,
            caches=caches,
            num_rows_per_image=num_rows,
            ancestors=ancestors,
            attention=None,
            word_output=word_output,
        )

    def repeat(self, image_index: Tensor) -> "TransformerState":
        """Return a state with one row per caption, each with its own copy of the memory.

        Args:
            image_index: (B,) int64, the image of each caption. This state must be that before the
                first token.
        """
        assert self.num_rows_per_image == 1 and not self.caches
        word_output = self.word_output
        return TransformerState(
            tuple(part.index_select(0, image_index) for part in self.memory),
            word_output=None if word_output is None else word_output.index_select(0, image_index),
        )

    def next_ancestors(self) -> Tensor | None:
        """Return `ancestors` (N, K, C + K) after each row has been cached as its own ancestor."""
        if self.ancestors is None:
            return None
        num_rows = self.num_rows_per_image
        own = torch.eye(num_rows, dtype=torch.bool, device=self.ancestors.device)
        return torch.cat([self.ancestors, own.expand(self.num_images, -1, -1)], 2)

    def add_words(self, outputs: Tensor) -> Tensor:
        """Add the projected words of each image to the (R, H) outputs of its rows."""
        if self.word_output is None:
            return outputs
        return outputs + self.word_output.repeat_interleave(self.num_rows_per_image, 0)
