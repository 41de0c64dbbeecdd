import json

import numpy as np
import pytest

from showtell.pipeline.layout import VOCAB_JSON
from showtell.pipeline.text.vocab import Vocab
from showtell.serving.report.results import Results
from showtell.serving.report.tokens import LEVELS, quantize, score_tokens


def tokens_of(data, name: str):
    results = Results.read(data / name)
    vocab = Vocab.read(data / "scenes/captions" / VOCAB_JSON)
    return results, score_tokens(results, vocab, "cpu")


def test_token_probabilities_add_up_to_those_of_beam_search(evaluated_runs) -> None:
    results, tokens = tokens_of(evaluated_runs, "runs/soft/eval/test-beam3-nbest3")
    ranked = results.read_nbest()
    assert tokens.keys() == results.captions.keys() == ranked.keys()
    for image_id, listed in tokens.items():
        total = sum(token.log_prob for token in listed)
        assert total == pytest.approx(ranked[image_id][0].log_prob, abs=1e-3)
        assert "".join(token.text for token in listed).strip() == results.captions[image_id]
        assert listed[-1].text == ""


def test_attention_has_a_character_per_cell_and_sums_to_one(evaluated_runs) -> None:
    _, tokens = tokens_of(evaluated_runs, "runs/soft/eval/test-beam3-nbest3")
    every = [token for listed in tokens.values() for token in listed]
    assert {len(token.attention) for token in every} == {4}
    assert all(LEVELS[-1] in token.attention for token in every)
    assert [token.attended for token in every] == pytest.approx([1.0] * len(every), abs=1e-3)


def test_an_ensemble_shows_the_attention_of_its_member_that_has_one(evaluated_runs) -> None:
    _, alone = tokens_of(evaluated_runs, "runs/plain/eval/test-beam3")
    assert {token.attention for listed in alone.values() for token in listed} == {""}
    _, tokens = tokens_of(evaluated_runs, "ensembles/plain+soft/eval/test-beam3-views2")
    assert {len(token.attention) for listed in tokens.values() for token in listed} == {4}


def test_quantize_uses_the_whole_range_of_characters() -> None:
    assert quantize(np.array([0.5, 0.25, 0.0], np.float32)) == LEVELS[-1] + LEVELS[32] + LEVELS[0]
    assert quantize(np.zeros(2, np.float32)) == LEVELS[0] * 2
    assert json.dumps(LEVELS) == f'"{LEVELS}"' and len(set(LEVELS)) == 64
