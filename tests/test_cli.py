import dataclasses
import errno
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from showtell import cli
from showtell.bench.config import BenchConfig
from showtell.features.config import FeaturesConfig
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.generation.options import DecodingOptions
from showtell.model.retrieval.config import NeighboursConfig
from showtell.model.runs.config import RunsConfig, StatusConfig, VerifyConfig
from showtell.model.scoring.config import CompareConfig, ScoreConfig
from showtell.model.sweeps.config import SweepConfig
from showtell.pipeline import prepare as prepare_module
from showtell.pipeline.config import DownloadConfig, PrepareConfig
from showtell.pipeline.datasets.scenes import draw_scenes
from showtell.pipeline.stage import console
from showtell.pipeline.stage.errors import (
    DISK_ERRORS,
    DatasetError,
    HubUnreachableError,
    ShowTellError,
    StoppedError,
)
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.stage.options import metavar_of, options_of, spec_of, typed_name
from showtell.serving.config import (
    CaptionConfig,
    ExportConfig,
    PullConfig,
    PushConfig,
    ReportConfig,
)
from showtell.serving.server.config import ServeConfig

CONFIGS = {
    "download": DownloadConfig,
    "prepare": PrepareConfig,
    "features": FeaturesConfig,
    "neighbours": NeighboursConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
    "caption": CaptionConfig,
    "export": ExportConfig,
    "push": PushConfig,
    "pull": PullConfig,
    "serve": ServeConfig,
    "report": ReportConfig,
    "runs": RunsConfig,
    "compare": CompareConfig,
    "score": ScoreConfig,
    "sweep": SweepConfig,
    "bench": BenchConfig,
    "status": StatusConfig,
    "verify": VerifyConfig,
}
GENERAL = ("--config", "--print-config", "--json", "--quiet", "--help")

Run = Callable[..., tuple[int, str]]


def subclasses_of(kind: type) -> list[type]:
    """All subclasses, direct and indirect."""
    direct = kind.__subclasses__()
    return direct + [found for child in direct for found in subclasses_of(child)]


@pytest.fixture(autouse=True)
def same_everywhere(monkeypatch) -> None:
    """Neither the environment nor the terminal of the tests shows in the output."""
    for name in ("SHOWTELL_DATA", "SHOWTELL_CLIP", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(console, "error_console", Console(stderr=True, force_terminal=False))


@pytest.fixture
def prepared(monkeypatch) -> list[PrepareConfig]:
    """The configs that `showtell prepare` has been run with; nothing is prepared."""
    seen: list[PrepareConfig] = []
    monkeypatch.setattr(prepare_module, "prepare", seen.append)
    return seen


@pytest.fixture
def trained(monkeypatch) -> list[TrainConfig]:
    """The configs that `showtell train` has been run with; nothing is trained."""
    from showtell.model import train as train_module

    seen: list[TrainConfig] = []
    monkeypatch.setattr(train_module, "train", seen.append)
    return seen


def help_panels(text: str) -> dict[str, str]:
    """Panel title → its content, each of its entries on one line."""
    panels: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.*?) ─", line):
            content = panels.setdefault(title[1], [])
        elif line.startswith("│"):
            cell = line.strip("│ ")
            if re.match(r"│ {1,6}\S", line) or not content:
                content.append(cell)
            else:
                content[-1] += f" {cell}"
    return {title: "\n".join(lines) for title, lines in panels.items()}


def help_entries(text: str) -> dict[str, str]:
    """Option or argument → everything that the help shows about it, without spaces."""
    lines = "\n".join(help_panels(text).values()).splitlines()
    return {line.lstrip("* ").split()[0]: line.replace(" ", "") for line in lines}


def shown_default(field: "dataclasses.Field[Any]") -> str | None:
    if isinstance(field.default, bool):
        return ("" if field.default else "no-") + field.name.replace("_", "-")
    shown = str(field.default).replace(" ", "")
    return None if field.default in (None, dataclasses.MISSING) else shown


@pytest.mark.parametrize("command", CONFIGS)
def test_help_shows_every_option_with_its_values_and_default(showtell: Run, command) -> None:
    status, output = showtell(command, "--help")
    entries = help_entries(output)
    fields = {typed_name(field): field for field in options_of(CONFIGS[command])}
    assert status == 0
    assert set(entries) == {*fields, *GENERAL}
    for name, field in fields.items():
        entry, spec = entries[name], spec_of(field)
        assert spec.help.replace(" ", "") in entry
        assert (metavar_of(field) or "").replace(" ", "") in entry
        assert f"[envvar:{spec.envvar}]" in entry or spec.envvar is None
        default = shown_default(field)
        if default is None:
            assert "[default" not in entry
        else:
            assert f"[default:{default}]" in entry


def test_help_groups_the_options_in_panels(showtell: Run) -> None:
    panels = help_panels(showtell("train", "--help")[1])
    assert list(panels) == [
        *("Input", "Model", "Training", "Self-critical training", "Validation"),
        *("Output", "Hardware", "General"),
    ]
    assert "[gru|lstm|rnn|transformer]" in panels["Model"] and "INTEGER >= 1" in panels["Model"]
    assert "0 <= FLOAT < 1" in panels["Training"]
    assert "--help" in panels["General"] and "--quiet" in panels["General"]


@pytest.mark.parametrize("command", CONFIGS)
def test_help_ends_with_examples_that_the_command_accepts(
    showtell: Run, command: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text("[train]\nepochs = 3\n")
    text = showtell(command, "--help")[1]
    examples = re.findall(r"showtell (.+?)\s*$", text.partition("Examples:")[2], re.MULTILINE)
    assert examples and all(example.startswith(command) for example in examples)
    for example in examples:
        status, output = showtell(*shlex.split(example), "--print-config")
        assert status == 0, output


def test_help_lists_every_command_the_exit_codes_and_examples(showtell: Run) -> None:
    status, output = showtell("--help")
    panels = help_panels(output)
    assert status == 0
    listed = {*panels["Stages"].splitlines(), *panels["Tools"].splitlines()}
    assert {line.split()[0] for line in listed} == set(CONFIGS)
    assert all(re.match(r"\w+ +[A-Z]\w+ .*\.$", line) for line in listed)
    assert re.search(r"Exit codes:\s+0 +success\s+1 +error.*\s+2 +wrong usage", output)
    assert re.search(
        r"\n +3 +pretrained weights.*\s+130 +stopped by Ctrl-C\s+143 +stopped by SIG", output
    )
    for example in re.findall(r"showtell (\w+) .+", output.partition("Examples:")[2]):
        assert example in CONFIGS


def test_no_command_shows_the_help(showtell: Run) -> None:
    status, output = showtell()
    assert status in (0, 2)
    assert "Usage:" in output and all(command in output for command in CONFIGS)


def test_version_is_that_of_the_package(showtell: Run) -> None:
    import showtell as package

    assert showtell("--version") == (0, f"showtell {package.__version__}\n")


def run_module(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m showtell` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "showtell", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_package_runs_as_a_module() -> None:
    done = run_module("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"showtell \d+\.\d+.*\n", done.stdout)


def test_help_has_colour_only_where_it_is_wanted() -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    forced = {"FORCE_COLOR": "1", "TERM": "xterm"}
    assert colour.search(run_module("status", "--help", **forced).stdout)
    assert not colour.search(run_module("status", "--help", **forced, NO_COLOR="1").stdout)
    assert "\x1b" not in run_module("status", "--help", FORCE_COLOR="", TERM="xterm").stdout
    error = run_module("train", "--epochs", "0", **forced)
    assert colour.search(error.stderr) and error.returncode == 1
    error = run_module("train", "--epochs", "0", **forced, NO_COLOR="1")
    assert not colour.search(error.stderr) and "--epochs must be at least 1" in error.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("showtell fea", ["features"]),
        ("showtell train --att", ["--attention", "--attention-size"]),
        ("showtell train --cell l", ["lstm"]),
    ],
)
def test_shell_completes_commands_options_and_choices(words: str, expected: list[str]) -> None:
    done = run_module(
        _SHOWTELL_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
    )
    assert done.stdout.split() == expected


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
        [sys.executable, "-c", HELP_OF_ALL, *CONFIGS], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Usage:") == len(CONFIGS)
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


def test_flags_can_be_switched_on_and_off(showtell: Run, trained) -> None:
    assert showtell("train", "--no-tie-embeddings", "--resume", "--dropout", 0.25)[0] == 0
    assert trained == [TrainConfig(tie_embeddings=False, resume=True, dropout=0.25)]
    assert set(trained[0].given) == {"tie_embeddings", "resume", "dropout"}


def test_environment_names_the_data_folder(showtell: Run, prepared, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SHOWTELL_DATA", str(tmp_path))
    assert showtell("prepare")[0] == 0
    assert showtell("prepare", "--data", "here")[0] == 0
    assert [config.data for config in prepared] == [tmp_path, Path("here")]
    status, output = showtell("status")
    assert status == 0 and output.startswith(f"{tmp_path} is empty")


def test_error_is_one_red_line_and_exit_code_1(showtell: Run, monkeypatch) -> None:
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


@pytest.mark.parametrize("kind", [ShowTellError, *subclasses_of(ShowTellError)])
def test_error_ends_the_command_with_its_exit_code(showtell: Run, monkeypatch, kind) -> None:
    def fail(config: PrepareConfig) -> None:
        raise kind("what and where")

    monkeypatch.setattr(prepare_module, "prepare", fail)
    expected = {HubUnreachableError: 3, StoppedError: 130}.get(kind, 1)
    assert showtell("prepare") == (expected, "error: what and where\n")


def test_error_of_a_stage_is_the_only_one_if_stdout_is_lost_too(showtell, monkeypatch) -> None:
    def fail(config: PrepareConfig) -> None:
        raise ShowTellError("captions.parquet could not be written.")

    monkeypatch.setattr(prepare_module, "prepare", fail)
    monkeypatch.setattr(cli, "find_lost_output", lambda: "No space left on device")
    assert showtell("prepare") == (1, "error: captions.parquet could not be written.\n")


def test_option_out_of_range_is_an_error(showtell: Run) -> None:
    status, output = showtell("train", "--epochs", 0)
    assert status == 1
    assert output == "error: --epochs must be at least 1, got 0.\n"


def test_path_that_cannot_be_used_is_an_error(showtell: Run, monkeypatch) -> None:
    def fail(config: PrepareConfig) -> None:
        raise PermissionError(13, "Permission denied", "/locked/x")

    monkeypatch.setattr(prepare_module, "prepare", fail)
    assert showtell("prepare") == (1, "error: /locked/x: Permission denied.\n")


@pytest.mark.parametrize("path", ["/data/x", None])
@pytest.mark.parametrize("code", DISK_ERRORS, ids=errno.errorcode.get)
def test_error_of_the_disk_is_one_line(showtell: Run, monkeypatch, code: int, path: str) -> None:
    def fail(config: PrepareConfig) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(prepare_module, "prepare", fail)
    where = path or "a file could not be read or written"
    assert showtell("prepare") == (1, f"error: {where}: {os.strerror(code)}.\n")


def test_lack_of_memory_is_one_line(showtell: Run, monkeypatch) -> None:
    def fail(config: PrepareConfig) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare_module, "prepare", fail)
    status, output = showtell("prepare")
    assert status == 1 and output.startswith("error: there is not enough memory.")


def test_bug_keeps_its_traceback(showtell: Run, monkeypatch) -> None:
    def fail(config: PrepareConfig) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(prepare_module, "prepare", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        showtell("prepare")


def test_garbage_collector_runs_rarely_and_skips_imported_objects_at_exit() -> None:
    code = (
        "import atexit, gc, sys; from showtell import cli\n"
        "atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0))\n"
        "sys.argv = ['showtell', '--help']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.endswith("100000 True\n")


def test_traceback_of_a_bug_is_plain_and_shows_no_local_values() -> None:
    code = (
        "import sys; from showtell import cli; from showtell.pipeline import prepare\n"
        "def fail(config): secret = 'a local ' + 'value'; raise ZeroDivisionError('a bug')\n"
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
def test_wrong_usage_shows_the_usage_and_exits_with_2(showtell: Run, arguments) -> None:
    status, output = showtell(*arguments)
    assert status == 2
    assert "Usage: showtell" in output and "Traceback" not in output


def test_json_is_all_that_stdout_gets(run_showtell, monkeypatch) -> None:
    def prepare(config: PrepareConfig) -> Manifest:
        print("another library")
        console.print_note("a note")
        console.print_table("title", [("name", "value")])
        console.print_result("a line of results")
        console.print_warning("careful")
        return Manifest("prepare", 1, config.as_json(), {}, {"a": 1}, details={"bad": math.nan})

    monkeypatch.setattr(prepare_module, "prepare", prepare)
    status, output, errors = run_showtell("prepare", "--dataset", "own", "--json")
    document = json.loads(output)
    assert status == 0
    assert document["stage"] == "prepare" and document["config"]["dataset"] == "own"
    assert document["outputs"] == {"a": 1} and document["details"] == {"bad": None}
    assert errors == "another library\na note\nwarning: careful\n"


def test_failed_command_prints_no_json(run_showtell, tmp_path) -> None:
    status, output, errors = run_showtell("eval", "--data", tmp_path, "--json")
    assert (status, output) == (1, "")
    assert errors.startswith("error: ")


def test_json_of_status_lists_the_stages(showtell_json, tmp_path) -> None:
    assert showtell_json("status", "--data", tmp_path) == (0, [])
    config = PrepareConfig(dataset="own").as_json()
    details = {"source": "photos"}
    manifest = Manifest(
        "prepare", 1, config, {}, {}, {"num_images": 3}, seconds=1.5, details=details
    )
    manifest.write(tmp_path / "own" / "captions")
    _, stages = showtell_json("status", "--data", tmp_path)
    assert stages[0] == {
        "stage": "prepare",
        "path": str(tmp_path / "own" / "captions"),
        "state": "done",
        "counts": {"num_images": 3},
        "seconds": 1.5,
        "size_bytes": 0,
    }
    assert stages[1]["state"] == "missing" and stages[1]["counts"] is None


def test_quiet_hides_progress_and_notes_but_not_results_and_warnings(
    showtell: Run, monkeypatch
) -> None:
    def prepare(config: PrepareConfig) -> None:
        console.print_note("a note")
        console.print_aside("an aside")
        with console.ProgressLine("work", 10, "img") as line:
            line.printed -= 60
            line.advance(1)
        console.print_table("title", [("name", "value")])
        console.print_result("a line of results")
        console.print_warning("careful")

    monkeypatch.setattr(prepare_module, "prepare", prepare)
    for option in ("--quiet", "-q"):
        status, output = showtell("prepare", option)
        assert status == 0
        assert output.split() == [
            *("title", "name", "value"),
            *("a", "line", "of", "results"),
            *("warning:", "careful"),
        ]
    assert "a note" in showtell("prepare")[1]  # nothing is left of the option before


@pytest.fixture
def config_file(tmp_path) -> Callable[[str], Path]:
    """Write a config file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def test_command_line_beats_environment_beats_config_file_beats_preset_beats_default(
    showtell: Run, trained, config_file, monkeypatch
) -> None:
    path = config_file('data = "file"\npreset = "views"\nema = 0.5\nepochs = 2\nseed = 3\n')
    monkeypatch.setenv("SHOWTELL_DATA", "environment")
    assert showtell("train", "--config", path, "--epochs", 5)[0] == 0
    assert trained == [
        TrainConfig(data="environment", preset="views", views=4, ema=0.5, epochs=5, seed=3)
    ]
    assert set(trained[0].given) == {"data", "preset", "ema", "epochs", "seed"}
    assert showtell("train", "--config", path, "--data", "here", "--ema", 0.9)[0] == 0
    assert (trained[1].data, trained[1].ema) == (Path("here"), 0.9)


def test_config_file_can_give_arguments_lists_and_flags(
    showtell: Run, config_file, monkeypatch
) -> None:
    from showtell.model import compare as compare_module
    from showtell.model import evaluate as evaluate_module

    seen: list[Any] = []
    monkeypatch.setattr(evaluate_module, "evaluate", seen.append)
    monkeypatch.setattr(compare_module, "compare", seen.append)
    path = config_file(
        'data = "d"\n[eval]\nrun = ["a", "b"]\npool = true\nconsensus = 9\n'
        '[compare]\neval_a = "a"\neval-b = "b"\n'
    )
    assert showtell("eval", "--config", path) == (0, "")
    assert showtell("eval", "--config", path, "--no-pool", "--run", "c") == (0, "")
    assert showtell("compare", "--config", path) == (0, "")
    assert seen == [
        EvalConfig(data="d", run=["a", "b"], pool=True, consensus=9),
        EvalConfig(data="d", run=["c"], consensus=9),
        CompareConfig(data="d", eval_a="a", eval_b="b"),
    ]


def test_mistake_in_a_config_file_is_an_error_that_names_it(showtell: Run, config_file) -> None:
    path = config_file("[train]\nbatch-sise = 64\n")
    status, output = showtell("train", "--config", path)
    assert status == 1
    assert output == (
        f"error: {path}: [train]: 'batch-sise' is not an option of 'showtell train'. "
        "Did you mean 'batch-size'?\n"
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ("--preset", "soft-attention", "--ema", 0, "--seed", 0, "--run", 'a "b" é')),
        ("train", ("--learning-rate", 1e-5, "--no-tie-embeddings", "--word-vectors", "v.txt")),
        ("eval", ("--run", "a", "--run", "b", "--beam", 5, "--spice", "--data", "d")),
        ("caption", ("a.jpg", "folder", "--preset", "consensus", "--views", 2)),
        ("bench", ("train", "decode", "--seconds", 3)),
        ("prepare", ("--table", "t.csv", "--min-count", 1)),
    ],
)
def test_printed_config_gives_the_same_options_again(
    showtell: Run, config_file, command: str, arguments: tuple[object, ...]
) -> None:
    status, printed = showtell(command, *arguments, "--print-config")
    assert status == 0 and printed.startswith(f"[{command}]\n")
    assert showtell(command, "--config", config_file(printed), "--print-config") == (0, printed)
    names = [declared.name.replace("_", "-") for declared in options_of(CONFIGS[command])]
    assert re.findall(r"^(?:# )?([\w-]+) =", printed, re.MULTILINE) == names


def test_printed_config_trains_the_same_run(showtell: Run, trained, config_file) -> None:
    arguments = ("train", "--preset", "self-critical", "--init", "r", "--xe-weight", 0)
    assert showtell(*arguments) == (0, "")
    path = config_file(showtell(*arguments, "--print-config")[1])
    assert showtell("train", "--config", path) == (0, "")
    assert trained[0] == trained[1]


def test_printing_an_invalid_config_is_an_error(showtell: Run) -> None:
    status, output = showtell("train", "--epochs", 0, "--print-config")
    assert (status, output) == (1, "error: --epochs must be at least 1, got 0.\n")


def test_caption_passes_its_options_on(showtell: Run, monkeypatch, tmp_path) -> None:
    from showtell.serving import caption

    calls: list[object] = []

    def load(folder: Path, **options: object) -> SimpleNamespace:
        calls.append((folder, options))
        return SimpleNamespace(decoding_options=lambda **given: DecodingOptions(**given))

    def caption_files(
        loaded: object, images: list[Path], options: DecodingOptions, **_: object
    ) -> int:
        calls.append((images, options.decoding_name))
        return 1 if Path("bad.jpg") in images else 0

    monkeypatch.setattr(caption, "load", load)
    monkeypatch.setattr(caption, "caption_files", caption_files)
    defaults = {"data": tmp_path, "weights": None, "max_pixels": 89_478_485}
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").touch()
    common = ("--run", model, "--data", tmp_path)
    given = ("caption", "a.jpg", "b", "--beam", 5, "--n-best", 2, "--precision", "fp32")
    assert showtell(*given, *common)[0] == 0
    assert calls == [
        (model, {"device": "auto", "precision": "fp32", **defaults}),
        ([Path("a.jpg"), Path("b")], "beam5-nbest2"),
    ]
    # An image that could not be read shows in the exit status.
    assert showtell("caption", "bad.jpg", *common)[0] == 1
    assert calls[2] == (model, {"device": "auto", "precision": "auto", **defaults})
    both = showtell("caption", "a.jpg", *common, "--model", model)
    assert both == (1, "error: --run and --model exclude each other; give one.\n")


def test_package_offers_the_captioner() -> None:
    import showtell as package
    from showtell.serving import captioner, load

    assert package.load is load.load and package.Captioner is captioner.Captioner
    with pytest.raises(AttributeError, match="nosuch"):
        package.nosuch  # noqa: B018
    assert all(hasattr(package, name) for name in package.__all__)


def test_main_is_the_console_script() -> None:
    from importlib.metadata import entry_points

    from showtell import __main__

    (script,) = entry_points(group="console_scripts", name="showtell")
    assert script.load() is __main__.main


RUN_EACH = """
import sys
from showtell.cli import run
for command in sys.argv[1:]:
    sys.argv[1:] = command.split("|")
    print(command.split("|")[0], "->", run(), flush=True)
"""


@pytest.fixture
def read_only_data(scenes: Path) -> Iterator[Path]:
    """A data folder with a finished run that this user cannot write."""
    from showtell.model.train import train

    prepare_module.prepare(PrepareConfig(data=scenes, dataset="scenes", min_count=1))
    sizes = {"hidden_size": 8, "embed_size": 8}
    train(TrainConfig(data=scenes, dataset="scenes", run="r", epochs=1, **sizes))
    for path in (scenes, *scenes.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield scenes
    for path in (scenes, *scenes.rglob("*")):
        path.chmod(0o755)


def without_privileges() -> list[str]:
    """Return how to run a command for which the modes of files hold, although root runs it."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Path → mtime and size of everything in a folder."""
    found = {str(path): path.stat() for path in sorted(folder.rglob("*"))}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def test_finished_stages_are_up_to_date_in_a_folder_that_cannot_be_written(
    read_only_data: Path, random_weights: Path
) -> None:
    data = f"--data|{read_only_data}"
    features = f"features|--dataset|scenes|--encoder|resnet18|--weights|{random_weights}|{data}"
    commands = [
        f"status|{data}",
        f"verify|{data}",
        f"prepare|--dataset|scenes|--min-count|1|{data}",
        f"{features}|--image-size|64|--shard-size|25",
        f"prepare|--dataset|scenes|--min-count|2|{data}",
        f"{features}|--image-size|32",
        f"download|--dataset|coco2014|{data}",
    ]
    before = state_of(read_only_data)
    done = subprocess.run(
        [*without_privileges(), sys.executable, "-c", RUN_EACH, *commands],
        capture_output=True,
        text=True,
        check=True,
    )
    statuses = re.findall(r"^\w+ -> (\d)$", done.stdout, re.MULTILINE)
    assert statuses == list("0000111"), done.stdout + done.stderr
    assert done.stdout.count("up to date") == 2
    assert done.stderr.count("could not be written: Permission denied") == 3, done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert state_of(read_only_data) == before


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_files_get_the_modes_that_the_umask_says(
    showtell: Run, tmp_path, random_weights, umask: int
) -> None:
    before = os.umask(umask)
    try:
        draw_scenes(tmp_path / "scenes" / "raw", num_train=4, num_val=2, num_test=2)
        data = ("--dataset", "scenes", "--data", tmp_path)
        network = ("--encoder", "resnet18", "--weights", random_weights, "--image-size")
        for arguments in (
            ("prepare", *data, "--min-count", 1),
            ("features", *data, *network, 64, "--grid", "--views", 2),
            ("features", *data, *network, 32, "--format", "parquet"),
            ("train", *data, "--run", "r", "--epochs", 1, "--features", "resnet18-random-64"),
        ):
            status, output = showtell(*arguments)
            assert status == 0, output
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len({path.suffix for path in files}) >= 7
    for path in tmp_path.rglob("*"):
        allowed = 0o777 if path.is_dir() else 0o666
        assert oct(path.stat().st_mode & 0o777) == oct(allowed & ~umask), path
