"""All decoders by name, the value of `--attention`.

A new decoder is a file in this folder and a line in `DECODERS`.
"""

from .adaptive_attention import AdaptiveAttention
from .base import Decoder
from .config import DecoderConfig
from .show_tell import ShowTell
from .soft_attention import SoftAttention

DECODERS: dict[str, type[Decoder]] = {
    "none": ShowTell,
    "soft": SoftAttention,
    "adaptive": AdaptiveAttention,
}


def build_decoder(config: DecoderConfig) -> Decoder:
    """Build the decoder that a config describes, without initial weights of its own.

    For weights that are about to be loaded; cheap on the meta device.
    """
    return DECODERS[config.attention](config)


def create_decoder(config: DecoderConfig) -> Decoder:
    """Build a decoder with fresh weights, ready to train."""
    decoder = build_decoder(config)
    decoder.init_weights()
    return decoder
