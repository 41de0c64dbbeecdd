"""Where files lie: what `prepare` writes to `data/<dataset>/captions`, and the built-in models."""

from pathlib import Path

IMAGES_PARQUET = "images.parquet"
CAPTIONS_PARQUET = "captions.parquet"
VOCAB_JSON = "vocab.json"

# Key of images.parquet among the inputs in the manifest of a features folder.
IMAGES_INPUT = f"captions/{IMAGES_PARQUET}"

BUILT_IN = Path(__file__).parents[1] / "serving" / "models"  # bundles that come with showtell
