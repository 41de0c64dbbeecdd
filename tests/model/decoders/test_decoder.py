import itertools

import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.kernels import dropout as dropout_module
from showtell.model.kernels import recurrence
from showtell.model.kernels.dropout import dropout

VARIANTS = [
    {"cell": cell, "image_as": image_as, **sizes}
    for cell, image_as in itertools.product(
        ("gru", "lstm", "rnn"), ("first-input", "initial-state")
    )
    for sizes in (
        {"num_layers": 1},
        {"num_layers": 2, "hidden_size": 12},
        {"tie_embeddings": False, "hidden_size": 12},
        {"attention": "soft"},
        {"attention": "soft", "num_layers": 2, "hidden_size": 12},
        {"attention": "adaptive"},
        {"attention": "adaptive", "num_layers": 2, "hidden_size": 12},
    )
]
NUM_PLACES = 4


def make_decoder(**options: object) -> Decoder:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "vocab_size": 20, "embed_size": 8, "hidden_size": 8} | options
    return create_decoder(DecoderConfig(**sizes)).eval()


def make_features(decoder: Decoder, num_images: int) -> torch.Tensor:
    """Vectors (N, 6), or grids (N, 4, 6) for a decoder that looks at them."""
    shape = (num_images, NUM_PLACES, 6) if decoder.uses_grid else (num_images, 6)
    return torch.randn(shape)


def each_variant(test):
    name = lambda options: "-".join(map(str, options.values()))  # noqa: E731
    return pytest.mark.parametrize("options", VARIANTS, ids=name)(test)


def step_through(decoder: Decoder, state, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of reading (B, T) word by word, as decoding does."""
    logits = []
    for words in inputs.unbind(1):
        scores, following = decoder.step(words, state)
        with torch.no_grad():  # rows that read the same word do so together
            torch.testing.assert_close(decoder.step(words, state)[0], scores)
        logits.append(scores)
        state = following
    return torch.stack(logits, 1)


@each_variant
def test_forward_matches_stepwise_decoding(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (3, 5))
    at_once = decoder.logits(decoder(features, inputs))
    one_by_one = step_through(decoder, decoder.init_state(features), inputs)
    torch.testing.assert_close(at_once, one_by_one)


@each_variant
def test_forward_matches_stepwise_decoding_of_several_rows_an_image(
    options: dict[str, object],
) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (6, 5))
    owners = torch.arange(3).repeat_interleave(2)
    at_once = decoder.logits(decoder(features, inputs, owners))
    # As a search does it: all rows of an image share its memory.
    state = decoder.init_state(features).select(torch.arange(3), torch.zeros(3, 2).long())
    torch.testing.assert_close(at_once, step_through(decoder, state, inputs))
    assert all(len(part) == 3 for part in state.memory)


@each_variant
def test_rows_go_on_as_before_when_images_leave(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (6, 3))
    state = decoder.init_state(features).select(torch.arange(3), torch.zeros(3, 2).long())
    whole = step_through(decoder, state, inputs)
    _, state = decoder.step(inputs[:, 0], state)
    state = state.select(torch.tensor([0, 2]), torch.tensor([[1, 1], [1, 0]]))
    kept = [1, 1, 5, 4]  # the second row of image 0 twice, both of image 2 exchanged
    rest = step_through(decoder, state, inputs[kept, 1:])
    torch.testing.assert_close(rest, whole[kept, 1:])


@each_variant
def test_beams_that_go_on_from_one_beam_are_those_that_it_had(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    state = decoder.init_state(make_features(decoder, 3))
    once = state.select(torch.tensor([0, 2]), torch.tensor([[0, 0, 0], [0, 0, 0]]))
    twice = once.select(torch.tensor([0, 1]), torch.tensor([[2, 0], [1, 1]]))
    assert (len(state), len(once), len(twice)) == (3, 6, 4)
    index = slice(None) if twice.hidden_index is None else twice.hidden_index
    for part, whole in zip(twice.hidden, state.hidden, strict=True):
        assert torch.equal(part[:, index], whole[:, [0, 0, 2, 2]])
    if not decoder.uses_grid:  # kept, and multiplied, once
        assert all(part.shape[1] == 2 for state in (once, twice) for part in state.hidden)


@each_variant
def test_owners_and_lengths_change_nothing_before_the_ends(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (40, 4))
    owners = torch.tensor([2, 0, 0, 1] * 10)
    lengths = torch.tensor([4] * 3 + [3] * 18 + [2] * 11 + [1] * 8)
    outputs = decoder(features, inputs, owners, lengths)
    assert outputs.shape == (40, 4, decoder.config.hidden_size)
    for row, (owner, length) in enumerate(zip(owners, lengths, strict=True)):
        alone = decoder(features[owner, None], inputs[row : row + 1, :length])
        torch.testing.assert_close(outputs[row : row + 1, :length], alone)


@each_variant
def test_state_has_a_row_for_each_image(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    state = decoder.init_state(make_features(decoder, 3))
    layers, hidden_size = decoder.config.num_layers, decoder.config.hidden_size
    assert len(state) == 3 and bool(state.memory) == decoder.uses_grid
    assert len(state.hidden) == (2 if options["cell"] == "lstm" else 1)
    assert all(part.shape == (layers, 3, hidden_size) for part in state.hidden)


@each_variant
def test_every_word_depends_on_every_place_of_the_image(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 1).requires_grad_(), torch.randint(0, 20, (1, 3))
    outputs = decoder(features, inputs)
    for position in range(3):
        (gradient,) = torch.autograd.grad(
            outputs[0, position].square().sum(), features, retain_graph=True
        )
        assert (gradient.abs().amax(-1) > 0).all()


@each_variant
def test_no_parameter_is_idle(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (3, 4))
    decoder.logits(decoder(features, inputs)).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("attention", ["soft", "adaptive"])
def test_attention_enters_as_in_the_papers(attention: str) -> None:
    decoder = make_decoder(cell="lstm", attention=attention).double()
    grid, word = torch.randn(NUM_PLACES, 6).double(), torch.tensor([4])
    state = decoder.init_state(grid[None])
    h, c = (part[0] for part in state.hidden)  # (1, H)
    unit = lambda x: 20 * x / x.norm()  # noqa: E731
    places = torch.stack([decoder.grid_proj(unit(place)).clamp(min=0) for place in grid])
    look, words = decoder.attention, decoder.embedding(word)

    def score(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return look.score(torch.tanh(key + look.query(query)))

    def advance(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, (h_next, c_next) = decoder.cell(inputs[None], (h[None], c[None]))
        return h_next[0], c_next[0]

    if attention == "soft":  # Xu et al. 2015, section 3.1: looks with h before the word
        weights = torch.cat([score(h, look.key(place)) for place in places], 1).softmax(1)
        seen = weights @ places
        output, _ = advance(words + decoder.context_gate(h).sigmoid() * seen)
    else:  # Lu et al. 2017, sections 2.2 and 2.3: looks with h behind the word
        inputs = words + decoder.global_proj(unit(grid.mean(0)))
        output, memory = advance(inputs)
        gate = (look.gate_input(inputs) + look.gate_hidden(h)).sigmoid()
        sentinel = gate * memory.tanh()
        keys = [*map(look.key, places), look.sentinel_key(sentinel)]
        weights = torch.cat([score(output, key) for key in keys], 1).softmax(1)
        seen = weights @ torch.cat([places, look.sentinel_value(sentinel)])
    expected = decoder.logits(output + decoder.context_proj(seen))
    torch.testing.assert_close(decoder.step(word, state)[0], expected)


def test_places_are_told_apart_and_their_order_is_not() -> None:
    for attention in ("soft", "adaptive"):
        decoder = make_decoder(cell="gru", attention=attention)
        features, inputs = make_features(decoder, 2), torch.randint(0, 20, (2, 3))
        outputs = decoder(features, inputs)
        torch.testing.assert_close(decoder(features.flip(1), inputs), outputs)
        # The same mean, made of other places.
        pooled = features.mean(1, keepdim=True).expand_as(features)
        assert (decoder(pooled, inputs) - outputs).abs().amax(-1).min() > 1e-4


def test_grids_are_centered_on_the_mean_of_their_places() -> None:
    decoder = make_decoder(cell="gru", attention="soft")
    grids = torch.rand(30, NUM_PLACES, 6)
    decoder.center_features(grids.half())
    places = [place / place.norm() for grid in grids.half().float() for place in grid]
    pooled = [grid.mean(0) / grid.mean(0).norm() for grid in grids.half().float()]
    torch.testing.assert_close(decoder.grid_mean, torch.stack(places).mean(0))
    torch.testing.assert_close(decoder.feature_mean, torch.stack(pooled).mean(0))


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


def test_centering_moves_the_origin_and_nothing_else() -> None:
    plain, centered = make_decoder(cell="gru").double(), make_decoder(cell="gru").double()
    features, inputs = torch.rand(30, 6).double(), torch.randint(0, 20, (30, 5))
    centered.center_features(features)
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    with torch.no_grad():
        centered.image_proj.bias += 20 * centered.image_proj.weight @ mean
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
