import io
import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from showtell.pipeline.stage import console as console_module
from showtell.pipeline.stage.console import (
    ProgressLine,
    format_bytes,
    format_seconds,
    output_mode,
    print_aside,
    print_error,
    print_json,
    print_note,
    print_result,
    print_table,
    print_warning,
    worker_initializer,
)


@dataclass
class Score:
    """Something that `print_json` shows as an object."""

    name: str
    value: float


@dataclass
class Clock:
    """Stands in for `time`: it moves only when told to."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_module, "time", clock)
    return clock


@pytest.fixture
def plain(monkeypatch) -> io.StringIO:
    """What is printed where the output is no terminal."""
    written = io.StringIO()
    plain = Console(file=written, highlight=False, width=200, force_terminal=False)
    monkeypatch.setattr(console_module, "console", plain)
    return written


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """What is printed on a narrow terminal with colours."""
    monkeypatch.setenv("TERM", "xterm")  # whatever the tests themselves run in
    written = io.StringIO()
    narrow = Console(
        file=written,
        highlight=False,
        width=60,
        force_terminal=True,
        color_system="standard",
        no_color=False,
    )
    monkeypatch.setattr(console_module, "console", narrow)
    monkeypatch.setattr(console_module, "error_console", narrow)
    return written


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0s"),
        (0.04, "0.0s"),
        (42.13, "42.1s"),
        (59.9, "59.9s"),
        (60, "1:00"),
        (185, "3:05"),
        (185.4, "3:05"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (7385, "2:03:05"),
        (100 * 3600, "100:00:00"),
    ],
)
def test_seconds_read_as_a_clock(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_140_000, "3.1 MB"),
        (12_500_000_000, "12.5 GB"),
        (2_000_000_000_000, "2.0 TB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_bytes_read_in_powers_of_1000(size_bytes: float, expected: str) -> None:
    assert format_bytes(size_bytes) == expected


def test_progress_off_a_terminal_is_a_plain_line_every_ten_seconds(clock, plain) -> None:
    with ProgressLine("features", total=10_000, unit="img") as progress:
        for _ in range(50):  # 25 seconds
            clock.now += 0.5
            progress.advance(100)
    assert plain.getvalue().splitlines() == [
        "features 2,000/10,000  200 img/s  eta 40.0s",
        "features 4,000/10,000  200 img/s  eta 30.0s",
    ]


def test_progress_line_shows_where_the_time_goes(clock, plain) -> None:
    with ProgressLine("features", total=83_000, unit="img") as progress:
        clock.now += 10
        progress.advance(1000, shares={"read": 0.254, "compute": 0.7})
    assert (
        plain.getvalue() == "features 1,000/83,000  100 img/s  read 25%  compute 70%  eta 13:40\n"
    )


def test_progress_text_takes_the_place_of_the_rate(clock, plain) -> None:
    with ProgressLine("epoch 1/18", total=300, unit="steps") as progress:
        clock.now += 11
        progress.advance(7, shares={"data": 0.5}, text="loss 3.2")
    assert plain.getvalue() == "epoch 1/18 7/300  loss 3.2\n"


def test_resumed_progress_does_not_count_earlier_work_as_speed(clock, plain) -> None:
    with ProgressLine("features", total=1000, unit="img", start=900) as progress:
        clock.now += 10
        progress.advance(50)
        assert progress.rate == 5.0
    assert plain.getvalue() == "features 950/1,000  5 img/s  eta 10.0s\n"


def test_progress_without_any_progress_has_no_eta(clock, plain) -> None:
    with ProgressLine("download", total=100, unit="B") as progress:
        clock.now += 10
        progress.advance(0)
    assert plain.getvalue() == "download 0/100  0 B/s\n"


def test_quick_stage_prints_no_progress_off_a_terminal(clock, plain) -> None:
    with ProgressLine("decode", total=10, unit="img") as progress:
        for _ in range(10):
            clock.now += 0.9
            progress.advance(1)
    assert plain.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_goes_away(terminal) -> None:
    with ProgressLine("decode", total=40, unit="img") as progress:
        progress.advance(10)
        assert progress.bar is not None
        task = progress.bar.tasks[0]
        assert (task.completed, task.total) == (10, 40)
        assert "img/s" in task.fields["text"]
    assert not progress.bar.live.is_started
    assert terminal.getvalue().endswith("\x1b[2K")  # its line is erased


def test_progress_bar_stops_after_an_error(terminal) -> None:
    with pytest.raises(ZeroDivisionError), ProgressLine("decode", 4, "img") as progress:
        raise ZeroDivisionError
    assert progress.bar is not None and not progress.bar.live.is_started


LONG = "/data/scenes/captions/captions.parquet is not what it was, " * 5 + "[red]run[/red] again."


def test_error_is_one_red_line(terminal) -> None:
    print_error(LONG)
    assert terminal.getvalue() == f"\x1b[1;31merror: {LONG}\x1b[0m\n"


def test_warning_is_one_yellow_line(terminal) -> None:
    print_warning(LONG)
    assert terminal.getvalue() == f"\x1b[33mwarning: {LONG}\x1b[0m\n"


def test_off_a_terminal_errors_and_warnings_are_plain_text_on_stderr(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console_module, "error_console", Console(stderr=True, width=40))
    print_error(LONG)
    print_warning(LONG)
    captured = capsys.readouterr()
    assert captured.err == f"error: {LONG}\nwarning: {LONG}\n"
    assert captured.out == ""


def test_note_is_one_line_as_it_is(plain) -> None:
    print_note(LONG)
    assert plain.getvalue() == f"{LONG}\n"


def test_result_is_one_line_as_it_is(plain) -> None:
    print_result(LONG)
    assert plain.getvalue() == f"{LONG}\n"


def test_quiet_mode_hides_progress_and_notes(clock, plain, capsys) -> None:
    with output_mode(quiet=True), ProgressLine("decode", total=10, unit="img") as progress:
        clock.now += 60
        progress.advance(1)
        print_note("note")
        print_aside("aside")
        print_result("result")
        print_table("title", [("a", "b")])
        print_warning("careful")
        print_error("broken")
    captured = capsys.readouterr()
    assert plain.getvalue().split() == ["result", "title", "a", "b"]
    assert captured.err == "warning: careful\nerror: broken\n"
    print_note("after")
    assert plain.getvalue().endswith("after\n")


def test_quiet_mode_shows_no_bar_on_a_terminal(terminal) -> None:
    with output_mode(quiet=True), ProgressLine("decode", total=10, unit="img") as progress:
        progress.advance(1)
    assert progress.bar is None and terminal.getvalue() == ""


def test_json_mode_moves_notes_to_stderr_and_replaces_tables(plain, capsys) -> None:
    with output_mode(json=True):
        print_note("note")
        print("another library")
        print_result("result")
        print_table("title", [("a", "b")])
        print_json({"path": Path("a/b"), "scores": [Score("CIDEr", math.nan), Score("x", 0.5)]})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "path": str(Path("a/b")),
        "scores": [{"name": "CIDEr", "value": None}, {"name": "x", "value": 0.5}],
    }
    assert captured.err == "note\nanother library\n"
    assert plain.getvalue() == ""


def test_json_is_printed_only_when_asked_for(plain, capsys) -> None:
    print_json([1])
    with output_mode(quiet=True):
        print_json([1])
    assert capsys.readouterr().out == plain.getvalue() == ""


def test_json_keeps_unicode_and_replaces_infinity(capsys) -> None:
    with output_mode(json=True):
        print_json({"text": "日本", "values": (math.inf, -math.inf, 1e300, True, None)})
    shown = capsys.readouterr().out
    assert "日本" in shown
    assert json.loads(shown)["values"] == [None, None, 1e300, True, None]


def test_worker_processes_respect_the_mode() -> None:
    assert worker_initializer() is None
    for mode in ({"quiet": True}, {"json": True}):
        with output_mode(**mode):
            assert worker_initializer() is not None


def test_table_has_a_title_and_a_row_for_each_row(plain) -> None:
    print_table("prepare", [("images", "60"), ("path", "data/scenes/captions")])
    lines = [line.split() for line in plain.getvalue().splitlines()]
    assert lines == [["prepare"], ["images", "60"], ["path", "data/scenes/captions"]]


def test_table_with_a_header_aligns_numbers_right(plain) -> None:
    print_table("t", [("train", "8"), ("val", "10,000")], ("split", "images"))
    title, header, *rows = plain.getvalue().splitlines()
    assert title.strip() == "t" and header.split() == ["split", "images"]
    assert [row.rstrip()[-6:] for row in rows] == ["     8", "10,000"]


def test_empty_table_is_only_its_title_and_header(plain) -> None:
    print_table("status", [], ("stage", "state"))
    assert plain.getvalue().split() == ["status", "stage", "state"]


def test_long_path_in_a_table_is_not_folded_off_a_terminal(plain) -> None:
    path = "/somewhere/" + "very-long-name/" * 8
    print_table("t", [("path", path)])
    assert path in plain.getvalue()


PRINT_ALL = """
import sys
from pathlib import Path
from showtell.pipeline.stage import console, signals

def work():
    console.protect_output()
    with console.output_mode(json=len(sys.argv) > 2):
        for _ in range(800):
            console.print_result("caf\\udce9 \\u4e2d \\u00e9")
            console.print_note("a note \\u4e2d")
        console.print_table("t\\u00eftle", [("n\\udce9me", "\\u4e2d")], ("a", "b"))
        console.print_warning("caf\\udce9 \\u4e2d")
        console.print_json({"caf\\udce9": "\\u4e2d \\u00e9", "path": Path("caf\\udce9")})
        print("another library \\u4e2d")
    Path(sys.argv[1]).write_text("done")
    print("lost:", console.find_lost_output(), file=sys.stderr)
    return 0

signals.run_stoppable(work)
"""


def print_all(redirections: str, done: Path, *json: str, **environment: str) -> tuple[str, str]:
    """Print everything in a shell; return stdout and stderr. Nothing must end the program."""
    command = shlex.join([sys.executable, "-c", PRINT_ALL, str(done), *json])
    shell = f"{command} {redirections}"
    result = subprocess.run(["sh", "-c", shell], capture_output=True, env=os.environ | environment)
    stdout, stderr = result.stdout.decode("latin-1"), result.stderr.decode("latin-1")
    assert result.returncode == 0 and done.read_text() == "done", stderr
    assert "Traceback" not in stderr and "Exception ignored" not in stderr
    return stdout, stderr


@pytest.mark.parametrize(
    ("redirections", "lost"),
    [
        (">&-", "None"),
        ("> /dev/full", "No space left on device"),
        (">&- <&-", "None"),
    ],
)
def test_output_that_cannot_be_written_ends_nothing(tmp_path, redirections: str, lost: str) -> None:
    for json_option in ((), ("json",)):
        _, errors = print_all(redirections, tmp_path / "done", *json_option)
        assert errors.endswith(f"lost: {lost}\n")
        (tmp_path / "done").unlink()


@pytest.mark.parametrize("redirections", ["2>&-", "2> /dev/full", ">&- 2>&-", "| head -n 1"])
def test_lost_errors_and_closed_pipes_end_nothing(tmp_path, redirections: str) -> None:
    stdout, errors = print_all(redirections, tmp_path / "done")
    assert (not errors) == ("2>" in redirections)
    if "head" in redirections:
        assert stdout.count("\n") == 1 and errors.endswith("lost: None\n")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "utf-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: next(iter(environment.values())),
)
def test_characters_that_stdout_lacks_become_escape_sequences(tmp_path, environment) -> None:
    stdout, errors = print_all("", tmp_path / "done", **environment)
    assert "caf\\udce9" in stdout and "n\\udce9me" in stdout and "caf\\udce9" in errors
    assert ("\\u4e2d" in stdout) == (environment != {"PYTHONIOENCODING": "utf-8"})
    stdout, _ = print_all("", tmp_path / "done", "json", **environment)
    expected = {"caf\udce9": "\u4e2d \u00e9", "path": "caf\udce9"}
    assert json.loads(stdout) == expected


def test_output_on_a_full_disk_is_an_error_after_the_work(tmp_path) -> None:
    command = shlex.join([sys.executable, "-m", "showtell", "status", "--data", str(tmp_path)])
    for redirection, status in ((">/dev/full", 1), (">&-", 0)):
        done = subprocess.run(["sh", "-c", command + redirection], capture_output=True, text=True)
        assert done.returncode == status
        message = "error: stdout could not be written: No space left on device. The files of the"
        assert done.stderr.startswith(message) if status else not done.stderr
