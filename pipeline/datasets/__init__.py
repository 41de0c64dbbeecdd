"""Reads published and user-made datasets into checked `ImageRecord`s."""
