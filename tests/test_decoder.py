import itertools

import pytest
import torch

from showtell.model.decoder import Decoder, DecoderConfig

VARIANTS = [
    {"cell": cell, "image_as": image_as, **sizes}
    for cell, image_as in itertools.product(
        ("gru", "lstm", "rnn"), ("first-input", "initial-state")
    )
    for sizes in (
        {"num_layers": 1},
        {"num_layers": 2, "hidden_size": 12},
        {"tie_embeddings": False, "hidden_size": 12},
    )
]


def make_decoder(**options: object) -> Decoder:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "vocab_size": 20, "embed_size": 8, "hidden_size": 8} | options
    return Decoder(DecoderConfig(**sizes)).eval()


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_forward_matches_stepwise_decoding(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = torch.randn(3, 6), torch.randint(0, 20, (3, 5))
    at_once = decoder.logits(decoder(features, inputs))
    state = decoder.init_state(features)
    for position in range(inputs.shape[1]):
        logits, state = decoder.step(inputs[:, position], state)
        torch.testing.assert_close(logits, at_once[:, position])


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_state_has_a_row_for_each_image(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    state = decoder.init_state(torch.randn(3, 6))
    layers, hidden_size = decoder.config.num_layers, decoder.config.hidden_size
    assert len(state) == 3 and state.memory == ()
    assert len(state.hidden) == (2 if options["cell"] == "lstm" else 1)
    assert all(part.shape == (layers, 3, hidden_size) for part in state.hidden)


def test_gru_equals_the_equations_of_cho_et_al() -> None:
    decoder = make_decoder(cell="gru").double()
    features, word = torch.randn(1, 6).double(), torch.tensor([4])
    cell = decoder.cell
    w_reset, w_update, w_new = cell.weight_ih_l0.split(8)
    u_reset, u_update, u_new = cell.weight_hh_l0.split(8)

    def advance(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        # The biases are zero at the start, so that they need no place here.
        reset = torch.sigmoid(w_reset @ x + u_reset @ h)
        update = torch.sigmoid(w_update @ x + u_update @ h)
        new = torch.tanh(w_new @ x + reset * (u_new @ h))
        return (1 - update) * new + update * h

    image = decoder.image.weight @ (20 * features[0] / features[0].norm()) + decoder.image.bias
    hidden = advance(image, torch.zeros(8).double())
    hidden = advance(decoder.embedding.weight[4], hidden)
    expected = decoder.embedding.weight @ hidden + decoder.output_bias
    logits, _ = decoder.step(word, decoder.init_state(features))
    torch.testing.assert_close(logits[0], expected)


def test_scale_of_features_does_not_matter() -> None:
    decoder = make_decoder(cell="gru")
    features, inputs = torch.randn(3, 6), torch.randint(0, 20, (3, 5))
    torch.testing.assert_close(decoder(features, inputs), decoder(1000 * features, inputs))


def test_centering_moves_the_origin_and_nothing_else() -> None:
    plain, centered = make_decoder(cell="gru").double(), make_decoder(cell="gru").double()
    features, inputs = torch.rand(30, 6).double(), torch.randint(0, 20, (30, 5))
    centered.center_features(features)
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    with torch.no_grad():
        centered.image.bias += 20 * centered.image.weight @ mean
    # The mean is taken in float32, like the features that it is taken of.
    torch.testing.assert_close(
        centered(features, inputs), plain(features, inputs), rtol=1e-5, atol=1e-6
    )
    assert not torch.equal(centered.feature_mean, plain.feature_mean)


@pytest.mark.parametrize("image_as", ["first-input", "initial-state"])
def test_every_output_depends_on_the_image_and_no_output_on_later_words(image_as: str) -> None:
    decoder = make_decoder(cell="gru", image_as=image_as)
    features, inputs = torch.randn(1, 6), torch.randint(0, 20, (1, 5))
    outputs = decoder(features, inputs)
    other_image = decoder(torch.randn(1, 6), inputs)
    assert (outputs - other_image).abs().amax(2).min() > 0
    changed = inputs.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 20
    difference = (outputs - decoder(features, changed)).abs().amax(2)[0]
    assert (difference[:3] == 0).all() and (difference[3:] > 0).all()


def test_tied_decoder_has_one_matrix_for_words() -> None:
    tied, untied = make_decoder(cell="gru"), make_decoder(cell="gru", tie_embeddings=False)
    count = lambda decoder: sum(p.numel() for p in decoder.parameters())  # noqa: E731
    assert count(untied) - count(tied) == 20 * 8


def test_dropout_acts_in_training_only() -> None:
    decoder = make_decoder(cell="gru", dropout=0.5)
    features, inputs = torch.randn(2, 6), torch.randint(0, 20, (2, 5))
    assert torch.equal(decoder(features, inputs), decoder(features, inputs))
    decoder.train()
    assert not torch.equal(decoder(features, inputs), decoder(features, inputs))
