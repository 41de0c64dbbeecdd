import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.kernels import dropout as dropout_module
from showtell.model.kernels import recurrence
from showtell.model.kernels.dropout import dropout


def make_decoder(**options: object) -> Decoder:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "vocab_size": 20, "embed_size": 8, "hidden_size": 8} | options
    return create_decoder(DecoderConfig(**sizes)).eval()


def test_gru_equals_the_equations_of_cho_et_al() -> None:
    decoder = make_decoder(cell="gru").double()
    features, word = torch.randn(1, 6).double(), torch.tensor([4])
    cell = decoder.cell
    w_reset, w_update, w_new = cell.weight_ih_l0.split(8)
    u_reset, u_update, u_new = cell.weight_hh_l0.split(8)

    def advance(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        # Biases are zero in the beginning and left out here.
        reset = torch.sigmoid(w_reset @ x + u_reset @ h)
        update = torch.sigmoid(w_update @ x + u_update @ h)
        new = torch.tanh(w_new @ x + reset * (u_new @ h))
        return (1 - update) * new + update * h

    image = (
        decoder.image_proj.weight @ (20 * features[0] / features[0].norm())
        + decoder.image_proj.bias
    )
    hidden = advance(image, torch.zeros(8).double())
    hidden = advance(decoder.embedding.weight[4], hidden)
    expected = decoder.embedding.weight @ hidden + decoder.output_bias
    logits, _ = decoder.step(word, decoder.init_state(features))
    torch.testing.assert_close(logits[0], expected)


def test_scale_of_features_does_not_matter() -> None:
    decoder = make_decoder(cell="gru")
    features, inputs = torch.randn(3, 6), torch.randint(0, 20, (3, 5))
    torch.testing.assert_close(decoder(features, inputs), decoder(1000 * features, inputs))


def test_center_features_only_moves_the_origin() -> None:
    plain, centered = make_decoder(cell="gru").double(), make_decoder(cell="gru").double()
    features, inputs = torch.rand(30, 6).double(), torch.randint(0, 20, (30, 5))
    centered.center_features(features.split(7))
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    with torch.no_grad():
        centered.image_proj.bias += 20 * centered.image_proj.weight @ mean
    # The mean is computed in float32.
    torch.testing.assert_close(
        centered(features, inputs), plain(features, inputs), rtol=1e-5, atol=1e-6
    )
    assert not torch.equal(centered.feature_mean, plain.feature_mean)


@pytest.mark.parametrize("image_as", ["first-input", "initial-state"])
def test_outputs_depend_on_the_image_and_earlier_words_only(image_as: str) -> None:
    decoder = make_decoder(cell="gru", image_as=image_as)
    features, inputs = torch.randn(1, 6), torch.randint(0, 20, (1, 5))
    outputs = decoder(features, inputs)
    other_image = decoder(torch.randn(1, 6), inputs)
    assert (outputs - other_image).abs().amax(2).min() > 0
    changed = inputs.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 20
    difference = (outputs - decoder(features, changed)).abs().amax(2)[0]
    assert (difference[:3] == 0).all() and (difference[3:] > 0).all()


def test_tied_decoder_has_one_word_matrix() -> None:
    tied, untied = make_decoder(cell="gru"), make_decoder(cell="gru", tie_embeddings=False)
    count = lambda decoder: sum(p.numel() for p in decoder.parameters())  # noqa: E731
    assert count(untied) - count(tied) == 20 * 8


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_dropout_acts_between_layers_too(cell: str, monkeypatch) -> None:
    decoder = make_decoder(cell=cell, num_layers=2, hidden_size=12, dropout=0.5).train()
    shapes: list[tuple[int, ...]] = []

    def spy(values: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        assert p == 0.5 and training
        shapes.append(tuple(values.shape))
        return dropout(values, p, training)

    for module in (dropout_module, recurrence):
        monkeypatch.setattr(module, "dropout", spy)
    lengths = torch.tensor([5, 4, 2])
    decoder(torch.randn(3, 6), torch.randint(0, 20, (3, 5)), lengths=lengths)
    words, image, outputs = (3, 5, 8), (3, 8), (3, 5, 12)
    between_layers = (11 + 3, 12)  # the image is read as one more word
    assert shapes == [words, image, between_layers, outputs]


def test_dropout_acts_in_training_only() -> None:
    decoder = make_decoder(cell="gru", dropout=0.5)
    features, inputs = torch.randn(2, 6), torch.randint(0, 20, (2, 5))
    assert torch.equal(decoder(features, inputs), decoder(features, inputs))
    decoder.train()
    assert not torch.equal(decoder(features, inputs), decoder(features, inputs))
