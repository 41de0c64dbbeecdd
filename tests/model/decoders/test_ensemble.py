import pytest
import torch

from showtell.model.decoders.ensemble import Ensemble, mean_log_probs
from showtell.model.generation.beam import beam_search
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.text.vocab import BOS, EOS, PAD, UNK

OPTIONS = [
    {"beam": 1},
    {"beam": 3},
    {"beam": 3, "no_repeat_ngram": 1, "min_length": 3},
    {"beam": 4, "beam_groups": 2},
]
MIXED = [
    {"cell": "gru", "seed": 1},
    {"cell": "lstm", "hidden_size": 12, "num_layers": 2, "seed": 2},
    {"cell": "rnn", "feature_dim": 4, "image_as": "initial-state", "seed": 3},
    {"cell": "gru", "feature_dim": 5, "attention": "soft", "seed": 4},
    {"cell": "lstm", "attention": "adaptive", "seed": 5},
    {"cell": "transformer", "feature_dim": 7, "num_layers": 2, "hidden_size": 128, "seed": 6},
]


@pytest.fixture
def mixed(random_decoder) -> Ensemble:
    """Decoders that have only the vocabulary size in common."""
    return Ensemble([random_decoder(**options) for options in MIXED])


def features_of(ensemble: Ensemble, num_images: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(num_images, *([3] if m.uses_grid else []), m.config.feature_dim)
        for m in ensemble.members
    ]


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_ensemble_of_copies_equals_the_decoder(
    random_decoder, cell: str, options: dict[str, int], num_members: int
) -> None:
    decoder, features = random_decoder(cell=cell), torch.randn(20, 6)
    ensemble, chosen = Ensemble([decoder] * num_members), DecodingOptions(**options)
    alone = beam_search(decoder, decoder.init_state(features), chosen)
    together = beam_search(ensemble, ensemble.init_state([features] * num_members), chosen)
    for ones, others in zip(alone, together, strict=True):
        assert [h.token_ids for h in ones] == [h.token_ids for h in others]
        assert [h.log_prob for h in ones] == pytest.approx([h.log_prob for h in others], abs=1e-4)


def test_step_averages_the_members_probabilities(mixed) -> None:
    features = features_of(mixed, 4)
    torch.manual_seed(1)
    captions = torch.cat([torch.full((4, 1), BOS), torch.randint(4, 12, (4, 5))], 1)
    state = mixed.init_state(features)
    for length in range(captions.shape[1]):
        logits, state = mixed.step(captions[:, length], state)
        mean = 0
        for member, own in zip(mixed.members, features, strict=True):
            outputs = member(own, captions[:, : length + 1])  # as in training
            mean = mean + member.logits(outputs)[:, -1].softmax(1) / len(mixed.members)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double().softmax(1), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mixed_ensemble_finds_the_same_in_batches_as_one_by_one(mixed, options) -> None:
    chosen, features = DecodingOptions(max_length=8, **options), features_of(mixed, 15)
    together = beam_search(mixed, mixed.init_state(features), chosen)
    for image, hypotheses in enumerate(together):
        own = [member[image, None] for member in features]
        (alone,) = beam_search(mixed, mixed.init_state(own), chosen)
        assert [h.token_ids for h in hypotheses] == [h.token_ids for h in alone]


@pytest.mark.parametrize("beam", [1, 3])
def test_unlike_decoders_search_by_their_mean_probability(random_decoder, beam: int) -> None:
    """Beam search of a plain loop, which reads every prefix again with each decoder."""
    transformer, attentive, pooled = MIXED[5], MIXED[3], MIXED[1]
    chosen = [transformer, attentive, pooled]
    ensemble = Ensemble([random_decoder(**options) for options in chosen])
    features, length = features_of(ensemble, 3), 5
    options = DecodingOptions(beam=beam, max_length=length, length_penalty=0.0)
    found = beam_search(ensemble, ensemble.init_state(features), options)

    def log_probs(image: int, words: tuple[int, ...]) -> torch.Tensor:
        inputs, total = torch.tensor([[BOS, *words]]), torch.zeros(())
        for member, own in zip(ensemble.members, features, strict=True):
            logits = member.logits(member(own[image, None], inputs))[0, -1]
            total = total + logits.softmax(0) / len(ensemble.members)
        total[[PAD, BOS, UNK]] = 0
        total = total / total.sum()
        if not words:  # a caption has at least one word
            total[EOS] = 0
        return total.detach().log()

    for image, hypotheses in enumerate(found):
        live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        ended: list[tuple[float, tuple[int, ...]]] = []
        while live and len(ended) < beam:
            grown = [
                (score + step, (*words, word))
                for score, words in live
                for word, step in enumerate(log_probs(image, words).tolist())
                if word == EOS or len(words) < length
            ]
            best = sorted(grown, reverse=True)[: 2 * beam]
            ended += [(score, words[:-1]) for score, words in best[:beam] if words[-1] == EOS]
            live = [(score, words) for score, words in best if words[-1] != EOS][:beam]
        ended = sorted(ended, reverse=True)[:beam]
        assert [h.token_ids for h in hypotheses] == [words for _, words in ended]


def test_train_and_eval_mode_reach_the_members(mixed) -> None:
    assert mixed.train().members[1].training
    assert not mixed.eval().members[1].training


def test_mean_probability_of_more_rows_than_fit_in_the_cache() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(70, 11, generator=generator) * scale for scale in (1, 5, 200)]
    expected = torch.stack([each.double().softmax(1) for each in logits]).mean(0).log()
    found = mean_log_probs(logits)
    assert found.dtype == torch.float32 and found.shape == (70, 11)
    torch.testing.assert_close(found, expected.float())
    assert mean_log_probs([each[:0] for each in logits]).shape == (0, 11)
