import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from showtell.features.config import FeaturesConfig
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline.config import DownloadConfig, PrepareConfig
from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.options import DatasetConfig, StageConfig, option, options_of

STAGES = (DownloadConfig, PrepareConfig, FeaturesConfig, TrainConfig, EvalConfig)
OF_DATASET = STAGES[:4]
WITH_PRECISION = ((FeaturesConfig, ", int8"), (TrainConfig, ""), (EvalConfig, ""))
PRECISIONS = "precision must be one of auto, fp32, bf16, fp16{}, got 'fp8'."


def at_least(config_class: type, least: int, *names: str) -> list[tuple[type, dict, str]]:
    """The value just below the least that is possible, for each of the options."""
    return [
        (config_class, {name: least - 1}, f"{name} must be at least {least}, got {least - 1}.")
        for name in names
    ]


IMPOSSIBLE: list[tuple[type, dict[str, Any], str]] = [
    *((c, {"dataset": ""}, "dataset must be a plain name, got ''.") for c in OF_DATASET),
    *((c, {"dataset": "../x"}, "dataset must be a plain name, got '../x'.") for c in OF_DATASET),
    *((c, {"dataset": "a/b"}, "dataset must be a plain name, got 'a/b'.") for c in OF_DATASET),
    *((c, {"dataset": ".."}, "dataset must be a plain name, got '..'.") for c in OF_DATASET),
    (DatasetConfig, {"dataset": "a\\b"}, "dataset must be a plain name, got 'a\\\\b'."),
    *((c, {"precision": "fp8"}, PRECISIONS.format(more)) for c, more in WITH_PRECISION),
    # download
    *at_least(DownloadConfig, 0, "retries"),
    (DownloadConfig, {"timeout_s": 0.0}, "timeout_s must be above 0, got 0.0."),
    (DownloadConfig, {"timeout_s": math.nan}, "timeout_s must be above 0, got nan."),
    # prepare
    *at_least(PrepareConfig, 1, "min_count", "vocab_size"),
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
    (PrepareConfig, {"vocab": "bep"}, "or the path of a tokenizer.json, got 'bep'."),
    (PrepareConfig, {"vocab": "bpe", "min_count": 2}, "pieces of words are kept however rare."),
    (
        PrepareConfig,
        {"vocab": "gpt2/tokenizer.json", "vocab_size": 99},
        "--vocab-size goes with --vocab words or bpe: a tokenizer.json has its own pieces.",
    ),
    # features
    *at_least(FeaturesConfig, 1, "shard_size", "batch_size", "num_workers", "image_size"),
    (FeaturesConfig, {"views": 0}, "views must be 1 to 6, got 0."),
    (FeaturesConfig, {"views": 7}, "views must be 1 to 6, got 7."),
    (FeaturesConfig, {"format": "csv"}, "format must be one of hdf5, parquet, got 'csv'."),
    # train
    (TrainConfig, {"cell": "GRU"}, "cell must be one of gru, lstm, rnn, got 'GRU'."),
    (
        TrainConfig,
        {"image_as": "last-input"},
        "image_as must be one of first-input, initial-state, got 'last-input'.",
    ),
    (
        TrainConfig,
        {"schedule": "linear"},
        "schedule must be one of one-cycle, cosine, constant, got 'linear'.",
    ),
    (TrainConfig, {"monitor": "METEOR"}, "monitor must be one of CIDEr, Bleu_4, got 'METEOR'."),
    *at_least(TrainConfig, 1, "hidden_size", "embed_size", "num_layers", "epochs"),
    *at_least(TrainConfig, 1, "batch_size", "val_images", "val_beam"),
    *at_least(TrainConfig, 0, "grad_clip", "patience", "weight_decay"),
    (TrainConfig, {"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0."),
    (TrainConfig, {"learning_rate": math.nan}, "learning_rate must be above 0, got nan."),
    (TrainConfig, {"learning_rate": math.inf}, "must be above 0 and finite, got inf."),
    (TrainConfig, {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0."),
    (TrainConfig, {"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1."),
    (
        TrainConfig,
        {"label_smoothing": 1.5},
        "label_smoothing must be at least 0 and below 1, got 1.5.",
    ),
    (TrainConfig, {"run": ""}, "run must be a plain name, got ''."),
    (TrainConfig, {"run": "../r"}, "run must be a plain name, got '../r'."),
    (TrainConfig, {"run": "x+y"}, "joins the names of an ensemble's runs, got 'x+y'."),
    (TrainConfig, {"scst_samples": 3}, "how --scst draws; add --scst --init RUN."),
    (TrainConfig, {"scst_baseline": "greedy"}, "how --scst draws; add --scst --init RUN."),
    (TrainConfig, {"attention_size": 64}, "of --attention; add --attention soft or adaptive."),
    # eval
    (EvalConfig, {"diversity": 0.2}, "between groups of beams; add --beam-groups 2 or more."),
    (EvalConfig, {"run": ["a", "b", "a"]}, "--run a is given twice: it would count twice."),
    (EvalConfig, {"run": ["a", "b"], "pool": True}, "add --consensus 1000, and a second --run."),
    (EvalConfig, {"run": ["a"], "pool": True, "consensus": 9}, "and a second --run."),
    (EvalConfig, {"diversity": math.inf}, "diversity must be at least 0 and finite, got inf."),
    (EvalConfig, {"sample": True, "temperature": math.inf}, "above 0 and finite, got inf."),
    (EvalConfig, {"split": "dev"}, "split must be one of train, val, test, got 'dev'."),
    (EvalConfig, {"beam": 0}, "must be at least 1, got 0."),
    *at_least(EvalConfig, 1, "max_length", "min_length", "beam_groups", "n_best", "batch_size"),
    *at_least(EvalConfig, 0, "length_penalty", "no_repeat_ngram", "diversity", "num_samples"),
    (EvalConfig, {"min_length": 9, "max_length": 8}, "min_length 9 is above max_length 8."),
    (EvalConfig, {"min_length": 5, "max_length": 4}, "min_length 5 is above max_length 4."),
    (
        EvalConfig,
        {"beam": 5, "beam_groups": 2},
        "beam must be a multiple of beam_groups 2, got 5.",
    ),
    (EvalConfig, {"n_best": 4}, "n_best must be at most the beam's 3, got 4."),
    (EvalConfig, {"sample": True, "temperature": 0.0}, "temperature must be above 0, got 0.0."),
    *(
        (EvalConfig, {"sample": True, "top_p": p}, f"top_p must be above 0 and at most 1, got {p}.")
        for p in (0.0, 1.1, math.nan)
    ),
    (EvalConfig, {"top_p": 0.9}, "--top-p and --temperature say how to draw; add --sample."),
    (
        EvalConfig,
        {"sample": True, "beam_groups": 3},
        "--sample and --beam-groups exclude each other; give one.",
    ),
]


def name_of(value: object) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{name}={value!r}" for name, value in value.items())
    return value.__name__ if isinstance(value, type) else ""


@pytest.mark.parametrize(("config_class", "options", "message"), IMPOSSIBLE, ids=name_of)
def test_impossible_value_is_refused(
    config_class: type[StageConfig], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_class(**options)
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (DownloadConfig, {"retries": 0, "timeout_s": 0.1}),
        (PrepareConfig, {"dataset": "my photos 2"}),
        (PrepareConfig, {"min_count": 1}),
        (PrepareConfig, {"vocab_size": 1, "karpathy": Path("k.json")}),
        (PrepareConfig, {"vocab": "bpe", "vocab_size": 1}),
        (PrepareConfig, {"vocab": "gpt2/tokenizer.json"}),
        (FeaturesConfig, {"shard_size": 1, "batch_size": 1, "num_workers": 1, "image_size": 1}),
        (FeaturesConfig, {"format": "parquet", "precision": "bf16"}),
        (TrainConfig, {"dropout": 0.0, "label_smoothing": 0.0, "grad_clip": 0.0}),
        (TrainConfig, {"cell": "rnn", "image_as": "initial-state", "schedule": "constant"}),
        (TrainConfig, {"cell": "lstm", "schedule": "cosine", "monitor": "Bleu_4"}),
        (TrainConfig, {"run": "a.b-c", "epochs": 1, "val_images": 1, "weight_decay": 0.0}),
        (EvalConfig, {"split": "train", "beam": 1, "length_penalty": 0.0, "num_samples": 0}),
        (EvalConfig, {"min_length": 30, "max_length": 30, "beam": 6, "beam_groups": 6}),
        (EvalConfig, {"sample": True, "n_best": 10, "top_p": 0.1, "temperature": 1e-9}),
    ],
    ids=name_of,
)
def test_values_at_the_edge_are_taken(
    config_class: type[StageConfig], options: dict[str, Any]
) -> None:
    config = config_class(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_one_run_or_several_are_a_list() -> None:
    assert EvalConfig(run="r").run == EvalConfig(run=["r"]).run == ["r"]
    assert EvalConfig().run is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "beam3"),
        ({"beam": 5, "no_repeat_ngram": 2}, "beam5-ngram2"),
        ({"length_penalty": 0.0, "max_length": 40, "min_length": 4}, "beam3-penalty0.0-max40-min4"),
        ({"beam": 6, "beam_groups": 3, "n_best": 6}, "beam6-groups3-nbest6-diversity0.5"),
        ({"sample": True, "top_p": 0.9, "seed": 2}, "sample-top0.9-seed2"),
        ({"sample": True, "temperature": 0.7}, "sample-temperature0.7"),
    ],
    ids=str,
)
def test_every_way_of_decoding_has_its_name(options: dict[str, Any], name: str) -> None:
    assert EvalConfig(**options, batch_size=7).decoding_name == name


@pytest.mark.parametrize("config_class", STAGES)
def test_defaults_are_possible(config_class: type[StageConfig]) -> None:
    assert config_class().data == Path("data")


@pytest.mark.parametrize("config_class", STAGES)
def test_every_option_has_a_line_of_help(config_class: type[StageConfig]) -> None:
    for field in options_of(config_class):
        text = field.metadata["help"]
        assert text.endswith(".") and "\n" not in text, field.name
        assert field.default is not dataclasses.MISSING, field.name


def test_option_keeps_its_default_and_its_help() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = option(3, "How large.")

    assert Config().size == 3
    assert dataclasses.fields(Config)[0].metadata == {"help": "How large."}


@pytest.mark.parametrize("config_class", STAGES)
def test_as_json_round_trip_changes_nothing(config_class: type[StageConfig]) -> None:
    config = config_class()
    values = config.as_json()
    assert json.loads(json.dumps(values)) == values
    assert config_class(**values) == config


def test_as_json_of_other_values_round_trips_too() -> None:
    config = TrainConfig(dataset="own", run="r", cell="lstm", learning_rate=3e-4, val_beam=3)
    assert TrainConfig(**json.loads(json.dumps(config.as_json()))) == config
    assert config.as_json()["learning_rate"] == 3e-4


@pytest.mark.parametrize("config_class", STAGES)
def test_as_json_has_every_option_but_the_place(config_class: type[StageConfig]) -> None:
    names = {field.name for field in options_of(config_class)}
    assert set(config_class(data=Path("/elsewhere")).as_json()) == names - {"data"}


def test_as_json_writes_paths_as_text() -> None:
    values = PrepareConfig(source=Path("my") / "photos").as_json()
    assert values["source"] == str(Path("my/photos"))
    assert values["table"] is None


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_config_takes_no_positions() -> None:
    with pytest.raises(TypeError):
        TrainConfig("scenes")  # type: ignore[misc]


def test_folders_of_a_dataset_follow_from_its_name() -> None:
    config = PrepareConfig(data=Path("root"), dataset="scenes")
    assert config.dataset_dir == Path("root/scenes")
    assert config.captions_dir == Path("root/scenes/captions")


def test_longest_caption_is_by_default_longer_in_pieces() -> None:
    words, pieces = (EvalConfig().for_unit(unit) for unit in ("words", "pieces"))
    assert (words.length_limit, pieces.length_limit) == (20, 30)
    assert EvalConfig(max_length=7).for_unit("pieces").length_limit == 7
    assert EvalConfig().decoding_name == "beam3"


def test_consensus_finds_the_whole_beam_to_choose_from() -> None:
    assert DecodingOptions(beam=20, n_best=2).num_candidates == 2
    assert DecodingOptions(beam=20, n_best=2, consensus=5).num_candidates == 20
    assert DecodingOptions(sample=True, n_best=7, consensus=5).num_candidates == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 7}, "views must be 1 to 6, got 7."),
        ({"consensus": -1}, "consensus must be at least 0, got -1."),
        ({"consensus": 5, "beam": 1}, "--consensus chooses among several captions: give --beam 2"),
        ({"consensus": 5, "sample": True}, "add --n-best N, the draws."),
        ({"consensus_precision": 2.0}, "says how to choose; add --consensus 1000."),
        ({"consensus": 5, "consensus_precision": -1}, "consensus_precision must be at least 0"),
    ],
)
def test_decoding_options_that_cannot_be_are_refused(options, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        DecodingOptions(**options)
