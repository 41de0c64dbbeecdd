"""The caption decoder: a GRU, LSTM or plain RNN that is told the image once and then writes words.

Letters in shapes: B batch, T tokens, D feature width, E embedding, H hidden, L layers, V words.
"""

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pipeline.vocab import BOS
from .state import DecoderState

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a decoder is made of; saved with its weights.

    Attributes:
        cell: `gru`, `lstm` or `rnn`.
        feature_dim: D, width of an image's vector.
        vocab_size: V, special tokens included.
        embed_size: E, width of a word's vector.
        hidden_size: H, width of the recurrent state.
        num_layers: L, recurrent layers.
        dropout: on the cell's inputs, between its layers and on its outputs.
        image_as: `first-input` (Vinyals et al.) or `initial-state`.
        tie_embeddings: whether the word vectors are the output layer's matrix too.
    """

    cell: str
    feature_dim: int
    vocab_size: int
    embed_size: int = 512
    hidden_size: int = 512
    num_layers: int = 1
    dropout: float = 0.5
    image_as: str = "first-input"
    tie_embeddings: bool = True

    as_json = asdict


class Decoder(nn.Module):
    """Image vector → words, in two forms that agree: `forward` to train, `step` to decode.

    Source: Vinyals et al. 2015, arXiv:1411.4555; GRU after Cho et al. 2014, arXiv:1406.1078; tied
    embeddings after Press and Wolf 2017, arXiv:1608.05859.
    """

    # Features are brought to this length, so that the image speaks about as loud as a word whatever
    # the encoder's scale.
    feature_norm = 20.0

    feature_mean: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        embed_size, hidden_size = config.embed_size, config.hidden_size
        self.register_buffer("feature_mean", torch.zeros(config.feature_dim))
        self.embedding = nn.Embedding(config.vocab_size, embed_size)
        self.cell: nn.RNNBase = CELLS[config.cell](
            embed_size,
            hidden_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        if config.image_as == "first-input":
            self.image = nn.Linear(config.feature_dim, embed_size)
        else:
            num_states = 2 if config.cell == "lstm" else 1
            state_size = num_states * config.num_layers * hidden_size
            self.image = nn.Linear(config.feature_dim, state_size)
        # Outputs must be as wide as the word vectors to be compared with them.
        output_size = embed_size if config.tie_embeddings else hidden_size
        self.project = (
            nn.Identity()
            if output_size == hidden_size
            else nn.Linear(hidden_size, output_size, bias=False)
        )
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if not config.tie_embeddings:
            self.output_weight = nn.Parameter(torch.empty(config.vocab_size, hidden_size))
        self.dropout = nn.Dropout(config.dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        """Small normal word vectors, orthogonal recurrent matrices, LSTM forget gates open."""
        nn.init.normal_(self.embedding.weight, std=self.config.embed_size**-0.5)
        if not self.config.tie_embeddings:
            nn.init.normal_(self.output_weight, std=self.config.hidden_size**-0.5)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight_hh"):
                for gate in parameter.detach().split(self.config.hidden_size):
                    nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
                if self.config.cell == "lstm" and name.startswith("bias_ih"):
                    size = self.config.hidden_size
                    parameter.detach()[size : 2 * size] = 1.0

    @torch.no_grad()
    def center_features(self, features: Tensor) -> None:
        """Measure images by how they differ from the mean of these, (N, D) those of training.

        What all images share is most of a pooled vector and says nothing about any of them.
        """
        self.feature_mean.copy_(F.normalize(features.float(), dim=-1).mean(0))

    def init_state(self, features: Tensor) -> DecoderState:
        """Show the decoder its images.

        Args:
            features: (B, D), any float type.

        Returns:
            The state before BOS, a row for each image.
        """
        image = self._embed_image(features)
        if self.config.image_as == "first-input":
            return DecoderState(self._run(image[:, None], None)[1])
        # (B, S·L·H) → S states of (L, B, H)
        shape = (len(features), -1, self.config.num_layers, self.config.hidden_size)
        return DecoderState(tuple(image.view(shape).permute(1, 2, 0, 3).contiguous().unbind(0)))

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Advance by one word.

        Args:
            token_ids: (R,) int64, the previous word; BOS at the first step.
            state: of R rows, from `init_state` or the previous step.

        Returns:
            logits: (R, V), unnormalised.
            state: the next state.
        """
        outputs, hidden = self._run(self.embedding(token_ids)[:, None], state.hidden)
        return self.logits(outputs[:, 0]), replace(state, hidden=hidden)

    def forward(self, features: Tensor, inputs: Tensor) -> Tensor:
        """Read whole captions, each word predicted from the image and the words before it.

        Args:
            features: (B, D), any float type.
            inputs: (B, T) int64, beginning with BOS.

        Returns:
            (B, T, H) outputs before the vocabulary, for `logits`: the caller drops the padding
            first, so that no product is spent on it.
        """
        words = self.dropout(self.embedding(inputs))
        if self.config.image_as == "first-input":
            image = self.dropout(self._embed_image(features))
            outputs = self._run(torch.cat([image[:, None], words], 1), None)[0][:, 1:]
        else:
            outputs = self._run(words, self.init_state(features).hidden)[0]
        dropped: Tensor = self.dropout(outputs)
        return dropped

    def logits(self, outputs: Tensor) -> Tensor:
        """Score the vocabulary: (…, H) outputs of the cell → (…, V)."""
        tied = self.config.tie_embeddings
        weight = self.embedding.weight if tied else self.output_weight
        return F.linear(self.project(outputs), weight, self.output_bias)

    def start_tokens(self, batch_size: int) -> Tensor:
        """(B,) int64, BOS for every image, on the decoder's device."""
        return torch.full((batch_size,), BOS, device=self.embedding.weight.device)

    def _embed_image(self, features: Tensor) -> Tensor:
        # In the weights' precision: the squares of 2,048 float16 values would not fit into float16.
        features = features.to(self.image.weight.dtype)
        directions = F.normalize(features, dim=-1) - self.feature_mean
        image: Tensor = self.image(directions * self.feature_norm)
        # A first input is a word among words; an initial state must look like one: within ±1.
        return image if self.config.image_as == "first-input" else image.tanh()

    def _run(
        self, inputs: Tensor, hidden: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the fused cell, (B, T, E) → (B, T, H); what it carries is a tuple for every cell."""
        if self.config.cell == "lstm":
            outputs, hidden = self.cell(inputs, hidden)
            return outputs, hidden
        outputs, h = self.cell(inputs, None if hidden is None else hidden[0])
        return outputs, (h,)
