"""Many captions → words, in columns: no Python object for each caption or word.

Captions are cut at spaces, each distinct chunk is read once by `tokenizer.py`, and what it says is
looked up for all captions at once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..stage.ragged import Int32Array, Ints, select_rows, to_offsets
from .tokenizer import REACHES_ACROSS, read_chunk, tokenize

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenizedCaptions:
    """The words of M captions, as numbers of the distinct words.

    Attributes:
        words: (U,) distinct words; some may occur in no caption.
        numbers: (W,) int32, places in `words` of all captions' words.
        offsets: (M + 1,) int64; caption i is numbers[offsets[i] : offsets[i + 1]].
    """

    words: tuple[str, ...]
    numbers: Int32Array
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """(M,) int64, words in each caption."""
        return np.diff(self.offsets)

    def select(self, wanted: Mask) -> "TokenizedCaptions":
        """The captions of a (M,) mask."""
        return TokenizedCaptions(self.words, *select_rows(self.numbers, self.offsets, wanted))

    def count(self) -> Counter[str]:
        """How often each word occurs; those that do not are left out."""
        counts = np.bincount(self.numbers, minlength=len(self.words)).tolist()
        return Counter({word: n for word, n in zip(self.words, counts, strict=True) if n})

    def texts(self) -> pa.Array:
        """(M,) string, the words of each caption joined by one space each."""
        words = pa.array(self.words, pa.string()).take(pa.array(self.numbers))
        offsets = pa.array(self.offsets.astype(np.int32))
        return pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")

    def encode(self, ids_of_words: Sequence[Sequence[int]]) -> tuple[Int32Array, Ints]:
        """Replace each word by its ids.

        Args:
            ids_of_words: of each of the `words`, one id or several.

        Returns:
            tokens: int32, of all captions.
            offsets: (M + 1,) int64; caption i is tokens[offsets[i] : offsets[i + 1]].
        """
        tokens = _look_up(ids_of_words, self.numbers)
        return tokens.flatten().to_numpy(), tokens.offsets.to_numpy()[self.offsets].astype(np.int64)


def tokenize_all(captions: pa.Array) -> TokenizedCaptions:
    """Split captions into words; the same words as `tokenize` gives for each.

    Args:
        captions: (M,) string.
    """
    lines = pc.replace_substring(captions, "\n", " ")
    # Captions that are more than their chunks are read one by one, each as one chunk.
    whole = pc.match_substring_regex(lines, REACHES_ACROSS)
    lists = pc.ascii_split_whitespace(pc.if_else(whole, "", lines))
    offsets = to_offsets(pc.list_value_length(lists).to_numpy())
    encoded = pc.list_flatten(lists).dictionary_encode()
    chunks: Int32Array = encoded.indices.to_numpy()
    readings = [read_chunk(chunk) for chunk in encoded.dictionary.to_pylist()]
    unread = np.array([reading is None for reading in readings], np.bool_)
    is_whole = whole.to_numpy(zero_copy_only=False)
    is_whole[np.searchsorted(offsets, np.flatnonzero(unread[chunks]), "right") - 1] = True

    places = np.flatnonzero(is_whole)
    kept = np.where(is_whole, 0, np.diff(offsets))
    chunks = chunks[np.repeat(~is_whole, np.diff(offsets))]
    new = np.arange(len(readings), len(readings) + len(places))
    chunks = np.insert(chunks, to_offsets(kept)[places], new)
    offsets = to_offsets(np.where(is_whole, 1, kept))
    texts = captions.take(pa.array(places)).to_pylist()
    tokens = [*(reading or [] for reading in readings), *map(tokenize, texts)]

    words = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(tokens)))}
    numbers = _look_up([[words[word] for word in reading] for reading in tokens], chunks)
    starts = numbers.offsets.to_numpy()[offsets].astype(np.int64)
    return TokenizedCaptions(tuple(words), numbers.flatten().to_numpy(), starts)


def _look_up(rows: Sequence[Sequence[int]], index: npt.NDArray[np.integer[Any]]) -> pa.ListArray:
    """Each of the (n,) chosen rows, list<int32>."""
    # Arrow's own; with offsets and ranges in NumPy it takes five times as long.
    return pa.array(rows, pa.list_(pa.int32())).take(pa.array(index))
