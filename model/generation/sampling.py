"""Captions drawn at random, word by word, as probable as the decoder says: all in one batch.

Letters in shapes: N images still drawn for, K draws of each, R = N·K, V vocabulary, T words so far.
"""

import torch
from torch import Tensor

from ...pipeline.text.vocab import EOS
from ..decoders.state import S, StepModel
from .constraints import next_log_probs
from .hypothesis import Hypothesis, rank_hypotheses
from .options import DecodingOptions


@torch.no_grad()
def sample_captions(
    decoder: StepModel[S], state: S, options: DecodingOptions, generator: torch.Generator
) -> list[list[Hypothesis]]:
    """Draw captions of each image.

    Every draw uses up the same count of random numbers, image after image, and all are drawn on the
    CPU: neither the batch size nor the device decides what a seed gives.

    Args:
        decoder: in eval mode.
        state: of `decoder.init_state(features)`, a row for each image.
        options: `n_best` is K; `temperature` and `top_p` shape the draw, and the constraints hold.
        generator: of the CPU; goes on from call to call.

    Returns:
        For each image at least one and at most K hypotheses: the different ones that were drawn,
        best first.

    Source: nucleus sampling (`top_p`) after Holtzman et al. 2019, arXiv:1904.09751.
    """
    num_images, num_draws, num_steps = len(state), options.n_best, options.length_limit + 1
    results: list[list[Hypothesis]] = [[] for _ in range(num_images)]
    if not num_images:
        return results
    words = decoder.start_tokens(num_images)[:, None].expand(-1, num_draws)  # (N, K)
    images = torch.arange(num_images, device=words.device)  # (N,) places of the images in results
    uniforms = torch.rand(num_images, num_draws, num_steps, generator=generator).to(words.device)
    state = state.select(images, torch.zeros_like(words))
    token_ids, log_probs = words[:, :, None][:, :, :0], torch.zeros_like(words, dtype=torch.float32)
    ended = torch.zeros_like(words, dtype=torch.bool)
    for step in range(num_steps):
        logits, state = decoder.step(words.flatten(), state)
        allowed = next_log_probs(logits, token_ids.flatten(0, 1), options)
        drawn = draw_words(
            allowed, uniforms[images, :, step].flatten(), options.temperature, options.top_p
        )
        gained = allowed.gather(1, drawn[:, None]).view_as(words)
        log_probs = log_probs + gained.masked_fill(ended, 0.0)
        words = drawn.view_as(words).masked_fill(ended, EOS)
        token_ids = torch.cat([token_ids, words[:, :, None]], 2)
        ended = words == EOS

        done = ended.all(1)
        leaving, staying = done.nonzero()[:, 0], (~done).nonzero()[:, 0]
        if not len(leaving):
            continue
        found = zip(token_ids[leaving].tolist(), log_probs[leaving].tolist(), strict=True)
        for image, draws in zip(images[leaving].tolist(), found, strict=True):
            results[image] = _hypotheses(*draws, options.length_penalty)
        if not len(staying):
            break
        rows = torch.arange(num_draws, device=words.device).expand(len(staying), -1)
        state = state.select(staying, rows)
        images, words, token_ids = images[staying], words[staying], token_ids[staying]
        log_probs, ended = log_probs[staying], ended[staying]
    return results


def draw_words(log_probs: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw a word for each row by inverting the cumulative distribution.

    Args:
        log_probs: (R, V) of the words that may come; −inf for others.
        uniforms: (R,) random numbers in [0, 1).
        temperature: log-probabilities are divided by it; towards 0 the likeliest word is drawn.
        top_p: only the likeliest words are drawn, as few as together hold this probability.

    Returns:
        (R,) int64.
    """
    # In float64, where a number below 1 times the sum stays below the sum.
    log_probs = log_probs.double()
    probs = ((log_probs - log_probs.amax(1, keepdim=True)) / temperature).softmax(1)
    order = None
    if top_p < 1:
        probs, order = probs.sort(dim=1, descending=True, stable=True)
        before = probs.cumsum(1) - probs
        probs = probs.masked_fill(before >= top_p, 0.0)
    cumulative = probs.cumsum(1)
    goals = uniforms[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, goals, right=True)
    return (drawn if order is None else order.gather(1, drawn))[:, 0]


def _hypotheses(
    draws: list[list[int]], log_probs: list[float], length_penalty: float
) -> list[Hypothesis]:
    """Rank the draws of an image, each a list of words and at least one EOS."""
    words = [tuple(draw[: draw.index(EOS)]) for draw in draws]
    return rank_hypotheses(
        Hypothesis(token_ids, log_prob, log_prob / (len(token_ids) + 1) ** length_penalty)
        for token_ids, log_prob in zip(words, log_probs, strict=True)
    )
