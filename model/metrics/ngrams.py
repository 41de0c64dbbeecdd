"""Count the n-grams of captions in NumPy, for BLEU and CIDEr.

The n-grams of the references are counted once; those of a candidate caption are looked up.

Letters in shapes: M references of N images; K candidates, each for one image, which is given by its
row (0 to N - 1); P pairs of a candidate and a reference of its image; G n-grams.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Self

import numpy as np

from ...pipeline.stage.ragged import Ints, ranges, to_offsets

MAX_ORDER = 4  # n-grams of 1 to 4 words
BITS = 31  # two numbers below 2**31 make one int64 that sorts as the pair does
LAST_KEY = np.iinfo(np.int64).max  # ends each sorted table, so that every search finds an entry


@dataclass(frozen=True)
class Words:
    """Captions as word ids, concatenated.

    Attributes:
        ids: (W,) int64, the words of all captions.
        offsets: (M + 1,) int64; caption i is ids[offsets[i] : offsets[i + 1]].
    """

    ids: Ints
    offsets: Ints

    @classmethod
    def read(cls, captions: Sequence[list[str]], word_ids: dict[str, int]) -> Self:
        """Number the words of the captions, adding new ones to `word_ids`."""
        ids = [word_ids.setdefault(word, len(word_ids)) for words in captions for word in words]
        lengths = np.array([len(words) for words in captions], np.int64)
        return cls(np.array(ids, np.int64), to_offsets(lengths))

    def take(self, index: Ints) -> "Words":
        """Return the captions at `index`, (K,) int64; an index may occur several times."""
        lengths = self.lengths[index]
        return Words(self.ids[ranges(self.offsets[index], lengths)], to_offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        words: list[int] = self.ids[self.offsets[index] : self.offsets[index + 1]].tolist()
        return words

    @property
    def lengths(self) -> Ints:
        """Number of words in each caption, (M,) int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Pairs:
    """Every candidate paired with each reference of its image.

    Attributes:
        candidates: (P,) int64, index of the candidate, ascending.
        references: (P,) int64, index of the reference.
        offsets: (K + 1,) int64; candidate k has the pairs offsets[k] to offsets[k + 1].
    """

    candidates: Ints
    references: Ints
    offsets: Ints

    @classmethod
    def of(cls, rows: Ints, image_offsets: Ints) -> Self:
        """Pair candidates with the references of their images.

        Args:
            rows: (K,) int64, the row of each candidate's image.
            image_offsets: (N + 1,) int64; image i has the references offsets[i] to offsets[i + 1].
        """
        counts = np.diff(image_offsets)[rows]
        candidates = np.repeat(np.arange(len(rows)), counts)
        return cls(candidates, ranges(image_offsets[rows], counts), to_offsets(counts))


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of one order in a set of captions, with the number of times each occurs.

    Attributes:
        captions: (G,) int64, index of the caption, ascending.
        ngrams: (G,) int64, number of the n-gram; each occurs once per caption.
        counts: (G,) int64, occurrences of the n-gram in the caption.
    """

    captions: Ints
    ngrams: Ints
    counts: Ints

    @classmethod
    def count(cls, captions: Ints, ngrams: Ints) -> Self:
        """Count equal (caption, n-gram) pairs."""
        keys, counts = np.unique(join(captions, ngrams), return_counts=True)
        return cls(*split(keys), counts)

    def __len__(self) -> int:
        return len(self.counts)

    def split(self, offsets: Ints) -> "list[NgramCounts]":
        """Split the captions into parts: part i has the captions offsets[i] to offsets[i + 1].

        Args:
            offsets: (n + 1,) int64, from 0 to the number of captions.
        """
        bounds = pairwise(np.searchsorted(self.captions, offsets).tolist())
        return [
            NgramCounts(self.captions[a:b] - first, self.ngrams[a:b], self.counts[a:b])
            for (a, b), first in zip(bounds, offsets.tolist(), strict=False)
        ]


@dataclass(frozen=True)
class Matches:
    """Candidates beside the references of their images.

    Attributes:
        words: word ids of the K candidates.
        pairs: the candidates paired with their references.
        ngrams: n-grams of the candidates, order by order.
        groups: order by order, (G,) int64: the group of `ReferenceCounts` with the same image and
            n-gram, or -1 if no reference of the image has the n-gram.
    """

    words: Words
    pairs: Pairs
    ngrams: list[NgramCounts]
    groups: list[Ints]


class ReferenceCounts:
    """The n-grams of one order in the references.

    An entry is an n-gram in one reference; a group is an n-gram in all references of one image.

    Attributes:
        groups: (G + 1,) int64, the sorted keys (row of the image, n-gram), then LAST_KEY.
        group_ngrams: (G,) int32, number of each group's n-gram.
        images: (N + 1,) int64; the image of row i has the groups images[i] to images[i + 1].
        max_counts: (G,) int64, the highest count of the n-gram in one reference of the image.
        offsets: (G + 1,) int64; group g has the entries offsets[g] to offsets[g + 1].
        references: (E,) int64, index of each entry's reference.
        counts: (E,) int32, occurrences of the n-gram in that reference.
    """

    def __init__(self, ngrams: NgramCounts, image_rows: Ints, num_images: int) -> None:
        """Group the n-grams of (M,) references by image.

        Args:
            ngrams: n-grams of the references.
            image_rows: (M,) int64, the row of each reference's image.
            num_images: N.
        """
        keys = join(image_rows[ngrams.captions], ngrams.ngrams)
        by_group = np.argsort(keys, kind="stable")
        self.references, counts = ngrams.captions[by_group], ngrams.counts[by_group]
        groups, starts = np.unique(keys[by_group], return_index=True)
        self.groups = np.append(groups, LAST_KEY)
        self.group_ngrams = split(groups)[1].astype(np.int32)
        self.offsets = np.append(starts, len(by_group))
        self.images = np.searchsorted(groups, np.arange(num_images + 1) << BITS)
        self.max_counts = np.maximum.reduceat(counts, starts)
        self.counts = counts.astype(np.int32)
        self._places = np.full(ngrams.ngrams.max(initial=-1) + 1, -1, np.int32)
        self._lock = Lock()  # of `_places`: several threads may score captions

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images) - 1

    def find(self, ngrams: NgramCounts, rows: Ints) -> Ints:
        """Return the group of each n-gram of the candidates, -1 where there is none: (G,) int64.

        Args:
            ngrams: n-grams of K candidates.
            rows: (K,) int64, the row of each candidate's image.
        """
        keys = join(rows[ngrams.captions], ngrams.ngrams)
        groups = np.searchsorted(self.groups, keys)
        groups[self.groups[groups] != keys] = -1
        return groups

    def select(self, rows: Ints, wanted: Ints) -> tuple[Ints, Ints, Ints]:
        """Return the groups that some images have of some n-grams.

        Args:
            rows: (n,) int64, rows of the images.
            wanted: (U,) int64, distinct numbers of n-grams.

        Returns:
            groups: (F,) int64, the groups.
            images: (F,) int64, index into `rows` of each group's image.
            places: (F,) int64, index into `wanted` of each group's n-gram.
        """
        num_groups = self.images[rows + 1] - self.images[rows]
        groups = ranges(self.images[rows], num_groups)
        is_known = wanted < len(self._places)
        known = wanted[is_known]
        with self._lock:
            self._places[known] = np.flatnonzero(is_known)
            places = self._places[self.group_ngrams[groups]]
            self._places[known] = -1
        hits = np.flatnonzero(places >= 0)
        images = np.searchsorted(to_offsets(num_groups), hits, "right") - 1
        return groups[hits], images, places[hits]


class ReferenceNgrams:
    """The n-grams of all references, counted once.

    Attributes:
        words: word ids of the M references.
        image_offsets: (N + 1,) int64; image i has the references offsets[i] to offsets[i + 1].
        orders: n-gram counts of each order, 1 to 4.
    """

    def __init__(self, captions: Sequence[str], image_offsets: Ints) -> None:
        """Count the n-grams of (M,) captions, words joined by spaces."""
        self._word_ids: dict[str, int] = {}
        self._tables: list[Ints] = []  # the keys of each order's n-grams, sorted
        self.image_offsets = image_offsets
        self.words = Words.read([text.split() for text in captions], self._word_ids)
        num_images = len(image_offsets) - 1
        image_rows = np.repeat(np.arange(num_images), np.diff(image_offsets))
        self.orders = [
            ReferenceCounts(ngrams, image_rows, num_images)
            for ngrams in _count_ngrams(self.words, self._learn)
        ]

    def read(self, captions: Sequence[str]) -> Words:
        """Return the word ids of candidates; words that no reference has get new ids."""
        return Words.read([text.split() for text in captions], dict(self._word_ids))

    def count(self, words: Words) -> list[NgramCounts]:
        """Count the n-grams of (K,) candidates, order by order."""
        return list(_count_ngrams(words, self._look_up))

    def match(self, captions: Sequence[str], rows: Ints) -> Matches:
        """Compare candidates with the references of their images.

        Args:
            captions: K candidates, words joined by spaces.
            rows: (K,) int64, the row of each candidate's image.
        """
        # Beam search and sampling often propose the same caption for many images: read it once.
        places = {text: place for place, text in enumerate(dict.fromkeys(captions))}
        words = self.read(list(places))
        words = words.take(np.array([places[text] for text in captions], np.int64))
        ngrams = self.count(words)
        groups = [order.find(own, rows) for order, own in zip(self.orders, ngrams, strict=True)]
        return Matches(words, Pairs.of(rows, self.image_offsets), ngrams, groups)

    def _learn(self, order: int, keys: Ints) -> Ints:
        """Number the n-grams of the references."""
        table, ngrams = np.unique(keys, return_inverse=True)
        self._tables.append(np.append(table, LAST_KEY))
        return ngrams

    def _look_up(self, order: int, keys: Ints) -> Ints:
        """Return the numbers of n-grams; those that no reference has get new ones."""
        table = self._tables[order]
        ngrams = np.searchsorted(table, keys)
        unseen = table[ngrams] != keys
        # One number each: CIDEr counts how often an unseen n-gram occurs.
        ngrams[unseen] = len(table) + np.unique(keys[unseen], return_inverse=True)[1]
        return ngrams


def _count_ngrams(words: Words, number: Callable[[int, Ints], Ints]) -> Iterator[NgramCounts]:
    """Yield the n-grams of each order, 1 to 4.

    Args:
        words: word ids of the captions.
        number: (order - 1, keys of n-grams) → numbers of the n-grams, below 2**31. The key of an
            n-gram joins the number of its first n - 1 words and the id of its last word.
    """
    positions = np.arange(len(words.ids))
    captions = np.repeat(np.arange(len(words)), words.lengths)
    ngrams = np.zeros_like(words.ids)
    for order in range(MAX_ORDER):
        inside = positions + order < words.offsets[captions + 1]
        positions, captions = positions[inside], captions[inside]
        ngrams = number(order, join(ngrams[inside], words.ids[positions + order]))
        yield NgramCounts.count(captions, ngrams)


def join(high: Ints, low: Ints) -> Ints:
    """Join two numbers below 2**31 to one int64 that sorts as the pair does."""
    return high << BITS | low


def split(keys: Ints) -> tuple[Ints, Ints]:
    """Return the two numbers of each key that `join` made."""
    return keys >> BITS, keys & ((1 << BITS) - 1)
