import itertools

import numpy as np
import pytest
import torch

from showtell.model.decoders.ensemble import join_decoders
from showtell.model.decoders.registry import DECODERS
from showtell.model.generation.beam import beam_search
from showtell.model.generation.explain import explain
from showtell.model.generation.options import DecodingOptions
from showtell.model.generation.sampling import sample_captions

NUM_CELLS = 5


def features_for(decoder, num_images: int) -> torch.Tensor:
    shape = (NUM_CELLS, decoder.config.feature_dim) if decoder.uses_grid else (6,)
    return torch.randn(num_images, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("cell", "attention"),
    [*itertools.product(("gru", "lstm", "rnn"), DECODERS), ("transformer", "none")],
)
@pytest.mark.parametrize("num_views", [1, 2])
def test_log_probs_add_up_to_that_of_beam_search(
    random_decoder, cell: str, attention: str, num_views: int
) -> None:
    decoder = random_decoder(cell=cell, attention=attention).eval()
    model, features = join_decoders([decoder], num_views), features_for(decoder, 4)
    inputs = features if num_views == 1 else [features, features.flip(-1)]
    with torch.no_grad():
        found = beam_search(model, model.init_state(inputs), DecodingOptions(beam=4, n_best=4))
        found[1] = found[1][:1]  # images may have different numbers of captions
        captions = [[hypothesis.token_ids for hypothesis in of_image] for of_image in found]
        explained = explain(model, model.init_state(inputs), captions)
    assert [len(of_image) for of_image in explained] == [len(of_image) for of_image in found]
    for hypotheses, scores in zip(found, explained, strict=True):
        for hypothesis, score in zip(hypotheses, scores, strict=True):
            assert len(score.log_probs) == len(hypothesis.token_ids) + 1
            assert score.log_probs.sum() == pytest.approx(hypothesis.log_prob, abs=1e-4)
            assert (score.attention is None) == (not decoder.uses_grid)
            if score.attention is not None:
                assert score.attention.shape == (len(score.log_probs), NUM_CELLS)
                total = score.attention.sum(1)
                if attention != "adaptive":
                    np.testing.assert_allclose(total, 1, atol=1e-5)
                else:  # the rest belongs to the sentinel
                    assert np.all((total > 0) & (total < 1))


def test_attention_is_that_of_each_step(random_decoder) -> None:
    decoder = random_decoder(attention="soft").eval()
    features, caption = features_for(decoder, 2), (5, 6, 7)
    seen: list[torch.Tensor] = []
    hook = decoder.attention.register_forward_hook(lambda _, inputs, output: seen.append(output[1]))
    with torch.no_grad():
        decoder(features, torch.tensor([[1, *caption]] * 2))  # BOS first
        hook.remove()
        explained = explain(decoder, decoder.init_state(features), [[caption], [caption]])
    expected = torch.stack([weights[:, 0] for weights in seen], 1).numpy()
    for image in range(2):
        np.testing.assert_allclose(explained[image][0].attention, expected[image], atol=1e-6)


def test_sampled_and_empty_captions_are_explained(random_decoder) -> None:
    decoder = random_decoder().eval()
    features = features_for(decoder, 3)
    options = DecodingOptions(sample=True, n_best=3, temperature=0.5)
    with torch.no_grad():
        state, generator = decoder.init_state(features), torch.Generator().manual_seed(0)
        found = sample_captions(decoder, state, options, generator)
        captions = [[hypothesis.token_ids for hypothesis in of_image] for of_image in found]
        explained = explain(decoder, decoder.init_state(features), captions)
        (empty,), (none,) = explain(decoder, decoder.init_state(features[:2]), [[()], [()]])
    assert explained[0][0].log_probs.sum() == pytest.approx(found[0][0].log_prob, abs=1e-4)
    assert empty.log_probs.shape == none.log_probs.shape == (1,)
    assert explain(decoder, decoder.init_state(features[:0]), []) == []
