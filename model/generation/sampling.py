"""Write captions token by token: the loop, and random sampling of captions.

Letters in shapes: N images still active, K draws per image, R = N·K rows, V vocabulary, T tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...pipeline.text.vocab import EOS, PAD
from ..decoders.state import S, StepModel
from ..kernels.padding import unfinished_rows
from .constraints import next_log_probs
from .hypothesis import Hypothesis, rank_hypotheses
from .options import DecodingOptions

# (R, V) float32 log-probabilities, (N,) image indices, step → (R,) int64 tokens.
ChooseTokens = Callable[[Tensor, Tensor, int], Tensor]

MIN_TEMPERATURE = 1e-30  # smaller values underflow in float32


class GeneratedTokens(NamedTuple):
    """What `generate_tokens` returns.

    Attributes:
        token_ids: (N, K, T) int64, ending with EOS, then PAD.
        log_probs: (N, K) float32, summed over the tokens and EOS.
    """

    token_ids: Tensor
    log_probs: Tensor


@torch.no_grad()
def generate_tokens(
    decoder: StepModel[S],
    state: S,
    options: DecodingOptions,
    choose: ChooseTokens,
    num_draws: int = 1,
    keep_multiple: int = 1,
) -> GeneratedTokens:
    """Write `num_draws` captions of each image, one token at a time.

    Args:
        decoder: in eval mode.
        state: from `decoder.init_state(features)`, one row per image.
        options: the constraints on captions: lengths and repeated n-grams.
        choose: picks the next token of each row.
        num_draws: K.
        keep_multiple: images whose captions are finished leave the batch, except as many as fill up
            a multiple of this: products then come in few sizes.
    """
    num_images, num_steps = len(state), options.length_limit + 1
    tokens = decoder.start_tokens(num_images)[:, None].expand(-1, num_draws)  # (N, K)
    device = tokens.device
    written = torch.full((num_images, num_draws, num_steps), PAD, device=device)
    totals = torch.zeros(num_images, num_draws, device=device)
    images = torch.arange(num_images, device=device)  # (N,) the active images
    is_finished = torch.zeros_like(tokens, dtype=torch.bool)
    if num_draws > 1:
        state = state.select(images, torch.zeros_like(tokens))
    for step in range(num_steps if num_images else 0):
        logits, state = decoder.step(tokens.flatten(), state)
        log_probs = next_log_probs(logits, written[images, :, :step].flatten(0, 1), options)
        chosen = choose(log_probs, images, step)
        gained = log_probs.gather(1, chosen[:, None]).view_as(tokens)
        totals[images] += gained.masked_fill(is_finished, 0.0)
        tokens = chosen.view_as(tokens).masked_fill(is_finished, PAD)
        written[images, :, step] = tokens
        is_finished |= tokens == EOS
        kept = unfinished_rows(is_finished.all(1), keep_multiple)
        if not len(kept):
            break
        if len(kept) < len(images):
            rows = torch.arange(num_draws, device=device).expand(len(kept), -1)
            state = state.select(kept, rows)
            images, tokens, is_finished = images[kept], tokens[kept], is_finished[kept]
    return GeneratedTokens(written, totals)


@torch.no_grad()
def sample_captions(
    decoder: StepModel[S], state: S, options: DecodingOptions, generator: torch.Generator
) -> list[list[Hypothesis]]:
    """Draw captions of each image at random.

    Each draw takes the same number of random numbers, image by image, and all come from the CPU:
    a seed gives the same captions for any batch size and on any device.

    Args:
        decoder: in eval mode.
        state: from `decoder.init_state(features)`, one row per image.
        options: `n_best` is the number of draws; `temperature` and `top_p` shape the draw, and the
            constraints hold.
        generator: of the CPU; continues from call to call.

    Returns:
        For each image, its distinct captions, best first: at least one, at most `n_best`.

    Source: nucleus sampling (`top_p`) after Holtzman et al. 2019, arXiv:1904.09751.
    """
    num_images, num_draws, num_steps = len(state), options.n_best, options.length_limit + 1
    if not num_images:
        return []
    device = decoder.start_tokens(1).device
    uniforms = torch.rand(num_images, num_draws, num_steps, generator=generator).to(device)

    def choose(log_probs: Tensor, images: Tensor, step: int) -> Tensor:
        draws = uniforms[images, :, step].flatten()
        return draw_tokens(log_probs, draws, options.temperature, options.top_p)

    drawn = generate_tokens(decoder, state, options, choose, num_draws)
    return [
        _hypotheses(token_ids, log_probs, options.length_penalty)
        for token_ids, log_probs in zip(*(part.tolist() for part in drawn), strict=True)
    ]


def draw_tokens(log_probs: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw a token for each row by inverting the cumulative distribution.

    Args:
        log_probs: (R, V); −inf for tokens that are not allowed.
        uniforms: (R,) random numbers in [0, 1).
        temperature: divides the log-probabilities; near 0 the most probable token is drawn.
        top_p: draw only from the smallest set of tokens with at least this total probability.

    Returns:
        (R,) int64.
    """
    # In float64, where u < 1 times a sum is always less than the sum.
    log_probs = log_probs.double()
    temperature = max(temperature, MIN_TEMPERATURE)
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
    """Rank the draws of one image, each a list of tokens with one EOS."""
    captions = [tuple(draw[: draw.index(EOS)]) for draw in draws]
    return rank_hypotheses(
        Hypothesis(token_ids, log_prob, log_prob / (len(token_ids) + 1) ** length_penalty)
        for token_ids, log_prob in zip(captions, log_probs, strict=True)
    )
