"""Additive attention over grid features, and the base class of decoders with attention.

Letters in shapes: N images, P grid cells, Q queries per image, R rows (beams), B captions, T
tokens, D feature width, E embedding, H hidden, A attention width.
"""

from abc import abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.padding import round_rows
from ..kernels.recurrence import Hidden
from .config import DecoderConfig
from .grid import GridDecoder
from .inputs import Words
from .show_tell import ShowTell
from .state import DecoderState

# Keys (N, P, A) and values (N, P, E) of the grid cells, computed once per image.
Memory = tuple[Tensor, Tensor]


class AdditiveAttention(nn.Module):
    """Additive attention: a small network scores each pair of a query and a grid cell.

    Source: Xu et al. 2015, arXiv:1502.03044, after Bahdanau et al. 2015, arXiv:1409.0473.
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(value_size, attention_size)
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def project_keys(self, values: Tensor) -> Memory:
        """Return the memory of (N, P, E) values: their keys, and the values themselves."""
        return self.key(values), values

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Score every grid cell: (N, Q, H), (N, P, A) → (N, Q, P), unnormalised."""
        mixed = torch.tanh(keys[:, None] + self.query(queries)[:, :, None])  # (N, Q, P, A)
        scored: Tensor = self.score(mixed)
        return scored.squeeze(-1)

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Average the values, weighted by their scores.

        Args:
            queries: (N, Q, H).
            memory: from `project_keys`.

        Returns:
            context: (N, Q, E).
            weights: (N, Q, P), non-negative, summing to 1 over the grid cells.
        """
        keys, values = memory
        weights = self.scores(queries, keys).softmax(-1)
        return weights @ values, weights


class AttentionDecoder(GridDecoder, ShowTell):
    """Base class of Show and Tell decoders that attend to grid features at every time step.

    A context vector is added to the cell's output. Subclasses define one time step (`advance`).
    """

    attention_class = AdditiveAttention

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.add_grid(config.embed_size)
        self.attention = self.attention_class(
            config.embed_size, config.hidden_size, config.attention_size
        )
        self.context_proj = nn.Linear(config.embed_size, config.hidden_size)

    @abstractmethod
    def advance(self, words: Tensor, state: DecoderState) -> tuple[Tensor, Hidden, Tensor]:
        """Compute one time step.

        Args:
            words: (R, E) word vectors.
            state: the state before the step.

        Returns:
            outputs: (R, H), the cell's outputs plus the projected context vectors.
            hidden: (L, R, H) each, the next hidden state.
            attention: (R, P), the weights of the grid cells.
        """

    def init_state(self, features: Tensor, words: Words | None = None) -> DecoderState:
        """Return the state before BOS for (N, P, D) grid features."""
        features = features.to(self.grid_proj.weight.dtype)
        memory = self.encode_grid(features)
        return replace(super().init_state(features.mean(1), words), memory=memory)

    def encode_grid(self, features: Tensor) -> tuple[Tensor, ...]:
        """Project (N, P, D) grids to the memory that attention reads at every step."""
        return self.attention.project_keys(self.project_grid(features))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read (R,) token ids; return (R, V) logits of the next tokens and the next state."""
        outputs, hidden, attention = self.advance(self.embedding(token_ids), state)
        outputs = state.add_words(outputs)
        return self.logits(outputs), replace(state, hidden=hidden, attention=attention)

    def forward(
        self,
        features: Tensor,
        inputs: Tensor,
        image_index: Tensor | None = None,
        lengths: Tensor | None = None,
        words: Words | None = None,
    ) -> Tensor:
        """Read (B, T) captions of (N, P, D) grids; return (B, T, H) outputs for `logits`."""
        if image_index is None:
            image_index = torch.arange(len(features), device=inputs.device)
        tokens = self.dropout(self.embedding(inputs))
        state = self.init_state(features, words)
        outputs = self.read_with_attention(tokens, state, image_index, lengths)
        if state.word_output is not None:
            outputs = outputs + state.word_output[image_index, None]
        dropped: Tensor = self.dropout(outputs)
        return dropped

    def read_with_attention(
        self, words: Tensor, state: DecoderState, image_index: Tensor, lengths: Tensor | None
    ) -> Tensor:
        """Read (B, T, E) word vectors step by step; return (B, T, H) outputs.

        Args:
            words: (B, T, E).
            state: one row per image.
            image_index: (B,) int64, the image of each caption.
            lengths: (B,) int64 on the CPU, descending; None if all captions have T tokens. Outputs
                after the end of a caption are meaningless.
        """
        state = state.repeat(image_index)
        num_captions, num_steps = words.shape[:2]
        num_active = [num_captions] * num_steps
        if lengths is not None:
            # Captions are sorted by length, longest first, so the active ones come first.
            counts = (lengths[:, None] > torch.arange(num_steps)).sum(0).tolist()
            num_active = [min(round_rows(count), num_captions) for count in counts]
        outputs = []
        # The gradient of words[:, t] would be as large as `words` at every step; unbind avoids it.
        for step_words, count in zip(words.unbind(1), num_active, strict=True):
            state = state.first_rows(count)
            output, hidden, _ = self.advance(step_words[:count], state)
            state = replace(state, hidden=hidden)
            outputs.append(F.pad(output, (0, 0, 0, num_captions - count)))
        return torch.stack(outputs, 1)
