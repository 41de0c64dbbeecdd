"""What a decoder is made of: `DecoderConfig`, saved with its weights."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture and sizes of a decoder.

    Attributes:
        cell: `gru`, `lstm`, `rnn` or `transformer`.
        feature_dim: D, width of an image feature.
        vocab_size: V, including special tokens.
        embed_size: E, width of a word vector.
        hidden_size: H, width of the hidden state, or of a Transformer's layers.
        num_layers: L, recurrent or Transformer layers.
        dropout: probability, on the cell's inputs, between its layers and on its outputs; of a
            Transformer, on each value that is added to a token.
        image_as: `first-input` (Vinyals et al. 2015) or `initial-state`.
        tie_embeddings: use the word vectors as the matrix of the output layer.
        attention: which decoder of the registry: `none` (Show and Tell), `soft` or `adaptive`.
        attention_size: A, width of the layer that scores the grid cells.
        neighbours: number of similar training images whose words are an input; 0 for none.
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

    @property
    def description(self) -> str:
        """What kind of decoder this is, in words, such as `GRU, 512 units, soft attention`."""
        if self.cell == "transformer":
            return f"Transformer, {self.num_layers} layers of {self.hidden_size} units"
        attention = "" if self.attention == "none" else f", {self.attention} attention"
        return f"{self.cell.upper()}, {self.hidden_size} units{attention}"
