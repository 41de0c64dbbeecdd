"""Show and Tell (Vinyals et al. 2015): a recurrent language model whose first input is an image.

Letters in shapes: N images, B captions, T tokens, R rows (beams), D feature width, E embedding, H
hidden, L layers, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..kernels.recurrence import Hidden, call_cell, read_captions, read_token
from .config import DecoderConfig
from .initialization import init_cell
from .inputs import Words
from .state import DecoderState
from .word_decoder import WordDecoder

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class ShowTell(WordDecoder):
    """The Show and Tell decoder: word embedding, image projection, recurrent cell, output layer.

    Beyond the paper: image features are centred and scaled, the output layer shares the word
    embedding, and the cell is a GRU by default. `Decoder` documents the arguments of each method.

    Source: Vinyals et al. 2015, arXiv:1411.4555; GRU: Cho et al. 2014, arXiv:1406.1078; tied
    embeddings: Press and Wolf 2017, arXiv:1608.05859.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        embed_size, hidden_size = config.embed_size, config.hidden_size
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
        self.add_output_layer(hidden_size)
        if config.neighbours:
            self.add_words(image_size, hidden_size)

    def init_state(self, features: Tensor, words: Words | None = None) -> DecoderState:
        """Return the state before BOS for (N, D) image features."""
        image, word_output = self.encode_image(features, words)
        if self.config.image_as == "first-input":
            hidden = call_cell(self.cell, image[:, None])[1]
        else:
            hidden = self.as_hidden(image)
        return DecoderState(hidden, word_output=word_output)

    def step(self, token_ids: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read (R,) token ids; return (R, V) logits of the next tokens and the next state."""
        outputs, hidden = read_token(
            self.cell, self.embedding, token_ids, state.hidden, state.hidden_index
        )
        outputs = state.add_words(outputs)
        return self.logits(outputs), replace(state, hidden=hidden, hidden_index=None)

    def forward(
        self,
        features: Tensor,
        inputs: Tensor,
        image_index: Tensor | None = None,
        lengths: Tensor | None = None,
        words: Words | None = None,
    ) -> Tensor:
        """Read (B, T) captions of (N, D) images; return (B, T, H) outputs for `logits`."""
        if image_index is None:
            image_index = torch.arange(len(features), device=inputs.device)
        tokens = self.dropout(self.embedding(inputs))  # (B, T, E)
        image, word_output = self.encode_image(features, words)
        if self.config.image_as == "first-input":
            # The image precedes BOS in the same sequence.
            tokens = torch.cat([image.index_select(0, image_index)[:, None], tokens], 1)
            lengths = None if lengths is None else lengths + 1
            outputs = read_captions(self.cell, tokens, lengths=lengths)[:, 1:]
        else:
            hidden = DecoderState(self.as_hidden(image)).repeat(image_index).hidden
            outputs = read_captions(self.cell, tokens, hidden, lengths)
        if word_output is not None:
            outputs = outputs + word_output[image_index, None]
        dropped: Tensor = self.dropout(outputs)
        return dropped

    def encode_image(self, features: Tensor, words: Words | None) -> tuple[Tensor, Tensor | None]:
        """Project (N, D) features and the words of similar images.

        Returns:
            image: the first input, or the values of the initial hidden state.
            word_output: (N, H), to add to every output; None without words.
        """
        image, word_output = self.image_proj(self.normalize(features)), None
        if self.words is not None and words is not None:
            word_image, word_output = self.words(words, self.embedding.weight)
            image = image + word_image
        if self.config.image_as == "first-input":
            image = self.dropout(image)
        return image, word_output

    def as_hidden(self, image: Tensor) -> Hidden:
        """Turn projected images into the initial hidden state: (L, N, H) each, in [-1, 1]."""
        parts = image.tanh().unflatten(1, (-1, self.config.num_layers, self.config.hidden_size))
        hidden: Hidden = parts.permute(1, 2, 0, 3).contiguous().unbind(0)
        return hidden

    def init_weights(self) -> None:
        """Initialise embedding, output layer and cell; projections keep torch's defaults."""
        super().init_weights()
        init_cell(self.cell)
