"""What METEOR knows about words: stems, synonyms, function words, and the words of paraphrases.

Words are numbered in the order in which they are first read; these numbers are the word ids here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....pipeline.stage.ragged import Ints, ranges
from ..ngrams import Words
from .index import MAX_PHRASE_LENGTH, Hashes, MeteorIndex, find, hash_words
from .stemmer import stem

# WordNet's endings and what replaces them, in METEOR's order: the first base form that is a word
# counts. METEOR has no rule for words of one or two letters, or in -ss.
ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("er", "e"),
    ("est", ""),
    ("est", "e"),
)


@dataclass(frozen=True)
class Phrases:
    """The phrases in captions that have or are paraphrases, ordered by caption and first word.

    Attributes:
        captions: (F,) int64, index of the caption, ascending.
        starts: (F,) int64, position of the first word in the caption.
        lengths: (F,) int64, number of words.
        nodes: (F,) int64, node in the index.
    """

    captions: Ints
    starts: Ints
    lengths: Ints
    nodes: Ints


class Lexicon:
    """The words of captions, looked up in the index once each.

    Attributes:
        stems: (V,) uint64, hash of the stem of each word.
        phrase_words: (V,) int64, position in the index's `words`, -1 if no paraphrase has the word.
        is_function: (V,) bool.
    """

    def __init__(self, index: MeteorIndex) -> None:
        self.index = index
        self._word_ids: dict[str, int] = {}
        self.stems: Hashes = np.empty(0, np.uint64)
        self.phrase_words: Ints = np.empty(0, np.int64)
        self.is_function: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self._synset_offsets: Ints = np.zeros(1, np.int64)
        self._synsets: Ints = np.empty(0, np.int64)

    def read(self, captions: Sequence[list[str]]) -> Words:
        """Number the words of captions, and look up the new ones."""
        num_known = len(self._word_ids)
        words = Words.read(captions, self._word_ids)
        if len(self._word_ids) > num_known:
            self._look_up(list(self._word_ids)[num_known:])
        return words

    def find_phrases(self, words: Words) -> Phrases:
        """Find all phrases of up to 7 words that are in the index's prefix tree."""
        phrase_words = self.phrase_words[words.ids]
        captions = np.repeat(np.arange(len(words)), words.lengths)
        ends = words.offsets[captions + 1]
        places, nodes = np.arange(len(words.ids)), np.zeros(len(words.ids), np.int64)
        found = []
        for length in range(1, MAX_PHRASE_LENGTH + 1):
            inside = places + length <= ends[places]
            places, nodes = places[inside], nodes[inside]
            nodes = self.index.find_children(nodes, phrase_words[places + length - 1])
            places, nodes = places[nodes > 0], nodes[nodes > 0]
            found.append((places, np.full(len(places), length), nodes))
        places, lengths, nodes = map(np.concatenate, zip(*found, strict=True))
        order = np.argsort(places, kind="stable")
        places, lengths, nodes = places[order], lengths[order], nodes[order]
        captions = captions[places]
        return Phrases(captions, places - words.offsets[captions], lengths, nodes)

    def pair_synonyms(self, first: Ints, second: Ints) -> Ints:
        """Return the pairs of words that share a synset, (n,) int64, ascending, see `pair_words`.

        Args:
            first: word ids.
            second: word ids.
        """
        synsets, members = self._list_synsets(np.unique(second))
        order = np.argsort(synsets, kind="stable")
        synsets, members = synsets[order], members[order]
        wanted, words = self._list_synsets(np.unique(first))
        left = np.searchsorted(synsets, wanted)
        counts = np.searchsorted(synsets, wanted, "right") - left
        pairs = self.pair_words(np.repeat(words, counts), members[ranges(left, counts)])
        return np.unique(pairs)

    def pair_words(self, first: Ints, second: Ints) -> Ints:
        """Join two word ids to one number: (n,) and (n,) int64 → (n,) int64."""
        return first * len(self._word_ids) + second

    def _list_synsets(self, word_ids: Ints) -> tuple[Ints, Ints]:
        """Return the synsets of words, and the word of each."""
        first = self._synset_offsets[word_ids]
        counts = self._synset_offsets[word_ids + 1] - first
        return self._synsets[ranges(first, counts)], np.repeat(word_ids, counts)

    def _look_up(self, words: list[str]) -> None:
        """Look up new words in the index."""
        index, hashes = self.index, hash_words(words)
        places = find(index.words, hashes)
        stems = index.stems[places]
        unknown = np.flatnonzero(places < 0)
        stems[unknown] = hash_words(stem(words[place]) for place in unknown.tolist())
        self.stems = np.append(self.stems, stems)
        self.phrase_words = np.append(self.phrase_words, places)
        self.is_function = np.append(self.is_function, find(index.function_words, hashes) >= 0)

        owners, forms = self._find_base_forms(words, hashes)
        own = np.arange(len(words))
        listed, synsets = index.list_synsets(np.append(hashes, forms))
        listed = np.append(own, owners)[listed]
        order = np.argsort(listed, kind="stable")
        counts = np.bincount(listed, minlength=len(words))
        self._synset_offsets = np.append(
            self._synset_offsets, self._synset_offsets[-1] + np.cumsum(counts)
        )
        self._synsets = np.append(self._synsets, synsets[order])

    def _find_base_forms(self, words: list[str], hashes: Hashes) -> tuple[Ints, Hashes]:
        """Return the base forms of inflected words.

        Args:
            words: (n,) words.
            hashes: (n,) uint64, their hashes.

        Returns:
            owners: (F,) int64, index of the word.
            forms: (F,) uint64, hash of the base form.
        """
        index = self.index
        rows = find(index.inflected_words, hashes)
        irregular = np.flatnonzero(rows >= 0)
        first = index.base_offsets[rows[irregular]].astype(np.int64)
        counts = index.base_offsets[rows[irregular] + 1] - first
        owners, forms = np.repeat(irregular, counts), index.base_words[ranges(first, counts)]

        candidates = [
            (place, base)
            for place in np.flatnonzero(rows < 0).tolist()
            for base in _list_base_forms(words[place])
        ]
        if candidates:
            places = np.array([place for place, _ in candidates])
            bases = hash_words(base for _, base in candidates)
            is_word = find(index.synonym_words, bases) >= 0
            places, firsts = np.unique(places[is_word], return_index=True)
            owners = np.append(owners, places)
            forms = np.append(forms, bases[is_word][firsts])
        return owners, forms


def _list_base_forms(word: str) -> Iterable[str]:
    """Return possible base forms of a word."""
    if len(word) <= 2 or word.endswith("ss"):
        return ()
    return [
        word[: -len(ending)] + replacement
        for ending, replacement in ENDINGS
        if word.endswith(ending)
    ]
