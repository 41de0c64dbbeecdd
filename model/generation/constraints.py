"""Which words may come next: rules that every way of decoding keeps, over all beams at once.

Letters in shapes: R beams (or draws) of all images, V vocabulary, T words so far.
"""

import torch
from torch import Tensor

from ...pipeline.text.vocab import BOS, EOS, PAD, UNK
from .options import DecodingOptions

# Never written: they are no words.
FORBIDDEN = (PAD, BOS, UNK)


def next_log_probs(logits: Tensor, token_ids: Tensor, options: DecodingOptions) -> Tensor:
    """How probable each word is that may come next.

    What is no word takes no probability from the others. All else keeps the probability that the
    model gave it, or is −inf where it may not come: the end before `min_length` words (and before
    the first), any word after `max_length`, and a word that would end an n-gram for the second
    time. A caption that no word may follow ends, were it too short.

    Args:
        logits: (R, V), changed in place.
        token_ids: (R, T) int64, the words so far.
        options: `max_length`, `min_length` and `no_repeat_ngram` are read.

    Returns:
        (R, V) float32.
    """
    length, ngram = token_ids.shape[1], options.no_repeat_ngram
    for word in FORBIDDEN:  # one by one: a list would be copied to the GPU, which waits
        logits[:, word] = -torch.inf
    log_probs = logits.log_softmax(1, dtype=torch.float32)
    if length >= options.length_limit:
        log_probs[:, :EOS] = log_probs[:, EOS + 1 :] = -torch.inf
        return log_probs
    must_go_on = length < options.min_length
    if must_go_on:
        end = log_probs[:, EOS].clone()
        log_probs[:, EOS] = -torch.inf
    if ngram and length >= ngram:
        block_ngrams(log_probs, token_ids, ngram)
        if must_go_on:
            stuck = log_probs.amax(1) == -torch.inf
            log_probs[:, EOS] = end.where(stuck, log_probs[:, EOS])
    return log_probs


def block_ngrams(log_probs: Tensor, token_ids: Tensor, n: int) -> None:
    """Set to −inf, in (R, V) `log_probs`, each word that would repeat an n-gram of (R, T) words.

    Every earlier place where the last n − 1 words stand rules out the word that followed there.
    """
    length = token_ids.shape[1]
    ngrams = token_ids.unfold(1, n, 1)  # (R, T − n + 1, n), all there are
    last = token_ids[:, None, length - n + 1 :]  # (R, 1, n − 1)
    repeats = (ngrams[:, :, :-1] == last).all(2)
    blocks = torch.zeros_like(ngrams[:, :, -1], dtype=log_probs.dtype)
    log_probs.scatter_add_(1, ngrams[:, :, -1], blocks.masked_fill(repeats, -torch.inf))
