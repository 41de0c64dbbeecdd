"""Caption decoders: image features and previous tokens to logits."""
