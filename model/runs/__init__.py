"""A training run on disk: its files, config, checkpoints and log."""
