"""What a decoder carries from word to word, whatever it is made of, and what a search asks of it.

Letters in shapes: N images, K beams of each, R = N·K rows, L layers, H hidden, V words. The rows of
one image are adjacent.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

from torch import Tensor


class State(Protocol):
    """The state of all rows between two words."""

    def __len__(self) -> int:
        """R, the rows."""
        ...

    def select(self, images: Tensor, parents: Tensor) -> Self:
        """Let some images go and give the others new rows.

        Args:
            images: (N',) int64, positions of the images that stay, increasing.
            parents: (N', K') int64, which of its image's K rows each new row continues.
        """
        ...


S = TypeVar("S", bound=State)


class StepModel(Protocol[S]):
    """Anything that says how likely each word is to come next: a decoder, or an ensemble."""

    def start_tokens(self, batch_size: int) -> Tensor:
        """(R,) int64, BOS for every row, on the model's device."""
        ...

    def step(self, token_ids: Tensor, state: S) -> tuple[Tensor, S]:
        """Advance by one word: (R,) int64 previous words → (R, V) logits and the next state."""
        ...


@dataclass(frozen=True)
class DecoderState:
    """The state of one decoder.

    Attributes:
        hidden: (h,), or (h, c) of an LSTM, each (L, R, H); with `sources` (L, S, H), the different
            ones.
        memory: what attention looks at, each (N, …), one row an image and never repeated for its
            beams; () without attention.
        num_beams: K, rows of each image.
        sources: (R,) int64, which row of `hidden` each row goes on from, where several go on from
            the same; None where each has its own.
    """

    hidden: tuple[Tensor, ...]
    memory: tuple[Tensor, ...] = ()
    num_beams: int = 1
    sources: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden[0].shape[1] if self.sources is None else len(self.sources)

    def take(self, owners: Tensor) -> "DecoderState":
        """Give each of (B,) int64 images a row, and a memory, of its own; of a state with K = 1."""
        assert self.num_beams == 1
        return DecoderState(
            tuple(part.index_select(1, owners) for part in self.hidden),
            tuple(part.index_select(0, owners) for part in self.memory),
        )

    def select(self, images: Tensor, parents: Tensor) -> "DecoderState":
        """See `State.select`."""
        rows = (images[:, None] * self.num_beams + parents).flatten()
        rows = rows if self.sources is None else self.sources[rows]
        sources = None
        # Many beams go on from the same beam, whose state is then multiplied once. (Attention looks
        # at images of K beams each, and a GPU would wait for the number of different rows.)
        if not self.memory and rows.device.type == "cpu":
            rows, sources = rows.unique(return_inverse=True)
        hidden = tuple(part.index_select(1, rows) for part in self.hidden)
        memory = self.memory
        if memory and len(images) < len(memory[0]):
            memory = tuple(part.index_select(0, images) for part in memory)
        return DecoderState(hidden, memory, parents.shape[1], sources)

    def spread(self) -> "DecoderState":
        """The same with a row of `hidden` for each row."""
        if self.sources is None:
            return self
        hidden = tuple(part.index_select(1, self.sources) for part in self.hidden)
        return replace(self, hidden=hidden, sources=None)
