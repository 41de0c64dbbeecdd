"""The stage `showtell prepare`: turns a dataset's captions into words, a vocabulary and ids.

It writes `images.parquet` and `captions.parquet` (see `captions.py`), `vocab.json` (see
`text/vocab.py`) and `manifest.json` to `data/<dataset>/captions`. The manifest's `details`:
    source        absolute path of the source folder
    oov           split → fraction of its tokens that are not in the vocabulary
    left_out      reason → number of images left out
    warnings      warnings about captions and splits
    vocab_sha256  hash of the vocabulary
    seconds       part of the stage → seconds
    num_files, num_bad_files, bad_files
                  only of tables that are read as a stream (`streaming/`): how many files there
                  were, and those that could not be read to their end, with the reason
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .captions import EncodedCaptions, read_images, write_captions, write_images
from .config import PrepareConfig
from .datasets.records import SPLITS, Dataset, ImageRecord
from .datasets.registry import find_reader, load_dataset, source_dir
from .datasets.table_files import find_table_files
from .datasets.text_files import reporting_errors
from .images.image_files import ImageFiles
from .layout import IMAGES_PARQUET
from .outputs import VERSION, Outcome, config_json, make_manifest, replacing_outputs
from .stage.artifacts import damaged
from .stage.checksums import checksum_of_file
from .stage.console import format_bytes, format_seconds, print_note, print_table, print_warning
from .stage.errors import DamagedFileError, ShowTellError
from .stage.files import file_size, hash_file, hash_json, locked
from .stage.manifest import MANIFEST_NAME, Manifest
from .stage.ragged import select_rows
from .stage.stopwatch import Stopwatch
from .streaming.prepare import is_stream_up_to_date, prepare_stream
from .text.columns import tokenize_all
from .text.scripts import unspaced_words_warnings
from .text.subwords import read_tokenizer
from .text.tokenizer import DEFAULT_TOKENIZER, UNITS
from .text.vocab import SPECIALS, UNK, Vocab
from .vocabulary import choose_vocab, read_known_words

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
    files = find_table_files(config)
    if files is None:
        find_reader(config)
    tokenizer = None if config.vocab_file is None else read_tokenizer(config.vocab_file)
    read_known_words(config)
    directory = config.captions_dir
    # Checked before `locked`, which writes a file: a folder that is up to date may be read-only.
    if done := up_to_date(config):
        print_note(f"prepare: {directory} is up to date")
        return done
    with locked(directory):
        stopwatch = Stopwatch()
        if files is None:
            manifest = _prepare_in_memory(config, tokenizer, stopwatch)
        else:
            manifest = prepare_stream(config, files, tokenizer, stopwatch)
        manifest.write(directory)
    _print_summary(manifest, directory)
    return manifest


def _prepare_in_memory(
    config: PrepareConfig, tokenizer: str | None, stopwatch: Stopwatch
) -> Manifest:
    """Read all captions into memory, and write the outputs; return the manifest to write."""
    with stopwatch.part("read"):
        inputs = hash_inputs(config)
        dataset = load_dataset(config)
    for warning in dataset.warnings:
        print_warning(warning)
    prepared = _encode(config, dataset.records, tokenizer, stopwatch)
    with stopwatch.part("write"), replacing_outputs(config.captions_dir) as paths:
        write_images(paths[0], prepared.records)
        write_captions(paths[1], prepared.encoded, prepared.captions, prepared.words)
        paths[2].write_bytes(prepared.vocab.to_bytes())
    inputs[IMAGE_NAMES_INPUT] = _hash_names([record.file_name for record in prepared.records])
    source = str(source_dir(config).resolve())
    return make_manifest(config, _describe(dataset, prepared, source, inputs), stopwatch)


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
    if (files := find_table_files(config)) is not None:
        return done if is_stream_up_to_date(config, files, done) else None
    inputs = hash_inputs(config)
    try:
        names = read_images(directory / IMAGES_PARQUET).file_names
    except ShowTellError:  # damaged although its size is right
        return None
    fingerprints = ImageFiles(source_dir(config)).fingerprints(names)
    present = [name for name, found in zip(names, fingerprints, strict=True) if found is not None]
    inputs[IMAGE_NAMES_INPUT] = _hash_names(present)
    options = config_json(config, str(source_dir(config).resolve()))
    return done if done.matches(directory, VERSION, options, inputs) else None


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
        train = tokenized.select(splits == "train")
        captions_of_train = lambda: train.texts().to_pylist()  # noqa: E731
        vocab = choose_vocab(config, tokenizer, train.count(), captions_of_train)
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


def _describe(dataset: Dataset, prepared: Prepared, source: str, inputs: dict[str, str]) -> Outcome:
    """Return what the manifest says, with counts in total and for each split."""
    encoded = prepared.encoded
    images = Counter(record.split for record in prepared.records)
    counts = {"num_images": len(prepared.records), "num_captions": len(encoded)}
    oov: dict[str, float] = {}
    for split in SPLITS:
        in_split = prepared.splits == split
        tokens, _ = select_rows(encoded.tokens, encoded.offsets, in_split)
        counts[f"num_{split}_images"] = images[split]
        counts[f"num_{split}_captions"] = int(in_split.sum())
        counts[f"num_{split}_tokens"] = len(tokens)
        if len(tokens):
            oov[split] = float((tokens == UNK).mean())
    skipped = (*dataset.left_out, *prepared.left_out)
    return Outcome(
        source=source,
        inputs=inputs,
        counts=counts,
        oov=oov,
        vocab=prepared.vocab,
        skipped=skipped,
        left_out=Counter(reason for _, reason in skipped),
        warnings=[*dataset.warnings, *prepared.warnings],
    )


def _bad_files_row(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the row of the summary about files that could not be read to their end."""
    num_bad, num_files = (manifest.details.get(f"num_{kind}") for kind in ("bad_files", "files"))
    return [("bad files", f"{num_bad:,} of {num_files:,}")] if num_bad else []


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
        *_bad_files_row(manifest),
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
