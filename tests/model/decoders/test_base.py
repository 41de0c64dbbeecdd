"""The contract of `Decoder`, checked for every decoder and option."""

import itertools

import pytest
import torch

from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder

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
RECURRENT = [*VARIANTS]
VARIANTS += [
    {"cell": "transformer"},
    {"cell": "transformer", "num_layers": 2, "hidden_size": 12},
    {"cell": "transformer", "num_layers": 2, "hidden_size": 192},  # three heads
    {"cell": "transformer", "tie_embeddings": False, "hidden_size": 12},
]
NUM_CELLS = 4


def make_decoder(**options: object) -> Decoder:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "vocab_size": 20, "embed_size": 8, "hidden_size": 8} | options
    return create_decoder(DecoderConfig(**sizes)).eval()


def make_features(decoder: Decoder, num_images: int) -> torch.Tensor:
    """Return (N, 6) vectors, or (N, 4, 6) grids for a decoder with attention."""
    shape = (num_images, NUM_CELLS, 6) if decoder.uses_grid else (num_images, 6)
    return torch.randn(shape)


def each_variant(test, variants=VARIANTS):
    name = lambda options: "-".join(map(str, options.values()))  # noqa: E731
    return pytest.mark.parametrize("options", variants, ids=name)(test)


def each_recurrent_variant(test):
    return each_variant(test, RECURRENT)


def step_through(decoder: Decoder, state, inputs: torch.Tensor) -> torch.Tensor:
    """Return (B, T, V) logits computed by `step`, token by token."""
    logits = []
    for words in inputs.unbind(1):
        scores, following = decoder.step(words, state)
        with torch.no_grad():  # without gradients, rows share the work
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
def test_forward_matches_stepwise_decoding_of_several_rows_per_image(
    options: dict[str, object],
) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (6, 5))
    image_index = torch.arange(3).repeat_interleave(2)
    at_once = decoder.logits(decoder(features, inputs, image_index))
    # As in beam search: all rows of an image share its memory.
    state = decoder.init_state(features).select(torch.arange(3), torch.zeros(3, 2).long())
    torch.testing.assert_close(at_once, step_through(decoder, state, inputs))
    assert all(len(part) == 3 for part in state.memory)


@each_variant
def test_rows_continue_unchanged_when_images_leave(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (6, 3))
    state = decoder.init_state(features).select(torch.arange(3), torch.zeros(3, 2).long())
    whole = step_through(decoder, state, inputs)
    _, state = decoder.step(inputs[:, 0], state)
    state = state.select(torch.tensor([0, 2]), torch.tensor([[1, 1], [1, 0]]))
    kept = [1, 1, 5, 4]  # the second row of image 0 twice, the rows of image 2 swapped
    rest = step_through(decoder, state, inputs[kept, 1:])
    torch.testing.assert_close(rest, whole[kept, 1:])


@each_recurrent_variant
def test_select_copies_the_hidden_state_of_the_parent(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    state = decoder.init_state(make_features(decoder, 3))
    once = state.select(torch.tensor([0, 2]), torch.tensor([[0, 0, 0], [0, 0, 0]]))
    twice = once.select(torch.tensor([0, 1]), torch.tensor([[2, 0], [1, 1]]))
    assert (len(state), len(once), len(twice)) == (3, 6, 4)
    index = slice(None) if twice.hidden_index is None else twice.hidden_index
    for part, whole in zip(twice.hidden, state.hidden, strict=True):
        assert torch.equal(part[:, index], whole[:, [0, 0, 2, 2]])
    if not decoder.uses_grid:  # stored once, and multiplied once
        assert all(part.shape[1] == 2 for state in (once, twice) for part in state.hidden)


@each_variant
def test_image_index_and_lengths_do_not_change_outputs(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (40, 4))
    image_index = torch.tensor([2, 0, 0, 1] * 10)
    lengths = torch.tensor([4] * 3 + [3] * 18 + [2] * 11 + [1] * 8)
    outputs = decoder(features, inputs, image_index, lengths)
    assert outputs.shape == (40, 4, decoder.config.hidden_size)
    for row, (image, length) in enumerate(zip(image_index, lengths, strict=True)):
        alone = decoder(features[image, None], inputs[row : row + 1, :length])
        torch.testing.assert_close(outputs[row : row + 1, :length], alone)


@each_recurrent_variant
def test_state_has_one_row_per_image(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    state = decoder.init_state(make_features(decoder, 3))
    layers, hidden_size = decoder.config.num_layers, decoder.config.hidden_size
    assert len(state) == 3 and bool(state.memory) == decoder.uses_grid
    assert len(state.hidden) == (2 if options["cell"] == "lstm" else 1)
    assert all(part.shape == (layers, 3, hidden_size) for part in state.hidden)


@each_variant
def test_every_output_depends_on_every_grid_cell(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 1).requires_grad_(), torch.randint(0, 20, (1, 3))
    outputs = decoder(features, inputs)
    for position in range(3):
        (gradient,) = torch.autograd.grad(
            outputs[0, position].square().sum(), features, retain_graph=True
        )
        assert (gradient.abs().amax(-1) > 0).all()


@each_variant
def test_every_parameter_has_a_gradient(options: dict[str, object]) -> None:
    decoder = make_decoder(**options)
    features, inputs = make_features(decoder, 3), torch.randint(0, 20, (3, 4))
    decoder.logits(decoder(features, inputs)).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
