"""Words → pieces of words: a byte-pair encoding trained on captions, or any `tokenizer.json`.

A tokenizer only says where a word is cut. A piece is the stretch of the word between two cuts, with
a space in front where it begins the word: " skate", "boarder". So every tokenizer's pieces are
written alike, whatever it marks them with (Ġ, ##, ▁), and joined they are the words again.
"""

import json
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ..stage.errors import ConfigError
from ..stage.files import require_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_NUM_PIECES = 4000
UNKNOWN = "<unk>"
CONTINUES = "##"  # what the trained tokenizer itself marks a piece inside a word with


class WordCutter(dict[str, tuple[str, ...]]):
    """Word → its pieces, (UNKNOWN,) where the tokenizer cannot spell it.

    Captions repeat their words, so most are cut once.
    """

    def __init__(self, tokenizer: str) -> None:
        """Load a tokenizer from the text of its `tokenizer.json`.

        Raises:
            ConfigError: it is none.
        """
        super().__init__()
        self._tokenizer = _load(tokenizer, "the vocabulary's tokenizer")
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown_id = self._tokenizer.token_to_id(unknown) if unknown else None

    def __missing__(self, word: str) -> tuple[str, ...]:
        text = f" {word}"  # tokenizers that keep spaces tell by it that a word begins
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if not encoding.ids or self._unknown_id in encoding.ids:
            pieces: tuple[str, ...] = (UNKNOWN,)
        else:
            # Tokens for the bytes of one letter all begin with it: they make one piece.
            inside = {start for start, _ in encoding.offsets if 1 < start < len(text)}
            cuts = [0, *sorted(inside), len(text)]
            pieces = tuple(text[start:end] for start, end in pairwise(cuts))
        self[word] = pieces
        return pieces


def train_bpe(captions: Sequence[str], num_pieces: int = DEFAULT_NUM_PIECES) -> str:
    """Train a byte-pair encoding that joins letters inside words only.

    Args:
        captions: of the train split and of no other, their words joined by one space each.
        num_pieces: at most this many, the single letters included.

    Returns:
        The text of its `tokenizer.json`; the same for the same captions, byte for byte.

    Raises:
        ConfigError: the letters alone are more.

    Source: Sennrich et al. 2016, arXiv:1508.07909.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = set(chain.from_iterable(caption.split(" ") for caption in captions)) - {""}
    letters = {word[0] for word in words} | {CONTINUES + x for word in words for x in word[1:]}
    if num_pieces < len(letters):
        raise ConfigError(
            f"--vocab-size {num_pieces} is less than the {len(letters)} letters of train, counted "
            f"apart at the start of a word and inside. Give {len(letters)} or more."
        )
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix=CONTINUES))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.decoder = decoders.WordPiece(CONTINUES, cleanup=False)
    trainer = trainers.BpeTrainer(
        vocab_size=num_pieces,
        show_progress=False,
        continuing_subword_prefix=CONTINUES,
        # Numbered here: the trainer would do it in an order, and break ties, by chance.
        special_tokens=sorted(letters),
    )
    tokenizer.train_from_iterator(captions, trainer)
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = []  # the letters are ordinary pieces from here on
    return json.dumps(value, ensure_ascii=False)


def read_tokenizer(path: Path) -> str:
    """Read a `tokenizer.json` of the tokenizers library, such as GPT-2's or BERT's.

    Returns:
        Its text, without indentation.

    Raises:
        MissingArtifactError: there is no such file.
        ConfigError: it is no tokenizer.
    """
    require_file(path, "--vocab", "a tokenizer.json file")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        text = ""  # refused below
    return _load(text, str(path)).to_str()


def _load(text: str, where: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("☃")  # one without the unknown token that it names fails only here
    except Exception as error:  # the library raises nothing more special
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{where} is no tokenizer ({reason}). Expected a tokenizer.json "
            "as the tokenizers library saves it."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
