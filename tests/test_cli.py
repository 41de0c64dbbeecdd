import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from showtell import cli
from showtell.features.config import FeaturesConfig
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.generation.options import DecodingOptions
from showtell.pipeline import prepare as prepare_module
from showtell.pipeline.config import DownloadConfig, PrepareConfig
from showtell.pipeline.stage import console
from showtell.pipeline.stage.errors import DatasetError, ShowTellError
from showtell.pipeline.stage.options import options_of, spec_of

STAGES = {
    "download": DownloadConfig,
    "prepare": PrepareConfig,
    "features": FeaturesConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}
COMMANDS = (*STAGES, "caption", "status")

Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch) -> None:
    """Neither the environment nor the terminal of the tests shows in the output."""
    monkeypatch.delenv("SHOWTELL_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "error_console", Console(stderr=True, force_terminal=False))


@pytest.fixture
def prepared(monkeypatch) -> list[PrepareConfig]:
    """The configs that `showtell prepare` has been run with; nothing is prepared."""
    seen: list[PrepareConfig] = []
    monkeypatch.setattr(prepare_module, "prepare", seen.append)
    return seen


def help_entries(text: str) -> dict[str, str]:
    """Option → all that the help says of it, on one line: `--name TYPE  text  [default: …]`."""
    entries: list[list[str]] = []
    for line in text.partition("Options:")[2].splitlines():
        if re.match(r" {2}-", line):
            entries.append([])
        if entries:
            entries[-1].append(line.strip())
    joined = [" ".join(" ".join(entry).split()) for entry in entries]
    return {entry.split()[0]: entry for entry in joined}


def shown_default(field: "dataclasses.Field[Any]") -> str | None:
    if isinstance(field.default, bool):
        return ("" if field.default else "no-") + field.name.replace("_", "-")
    return None if field.default is None else str(field.default)


@pytest.mark.parametrize("command", STAGES)
def test_every_option_of_a_config_is_in_the_help_of_its_command(showtell: Run, command) -> None:
    status, output = showtell(command, "--help")
    entries = help_entries(output)
    fields = options_of(STAGES[command])
    assert status == 0
    assert list(entries) == [*(f"--{f.name.replace('_', '-')}" for f in fields), "--help"]
    for field in fields:
        entry = entries[f"--{field.name.replace('_', '-')}"]
        assert spec_of(field).help.replace(" ", "") in entry.replace(" ", "")
        default = shown_default(field)
        if default is None:
            assert "[default" not in entry
        else:
            assert f"default:{default}]" in entry.replace(" ", "")


def test_help_names_every_command_with_a_line(showtell: Run) -> None:
    status, output = showtell("--help")
    assert status == 0
    for command in COMMANDS:
        assert re.search(rf"^\s*{command} +[A-Z]\w+ ", output, re.MULTILINE), command


def test_command_without_arguments_shows_the_help(showtell: Run) -> None:
    status, output = showtell()
    assert status in (0, 2)
    assert "Usage:" in output and all(command in output for command in COMMANDS)


@pytest.mark.parametrize("command", ["caption", "status"])
def test_commands_without_a_config_explain_their_options(showtell: Run, command: str) -> None:
    status, output = showtell(command, "--help")
    assert status == 0
    entry = help_entries(output)["--data"]
    assert "SHOWTELL_DATA" in entry and "default: data]" in entry


HELP_OF_ALL = """
import sys
from showtell.cli import main
for command in sys.argv[1:]:
    sys.argv[1:] = [command, "--help"]
    try:
        main()
    except SystemExit:
        pass
print(sorted({"torch", "torchvision", "pyarrow", "h5py", "PIL"} & set(sys.modules)))
"""


def test_help_of_every_command_loads_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *COMMANDS], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Usage:") == len(COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_options_mean_the_defaults_of_the_config(showtell: Run, prepared) -> None:
    assert showtell("prepare") == (0, "")
    assert prepared == [PrepareConfig()]


def test_options_arrive_in_the_config_with_their_types(showtell: Run, prepared) -> None:
    status, _ = showtell(
        *("prepare", "--dataset", "own", "--table", "a.csv", "--min-count", 2, "--seed", 7),
        *("--data", "root"),
    )
    assert status == 0
    assert prepared == [
        PrepareConfig(data=Path("root"), dataset="own", table=Path("a.csv"), min_count=2, seed=7)
    ]


def test_flags_can_be_switched_on_and_off(showtell: Run, monkeypatch) -> None:
    from showtell.model import train as train_module

    seen: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", seen.append)
    assert showtell("train", "--no-tie-embeddings", "--resume", "--dropout", 0.25)[0] == 0
    assert seen == [TrainConfig(tie_embeddings=False, resume=True, dropout=0.25)]
    assert set(seen[0].given) == {"tie_embeddings", "resume", "dropout"}


def test_environment_names_the_data_folder(showtell: Run, prepared, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SHOWTELL_DATA", str(tmp_path))
    assert showtell("prepare")[0] == 0
    assert showtell("prepare", "--data", "here")[0] == 0
    assert [config.data for config in prepared] == [tmp_path, Path("here")]
    status, output = showtell("status")
    assert status == 0 and output.startswith(f"{tmp_path} holds nothing yet")


def test_error_of_showtell_is_one_red_line_and_exit_status_1(showtell: Run, monkeypatch) -> None:
    message = "captions.csv is empty; see [docs] and 'showtell prepare --help'. " * 6

    def fail(config: PrepareConfig) -> None:
        raise DatasetError(message.strip())

    monkeypatch.setattr(prepare_module, "prepare", fail)
    assert showtell("prepare") == (1, f"error: {message.strip()}\n")
    # The same on a terminal, in red.
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(
        stderr=True,
        highlight=False,
        force_terminal=True,
        color_system="standard",
        no_color=False,
    )
    monkeypatch.setattr(console, "error_console", terminal)
    assert showtell("prepare") == (1, f"\x1b[1;31merror: {message.strip()}\x1b[0m\n")


def test_every_error_of_showtell_is_caught(showtell: Run, monkeypatch) -> None:
    kinds: list[type[ShowTellError]] = ShowTellError.__subclasses__()
    assert len(kinds) >= 8
    for kind in (ShowTellError, *kinds):

        def fail(config: object, kind: type[ShowTellError] = kind) -> None:
            raise kind("what and where")

        monkeypatch.setattr(prepare_module, "prepare", fail)
        assert showtell("prepare") == (kind.exit_status, "error: what and where\n")


def test_impossible_option_is_an_error_of_showtell(showtell: Run) -> None:
    status, output = showtell("train", "--epochs", 0)
    assert status == 1
    assert output == "error: --epochs must be at least 1, got 0.\n"


def test_bug_keeps_its_traceback(showtell: Run, monkeypatch) -> None:
    def fail(config: PrepareConfig) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(prepare_module, "prepare", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        showtell("prepare")


def test_collector_walks_rarely_and_not_at_the_end() -> None:
    """What imports have made would be walked through for more than a second."""
    code = (
        "import atexit, gc, sys; from showtell import cli\n"
        "atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0))\n"
        "sys.argv = ['showtell', '--help']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.endswith("100000 True\n")


def test_traceback_of_a_bug_is_pythons_own_and_shows_no_locals() -> None:
    code = (
        "import sys; from showtell import cli; from showtell.pipeline import prepare\n"
        "def fail(config): secret = 'a local value'; raise ZeroDivisionError('a bug')\n"
        "prepare.prepare = fail; sys.argv = ['showtell', 'prepare']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.endswith("ZeroDivisionError: a bug\n")
    assert "a local value" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("prepare", "--nosuch"), ("prepare", "--min-count", "many"), ("paint",), ("caption",)],
    ids=" ".join,
)
def test_misused_command_line_gets_the_usage_and_exit_status_2(showtell: Run, arguments) -> None:
    status, output = showtell(*arguments)
    assert status == 2
    assert "Usage: showtell" in output and "Traceback" not in output


def test_caption_passes_its_options_on(showtell: Run, monkeypatch, tmp_path) -> None:
    from showtell.serving import captioner

    calls: list[object] = []

    def load(run: str | None, **options: object) -> str:
        calls.append((run, options))
        return "the captioner"

    def caption_files(loaded: object, images: list[Path], options: DecodingOptions) -> int:
        calls.append((loaded, images, options.decoding_name))
        return 1 if Path("bad.jpg") in images else 0

    monkeypatch.setattr(captioner, "load", load)
    monkeypatch.setattr(captioner, "caption_files", caption_files)
    given = ("caption", "a.jpg", "b", "--run", "r", "--beam", 5, "--n-best", 2, "--device", "cpu")
    assert showtell(*given, "--data", tmp_path)[0] == 0
    assert calls == [
        ("r", {"data": tmp_path, "weights": None, "device": "cpu"}),
        ("the captioner", [Path("a.jpg"), Path("b")], "beam5-nbest2"),
    ]
    # An image that could not be read shows in the exit status.
    assert showtell("caption", "bad.jpg", "--run", "r")[0] == 1
    assert calls[2] == ("r", {"data": Path("data"), "weights": None, "device": "auto"})


def test_package_offers_the_captioner() -> None:
    import showtell as package
    from showtell.serving import captioner

    assert package.load is captioner.load and package.Captioner is captioner.Captioner
    with pytest.raises(AttributeError, match="nosuch"):
        package.nosuch  # noqa: B018


def test_main_is_the_console_script() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="showtell")
    assert script.load() is cli.main
