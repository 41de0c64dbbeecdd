"""A trained run captioning image files."""
