"""Builds the vocabulary that the options of `showtell prepare` ask for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .config import PrepareConfig
from .stage.errors import ConfigError
from .stage.files import require_file
from .text.subwords import DEFAULT_NUM_PIECES, train_bpe
from .text.vocab import Vocab, build_piece_vocab, build_vocab


def choose_vocab(
    config: PrepareConfig,
    tokenizer: str | None,
    counts: Mapping[str, int],
    captions: Callable[[], Sequence[str]],
) -> Vocab:
    """Build a vocabulary of the configured kind.

    Args:
        config: the options.
        tokenizer: text of the `tokenizer.json` that `--vocab` names; None for other kinds.
        counts: word → occurrences in the captions of the train split.
        captions: returns captions of the train split, words joined by single spaces, from which
            `--vocab bpe` learns.

    Raises:
        DatasetError: no word is frequent enough.
        ConfigError: --vocab-size is too small, or --known-words does not fit.
    """
    if config.vocab == "bpe":
        tokenizer = train_bpe(captions(), config.vocab_size or DEFAULT_NUM_PIECES)
    if tokenizer is not None:
        vocab = build_piece_vocab(counts, tokenizer)
    else:
        vocab = build_vocab(counts, min_count=config.min_count, vocab_size=config.vocab_size)
        if known := read_known_words(config):
            vocab = vocab.extended(known.ids, counts)
    return replace(vocab, word_tokenizer=config.tokenizer)


def read_known_words(config: PrepareConfig) -> Vocab | None:
    """Read the vocabulary of `--known-words`, if it is given.

    Raises:
        MissingArtifactError: the file does not exist.
        ConfigError: it has subword pieces, or words of another tokenizer.
    """
    if config.known_words is None:
        return None
    require_file(config.known_words, "--known-words", "the vocab.json of a run or a bundle")
    known = Vocab.read(config.known_words)
    if known.unit == "pieces":
        raise ConfigError(
            f"--known-words {config.known_words} has subword pieces, expected words. Leave it out."
        )
    if known.word_tokenizer != config.tokenizer:
        raise ConfigError(
            f"--known-words {config.known_words} was made with --tokenizer {known.word_tokenizer}, "
            f"but this is --tokenizer {config.tokenizer}. Leave one of the two options out."
        )
    return known
