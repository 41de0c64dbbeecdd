"""Prepares tables and archives of any size: samples → words → vocabulary → ids, batch by batch."""

import shlex
from dataclasses import asdict
from math import inf
from pathlib import Path

from ..config import PrepareConfig
from ..datasets.records import SPLITS
from ..datasets.table_files import TableFiles
from ..layout import PARQUET_STAMPS
from ..outputs import VERSION, Outcome, config_json, make_manifest, replacing_outputs
from ..stage.console import print_warning
from ..stage.errors import StorageError
from ..stage.files import hash_file
from ..stage.manifest import Manifest
from ..stage.stopwatch import Stopwatch
from ..text.scripts import unspaced_words_warnings
from ..vocabulary import choose_vocab
from .passes import (
    Written,
    count_train_words,
    sample_train_captions,
    spool_samples,
    write_parquet,
)
from .rows import arrange_rows
from .spool import Spool

MAX_BAD_FILES = 1000  # listed in the manifest


def prepare_stream(
    config: PrepareConfig, files: TableFiles, tokenizer: str | None, stopwatch: Stopwatch
) -> Manifest:
    """Write images.parquet, captions.parquet and vocab.json; return the manifest to write.

    Args:
        config: the options.
        files: the tables and archives.
        tokenizer: text of the `tokenizer.json` that `--vocab` names; None for other kinds.
        stopwatch: of the stage.

    Raises:
        DatasetError: the files hold no usable sample, or contradict each other.
        StorageError: the disk is full, or files of a finished dataset cannot be read this time.
    """
    directory = config.captions_dir
    inputs = _hash_options(config)
    with stopwatch.part("read"):
        stamps = files.find_stamps()
    with Spool(directory) as spool:
        spooled = spool_samples(files, spool, config.tokenizer, stopwatch)
        _keep_finished_dataset(directory, files)
        has_tars = bool(spooled.in_tar.any())
        with stopwatch.part("split"):
            rows = arrange_rows(
                spooled.hashes, spooled.codes, spooled.in_tar, config.seed, files.pattern
            )
        with stopwatch.part("vocabulary"):
            counts, num_train = count_train_words(spool, rows)
            warnings = [*rows.warnings, *unspaced_words_warnings(counts, num_train)]
            if spooled.num_wordless:
                warnings.append(
                    f"Left out {spooled.num_wordless:,} captions that contain no words."
                )
            for warning in warnings:
                print_warning(warning)
            vocab = choose_vocab(
                config, tokenizer, counts, lambda: sample_train_captions(spool, rows, num_train)
            )
        with stopwatch.part("write"), replacing_outputs(directory) as (images, captions, path):
            written = write_parquet(images, captions, spool, rows, vocab, has_tars)
            path.write_bytes(vocab.to_bytes())
    left_out = files.left_out.counts + rows.left_out
    outcome = Outcome(
        source=files.source,
        inputs=inputs | files.to_inputs(stamps),
        counts=_counts(written),
        oov={split: written.unknown[split] / n for split, n in written.tokens.items() if n},
        vocab=vocab,
        skipped=tuple(files.left_out.examples),
        left_out=left_out,
        warnings=warnings,
        details={
            "num_files": len(files.locations),
            "num_bad_files": len(files.bad),
            "bad_files": [asdict(bad) for bad in files.bad[:MAX_BAD_FILES]],
            PARQUET_STAMPS: files.parquet_stamps(stamps),
        },
    )
    return make_manifest(config, outcome, stopwatch)


def is_stream_up_to_date(config: PrepareConfig, files: TableFiles, done: Manifest) -> bool:
    """Return whether the outputs of an earlier run are those of these options and files."""
    stamps = files.find_stamps()
    if "" in stamps.values():  # it cannot be reached, and may have changed
        return False
    inputs = _hash_options(config) | files.to_inputs(stamps)
    options = config_json(config, files.source)
    return done.matches(config.captions_dir, VERSION, options, inputs)


def _keep_finished_dataset(directory: Path, files: TableFiles) -> None:
    """Stop if a failure that may pass would replace a finished dataset by a smaller one.

    Raises:
        StorageError: fewer samples of a file were read than before.
    """
    done = Manifest.read(directory)
    if done is None or done.find_problems(directory, check_content=False):
        return
    before = {bad["location"]: bad["num_samples"] for bad in done.details.get("bad_files", ())}
    lost = [
        bad for bad in files.bad if bad.may_pass and bad.num_samples < before.get(bad.location, inf)
    ]
    if lost:
        raise StorageError(
            f"{directory} was not replaced, because {len(lost):,} of {len(files.locations):,} "
            f"files cannot be read at the moment, such as {lost[0].location}: {lost[0].reason}. "
            "Repeat the command later. To prepare without these files, run "
            f"'rm -r {shlex.quote(str(directory))}' first."
        )


def _hash_options(config: PrepareConfig) -> dict[str, str]:
    """Return path → hash of the files that options name, other than tables."""
    paths = [path for path in (config.vocab_file, config.known_words) if path is not None]
    return {str(path.resolve()): hash_file(path) for path in paths}


def _counts(written: Written) -> dict[str, int]:
    counts = {"num_images": written.images.total(), "num_captions": written.num_captions}
    for split in SPLITS:
        counts[f"num_{split}_images"] = written.images[split]
        counts[f"num_{split}_captions"] = written.captions[split]
        counts[f"num_{split}_tokens"] = written.tokens[split]
    return counts
