"""Statistics of captions: lengths, vocabulary, unknown words, and words that are missed."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...pipeline.text.vocab import UNK, Vocab

MAX_LISTED = 12  # rows of each list of words


@dataclass(frozen=True)
class WordCount:
    """A word, and in how many images it is right, missed or wrong.

    Attributes:
        word: the word.
        right: images whose caption and references contain it.
        missed: images of which at least two references contain it, but not the caption.
        wrong: images whose caption contains it, but no reference.
    """

    word: str
    right: int
    missed: int
    wrong: int


@dataclass(frozen=True)
class WordStatistics:
    """What the captions of a split look like as text.

    Attributes:
        caption_lengths: number of words → number of captions.
        reference_lengths: the same of the references.
        num_captions: captions.
        num_distinct: different captions.
        num_copied: captions that are also a caption in the train split, word for word.
        num_words_used: different words in the captions.
        vocab_size: entries of the vocabulary, without special tokens.
        unit: "words", "characters" or "pieces", the entries of the vocabulary.
        oov_share: share of the references' words that the vocabulary lacks.
        oov_words: the most frequent of them, with their number.
        missed: words that the captions miss most, rare words before frequent ones.
        wrong: words that the captions contain without support, in the same order.
    """

    caption_lengths: Counter[int]
    reference_lengths: Counter[int]
    num_captions: int
    num_distinct: int
    num_copied: int
    num_words_used: int
    vocab_size: int
    unit: str
    oov_share: float
    oov_words: list[tuple[str, int]]
    missed: list[WordCount]
    wrong: list[WordCount]

    @property
    def noun(self) -> str:
        """What captions consist of: "words" or "characters"."""
        return "words" if self.unit == "pieces" else self.unit

    @property
    def mean_caption_length(self) -> float:
        """Words in a caption."""
        return _mean(self.caption_lengths)

    @property
    def mean_reference_length(self) -> float:
        """Words in a reference."""
        return _mean(self.reference_lengths)


def count_words(
    captions: Mapping[int, Sequence[str]],
    references: Mapping[int, Sequence[str]],
    train_captions: Iterable[str],
    vocab: Vocab,
) -> WordStatistics:
    """Compute the statistics of captions.

    Args:
        captions: image_id → words of the caption.
        references: image_id → tokenized references, words joined by single spaces.
        train_captions: all captions of the train split, tokenized in the same way.
        vocab: the vocabulary of the model.
    """
    listed = [text.split(" ") for image_id in captions for text in references[image_id]]
    occurrences = Counter(word for reference in listed for word in reference)
    unknown = Counter(
        {word: count for word, count in occurrences.items() if UNK in vocab.encode([word])}
    )
    distinct = Counter(" ".join(words) for words in captions.values())
    copied = distinct.keys() & set(train_captions)
    counts = _count_by_image(captions, references)
    known = [count for count in counts if count.word not in unknown]
    return WordStatistics(
        caption_lengths=Counter(map(len, captions.values())),
        reference_lengths=Counter(map(len, listed)),
        num_captions=len(captions),
        num_distinct=len(distinct),
        num_copied=sum(distinct[text] for text in copied),
        num_words_used=len({word for caption in captions.values() for word in caption}),
        vocab_size=len(vocab.ids),
        unit=vocab.unit,
        oov_share=unknown.total() / max(occurrences.total(), 1),
        oov_words=unknown.most_common(MAX_LISTED),
        missed=_most(known, "missed", len(captions)),
        wrong=_most(counts, "wrong", len(captions)),
    )


def _count_by_image(
    words: Mapping[int, Sequence[str]], references: Mapping[int, Sequence[str]]
) -> list[WordCount]:
    """Count for each word the images in which it is right, missed or wrong."""
    right, missed, wrong = Counter[str](), Counter[str](), Counter[str]()
    for image_id, caption in words.items():
        said, support = set(caption), Counter[str]()
        for reference in references[image_id]:
            support.update(set(reference.split(" ")))
        right.update(said & support.keys())
        wrong.update(said - support.keys())
        missed.update(word for word, count in support.items() if count > 1 and word not in said)
    every = right.keys() | missed.keys() | wrong.keys()
    return [WordCount(word, right[word], missed[word], wrong[word]) for word in sorted(every)]


def _most(counts: list[WordCount], kind: str, num_images: int) -> list[WordCount]:
    """Return the words with the most errors of one kind, weighted by their rarity.

    Without the weight (idf), the list would contain articles and prepositions only.
    """

    def weight(count: WordCount) -> float:
        frequency = count.right + count.missed + count.wrong
        return float(getattr(count, kind) * math.log(max(num_images, 2) / frequency))

    ranked = sorted((c for c in counts if getattr(c, kind)), key=weight, reverse=True)
    return ranked[:MAX_LISTED]


def _mean(lengths: Counter[int]) -> float:
    return sum(length * count for length, count in lengths.items()) / max(lengths.total(), 1)
