"""The vocabulary: maps words, or subword pieces, to token ids and back.

vocab.json, a JSON object:
    format     string   "showtell vocabulary"
    version    int      1
    specials   strings  ["<pad>", "<bos>", "<eos>", "<unk>"]
    words      object   word → number of occurrences in train: {"a": 53628, …}

With subword pieces (see `subwords.py`), two fields replace `words`:
    pieces     object   piece → number of occurrences in train: {" a": 53628, "ing": 401, …}
    tokenizer  string   text of the `tokenizer.json` that splits words into pieces

Ids count from 0: first the four special tokens, then the words in the order of the file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path

from ..stage.artifacts import read_output, reading
from ..stage.errors import DatasetError
from ..stage.files import json_bytes, write_bytes
from .scripts import join_words
from .subwords import UNKNOWN, WordSplitter
from .tokenizer import DEFAULT_TOKENIZER, UNITS, load_tokenizer

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", UNKNOWN)
FORMAT, VERSION = "showtell vocabulary", 1
DEFAULT_MIN_COUNT = 5


@dataclass(frozen=True)
class Vocab:
    """The words, or subword pieces, that a model knows.

    Attributes:
        words: (V,) word or piece of each id; the four special tokens come first. A piece starts
            with a space if it starts a word; a word never does.
        counts: (V,) occurrences in train; 0 for special tokens, and for all by default.
        tokenizer: text of the `tokenizer.json` that splits words into pieces; None for words.
        word_tokenizer: name in `UNITS` of what splits captions into words.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...] = ()
    tokenizer: str | None = None
    word_tokenizer: str = DEFAULT_TOKENIZER

    def __post_init__(self) -> None:
        assert self.words[: len(SPECIALS)] == SPECIALS, self.words[: len(SPECIALS)]
        if not self.counts:
            object.__setattr__(self, "counts", (0,) * len(self.words))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word → id, without special tokens, so that the text "<pad>" is an unknown word."""
        return {word: i for i, word in enumerate(self.words) if i >= len(SPECIALS)}

    @property
    def unit(self) -> str:
        """The kind of entries: "words", "characters" or "pieces"."""
        return UNITS[self.word_tokenizer] if self.tokenizer is None else "pieces"

    @cached_property
    def sha256(self) -> str:
        """Hash of the words, their order and how captions are split; counts do not matter."""
        kind = () if self.word_tokenizer == DEFAULT_TOKENIZER else (self.word_tokenizer,)
        return hashlib.sha256("\n".join((*kind, *self.words)).encode()).hexdigest()

    def tokenize(self, caption: str) -> list[str]:
        """Return the words of a caption as people write it."""
        return load_tokenizer(self.word_tokenizer).tokenize(caption)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Return the ids of words or of their pieces, without BOS and EOS; UNK if unknown."""
        if self._splitter is not None:
            words = chain.from_iterable(map(self._splitter.__getitem__, words))
        return list(map(self.ids.get, words, repeat(UNK)))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the words up to the first EOS, joined by spaces; PAD and BOS are skipped.

        Scores are computed of this form; `to_text` returns what people read.
        """
        texts = []
        for token_id in token_ids:
            if token_id == EOS:
                break
            if token_id not in (PAD, BOS):
                texts.append(self.texts[token_id])
        return "".join(texts).removeprefix(" ")

    def to_text(self, token_ids: Iterable[int]) -> str:
        """Return a caption as people write it: for Chinese, without spaces between characters."""
        words = self.decode(token_ids)
        return words if self.word_tokenizer == DEFAULT_TOKENIZER else join_words(words)

    def words_of(self, text: str) -> list[str]:
        """Return the words of a caption that `to_text` returned."""
        if self.word_tokenizer == DEFAULT_TOKENIZER:
            return text.split(" ") if text else []
        first, *others = map(self.tokenize, text.split(UNKNOWN))
        return [*first, *chain.from_iterable((UNKNOWN, *words) for words in others)]

    @cached_property
    def _splitter(self) -> WordSplitter | None:
        return None if self.tokenizer is None else WordSplitter(self.tokenizer)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """(V,) text that each id adds to a caption, with a space before each word."""
        whole = self.words if self.tokenizer is None else SPECIALS
        return (*(f" {word}" for word in whole), *self.words[len(whole) :])

    def extended(self, words: Iterable[str], counts: Mapping[str, int]) -> "Vocab":
        """Return the vocabulary with more words at its end.

        Args:
            words: those that it has already are left out.
            counts: word → occurrences in train; 0 if it is missing.
        """
        new = [word for word in words if word not in self.ids]
        return replace(
            self,
            words=(*self.words, *new),
            counts=(*self.counts, *(counts.get(word, 0) for word in new)),
        )

    def write(self, path: Path) -> None:
        """Write `vocab.json` atomically."""
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the content of `vocab.json`."""
        pairs = zip(self.words[len(SPECIALS) :], self.counts[len(SPECIALS) :], strict=True)
        entries = "words" if self.tokenizer is None else "pieces"
        value = {"format": FORMAT, "version": VERSION, "specials": SPECIALS, entries: dict(pairs)}
        if self.tokenizer is not None:
            value["tokenizer"] = self.tokenizer
        if self.word_tokenizer != DEFAULT_TOKENIZER:
            value["word_tokenizer"] = self.word_tokenizer
        return json_bytes(value)

    @classmethod
    def read(cls, path: str | Path) -> "Vocab":
        """Read `vocab.json`.

        Raises:
            MissingArtifactError: the file does not exist.
            DamagedFileError: the file is damaged, or not a vocabulary of this version.
        """
        path = Path(path)
        content = read_output(path)
        with reading(path):
            value = json.loads(content)
            if (value["format"], value["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{value['format']} {value['version']}, expected {VERSION}")
            if value["specials"] != list(SPECIALS):
                raise ValueError(f"specials {value['specials']}")
            tokenizer = str(value["tokenizer"]) if "pieces" in value else None
            entries = value["words" if tokenizer is None else "pieces"]
            words, counts = tuple(entries), tuple(map(int, entries.values()))
            word_tokenizer = value.get("word_tokenizer", DEFAULT_TOKENIZER)
            if word_tokenizer not in UNITS:
                raise ValueError(
                    f"word_tokenizer {word_tokenizer!r}, expected one of {', '.join(UNITS)}"
                )
        return cls(SPECIALS + words, (0,) * len(SPECIALS) + counts, tokenizer, word_tokenizer)


def build_vocab(
    counts: Mapping[str, int],
    *,
    min_count: int | None = None,
    vocab_size: int | None = None,
) -> Vocab:
    """Build a vocabulary of the most frequent words, ordered by frequency, then alphabetically.

    Args:
        counts: word → occurrences in the captions of the train split only.
        min_count: keep words that occur at least this often; 5 if neither is given.
        vocab_size: keep this many words instead of using `min_count`; special tokens do not count.

    Raises:
        DatasetError: no word occurs often enough.
    """
    assert min_count is None or vocab_size is None
    ordinary = [item for item in counts.items() if item[0] not in SPECIALS]
    ranked = sorted(ordinary, key=lambda item: (-item[1], item[0]))
    least = 1 if vocab_size is not None else min_count or DEFAULT_MIN_COUNT
    kept = [(word, count) for word, count in ranked[:vocab_size] if count >= least]
    if not kept:
        raise DatasetError(
            f"none of the {len(ranked):,} different words in train occurs at least {least} times. "
            "Give a lower --min-count, such as 1."
        )
    words, occurrences = zip(*kept, strict=True)
    return Vocab(SPECIALS + words, (0,) * len(SPECIALS) + occurrences)


def build_piece_vocab(counts: Mapping[str, int], tokenizer: str) -> Vocab:
    """Build a vocabulary of the pieces into which a tokenizer splits the words of train.

    Args:
        counts: word → occurrences in the captions of the train split only.
        tokenizer: text of the `tokenizer.json`.

    Raises:
        DatasetError: the tokenizer cannot split any word of train.
    """
    splitter = WordSplitter(tokenizer)
    pieces: Counter[str] = Counter()
    for word, count in counts.items():
        for piece in splitter[word]:
            pieces[piece] += count
    if not pieces.keys() - SPECIALS:
        raise DatasetError(
            "the tokenizer knows no word in train. It may be for another language: give another "
            "tokenizer.json, or --vocab bpe."
        )
    return replace(build_vocab(pieces, min_count=1), tokenizer=tokenizer)
