"""Pixels to vectors, once: a frozen network run over every image, cached in shards."""
