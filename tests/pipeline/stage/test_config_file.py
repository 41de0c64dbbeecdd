import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from showtell.pipeline.stage.config_file import format_config, read_config_file
from showtell.pipeline.stage.errors import ConfigError
from showtell.pipeline.stage.options import StageConfig, argument, option


@dataclass(frozen=True, kw_only=True)
class Train(StageConfig):
    run: str | None = option(None, "Run.")
    batch_size: int = option(8, "Batch.", at_least=1)
    rate: float = option(1e-3, "Rate.", above=0)
    tie: bool = option(True, "Tie.")
    table: Path | None = option(None, "Table.")
    seeds: list[int] | None = option(None, "Seeds.")


@dataclass(frozen=True, kw_only=True)
class Caption(StageConfig):
    images: list[Path] = argument("Images.", metavar="IMAGE")
    beam: int = option(3, "Beam.", at_least=1)


CONFIGS = {"train": Train, "caption": Caption}


def read(tmp_path: Path, text: str, command: str = "train") -> dict[str, Any]:
    path = tmp_path / "c.toml"
    path.write_text(text, "utf-8")
    return read_config_file(path, command, CONFIGS)


def test_keys_are_option_names_with_hyphens_or_underscores(tmp_path) -> None:
    assert read(tmp_path, "batch-size = 2") == read(tmp_path, "batch_size = 2") == {"batch_size": 2}


def test_values_arrive_in_the_type_of_their_option(tmp_path) -> None:
    text = 'data = "d"\nrate = 1\ntie = false\ntable = "t.csv"\nseeds = 3\nrun = "r"'
    values = read(tmp_path, text)
    assert values == {
        "data": Path("d"),
        "rate": 1.0,
        "tie": False,
        "table": Path("t.csv"),
        "seeds": [3],
        "run": "r",
    }
    assert type(values["rate"]) is float
    assert read(tmp_path, 'images = ["a", "b"]', "caption") == {"images": [Path("a"), Path("b")]}


def test_table_of_a_command_beats_keys_that_all_commands_share(tmp_path) -> None:
    text = 'data = "d"\nbeam = 9\n[train]\nbatch-size = 4\n[caption]\nbeam = 5\n'
    assert read(tmp_path, text) == {"data": Path("d"), "batch_size": 4}
    assert read(tmp_path, text, "caption") == {"data": Path("d"), "beam": 5}


def test_empty_file_sets_nothing(tmp_path) -> None:
    assert read(tmp_path, "") == read(tmp_path, "[caption]\nbeam = 1") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beam = 3", "c.toml: 'beam' is not an option of 'showtell train'."),
        (
            "batchsize = 3",
            "c.toml: 'batchsize' is not an option of 'showtell train'. Did you mean 'batch-size'?",
        ),
        (
            "[train]\nbatch_sise = 3",
            "c.toml: [train]: 'batch_sise' is not an option of 'showtell train'. Did you mean",
        ),
        ("nothing = 3\n[train]", "c.toml: 'nothing' is not an option of 'showtell train'."),
        (
            "[trian]\nrun = 'r'",
            "c.toml: [trian] is not a command of showtell; expected one of train, caption. Did you",
        ),
        ("batch-size = 0", "c.toml: --batch-size must be at least 1, got 0."),
        ("[train]\nrate = 'x'", "c.toml: [train]: --rate must be a number, got 'x'."),
        ("run = 2020-01-01", "c.toml: --run must be text, got 2020-01-01."),
        ("rate = inf", "c.toml: --rate must be above 0 and finite, got inf."),
    ],
)
def test_mistake_is_refused_with_the_file_and_the_key(tmp_path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert str(caught.value)[-1] in ".?"


def test_file_that_cannot_be_read_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*no\.toml cannot be read: No such file"):
        read_config_file(tmp_path / "no.toml", "train", CONFIGS)
    with pytest.raises(ConfigError, match=r"--config .*c\.toml is not a TOML file: "):
        read(tmp_path, "run =")
    (tmp_path / "latin.toml").write_bytes(b'run = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml is not a TOML file: "):
        read_config_file(tmp_path / "latin.toml", "train", CONFIGS)


@pytest.mark.parametrize(
    "text", ["plain", "quotes \" and \\ and '", "new\nline\ttab", "é ☃ 😀", "\x00\x1f\x7f", ""]
)
def test_any_text_survives_writing_and_reading(tmp_path, text: str) -> None:
    printed = format_config("train", Train(run=text))
    assert read(tmp_path, printed)["run"] == text


def test_written_options_are_read_back(tmp_path) -> None:
    config = Train(
        data=Path("my data"), batch_size=2, rate=1e-7, tie=False, table=Path("t"), seeds=[1, 2]
    )
    assert Train(**read(tmp_path, format_config("train", config))) == config
    caption = Caption(images=[Path("a"), Path("b c")])
    assert Caption(**read(tmp_path, format_config("caption", caption), "caption")) == caption


def test_defaults_are_commented_out_unless_they_were_given() -> None:
    text = format_config("train", Train(run="r"), given=("batch_size",))
    assert tomllib.loads(text) == {"train": {"run": "r", "batch-size": 8}}
    assert text.splitlines()[:3] == ["[train]", '# data = "data"', 'run = "r"']
    assert "# table =" in text.splitlines() and "# tie = true" in text.splitlines()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("batch-size = true", "--batch-size must be an integer, got true."),
        ("batch-size = 2024-01-31", "--batch-size must be an integer, got 2024-01-31."),
        ("run = 2024-01-31T01:02:03Z", "--run must be text, got 2024-01-31T01:02:03+00:00."),
        ("run = 01:02:03", "--run must be text, got 01:02:03."),
        ("rate = [true, 1]", "--rate must be a number, got [true, 1]."),
        ("batch-size = nan", "--batch-size must be an integer, got nan."),
    ],
)
def test_values_are_shown_as_in_the_file(tmp_path, text: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).endswith(shown)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000, "1" + "0" * 400])
def test_monstrous_values_are_an_error_or_a_number(tmp_path, value: str) -> None:
    if len(value) < 1000:
        assert read(tmp_path, f"batch-size = {value}") == {"batch_size": 10**400}
        return
    with pytest.raises(ConfigError, match="is not a TOML file"):
        read(tmp_path, f"batch-size = {value}")
