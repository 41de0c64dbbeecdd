import itertools
import math

import pytest
import torch

from showtell.model.beam import beam_search
from showtell.model.decoder import Decoder, DecoderConfig
from showtell.model.hypothesis import Hypothesis
from showtell.pipeline.config import DecodingOptions
from showtell.pipeline.vocab import BOS, EOS, PAD, UNK

CELLS = ("gru", "lstm", "rnn")


def make_decoder(cell: str = "gru", vocab_size: int = 12, seed: int = 0) -> Decoder:
    """A small decoder whose words differ enough in probability to have a best caption."""
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(cell=cell, feature_dim=6, vocab_size=vocab_size, embed_size=8, hidden_size=8)
    )
    torch.nn.init.normal_(decoder.embedding.weight, std=1.0)
    torch.nn.init.normal_(decoder.output_bias)
    return decoder.double().eval()


def search(decoder: Decoder, features: torch.Tensor, beam: int = 3, **options: object):
    """Beam search of (N, D) features, ranked by probability unless a length penalty is given."""
    chosen = {"length_penalty": 0.0} | options
    return beam_search(decoder, decoder.init_state(features), DecodingOptions(beam=beam, **chosen))


def next_log_probs(decoder: Decoder, feature: torch.Tensor, words: tuple[int, ...]) -> torch.Tensor:
    """(V,) log-probabilities of the word after `words`, by the training path."""
    inputs = torch.tensor([[BOS, *words]])
    logits = decoder.logits(decoder(feature[None], inputs))[0, -1]
    logits[[PAD, BOS, UNK]] = -math.inf
    return logits.detach().log_softmax(0)


def all_hypotheses(
    decoder: Decoder, feature: torch.Tensor, max_length: int, length_penalty: float
) -> list[Hypothesis]:
    """Every caption of up to `max_length` words, best first."""
    vocab_size = decoder.config.vocab_size
    found = []
    for length in range(1, max_length + 1):
        for words in itertools.product(range(UNK + 1, vocab_size), repeat=length):
            log_prob = sum(
                float(next_log_probs(decoder, feature, words[:i])[word])
                for i, word in enumerate((*words, EOS))
            )
            found.append(Hypothesis(words, log_prob, log_prob / (length + 1) ** length_penalty))
    return sorted(found, key=lambda h: -h.score)


def plain_beam_search(
    decoder: Decoder, feature: torch.Tensor, beam: int, max_length: int, length_penalty: float
) -> list[tuple[int, ...]]:
    """The same search as a loop over Python lists, one image at a time."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in range(max_length + 1):
        candidates = sorted(
            (
                (log_prob + float(value), words, word)
                for log_prob, words in beams
                for word, value in enumerate(next_log_probs(decoder, feature, words))
                if value > -math.inf
                and (length < max_length or word == EOS)
                and (length > 0 or word != EOS)
            ),
            key=lambda candidate: -candidate[0],
        )
        for log_prob, words, word in candidates[:beam_size]:
            if word == EOS:
                ended.append((log_prob / (len(words) + 1) ** length_penalty, words))
        beams = [(lp, (*words, word)) for lp, words, word in candidates if word != EOS][:beam_size]
        if len(ended) >= beam_size:
            break
    ended.sort(key=lambda hypothesis: -hypothesis[0])
    return [words for _, words in ended[:beam_size]]


@pytest.mark.parametrize("cell", CELLS)
def test_beam_of_one_equals_greedy(cell: str) -> None:
    decoder, features = make_decoder(cell), torch.randn(20, 6)
    for feature, hypotheses in zip(
        features, search(decoder, features, beam=1, max_length=8), strict=True
    ):
        words: tuple[int, ...] = ()
        while len(words) < 8:
            log_probs = next_log_probs(decoder, feature, words)
            if not words:
                log_probs[EOS] = -math.inf  # a caption has at least one word
            word = int(log_probs.argmax())
            if word == EOS:
                break
            words = (*words, word)
        assert hypotheses[0].token_ids == words


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize("cell", CELLS)
def test_widest_beam_matches_exhaustive_search(cell: str, length_penalty: float) -> None:
    decoder, features = make_decoder(cell, vocab_size=7), torch.randn(3, 6)
    num_captions = 3 + 9 + 27
    found = search(
        decoder, features, beam=num_captions, max_length=3, length_penalty=length_penalty
    )
    for feature, hypotheses in zip(features, found, strict=True):
        expected = all_hypotheses(decoder, feature, 3, length_penalty)
        assert [h.token_ids for h in hypotheses] == [h.token_ids for h in expected]
        for got, want in zip(hypotheses, expected, strict=True):
            assert got.log_prob == pytest.approx(want.log_prob, abs=1e-4)
            assert got.score == pytest.approx(want.score, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
@pytest.mark.parametrize("cell", CELLS)
def test_batched_search_matches_a_plain_loop(cell: str, beam_size: int) -> None:
    decoder, features = make_decoder(cell), torch.randn(12, 6)
    options = {"beam": beam_size, "max_length": 6, "length_penalty": 0.7}
    for feature, hypotheses in zip(features, search(decoder, features, **options), strict=True):
        expected = plain_beam_search(decoder, feature, **options)
        assert [h.token_ids for h in hypotheses] == expected


def test_batched_beams_match_single_images() -> None:
    decoder, features = make_decoder(), torch.randn(30, 6)
    options = {"beam": 4, "max_length": 10, "length_penalty": 0.7}
    together = search(decoder, features, **options)
    alone = [search(decoder, feature[None], **options)[0] for feature in features]
    assert [[h.token_ids for h in hs] for hs in together] == [
        [h.token_ids for h in hs] for hs in alone
    ]


def test_log_prob_is_that_of_the_caption() -> None:
    decoder, features = make_decoder(), torch.randn(5, 6)
    for feature, hypotheses in zip(features, search(decoder, features, beam=3), strict=True):
        for hypothesis in hypotheses:
            words = hypothesis.token_ids
            expected = sum(
                float(next_log_probs(decoder, feature, words[:i])[word])
                for i, word in enumerate((*words, EOS))
            )
            assert hypothesis.log_prob == pytest.approx(expected, abs=1e-4)


def test_wider_beam_never_finds_less_probable_captions_when_exhaustive() -> None:
    decoder, features = make_decoder(vocab_size=6), torch.randn(10, 6)
    best = [search(decoder, features, beam=k, max_length=3) for k in (1, 2 + 4 + 8)]
    for narrow, wide in zip(*best, strict=True):
        assert wide[0].log_prob >= narrow[0].log_prob - 1e-6


@pytest.mark.parametrize("beam_size", [1, 3])
def test_search_gives_longest_captions_when_no_beam_ends(beam_size: int) -> None:
    decoder, features = make_decoder(), torch.randn(4, 6)
    torch.nn.init.constant_(decoder.output_bias[EOS : EOS + 1].detach(), -1e4)
    found = search(decoder, features, beam=beam_size, max_length=5, length_penalty=0.5)
    assert [len(hypotheses[0].token_ids) for hypotheses in found] == [5] * 4


def test_search_ends_at_once_when_the_end_is_certain() -> None:
    decoder = make_decoder()
    torch.nn.init.constant_(decoder.output_bias[EOS : EOS + 1].detach(), 1e4)
    found = search(decoder, torch.randn(4, 6), beam=1)
    # Not before the first word: an empty caption is none.
    assert all(len(hypotheses[0].token_ids) == 1 for hypotheses in found)


def test_special_tokens_are_never_written() -> None:
    decoder = make_decoder()
    with torch.no_grad():
        decoder.output_bias[[PAD, BOS, UNK]] = 50.0
    for hypotheses in search(decoder, torch.randn(20, 6), beam=3, max_length=8):
        assert all(word > UNK for h in hypotheses for word in h.token_ids)


def test_beam_wider_than_the_vocabulary_works() -> None:
    decoder = make_decoder(vocab_size=5)  # one word besides the special tokens
    found = search(decoder, torch.randn(2, 6), beam=10, max_length=4)
    assert all(len(hypotheses) == 4 for hypotheses in found)  # of 1, 2, 3 and 4 words


def test_no_images_give_no_captions() -> None:
    assert search(make_decoder(), torch.empty(0, 6), beam=3) == []
