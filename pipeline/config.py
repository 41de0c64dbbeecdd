"""The options of every stage: one frozen dataclass each, with the only defaults there are.

They stand together, and away from torch, so that the command line can read them and show the help
of any command at once.
"""

from dataclasses import dataclass
from pathlib import Path

from .stage.options import DatasetConfig, option, require, require_at_least


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(DatasetConfig):
    """Options of `showtell download`."""

    retries: int = option(5, "Attempts for each archive after the first one fails.")
    timeout_s: float = option(30.0, "Seconds without a byte before an attempt is given up.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, retries=self.retries)
        require(self.timeout_s > 0, f"timeout_s must be above 0, got {self.timeout_s}.")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(DatasetConfig):
    """Options of `showtell prepare`."""

    source: Path | None = option(
        None, "Folder in the dataset's published layout; default data/<dataset>/raw."
    )
    karpathy: Path | None = option(
        None, "Karpathy-split JSON (dataset_coco.json, …) that names images, captions and splits."
    )
    table: Path | None = option(
        None, "CSV, JSONL or Parquet table of file_name, caption[, split] for images of your own."
    )
    vocab: str = option(
        "words", "words, bpe (pieces of words, trained on train), or a local tokenizer.json."
    )
    min_count: int | None = option(
        None, "Keep words seen at least this often in train (default 5, unless --vocab-size)."
    )
    vocab_size: int | None = option(
        None,
        "Keep this many most frequent words of train instead; with bpe, pieces (default 4000).",
    )
    seed: int = option(0, "Draws the splits that the dataset does not bring.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, min_count=self.min_count, vocab_size=self.vocab_size)
        require(
            self.min_count is None or self.vocab_size is None,
            "--min-count and --vocab-size exclude each other; give one.",
        )
        require(
            self.vocab in ("words", "bpe") or self.vocab.endswith(".json"),
            f"vocab must be words, bpe or the path of a tokenizer.json, got {self.vocab!r}.",
        )
        require(
            self.min_count is None or self.vocab == "words",
            "--min-count goes with --vocab words only: pieces of words are kept however rare.",
        )
        require(
            self.vocab_size is None or self.tokenizer is None,
            "--vocab-size goes with --vocab words or bpe: a tokenizer.json has its own pieces.",
        )
        require(
            self.karpathy is None or self.table is None,
            "--karpathy and --table exclude each other; give one.",
        )

    @property
    def tokenizer(self) -> Path | None:
        """The `tokenizer.json` that `vocab` names; None where it names none."""
        return None if self.vocab in ("words", "bpe") else Path(self.vocab)
