"""Where files lie: what `prepare` writes to `data/<dataset>/captions`, and the built-in models."""

from pathlib import Path

IMAGES_PARQUET = "images.parquet"
CAPTIONS_PARQUET = "captions.parquet"
VOCAB_JSON = "vocab.json"

# Key of images.parquet among the inputs in the manifest of a features folder.
IMAGES_INPUT = f"captions/{IMAGES_PARQUET}"

# Key in the details of the manifest of prepare: name → stamp of each Parquet file of --table.
PARQUET_STAMPS = "parquet_stamps"

BUILT_IN = Path(__file__).parents[1] / "serving" / "models"  # bundles that come with showtell


def find_known_words(path: Path) -> Path:
    """Return the vocab.json that `--known-words` names: a file, or a built-in model."""
    built_in = BUILT_IN / path / VOCAB_JSON
    return built_in if not path.is_file() and built_in.is_file() else path
