import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.scoring.config import CompareConfig
from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.options import (
    MAX_SEED,
    Options,
    OptionSpec,
    flag,
    options_of,
    spec_of,
    value_type,
)

SCST: dict[str, Any] = {"scst": True, "init": "r"}

RECURRENT = "--cell gru, lstm or rnn, not transformer"
INVALID_TRAINING: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: 0}, f"--{name.replace('_', '-')} must be at least 1, got 0.")
        for name in ("hidden_size", "embed_size", "num_layers", "epochs", "batch_size")
    ),
    *(
        ({name: 0}, f"--{name.replace('_', '-')} must be at least 1, got 0.")
        for name in ("val_images", "val_beam", "attention_size", "scst_samples")
    ),
    *(
        ({name: -1}, f"--{name.replace('_', '-')} must be at least 0, got -1.")
        for name in ("patience",)
    ),
    *(
        ({name: -1.0}, f"--{name.replace('_', '-')} must be at least 0, got -1.0.")
        for name in ("grad_clip", "weight_decay", "save_every_s")
    ),
    *(
        ({name: 1.0}, f"--{name.replace('_', '-')} must be at least 0 and below 1, got 1.0.")
        for name in ("dropout", "label_smoothing", "ema", "scheduled_sampling")
    ),
    ({"views": 0}, "--views must be at least 1 and at most 6, got 0."),
    ({"xe_weight": 1.5}, "--xe-weight must be at least 0 and at most 1, got 1.5."),
    ({"learning_rate": 0.0}, "--learning-rate must be above 0, got 0.0."),
    ({"seed": 2**32}, "--seed must be at least 0 and at most 4294967295, got 4294967296."),
    (
        {"cell": "conv"},
        "--cell must be one of gru, lstm, rnn, transformer, got 'conv'.",
    ),
    *(
        ({"cell": "transformer", name: value}, f"--{option} only applies with {RECURRENT}.")
        for name, value, option in (
            ("attention", "soft", "attention"),
            ("attention", "adaptive", "attention"),
            ("attention_size", 64, "attention-size"),
            ("image_as", "initial-state", "image-as"),
        )
    ),
    (
        {"cell": "transformer", "attention": "soft", "attention_size": 64},
        f"--attention and --attention-size only apply with {RECURRENT}.",
    ),
    (
        {"cell": "transformer", "hidden_size": 200},
        "--hidden-size must be a multiple of 64, or below 64, with --cell transformer, got 200.",
    ),
    (
        {"image_as": "last"},
        "--image-as must be one of first-input, initial-state, got 'last'.",
    ),
    (
        {"schedule": "linear"},
        "--schedule must be one of one-cycle, cosine, constant, got 'linear'.",
    ),
    ({"monitor": "SPICE"}, "--monitor must be one of CIDEr, Bleu_4, METEOR, got 'SPICE'."),
    ({"attention": "hard"}, "--attention must be one of none, soft, adaptive, got 'hard'."),
    ({"precision": "int8"}, "--precision must be one of auto, fp32, bf16, fp16, got 'int8'."),
    ({"scst_baseline": "max"}, "--scst-baseline must be one of mean, greedy, got 'max'."),
    ({"run": ""}, "--run must be a name without slashes or a leading dot, got ''."),
    ({"run": "../r"}, "--run must be a name without slashes or a leading dot, got '../r'."),
    (
        {"run": "x+y"},
        "--run must not contain '+', which joins the runs of an ensemble, got 'x+y'.",
    ),
    ({"scst": True}, "--scst continues the training of a run; add --init RUN."),
    (
        {**SCST, "scst_samples": 1},
        "--scst-baseline mean needs --scst-samples 2 or more, got 1.",
    ),
    (
        {"init": "r", "word_vectors": "v.txt"},
        "--init and --word-vectors exclude each other: RUN already has word embeddings.",
    ),
    (
        {**SCST, "scheduled_sampling": 0.1},
        "--scst and --scheduled-sampling exclude each other: --scst samples whole captions.",
    ),
    ({"scst_samples": 3}, "--scst-samples only applies with --scst --init RUN."),
    ({"scst_baseline": "greedy"}, "--scst-baseline only applies with --scst --init RUN."),
    ({"xe_weight": 0.2}, "--xe-weight only applies with --scst --init RUN."),
    (
        {"attention_size": 64},
        "--attention-size only applies with --attention soft or adaptive.",
    ),
]

POOL_ALONE = (
    "--pool needs several runs and --consensus, which re-ranks their candidates; add "
    "--consensus 1000 and another --run."
)

INVALID_EVALUATION: list[tuple[dict[str, Any], str]] = [
    ({"run": ["a", "b", "a"]}, "--run a is given twice."),
    (
        {"run": ["a", "b"], "pool": True},
        POOL_ALONE,
    ),
    (
        {"run": ["a"], "pool": True, "consensus": 9},
        POOL_ALONE,
    ),
    (
        {"split": "dev"},
        "--split must be one of train, val, test, got 'dev'.",
    ),
    ({"beam": 0}, "--beam must be at least 1, got 0."),
    ({"batch_size": 0}, "--batch-size must be at least 1, got 0."),
    ({"num_samples": -1}, "--num-samples must be at least 0, got -1."),
    ({"precision": "fp8"}, "--precision must be one of auto, fp32, bf16, fp16, got 'fp8'."),
]


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        *((TrainConfig, *case) for case in INVALID_TRAINING),
        *((EvalConfig, *case) for case in INVALID_EVALUATION),
    ],
)
def test_invalid_options_are_refused(config_class, options, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_class(**options)
    assert str(caught.value).partition(" Did you mean")[0] == message


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (TrainConfig, {"dropout": 0.0, "label_smoothing": 0.0, "grad_clip": 0.0}),
        (TrainConfig, {"cell": "rnn", "image_as": "initial-state", "schedule": "constant"}),
        (TrainConfig, {"cell": "lstm", "schedule": "cosine", "monitor": "Bleu_4"}),
        (TrainConfig, {"run": "a.b-c", "epochs": 1, "val_images": 1, "weight_decay": 0.0}),
        (TrainConfig, {**SCST, "scst_baseline": "greedy", "scst_samples": 1}),
        (EvalConfig, {"split": "train", "beam": 1, "length_penalty": 0.0, "num_samples": 0}),
        (EvalConfig, {"run": ["a", "b"], "pool": True, "consensus": 9}),
    ],
)
def test_valid_options_are_kept(config_class, options) -> None:
    config = config_class(**options)
    assert {name: getattr(config, name) for name in options} == options


def test_options_of_a_run_survive_json() -> None:
    config = TrainConfig(
        dataset="own", run="r", cell="lstm", learning_rate=3e-4, word_vectors=Path("v.txt")
    )
    assert TrainConfig(**json.loads(json.dumps(config.as_json()))) == config
    assert config.as_json()["learning_rate"] == 3e-4


def test_result_of_training_does_not_depend_on_where_and_how_it_runs() -> None:
    ignored = set(TrainConfig().as_json()) - set(TrainConfig().result_options())
    assert ignored == {"run", "resume", "features", "save_every_s", "device", "preset"}


def test_result_of_eval_does_not_depend_on_where_and_how_it_runs() -> None:
    ignored = set(EvalConfig().as_json()) - set(EvalConfig().result_options())
    assert ignored == {
        *("dataset", "preset", "device", "num_samples", "batch_size", "report", "official"),
        *("spice", "clip"),  # their content is an input of the manifest
    }


def test_one_run_or_several_become_a_list() -> None:
    assert EvalConfig(run="r").run == EvalConfig(run=["r"]).run == ["r"]
    assert EvalConfig().run is None


def test_name_of_an_evaluation_tells_whether_the_runs_are_pooled() -> None:
    assert EvalConfig(beam=5).decoding_name == "beam5"
    pooled = EvalConfig(run=["a", "b"], pool=True, consensus=9)
    assert pooled.decoding_name == "beam3-consensus9-pool"


def test_comparison_needs_enough_draws() -> None:
    with pytest.raises(ConfigError, match=r"^--draws must be at least 100, got 9\.$"):
        CompareConfig(eval_a="a", eval_b="b", draws=9)


# These only end loops and cut lists: Python's own integers have no limit, and times may be long.
UNBOUNDED = {"patience", "val_images", "save_every_s", "beam_groups", "num_samples", "window"}


def numeric_options(config_class: type[Options]) -> Iterator[tuple[str, OptionSpec, type]]:
    for declared in options_of(config_class):
        kind, _ = value_type(declared)
        if kind in (int, float):
            yield declared.name, spec_of(declared), kind


@pytest.mark.parametrize("config_class", [TrainConfig, EvalConfig, CompareConfig])
def test_values_that_cannot_work_are_refused(config_class) -> None:
    required = {"eval_a": "a", "eval_b": "b"} if config_class is CompareConfig else {}
    for name, spec, kind in numeric_options(config_class):
        is_bounded = any(bound is not None for bound in (spec.at_most, spec.below, spec.limit))
        assert is_bounded == (name not in UNBOUNDED), name
        too_large = [10**18, 10**400] if kind is int else [1e300, math.inf]
        for value in [*(too_large if is_bounded else []), -1, math.nan]:
            with pytest.raises(ConfigError, match=f"{flag(name)} must be "):
                config_class(**required, **{name: value})


# Options that need others to have an effect.
NEEDED: dict[str, tuple[object, ...]] = {
    "temperature": ("--sample",),
    "top_p": ("--sample",),
    "diversity": ("--beam", 4, "--beam-groups", 2),
    "consensus": ("--beam", 4),
    "consensus_precision": ("--consensus", 10, "--beam", 4),
    "beam_groups": ("--beam", 1000),
    "min_length": ("--max-length", 30),
}
SIZES = {name for name, _, kind in numeric_options(TrainConfig) if kind is int}
SLOW = {"beam", "max_length", "n_best", "views", "draws", "batch_size", "seed"}


def extremes(config_class: type[Options], skipped: set[str]) -> list[tuple[str, float]]:
    """The smallest and the largest value of each option, and the smallest float above 0."""
    found = []
    for name, spec, kind in numeric_options(config_class):
        if name not in skipped:
            lowest = 5e-324 if spec.at_least is None else spec.at_least
            highest = (
                math.nextafter(spec.below, 0)
                if spec.below
                else spec.at_most or spec.limit or 10**30
            )
            values = {kind(lowest), kind(highest)} | ({5e-324} if spec.at_least == 0.0 else set())
            found += [(name, kind(value)) for value in sorted(values)]
    return found


@pytest.fixture(scope="module")
def trained(prepared_scenes, tmp_path_factory) -> Path:
    from showtell.model.train import train

    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("config") / "data"))
    train(TrainConfig(data=data, dataset="scenes", run="r", hidden_size=8, embed_size=8, epochs=1))
    return data


@pytest.mark.parametrize("name, value", extremes(EvalConfig, SLOW))
def test_decoding_at_the_extremes_gives_a_result_or_one_line(
    trained, scorers, showtell, name: str, value: float
) -> None:
    words = ("--run", "r", *NEEDED.get(name, ()), flag(name), value)
    status, output = showtell("eval", *words, "--data", trained)
    assert status == 0 or (status == 1 and output.startswith("error: --")), output


@pytest.mark.parametrize(
    "name, value",
    [
        *extremes(TrainConfig, SIZES | {"xe_weight", "save_every_s"}),
        ("seed", MAX_SEED),
    ],
)
def test_training_at_the_extremes_gives_a_result_or_one_line(
    trained, tmp_path, showtell, name: str, value: float
) -> None:
    data = Path(shutil.copytree(trained, tmp_path / "data"))
    sizes = ("--hidden-size", 8, "--embed-size", 8, "--epochs", 1, "--batch-size", 100)
    words = ("--dataset", "scenes", "--run", "s", *sizes, flag(name), value)
    status, output = showtell("train", *words, "--data", data)
    assert status == 0 or "error: " in output, output
