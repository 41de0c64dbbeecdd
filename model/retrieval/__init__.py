"""Retrieval: the training images most similar to an image, and what people said of them."""
