"""Knowing when to look (Lu et al. 2017): a sentinel competes with the grid cells.

Letters in shapes: N images, P grid cells, Q queries per image, B captions, T tokens, R rows
(beams, or non-padding tokens), E embedding, H hidden, A attention width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.grouping import group_slots, nonpad_positions, scatter_rows
from ..kernels.padding import pad_rows, round_rows
from ..kernels.recurrence import Hidden, call_cell, read_captions
from .attention import AdditiveAttention, AttentionDecoder, Memory
from .config import DecoderConfig
from .state import DecoderState


class SentinelAttention(AdditiveAttention):
    """Additive attention with one more value to attend to: what the decoder already knows.

    Source: Lu et al. 2017, arXiv:1612.01887.
    """

    def __init__(self, value_size: int, query_size: int, attention_size: int) -> None:
        super().__init__(value_size, query_size, attention_size)
        self.gate_input = nn.Linear(value_size, query_size)
        self.gate_hidden = nn.Linear(query_size, query_size, bias=False)
        self.sentinel_value = nn.Linear(query_size, value_size)
        self.sentinel_key = nn.Linear(query_size, attention_size)

    def sentinel(self, inputs: Tensor, previous: Tensor, cell_memory: Tensor) -> Tensor:
        """Gate the cell's memory: what the decoder can say without the image.

        Args:
            inputs: (…, E) of the cell.
            previous: (…, H), hidden state before the word.
            cell_memory: (…, H), tanh of an LSTM's c; the hidden state of other cells.

        Returns:
            (…, H).
        """
        gate = torch.sigmoid(self.gate_input(inputs) + self.gate_hidden(previous))
        return gate * cell_memory

    def attend(self, queries: Tensor, sentinel: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Average the grid values and the sentinel, weighted by their scores.

        Args:
            queries: (N, Q, H).
            sentinel: (N, Q, H), from `sentinel`.
            memory: from `project_keys`.

        Returns:
            context: (N, Q, E).
            weights: (N, Q, P + 1), summing to 1; the last one belongs to the sentinel.
        """
        keys, values = memory
        mixed = torch.tanh(self.sentinel_key(sentinel) + self.query(queries))  # (N, Q, A)
        scores = torch.cat([self.scores(queries, keys), self.score(mixed)], -1)
        weights = F.softmax(scores, -1)
        context = weights[..., :-1] @ values
        return context + weights[..., -1:] * self.sentinel_value(sentinel), weights


class AdaptiveAttention(AttentionDecoder):
    """Attends after the cell has read the word; the global image enters with every word.

    Source: Lu et al. 2017, arXiv:1612.01887.
    """

    attention_class = SentinelAttention

    attention: SentinelAttention

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.global_proj = nn.Linear(config.feature_dim, config.embed_size)

    def encode_grid(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return keys (N, P, A), values (N, P, E) and the global image vector (N, E)."""
        memory = super().encode_grid(features)
        global_image = self.global_proj(self.normalize(features.mean(1)))
        return (*memory, self.dropout(global_image))

    def advance(self, words: Tensor, state: DecoderState) -> tuple[Tensor, Hidden, Tensor]:
        """See `AttentionDecoder.advance`."""
        keys, values, global_image = state.memory
        previous = state.hidden[0][-1]  # (R, H), of the top layer
        inputs = (state.group_rows(words) + global_image[:, None]).flatten(0, 1)
        outputs, hidden = call_cell(self.cell, inputs[:, None], state.hidden)
        cell_memory = hidden[1][-1].tanh() if self.config.cell == "lstm" else outputs[:, 0]
        query = outputs[:, 0]
        sentinel = self.attention.sentinel(inputs, previous, cell_memory)
        context, weights = self.attention.attend(
            state.group_rows(query), state.group_rows(sentinel), (keys, values)
        )
        output = outputs[:, 0] + self.context_proj(context.flatten(0, 1))
        return output, hidden, weights[..., :-1].flatten(0, 1)  # without the sentinel

    def read_with_attention(
        self, words: Tensor, state: DecoderState, image_index: Tensor, lengths: Tensor | None
    ) -> Tensor:
        """Read (B, T, E) word vectors and then attend for all words at once: (B, T, H).

        The context does not enter the cell, so that no word waits for the attention of the word
        before. An LSTM is read step by step: its sentinel needs c after each word, which torch's
        cell does not return.
        """
        if self.config.cell == "lstm":
            return super().read_with_attention(words, state, image_index, lengths)
        keys, values, global_image = state.memory
        (start,) = replace(state, memory=()).repeat(image_index).hidden
        inputs = words + global_image[image_index, None]
        outputs = read_captions(self.cell, inputs, (start,), lengths)
        previous = torch.cat([start[-1][:, None], outputs[:, :-1]], 1)
        # From here on only the non-padding tokens, as rows.
        nonpad = nonpad_positions(words.shape[:2], lengths).to(words.device)
        num_tokens, num_rows = len(nonpad), round_rows(len(nonpad))
        output, inputs, previous = (
            pad_rows(x.flatten(0, 1)[nonpad], num_rows) for x in (outputs, inputs, previous)
        )
        sentinel = self.attention.sentinel(inputs, previous, output)
        # Attention wants the tokens of each image side by side.
        slots, size = group_slots(image_index[nonpad // words.shape[1]], len(state))
        queries, sentinels = (scatter_rows(x[:num_tokens], slots, size) for x in (output, sentinel))
        grouped, _ = self.attention.attend(queries, sentinels, (keys, values))
        context = pad_rows(grouped.flatten(0, 1)[slots], num_rows)
        attended = (output + self.context_proj(context))[:num_tokens]
        flat = torch.zeros_like(outputs).flatten(0, 1)
        return flat.index_copy(0, nonpad, attended).view_as(outputs)
