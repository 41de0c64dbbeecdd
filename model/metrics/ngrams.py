"""The n-grams of captions as arrays: those of the references counted once, others looked up.

`metrics.py` builds BLEU and CIDEr on it. Letters: M references of N images; K captions to score,
each with the row (0 to N - 1) of its image; P pairs of a caption and a reference of its image; G
n-grams.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.stage.ragged import Ints, ranges, to_offsets

Floats = NDArray[np.float64]

MAX_ORDER = 4  # n-grams of 1 to 4 words
BITS = 31  # two numbers below 2**31 make one int64 that sorts as the pair does
LAST_KEY = np.iinfo(np.int64).max  # ends each sorted table, so that no search runs off it


@dataclass(frozen=True)
class Words:
    """Captions as one run of word ids.

    Attributes:
        ids: (W,) int64, the words of all captions.
        offsets: (M + 1,) int64; caption i is ids[offsets[i] : offsets[i + 1]].
    """

    ids: Ints
    offsets: Ints

    @classmethod
    def read(cls, captions: Sequence[list[str]], word_ids: dict[str, int]) -> "Words":
        """Number the words of the captions, adding new ones to `word_ids`."""
        ids = [word_ids.setdefault(word, len(word_ids)) for words in captions for word in words]
        lengths = np.array([len(words) for words in captions], np.int64)
        return cls(np.array(ids, np.int64), to_offsets(lengths))

    def take(self, index: Ints) -> "Words":
        """Pick captions, (K,) int64, some perhaps several times."""
        lengths = self.lengths[index]
        return Words(self.ids[ranges(self.offsets[index], lengths)], to_offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        words: list[int] = self.ids[self.offsets[index] : self.offsets[index + 1]].tolist()
        return words

    @property
    def lengths(self) -> Ints:
        """(M,) int64, words in each caption."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Pairs:
    """Each caption beside each reference of its image.

    Attributes:
        owners: (P,) int64, index of the caption, ascending.
        references: (P,) int64, index of the reference.
        offsets: (K + 1,) int64; caption k has the pairs offsets[k] to offsets[k + 1].
    """

    owners: Ints
    references: Ints
    offsets: Ints

    @classmethod
    def of(cls, rows: Ints, image_offsets: Ints) -> "Pairs":
        """Pair captions with their references.

        Args:
            rows: (K,) int64, the row of each caption's image.
            image_offsets: (N + 1,) int64; image i has the references offsets[i] to offsets[i + 1].
        """
        counts = np.diff(image_offsets)[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        return cls(owners, ranges(image_offsets[rows], counts), to_offsets(counts))


@dataclass(frozen=True)
class WeightedImages:
    """Images whose references all count, some more than others.

    Attributes:
        rows: (n,) int64, rows of the images.
        shares: (n,) float64, weight of each reference of each image.
        lengths: (M,) int64, length of every reference there is.
    """

    rows: Ints
    shares: Floats
    lengths: Ints


class ReferenceNgrams:
    """The n-grams of all references: numbered, counted and weighted, order by order."""

    def __init__(self, words: Words, image_offsets: Ints) -> None:
        """Count the n-grams of (M,) references of (N,) images; `image_offsets` as in `Pairs`."""
        images = np.repeat(np.arange(len(image_offsets) - 1), np.diff(image_offsets))
        self.tables: list[Ints] = []  # the keys of each order's n-grams, sorted
        self.orders = [
            OrderStatistics(owners, grams, images, num_images=len(image_offsets) - 1)
            for owners, grams in iterate_ngrams(words, self._learn)
        ]

    def find(self, words: Words, rows: Ints) -> list["FoundNgrams"]:
        """Look up the n-grams of (K,) captions among the references of their images."""
        ngrams = iterate_ngrams(words, self._look_up)
        return [
            order.find(owners, grams, rows)
            for order, (owners, grams) in zip(self.orders, ngrams, strict=True)
        ]

    def sum_cosines(self, words: Words, among: WeightedImages, nearness: Floats) -> Floats:
        """`OrderStatistics.sum_cosines` of (K,) captions for each order, (4, K) float64."""
        ngrams = iterate_ngrams(words, self._look_up)
        return np.array(
            [
                order.sum_cosines(owners, grams, among, nearness)
                for order, (owners, grams) in zip(self.orders, ngrams, strict=True)
            ]
        )

    def sum_matches(self, words: Words, rows: Ints, weights: Floats) -> Floats:
        """`OrderStatistics.sum_matches` of (K,) captions for each order, (4, K) float64."""
        ngrams = iterate_ngrams(words, self._look_up)
        return np.array(
            [
                order.sum_matches(owners, grams, rows, weights, len(words))
                for order, (owners, grams) in zip(self.orders, ngrams, strict=True)
            ]
        )

    def _learn(self, order: int, keys: Ints) -> Ints:
        table, grams = np.unique(keys, return_inverse=True)
        self.tables.append(np.append(table, LAST_KEY))
        return grams

    def _look_up(self, order: int, keys: Ints) -> Ints:
        grams = np.searchsorted(self.tables[order], keys)
        unseen = self.tables[order][grams] != keys
        # Unseen n-grams are told apart too: CIDEr counts how often each occurs.
        new = np.unique(keys[unseen], return_inverse=True)[1]
        grams[unseen] = len(self.tables[order]) + new
        return grams


class OrderStatistics:
    """What the references say of the n-grams of one order.

    Attributes:
        groups: (G + 1,) int64, sorted keys of the distinct (row of image, n-gram), then LAST_KEY.
        images: (N + 1,) int64; the image of row i has the groups images[i] to images[i + 1].
        max_counts: (G,) int64, the most that one reference of the image holds of it.
        offsets: (G + 1,) int64; group g has the entries offsets[g] to offsets[g + 1].
        references: (E,) int64, the reference that holds an entry's n-gram.
        weights: (E,) float64, its tf-idf there.
        idf: (n-grams + 1,) float64, natural logarithm; the last is that of any unseen n-gram.
        norms: (M,) float64, Euclidean norm of each reference's tf-idf vector.
    """

    def __init__(self, owners: Ints, grams: Ints, images: Ints, num_images: int) -> None:
        """Count the n-grams.

        Args:
            owners: index of the reference of each n-gram.
            grams: number of each n-gram.
            images: (M,) int64, the row of each reference's image.
            num_images: N.
        """
        entries, counts = np.unique(join(owners, grams), return_counts=True)
        references, grams = split(entries)
        by_group = np.argsort(keys := join(images[references], grams), kind="stable")
        self.references, counts = references[by_group], counts[by_group]
        groups, starts = np.unique(keys[by_group], return_index=True)
        self.groups = np.append(groups, LAST_KEY)
        self.offsets = np.append(starts, len(by_group))
        self.images = np.searchsorted(groups, np.arange(num_images + 1) << BITS)
        self.max_counts = np.maximum.reduceat(counts, starts)
        frequencies = np.append(np.bincount(split(groups)[1]), 0)
        self.idf = np.log(num_images) - np.log(np.maximum(1, frequencies))
        self.weights = counts * self.idf[grams[by_group]]
        self.norms = norms_of(self.weights, self.references, len(images))

    def find(self, owners: Ints, grams: Ints, rows: Ints) -> "FoundNgrams":
        """Count the n-grams of captions and look them up.

        Args:
            owners: index of the caption of each n-gram.
            grams: number of each n-gram.
            rows: (K,) int64, the row of each caption's image.
        """
        entries, counts = np.unique(join(owners, grams), return_counts=True)
        owners, grams = split(entries)
        keys = join(rows[owners], grams)
        groups = np.searchsorted(self.groups, keys)
        groups[self.groups[groups] != keys] = -1
        idf = self.idf[np.minimum(grams, len(self.idf) - 1)]
        return FoundNgrams(self, owners, counts, counts * idf, groups)

    def sum_cosines(
        self, owners: Ints, grams: Ints, among: "WeightedImages", nearness: Floats
    ) -> Floats:
        """Add up the clipped cosines of each of K captions with all references of some images.

        What the references hold of an n-gram is summed first, and then looked up for all captions:
        no caption is set beside a reference.

        Args:
            owners: index of the caption of each n-gram.
            grams: number of each n-gram.
            among: the images.
            nearness: (K, L) float64, a caption's factor for references of each length.

        Returns:
            (K,) float64, the sum over the references of factor × share × cosine.
        """
        if not len(owners):  # all captions are shorter than that
            return np.zeros(len(nearness))
        entries, counts = np.unique(join(owners, grams), return_counts=True)
        owners, grams = split(entries)
        idf = self.idf[np.minimum(grams, len(self.idf) - 1)]
        wanted, places = np.unique(grams, return_inverse=True)  # (U,), those of all captions

        groups, shares, rows = self._find_held(among.rows, among.shares, wanted)
        num_entries = self.offsets[groups + 1] - self.offsets[groups]
        held = ranges(self.offsets[groups], num_entries)
        references, weights = self.references[held], self.weights[held]
        lengths = np.where((norms := self.norms[references]) > 0, norms, 1)
        values = weights / lengths * np.repeat(shares, num_entries)
        rows = np.repeat(rows, num_entries)
        cells = rows * nearness.shape[1] + among.lengths[references]
        times = weights / np.where(idf_held := self.idf[wanted[rows]], idf_held, 1)

        # min(n, m) idf of n and m occurrences is one idf for each that both have.
        products = np.zeros(len(entries))
        for time in range(1, counts.max() + 1):
            again = times > time - 0.5
            size = len(wanted) * nearness.shape[1]
            table = np.bincount(cells[again], values[again], size).reshape(len(wanted), -1)
            mine = counts >= time
            products[mine] += (table @ nearness.T)[places[mine], owners[mine]]
        norms = norms_of(counts * idf, owners, len(nearness))
        dots = np.bincount(owners, products * idf, len(nearness))
        return dots / np.where(norms > 0, norms, 1)

    def sum_matches(
        self, owners: Ints, grams: Ints, rows: Ints, weights: Floats, num_captions: int
    ) -> Floats:
        """Count what each of K captions has in common with some images, clipped as BLEU does.

        Args:
            owners: index of the caption of each n-gram.
            grams: number of each n-gram.
            rows: (n,) int64, rows of the images.
            weights: (n,) float64 of the images.
            num_captions: K.

        Returns:
            (K,) float64, the sum over the images of weight × matches.
        """
        if not len(owners):
            return np.zeros(num_captions)
        entries, counts = np.unique(join(owners, grams), return_counts=True)
        owners, grams = split(entries)
        wanted, places = np.unique(grams, return_inverse=True)
        groups, shares, found = self._find_held(rows, weights, wanted)
        most, matches = self.max_counts[groups], np.zeros(len(entries))
        for time in range(1, counts.max() + 1):  # min(n, m) is one for each that both have
            again = most >= time
            held = np.bincount(found[again], shares[again], len(wanted))
            matches += np.where(counts >= time, held[places], 0)
        return np.bincount(owners, matches, num_captions).astype(np.float64)

    def _find_held(self, rows: Ints, shares: Floats, wanted: Ints) -> tuple[Ints, Floats, Ints]:
        """What the references of images hold of some n-grams.

        Args:
            rows: (n,) int64, rows of the images.
            shares: (n,) float64 of the images.
            wanted: (U,) int64, numbers of n-grams, ascending.

        Returns:
            groups: (F,) int64, index into the groups of each that is found.
            shares: (F,) float64, that of its image.
            places: (F,) int64, which of the wanted it is.
        """
        num_groups = self.images[rows + 1] - self.images[rows]
        groups = ranges(self.images[rows], num_groups)
        places = np.searchsorted(wanted[:-1], theirs := split(self.groups[groups])[1])
        hits = wanted[places] == theirs
        return groups[hits], np.repeat(shares, num_groups)[hits], places[hits]


@dataclass(frozen=True)
class FoundNgrams:
    """The distinct n-grams of one order in K captions.

    Attributes:
        statistics: of the references.
        owners: (G,) int64, index of the caption.
        counts: (G,) int64, how often the caption holds the n-gram.
        weights: (G,) float64, its tf-idf there.
        groups: (G,) int64, index into the statistics' groups; -1 where no reference has it.
    """

    statistics: OrderStatistics
    owners: Ints
    counts: Ints
    weights: Floats
    groups: Ints

    def clipped_counts(self, num_captions: int) -> Ints:
        """(K,) int64, n-grams of each caption that a reference has as often: BLEU's matches."""
        known = self.groups >= 0
        clipped = np.minimum(self.counts[known], self.statistics.max_counts[self.groups[known]])
        return np.bincount(self.owners[known], clipped, num_captions).astype(np.int64)

    def cosines(self, pairs: Pairs, clip: bool = True) -> Floats:
        """(P,) float64, cosine of the tf-idf vectors, clipped to the reference's: CIDEr-D's."""
        statistics, known = self.statistics, np.flatnonzero(self.groups >= 0)
        first = statistics.offsets[self.groups[known]]
        counts = statistics.offsets[self.groups[known] + 1] - first
        entries, mine = ranges(first, counts), np.repeat(known, counts)
        theirs, owners = statistics.weights[entries], self.owners[mine]
        weights = self.weights[mine]
        products = (np.minimum(weights, theirs) if clip else weights) * theirs
        # A caption's pairs follow one another as the references of its image do.
        where = pairs.offsets[owners] + statistics.references[entries]
        where -= pairs.references[pairs.offsets[owners]]
        dots = np.bincount(where, products, len(pairs.owners))
        norms = norms_of(self.weights, self.owners, len(pairs.offsets) - 1)[pairs.owners]
        norms *= statistics.norms[pairs.references]
        return dots / np.where(norms > 0, norms, 1)  # no norm, no product: 0, as pycocoevalcap


def iterate_ngrams(
    words: Words, number: Callable[[int, Ints], Ints]
) -> Iterator[tuple[Ints, Ints]]:
    """Number the n-grams of each order, 1 to 4.

    Args:
        words: of the captions.
        number: (order - 1, keys of n-grams) → numbers of the n-grams, below 2**31. The key of an
            n-gram joins the number of its first n - 1 words and the id of its last.

    Yields:
        owners: (G,) int64, index of the caption of each n-gram.
        grams: (G,) int64, number of each n-gram.
    """
    positions = np.arange(len(words.ids))
    owners = np.repeat(np.arange(len(words)), words.lengths)
    grams = np.zeros_like(words.ids)
    for order in range(MAX_ORDER):
        inside = positions + order < words.offsets[owners + 1]
        positions, owners = positions[inside], owners[inside]
        grams = number(order, join(grams[inside], words.ids[positions + order]))
        yield owners, grams


def join(high: Ints, low: Ints) -> Ints:
    """One sortable key of two numbers below 2**31."""
    return high << BITS | low


def split(keys: Ints) -> tuple[Ints, Ints]:
    """The two numbers of each key."""
    return keys >> BITS, keys & ((1 << BITS) - 1)


def norms_of(weights: Floats, owners: Ints, num_owners: int) -> Floats:
    """Euclidean norm of the weights of each owner, (num_owners,) float64."""
    return np.sqrt(np.bincount(owners, weights**2, num_owners))
