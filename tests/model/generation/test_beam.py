import itertools
import math

import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.generation.beam import beam_search
from showtell.model.generation.hypothesis import Hypothesis
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.text.vocab import BOS, EOS, PAD, UNK

CELLS = ("gru", "lstm", "rnn", "transformer")


def make_decoder(cell: str = "gru", vocab_size: int = 12, seed: int = 0) -> Decoder:
    """Make a small decoder with clearly different word probabilities."""
    torch.manual_seed(seed)
    decoder = create_decoder(
        DecoderConfig(cell=cell, feature_dim=6, vocab_size=vocab_size, embed_size=8, hidden_size=8)
    )
    torch.nn.init.normal_(decoder.embedding.weight, std=1.0)
    torch.nn.init.normal_(decoder.output_bias)
    return decoder.double().eval()


def make_features(decoder: Decoder, num_images: int) -> torch.Tensor:
    """Return (N, 6) vectors, or (N, 4, 6) grids for a decoder that reads grids."""
    return torch.randn(num_images, *([4] if decoder.uses_grid else []), 6)


def search(decoder: Decoder, features: torch.Tensor, beam: int = 3, **options: object):
    """Run beam search; rank by probability unless a length penalty is given."""
    chosen = {"length_penalty": 0.0} | options
    return beam_search(decoder, decoder.init_state(features), DecodingOptions(beam=beam, **chosen))


def next_log_probs(decoder: Decoder, feature: torch.Tensor, words: tuple[int, ...]) -> torch.Tensor:
    """Return (V,) log-probabilities of the word after `words`, computed by `forward`."""
    inputs = torch.tensor([[BOS, *words]])
    logits = decoder.logits(decoder(feature[None], inputs))[0, -1]
    logits[[PAD, BOS, UNK]] = -math.inf
    return logits.detach().log_softmax(0)


def repeats(words: tuple[int, ...], n: int) -> bool:
    """Return whether an n-gram occurs twice in `words`."""
    ngrams = [words[i : i + n] for i in range(len(words) - n + 1)]
    return n > 0 and len(set(ngrams)) < len(ngrams)


def allowed_log_probs(
    decoder: Decoder, feature: torch.Tensor, words: tuple[int, ...], options: DecodingOptions
) -> torch.Tensor:
    """Return the next log-probabilities, with the rules applied word by word."""
    log_probs = next_log_probs(decoder, feature, words)
    end = log_probs[EOS].clone()
    for word in range(len(log_probs)):
        if word == EOS:
            may_come = len(words) >= options.min_length
        else:
            too_long = len(words) == options.length_limit
            may_come = not (too_long or repeats((*words, word), options.no_repeat_ngram))
        if not may_come:
            log_probs[word] = -math.inf
    if log_probs.max() == -math.inf:
        log_probs[EOS] = end
    return log_probs


def all_hypotheses(
    decoder: Decoder, feature: torch.Tensor, options: DecodingOptions
) -> list[Hypothesis]:
    """Return every caption that the options allow, best first."""
    found, lengths = [], range(options.min_length, options.length_limit + 1)
    for length in lengths:
        for words in itertools.product(range(UNK + 1, decoder.config.vocab_size), repeat=length):
            if repeats(words, options.no_repeat_ngram):
                continue
            log_prob = sum(
                float(next_log_probs(decoder, feature, words[:i])[word])
                for i, word in enumerate((*words, EOS))
            )
            score = log_prob / (length + 1) ** options.length_penalty
            found.append(Hypothesis(words, log_prob, score))
    return sorted(found, key=lambda h: -h.score)


Beam = tuple[float, tuple[int, ...]]  # log-probability and words


def plain_beam_search(
    decoder: Decoder, feature: torch.Tensor, options: DecodingOptions
) -> list[tuple[int, ...]]:
    """Do the same search with Python lists, one image and one group at a time."""
    num_groups = options.beam_groups
    beam_size = options.beam // num_groups
    beams: list[list[Beam]] = [[(0.0, ())]] * num_groups
    ended: list[list[Beam]] = [[] for _ in range(num_groups)]
    for _ in range(options.length_limit + 1):
        chosen: list[int] = []  # by earlier groups at this step
        for g in range(num_groups):
            if len(ended[g]) >= beam_size:
                continue
            candidates = []
            for log_prob, words in beams[g]:
                allowed = allowed_log_probs(decoder, feature, words, options).tolist()
                for word, value in enumerate(allowed):
                    if value > -math.inf:
                        cost = options.diversity * chosen.count(word)
                        total = log_prob + value
                        candidates.append((total - cost, total, words, word))
            candidates.sort(key=lambda candidate: -candidate[0])
            for _, log_prob, words, word in candidates[:beam_size]:
                if word == EOS:
                    score = log_prob / (len(words) + 1) ** options.length_penalty
                    ended[g].append((score, words))
            going = [(lp, (*words, word)) for _, lp, words, word in candidates if word != EOS]
            beams[g] = going[:beam_size]
            if len(ended[g]) < beam_size:
                chosen += [words[-1] for _, words in beams[g]]
    kept = [sorted(group, reverse=True)[:beam_size] for group in ended]
    best = sorted(set(itertools.chain.from_iterable(kept)), reverse=True)
    return [words for _, words in best]


CONSTRAINTS = [
    {"min_length": 4},
    {"no_repeat_ngram": 1},
    {"no_repeat_ngram": 2},
    {"no_repeat_ngram": 3},
    {"no_repeat_ngram": 2, "min_length": 5},
]


@pytest.mark.parametrize("constraints", [{}, *CONSTRAINTS], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_beam_of_one_equals_greedy(cell: str, constraints: dict[str, int]) -> None:
    decoder = make_decoder(cell)
    features = make_features(decoder, 10)
    options = DecodingOptions(beam=1, max_length=8, **constraints)
    found = beam_search(decoder, decoder.init_state(features), options)
    for feature, hypotheses in zip(features, found, strict=True):
        words: tuple[int, ...] = ()
        while (word := int(allowed_log_probs(decoder, feature, words, options).argmax())) != EOS:
            words = (*words, word)
        assert [h.token_ids for h in hypotheses] == [words]


@pytest.mark.parametrize(
    "constraints", [{}, {"min_length": 2}, {"no_repeat_ngram": 1}, {"no_repeat_ngram": 2}], ids=str
)
@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize("cell", CELLS)
def test_widest_beam_matches_exhaustive_search(
    cell: str, length_penalty: float, constraints: dict[str, int]
) -> None:
    decoder = make_decoder(cell, vocab_size=7)
    features = make_features(decoder, 2)
    num_captions = 3 + 9 + 27
    options = DecodingOptions(
        beam=num_captions, max_length=3, length_penalty=length_penalty, **constraints
    )
    found = beam_search(decoder, decoder.init_state(features), options)
    for feature, hypotheses in zip(features, found, strict=True):
        expected = all_hypotheses(decoder, feature, options)
        assert [h.token_ids for h in hypotheses] == [h.token_ids for h in expected]
        for got, want in zip(hypotheses, expected, strict=True):
            assert got.log_prob == pytest.approx(want.log_prob, abs=1e-4)
            assert got.score == pytest.approx(want.score, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        *({"beam": beam} for beam in (1, 2, 3, 5)),
        *({"beam": 3} | constraints for constraints in CONSTRAINTS),
        *({"beam": 6, "beam_groups": 3, "diversity": d} for d in (0.0, 0.5, 3.0)),
        {"beam": 4, "beam_groups": 4, "diversity": 1.0},
        {"beam": 4, "beam_groups": 2, "diversity": 1.0, "no_repeat_ngram": 1, "min_length": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_batched_search_matches_a_plain_loop(cell: str, options: dict[str, float]) -> None:
    decoder = make_decoder(cell)
    features = make_features(decoder, 6)
    chosen = DecodingOptions(max_length=6, length_penalty=0.7, **options)
    found = beam_search(decoder, decoder.init_state(features), chosen)
    for feature, hypotheses in zip(features, found, strict=True):
        expected = plain_beam_search(decoder, feature, chosen)
        assert [h.token_ids for h in hypotheses] == expected


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_no_repeat_ngram_prevents_repetition(cell: str, n: int) -> None:
    num_repeats = 0
    for seed in range(4):
        decoder = make_decoder(cell, vocab_size=7, seed=seed)  # few words, so that n-grams repeat
        features = make_features(decoder, 20)
        options = {"beam": 4, "max_length": 15, "min_length": 8}
        for hypotheses in search(decoder, features, **options):
            num_repeats += sum(repeats(h.token_ids, n) for h in hypotheses)
        for hypotheses in search(decoder, features, no_repeat_ngram=n, **options):
            assert hypotheses and not any(repeats(h.token_ids, n) for h in hypotheses)
    assert num_repeats  # without the option n-grams do repeat


@pytest.mark.parametrize("beam", [1, 4])
def test_no_caption_is_shorter_than_min_length(beam: int) -> None:
    decoder, features = make_decoder(), torch.randn(20, 6)
    shortest = min(
        len(h.token_ids) for hypotheses in search(decoder, features, beam) for h in hypotheses
    )
    assert shortest < 7
    for hypotheses in search(decoder, features, beam, min_length=7, max_length=9):
        assert all(7 <= len(h.token_ids) <= 9 for h in hypotheses)


def test_caption_ends_when_every_word_is_forbidden() -> None:
    decoder = make_decoder(vocab_size=7)  # three words, each allowed once
    for hypotheses in search(decoder, torch.randn(5, 6), no_repeat_ngram=1, min_length=10):
        assert hypotheses and all(sorted(h.token_ids) == [4, 5, 6] for h in hypotheses)


def test_high_diversity_gives_each_group_other_words() -> None:
    decoder, features = make_decoder(vocab_size=30), torch.randn(20, 6)
    options = {"beam_groups": 4, "max_length": 6}
    equal = 0
    for hypotheses in search(decoder, features, 4, diversity=0.0, **options):
        equal += len(hypotheses) == 1
    assert equal == 20
    for hypotheses in search(decoder, features, 4, diversity=1e4, **options):
        for place in range(6):
            words = [h.token_ids[place] for h in hypotheses if len(h.token_ids) > place]
            assert len(set(words)) == len(words)


def test_groups_without_diversity_all_find_the_same() -> None:
    decoder, features = make_decoder(), torch.randn(20, 6)
    for groups, alone in zip(
        search(decoder, features, 6, beam_groups=3, diversity=0.0),
        search(decoder, features, 2),
        strict=True,
    ):
        assert [h.token_ids for h in groups] == [h.token_ids for h in alone]


@pytest.mark.parametrize(
    "options",
    [{}, {"no_repeat_ngram": 2, "min_length": 4}, {"beam_groups": 2, "diversity": 0.7}],
    ids=str,
)
def test_batched_beams_match_single_images(options: dict[str, float]) -> None:
    decoder, features = make_decoder(), torch.randn(30, 6)
    options |= {"beam": 4, "max_length": 10, "length_penalty": 0.7}
    together = search(decoder, features, **options)
    alone = [search(decoder, feature[None], **options)[0] for feature in features]
    assert [[h.token_ids for h in hs] for hs in together] == [
        [h.token_ids for h in hs] for hs in alone
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_hypotheses_are_distinct_sorted_and_at_most_beam_many(groups: int) -> None:
    decoder, features = make_decoder(), torch.randn(20, 6)
    for hypotheses in search(decoder, features, 4, beam_groups=groups, length_penalty=0.7):
        assert 1 <= len({h.token_ids for h in hypotheses}) == len(hypotheses) <= 4
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("options", [{}, {"beam_groups": 3, "diversity": 2.0}], ids=str)
def test_log_prob_equals_the_captions_log_probability(options: dict[str, float]) -> None:
    decoder, features = make_decoder(), torch.randn(5, 6)
    for feature, hypotheses in zip(
        features, search(decoder, features, beam=3, **options), strict=True
    ):
        for hypothesis in hypotheses:
            words = hypothesis.token_ids
            expected = sum(
                float(next_log_probs(decoder, feature, words[:i])[word])
                for i, word in enumerate((*words, EOS))
            )
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-4)


def test_exhaustive_beam_finds_at_least_as_probable_captions() -> None:
    decoder, features = make_decoder(vocab_size=6), torch.randn(10, 6)
    best = [search(decoder, features, beam=k, max_length=3) for k in (1, 2 + 4 + 8)]
    for narrow, wide in zip(*best, strict=True):
        assert wide[0].log_prob >= narrow[0].log_prob - 1e-6


@pytest.mark.parametrize("beam_size", [1, 3])
def test_captions_reach_max_length_when_no_beam_ends(beam_size: int) -> None:
    decoder, features = make_decoder(), torch.randn(4, 6)
    torch.nn.init.constant_(decoder.output_bias[EOS : EOS + 1].detach(), -1e4)
    found = search(decoder, features, beam=beam_size, max_length=5, length_penalty=0.5)
    assert [len(hypotheses[0].token_ids) for hypotheses in found] == [5] * 4


def test_search_stops_after_one_word_when_the_end_is_certain() -> None:
    decoder = make_decoder()
    torch.nn.init.constant_(decoder.output_bias[EOS : EOS + 1].detach(), 1e4)
    found = search(decoder, torch.randn(4, 6), beam=1)
    # An empty caption is not allowed.
    assert all(len(hypotheses[0].token_ids) == 1 for hypotheses in found)


def test_special_tokens_are_never_written() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.output_bias[[PAD, BOS, UNK]] = 50.0
    for hypotheses in search(decoder, torch.randn(20, 6), beam=3, max_length=8):
        assert all(word > UNK for h in hypotheses for word in h.token_ids)


def test_beam_may_be_wider_than_the_vocabulary() -> None:
    decoder = make_decoder(vocab_size=5)  # one word besides the special tokens
    found = search(decoder, torch.randn(2, 6), beam=10, max_length=4)
    assert all(len(hypotheses) == 4 for hypotheses in found)  # of 1, 2, 3 and 4 words


def test_no_images_give_no_captions() -> None:
    assert search(make_decoder(), torch.empty(0, 6), beam=3) == []
