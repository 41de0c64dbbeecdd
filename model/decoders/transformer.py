"""A Transformer decoder that attends to the cells of the feature grid.

Letters in shapes: N images, B captions, T tokens, R rows (beams, or non-padding tokens), D feature
width, P grid cells, E embedding, H width of the layers, A attention heads, W width of a head, V
vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention import attend, attention_weights
from ..kernels.dropout import Dropout
from ..kernels.grouping import group_slots, nonpad_positions, scatter_rows
from ..kernels.linear import linear
from ..kernels.padding import ALIGNMENT, pad_rows, round_rows, round_up
from .config import DecoderConfig
from .grid import GridDecoder
from .inputs import Words
from .registry import HEAD_SIZE
from .transformer_state import RowCache, TransformerState

FEED_FORWARD = 4  # its hidden layer is this many times as wide as the model

# Attention over rows: (R, X) projected rows → (R, H) averaged values.
Attend = Callable[[Tensor], Tensor]


class Projection(nn.Linear):
    """`nn.Linear` that calls `kernels.linear`, which is faster in generation."""

    def forward(self, input: Tensor) -> Tensor:
        """Project (R, I) rows."""
        if self.bias is None:
            return F.linear(input, self.weight)
        return linear(input, self.weight, self.bias)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the image, and a feed-forward network.

    Each is normalised first and added to its input. Keys and queries have no bias: one of the keys
    would change nothing.

    Args:
        width: H.
        dropout: probability, on the result of each of the three.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.self_norm, self.image_norm, self.forward_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_input = Projection(width, 3 * width, bias=False)  # queries, keys, values
        self.self_output = Projection(width, width)
        self.image_query = Projection(width, width, bias=False)
        self.image_memory = Projection(width, 2 * width, bias=False)  # keys, values
        self.image_output = Projection(width, width)
        self.forward_input = Projection(width, FEED_FORWARD * width)
        self.forward_output = Projection(FEED_FORWARD * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, rows: Tensor, attend_self: Attend, attend_image: Attend) -> Tensor:
        """Compute the layer for (R, H) rows, each a token.

        Args:
            rows: (R, H).
            attend_self: (R, 3·H) queries, keys and values → (R, H), of the tokens up to each row.
            attend_image: (R, H) queries → (R, H), of the image cells.
        """
        added = self.self_output(attend_self(self.self_input(self.self_norm(rows))))
        rows = rows + self.dropout(added)
        added = self.image_output(attend_image(self.image_query(self.image_norm(rows))))
        rows = rows + self.dropout(added)
        added = self.forward_output(F.relu(self.forward_input(self.forward_norm(rows))))
        summed: Tensor = rows + self.dropout(added)
        return summed


class Transformer(GridDecoder):
    """A Transformer decoder with layer normalisation before each part of a layer.

    Positions are sinusoids, so captions of any length can be read. The keys and values of an image
    are computed once, for all its captions or beams. Without words of similar images, an image has
    P cells; with them, one more.

    Source: Vaswani et al. 2017, arXiv:1706.03762; normalisation first: Xiong et al. 2020,
    arXiv:2002.04745.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.num_heads = max(1, width // HEAD_SIZE)
        # Needed even if E = H: without it, a new decoder with tied embeddings repeats each word.
        self.input_proj = Projection(config.embed_size, width, bias=False)
        self.add_grid(width)
        self.memory_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.dropout) for _ in range(config.num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        self.add_output_layer(width)
        if config.neighbours:
            self.add_words(width, width)

    def init_state(self, features: Tensor, words: Words | None = None) -> TransformerState:
        """Return the state before BOS for (N, P, D) grid features."""
        memory, word_output = self.encode_image(features, words)
        return TransformerState(
            tuple(part.contiguous() for part in memory), word_output=word_output
        )

    def step(self, token_ids: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """Read (R,) token ids; return (R, V) logits of the next tokens and the next state."""
        num_rows, width = state.num_rows_per_image, self.config.hidden_size
        ancestors = state.next_ancestors()
        mask = None if ancestors is None else ancestors[:, None]  # (N, 1, K, C + K)
        caches: list[RowCache] = []
        weights: list[Tensor] = []

        def attend_self(projected: Tensor) -> Tensor:
            query, *added = self.split_heads(projected.view(-1, num_rows, 3 * width))
            joined = torch.stack(added)
            cache = state.caches[len(caches)] if state.caches else RowCache(joined[..., :0, :])
            cache, (key, value) = cache.append(state.num_cached, joined)
            caches.append(cache)
            return join_heads(attend(query, key, value, mask))

        def attend_image(query: Tensor) -> Tensor:
            (queries,) = self.split_heads(query.view(-1, num_rows, width))
            key, value = state.memory[2 * len(weights)], state.memory[2 * len(weights) + 1]
            weights.append(attention_weights(queries, key))
            return join_heads(weights[-1].to(value.dtype) @ value)

        rows = self.embed(token_ids, torch.full_like(token_ids, state.num_steps))
        for layer in self.layers:
            rows = layer(rows, attend_self, attend_image)
        outputs = state.add_words(self.output_norm(rows))
        attention = weights[-1].mean(1).flatten(0, 1)  # (R, P), or (R, P + 1) with words
        following = replace(
            state,
            caches=tuple(caches),
            num_cached=state.num_cached + num_rows,
            num_steps=state.num_steps + 1,
            ancestors=ancestors,
            attention=attention if self.words is None else attention[:, :-1],
        )
        return self.logits(outputs), following

    def forward(
        self,
        features: Tensor,
        inputs: Tensor,
        image_index: Tensor | None = None,
        lengths: Tensor | None = None,
        words: Words | None = None,
    ) -> Tensor:
        """Read (B, T) captions of (N, P, D) grids; return (B, T, H) outputs for `logits`."""
        num_captions, num_steps = inputs.shape
        if image_index is None:
            image_index = torch.arange(len(features), device=inputs.device)
        memory, word_output = self.encode_image(features, words)
        # Everything but attention reads only the non-padding tokens, as rows.
        nonpad = nonpad_positions(inputs.shape, lengths).to(inputs.device)
        num_tokens, num_rows = len(nonpad), round_rows(len(nonpad))
        images = image_index[nonpad // num_steps]
        # Slots of each token in padded arrays: a caption's tokens, and an image's, side by side.
        padded = torch.Size((num_captions, round_up(num_steps)))
        own_slots = nonpad // num_steps * padded[1] + nonpad % num_steps
        slots, size = group_slots(images, len(features), ALIGNMENT)
        layer_memory = iter(memory)

        def attend_self(projected: Tensor) -> Tensor:
            rows = scatter_rows(projected[:num_tokens], own_slots, padded)
            query, key, value = self.split_heads(rows)
            # Padding comes after the tokens of a caption, so the causal mask hides it.
            attended = attend(query, key, value, causal=True)
            return pad_rows(join_heads(attended)[own_slots], num_rows)

        def attend_image(query: Tensor) -> Tensor:
            (queries,) = self.split_heads(scatter_rows(query[:num_tokens], slots, size))
            key, value = next(layer_memory), next(layer_memory)
            attended = attend(queries, key, value)
            return pad_rows(join_heads(attended)[slots], num_rows)

        tokens = pad_rows(inputs.flatten()[nonpad], num_rows)
        rows = self.dropout(self.embed(tokens, pad_rows(nonpad % num_steps, num_rows)))
        for layer in self.layers:
            rows = layer(rows, attend_self, attend_image)
        outputs = self.output_norm(rows)[:num_tokens]
        if word_output is not None:
            outputs = outputs + word_output[images]
        dropped: Tensor = self.dropout(outputs)
        return scatter_rows(dropped, nonpad, inputs.shape)

    def encode_image(
        self, features: Tensor, words: Words | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Project (N, P, D) grids and the words of similar images.

        Returns:
            memory: keys and values of each layer in turn, (N, A, P, W) each; with `neighbours`, P
                is one more.
            word_output: (N, H), to add to every output; None without words.
        """
        values = self.project_grid(features.to(self.grid_proj.weight.dtype))
        word_output = None
        if self.words is not None:
            # In training, some images have no words: their cell is 0.
            word_cell = values.new_zeros(len(values), values.shape[2])
            if words is not None:
                word_cell, word_output = self.words(words, self.embedding.weight)
            values = torch.cat([values, word_cell.to(values.dtype)[:, None]], 1)
        values = self.memory_norm(values)
        flat = values.flatten(0, 1)
        memory = (
            layer.get_submodule("image_memory")(flat).unflatten(0, values.shape[:2])
            for layer in self.layers
        )
        return tuple(x for part in memory for x in self.split_heads(part)), word_output

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Add word vectors and positions: (R,) int64 each → (R, H)."""
        vectors = self.embedding(token_ids) * math.sqrt(self.config.embed_size)
        rows: Tensor = self.input_proj(vectors)
        return rows + sinusoids(positions, self.config.hidden_size).to(rows.dtype)

    def split_heads(self, projected: Tensor) -> Tensor:
        """Split projected rows into parts of width H, and these into heads.

        Args:
            projected: (N, Q, S·H), of S parts such as queries, keys and values.

        Returns:
            (S, N, A, Q, W), a view.
        """
        shape = (-1, self.num_heads, self.config.hidden_size // self.num_heads)
        parts: Tensor = projected.unflatten(2, shape).permute(2, 0, 3, 1, 4)
        return parts

    def init_weights(self) -> None:
        """Initialise embedding, output layer and layers; others keep torch's defaults."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, Projection):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def join_heads(attended: Tensor) -> Tensor:
    """Join the heads of attended values: (N, A, Q, W) → (N·Q, A·W)."""
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return the sinusoids of positions, of wavelengths 2π to 10,000·2π: (R,) → (R, width)."""
    steps = torch.arange(0, width, 2, device=positions.device)
    angles = positions[:, None] * torch.exp(steps * (-math.log(10_000) / width))
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]
