import copy
from dataclasses import replace

import pytest
import torch

from showtell.model.training.batches import CaptionBatch
from showtell.model.training.loss import mix_inputs
from showtell.model.training.optim import average_weights
from showtell.pipeline.text.vocab import BOS, EOS, PAD, UNK

WORDS = [[5, 6, 7], [8, 9], [4], []]  # of images 1, 0, 1, 2


def make_batch(grid: bool = False) -> CaptionBatch:
    torch.manual_seed(0)
    features = torch.randn(3, 4, 6) if grid else torch.randn(3, 6)
    pad = lambda rows: torch.tensor([row + [PAD] * (4 - len(row)) for row in rows])  # noqa: E731
    targets = pad([[*words, EOS] for words in WORDS])
    return CaptionBatch(
        features=features.double(),
        image_rows=torch.arange(3),
        image_index=torch.tensor([1, 0, 1, 2]),
        inputs=pad([[BOS, *words] for words in WORDS]),
        targets=targets,
        lengths=torch.tensor([4, 3, 2, 1]),
        nonpad=(targets.flatten() != PAD).nonzero()[:, 0],
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": "soft"}, {"attention": "adaptive"}, {"cell": "transformer"}],
    ids=str,
)
def test_mix_inputs_changes_only_inputs_at_the_rate(random_decoder, options) -> None:
    decoder = random_decoder(**options)
    with torch.no_grad():  # so that it draws words that are not in the captions
        decoder.output_bias[10:] += 50
    batch = make_batch(grid=decoder.uses_grid)
    before = copy.deepcopy(batch)
    same, mixed = mix_inputs(decoder, batch, 0.0), mix_inputs(decoder, batch, 1.0)
    assert torch.equal(same.inputs, batch.inputs)
    is_word = (batch.inputs != PAD) & (batch.inputs != BOS)
    assert (mixed.inputs[is_word] >= 10).all()
    assert torch.equal(mixed.inputs[~is_word], batch.inputs[~is_word])
    names = ("features", "image_rows", "image_index", "targets", "lengths", "nonpad")
    for name in names:
        assert torch.equal(getattr(mixed, name), getattr(batch, name))
    assert torch.equal(batch.inputs, before.inputs)  # the argument is not changed


def test_mix_inputs_never_inserts_special_tokens(random_decoder) -> None:
    decoder = random_decoder()
    with torch.no_grad():
        decoder.output_bias[[PAD, BOS, EOS, UNK]] += 50
    batch = make_batch()
    mixed = mix_inputs(decoder, batch, 1.0).inputs
    is_word = (batch.inputs != PAD) & (batch.inputs != BOS)
    assert not torch.isin(mixed[is_word], torch.tensor([PAD, BOS, EOS, UNK])).any()


def test_mix_inputs_continues_from_mixed_inputs(random_decoder) -> None:
    decoder = random_decoder()
    with torch.no_grad():  # make it nearly certain of the next word
        decoder.embedding.weight *= 30
        decoder.output_bias.zero_()
    batch = make_batch()
    mixed = mix_inputs(decoder, batch, 1.0)
    for row, (owner, words) in enumerate(zip(batch.image_index, WORDS, strict=True)):
        state, word = decoder.init_state(batch.features[owner, None]), torch.tensor([BOS])
        for position in range(1, len(words) + 1):
            logits, state = decoder.step(word, state)
            word = logits.argmax(1)
            assert logits.softmax(1).max() > 0.999
            assert mixed.inputs[row, position] == word


def test_mix_inputs_replaces_the_given_share(random_decoder) -> None:
    decoder = random_decoder()
    with torch.no_grad():
        decoder.output_bias[10:] += 50
    one = make_batch()
    inputs = torch.full((500, 5), 4)
    inputs[:, 0] = BOS
    batch = replace(one, inputs=inputs, image_index=torch.zeros(500).long())
    share = (mix_inputs(decoder, batch, 0.25).inputs[:, 1:] >= 10).double().mean()
    assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


def test_average_is_the_running_mean_of_a_plain_loop(random_decoder) -> None:
    decoder = random_decoder()
    average, expected = average_weights(decoder, 0.75), {}
    for step in range(5):
        for parameter in decoder.parameters():
            parameter.detach().add_(torch.randn_like(parameter))
        average.update_parameters(decoder)
        for name, value in decoder.named_parameters():
            value = value.detach().clone()
            expected[name] = value if step == 0 else 0.75 * expected[name] + 0.25 * value
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name])
    assert torch.equal(average.module.feature_mean, decoder.feature_mean)
    assert not average.module.training
