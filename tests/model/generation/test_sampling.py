import itertools
import math

import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.generation.beam import beam_search
from showtell.model.generation.hypothesis import Hypothesis
from showtell.model.generation.options import DecodingOptions
from showtell.model.generation.sampling import draw_tokens, sample_captions
from showtell.pipeline.text.vocab import EOS

CELLS = ("gru", "lstm", "rnn")


def draw(
    decoder: Decoder, features: torch.Tensor, seed: int = 0, **options: object
) -> list[list[Hypothesis]]:
    chosen = DecodingOptions(sample=True, **options)
    generator = torch.Generator().manual_seed(seed)
    return sample_captions(decoder, decoder.init_state(features), chosen, generator)


def words_of(found: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[h.token_ids for h in hypotheses] for hypotheses in found]


def test_same_seed_draws_the_same_captions(random_decoder) -> None:
    decoder, features = random_decoder(), torch.randn(10, 6)
    first = words_of(draw(decoder, features))
    assert first == words_of(draw(decoder, features))
    assert first != words_of(draw(decoder, features, seed=1))
    assert len({words for (words,) in first}) > 1


@pytest.mark.parametrize("cell", [*CELLS, "transformer"])
def test_batch_size_does_not_change_draws(random_decoder, cell: str) -> None:
    decoder = random_decoder(cell=cell)
    features = torch.randn(23, *([4] if decoder.uses_grid else []), 6)
    options = DecodingOptions(sample=True, n_best=3, top_p=0.9, no_repeat_ngram=2, min_length=2)
    generator = torch.Generator().manual_seed(0)
    alone = [
        sample_captions(decoder, decoder.init_state(feature[None]), options, generator)[0]
        for feature in features
    ]
    together = draw(decoder, features, n_best=3, top_p=0.9, no_repeat_ngram=2, min_length=2)
    assert words_of(together) == words_of(alone)


def test_captions_are_drawn_with_their_probability(random_decoder) -> None:
    decoder, num_draws = random_decoder(vocab_size=6), 20_000  # two words
    feature = torch.randn(1, 6)
    found = draw(decoder, feature.expand(num_draws, -1), max_length=2)
    captions = words_of(found)
    for length in (1, 2):
        for words in itertools.product((4, 5), repeat=length):
            share = sum(caption == [words] for caption in captions) / num_draws
            probability = plain_probability(decoder, feature, words)
            assert share == pytest.approx(probability, abs=5 * math.sqrt(0.25 / num_draws))


def plain_probability(decoder: Decoder, feature: torch.Tensor, words: tuple[int, ...]) -> float:
    """Return the probability of a caption of one or two words, with max_length 2."""
    state, product, previous = decoder.init_state(feature), 1.0, decoder.start_tokens(1)
    for place, word in enumerate((*words, EOS)):
        logits, state = decoder.step(previous, state)
        allowed = [[4, 5], [EOS, 4, 5], [EOS]][place]
        probs = dict(zip(allowed, logits[0, allowed].softmax(0).tolist(), strict=True))
        product *= probs[word]
        previous = torch.tensor([word])
    return product


def test_temperature_near_zero_is_greedy(random_decoder) -> None:
    for cell in CELLS:
        decoder, features = random_decoder(cell=cell), torch.randn(20, 6)
        options = {"no_repeat_ngram": 2, "min_length": 3, "max_length": 8}
        greedy = beam_search(
            decoder, decoder.init_state(features), DecodingOptions(beam=1, **options)
        )
        cold = draw(decoder, features, temperature=1e-30, **options)
        assert words_of(cold) == words_of(greedy)
        for one, other in zip(cold, greedy, strict=True):
            assert one[0].log_prob == pytest.approx(other[0].log_prob, abs=1e-4)


def plain_nucleus(probs: list[float], top_p: float) -> set[int]:
    """Return the smallest set of most probable words that holds `top_p`, by a plain loop."""
    kept, held = set(), 0.0
    for word in sorted(range(len(probs)), key=lambda word: -probs[word]):
        if held >= top_p:
            break
        kept.add(word)
        held += probs[word]
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draw_tokens_draws_exactly_the_nucleus(top_p: float, temperature: float) -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(10).log_softmax(0)
    log_probs[3] = -math.inf
    probs = (log_probs.double() / temperature).softmax(0).tolist()
    uniforms = torch.linspace(0, 1 - 2**-24, 10_001)  # a fine grid over [0, 1)
    drawn = draw_tokens(log_probs.expand(len(uniforms), -1), uniforms, temperature, top_p)
    nucleus = plain_nucleus(probs, top_p)
    assert set(drawn.tolist()) == nucleus
    held = sum(probs[word] for word in nucleus)
    for word in nucleus:
        share = float((drawn == word).float().mean())
        assert share == pytest.approx(probs[word] / held, abs=1e-3)


def test_draws_respect_the_constraints(random_decoder) -> None:
    decoder, features = random_decoder(vocab_size=9), torch.randn(50, 6)
    found = draw(decoder, features, n_best=4, no_repeat_ngram=2, min_length=4, max_length=9)
    for hypotheses in found:
        assert hypotheses
        for words in (h.token_ids for h in hypotheses):
            assert 4 <= len(words) <= 9 and min(words) > 3
            assert len(set(itertools.pairwise(words))) == len(words) - 1


def test_draws_are_distinct_and_sorted(random_decoder) -> None:
    found = draw(random_decoder(), torch.randn(20, 6), n_best=5, length_penalty=0.7, temperature=2)
    assert max(map(len, found)) > 1
    for hypotheses in found:
        assert 1 <= len({h.token_ids for h in hypotheses}) == len(hypotheses) <= 5
        scores = [h.log_prob / (len(h.token_ids) + 1) ** 0.7 for h in hypotheses]
        assert scores == pytest.approx(sorted(scores, reverse=True))


def test_no_images_give_no_draws(random_decoder) -> None:
    assert draw(random_decoder(), torch.empty(0, 6)) == []
