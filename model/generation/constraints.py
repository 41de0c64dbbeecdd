"""The rules on the next token: special tokens, caption length and repeated n-grams.

Letters in shapes: R rows (beams or draws), V vocabulary, T tokens so far.
"""

import torch
from torch import Tensor

from ...pipeline.text.vocab import BOS, EOS, PAD, UNK
from .options import DecodingOptions

NEVER_WRITTEN = (PAD, BOS, UNK)


def next_log_probs(logits: Tensor, token_ids: Tensor, options: DecodingOptions) -> Tensor:
    """Return the log-probabilities of the next token, −inf where a rule forbids it.

    A token that a rule forbids is set to −inf after `word_log_probs`; the rest keep the probability
    that the model gave them. The rules: no EOS before `min_length` tokens, nothing but EOS after
    `max_length`, and no n-gram twice. If every word is forbidden, the caption ends even when it is
    shorter than `min_length`.

    Args:
        logits: (R, V), changed in place.
        token_ids: (R, T) int64, the tokens so far.
        options: `max_length`, `min_length` and `no_repeat_ngram` are used.

    Returns:
        (R, V) float32.
    """
    length, ngram = token_ids.shape[1], options.no_repeat_ngram
    log_probs = word_log_probs(logits)
    if length >= options.length_limit:
        log_probs[:, :EOS] = log_probs[:, EOS + 1 :] = -torch.inf
        return log_probs
    is_too_short = length < options.min_length
    if is_too_short:
        end = log_probs[:, EOS].clone()
        log_probs[:, EOS] = -torch.inf
    if ngram and length >= ngram:
        block_ngrams(log_probs, token_ids, ngram)
        if is_too_short:
            is_stuck = log_probs.amax(1) == -torch.inf
            log_probs[:, EOS] = end.where(is_stuck, log_probs[:, EOS])
    return log_probs


def word_log_probs(logits: Tensor) -> Tensor:
    """Return the log-probabilities of words and EOS; special tokens are removed before the softmax.

    Args:
        logits: (R, V), changed in place.

    Returns:
        (R, V) float32; −inf for special tokens.
    """
    for token in NEVER_WRITTEN:  # one by one: a GPU would wait for a list of indices
        logits[:, token] = -torch.inf
    return logits.log_softmax(1, dtype=torch.float32)


def block_ngrams(log_probs: Tensor, token_ids: Tensor, n: int) -> None:
    """Forbid every token that would repeat an n-gram.

    Wherever the last n − 1 tokens occurred before, the token that followed them is set to −inf.

    Args:
        log_probs: (R, V), changed in place.
        token_ids: (R, T), T ≥ n.
        n: length of the n-grams.
    """
    length = token_ids.shape[1]
    ngrams = token_ids.unfold(1, n, 1)  # (R, T − n + 1, n)
    last = token_ids[:, None, length - n + 1 :]  # (R, 1, n − 1)
    is_repeat = (ngrams[:, :, :-1] == last).all(2)
    blocks = torch.zeros_like(ngrams[:, :, -1], dtype=log_probs.dtype)
    log_probs.scatter_add_(1, ngrams[:, :, -1], blocks.masked_fill(is_repeat, -torch.inf))
