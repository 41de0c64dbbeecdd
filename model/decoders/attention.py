"""Where a decoder looks: soft attention over a grid, and adaptive attention with a sentinel.

Letters in shapes: N images, R places of the grid, Q queries an image, H hidden, E embedding, A
attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What attention looks at: keys (N, R, A) and values (N, R, E), projected once an image.
Memory = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Additive attention: a small network scores every place for every query.

    Source: Xu et al. 2015, arXiv:1502.03044, after Bahdanau et al. 2015, arXiv:1409.0473.
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(value_size, attention_size)
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def remember(self, values: Tensor) -> Memory:
        """Project what will be looked at, (N, R, E), once for all queries."""
        return self.key(values), values

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Unnormalised scores of every place: (N, Q, H), (N, R, A) → (N, Q, R)."""
        mixed = torch.tanh(keys[:, None] + self.query(queries)[:, :, None])  # (N, Q, R, A)
        scored: Tensor = self.score(mixed)
        return scored.squeeze(-1)

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Look at the grid.

        Args:
            queries: (N, Q, H).
            memory: from `remember`.

        Returns:
            context: (N, Q, E), the values' mean under the weights.
            weights: (N, Q, R), each at least 0, their sum over the places 1.
        """
        keys, values = memory
        weights = self.scores(queries, keys).softmax(-1)
        return weights @ values, weights


class AdaptiveAttention(Attention):
    """Attention that may look away: a sentinel competes with the places of the grid.

    Source: Lu et al. 2017, arXiv:1612.01887.
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int) -> None:
        super().__init__(value_size, query_size, attention_size)
        self.gate_input = nn.Linear(value_size, query_size)
        self.gate_hidden = nn.Linear(query_size, query_size, bias=False)
        self.sentinel_value = nn.Linear(query_size, value_size)
        self.sentinel_key = nn.Linear(query_size, attention_size)

    def sentinel(self, inputs: Tensor, previous: Tensor, cell_memory: Tensor) -> Tensor:
        """What the decoder knows without looking: (N, Q, H).

        Args:
            inputs: (N, Q, E) of the cell.
            previous: (N, Q, H), hidden state before the word.
            cell_memory: (N, Q, H), tanh of an LSTM's memory; the hidden state of other cells.
        """
        gate = torch.sigmoid(self.gate_input(inputs) + self.gate_hidden(previous))
        return gate * cell_memory

    def look(self, queries: Tensor, sentinel: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Look at the grid, or away.

        Args:
            queries: (N, Q, H).
            sentinel: (N, Q, H), from `sentinel`.
            memory: from `remember`.

        Returns:
            context: (N, Q, E).
            weights: (N, Q, R + 1), the last that of the sentinel; their sum is 1.
        """
        keys, values = memory
        away = torch.tanh(self.sentinel_key(sentinel) + self.query(queries))  # (N, Q, A)
        scores = torch.cat([self.scores(queries, keys), self.score(away)], -1)
        weights = F.softmax(scores, -1)
        seen = weights[..., :-1] @ values
        return seen + weights[..., -1:] * self.sentinel_value(sentinel), weights
