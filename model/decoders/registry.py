"""All decoders, chosen by the values of `--cell` and `--attention`.

A new decoder is a subclass of `Decoder` (base.py) in a file of this folder, and a line in
`DECODERS`, or in `CELL_DECODERS` if it is not based on a recurrent cell.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from .config import DecoderConfig

if TYPE_CHECKING:
    from .base import Decoder

# Module and class of each decoder, imported when it is built: reading options must not import
# torch.
# Decoders with a recurrent cell: value of `--attention` → class.
DECODERS: dict[str, str] = {
    "none": ".show_tell:ShowTell",
    "soft": ".soft_attention:SoftAttention",
    "adaptive": ".adaptive_attention:AdaptiveAttention",
}
# Other decoders: value of `--cell` → class. `--attention` does not apply to them.
CELL_DECODERS: dict[str, str] = {"transformer": ".transformer:Transformer"}
RECURRENT_CELLS = ("gru", "lstm", "rnn")
CELLS = (*RECURRENT_CELLS, *CELL_DECODERS)
HEAD_SIZE = 64  # of a Transformer


class Architecture(Protocol):
    """The options that determine the class of a decoder."""

    @property
    def cell(self) -> str:
        """The value of `--cell`."""
        ...

    @property
    def attention(self) -> str:
        """The value of `--attention`."""
        ...


def decoder_class(config: Architecture) -> "type[Decoder]":
    """Return the class of the decoder that these options describe."""
    target = CELL_DECODERS.get(config.cell) or DECODERS[config.attention]
    module, _, class_name = target.partition(":")
    found: type[Decoder] = getattr(import_module(module, __package__), class_name)
    return found


def decoder_name(config: Architecture) -> str:
    """Return a short name of a decoder, such as `gru`, `gru-soft` or `transformer`."""
    return config.cell if config.attention == "none" else f"{config.cell}-{config.attention}"


def decoder_option(config: Architecture) -> str:
    """Return the option that chooses the class of a decoder, as typed."""
    if config.cell in CELL_DECODERS:
        return f"--cell {config.cell}"
    return f"--attention {config.attention}"


def check_hidden_size(cell: str, hidden_size: int) -> str | None:
    """Return None if the width is valid for a cell, else the rule that it breaks."""
    if cell != "transformer" or hidden_size < HEAD_SIZE or hidden_size % HEAD_SIZE == 0:
        return None
    return f"be a multiple of {HEAD_SIZE}, or below {HEAD_SIZE}, with --cell transformer"


def build_decoder(config: DecoderConfig) -> "Decoder":
    """Build the decoder that a config describes, without initial weights of its own.

    For weights that are about to be loaded; cheap on the meta device.
    """
    return decoder_class(config)(config)


def create_decoder(config: DecoderConfig) -> "Decoder":
    """Build a decoder with fresh weights, ready to train."""
    decoder = build_decoder(config)
    decoder.init_weights()
    return decoder
