import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.options import (
    DatasetConfig,
    Options,
    StageConfig,
    argument,
    check_plain_name,
    option,
    options_of,
    require_choice,
    spec_of,
    suggest,
    typed_name,
)


@dataclass(frozen=True, kw_only=True)
class Config(StageConfig):
    """One option of each kind."""

    images: list[Path] | None = argument("Images.", metavar="IMAGE", required=False)
    modes: list[str] | None = argument(
        "Modes.", metavar="MODE", required=False, choices=("fast", "slow")
    )
    batch_size: int = option(2, "Batch.", at_least=1)
    views: int = option(1, "Views.", at_least=1, at_most=6)
    workers: int | None = option(None, "Workers.", at_least=1, affects_result=False)
    dropout: float = option(0.5, "Dropout.", at_least=0, below=1)
    rate: float = option(0.1, "Rate.", above=0)
    top_p: float = option(1.0, "Nucleus.", above=0, at_most=1)
    offset: float = option(0.0, "Any number.")
    cell: str = option("gru", "Cell.", choices=("gru", "lstm", "rnn"))
    split: str | None = option(None, "Split.", choices=("train", "val"))
    name: str = option("x", "Name.", check=check_plain_name)
    tie: bool = option(True, "Tie.")
    table: Path | None = option(None, "Table.")
    seeds: list[int] | None = option(None, "Seeds.", at_least=0)
    given: tuple[str, ...] = dataclasses.field(default=(), compare=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0."),
        ({"workers": 0}, "--workers must be at least 1, got 0."),
        ({"views": 0}, "--views must be at least 1 and at most 6, got 0."),
        ({"views": 7}, "--views must be at least 1 and at most 6, got 7."),
        ({"dropout": -0.1}, "--dropout must be at least 0 and below 1, got -0.1."),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1, got 1.0."),
        ({"dropout": 1}, "--dropout must be at least 0 and below 1, got 1.0."),
        ({"rate": 0.0}, "--rate must be above 0, got 0.0."),
        ({"top_p": 1.1}, "--top-p must be above 0 and at most 1, got 1.1."),
        ({"seeds": [3, -1]}, "--seeds must be at least 0, got -1."),
        ({"rate": math.inf}, "--rate must be above 0 and finite, got inf."),
        ({"rate": math.nan}, "--rate must be above 0 and finite, got nan."),
        ({"dropout": math.nan}, "--dropout must be at least 0 and below 1 and finite, got nan."),
        ({"offset": -math.inf}, "--offset must be finite, got -inf."),
        ({"cell": "conv"}, "--cell must be one of gru, lstm, rnn, got 'conv'."),
        ({"cell": "gruu"}, "must be one of gru, lstm, rnn, got 'gruu'. Did you mean 'gru'?"),
        ({"cell": "LSTM"}, "got 'LSTM'. Did you mean 'lstm'?"),
        ({"split": "vall"}, "--split must be one of train, val, got 'vall'. Did you mean 'val'?"),
        ({"modes": ["fast", "slo"]}, "MODE must be one of fast, slow, got 'slo'. Did you mean"),
        ({"name": "../x"}, "--name must be a name without slashes or a leading dot, got '../x'."),
        ({"batch_size": "three"}, "--batch-size must be an integer, got 'three'."),
        ({"batch_size": 2.5}, "--batch-size must be an integer, got 2.5."),
        ({"batch_size": True}, "--batch-size must be an integer, got true."),
        ({"batch_size": None}, "--batch-size must be an integer, got None."),
        ({"rate": "1e-3"}, "--rate must be a number, got '1e-3'."),
        ({"rate": True}, "--rate must be a number, got true."),
        ({"tie": 1}, "--tie must be true or false, got 1."),
        ({"cell": 3}, "--cell must be text, got 3."),
        ({"table": 3}, "--table must be a path, got 3."),
        ({"images": [3]}, "IMAGE must be a path, got 3."),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_invalid_value_is_refused_by_the_name_users_type(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    assert message in str(caught.value)
    assert message[-1] not in ".?" or str(caught.value).endswith(message)


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 1, "workers": 1, "views": 6},
        {"views": 1, "dropout": 0.0, "rate": 1e-300, "top_p": 1.0},
        {"cell": "rnn", "split": "val", "modes": ["fast", "slow"]},
        {"workers": None, "split": None, "table": None, "seeds": None},
        {"seeds": [0, 7], "tie": False, "offset": -3.5},
    ],
    ids=repr,
)
def test_values_at_the_limits_are_accepted(values: dict[str, Any]) -> None:
    config = Config(**values)
    assert {name: getattr(config, name) for name in values} == values


def test_values_are_converted_to_the_type_of_their_field() -> None:
    config = Config(
        data=os.fspath(Path("here")),
        table="t.csv",
        images="a.jpg",
        modes=("fast",),
        rate=1,
        dropout=np.float32(0.25),
        batch_size=np.int64(4),
    )
    assert (config.data, config.table, config.images) == (
        Path("here"),
        Path("t.csv"),
        [Path("a.jpg")],
    )
    assert config.modes == ["fast"]
    assert (config.rate, config.dropout, config.batch_size) == (1.0, 0.25, 4)
    assert [type(v) for v in (config.rate, config.dropout, config.batch_size)] == [
        float,
        float,
        int,
    ]


def test_changed_copy_is_validated_too() -> None:
    with pytest.raises(ConfigError, match="--batch-size"):
        dataclasses.replace(Config(), batch_size=0)


def test_groups_of_options_combine_and_all_are_validated() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Decoding(Options):
        beam: int = option(3, "Beam.", at_least=1)

    @dataclass(frozen=True, kw_only=True)
    class Both(Decoding, Config):
        pass

    with pytest.raises(ConfigError, match="--beam must be at least 1"):
        Both(beam=0)
    with pytest.raises(ConfigError, match="--batch-size must be at least 1"):
        Both(batch_size=0)


def test_rules_between_options_name_only_those_that_are_set() -> None:
    Config().require_not_both("workers", "split")
    Config(workers=2).require_not_both("workers", "split")
    both = Config(workers=2, split="val")
    with pytest.raises(
        ConfigError, match=r"^--workers and --split exclude each other; give one\.$"
    ):
        both.require_not_both("workers", "split")
    with pytest.raises(ConfigError, match=r"^--workers and --split exclude each other: the why\.$"):
        both.require_not_both("workers", "split", "the why")
    Config().require_unused("rate", "top_p", unless=False, needs="--sample")
    Config(rate=2.0).require_unused("rate", "top_p", unless=True, needs="--sample")
    with pytest.raises(ConfigError, match=r"^--rate only applies with --sample\.$"):
        Config(rate=2.0).require_unused("rate", "top_p", unless=False, needs="--sample")
    with pytest.raises(ConfigError, match=r"^--rate and --top-p only apply with --sample\.$"):
        Config(rate=2, top_p=0.5).require_unused("rate", "top_p", unless=False, needs="--sample")


def test_choice_that_is_close_is_suggested() -> None:
    assert suggest("one-cyle", ("one-cycle", "cosine")) == " Did you mean 'one-cycle'?"
    assert suggest("bleu_4", ("CIDEr", "Bleu_4")) == " Did you mean 'Bleu_4'?"
    assert suggest("zebra", ("one-cycle", "cosine")) == ""
    require_choice("--schedule", "cosine", ("one-cycle", "cosine"))


def test_option_keeps_its_declaration() -> None:
    fields = {declared.name: declared for declared in options_of(Config)}
    assert list(fields)[:4] == ["data", "images", "modes", "batch_size"]
    assert "given" not in fields
    assert fields["batch_size"].default == 2
    assert spec_of(fields["batch_size"]).help == "Batch."
    assert spec_of(fields["cell"]).choices == ("gru", "lstm", "rnn")
    assert spec_of(fields["data"]).envvar == "SHOWTELL_DATA"
    assert (typed_name(fields["images"]), typed_name(fields["top_p"])) == ("IMAGE", "--top-p")


def test_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().batch_size = 3  # type: ignore[misc]


def test_config_takes_no_positional_arguments() -> None:
    with pytest.raises(TypeError):
        Config("scenes")  # type: ignore[misc]


def test_as_json_holds_every_option_but_the_data_folder() -> None:
    config = Config(data=Path("/elsewhere"), images=["a.jpg"], table=Path("my") / "t.csv")
    values = config.as_json()
    assert set(values) == {declared.name for declared in options_of(Config)} - {"data"}
    assert values["table"] == str(Path("my/t.csv")) and values["images"] == ["a.jpg"]
    assert json.loads(json.dumps(values)) == values
    assert Config(data=Path("/elsewhere"), **values) == config


def test_result_options_leave_out_what_does_not_affect_the_result() -> None:
    values = Config(workers=3).as_json()
    assert Config(workers=3).result_options() == {
        name: value for name, value in values.items() if name != "workers"
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "--dataset must be a name without slashes or a leading dot, got ''."),
        ("../x", "--dataset must be a name without slashes or a leading dot, got '../x'."),
        ("a/b", "--dataset must be a name without slashes or a leading dot, got 'a/b'."),
        ("..", "--dataset must be a name without slashes or a leading dot, got '..'."),
        ("a\\b", "--dataset must be a name without slashes or a leading dot, got 'a\\\\b'."),
        (
            "runs",
            "--dataset must not be runs, ensembles or bench, which are showtell's own folders, got",
        ),
    ],
)
def test_dataset_must_be_the_name_of_a_folder(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DatasetConfig(dataset=name)
    assert str(caught.value).startswith(message)
    assert DatasetConfig(dataset="my photos 2").dataset == "my photos 2"


def test_folders_of_a_dataset_follow_from_its_name() -> None:
    config = DatasetConfig(data=Path("root"), dataset="scenes")
    assert config.dataset_dir == Path("root/scenes")
    assert config.captions_dir == Path("root/scenes/captions")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "/h"),
        ("~/x", "/h/x"),
        ("a/~", "a/~"),
        ("~nobody!/x", "~nobody!/x"),
    ],
)
def test_home_folders_in_paths_are_expanded(monkeypatch, given, expected) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert StageConfig(data=given).data == Path(expected)
