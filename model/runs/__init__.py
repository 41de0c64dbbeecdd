"""A training run on disk: its folder, config, weights, checkpoint and log."""
