import math
from pathlib import Path
from typing import Any

import pytest

from showtell.pipeline.config import DownloadConfig, PrepareConfig
from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.options import StageConfig

INVALID: list[tuple[type[StageConfig], dict[str, Any], str]] = [
    (DownloadConfig, {"retries": -1}, "--retries must be at least 0, got -1."),
    (DownloadConfig, {"timeout_s": 0.0}, "--timeout-s must be above 0, got 0.0."),
    (DownloadConfig, {"timeout_s": math.nan}, "--timeout-s must be above 0 and finite, got nan."),
    (PrepareConfig, {"min_count": 0}, "--min-count must be at least 1, got 0."),
    (PrepareConfig, {"vocab_size": 0}, "--vocab-size must be at least 1, got 0."),
    (
        PrepareConfig,
        {"min_count": 2, "vocab_size": 100},
        "--min-count and --vocab-size exclude each other; give one.",
    ),
    (
        PrepareConfig,
        {"karpathy": Path("a.json"), "table": Path("a.csv")},
        "--karpathy and --table exclude each other; give one.",
    ),
    (
        PrepareConfig,
        {"vocab": "bep"},
        "--vocab must be words, bpe or the path of a tokenizer.json, got 'bep'.",
    ),
    (
        PrepareConfig,
        {"vocab": "bpe", "min_count": 2},
        "--min-count only applies with --vocab words.",
    ),
    (
        PrepareConfig,
        {"vocab": "gpt2/tokenizer.json", "vocab_size": 99},
        "--vocab-size only applies with --vocab words or bpe.",
    ),
    (
        PrepareConfig,
        {"vocab": "bpe", "tokenizer": "characters"},
        "--vocab bpe splits words, but --tokenizer characters has none. Leave out --vocab.",
    ),
]


@pytest.mark.parametrize(("config_class", "options", "message"), INVALID)
def test_invalid_options_are_refused(config_class, options, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_class(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (DownloadConfig, {"retries": 0, "timeout_s": 0.1}),
        (PrepareConfig, {"min_count": 1}),
        (PrepareConfig, {"vocab_size": 1, "karpathy": Path("k.json")}),
        (PrepareConfig, {"vocab": "bpe", "vocab_size": 1}),
        (PrepareConfig, {"vocab": "gpt2/tokenizer.json"}),
        (PrepareConfig, {"vocab": "bpe", "tokenizer": "unicode"}),
    ],
)
def test_valid_options_are_kept(config_class, options) -> None:
    config = config_class(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_vocab_file_is_the_file_that_vocab_names() -> None:
    assert PrepareConfig(vocab="gpt2/tokenizer.json").vocab_file == Path("gpt2/tokenizer.json")
    assert PrepareConfig().vocab_file is PrepareConfig(vocab="bpe").vocab_file is None
