"""File names inside a run's folder."""

CONFIG_NAME = "config.json"
VOCAB_NAME = "vocab.json"
BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"
