"""What the decoders of this package share: word vectors, output layer, centred image features.

Letters in shapes: N images, D feature width, E embedding, H hidden, V vocabulary.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.cross_entropy import linear_cross_entropy
from ..kernels.dropout import Dropout
from ..kernels.linear import linear
from .base import Decoder
from .config import DecoderConfig
from .initialization import empty_embedding, init_embedding, mean_direction
from .retrieved_words import RetrievedWords


class WordDecoder(Decoder):
    """Base class: word embedding, output layer, normalized features and retrieved words.

    A subclass calls `add_output_layer` and, with `neighbours`, `add_words` in its `__init__`.
    """

    # Features are scaled to this length: then images and words are inputs of similar size.
    feature_norm = 20.0

    feature_mean: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.embedding = empty_embedding(config.vocab_size, config.embed_size)
        self.words: RetrievedWords | None = None

    def add_output_layer(self, hidden_size: int) -> None:
        """Add the output layer, for outputs of width H, and the dropout."""
        config = self.config
        # Tied embeddings need outputs of width E.
        output_size = config.embed_size if config.tie_embeddings else hidden_size
        self.output_proj = (
            nn.Identity()
            if output_size == hidden_size
            else nn.Linear(hidden_size, output_size, bias=False)
        )
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if not config.tie_embeddings:
            self.output_weight = nn.Parameter(torch.empty(config.vocab_size, hidden_size))
        self.dropout = Dropout(config.dropout)

    def add_words(self, image_size: int, hidden_size: int) -> None:
        """Add the projections of retrieved words, to images and to outputs of these widths."""
        self.words = RetrievedWords(self.config.embed_size, image_size, hidden_size)

    def normalize(self, features: Tensor) -> Tensor:
        """Scale (N, D) features to length `feature_norm` and subtract the mean training feature."""
        features = features.to(self.embedding.weight.dtype)
        return self.feature_norm * (F.normalize(features, dim=-1) - self.feature_mean)

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
        """Initialise embedding and output layer; projections keep torch's defaults."""
        init_embedding(self.embedding.weight)
        if not self.config.tie_embeddings:
            init_embedding(self.output_weight)

    @torch.no_grad()
    def center_features(self, parts: Iterable[Tensor]) -> None:
        """Store the mean of (N, D) training features, which `normalize` subtracts."""
        self.feature_mean.copy_(mean_direction(parts))
