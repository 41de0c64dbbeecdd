"""All decoders by name, the value of `--attention`.

A new decoder is a subclass of `Decoder` (base.py) in a file of this folder, and a line in
`DECODERS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .config import DecoderConfig

if TYPE_CHECKING:
    from .base import Decoder

# Name → module and class, imported when a decoder is built: reading options must not import torch.
DECODERS: dict[str, str] = {
    "none": ".show_tell:ShowTell",
    "soft": ".soft_attention:SoftAttention",
    "adaptive": ".adaptive_attention:AdaptiveAttention",
}


def decoder_class(name: str) -> "type[Decoder]":
    """Return the class of a decoder by its name."""
    module, _, class_name = DECODERS[name].partition(":")
    found: type[Decoder] = getattr(import_module(module, __package__), class_name)
    return found


def build_decoder(config: DecoderConfig) -> "Decoder":
    """Build the decoder that a config describes, without initial weights of its own.

    For weights that are about to be loaded; cheap on the meta device.
    """
    return decoder_class(config.attention)(config)


def create_decoder(config: DecoderConfig) -> "Decoder":
    """Build a decoder with fresh weights, ready to train."""
    decoder = build_decoder(config)
    decoder.init_weights()
    return decoder
