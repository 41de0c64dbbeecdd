"""Build METEOR's index from the files in pycocoevalcap, and keep it in the cache folder.

pycocoevalcap has WordNet's synonyms and the function words in METEOR's jar, and 5.3 million
paraphrases in a gzip file, three lines each: probability, phrase, paraphrase. The index is built
once on a machine.

The cache folder is `$SHOWTELL_CACHE`, else `$XDG_CACHE_HOME/showtell`, else `~/.cache/showtell`.
"""

import gzip
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ....pipeline.stage.checksums import checksums_of, seal, unseal
from ....pipeline.stage.console import print_note
from ....pipeline.stage.errors import ScorerError, StorageError
from ....pipeline.stage.files import locked
from ....pipeline.stage.options import expand_home
from ....pipeline.stage.ragged import Ints, to_offsets
from ..java import find_pycocoevalcap
from .index import BITS, MAX_PHRASE_LENGTH, Hashes, Int32s, MeteorIndex, hash_words
from .stemmer import require_old_rules, stem

VERSION = 1
METEOR_DIR = find_pycocoevalcap() / "meteor"
JAR, PARAPHRASES = METEOR_DIR / "meteor-1.5.jar", METEOR_DIR / "data" / "paraphrase-en.gz"
CHECKSUMS_NAME = "checksums.json"
BLOCK_BYTES = 1 << 24
READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, KeyError, ValueError, pa.ArrowException)


def open_index(cache: Path | None = None) -> MeteorIndex:
    """Open the index; the first call on a machine builds it.

    Args:
        cache: folder of the index instead of the usual one.

    Raises:
        ScorerError: pycocoevalcap's files are missing or damaged.
        StorageError: the cache folder cannot be written.
    """
    require_old_rules()
    folder = _index_folder(cache or cache_folder())
    with suppress(OSError, ValueError):
        return _open_verified(folder)
    print_note(f"METEOR's synonyms and paraphrases are indexed once, in {folder}.")
    try:
        with locked(folder.parent, wait=True):
            with suppress(OSError, ValueError):
                return _open_verified(folder)  # another process has built it meanwhile
            _write(_build_index_or_explain(), folder)
            return _open_verified(folder)
    except (OSError, StorageError) as error:
        cause = error.__cause__ or error
        raise StorageError(
            f"METEOR's index cannot be written to {folder}: {getattr(cause, 'strerror', cause)}. "
            "It needs 65 MB. Set SHOWTELL_CACHE to a folder that can be written, such as 'export "
            "SHOWTELL_CACHE=/tmp/showtell'."
        ) from None


def _index_folder(cache: Path) -> Path:
    """Return the folder of the index; other releases of pycocoevalcap's data have others."""
    try:
        sizes = f"{JAR.stat().st_size}-{PARAPHRASES.stat().st_size}"
    except OSError as error:
        raise _source_error(error) from None
    return cache / f"meteor-{VERSION}-{sizes}"


def _build_index_or_explain() -> MeteorIndex:
    """Build the index. Raises `ScorerError` if pycocoevalcap's files are damaged."""
    try:
        return build_index()
    except READ_ERRORS as error:
        raise _source_error(error) from None


def _source_error(error: Exception) -> ScorerError:
    """Return the error about pycocoevalcap's files."""
    return ScorerError(
        f"METEOR's files in {METEOR_DIR} cannot be read ({error!r}). Run 'pip install "
        "--force-reinstall --no-deps pycocoevalcap'."
    )


def cache_folder() -> Path:
    """Return the folder for data that showtell can compute again.

    Raises:
        StorageError: no variable names it, and the user has no home folder.
    """
    if own := os.environ.get("SHOWTELL_CACHE"):
        return expand_home(Path(own))
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "showtell"
    try:
        return Path.home() / ".cache" / "showtell"
    except RuntimeError:
        raise StorageError(
            "METEOR's index needs a folder, and this user has no home. Set SHOWTELL_CACHE to a "
            "folder that can be written, such as 'export SHOWTELL_CACHE=/tmp/showtell'."
        ) from None


def build_index() -> MeteorIndex:
    """Read pycocoevalcap's files.

    Raises:
        READ_ERRORS: they are missing or damaged.
    """
    with zipfile.ZipFile(JAR) as jar:
        function_words = jar.read("function/english.words").decode().split("\n")
        synsets = _read_pairs(jar.read("synonym/english.synsets"))
        bases = _read_pairs(jar.read("synonym/english.exceptions"))
    forms: dict[str, list[str]] = {}
    for base, inflected in bases.items():
        for form in inflected:
            forms.setdefault(form, []).append(base)
    synonym_words, synset_offsets, members = _to_table(synsets)
    inflected_words, base_offsets, base_forms = _to_table(forms)
    words, tree, paraphrase_offsets, paraphrases = _index_paraphrases(*_read_paraphrases())
    return MeteorIndex(
        words=hash_words(words),
        stems=hash_words(map(stem, words)),
        tree=tree,
        paraphrase_offsets=paraphrase_offsets,
        paraphrases=paraphrases,
        synonym_words=synonym_words,
        synset_offsets=synset_offsets,
        synsets=np.array(list(map(int, members)), np.int32),
        inflected_words=inflected_words,
        base_offsets=base_offsets,
        base_words=hash_words(base_forms),
        function_words=np.sort(hash_words(filter(None, function_words))),
    )


def _read_pairs(content: bytes) -> dict[str, list[str]]:
    """Read a file that has a key on one line and its values on the next."""
    lines = content.decode().split("\n")
    return {key: values.split() for key, values in zip(lines[::2], lines[1::2], strict=False)}


def _to_table(values: Mapping[str, list[str]]) -> tuple[Hashes, Int32s, list[str]]:
    """Return the hashes of keys, ascending, with the offsets of their values and the values."""
    keys = list(values)
    hashes = hash_words(keys)
    order = np.argsort(hashes)
    rows = [values[keys[place]] for place in order.tolist()]
    offsets = to_offsets([len(row) for row in rows]).astype(np.int32)
    return hashes[order], offsets, [value for row in rows for value in row]


def _read_paraphrases() -> tuple[pa.DictionaryArray, pa.DictionaryArray]:
    """Return the (E,) phrases and their paraphrases, in the order of the file, as strings."""
    phrases, paraphrases, num_lines = [], [], 0
    with gzip.open(PARAPHRASES) as file:
        for batch in csv.open_csv(
            file,
            csv.ReadOptions(column_names=["line"], block_size=BLOCK_BYTES),
            csv.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types={"line": pa.string()}),
        ):
            lines = np.arange(num_lines, num_lines + len(batch))
            phrases.append(batch[0].filter(pa.array(lines % 3 == 1)))
            paraphrases.append(batch[0].filter(pa.array(lines % 3 == 2)))
            num_lines += len(batch)
    # Encoded together, so that equal strings have equal numbers.
    both = pa.chunked_array([*phrases, *paraphrases]).dictionary_encode().combine_chunks()
    return both[: num_lines // 3], both[num_lines // 3 :]


def _index_paraphrases(
    phrases: pa.DictionaryArray, paraphrases: pa.DictionaryArray
) -> tuple[list[str], Ints, Int32s, Int32s]:
    """Number the words, build the prefix tree, and list the paraphrases of each node.

    Args:
        phrases: (E,) string.
        paraphrases: (E,) string, with the same dictionary.

    Returns:
        The words in the order of their hashes, and `tree`, `paraphrase_offsets` and `paraphrases`
        of the index.
    """
    split = pc.split_pattern(phrases.dictionary, " ")
    encoded = pc.list_flatten(split).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    by_hash = np.argsort(hash_words(words))
    rank = np.empty_like(by_hash)
    rank[by_hash] = np.arange(len(words))
    word_ids = rank[encoded.indices.to_numpy()]
    tree, nodes = _build_tree(word_ids, to_offsets(pc.list_value_length(split).to_numpy()))

    owners = nodes[phrases.indices.to_numpy()]
    order = np.argsort(owners, kind="stable")
    offsets = to_offsets(np.bincount(owners, minlength=len(tree) + 1)).astype(np.int32)
    targets = nodes[paraphrases.indices.to_numpy()[order]].astype(np.int32)
    return [words[place] for place in by_hash.tolist()], tree, offsets, targets


def _build_tree(word_ids: Ints, offsets: Ints) -> tuple[Ints, Ints]:
    """Build the prefix tree of U phrases.

    Args:
        word_ids: (W,) int64, the words of all phrases.
        offsets: (U + 1,) int64; phrase i is word_ids[offsets[i] : offsets[i + 1]].

    Returns:
        tree: (G,) int64, see `MeteorIndex`.
        nodes: (U,) int64, the node of each phrase.
    """
    lengths = np.diff(offsets)
    if lengths.max() > MAX_PHRASE_LENGTH:
        raise ValueError(f"a phrase has more than {MAX_PHRASE_LENGTH} words")
    nodes = np.zeros(len(lengths), np.int64)
    levels, num_nodes = [], 0
    for depth in range(lengths.max()):
        longer = np.flatnonzero(lengths > depth)
        keys = nodes[longer] << BITS | word_ids[offsets[longer] + depth]
        level, places = np.unique(keys, return_inverse=True)
        nodes[longer] = num_nodes + 1 + places
        levels.append(level)
        num_nodes += len(level)
    return np.concatenate(levels), nodes


def _write(index: MeteorIndex, folder: Path) -> None:
    """Write the index; the folder appears when it is complete. The caller holds the lock."""
    for abandoned in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        index.write(partial)
        names = sorted(path.name for path in partial.iterdir())
        (partial / CHECKSUMS_NAME).write_text(json.dumps(seal(checksums_of(partial, names))))
        partial.chmod(0o755)  # mkdtemp's folders are private
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open_verified(folder: Path) -> MeteorIndex:
    """Open the index.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    expected = unseal(json.loads((folder / CHECKSUMS_NAME).read_text()))
    if checksums_of(folder, expected) != expected:
        raise ValueError("a file does not match its checksum")
    return MeteorIndex.open(folder)
