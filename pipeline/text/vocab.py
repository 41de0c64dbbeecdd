"""Words, or pieces of words, ↔ ids.

On disk `vocab.json`, made to be read by people too:

    {
     "format": "showtell vocabulary", "version": 1,
     "specials": ["<pad>", "<bos>", "<eos>", "<unk>"],
     "words": {"a": 53628, "in": 16149, …}          word → how often it occurs in train
    }

With pieces of words (`pieces.py`) two other entries stand for `words`:

     "pieces": {" a": 53628, "ing": 401, …}         piece → the same; a space begins a word
     "tokenizer": "{…}"                             its `tokenizer.json`, which cuts words

The id of a word is its place: the four specials come first, then `words` in the order of the file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path

from ..stage.errors import ConfigError, DatasetError, MismatchError, MissingArtifactError
from ..stage.files import write_json
from .subwords import UNKNOWN, WordCutter

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", UNKNOWN)
FORMAT, VERSION = "showtell vocabulary", 1
DEFAULT_MIN_COUNT = 5


@dataclass(frozen=True)
class Vocab:
    """The words a model knows, or the pieces that it spells words with.

    Attributes:
        words: (V,) index = id; the four specials first. Pieces begin with a space at the start
            of a word, words do not.
        counts: (V,) occurrences in train; 0 for the specials, and where none are given.
        tokenizer: text of the `tokenizer.json` that cuts words into pieces; None keeps them whole.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...] = ()
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        assert self.words[: len(SPECIALS)] == SPECIALS, self.words[: len(SPECIALS)]
        if not self.counts:
            object.__setattr__(self, "counts", (0,) * len(self.words))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word → id, without the specials: a caption that spells "<pad>" must not become one."""
        return {word: place for place, word in enumerate(self.words) if place >= len(SPECIALS)}

    @property
    def unit(self) -> str:
        """What it counts: "words" or "pieces"."""
        return "words" if self.tokenizer is None else "pieces"

    @cached_property
    def sha256(self) -> str:
        """Identifies the words and their order, whatever their counts."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of the words or their pieces, UNK for an unknown one; no BOS, no EOS."""
        if self._cutter is not None:
            words = chain.from_iterable(map(self._cutter.__getitem__, words))
        return list(map(self.ids.get, words, repeat(UNK)))

    def decode(self, token_ids: Iterable[int]) -> str:
        """The words up to the first EOS, joined by spaces; PAD and BOS are passed over."""
        texts = []
        for token_id in token_ids:
            if token_id == EOS:
                break
            if token_id not in (PAD, BOS):
                texts.append(self._texts[token_id])
        return "".join(texts).removeprefix(" ")

    @cached_property
    def _cutter(self) -> WordCutter | None:
        return None if self.tokenizer is None else WordCutter(self.tokenizer)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """What each id adds to a caption, with the space before a word."""
        whole = self.words if self.tokenizer is None else SPECIALS
        return (*(f" {word}" for word in whole), *self.words[len(whole) :])

    def write(self, path: Path) -> None:
        """Write `vocab.json`, atomically."""
        pairs = zip(self.words[len(SPECIALS) :], self.counts[len(SPECIALS) :], strict=True)
        value = {"format": FORMAT, "version": VERSION, "specials": SPECIALS, self.unit: dict(pairs)}
        if self.tokenizer is not None:
            value["tokenizer"] = self.tokenizer
        write_json(path, value)

    @classmethod
    def read(cls, path: Path) -> "Vocab":
        """Read `vocab.json`.

        Raises:
            MissingArtifactError: there is no such file.
            MismatchError: it is not a vocabulary of this format.
        """
        try:
            value = json.loads(path.read_text("utf-8"))
            if (value["format"], value["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{value['format']} {value['version']}, expected {VERSION}")
            if value["specials"] != list(SPECIALS):
                raise ValueError(f"specials {value['specials']}")
            tokenizer = str(value["tokenizer"]) if "pieces" in value else None
            entries = value["words" if tokenizer is None else "pieces"]
            words, counts = tuple(entries), tuple(map(int, entries.values()))
        except FileNotFoundError:
            raise MissingArtifactError(
                f"{path} does not exist. Run 'showtell prepare' first."
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MismatchError(
                f"{path} is no vocabulary of version {VERSION} ({error}). "
                "Delete it and run 'showtell prepare' again."
            ) from None
        return cls(SPECIALS + words, (0,) * len(SPECIALS) + counts, tokenizer)


def build_vocab(
    counts: Mapping[str, int],
    *,
    min_count: int | None = None,
    vocab_size: int | None = None,
) -> Vocab:
    """Choose the words to know, most frequent first, equally frequent ones by the alphabet.

    Args:
        counts: word → occurrences in the captions of the train split, and of no other.
        min_count: keep words that occur at least this often; 5 where neither option is given.
        vocab_size: keep this many words instead, the specials not counted.

    Raises:
        ConfigError: both options are given.
        DatasetError: no word occurs often enough.
    """
    if min_count is not None and vocab_size is not None:
        raise ConfigError("--min-count and --vocab-size exclude each other; give one.")
    ordinary = [item for item in counts.items() if item[0] not in SPECIALS]
    ranked = sorted(ordinary, key=lambda item: (-item[1], item[0]))
    least = 1 if vocab_size is not None else min_count or DEFAULT_MIN_COUNT
    kept = [(word, count) for word, count in ranked[:vocab_size] if count >= least]
    if not kept:
        raise DatasetError(
            f"none of the {len(ranked):,} different words of train occurs {least} times "
            "or more. Give a lower --min-count, such as 1."
        )
    words, occurrences = zip(*kept, strict=True)
    return Vocab(SPECIALS + words, (0,) * len(SPECIALS) + occurrences)


def build_piece_vocab(counts: Mapping[str, int], tokenizer: str) -> Vocab:
    """Know the pieces that a tokenizer cuts the words of train into, and no others.

    Args:
        counts: as for `build_vocab`.
        tokenizer: the text of its `tokenizer.json`.

    Raises:
        DatasetError: it can spell no word of train.
    """
    cutter = WordCutter(tokenizer)
    pieces: Counter[str] = Counter()
    for word, count in counts.items():
        for piece in cutter[word]:
            pieces[piece] += count
    if not pieces.keys() - SPECIALS:
        raise DatasetError(
            "the tokenizer knows no word of train: is it one of another language? "
            "Give another tokenizer.json, or --vocab bpe."
        )
    return replace(build_vocab(pieces, min_count=1), tokenizer=tokenizer)
