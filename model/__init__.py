"""Vectors to sentences: decoders, training, beam search, scores."""
