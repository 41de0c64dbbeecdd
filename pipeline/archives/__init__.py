"""Resumable, verified downloads."""
