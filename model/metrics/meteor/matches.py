"""Find all matches between the words and phrases of captions and references.

There are four matchers: equal words, words with the same stem, words that share a WordNet synset,
and paraphrases. A match joins a span of the caption and a span of the reference; matches may
overlap, and `alignment.py` chooses among them.

Letters in shapes: P pairs of a caption and a reference, M matches.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ....pipeline.stage.ragged import Ints, ranges, to_offsets
from ..ngrams import Words
from .index import MeteorIndex, find
from .lexicon import Lexicon, Phrases

Mask = npt.NDArray[np.bool_]
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)


@dataclass(frozen=True)
class Matches:
    """Matches of P pairs, ordered by pair, then by the start in the reference, then as METEOR does.

    Attributes:
        pairs: (M,) int64, index of the pair, ascending.
        matchers: (M,) int64, EXACT, STEM, SYNONYM or PARAPHRASE.
        starts: (M,) int64, position of the first word in the caption.
        lengths: (M,) int64, number of words of the caption.
        reference_starts: (M,) int64, position of the first word in the reference.
        reference_lengths: (M,) int64, number of words of the reference.
    """

    pairs: Ints
    matchers: Ints
    starts: Ints
    lengths: Ints
    reference_starts: Ints
    reference_lengths: Ints

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, index: Ints | Mask) -> Self:
        """Return the matches at `index`, an array of integers or a mask."""
        return type(self)(*(values[index] for values in vars(self).values()))


@dataclass(frozen=True)
class Captions:
    """The words and phrases of captions."""

    words: Words
    phrases: Phrases

    @classmethod
    def read(cls, captions: list[list[str]], lexicon: Lexicon) -> Self:
        """Look up the words and phrases of captions, given as METEOR's words."""
        words = lexicon.read(captions)
        return cls(words, lexicon.find_phrases(words))

    def take(self, index: Ints) -> Self:
        """Return the captions at `index`, (K,) int64."""
        owners, rows = _list_phrases(self.phrases.captions, index)
        phrases = self.phrases
        taken = Phrases(owners, phrases.starts[rows], phrases.lengths[rows], phrases.nodes[rows])
        return type(self)(self.words.take(index), taken)


def find_matches(
    captions: Captions,
    references: Captions,
    caption_index: Ints,
    reference_index: Ints,
    lexicon: Lexicon,
) -> Matches:
    """Find the matches of P pairs.

    Args:
        captions: the captions.
        references: the references.
        caption_index: (P,) int64, the caption of each pair.
        reference_index: (P,) int64, the reference of each pair.
        lexicon: has read both.
    """
    words, is_equal = _match_words(
        captions.words, references.words, caption_index, reference_index, lexicon
    )
    different = np.flatnonzero(~is_equal)
    own = captions.phrases, caption_index[different]
    other = references.phrases, reference_index[different]
    backward = _match_phrases(*other, *own, lexicon.index)
    forward = _match_phrases(*own, *other, lexicon.index)
    found = [
        words,
        _to_matches(own[0], other[0], different[backward.pairs], backward.second, backward.first),
        _to_matches(own[0], other[0], different[forward.pairs], forward.first, forward.second),
    ]
    matches = Matches(*map(np.concatenate, zip(*(vars(m).values() for m in found), strict=True)))
    # The order of matches that start at the same word decides ties: equal words by their place in
    # the caption, then stems, synonyms, paraphrases of the reference's phrases, the shorter ones
    # first, and paraphrases of the caption's phrases in the order of the caption.
    zeros = np.zeros(len(words), np.int64)
    sources = np.repeat(np.arange(3), [len(m) for m in found])
    keys = (
        np.concatenate([zeros, found[1].starts, forward.ranks]),
        np.concatenate([zeros, backward.ranks, found[2].lengths]),
        np.concatenate([words.starts, found[1].reference_lengths, found[2].starts]),
        matches.matchers + sources,
        matches.reference_starts,
        matches.pairs,
    )
    return matches.take(np.lexsort(keys))


def _match_words(
    captions: Words, references: Words, caption_index: Ints, reference_index: Ints, lexicon: Lexicon
) -> tuple[Matches, Mask]:
    """Match single words.

    Returns:
        The matches, and for each pair whether the two sentences are equal: (P,). Equal sentences
        have no matches but those of equal words.
    """
    num_pairs = len(caption_index)
    lengths = captions.lengths[caption_index]
    reference_lengths = references.lengths[reference_index]
    counts = lengths * reference_lengths
    pairs = np.repeat(np.arange(num_pairs), counts)
    reference_starts, starts = np.divmod(ranges(np.zeros_like(counts), counts), lengths[pairs])
    own = captions.ids[captions.offsets[caption_index][pairs] + starts]
    other = references.ids[references.offsets[reference_index][pairs] + reference_starts]

    is_exact = own == other
    num_equal = np.bincount(pairs[is_exact & (starts == reference_starts)], minlength=num_pairs)
    is_equal = (lengths == reference_lengths) & (num_equal == lengths)
    is_inexact = ~is_exact & ~is_equal[pairs]
    is_stem = is_inexact & (lexicon.stems[own] == lexicon.stems[other])
    synonyms = lexicon.pair_synonyms(captions.ids, references.ids)
    is_synonym = is_inexact & (find(synonyms, lexicon.pair_words(own, other)) >= 0)

    places = [np.flatnonzero(mask) for mask in (is_exact, is_stem, is_synonym)]
    matchers = np.repeat([EXACT, STEM, SYNONYM], [len(rows) for rows in places])
    rows, ones = np.concatenate(places), np.ones(len(matchers), np.int64)
    matches = Matches(pairs[rows], matchers, starts[rows], ones, reference_starts[rows], ones)
    return matches, is_equal


@dataclass(frozen=True)
class PhraseMatches:
    """Phrases of one side whose paraphrases are on the other side.

    Attributes:
        pairs: (M,) int64, index of the pair.
        first: (M,) int64, index of the phrase on the first side.
        second: (M,) int64, index of its paraphrase on the second side.
        ranks: (M,) int64; a smaller rank comes first among the paraphrases of the phrase.
    """

    pairs: Ints
    first: Ints
    second: Ints
    ranks: Ints


def _match_phrases(
    first: Phrases, first_index: Ints, second: Phrases, second_index: Ints, index: MeteorIndex
) -> PhraseMatches:
    """Look up the paraphrases of the first side's phrases on the second side.

    Args:
        first: phrases of captions.
        first_index: (P,) int64, the caption of each pair.
        second: phrases of other captions.
        second_index: (P,) int64, the other caption of each pair.
        index: has the paraphrases.
    """
    # Of each phrase, keep the paraphrases that any caption of the second side has.
    nodes, phrase_rows = np.unique(first.nodes, return_inverse=True)
    owners, ranks, targets = index.list_paraphrases(nodes)
    is_present = np.zeros(len(index.tree) + 1, np.bool_)
    is_present[second.nodes] = True
    kept = is_present[targets]
    owners, ranks, targets = owners[kept], ranks[kept], targets[kept]
    offsets = to_offsets(np.bincount(owners, minlength=len(nodes)))

    # The phrases of each pair's first caption, each with its paraphrases.
    num_targets = np.diff(offsets)[phrase_rows]
    phrases = np.flatnonzero(num_targets)
    pairs, rows = _list_phrases(first.captions[phrases], first_index)
    rows = phrases[rows]
    counts = num_targets[rows]
    entries = ranges(offsets[phrase_rows[rows]], counts)
    pairs, rows = np.repeat(pairs, counts), np.repeat(rows, counts)

    # Where the pair's second caption has them.
    is_target = np.zeros(len(index.tree) + 1, np.bool_)
    is_target[targets] = True
    candidates = np.flatnonzero(is_target[second.nodes])
    size = len(index.tree) + 1
    keys = second.captions[candidates] * size + second.nodes[candidates]
    order = np.argsort(keys, kind="stable")
    keys, candidates = keys[order], candidates[order]
    wanted = second_index[pairs] * size + targets[entries]
    left = np.searchsorted(keys, wanted)
    counts = np.searchsorted(keys, wanted, "right") - left
    return PhraseMatches(
        pairs=np.repeat(pairs, counts),
        first=np.repeat(rows, counts),
        second=candidates[ranges(left, counts)],
        ranks=np.repeat(ranks[entries], counts),
    )


def _list_phrases(captions: Ints, caption_index: Ints) -> tuple[Ints, Ints]:
    """List the phrases of the caption of each pair.

    Args:
        captions: (F,) int64, the caption of each phrase, ascending.
        caption_index: (P,) int64.

    Returns:
        The pair and the index into `captions` of each phrase.
    """
    left = np.searchsorted(captions, caption_index)
    counts = np.searchsorted(captions, caption_index, "right") - left
    return np.repeat(np.arange(len(caption_index)), counts), ranges(left, counts)


def _to_matches(own: Phrases, other: Phrases, pairs: Ints, first: Ints, second: Ints) -> Matches:
    """Return matches of phrases, given by their indices."""
    return Matches(
        pairs=pairs,
        matchers=np.full(len(pairs), PARAPHRASE),
        starts=own.starts[first],
        lengths=own.lengths[first],
        reference_starts=other.starts[second],
        reference_lengths=other.lengths[second],
    )
