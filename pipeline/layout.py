"""File names that `prepare` writes to `data/<dataset>/captions` and later stages read."""

IMAGES_PARQUET = "images.parquet"
CAPTIONS_PARQUET = "captions.parquet"
VOCAB_JSON = "vocab.json"

# Key of images.parquet among the inputs in the manifest of a features folder.
IMAGES_INPUT = f"captions/{IMAGES_PARQUET}"
