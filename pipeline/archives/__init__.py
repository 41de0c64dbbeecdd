"""Resumable, verified downloads of archives."""
