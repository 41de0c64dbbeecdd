"""What a stage `prepare` writes, whether it reads its captions into memory or as a stream."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import PrepareConfig
from .layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from .stage.checksums import checksums_of
from .stage.command_line import command_of
from .stage.files import atomic_path, sync
from .stage.manifest import MANIFEST_NAME, Manifest
from .stage.stopwatch import Stopwatch
from .stage.urls import is_url
from .text.subwords import DEFAULT_NUM_PIECES
from .text.tokenizer import DEFAULT_TOKENIZER
from .text.vocab import DEFAULT_MIN_COUNT, Vocab

VERSION = 1
NAMES = (IMAGES_PARQUET, CAPTIONS_PARQUET, VOCAB_JSON)


@dataclass(frozen=True)
class Outcome:
    """What the manifest says of the outputs.

    Attributes:
        source: absolute folder, or URL, to which file names are relative.
        inputs: name of an input → its hash.
        counts: for `Manifest.counts`, without `vocab_size`.
        oov: split → fraction of its tokens that are not in the vocabulary.
        vocab: the vocabulary.
        skipped: (image, reason) of images that were left out.
        left_out: reason → number of images left out.
        warnings: about captions and splits.
        details: further details.
    """

    source: str
    inputs: dict[str, str]
    counts: dict[str, int]
    oov: dict[str, float]
    vocab: Vocab
    skipped: tuple[tuple[str, str], ...]
    left_out: Mapping[str, int]
    warnings: Sequence[str]
    details: dict[str, Any] = field(default_factory=dict)


@contextmanager
def replacing_outputs(directory: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Yield temporary paths of images.parquet, captions.parquet and vocab.json.

    At the end, they replace the files. The old manifest is deleted before: it must not describe a
    mix of old and new files.
    """
    with ExitStack() as stack:
        images, captions, vocab = (
            stack.enter_context(atomic_path(directory / name)) for name in NAMES
        )
        yield images, captions, vocab
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        sync(directory)


def make_manifest(config: PrepareConfig, outcome: Outcome, stopwatch: Stopwatch) -> Manifest:
    """Return the manifest of the finished outputs."""
    directory = config.captions_dir
    outputs = {name: (directory / name).stat().st_size for name in NAMES}
    return Manifest(
        stage="prepare",
        version=VERSION,
        config=config_json(config, outcome.source),
        inputs=outcome.inputs,
        outputs=outputs,
        checksums=checksums_of(directory, outputs),
        command=command_of("prepare", config),
        counts={**outcome.counts, "vocab_size": len(outcome.vocab)},
        skipped=outcome.skipped,
        seconds=stopwatch.seconds,
        details={
            "source": outcome.source,
            "oov": outcome.oov,
            "left_out": dict(outcome.left_out),
            "warnings": [*outcome.warnings],
            "vocab_sha256": outcome.vocab.sha256,
            "seconds": stopwatch.parts,
            **outcome.details,
        },
    )


def config_json(config: PrepareConfig, source: str) -> dict[str, Any]:
    """Return the options as JSON values, with absolute paths and resolved defaults.

    Args:
        config: the options.
        source: absolute folder, or URL, to which file names are relative.
    """
    values = config.as_json()
    values["source"] = source
    for name in ("karpathy", "table", "known_words"):
        path = values[name]
        values[name] = path if path is None or is_url(path) else str(Path(path).resolve())
    if config.known_words is None:
        del values["known_words"]  # so that datasets from before this option stay up to date
    if config.tokenizer == DEFAULT_TOKENIZER:
        del values["tokenizer"]  # likewise
    if config.vocab_file is not None:
        values["vocab"] = str(config.vocab_file.resolve())
    if config.vocab == "words" and config.min_count is None and config.vocab_size is None:
        values["min_count"] = DEFAULT_MIN_COUNT
    if config.vocab == "bpe" and config.vocab_size is None:
        values["vocab_size"] = DEFAULT_NUM_PIECES
    return values
