"""Captions to token ids: tokenizer, subwords, vocabulary and encoded columns."""
