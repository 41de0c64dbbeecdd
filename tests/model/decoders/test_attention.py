import pytest
import torch
from torch import Tensor

from showtell.model.decoders.adaptive_attention import SentinelAttention
from showtell.model.decoders.attention import AdditiveAttention

NUM_IMAGES, NUM_PLACES, NUM_QUERIES, VALUE_SIZE, QUERY_SIZE = 3, 5, 2, 6, 7


def make(kind: type[AdditiveAttention]) -> tuple[AdditiveAttention, Tensor, Tensor, Tensor]:
    """AdditiveAttention with values (N, R, E), queries and sentinels (N, Q, H)."""
    torch.manual_seed(0)
    attention = kind(VALUE_SIZE, QUERY_SIZE, 4).double()
    values = torch.randn(NUM_IMAGES, NUM_PLACES, VALUE_SIZE).double()
    queries, sentinel = torch.randn(2, NUM_IMAGES, NUM_QUERIES, QUERY_SIZE).double()
    return attention, values, queries, sentinel


def look(attention: AdditiveAttention, values: Tensor, queries: Tensor, sentinel: Tensor):
    memory = attention.project_keys(values)
    if isinstance(attention, SentinelAttention):
        return attention.attend(queries, sentinel, memory)
    return attention(queries, memory)


@pytest.mark.parametrize("kind", [AdditiveAttention, SentinelAttention])
def test_attention_equals_a_plain_loop(kind) -> None:
    attention, values, queries, sentinel = make(kind)
    contexts, all_weights = look(attention, values, queries, sentinel)
    for image in range(NUM_IMAGES):
        for q, query in enumerate(queries[image]):
            asked = attention.query.weight @ query
            seen = list(values[image])
            keys = [attention.key(value) for value in seen]
            if kind is SentinelAttention:
                away = sentinel[image, q]
                keys.append(attention.sentinel_key(away))
                seen.append(attention.sentinel_value(away))
            scores = [attention.score.weight[0] @ torch.tanh(key + asked) for key in keys]
            total = sum(score.exp() for score in scores)
            weights = [score.exp() / total for score in scores]
            context = sum(w * value for w, value in zip(weights, seen, strict=True))
            torch.testing.assert_close(all_weights[image, q], torch.stack(weights))
            torch.testing.assert_close(contexts[image, q], context)


@pytest.mark.parametrize("kind", [AdditiveAttention, SentinelAttention])
def test_weights_sum_to_one_and_ignore_nothing(kind) -> None:
    attention, values, queries, sentinel = make(kind)
    values.requires_grad_()
    sentinel.requires_grad_()
    contexts, weights = look(attention, values, queries, sentinel)
    num_weights = NUM_PLACES + (kind is SentinelAttention)
    assert weights.shape == (NUM_IMAGES, NUM_QUERIES, num_weights)
    torch.testing.assert_close(weights.sum(-1), torch.ones(NUM_IMAGES, NUM_QUERIES).double())
    assert (weights > 0).all()
    contexts.square().sum().backward()
    assert (values.grad.abs().amax(-1) > 0).all()  # of every place of every image
    assert kind is AdditiveAttention or (sentinel.grad.abs().amax(-1) > 0).all()


def test_sentinel_is_the_gated_memory_of_the_cell() -> None:
    attention, _, previous, cell_memory = make(SentinelAttention)
    inputs = torch.randn(NUM_IMAGES, NUM_QUERIES, VALUE_SIZE).double()
    found = attention.sentinel(inputs, previous, cell_memory)
    for at in [(0, 0), (2, 1)]:
        pushed = attention.gate_input.weight @ inputs[at] + attention.gate_input.bias
        pushed = pushed + attention.gate_hidden.weight @ previous[at]
        torch.testing.assert_close(found[at], cell_memory[at] / (1 + (-pushed).exp()))
