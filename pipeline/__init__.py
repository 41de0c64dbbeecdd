"""Captions and images as data, and what every stage shares. Needs no torch."""
