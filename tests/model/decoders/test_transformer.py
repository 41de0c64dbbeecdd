"""The Transformer against its equations, and its state."""

import math

import pytest
import torch
from torch import Tensor

from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.inputs import Words
from showtell.model.decoders.registry import create_decoder
from showtell.model.decoders.transformer import Transformer

NUM_CELLS, EMBED_SIZE, WIDTH, NUM_HEADS = 5, 6, 128, 2


def make_decoder(**options: object) -> Transformer:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "vocab_size": 20, "embed_size": EMBED_SIZE, "hidden_size": WIDTH}
    config = DecoderConfig(**{"cell": "transformer", "num_layers": 2} | sizes | options)
    decoder = create_decoder(config).double().eval()
    assert isinstance(decoder, Transformer)
    for name, parameter in decoder.named_parameters():  # norms and biases start at 1 and 0
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5)
    decoder.grid_mean.normal_()
    return decoder


def normalised(row: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = row - row.mean()
    return norm.weight * centred / (centred.square().mean() + norm.eps).sqrt() + norm.bias


def averaged(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Attend with each head: the (H,) averages, and the mean weights over the heads."""
    parts, all_weights, size = [], [], WIDTH // NUM_HEADS
    for head in range(NUM_HEADS):
        own = slice(head * size, (head + 1) * size)
        scores = [float(query[own] @ key[own]) / math.sqrt(size) for key in keys]
        total = sum(map(math.exp, scores))
        weights = [math.exp(score) / total for score in scores]
        parts.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)))
        all_weights.append(torch.tensor(weights))
    return torch.cat(parts), torch.stack(all_weights).double().mean(0)


def read_plainly(
    decoder: Transformer, grid: Tensor, caption: list[int], word_cell: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Read one caption, one token and one head at a time: outputs (H,) and attention per token."""
    cells = [decoder.grid_proj(20 * (c / c.norm() - decoder.grid_mean)).clamp(min=0) for c in grid]
    cells += [] if word_cell is None else [word_cell]
    cells = [normalised(cell, decoder.memory_norm) for cell in cells]
    rows = []
    for position, token in enumerate(caption):
        vector = decoder.embedding.weight[token] * math.sqrt(EMBED_SIZE)
        row = decoder.input_proj.weight @ vector
        for pair in range(WIDTH // 2):
            angle = position / 10_000 ** (2 * pair / WIDTH)
            row[2 * pair] += math.sin(angle)
            row[2 * pair + 1] += math.cos(angle)
        rows.append(row)
    attention: list[Tensor] = []
    for layer in decoder.layers:
        attention = []
        projected = [layer.self_input.weight @ normalised(row, layer.self_norm) for row in rows]
        queries, keys, values = zip(*(p.split(WIDTH) for p in projected), strict=True)
        image = [(layer.image_memory.weight @ cell).split(WIDTH) for cell in cells]
        image_keys, image_values = map(list, zip(*image, strict=True))
        for t, row in enumerate(rows):
            found, _ = averaged(queries[t], keys[: t + 1], values[: t + 1])
            row = row + layer.self_output.weight @ found + layer.self_output.bias
            query = layer.image_query.weight @ normalised(row, layer.image_norm)
            found, weights = averaged(query, image_keys, image_values)
            attention.append(weights[:NUM_CELLS])
            row = row + layer.image_output.weight @ found + layer.image_output.bias
            hidden = layer.forward_input(normalised(row, layer.forward_norm)).clamp(min=0)
            rows[t] = row + layer.forward_output(hidden)
    return [normalised(row, decoder.output_norm) for row in rows], attention


@torch.no_grad()
def test_transformer_equals_a_plain_loop() -> None:
    decoder, grids = make_decoder(), torch.randn(2, NUM_CELLS, 6).double()
    captions = torch.tensor([[1, 5, 9, 4], [1, 7, 7, 6]])
    at_once, state = decoder(grids, captions), decoder.init_state(grids)
    for t, tokens in enumerate(captions.unbind(1)):
        logits, state = decoder.step(tokens, state)
        for image in range(2):
            outputs, attention = read_plainly(decoder, grids[image], captions[image].tolist())
            torch.testing.assert_close(at_once[image, t], outputs[t], rtol=1e-6, atol=1e-6)
            expected = decoder.logits(outputs[t])
            torch.testing.assert_close(logits[image], expected, rtol=1e-6, atol=1e-6)
            assert state.attention is not None
            torch.testing.assert_close(state.attention[image], attention[t], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_words_of_similar_images_are_one_more_cell_and_added_to_outputs() -> None:
    decoder, grids = make_decoder(neighbours=3), torch.randn(1, NUM_CELLS, 6).double()
    words = Words(torch.tensor([[4, 8]]), torch.tensor([[0.5, 0.25]]))
    assert decoder.words is not None
    summed = 0.5 * decoder.embedding.weight[4] + 0.25 * decoder.embedding.weight[8]
    cell, added = decoder.words.image_proj(summed), decoder.words.output_proj(summed)
    for given, word_cell, word_output in ((words, cell, added), (None, 0 * cell, 0 * added)):
        outputs, attention = read_plainly(decoder, grids[0], [1, 5, 9], word_cell)
        found = decoder(grids, torch.tensor([[1, 5, 9]]), words=given)[0]
        torch.testing.assert_close(found, torch.stack(outputs) + word_output, rtol=1e-6, atol=1e-6)
        _, state = decoder.step(torch.tensor([1]), decoder.init_state(grids, given))
        assert state.attention is not None and state.attention.shape == (1, NUM_CELLS)
        torch.testing.assert_close(state.attention[0], attention[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_long_captions_are_read_in_one_cache_that_grows() -> None:
    decoder, grid = make_decoder(), torch.randn(1, NUM_CELLS, 6).double()
    caption = torch.randint(4, 20, (1, 70))
    expected, state = decoder.logits(decoder(grid, caption)), decoder.init_state(grid)
    buffers = set()
    for t, token in enumerate(caption.unbind(1)):
        logits, state = decoder.step(token, state)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-6, atol=1e-6)
        buffers.add(state.caches[0].buffer.data_ptr())
    assert len(buffers) <= 10


@torch.no_grad()
def test_select_copies_neither_the_cache_nor_the_memory_while_images_stay() -> None:
    decoder, grids = make_decoder(), torch.randn(3, NUM_CELLS, 6).double()
    state = decoder.init_state(grids)
    tokens, beams = torch.ones(3, dtype=torch.long), torch.tensor([[0, 0], [1, 0], [1, 1]])
    _, state = decoder.step(tokens, state)
    state = state.select(torch.arange(3), torch.zeros_like(beams))
    _, state = decoder.step(tokens.repeat_interleave(2), state)
    following = state.select(torch.arange(3), beams)
    assert all(one is other for one, other in zip(state.caches, following.caches, strict=True))
    assert all(one is other for one, other in zip(state.memory, following.memory, strict=True))
    pointer = following.caches[0].buffer.data_ptr()
    _, later = decoder.step(tokens.repeat_interleave(2), following)
    assert later.caches[0].buffer.data_ptr() == pointer  # appended in place
    fewer = following.select(torch.tensor([0, 2]), beams[[0, 2]])
    assert len(fewer) == 4 and all(len(part) == 2 for part in fewer.memory)


@torch.no_grad()
def test_states_that_continue_the_same_state_do_not_disturb_each_other() -> None:
    decoder, grids = make_decoder(), torch.randn(2, NUM_CELLS, 6).double()
    captions = torch.tensor([[1, 5, 9, 4], [1, 7, 7, 6]])
    others = torch.tensor([[1, 5, 3, 3], [1, 7, 8, 9]])  # the same first tokens
    states = [decoder.init_state(grids)] * 2
    for t in range(4):
        same = states[0] if t < 2 else None
        for i, tokens in enumerate((captions, others)):
            logits, states[i] = decoder.step(tokens[:, t], same or states[i])
            expected = decoder.logits(decoder(grids, tokens[:, : t + 1]))[:, -1]
            torch.testing.assert_close(logits, expected)


@torch.no_grad()
def test_repeat_gives_each_caption_its_image() -> None:
    decoder, grids = make_decoder(), torch.randn(3, NUM_CELLS, 6).double()
    image_index, captions = torch.tensor([2, 0, 0, 1, 2]), torch.randint(4, 20, (5, 3))
    expected = decoder.logits(decoder(grids, captions, image_index))
    state = decoder.init_state(grids).repeat(image_index)
    assert len(state) == 5
    for t, tokens in enumerate(captions.unbind(1)):
        logits, state = decoder.step(tokens, state)
        torch.testing.assert_close(logits, expected[:, t])


def test_gradients_of_step_equal_those_of_forward() -> None:
    decoder, grids = make_decoder(), torch.randn(2, NUM_CELLS, 6).double()
    captions = torch.randint(4, 20, (2, 4))
    decoder.logits(decoder(grids, captions)).square().sum().backward()
    expected = [parameter.grad for parameter in decoder.parameters()]
    decoder.zero_grad()
    state, total = decoder.init_state(grids), torch.zeros(())
    for tokens in captions.unbind(1):
        logits, state = decoder.step(tokens, state)
        total = total + logits.square().sum()
    total.backward()
    for parameter, grad in zip(decoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_grids_of_an_image_are_projected_once_for_all_its_captions(monkeypatch) -> None:
    decoder, grids = make_decoder(), torch.randn(2, NUM_CELLS, 6).double()
    sizes = []
    for layer in (decoder.grid_proj, *(layer.image_memory for layer in decoder.layers)):
        layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
    decoder(grids, torch.randint(4, 20, (10, 4)), torch.arange(2).repeat(5))
    assert sizes == [2 * NUM_CELLS * WIDTH, *[2 * NUM_CELLS * 2 * WIDTH] * 2]


@pytest.mark.parametrize(("width", "heads"), [(12, 1), (64, 1), (512, 8)])
def test_heads_are_64_wide(width: int, heads: int) -> None:
    assert make_decoder(hidden_size=width, num_layers=1).num_heads == heads
