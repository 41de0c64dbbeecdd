"""The stage `showtell prepare`: turns a dataset's captions into words, a vocabulary and ids.

It writes `images.parquet` and `captions.parquet` (see `captions.py`), `vocab.json` (see
`text/vocab.py`) and `manifest.json` to `data/<dataset>/captions`. The manifest's `details`:
    source        absolute path of the source folder
    oov           split → fraction of its tokens that are not in the vocabulary
    left_out      reason → number of images left out
    warnings      warnings about captions and splits
    vocab_sha256  hash of the vocabulary
    seconds       part of the stage → seconds
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .captions import EncodedCaptions, read_images, write_captions, write_images
from .config import PrepareConfig
from .datasets.records import SPLITS, Dataset, ImageRecord
from .datasets.registry import find_reader, load_dataset, source_dir
from .datasets.text_files import reporting_errors
from .images.image_files import ImageFiles
from .layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from .stage.artifacts import damaged
from .stage.checksums import checksum_of_file, checksums_of
from .stage.command_line import command_of
from .stage.console import format_bytes, format_seconds, print_note, print_table, print_warning
from .stage.errors import ConfigError, DamagedFileError, ShowTellError
from .stage.files import atomic_path, file_size, hash_file, hash_json, locked, require_file, sync
from .stage.manifest import MANIFEST_NAME, Manifest
from .stage.ragged import select_rows
from .stage.stopwatch import Stopwatch
from .text.columns import TokenizedCaptions, tokenize_all
from .text.scripts import unspaced_words_warnings
from .text.subwords import DEFAULT_NUM_PIECES, read_tokenizer, train_bpe
from .text.tokenizer import DEFAULT_TOKENIZER, UNITS
from .text.vocab import DEFAULT_MIN_COUNT, SPECIALS, UNK, Vocab, build_piece_vocab, build_vocab

VERSION = 1
IMAGE_NAMES_INPUT = "names of the images"  # key of the only manifest input that is not a file
MAX_OOV_RATE = 0.2  # a higher out-of-vocabulary rate gives a warning


@dataclass(frozen=True)
class Prepared:
    """Everything that the stage writes.

    Attributes:
        records: N images that have a caption with at least one word.
        captions: (M,) string, as written.
        words: (M,) string, tokens joined by single spaces.
        encoded: M captions as ids.
        splits: (M,) str, the split of each caption.
        vocab: vocabulary of the train split.
        left_out: (file name, reason) for each image whose captions have no words.
        warnings: warnings about the words of the captions.
    """

    records: list[ImageRecord]
    captions: pa.Array
    words: pa.Array
    encoded: EncodedCaptions
    splits: npt.NDArray[np.str_]
    vocab: Vocab
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def prepare(config: PrepareConfig) -> Manifest:
    """Tokenize a dataset's captions, build the vocabulary from the train split, and write both.

    Returns:
        The manifest, with the counts `num_images`, `num_captions`, `vocab_size` (including the
        four special tokens) and, for each split, `num_<split>_images`, `num_<split>_captions` and
        `num_<split>_tokens`.

    Raises:
        DatasetError: the dataset is unknown, its files are invalid or contradict each other, or
            no word is frequent enough for the vocabulary.
        MissingArtifactError: the source folder or one of its files does not exist.
        ConfigError: the file given by --vocab is not a tokenizer, or --vocab-size is too small.
    """
    # Check the options before `locked` creates the folder: an error should leave no folder.
    find_reader(config)
    tokenizer = None if config.vocab_file is None else read_tokenizer(config.vocab_file)
    _read_known_words(config)
    directory = config.captions_dir
    # Checked before `locked`, which writes a file: a folder that is up to date may be read-only.
    if done := up_to_date(config):
        print_note(f"prepare: {directory} is up to date")
        return done
    with locked(directory):
        stopwatch = Stopwatch()
        with stopwatch.part("read"):
            inputs = hash_inputs(config)
            dataset = load_dataset(config)
        for warning in dataset.warnings:
            print_warning(warning)
        prepared = _encode(config, dataset.records, tokenizer, stopwatch)
        with stopwatch.part("write"):
            outputs = _write_outputs(directory, prepared)
        inputs[IMAGE_NAMES_INPUT] = _hash_names([record.file_name for record in prepared.records])
        manifest = _make_manifest(config, dataset, prepared, inputs, outputs, stopwatch)
        manifest.write(directory)
    _print_summary(manifest, directory)
    return manifest


def up_to_date(config: PrepareConfig) -> Manifest | None:
    """Return the stage's manifest if its outputs are up to date, otherwise None.

    Raises:
        DatasetError: the dataset is unknown.
        MissingArtifactError: the source folder or one of its files does not exist.
        DamagedFileError: a downloaded file has changed.
    """
    directory = config.captions_dir
    done = Manifest.read(directory)
    if done is None:
        return None
    inputs = hash_inputs(config)
    try:
        names = read_images(directory / IMAGES_PARQUET).file_names
    except ShowTellError:  # damaged although its size is right
        return None
    fingerprints = ImageFiles(source_dir(config)).fingerprints(names)
    present = [name for name, found in zip(names, fingerprints, strict=True) if found is not None]
    inputs[IMAGE_NAMES_INPUT] = _hash_names(present)
    return done if done.matches(directory, VERSION, _config_json(config), inputs) else None


def hash_inputs(config: PrepareConfig) -> dict[str, str]:
    """Return path → SHA-256 of each file that the outputs are made from.

    Raises:
        DamagedFileError: `download` wrote one of them, and it has changed since.
        StorageError: one of them cannot be read.
    """
    files = [path for path in (config.vocab_file, config.known_words) if path is not None]
    source = source_dir(config)
    downloaded = Manifest.read(source)
    hashes = {}
    for path in (*find_reader(config).inputs, *files):
        with reporting_errors(path):
            hashes[str(path.resolve())] = hash_file(path)
            if downloaded is not None and path.is_relative_to(source):
                name = path.relative_to(source).as_posix()
                content = partial(checksum_of_file, path)
                if problem := downloaded.find_problem(name, file_size(path), content):
                    raise DamagedFileError(
                        f"{damaged(path, problem)} To use an edited file, copy {source} without "
                        f"{MANIFEST_NAME}, and give the copy to --source."
                    )
    return hashes


def _hash_names(names: Sequence[str]) -> str:
    return hash_json(sorted(names))


def _config_json(config: PrepareConfig) -> dict[str, Any]:
    """Return the options as JSON values, with absolute paths and resolved defaults."""
    values = config.as_json()
    values["source"] = str(source_dir(config).resolve())
    for name in ("karpathy", "table", "known_words"):
        path: Path | None = getattr(config, name)
        values[name] = None if path is None else str(path.resolve())
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


def _encode(
    config: PrepareConfig, records: list[ImageRecord], tokenizer: str | None, stopwatch: Stopwatch
) -> Prepared:
    """Tokenize all captions, build the vocabulary from the train split, and encode words as ids."""
    with stopwatch.part("tokenize"):
        texts = chain.from_iterable(record.captions for record in records)
        captions = pa.array(texts, pa.string())
        tokenized = tokenize_all(captions, config.tokenizer)
        has_words = tokenized.lengths > 0
        records, left_out = _drop_captions_without_words(records, has_words)
        captions, tokenized = captions.filter(pa.array(has_words)), tokenized.select(has_words)
    warnings = unspaced_words_warnings(tokenized.count(), len(tokenized))
    for warning in warnings:  # printed first, because building the vocabulary may fail
        print_warning(warning)
    per_image = [len(record.captions) for record in records]
    splits = np.repeat([record.split for record in records], per_image)
    with stopwatch.part("vocabulary"):
        vocab = _choose_vocab(config, tokenizer, tokenized.select(splits == "train"))
        vocab = replace(vocab, word_tokenizer=config.tokenizer)
    with stopwatch.part("encode"):
        tokens, offsets = tokenized.encode([vocab.encode([word]) for word in tokenized.words])
        encoded = EncodedCaptions(
            caption_ids=np.arange(len(tokenized)),
            image_ids=np.repeat([record.image_id for record in records], per_image),
            tokens=tokens,
            offsets=offsets,
        )
        words = tokenized.texts()
    return Prepared(records, captions, words, encoded, splits, vocab, left_out, warnings)


def _choose_vocab(config: PrepareConfig, tokenizer: str | None, train: TokenizedCaptions) -> Vocab:
    """Build a vocabulary of the configured kind from the captions of the train split."""
    if config.vocab == "bpe":
        captions = train.texts().to_pylist()
        tokenizer = train_bpe(captions, config.vocab_size or DEFAULT_NUM_PIECES)
    if tokenizer is not None:
        return build_piece_vocab(train.count(), tokenizer)
    counts = train.count()
    vocab = build_vocab(counts, min_count=config.min_count, vocab_size=config.vocab_size)
    known = _read_known_words(config)
    return vocab if known is None else vocab.extended(known.ids, counts)


def _read_known_words(config: PrepareConfig) -> Vocab | None:
    """Read the vocabulary of `--known-words`, if it is given."""
    if config.known_words is None:
        return None
    require_file(config.known_words, "--known-words", "the vocab.json of a run or a bundle")
    known = Vocab.read(config.known_words)
    if known.unit == "pieces":
        raise ConfigError(
            f"--known-words {config.known_words} has subword pieces, expected words. Leave it out."
        )
    if known.word_tokenizer != config.tokenizer:
        raise ConfigError(
            f"--known-words {config.known_words} was made with --tokenizer {known.word_tokenizer}, "
            f"but this is --tokenizer {config.tokenizer}. Leave one of the two options out."
        )
    return known


def _drop_captions_without_words(
    records: list[ImageRecord], has_words: npt.NDArray[np.bool_]
) -> tuple[list[ImageRecord], tuple[tuple[str, str], ...]]:
    """Drop captions without words, and images whose captions all have no words.

    Args:
        records: N images with M captions.
        has_words: (M,) whether a caption has at least one word.

    Returns:
        The remaining records, and (file name, reason) for each image left out.
    """
    if has_words.all():
        return records, ()
    print_warning(f"Left out {(~has_words).sum():,} captions that contain no words.")
    keep_caption = iter(has_words.tolist())
    reduced = [
        replace(record, captions=tuple(text for text in record.captions if next(keep_caption)))
        for record in records
    ]
    empty = [record.file_name for record in reduced if not record.captions]
    if empty:
        print_warning(f"Left out {len(empty):,} images whose captions contain no words.")
    kept = [record for record in reduced if record.captions]
    return kept, tuple((name, "no word in any caption") for name in empty)


def _write_outputs(directory: Path, prepared: Prepared) -> dict[str, int]:
    """Write all files under temporary names, then rename them; return name → size in bytes.

    The old manifest is deleted before the first rename: it must not describe a mix of old and new
    files.
    """
    names = (IMAGES_PARQUET, CAPTIONS_PARQUET, VOCAB_JSON)
    with ExitStack() as stack:
        images, captions, vocab = (
            stack.enter_context(atomic_path(directory / name)) for name in names
        )
        write_images(images, prepared.records)
        write_captions(captions, prepared.encoded, prepared.captions, prepared.words)
        vocab.write_bytes(prepared.vocab.to_bytes())
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        sync(directory)
    return {name: (directory / name).stat().st_size for name in names}


def _make_manifest(
    config: PrepareConfig,
    dataset: Dataset,
    prepared: Prepared,
    inputs: dict[str, str],
    outputs: dict[str, int],
    stopwatch: Stopwatch,
) -> Manifest:
    """Build the manifest, with counts in total and for each split."""
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
    skipped = (*dataset.left_out, *prepared.left_out)
    return Manifest(
        stage="prepare",
        version=VERSION,
        config=_config_json(config),
        inputs=inputs,
        outputs=outputs,
        checksums=checksums_of(config.captions_dir, outputs),
        command=command_of("prepare", config),
        counts={**counts, "vocab_size": len(vocab)},
        skipped=skipped,
        seconds=stopwatch.seconds,
        details={
            "source": str(source_dir(config).resolve()),
            "oov": oov,
            "left_out": dict(Counter(reason for _, reason in skipped)),
            "warnings": [*dataset.warnings, *prepared.warnings],
            "vocab_sha256": vocab.sha256,
            "seconds": stopwatch.parts,
        },
    )


def _print_summary(manifest: Manifest, directory: Path) -> None:
    """Print the final table of the stage, and warn about a high out-of-vocabulary rate."""
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
    unit = "pieces"
    if manifest.config["vocab"] == "words":
        unit = UNITS[manifest.config.get("tokenizer", DEFAULT_TOKENIZER)]
    header = ("split", "images", "captions", unit, "out of vocabulary")
    print_table(f"prepare {manifest.config['dataset']}", rows, header)
    left_out = manifest.details["left_out"].items()
    num_words = counts["vocab_size"] - len(SPECIALS)
    summary = [
        ("vocabulary", f"{num_words:,} {unit} and {len(SPECIALS)} special tokens"),
        *((f"left out, {reason}", f"{count:,} images") for reason, count in left_out),
        ("time", format_seconds(manifest.seconds)),
        ("size", format_bytes(sum(manifest.outputs.values()))),
        ("path", str(directory)),
    ]
    print_table("", summary)
    if oov["train"] > MAX_OOV_RATE:
        advice = "Use a lower --min-count or a higher --vocab-size."
        if unit == "pieces":
            advice = "Use another tokenizer.json, or --vocab bpe."
        print_warning(
            f"{oov['train']:.0%} of the {unit} in train are not in the vocabulary. {advice}"
        )
