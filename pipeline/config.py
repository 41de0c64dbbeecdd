"""Options of `showtell download` and `showtell prepare`."""

from dataclasses import dataclass
from pathlib import Path

from .layout import find_known_words
from .stage.options import DatasetConfig, expand_home, option, require
from .stage.urls import Location, is_url
from .text.tokenizer import DEFAULT_TOKENIZER, UNITS


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(DatasetConfig):
    """Options of `showtell download`."""

    retries: int = option(5, "Number of retries per archive.", at_least=0, group="Network")
    timeout_s: float = option(
        30.0, "Seconds without data after which an attempt fails.", above=0, group="Network"
    )


def check_vocab(vocab: str) -> str | None:
    """Return None if `vocab` is `words`, `bpe` or a JSON file, else what it must be."""
    known = vocab in ("words", "bpe") or vocab.endswith(".json")
    return None if known else "be words, bpe or the path of a tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(DatasetConfig):
    """Options of `showtell prepare`."""

    source: str | None = option(
        None,
        "Folder or URL of the dataset in its published layout. Default: DATA/DATASET/raw, or where "
        "the table is.",
        group="Input",
        metavar="DIR",
    )
    karpathy: Path | None = option(
        None,
        "Karpathy split file, such as dataset_coco.json, with images, captions and splits.",
        group="Input",
        metavar="FILE",
    )
    table: str | None = option(
        None,
        "CSV, JSONL or Parquet table with columns file_name (or url), caption and, optionally, "
        "split; WebDataset tar; Parquet with images. A path, a URL or a pattern of many, such as "
        "'s3://bucket/set/*.tar'.",
        group="Input",
        metavar="FILE",
    )
    seed: int = option(0, "Seed for drawing the splits that the dataset lacks.", group="Input")
    tokenizer: str = option(
        DEFAULT_TOKENIZER,
        "How captions become words: ptb (English, as published scores do), unicode (words of other "
        "languages), characters (Chinese, Japanese, Thai).",
        choices=tuple(UNITS),
        group="Vocabulary",
    )
    vocab: str = option(
        "words",
        "Type of tokens: words, bpe (subwords learned from the train split), or the path of a "
        "tokenizer.json.",
        check=check_vocab,
        group="Vocabulary",
        metavar="[words|bpe|FILE]",
    )
    min_count: int | None = option(
        None,
        "Keep words that occur at least this often in train. Default: 5, unless --vocab-size is "
        "given.",
        at_least=1,
        group="Vocabulary",
    )
    vocab_size: int | None = option(
        None,
        "Number of words to keep, most frequent first, in place of --min-count. With --vocab bpe: "
        "number of subwords (default: 4000).",
        at_least=1,
        group="Vocabulary",
    )

    known_words: Path | None = option(
        None,
        "vocab.json of a model to fine-tune with 'showtell train --init', or the built-in "
        "flickr8k; keep its words too.",
        group="Vocabulary",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        for name in ("source", "table"):
            if isinstance(value := getattr(self, name), str | Path):
                object.__setattr__(self, name, Location(value))
        super().__post_init__()
        self.require_not_both("min_count", "vocab_size")
        self.require_not_both("karpathy", "table")
        is_local = self.source is None or not is_url(self.source)
        require(
            is_local or self.table is not None, "--source with a URL only applies with --table."
        )
        is_words, is_file = self.vocab == "words", self.vocab_file is not None
        require(
            is_words or UNITS[self.tokenizer] == "words",
            f"--vocab {self.vocab} splits words, but --tokenizer {self.tokenizer} has none. Leave "
            "out --vocab.",
        )
        self.require_unused("min_count", "known_words", unless=is_words, needs="--vocab words")
        self.require_unused("vocab_size", unless=not is_file, needs="--vocab words or bpe")
        if self.known_words is not None:  # recorded as a path, so that it works from any folder
            object.__setattr__(self, "known_words", find_known_words(self.known_words))

    @property
    def vocab_file(self) -> Path | None:
        """The path of the `tokenizer.json` given by `--vocab`, or None."""
        return None if self.vocab in ("words", "bpe") else expand_home(Path(self.vocab))
