"""From features to captions: decoders, training, decoding, metrics, and runs on disk."""
