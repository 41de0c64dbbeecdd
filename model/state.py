"""What a decoder carries from word to word, in a form that any search can rearrange.

Letters in shapes: N images, K rows (beams, samples) of each, R = N·K rows; L layers, H hidden.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class State(Protocol):
    """Rows of hypotheses, those of one image adjacent."""

    def __len__(self) -> int:
        """R, the number of rows."""
        ...

    def select(self, images: Tensor, parents: Tensor) -> Self:
        """Rearrange the rows.

        Args:
            images: (N′,) int64, positions of the images that stay.
            parents: (N′, K′) int64, which of its image's rows each new row goes on from.
        """
        ...


@dataclass(frozen=True)
class DecoderState:
    """The state of one decoder.

    Attributes:
        hidden: (h,) for GRU and RNN, (h, c) for LSTM; each (L, R, H).
        memory: what attention looks at, (N, …) each: one row an image, never repeated over beams;
            () without attention.
        num_rows_per_image: K.
    """

    hidden: tuple[Tensor, ...]
    memory: tuple[Tensor, ...] = ()
    num_rows_per_image: int = 1

    def __len__(self) -> int:
        return self.hidden[0].shape[1]

    def select(self, images: Tensor, parents: Tensor) -> "DecoderState":
        """Rearrange the rows, see `State`; the memory only where images leave."""
        num_images = len(self) // self.num_rows_per_image
        rows = (images[:, None] * self.num_rows_per_image + parents).flatten()
        all_stay = len(images) == num_images
        return DecoderState(
            tuple(part.index_select(1, rows) for part in self.hidden),
            self.memory if all_stay else tuple(x.index_select(0, images) for x in self.memory),
            parents.shape[1],
        )

    def repeat(self, num_rows: int) -> "DecoderState":
        """Give each image `num_rows` equal rows instead of its one."""
        assert self.num_rows_per_image == 1
        hidden = tuple(torch.repeat_interleave(part, num_rows, 1) for part in self.hidden)
        return replace(self, hidden=hidden, num_rows_per_image=num_rows)
