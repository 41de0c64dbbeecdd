"""Show and Tell (Vinyals et al. 2015): a recurrent language model whose first input is an image.

Letters in shapes: N images, B captions, T tokens, R rows (beams), D feature width, E embedding, H
hidden, L layers, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.cross_entropy import linear_cross_entropy
from ..kernels.dropout import Dropout
from ..kernels.linear import linear
from ..kernels.recurrence import Hidden, call_cell, read_captions, read_token
from .base import Decoder
from .config import DecoderConfig
from .initialization import empty_embedding, init_cell, init_embedding, mean_direction
from .state import DecoderState

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class ShowTell(Decoder):
    """The Show and Tell decoder: word embedding, image projection, recurrent cell, output layer.

    Beyond the paper: image features are centred and scaled, the output layer shares the word
    embedding, and the cell is a GRU by default. `Decoder` documents the arguments of each method.

    Source: Vinyals et al. 2015, arXiv:1411.4555; GRU: Cho et al. 2014, arXiv:1406.1078; tied
    embeddings: Press and Wolf 2017, arXiv:1608.05859.
    """

    # Features are scaled to this length: then images and words are inputs of similar size.
    feature_norm = 20.0

    feature_mean: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        embed_size, hidden_size = config.embed_size, config.hidden_size
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.embedding = empty_embedding(config.vocab_size, embed_size)
        self.cell: nn.RNNBase = CELLS[config.cell](
            embed_size,
            hidden_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        if config.image_as == "first-input":
            image_size = embed_size
        else:  # all hidden tensors of all layers, two per layer for an LSTM
            image_size = (2 if config.cell == "lstm" else 1) * config.num_layers * hidden_size
        self.image_proj = nn.Linear(config.feature_dim, image_size)
        # Tied embeddings need outputs of width E.
        output_size = embed_size if config.tie_embeddings else hidden_size
        self.output_proj = (
            nn.Identity()
            if output_size == hidden_size
            else nn.Linear(hidden_size, output_size, bias=False)
        )
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if not config.tie_embeddings:
            self.output_weight = nn.Parameter(torch.empty(config.vocab_size, hidden_size))
        self.dropout = Dropout(config.dropout)

    def init_state(self, features: Tensor) -> DecoderState:
        """Return the state before BOS for (N, D) image features."""
        image = self.encode_image(features)
        if self.config.image_as == "first-input":
            return DecoderState(call_cell(self.cell, image[:, None])[1])
        return DecoderState(self.as_hidden(image))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read (R,) token ids; return (R, V) logits of the next tokens and the next state."""
        outputs, hidden = read_token(
            self.cell, self.embedding, token_ids, state.hidden, state.hidden_index
        )
        return self.logits(outputs), replace(state, hidden=hidden, hidden_index=None)

    def forward(
        self,
        features: Tensor,
        inputs: Tensor,
        image_index: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Read (B, T) captions of (N, D) images; return (B, T, H) outputs for `logits`."""
        if image_index is None:
            image_index = torch.arange(len(features), device=inputs.device)
        words = self.dropout(self.embedding(inputs))  # (B, T, E)
        if self.config.image_as == "first-input":
            # The image precedes BOS in the same sequence.
            image = self.encode_image(features).index_select(0, image_index)
            words = torch.cat([image[:, None], words], 1)
            lengths = None if lengths is None else lengths + 1
            outputs = read_captions(self.cell, words, lengths=lengths)[:, 1:]
        else:
            hidden = self.init_state(features).repeat(image_index).hidden
            outputs = read_captions(self.cell, words, hidden, lengths)
        dropped: Tensor = self.dropout(outputs)
        return dropped

    def encode_image(self, features: Tensor) -> Tensor:
        """Project (N, D) features to the first input or the values of the initial hidden state."""
        image: Tensor = self.image_proj(self.normalize(features))
        return self.dropout(image) if self.config.image_as == "first-input" else image

    def normalize(self, features: Tensor) -> Tensor:
        """Scale (N, D) features to length `feature_norm` and subtract the mean training feature."""
        features = features.to(self.image_proj.weight.dtype)
        return self.feature_norm * (F.normalize(features, dim=-1) - self.feature_mean)

    def as_hidden(self, image: Tensor) -> Hidden:
        """Turn projected images into the initial hidden state: (L, N, H) each, in [-1, 1]."""
        parts = image.tanh().unflatten(1, (-1, self.config.num_layers, self.config.hidden_size))
        hidden: Hidden = parts.permute(1, 2, 0, 3).contiguous().unbind(0)
        return hidden

    @property
    def vocab_weight(self) -> Tensor:
        """The matrix of the output layer: (V, E) with tied embeddings, else (V, H)."""
        return self.embedding.weight if self.config.tie_embeddings else self.output_weight

    def logits(self, outputs: Tensor) -> Tensor:
        """Score the vocabulary: (…, H) → (…, V)."""
        return linear(self.output_proj(outputs), self.vocab_weight, self.output_bias)

    def cross_entropy(self, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the mean cross-entropy of (R', H) outputs, computing logits in chunks."""
        projected = self.output_proj(outputs)
        return linear_cross_entropy(
            projected, self.vocab_weight, self.output_bias, targets, label_smoothing
        )

    def init_weights(self) -> None:
        """Initialise embedding, output layer and cell; projections keep torch's defaults."""
        init_embedding(self.embedding.weight)
        if not self.config.tie_embeddings:
            init_embedding(self.output_weight)
        init_cell(self.cell)

    @torch.no_grad()
    def center_features(self, parts: Iterable[Tensor]) -> None:
        """Store the mean of (N, D) training features, which `normalize` subtracts."""
        self.feature_mean.copy_(mean_direction(parts))
