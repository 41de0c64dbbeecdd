"""Captions and images as data, and the code shared by all stages. Imports no torch."""
