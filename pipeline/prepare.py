"""The stage `showtell prepare`: a dataset's captions → words, vocabulary and ids.

Writes `data/<dataset>/captions/{images.parquet,captions.parquet,vocab.json}` and the manifest,
whose details hold the absolute `source`, the out-of-vocabulary rate of each split (`oov`, share of
its words) and what was left out and why.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .captions import EncodedCaptions, read_images, write_captions, write_images
from .config import PrepareConfig
from .datasets.image_files import ImageFiles
from .datasets.registry import SPLITS, Dataset, ImageRecord, find_recipe, load_dataset, source_dir
from .layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from .stage.console import format_bytes, format_seconds, print_note, print_table, print_warning
from .stage.errors import ShowTellError
from .stage.files import atomic_path, hash_file, hash_json, locked
from .stage.manifest import MANIFEST_NAME, Manifest
from .stage.ragged import select_rows
from .stage.stopwatch import Stopwatch
from .text.columns import TokenizedCaptions, tokenize_all
from .text.subwords import DEFAULT_NUM_PIECES, read_tokenizer, train_bpe
from .text.vocab import DEFAULT_MIN_COUNT, SPECIALS, UNK, Vocab, build_piece_vocab, build_vocab

VERSION = 1
IMAGE_NAMES = "names of the images"  # the input that is no file
WARN_OOV_RATE = 0.2


@dataclass(frozen=True)
class Prepared:
    """All that the stage computes, before any of it is written.

    Attributes:
        records: N images, without those that have no words in any caption.
        captions: (M,) string, as written.
        words: (M,) string, tokens joined by one space.
        encoded: M captions.
        splits: (M,) str, the split of each caption.
        vocab: the words of train, or their pieces.
        wordless: (file name, reason) of each image that is not in `records`.
    """

    records: list[ImageRecord]
    captions: pa.Array
    words: pa.Array
    encoded: EncodedCaptions
    splits: npt.NDArray[np.str_]
    vocab: Vocab
    wordless: tuple[tuple[str, str], ...]


def prepare(config: PrepareConfig) -> Manifest:
    """Tokenize a dataset's captions, count its vocabulary on train, and write both.

    Returns:
        The manifest, with counts `num_images`, `num_captions`, `num_<split>_images`,
        `num_<split>_captions`, `num_tokens` and `vocab_size` (with the four specials).

    Raises:
        DatasetError: the dataset is unknown, or its files contradict each other.
        MissingArtifactError: the source or one of its files is not there.
        ConfigError: `vocab` names a file that is no tokenizer.
    """
    # Before the folder is made: a misspelt name must not leave one behind.
    find_recipe(config)
    tokenizer = None if config.tokenizer is None else read_tokenizer(config.tokenizer)
    directory = config.captions_dir
    with locked(directory), without_collections():
        if done := up_to_date(config):
            print_note(f"prepare: {directory} is up to date")
            return done
        stopwatch = Stopwatch()
        with stopwatch.part("read"):
            inputs = hash_inputs(config)
            dataset = load_dataset(config)
        for warning in dataset.warnings:
            print_warning(warning)
        prepared = _encode(config, dataset.records, tokenizer, stopwatch)
        with stopwatch.part("write"):
            outputs = _write(directory, prepared)
        inputs[IMAGE_NAMES] = _hash_names([record.file_name for record in prepared.records])
        manifest = _describe(config, dataset, prepared, inputs, outputs, stopwatch)
        manifest.write(directory)
    _report(manifest, directory)
    return manifest


@contextmanager
def without_collections() -> Iterator[None]:
    """Let the garbage collector rest: it would walk millions of strings again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def up_to_date(config: PrepareConfig) -> Manifest | None:
    """The manifest, where the stage has nothing left to do; None where it has.

    Raises:
        DatasetError, MissingArtifactError: as `prepare`.
    """
    directory = config.captions_dir
    done = Manifest.read(directory)
    if done is None or done.missing_outputs(directory):
        return None
    inputs = hash_inputs(config)
    try:
        names = read_images(directory / IMAGES_PARQUET).file_names
    except ShowTellError:  # damaged without a change of size: written again
        return None
    stamps = ImageFiles(source_dir(config)).stamps(names)
    present = [name for name, stamp in zip(names, stamps, strict=True) if stamp is not None]
    inputs[IMAGE_NAMES] = _hash_names(present)
    return done if done.matches(directory, VERSION, _config_json(config), inputs) else None


def hash_inputs(config: PrepareConfig) -> dict[str, str]:
    """Path of each file that captions, splits and pieces come from → its sha256."""
    tokenizer = () if config.tokenizer is None else (config.tokenizer,)
    paths = (*find_recipe(config).inputs, *tokenizer)
    return {str(path.resolve()): hash_file(path) for path in paths}


def _hash_names(names: Sequence[str]) -> str:
    return hash_json(sorted(names))


def _config_json(config: PrepareConfig) -> dict[str, Any]:
    """The options with the defaults that they stand for, and absolute paths."""
    values = config.as_json()
    values["source"] = str(source_dir(config).resolve())
    for name in ("karpathy", "table"):
        path: Path | None = getattr(config, name)
        values[name] = None if path is None else str(path.resolve())
    if config.tokenizer is not None:
        values["vocab"] = str(config.tokenizer.resolve())
    if config.vocab == "words" and config.min_count is None and config.vocab_size is None:
        values["min_count"] = DEFAULT_MIN_COUNT
    if config.vocab == "bpe" and config.vocab_size is None:
        values["vocab_size"] = DEFAULT_NUM_PIECES
    return values


def _encode(
    config: PrepareConfig, records: list[ImageRecord], tokenizer: str | None, stopwatch: Stopwatch
) -> Prepared:
    """Tokenize, count the vocabulary on train, and turn words into ids."""
    with stopwatch.part("tokenize"):
        texts = chain.from_iterable(record.captions for record in records)
        captions = pa.array(texts, pa.string())
        tokenized = tokenize_all(captions)
        worded = tokenized.lengths > 0
        records, wordless = _drop_wordless(records, worded)
        captions, tokenized = captions.filter(pa.array(worded)), tokenized.select(worded)
    per_image = [len(record.captions) for record in records]
    splits = np.repeat([record.split for record in records], per_image)
    with stopwatch.part("vocabulary"):
        vocab = _choose_vocab(config, tokenizer, tokenized.select(splits == "train"))
    with stopwatch.part("encode"):
        tokens, offsets = tokenized.encode([vocab.encode([word]) for word in tokenized.words])
        encoded = EncodedCaptions(
            caption_ids=np.arange(len(tokenized)),
            image_ids=np.repeat([record.image_id for record in records], per_image),
            tokens=tokens,
            offsets=offsets,
        )
        words = tokenized.texts()
    return Prepared(records, captions, words, encoded, splits, vocab, wordless)


def _choose_vocab(config: PrepareConfig, tokenizer: str | None, train: TokenizedCaptions) -> Vocab:
    """The vocabulary that the options mean, counted on the captions of train."""
    if config.vocab == "bpe":
        captions = train.texts().to_pylist()
        tokenizer = train_bpe(captions, config.vocab_size or DEFAULT_NUM_PIECES)
    if tokenizer is not None:
        return build_piece_vocab(train.count(), tokenizer)
    return build_vocab(train.count(), min_count=config.min_count, vocab_size=config.vocab_size)


def _drop_wordless(
    records: list[ImageRecord], worded: npt.NDArray[np.bool_]
) -> tuple[list[ImageRecord], tuple[tuple[str, str], ...]]:
    """Leave out captions of nothing but punctuation, (M,) false, and images that have no other."""
    if worded.all():
        return records, ()
    print_warning(f"{(~worded).sum():,} captions without a word left out.")
    has_word = iter(worded.tolist())
    stripped = [
        replace(record, captions=tuple(text for text in record.captions if next(has_word)))
        for record in records
    ]
    empty = [record.file_name for record in stripped if not record.captions]
    if empty:
        print_warning(f"{len(empty):,} images have no word in any caption, left out.")
    kept = [record for record in stripped if record.captions]
    return kept, tuple((name, "no word in any caption") for name in empty)


def _write(directory: Path, prepared: Prepared) -> dict[str, int]:
    """Write all files, then put them in place together.

    The old manifest goes before the first old file does: it must never vouch for a mixture.
    """
    names = (IMAGES_PARQUET, CAPTIONS_PARQUET, VOCAB_JSON)
    with ExitStack() as stack:
        images, captions, vocab = (
            stack.enter_context(atomic_path(directory / name)) for name in names
        )
        write_images(images, prepared.records)
        write_captions(captions, prepared.encoded, prepared.captions, prepared.words)
        prepared.vocab.write(vocab)
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
    return {name: (directory / name).stat().st_size for name in names}


def _describe(
    config: PrepareConfig,
    dataset: Dataset,
    prepared: Prepared,
    inputs: dict[str, str],
    outputs: dict[str, int],
    stopwatch: Stopwatch,
) -> Manifest:
    """Count what was made, for each split and in all."""
    encoded, vocab = prepared.encoded, prepared.vocab
    images = Counter(record.split for record in prepared.records)
    counts = {"num_images": len(prepared.records), "num_captions": len(encoded)}
    oov = {}
    for split in SPLITS:
        in_split = prepared.splits == split
        tokens, _ = select_rows(encoded.tokens, encoded.offsets, in_split)
        counts[f"num_{split}_images"] = images[split]
        counts[f"num_{split}_captions"] = int(in_split.sum())
        counts[f"num_{split}_tokens"] = len(tokens)
        if len(tokens):
            oov[split] = float((tokens == UNK).mean())
    skipped = (*dataset.left_out, *prepared.wordless)
    return Manifest(
        stage="prepare",
        version=VERSION,
        config=_config_json(config),
        inputs=inputs,
        outputs=outputs,
        counts={**counts, "vocab_size": len(vocab)},
        skipped=skipped,
        seconds=stopwatch.seconds,
        details={
            "source": str(source_dir(config).resolve()),
            "oov": oov,
            "left_out": dict(Counter(reason for _, reason in skipped)),
            "warnings": list(dataset.warnings),
            "vocab_sha256": vocab.sha256,
            "seconds": stopwatch.parts,
        },
    )


def _report(manifest: Manifest, directory: Path) -> None:
    """Print the table that ends the stage."""
    counts, oov = manifest.counts, manifest.details["oov"]
    rows = [
        (
            split,
            f"{counts[f'num_{split}_images']:,}",
            f"{counts[f'num_{split}_captions']:,}",
            f"{counts[f'num_{split}_tokens']:,}",
            f"{oov[split]:.2%}",
        )
        for split in oov
    ]
    unit = "words" if manifest.config["vocab"] == "words" else "pieces"
    header = ("split", "images", "captions", unit, "out of vocabulary")
    print_table(f"prepare {manifest.config['dataset']}", rows, header)
    left_out = manifest.details["left_out"].items()
    num_words = counts["vocab_size"] - len(SPECIALS)
    summary = [
        ("vocabulary", f"{num_words:,} {unit} and {len(SPECIALS)} specials"),
        *((f"left out, {reason}", f"{count:,} images") for reason, count in left_out),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(directory)),
    ]
    print_table("", summary)
    if oov["train"] > WARN_OOV_RATE:
        mend = "a lower --min-count or a higher --vocab-size keeps more of them."
        if unit == "pieces":
            mend = "another tokenizer.json or --vocab bpe spells more of them."
        print_warning(
            f"{oov['train']:.0%} of the {unit} of train are outside the vocabulary; {mend}"
        )
