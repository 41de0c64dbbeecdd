import math
from typing import Any, get_type_hints

import pytest

from showtell.model.generation.options import DecodingKeywords, DecodingOptions
from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.options import options_of

INVALID: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: 0}, f"--{name.replace('_', '-')} must be at least 1, got 0.")
        for name in ("beam", "max_length", "min_length", "beam_groups", "n_best")
    ),
    *(
        ({name: -1}, f"--{name.replace('_', '-')} must be at least 0, got -1.")
        for name in ("no_repeat_ngram", "consensus")
    ),
    *(
        ({name: -1.0}, f"--{name.replace('_', '-')} must be at least 0, got -1.0.")
        for name in ("length_penalty", "diversity", "consensus_precision")
    ),
    ({"views": 7}, "--views must be at least 1 and at most 6, got 7."),
    ({"diversity": math.inf}, "--diversity must be at least 0 and finite, got inf."),
    ({"sample": True, "temperature": 0.0}, "--temperature must be above 0, got 0.0."),
    (
        {"sample": True, "temperature": math.inf},
        "--temperature must be above 0 and finite, got inf.",
    ),
    ({"sample": True, "top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0."),
    ({"sample": True, "top_p": 1.1}, "--top-p must be above 0 and at most 1, got 1.1."),
    ({"preset": "best"}, "--preset must be one of consensus, got 'best'."),
    ({"min_length": 9, "max_length": 8}, "--min-length 9 is above --max-length 8."),
    ({"beam": 5, "beam_groups": 2}, "--beam must be a multiple of --beam-groups 2, got 5."),
    ({"n_best": 4}, "--n-best must be at most --beam 3, got 4."),
    ({"top_p": 0.9}, "--top-p only applies with --sample."),
    ({"top_p": 0.9, "temperature": 2.0}, "--top-p and --temperature only apply with --sample."),
    ({"diversity": 0.2}, "--diversity only applies with --beam-groups 2 or more."),
    (
        {"sample": True, "beam_groups": 3},
        "--sample and --beam-groups exclude each other; give one.",
    ),
    (
        {"consensus": 5, "beam": 1},
        "--consensus chooses among several captions per image; add --beam 2 or more.",
    ),
    (
        {"consensus": 5, "sample": True},
        "--consensus chooses among several captions per image; add --n-best 2 or more.",
    ),
    (
        {"consensus_precision": 2.0},
        "--consensus-precision only applies with --consensus N, such as 1000.",
    ),
]


@pytest.mark.parametrize(("options", "message"), INVALID)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DecodingOptions(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options",
    [
        {"min_length": 30, "max_length": 30, "beam": 6, "beam_groups": 6},
        {"sample": True, "n_best": 10, "top_p": 0.1, "temperature": 1e-9},
        {"consensus": 5, "consensus_precision": 2.0, "beam": 2},
    ],
)
def test_valid_options_are_kept(options: dict[str, Any]) -> None:
    decoding = DecodingOptions(**options)
    assert {name: getattr(decoding, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "beam3"),
        ({"beam": 5, "no_repeat_ngram": 2}, "beam5-ngram2"),
        ({"length_penalty": 0, "max_length": 40, "min_length": 4}, "beam3-penalty0.0-max40-min4"),
        ({"beam": 6, "beam_groups": 3, "n_best": 6}, "beam6-groups3-nbest6-diversity0.5"),
        ({"sample": True, "top_p": 0.9, "seed": 2}, "sample-top0.9-seed2"),
        ({"sample": True, "temperature": 0.7}, "sample-temperature0.7"),
    ],
    ids=str,
)
def test_decoding_name_lists_the_options_that_differ(options: dict[str, Any], name: str) -> None:
    assert DecodingOptions(**options).decoding_name == name


def test_default_maximum_length_is_longer_for_subwords() -> None:
    words, pieces = (DecodingOptions().for_unit(unit) for unit in ("words", "pieces"))
    assert (words.length_limit, pieces.length_limit) == (20, 30)
    assert DecodingOptions(max_length=7).for_unit("pieces").length_limit == 7
    with pytest.raises(ConfigError, match="--min-length 25 is above --max-length 20"):
        DecodingOptions(min_length=25).for_unit("words")


def test_consensus_chooses_among_all_candidates_of_the_beam() -> None:
    assert DecodingOptions(beam=20, n_best=2).num_candidates == 2
    assert DecodingOptions(beam=20, n_best=2, consensus=5).num_candidates == 20
    assert DecodingOptions(sample=True, n_best=7, consensus=5).num_candidates == 7


def test_keywords_have_the_names_and_types_of_the_options() -> None:
    declared = {field.name: field.type for field in options_of(DecodingOptions)}
    assert get_type_hints(DecodingKeywords) == declared
