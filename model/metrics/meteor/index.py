"""METEOR's synonyms and paraphrases as sorted arrays that are mapped into memory.

The index is a folder of NumPy files, built once by `build_index.py`. Words are found by their hash
(`hash_words`). Phrases are nodes of a prefix tree: node 0 is the root, and node n is reached by
`tree[n - 1]`, which joins the parent's number and the last word's id in the paraphrases.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from ....pipeline.stage.ragged import Ints, ranges

Hashes = npt.NDArray[np.uint64]
Int32s = npt.NDArray[np.int32]
BITS = 32  # a node and a word make one int64 that sorts as the pair does
MAX_PHRASE_LENGTH = 7  # words


@dataclass(frozen=True)
class MeteorIndex:
    """The data of METEOR's four matchers.

    Attributes:
        words: (V,) uint64, hashes of the words in paraphrases, ascending; word id = position.
        stems: (V,) uint64, hash of each word's stem.
        tree: (G,) int64, ascending: parent node << 32 | word id, of nodes 1 to G.
        paraphrase_offsets: (G + 2,) int32; node n has paraphrases offsets[n] to offsets[n + 1].
        paraphrases: (E,) int32, nodes, those of one phrase in METEOR's order.
        synonym_words: (S,) uint64, hashes of the words in WordNet, ascending.
        synset_offsets: (S + 1,) int32; word i has the synsets offsets[i] to offsets[i + 1].
        synsets: int32, numbers of WordNet's synsets.
        inflected_words: (X,) uint64, hashes of WordNet's irregular forms, ascending.
        base_offsets: (X + 1,) int32; form i has the base forms offsets[i] to offsets[i + 1].
        base_words: uint64, hashes of base forms.
        function_words: uint64, hashes of function words, ascending.
    """

    words: Hashes
    stems: Hashes
    tree: Ints
    paraphrase_offsets: Int32s
    paraphrases: Int32s
    synonym_words: Hashes
    synset_offsets: Int32s
    synsets: Int32s
    inflected_words: Hashes
    base_offsets: Int32s
    base_words: Hashes
    function_words: Hashes

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files of a folder into memory.

        Raises:
            OSError, ValueError: a file is missing or is no NumPy array.
        """
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})

    def write(self, folder: Path) -> None:
        """Write each array to a file of its name."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    def find_children(self, nodes: Ints, word_ids: Ints) -> Ints:
        """Return the nodes of phrases that are one word longer: (n,) int64, 0 if there is none.

        Args:
            nodes: (n,) int64.
            word_ids: (n,) int64, position in `words`, -1 for other words.
        """
        places = find(self.tree, nodes << BITS | word_ids)
        return np.where(word_ids < 0, 0, places + 1)

    def list_paraphrases(self, nodes: Ints) -> tuple[Ints, Ints, Ints]:
        """List the paraphrases of phrases.

        Args:
            nodes: (n,) int64.

        Returns:
            owners: (E,) int64, index into `nodes`, ascending.
            ranks: (E,) int64, number of the paraphrase in the index; smaller ones come first.
            paraphrases: (E,) int64, nodes.
        """
        return _list_rows(self.paraphrase_offsets, self.paraphrases, nodes)

    def list_synsets(self, hashes: Hashes) -> tuple[Ints, Ints]:
        """List the synsets of words.

        Args:
            hashes: (n,) uint64.

        Returns:
            owners: (E,) int64, index into `hashes`, ascending.
            synsets: (E,) int64.
        """
        rows = find(self.synonym_words, hashes)
        known = np.flatnonzero(rows >= 0)
        owners, _, synsets = _list_rows(self.synset_offsets, self.synsets, rows[known])
        return known[owners], synsets


def hash_words(words: Iterable[str]) -> Hashes:
    """Return the 64-bit xxh3 of words: (n,) uint64."""
    encoded = (word.encode(errors="surrogatepass") for word in words)
    return np.array([xxhash.xxh3_64_intdigest(word) for word in encoded], np.uint64)


def find(table: npt.NDArray[Any], values: npt.NDArray[Any]) -> Ints:
    """Return the position of each value in a sorted table, -1 if it is not there: (n,) int64."""
    if not len(table):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.where(table[places] == values, places, -1)


def _list_rows(offsets: Int32s, values: Int32s, rows: Ints) -> tuple[Ints, Ints, Ints]:
    """Concatenate ragged rows: index into `rows`, position in `values`, and value of each entry."""
    first = offsets[rows].astype(np.int64)
    counts = offsets[rows + 1] - first
    places = ranges(first, counts)
    return np.repeat(np.arange(len(rows)), counts), places, values[places].astype(np.int64)
