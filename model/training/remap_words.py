"""Move trained weights to the vocabulary of another dataset."""

from dataclasses import replace

import torch
from torch import Tensor

from ...pipeline.text.vocab import SPECIALS, Vocab
from ..decoders.base import Decoder
from ..decoders.config import DecoderConfig
from ..decoders.registry import build_decoder


@torch.no_grad()
def remap_words(trained: Decoder, old: Vocab, new: Vocab) -> tuple[dict[str, Tensor], int]:
    """Return the weights of a decoder, with one row per word of another vocabulary.

    Words that both vocabularies have keep their rows, and so do the special tokens. A word and a
    subword piece are the same if they add the same text to a caption. Rows of other words are drawn
    from a normal distribution with the mean and standard deviation of the trained rows, so that
    they are neither likelier nor longer than a typical word.

    Args:
        trained: the decoder.
        old: its vocabulary.
        new: the vocabulary of the dataset to train on.

    Returns:
        weights: as from `state_dict`.
        num_known: number of words that keep their rows, without special tokens.

    Source: Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    """
    first = len(SPECIALS)
    # Without the special tokens: "<pad>" may also be an ordinary word.
    old_rows = {text: row for row, text in enumerate(old.texts[first:], first)}
    new_rows = enumerate(new.texts[first:], first)
    known = {row: old_rows[text] for row, text in new_rows if text in old_rows}
    kept = {row: row for row in range(first)} | known
    weights = dict(trained.state_dict())
    for name in find_word_tensors(trained.config):
        rows = weights[name]
        words = rows[first:]
        mean, std = words.mean(0), words.std(0, correction=0)
        weights[name] = torch.normal(mean.expand(len(new), *mean.shape), std)
        weights[name][list(kept)] = rows[list(kept.values())]
    return weights, len(known)


def find_word_tensors(config: DecoderConfig) -> list[str]:
    """Return the names of a decoder's tensors that have one row per word."""
    larger = replace(config, vocab_size=config.vocab_size + 1)
    with torch.device("meta"):
        before, after = (build_decoder(size).state_dict() for size in (config, larger))
    return [name for name in before if before[name].shape != after[name].shape]
