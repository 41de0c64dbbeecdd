from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.registry import create_decoder
from showtell.model.training.remap_words import find_word_tensors, remap_words
from showtell.pipeline.text.vocab import SPECIALS, Vocab

OLD = Vocab((*SPECIALS, "a", "dog", "runs", "on", "grass", "sand", "red", "ball"))
NEW = Vocab((*SPECIALS, "sand", "zebra", "a", "on", "dog"))
DECODERS = (
    {},
    {"cell": "lstm", "tie_embeddings": False, "num_layers": 2},
    {"attention": "soft"},
    {"attention": "adaptive", "embed_size": 6},
    {"cell": "transformer", "tie_embeddings": False},
)

MakeDecoder = Callable[..., Decoder]


def remapped(decoder: Decoder, old: Vocab, new: Vocab) -> tuple[Decoder, int]:
    """The decoder with the vocabulary `new`, and the number of words it knows."""
    moved = create_decoder(replace(decoder.config, vocab_size=len(new))).double().eval()
    weights, num_known = remap_words(decoder, old, new)
    moved.load_state_dict(weights)
    return moved, num_known


@pytest.mark.parametrize("options", DECODERS, ids=str)
def test_words_in_both_vocabularies_keep_their_scores(
    random_decoder: MakeDecoder, options: dict[str, object]
) -> None:
    decoder = random_decoder(**options)
    moved, num_known = remapped(decoder, OLD, NEW)
    assert num_known == 4
    texts = ["a", "dog", "on", "sand"]
    features = torch.randn(3, 5, 6) if decoder.uses_grid else torch.randn(3, 6)
    scores = []
    for model, vocab in ((decoder, OLD), (moved, NEW)):
        captions = torch.tensor([[1, *vocab.encode(texts)]] * 3)
        logits = model.logits(model(features, captions))
        scores.append(logits[..., [*range(len(SPECIALS)), *vocab.encode(texts)]])
    torch.testing.assert_close(scores[0], scores[1])


def test_new_words_start_like_a_typical_word(random_decoder: MakeDecoder) -> None:
    old = Vocab((*SPECIALS, *(f"old{i}" for i in range(400))))
    new = Vocab((*SPECIALS, *(f"new{i}" for i in range(3000))))
    decoder = random_decoder(vocab_size=len(old), tie_embeddings=False)
    with torch.no_grad():
        for name in find_word_tensors(decoder.config):
            decoder.get_parameter(name)[4:] *= 3
            decoder.get_parameter(name)[4:] += 7
    weights, num_known = remap_words(decoder, old, new)
    assert num_known == 0
    for name in find_word_tensors(decoder.config):
        given, drawn = decoder.get_parameter(name)[4:], weights[name][4:]
        torch.testing.assert_close(drawn.mean(0), given.mean(0), rtol=0, atol=0.3)
        torch.testing.assert_close(drawn.std(0), given.std(0), rtol=0.15, atol=0)
        assert torch.equal(weights[name][:4], decoder.get_parameter(name)[:4])


def test_all_tensors_with_a_row_per_word_are_found(random_decoder: MakeDecoder) -> None:
    tied, untied = (random_decoder(tie_embeddings=tied).config for tied in (True, False))
    assert find_word_tensors(tied) == ["output_bias", "embedding.weight"]
    assert find_word_tensors(untied) == ["output_bias", "output_weight", "embedding.weight"]


def test_a_word_and_a_piece_with_the_same_text_are_the_same(random_decoder: MakeDecoder) -> None:
    pieces = Vocab((*SPECIALS, " dog", "dog", " a", "s"), tokenizer="{}")
    decoder = random_decoder(vocab_size=len(OLD))
    weights, num_known = remap_words(decoder, OLD, pieces)
    assert num_known == 2
    trained, moved = decoder.state_dict()["embedding.weight"], weights["embedding.weight"]
    assert torch.equal(moved[4], trained[OLD.ids["dog"]])
    assert torch.equal(moved[6], trained[OLD.ids["a"]])
    assert not (moved[5] == trained).all(1).any()


@pytest.mark.parametrize("tokenizer", [None, "{}"])
def test_text_of_a_special_token_is_an_ordinary_word(random_decoder, tokenizer) -> None:
    words = ("<pad>", "a") if tokenizer is None else (" <pad>", " a")
    with_pad, without = Vocab((*SPECIALS, *words), tokenizer=tokenizer), Vocab((*SPECIALS, "a"))
    for old, new, rows in ((without, with_pad, {5: 4}), (with_pad, with_pad, {4: 4, 5: 5})):
        decoder = random_decoder(vocab_size=len(old))
        weights, num_known = remap_words(decoder, old, new)
        trained, moved = decoder.state_dict()["embedding.weight"], weights["embedding.weight"]
        assert num_known == len(rows)
        assert torch.equal(moved[:4], trained[:4])
        assert all(torch.equal(moved[i], trained[rows[i]]) for i in rows)
        assert 4 in rows or not (moved[4] == trained[:4]).all(1).any()
