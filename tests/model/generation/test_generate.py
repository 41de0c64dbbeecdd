from types import SimpleNamespace

import pytest
import torch

from showtell.model.decoders.ensemble import Ensemble, join_decoders
from showtell.model.decoders.precision import Precision
from showtell.model.generation.beam import beam_search
from showtell.model.generation.generate import (
    choose_batch_size,
    decode,
    decode_captions,
    iterate_features,
    iterate_members,
)
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.text.vocab import build_vocab

PRECISION = Precision("fp32", torch.device("cpu"))


@pytest.fixture
def store() -> SimpleNamespace:
    """A stand-in for a feature store: features (30, 6) and two views (30, 2, 6)."""
    torch.manual_seed(0)
    return make_store(torch.randn(30, 6))


def make_store(features: torch.Tensor) -> SimpleNamespace:
    views = torch.stack([features, features + 1], 1)
    return SimpleNamespace(features=features, gather=lambda rows, view: views[rows, view])


def test_decode_captions_returns_words_and_restores_the_mode(random_decoder, store) -> None:
    vocab = build_vocab(
        dict.fromkeys(["a", "dog", "runs", "on", "grass", "and", "sand", "fast"], 1), min_count=1
    )
    decoder = random_decoder(vocab_size=len(vocab)).train()
    options, rows = DecodingOptions(beam=2), torch.tensor([5, 2, 9, 9, 0, 1, 7])
    features = iterate_features(decoder, store, rows, batch_size=3)
    batches = list(decode_captions(decoder, vocab, features, PRECISION, options))
    assert decoder.training
    assert [len(batch) for batch in batches] == [3, 3, 1]
    state = decoder.eval().init_state(store.features[rows])
    best = [hypotheses[0].token_ids for hypotheses in beam_search(decoder, state, options)]
    assert [caption for batch in batches for caption in batch] == [
        " ".join(vocab.words[word] for word in words) for words in best
    ]


@pytest.mark.parametrize(
    "options",
    [{"beam": 5, "n_best": 3}, {"sample": True, "n_best": 3, "seed": 4}, {"sample": True}],
    ids=str,
)
def test_batch_size_does_not_change_captions(
    random_decoder, store, options: dict[str, int]
) -> None:
    decoder, chosen = random_decoder(), DecodingOptions(**options)
    found = []
    for batch_size in (1, 7, 30):
        batches = iterate_features(decoder, store, torch.arange(30), batch_size)
        decoded = [hs for batch in decode(decoder, batches, PRECISION, chosen) for hs in batch]
        assert all(1 <= len(hypotheses) <= chosen.n_best for hypotheses in decoded)
        found.append([[h.token_ids for h in hypotheses] for hypotheses in decoded])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "options, size",
    [
        ({"beam": 1}, 500),
        ({"beam": 5}, 500),
        ({"beam": 50}, 50),
        ({"beam": 4000}, 1),
        ({"beam": 50, "sample": True}, 500),
        ({"sample": True, "n_best": 10}, 250),
    ],
    ids=str,
)
def test_wide_beams_use_smaller_batches(options: dict[str, int], size: int) -> None:
    assert choose_batch_size(DecodingOptions(**options)) == size


def test_grid_decoder_receives_grids(random_decoder, store) -> None:
    grids = torch.randn(30, 4, 6)
    store.gather_grid = lambda rows, views: grids[rows] * (1 - 2 * views[:, None, None])
    rows = torch.tensor([5, 2, 9, 9, 0])
    looking, pooled = random_decoder(attention="soft"), random_decoder()
    batches = list(iterate_features(looking, store, rows, batch_size=3))
    assert [len(batch.features) for batch in batches] == [3, 2]
    assert torch.equal(torch.cat([batch.features for batch in batches]), grids[rows])
    members = iterate_members([looking, pooled], [store, store], [rows, rows], batch_size=3)
    for batch, inputs in zip(rows.split(3), members, strict=True):
        seen, vectors = inputs.features
        assert torch.equal(seen, grids[batch]) and torch.equal(vectors, store.features[batch])


def test_members_receive_one_view_each(random_decoder, store) -> None:
    grids, rows = torch.randn(30, 4, 6), torch.tensor([5, 2, 9, 9, 0])
    store.gather_grid = lambda rows, views: grids[rows] * (1 - 2 * views[:, None, None])
    decoders = [random_decoder(attention="soft"), random_decoder()]
    members = iterate_members(decoders, [store] * 2, [rows] * 2, batch_size=3, num_views=2)
    for batch, seen in zip(rows.split(3), members, strict=True):
        expected = (grids[batch], -grids[batch], store.features[batch], store.features[batch] + 1)
        assert len(seen.features) == 4 and all(map(torch.equal, seen.features, expected))
    assert len(join_decoders(decoders, 2).members) == 4
    assert join_decoders(decoders[:1]) is decoders[0]


def test_members_receive_the_same_images(random_decoder, store) -> None:
    other = make_store(-store.features.flip(0))
    rows = [torch.arange(20), torch.arange(29, 9, -1)]  # row of the same image in each store
    members = [random_decoder(), random_decoder(cell="lstm", seed=1)]
    batches = list(iterate_members(members, [store, other], rows, batch_size=8))
    assert [len(batch.features[0]) for batch in batches] == [8, 8, 4]
    assert all(torch.equal(ones, -others) for (ones, others), _ in batches)
    found = decode(Ensemble(members), batches, PRECISION, DecodingOptions(beam=2))
    assert [len(batch) for batch in found] == [8, 8, 4]
