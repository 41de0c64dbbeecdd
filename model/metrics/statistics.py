"""What captions look like as text: their length, their variety, and whether they are new.

Source: distinct-1 and distinct-2 are those of Li et al. 2016, arXiv:1510.03055; the other numbers
are counts, such as Devlin et al. 2015, arXiv:1505.04467, report them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Any

from ...pipeline.text.vocab import Vocab


@dataclass(frozen=True)
class TextStatistics:
    """Statistics of N captions of any program.

    They describe the captions, but higher is not always better, so they have no confidence
    intervals and `showtell compare` does not test them.

    Attributes:
        words_per_caption: mean number of words.
        distinct_1: number of different words, divided by the number of words in all captions.
        distinct_2: number of different pairs of adjacent words, divided by the same number.
        words_used: number of different words.
    """

    words_per_caption: float
    distinct_1: float
    distinct_2: float
    words_used: int


@dataclass(frozen=True)
class CaptionStatistics(TextStatistics):
    """Statistics of N captions of a run. The names are keys of `metrics.json`.

    Attributes:
        vocabulary_used: share of the vocabulary's entries that occur in a caption.
        novel_captions: share of the captions that are not a caption of the train split.
        captions_at_limit: share of the captions with `max_length` tokens; most are cut there.
    """

    vocabulary_used: float
    novel_captions: float
    captions_at_limit: float


def describe_texts(texts: Sequence[str]) -> TextStatistics:
    """Compute the statistics of N > 0 captions, as words joined by single spaces."""
    words = [text.split(" ") if text else [] for text in texts]
    num_words = max(sum(map(len, words)), 1)
    different = set(chain.from_iterable(words))
    pairs = set(chain.from_iterable(map(pairwise, words)))
    return TextStatistics(
        words_per_caption=sum(map(len, words)) / len(texts),
        distinct_1=len(different) / num_words,
        distinct_2=len(pairs) / num_words,
        words_used=len(different),
    )


def describe_captions(
    captions: Sequence[Sequence[int]], vocab: Vocab, train: Collection[str], max_length: int
) -> CaptionStatistics:
    """Compute the statistics of captions.

    Args:
        captions: N captions as token ids without BOS and EOS, N > 0.
        vocab: the vocabulary of the token ids.
        train: all captions of the train split, as words joined by single spaces.
        max_length: the maximum number of tokens in decoding.
    """
    texts = [vocab.decode(token_ids) for token_ids in captions]
    entries = set(chain.from_iterable(captions)) & set(vocab.ids.values())
    return CaptionStatistics(
        **asdict(describe_texts(texts)),
        vocabulary_used=len(entries) / max(len(vocab.ids), 1),
        novel_captions=sum(text not in train for text in texts) / len(captions),
        captions_at_limit=sum(len(ids) >= max_length for ids in captions) / len(captions),
    )


def statistics_rows(values: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    """Return rows of a table with the statistics that are among `values`.

    Args:
        values: the fields of `CaptionStatistics` or `TextStatistics`, and others.
        unit: what the captions consist of: `words` or `characters`.
    """
    if "words_per_caption" not in values:  # an evaluation by an earlier version
        return []
    distinct = f"{values['distinct_1']:.2%}, {values['distinct_2']:.2%}"
    rows = [
        (f"{unit} per caption", f"{values['words_per_caption']:.1f}"),
        ("distinct-1, distinct-2", distinct),
    ]
    used = f"{values['words_used']:,}"
    if "vocabulary_used" not in values:
        return [*rows, (f"{unit} used", used)]
    return [
        *rows,
        (f"{unit} used", f"{used}; {values['vocabulary_used']:.1%} of the vocabulary"),
        ("novel captions", f"{values['novel_captions']:.1%}"),
        ("at the length limit", f"{values['captions_at_limit']:.1%}"),
    ]
