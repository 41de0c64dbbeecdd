"""What a decoder is made of: `DecoderConfig`, saved with its weights."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture and sizes of a decoder.

    Attributes:
        cell: `gru`, `lstm` or `rnn`.
        feature_dim: D, width of an image feature.
        vocab_size: V, including special tokens.
        embed_size: E, width of a word vector.
        hidden_size: H, width of the hidden state.
        num_layers: L, recurrent layers.
        dropout: probability, on the cell's inputs, between its layers and on its outputs.
        image_as: `first-input` (Vinyals et al. 2015) or `initial-state`.
        tie_embeddings: use the word vectors as the matrix of the output layer.
        attention: which decoder of the registry: `none` (Show and Tell), `soft` or `adaptive`.
        attention_size: A, width of the layer that scores the grid cells.
        neighbours: number of similar training images whose words the decoder is told; 0 for none.
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
    attention: str = "none"
    attention_size: int = 256
    neighbours: int = 0

    as_json = asdict
