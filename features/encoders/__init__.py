"""Pretrained weights to a frozen network."""
