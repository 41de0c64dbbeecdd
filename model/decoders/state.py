"""The decoder state: everything a decoder keeps from one token to the next.

Letters in shapes: N images, K rows (beams or samples) per image, R = N·K rows, L layers, H hidden,
P grid cells, V vocabulary. The rows of an image are adjacent.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

from torch import Tensor

from ..kernels.recurrence import Hidden, distinct_rows


class State(Protocol):
    """The interface of a decoder's state that generation uses.

    It may also have `attention`, see `DecoderState`.
    """

    def __len__(self) -> int:
        """Return R, the number of rows."""
        ...

    def select(self, images: Tensor, parents: Tensor) -> Self:
        """Return the state for some of the images, with rows chosen by `parents`.

        Args:
            images: (N',) int64, indices of the images to keep, increasing.
            parents: (N', K') int64. Each new row continues this row (0 to K - 1) of its image.
        """
        ...


S = TypeVar("S", bound=State)


class StepModel(Protocol[S]):
    """Anything that scores the next token: a decoder or an ensemble."""

    def start_tokens(self, batch_size: int) -> Tensor:
        """Return (batch_size,) int64 tokens, all BOS, on the model's device."""
        ...

    def step(self, token_ids: Tensor, state: S) -> tuple[Tensor, S]:
        """Advance by one token: (R,) int64 → (R, V) logits and the next state."""
        ...


@dataclass(frozen=True)
class DecoderState:
    """The state of a recurrent decoder.

    Attributes:
        hidden: (h,) of a GRU or RNN, (h, c) of an LSTM; (L, S, H) each. S = R unless rows share
            hidden states; see `hidden_index`.
        memory: tensors that attention reads, (N, …) each. The rows of an image share one entry.
            Empty without attention.
        num_rows_per_image: K.
        hidden_index: (R,) int64, the index (0 to S - 1) of each row's hidden state. None if S = R
            and row i has state i. Beams that continue the same beam share a state, which saves
            work.
        attention: (R, P), non-negative: the weights of the grid cells at the last token. A
            decoder may attend to something else too, so the sum is at most 1. None without
            attention, and before the first token.
        word_output: (N, H), added to every output of an image's rows: the words of similar images.
            None without `--neighbours`.
    """

    hidden: Hidden
    memory: tuple[Tensor, ...] = ()
    num_rows_per_image: int = 1
    hidden_index: Tensor | None = None
    attention: Tensor | None = None
    word_output: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden[0].shape[1] if self.hidden_index is None else len(self.hidden_index)

    def select(self, images: Tensor, parents: Tensor) -> "DecoderState":
        """See `State.select`."""
        rows = (images[:, None] * self.num_rows_per_image + parents).flatten()
        rows = rows if self.hidden_index is None else self.hidden_index[rows]
        hidden_index = None
        if not self.memory:  # attention needs all K rows of each image, see `group_rows`
            rows, hidden_index = distinct_rows(rows)
        hidden = tuple(part.index_select(1, rows) for part in self.hidden)
        memory, word_output = self.memory, self.word_output
        if len(images) * self.num_rows_per_image < len(self):  # some images have left
            memory = tuple(part.index_select(0, images) for part in memory)
            word_output = _take(word_output, images)
        return DecoderState(hidden, memory, parents.shape[1], hidden_index, word_output=word_output)

    def repeat(self, image_index: Tensor) -> "DecoderState":
        """Return a state with one row per caption, each with its own copy of the memory.

        Args:
            image_index: (B,) int64, the image of each caption. This state must have one row per
                image.
        """
        assert self.num_rows_per_image == 1 and self.hidden_index is None
        return DecoderState(
            tuple(part.index_select(1, image_index) for part in self.hidden),
            tuple(part.index_select(0, image_index) for part in self.memory),
            word_output=_take(self.word_output, image_index),
        )

    def first_rows(self, count: int) -> "DecoderState":
        """Return the first `count` rows of a state with one row per image."""
        if count == len(self):
            return self
        assert self.num_rows_per_image == 1 and self.hidden_index is None
        return replace(
            self,
            hidden=tuple(part[:, :count].contiguous() for part in self.hidden),
            memory=tuple(part[:count] for part in self.memory),
            word_output=None if self.word_output is None else self.word_output[:count],
        )

    def add_words(self, outputs: Tensor) -> Tensor:
        """Add the projected words of each image to the (R, H) outputs of its rows."""
        if self.word_output is None:
            return outputs
        return (self.group_rows(outputs) + self.word_output[:, None]).flatten(0, 1)

    def group_rows(self, rows: Tensor) -> Tensor:
        """Group rows by image: (R, X) → (N, K, X)."""
        return rows.view(-1, self.num_rows_per_image, rows.shape[1])


def _take(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, rows)
