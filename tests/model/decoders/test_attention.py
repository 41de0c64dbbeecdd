import pytest
import torch
from torch import Tensor

from showtell.model.decoders.adaptive_attention import SentinelAttention
from showtell.model.decoders.attention import AdditiveAttention
from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder

NUM_IMAGES, NUM_CELLS, NUM_QUERIES, VALUE_SIZE, QUERY_SIZE = 3, 5, 2, 6, 7


def make(kind: type[AdditiveAttention]) -> tuple[AdditiveAttention, Tensor, Tensor, Tensor]:
    """Return an attention layer, values (N, P, E), queries and sentinels (N, Q, H)."""
    torch.manual_seed(0)
    attention = kind(VALUE_SIZE, QUERY_SIZE, 4).double()
    values = torch.randn(NUM_IMAGES, NUM_CELLS, VALUE_SIZE).double()
    queries, sentinel = torch.randn(2, NUM_IMAGES, NUM_QUERIES, QUERY_SIZE).double()
    return attention, values, queries, sentinel


def attend(attention: AdditiveAttention, values: Tensor, queries: Tensor, sentinel: Tensor):
    memory = attention.project_keys(values)
    if isinstance(attention, SentinelAttention):
        return attention.attend(queries, sentinel, memory)
    return attention(queries, memory)


@pytest.mark.parametrize("kind", [AdditiveAttention, SentinelAttention])
def test_attention_equals_a_plain_loop(kind) -> None:
    attention, values, queries, sentinel = make(kind)
    contexts, all_weights = attend(attention, values, queries, sentinel)
    for image in range(NUM_IMAGES):
        for q, query in enumerate(queries[image]):
            query_key = attention.query.weight @ query
            attended = list(values[image])
            keys = [attention.key(value) for value in attended]
            if kind is SentinelAttention:
                own_sentinel = sentinel[image, q]
                keys.append(attention.sentinel_key(own_sentinel))
                attended.append(attention.sentinel_value(own_sentinel))
            scores = [attention.score.weight[0] @ torch.tanh(key + query_key) for key in keys]
            total = sum(score.exp() for score in scores)
            weights = [score.exp() / total for score in scores]
            context = sum(w * value for w, value in zip(weights, attended, strict=True))
            torch.testing.assert_close(all_weights[image, q], torch.stack(weights))
            torch.testing.assert_close(contexts[image, q], context)


@pytest.mark.parametrize("kind", [AdditiveAttention, SentinelAttention])
def test_attention_weights_sum_to_one_and_use_every_value(kind) -> None:
    attention, values, queries, sentinel = make(kind)
    values.requires_grad_()
    sentinel.requires_grad_()
    contexts, weights = attend(attention, values, queries, sentinel)
    num_weights = NUM_CELLS + (kind is SentinelAttention)
    assert weights.shape == (NUM_IMAGES, NUM_QUERIES, num_weights)
    torch.testing.assert_close(weights.sum(-1), torch.ones(NUM_IMAGES, NUM_QUERIES).double())
    assert (weights > 0).all()
    contexts.square().sum().backward()
    assert (values.grad.abs().amax(-1) > 0).all()  # every cell of every image
    assert kind is AdditiveAttention or (sentinel.grad.abs().amax(-1) > 0).all()


def test_sentinel_is_the_gated_cell_memory() -> None:
    attention, _, previous, cell_memory = make(SentinelAttention)
    inputs = torch.randn(NUM_IMAGES, NUM_QUERIES, VALUE_SIZE).double()
    found = attention.sentinel(inputs, previous, cell_memory)
    for at in [(0, 0), (2, 1)]:
        gate = attention.gate_input.weight @ inputs[at] + attention.gate_input.bias
        gate = gate + attention.gate_hidden.weight @ previous[at]
        torch.testing.assert_close(found[at], cell_memory[at] / (1 + (-gate).exp()))


def make_decoder(attention: str, cell: str = "gru") -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        cell=cell,
        attention=attention,
        feature_dim=6,
        vocab_size=20,
        embed_size=8,
        hidden_size=8,
    )
    return create_decoder(config).eval()


@pytest.mark.parametrize("name", ["soft", "adaptive"])
def test_attention_equals_the_equations_of_the_papers(name: str) -> None:
    decoder = make_decoder(name, cell="lstm").double()
    grid, word = torch.randn(NUM_CELLS, 6).double(), torch.tensor([4])
    state = decoder.init_state(grid[None])
    h, c = (part[0] for part in state.hidden)  # (1, H)
    unit = lambda x: 20 * x / x.norm()  # noqa: E731
    cells = torch.stack([decoder.grid_proj(unit(cell)).clamp(min=0) for cell in grid])
    attention, words = decoder.attention, decoder.embedding(word)

    def score(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return attention.score(torch.tanh(key + attention.query(query)))

    def advance(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, (h_next, c_next) = decoder.cell(inputs[None], (h[None], c[None]))
        return h_next[0], c_next[0]

    if name == "soft":  # Xu et al. 2015, section 3.1: attends with h before the word
        weights = torch.cat([score(h, attention.key(cell)) for cell in cells], 1).softmax(1)
        context = weights @ cells
        output, _ = advance(words + decoder.context_gate(h).sigmoid() * context)
    else:  # Lu et al. 2017, sections 2.2 and 2.3: attends with h after the word
        inputs = words + decoder.global_proj(unit(grid.mean(0)))
        output, memory = advance(inputs)
        gate = (attention.gate_input(inputs) + attention.gate_hidden(h)).sigmoid()
        sentinel = gate * memory.tanh()
        keys = [*map(attention.key, cells), attention.sentinel_key(sentinel)]
        weights = torch.cat([score(output, key) for key in keys], 1).softmax(1)
        context = weights @ torch.cat([cells, attention.sentinel_value(sentinel)])
    expected = decoder.logits(output + decoder.context_proj(context))
    torch.testing.assert_close(decoder.step(word, state)[0], expected)


@pytest.mark.parametrize("name", ["soft", "adaptive"])
def test_cells_are_told_apart_but_their_order_does_not_matter(name: str) -> None:
    decoder = make_decoder(name)
    features, inputs = torch.randn(2, NUM_CELLS, 6), torch.randint(0, 20, (2, 3))
    outputs = decoder(features, inputs)
    torch.testing.assert_close(decoder(features.flip(1), inputs), outputs)
    # Another grid with the same mean.
    pooled = features.mean(1, keepdim=True).expand_as(features)
    assert (decoder(pooled, inputs) - outputs).abs().amax(-1).min() > 1e-4


def test_grids_are_centred_on_the_mean_of_their_cells() -> None:
    decoder = make_decoder("soft")
    grids = torch.rand(30, NUM_CELLS, 6)
    decoder.center_features([grids.half()])
    cells = [cell / cell.norm() for grid in grids.half().float() for cell in grid]
    pooled = [grid.mean(0) / grid.mean(0).norm() for grid in grids.half().float()]
    torch.testing.assert_close(decoder.grid_mean, torch.stack(cells).mean(0))
    torch.testing.assert_close(decoder.feature_mean, torch.stack(pooled).mean(0))
