"""Tokenizes many captions at once, in columns, without a Python object per caption or word.

Captions are split at white space, each distinct chunk is tokenized once, and the results are looked
up for all captions.
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
from .tokenizer import DEFAULT_TOKENIZER, load_tokenizer

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenizedCaptions:
    """The words of M captions, as indices into a list of distinct words.

    Attributes:
        words: (U,) distinct words; some may occur in no caption.
        indices: (W,) int32, index in `words` of every word of every caption.
        offsets: (M + 1,) int64; caption i is indices[offsets[i] : offsets[i + 1]].
    """

    words: tuple[str, ...]
    indices: Int32Array
    offsets: Ints

    @classmethod
    def parse(cls, texts: pa.Array) -> "TokenizedCaptions":
        """Return what `texts` was called on: captions of at least one word, joined by spaces."""
        lists = pc.split_pattern(texts, " ")
        encoded = pc.list_flatten(lists).dictionary_encode()
        offsets = to_offsets(pc.list_value_length(lists).to_numpy())
        return cls(tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy(), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """(M,) int64, number of words in each caption."""
        return np.diff(self.offsets)

    def select(self, mask: Mask) -> "TokenizedCaptions":
        """Return the captions selected by a (M,) mask."""
        return TokenizedCaptions(self.words, *select_rows(self.indices, self.offsets, mask))

    def count(self) -> Counter[str]:
        """Return word → number of occurrences, for words that occur."""
        counts = np.bincount(self.indices, minlength=len(self.words)).tolist()
        return Counter({word: n for word, n in zip(self.words, counts, strict=True) if n})

    def texts(self) -> pa.Array:
        """Return the words of each caption, joined by single spaces: (M,) string."""
        words = pa.array(self.words, pa.string()).take(pa.array(self.indices))
        offsets = pa.array(self.offsets.astype(np.int32))
        return pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")

    def encode(self, word_ids: Sequence[Sequence[int]]) -> tuple[Int32Array, Ints]:
        """Replace each word by its token ids.

        Args:
            word_ids: (U,) the token ids of each of `words`, one or several.

        Returns:
            tokens: (sum of lengths,) int32, token ids of all captions.
            offsets: (M + 1,) int64; caption i is tokens[offsets[i] : offsets[i + 1]].
        """
        tokens = _take_rows(word_ids, self.indices)
        return tokens.flatten().to_numpy(), tokens.offsets.to_numpy()[self.offsets].astype(np.int64)


def tokenize_all(captions: pa.Array, tokenizer: str = DEFAULT_TOKENIZER) -> TokenizedCaptions:
    """Split captions into words, with the same result as `tokenize` for each caption.

    Args:
        captions: (M,) string.
        tokenizer: name in `UNITS`.
    """
    chosen = load_tokenizer(tokenizer)
    lines = pc.replace_substring(captions, "\n", " ")
    crosses_spaces = pa.repeat(False, len(captions))
    if chosen.crosses_spaces is not None:
        crosses_spaces = pc.match_substring_regex(lines, chosen.crosses_spaces)
    lists = pc.ascii_split_whitespace(pc.if_else(crosses_spaces, "", lines))
    chunk_offsets = to_offsets(pc.list_value_length(lists).to_numpy())
    encoded = pc.list_flatten(lists).dictionary_encode()
    chunks: Int32Array = encoded.indices.to_numpy()
    words_of_chunk = [chosen.tokenize_chunk(chunk) for chunk in encoded.dictionary.to_pylist()]

    # Captions whose words depend on more than one chunk are tokenized whole, one by one.
    is_whole = crosses_spaces.to_numpy(zero_copy_only=False)
    is_ambiguous = np.array([words is None for words in words_of_chunk], np.bool_)
    ambiguous = np.flatnonzero(is_ambiguous[chunks])
    is_whole[np.searchsorted(chunk_offsets, ambiguous, "right") - 1] = True
    whole = np.flatnonzero(is_whole)
    words_of_whole = [chosen.tokenize(text) for text in captions.take(pa.array(whole)).to_pylist()]

    all_words = [*(words or [] for words in words_of_chunk), *words_of_whole]
    index_of = {word: i for i, word in enumerate(dict.fromkeys(chain.from_iterable(all_words)))}
    rows = [[index_of[word] for word in words] for words in all_words]
    # Join the chunks of each caption, then replace the captions that were tokenized whole.
    by_chunk = _take_rows(rows, chunks)
    by_caption = pa.ListArray.from_arrays(
        by_chunk.offsets.take(pa.array(chunk_offsets)), by_chunk.values
    )
    order = np.arange(len(captions))
    order[whole] = len(captions) + np.arange(len(whole))
    whole_rows = pa.array(rows[len(words_of_chunk) :], by_caption.type)
    indices = pa.concat_arrays([by_caption, whole_rows]).take(pa.array(order))
    offsets = to_offsets(pc.list_value_length(indices).to_numpy())
    return TokenizedCaptions(tuple(index_of), indices.flatten().to_numpy(), offsets)


def tokenize_texts(captions: Sequence[str], tokenizer: str = DEFAULT_TOKENIZER) -> list[str]:
    """Return the words of each caption, joined by single spaces.

    For many captions, this is far faster than the tokenizer's own `tokenize`.
    """
    texts: list[str] = tokenize_all(pa.array(captions, pa.string()), tokenizer).texts().to_pylist()
    return texts


def _take_rows(rows: Sequence[Sequence[int]], index: npt.NDArray[np.integer[Any]]) -> pa.ListArray:
    """Return the rows at the (n,) positions `index`, as list<int32>."""
    # Arrow's `take` is faster here than offsets and ranges in NumPy.
    return pa.array(rows, pa.list_(pa.int32())).take(pa.array(index))
