"""Decoding with NumPy finds what torch finds, to the last bit if the probabilities are the same."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from showtell.model.generation.beam import beam_search as beam_search_of_torch
from showtell.model.generation.constraints import word_log_probs
from showtell.model.generation.explain import explain as explain_of_torch
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.text.vocab import BOS
from showtell.serving.numpy_decoding import Floats, Ints, State, beam_search, explain, largest, take

NUM_IMAGES, NUM_STATES, NUM_CELLS = 9, 101, 4


@dataclass(frozen=True)
class TableState:
    """For torch: (R,) rows of the table, and the number of rows per image."""

    rows: Tensor
    num_rows_per_image: int = 1
    attention: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, images: Tensor, parents: Tensor) -> "TableState":
        rows = (images[:, None] * self.num_rows_per_image + parents).flatten()
        return TableState(self.rows[rows], parents.shape[1])


class TableModel:
    """A decoder that looks logits up in a table, for torch and for NumPy."""

    def __init__(self, vocab_size: int, has_attention: bool = False) -> None:
        generator = torch.Generator().manual_seed(vocab_size)
        self.logits = 2 * torch.randn(NUM_STATES, vocab_size, generator=generator)
        self.log_probs = word_log_probs(self.logits.clone()).numpy()
        weights = torch.rand(NUM_STATES, NUM_CELLS, generator=generator)
        self.attention = weights if has_attention else None

    def start_tokens(self, batch_size: int) -> Tensor:
        return torch.full((batch_size,), BOS)

    def torch_state(self) -> TableState:
        return TableState(torch.arange(NUM_IMAGES))

    def numpy_state(self) -> State:
        return {"rows": np.arange(NUM_IMAGES)[:, None]}

    def for_torch(self) -> Any:
        model = self

        class Steps:
            start_tokens = model.start_tokens

            def step(self, token_ids: Tensor, state: TableState) -> tuple[Tensor, TableState]:
                rows = (7 * state.rows + token_ids) % NUM_STATES
                weights = None if model.attention is None else model.attention[rows]
                return model.logits[rows], TableState(rows, state.num_rows_per_image, weights)

        return Steps()

    def step(self, token_ids: Ints, state: State) -> tuple[Floats, State, Floats | None]:
        rows = (7 * state["rows"] + token_ids) % NUM_STATES
        weights = None if self.attention is None else self.attention.numpy()[rows]
        return self.log_probs[rows], {"rows": rows}, weights

    def select(self, state: State, images: Ints, parents: Ints) -> State:
        return {"rows": take(state["rows"][images], parents)}


@pytest.mark.parametrize("vocab_size", [6, 7, 40, 2000])
@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"beam": 5},
        {"beam": 4, "length_penalty": 0.0},
        {"beam": 3, "length_penalty": 2.0, "max_length": 5},
        {"beam": 3, "min_length": 6, "max_length": 8},
        {"beam": 2, "no_repeat_ngram": 2},
        # Every word is soon forbidden, so that captions end before `min_length`.
        {"beam": 3, "no_repeat_ngram": 1, "min_length": 5},
    ],
    ids=str,
)
def test_beam_search_finds_the_captions_of_torch(options: dict[str, Any], vocab_size: int) -> None:
    model, chosen = TableModel(vocab_size), DecodingOptions(**options)
    found = beam_search(model, model.numpy_state(), NUM_IMAGES, chosen)
    assert found == beam_search_of_torch(model.for_torch(), model.torch_state(), chosen)
    assert len({of_image[0].token_ids for of_image in found}) > 1


def test_no_images_give_no_captions() -> None:
    assert beam_search(TableModel(5), {}, 0, DecodingOptions()) == []


@pytest.mark.parametrize("has_attention", [False, True])
def test_explain_gives_the_scores_of_torch(has_attention: bool) -> None:
    model = TableModel(40, has_attention)
    found = beam_search(model, model.numpy_state(), NUM_IMAGES, DecodingOptions(beam=3))
    ids = [[hypothesis.token_ids for hypothesis in of_image] for of_image in found]
    expected = explain_of_torch(model.for_torch(), model.torch_state(), ids)
    for of_image in zip(found, explain(model, model.numpy_state(), found), expected, strict=True):
        for hypothesis, (log_probs, attention), scores in zip(*of_image, strict=True):
            assert log_probs.sum() == pytest.approx(hypothesis.log_prob)
            assert np.array_equal(log_probs, scores.log_probs)
            assert (attention is not None) == has_attention
            assert not has_attention or np.array_equal(attention, scores.attention)


@pytest.mark.parametrize("width", [10, 320, 321, 5000])
def test_largest_equals_sorting_everything(width: int) -> None:
    values = np.random.default_rng(0).standard_normal((7, width)).astype(np.float32)
    values[0, 1:] = -np.inf  # fewer finite values than asked for
    found, index = largest(values, 10)
    assert np.array_equal(found, -np.sort(-values, 1)[:, :10])
    assert np.array_equal(take(values, index), found)
