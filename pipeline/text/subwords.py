"""Splits words into subword pieces, with byte-pair encoding or any `tokenizer.json`.

A tokenizer only decides where to split a word. A piece is the text between two splits; the first
piece of a word begins with a space: " skate", "boarder". Pieces therefore contain no markers of a
particular tokenizer (Ġ, ##, ▁), and joining them restores the words.
"""

import json
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..stage.errors import ConfigError, StorageError
from ..stage.files import require_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_NUM_PIECES = 4000
UNKNOWN = "<unk>"
CONTINUATION_PREFIX = "##"  # marks non-initial pieces in a tokenizer.json from `train_bpe`


class WordSplitter(dict[str, tuple[str, ...]]):
    """Maps a word to its pieces, or to (UNKNOWN,) if the tokenizer cannot split it.

    The dict is a cache, because the same words occur in many captions.
    """

    def __init__(self, tokenizer: str) -> None:
        """Load a tokenizer.

        Args:
            tokenizer: text of a `tokenizer.json`.

        Raises:
            ConfigError: the text is not a valid tokenizer.
        """
        super().__init__()
        self._tokenizer = _load(tokenizer, "the tokenizer in the vocabulary")
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown_id = self._tokenizer.token_to_id(unknown) if unknown else None

    def __missing__(self, word: str) -> tuple[str, ...]:
        text = f" {word}"  # byte-level tokenizers recognize the start of a word by the space
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if not encoding.ids or self._unknown_id in encoding.ids:
            pieces: tuple[str, ...] = (UNKNOWN,)
        else:
            # A set, because byte-level tokens of the same letter start at the same offset. Offset 1
            # is no split: the space belongs to the first piece.
            starts = {start for start, _ in encoding.offsets if 1 < start < len(text)}
            bounds = [0, *sorted(starts), len(text)]
            pieces = tuple(text[start:end] for start, end in pairwise(bounds))
        self[word] = pieces
        return pieces


def train_bpe(captions: Sequence[str], num_pieces: int) -> str:
    """Train a byte-pair encoding that merges letters within words only.

    Args:
        captions: captions of the train split, with words joined by single spaces.
        num_pieces: maximum number of pieces, including single letters.

    Returns:
        The text of a `tokenizer.json`. The same captions always give the same text.

    Raises:
        ConfigError: there are more letters than `num_pieces`.

    Source: Sennrich et al. 2016, arXiv:1508.07909.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = set(chain.from_iterable(caption.split(" ") for caption in captions)) - {""}
    letters = {word[0] for word in words}
    letters |= {CONTINUATION_PREFIX + letter for word in words for letter in word[1:]}
    if num_pieces < len(letters):
        raise ConfigError(
            f"--vocab-size must be at least {len(letters)}, the number of letters in train, got "
            f"{num_pieces}. A letter counts twice if it occurs both at the start of a word and "
            "inside a word."
        )
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix=CONTINUATION_PREFIX))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.decoder = decoders.WordPiece(CONTINUATION_PREFIX, cleanup=False)
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        show_progress=False,
        continuing_subword_prefix=CONTINUATION_PREFIX,
        # The trainer numbers its own alphabet at random and breaks ties by number. Special tokens
        # are numbered in the order of this list.
        special_tokens=sorted(letters),
    )
    tokenizer.train_from_iterator(captions, trainer)
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = []  # letters are ordinary pieces, not special tokens
    return json.dumps(value, ensure_ascii=False)


def read_tokenizer(path: Path) -> str:
    """Return the text of a valid `tokenizer.json`, such as GPT-2's or BERT's, without indentation.

    Raises:
        MissingArtifactError: the file does not exist.
        ConfigError: the file is not a valid tokenizer.
    """
    require_file(path, "--vocab", "a tokenizer.json file")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        text = ""  # `_load` raises the error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from None
    return _load(text, str(path)).to_str()


def _load(text: str, source: str) -> "Tokenizer":
    """Load a tokenizer from its JSON text; `source` is its file, for the error message."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("☃")  # fails if the unknown token is missing from its vocabulary
    except BaseException as error:  # the library raises no narrower type
        # Its Rust code panics on some damaged files; a panic is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{source} is not a valid tokenizer ({reason}). Expected a tokenizer.json saved by the "
            "tokenizers library."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
