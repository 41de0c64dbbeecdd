"""File names inside a run's folder."""

from ...pipeline.layout import VOCAB_JSON

CONFIG_NAME = "config.json"
VOCAB_NAME = VOCAB_JSON
BEST_NAME = "best.safetensors"
LAST_NAME = "last.safetensors"
