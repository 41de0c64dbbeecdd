"""The passes of a streaming `prepare` over its samples.

1. `spool_samples` reads the tables, tokenizes batches of captions, and writes them to a `Spool`.
2. `count_train_words` counts the words of train, once the splits are known.
3. `write_parquet` encodes the words as ids, and writes images.parquet and captions.parquet.

The memory that grows with the table is the different words of train, and 10 bytes for each image:
35 to 80 for a moment, while repeated images are found and splits are drawn.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..captions import EncodedCaptions, ParquetTable, caption_columns
from ..datasets.records import SPLITS
from ..datasets.samples import LeftOut, Sample
from ..datasets.table_files import TableFiles
from ..images.image_files import ImageFiles
from ..stage.checksums import hash_text
from ..stage.errors import DatasetError
from ..stage.ragged import Ints, select_rows
from ..stage.stopwatch import Stopwatch
from ..stage.urls import is_url
from ..text.columns import Mask, TokenizedCaptions, tokenize_all
from ..text.vocab import UNK, Vocab
from .rows import NO_SPLIT, TRAIN, Codes, Hashes, ImageRows
from .spool import Spool, SpooledBatch

BATCH_IMAGES = 1 << 15
MAX_JOINED = 100  # captions of one image in consecutive rows
NUM_CHECKED = 1000  # images, of which one must exist
MAX_BPE_CAPTIONS = 1_000_000
NO_WORDS = "without a word in any caption"


@dataclass
class SpooledRows:
    """What is known of each spooled image.

    Attributes:
        hashes: (N,) uint64, of the file names.
        codes: (N,) int8, index in `SPLITS`, or `NO_SPLIT`.
        in_tar: (N,) bool, whether it lies in a tar.
        num_wordless: number of captions without words, which are left out.
    """

    hashes: Hashes
    codes: Codes
    in_tar: Mask
    num_wordless: int


def spool_samples(
    files: TableFiles, spool: Spool, tokenizer: str, stopwatch: Stopwatch
) -> SpooledRows:
    """Read, tokenize and spool all samples.

    Raises:
        DatasetError: there is no sample, or no file can be read.
    """
    columns: list[tuple[Hashes, Codes, Mask]] = []
    num_wordless = 0
    samples = _join_consecutive(files.read())
    while True:
        with stopwatch.part("read"):
            batch = list(islice(samples, BATCH_IMAGES))
        if not batch:
            break
        if not columns:
            _require_images(files, batch)
        with stopwatch.part("tokenize"):
            captions = pa.array(chain.from_iterable(s.captions for s in batch), pa.string())
            tokenized = tokenize_all(captions, tokenizer)
            has_words = tokenized.lengths > 0
            counts = np.array([len(sample.captions) for sample in batch])
            index = np.repeat(np.arange(len(batch)), counts)
            counts = np.bincount(index[has_words], minlength=len(batch))
            num_wordless += int((~has_words).sum())
            kept = _keep_images_with_words(batch, counts, files.left_out)
        with stopwatch.part("spool"):
            words = tokenized.select(has_words).texts()
            spool.write(kept, counts[counts > 0], captions.filter(pa.array(has_words)), words)
            columns.append(_describe(kept))
    spool.finish()
    if not sum(len(hashes) for hashes, _, _ in columns):
        raise DatasetError(_explain_nothing(files))
    hashes, codes, in_tar = map(np.concatenate, zip(*columns, strict=True))
    return SpooledRows(hashes, codes, in_tar, num_wordless)


def _join_consecutive(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Join the rows of one image that follow each other; tables have a row for each caption."""
    last: Sample | None = None
    for sample in samples:
        if (
            last is not None
            and sample.name == last.name
            and sample.offset is None
            and sample.split == last.split
            and len(last.captions) < MAX_JOINED
        ):
            last.captions.extend(sample.captions)
            continue
        if last is not None:
            yield last
        last = sample
    if last is not None:
        yield last


def _keep_images_with_words(batch: list[Sample], counts: Ints, left_out: LeftOut) -> list[Sample]:
    kept = []
    for sample, count in zip(batch, counts.tolist(), strict=True):
        if count:
            kept.append(sample)
        else:
            left_out.add(sample.name, NO_WORDS)
    return kept


def _describe(samples: list[Sample]) -> tuple[Hashes, Codes, Mask]:
    codes: dict[str | None, int] = {split: code for code, split in enumerate(SPLITS)}
    codes[None] = NO_SPLIT
    return (
        np.array([hash_text(sample.name) for sample in samples], np.uint64),
        np.array([codes[sample.split] for sample in samples], np.int8),
        np.array([sample.offset is not None for sample in samples], bool),
    )


def _require_images(files: TableFiles, batch: list[Sample]) -> None:
    """Check that some of the first images exist, where files are local and have names."""
    names = [sample.name for sample in batch[:NUM_CHECKED]]
    archives = tuple(f"{files.name_of(location)}/" for location in files.locations)
    names = [name for name in names if not is_url(name) and not name.startswith(archives)]
    if is_url(files.source) or not names:
        return
    if not any(ImageFiles(Path(files.source)).fingerprints(names)):
        raise DatasetError(
            f"none of the first {len(names):,} images of {files.pattern} was found in "
            f"{files.source}, such as {names[0]}. Give the folder that holds the images with "
            "--source DIR."
        )


def _explain_nothing(files: TableFiles) -> str:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in files.left_out.counts.most_common(3))
    return (
        f"{files.pattern} has no image with a caption"
        f"{f'; left out: {reasons}' if reasons else ''}. Expected tables with a caption and a "
        "file_name or url, WebDataset tars, or Parquet files with images and captions."
    )


def count_train_words(spool: Spool, rows: ImageRows) -> tuple[Counter[str], int]:
    """Return word → occurrences in train, and the number of captions of train."""
    counts, num_captions = Counter[str](), 0
    for batch in spool.read():
        in_train = rows.codes[batch.caption_rows] == TRAIN
        found = TokenizedCaptions.parse(batch.captions["words"]).select(in_train).count()
        for word, count in found.items():
            counts[word] += count
        num_captions += int(in_train.sum())
    return counts, num_captions


def sample_train_captions(spool: Spool, rows: ImageRows, num_captions: int) -> list[str]:
    """Return every k-th caption of train, at most `MAX_BPE_CAPTIONS`, as words.

    Args:
        spool: with all captions.
        rows: with the splits.
        num_captions: number of captions of train.
    """
    step = -(-num_captions // MAX_BPE_CAPTIONS)
    captions: list[str] = []
    seen = 0
    for batch in spool.read():
        in_train = pa.array(rows.codes[batch.caption_rows] == TRAIN)
        words = batch.captions["words"].filter(in_train)
        captions += words.take(pa.array(np.arange(-seen % step, len(words), step))).to_pylist()
        seen += len(words)
    return captions


@dataclass
class Written:
    """Counts of what `write_parquet` wrote, by split.

    Attributes:
        num_captions: of all splits.
        images, captions, tokens, unknown: split → number of images, captions, tokens, and tokens
            that are not in the vocabulary.
    """

    num_captions: int = 0
    images: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def write_parquet(
    images_path: Path,
    captions_path: Path,
    spool: Spool,
    rows: ImageRows,
    vocab: Vocab,
    has_tars: bool,
) -> Written:
    """Write images.parquet and captions.parquet in the order of the table.

    Args:
        images_path: where to write the images.
        captions_path: where to write the captions.
        spool: with all samples.
        rows: with the splits.
        vocab: of train.
        has_tars: whether to write where images lie in their tars.
    """
    written = Written()
    with ExitStack() as stack:
        images = stack.enter_context(ParquetTable(images_path))
        captions = stack.enter_context(ParquetTable(captions_path))
        for batch in spool.read():
            images.write(_image_columns(batch, rows, has_tars, written))
            captions.write(_encode(batch, rows, vocab, written))
    return written


def _image_columns(
    batch: SpooledBatch, rows: ImageRows, has_tars: bool, written: Written
) -> dict[str, pa.Array]:
    is_used = rows.is_first(batch.rows)
    used = batch.rows[is_used]
    splits = rows.codes[used]
    for code, split in enumerate(SPLITS):
        written.images[split] += int((splits == code).sum())
    columns = {
        "image_id": pa.array(rows.image_ids(used)),
        "file_name": batch.images["file_name"].filter(pa.array(is_used)),
        "split": pa.array(SPLITS).take(pa.array(splits)),
    }
    for name in ("offset", "num_bytes") if has_tars else ():
        columns[name] = batch.images[name].filter(pa.array(is_used))
    return columns


def _encode(
    batch: SpooledBatch, rows: ImageRows, vocab: Vocab, written: Written
) -> dict[str, pa.Array]:
    is_used = rows.codes[batch.caption_rows] >= 0
    caption_rows, mask = batch.caption_rows[is_used], pa.array(is_used)
    words = batch.captions["words"].filter(mask)
    tokenized = TokenizedCaptions.parse(words)
    tokens, offsets = tokenized.encode([vocab.encode([word]) for word in tokenized.words])
    encoded = EncodedCaptions(
        caption_ids=np.arange(written.num_captions, written.num_captions + len(tokenized)),
        image_ids=rows.image_ids(caption_rows),
        tokens=tokens,
        offsets=offsets,
    )
    for code, split in enumerate(SPLITS):
        in_split = rows.codes[caption_rows] == code
        in_tokens, _ = select_rows(tokens, offsets, in_split)
        written.captions[split] += int(in_split.sum())
        written.tokens[split] += len(in_tokens)
        written.unknown[split] += int((in_tokens == UNK).sum())
    written.num_captions += len(tokenized)
    return caption_columns(encoded, batch.captions["caption"].filter(mask), words)
