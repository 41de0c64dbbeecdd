"""`bench/gpu.sh`, without running it: its syntax, its commands and its time limits."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
BASH = shutil.which("bash")

pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")


def run_script(*options: str) -> list[str]:
    command = [str(BASH), str(SCRIPT), *options]
    # In other locales bash escapes the accents of the folder's name in its own way.
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_script_has_valid_syntax_and_is_executable() -> None:
    subprocess.run([str(BASH), "-n", str(SCRIPT)], check=True)
    assert SCRIPT.stat().st_mode & 0o100


@pytest.mark.parametrize("mode", [(), ("--dry-run",)])
def test_every_showtell_command_is_valid(mode, showtell, tmp_path) -> None:
    lines = run_script("--list", "--coco", str(tmp_path), *mode)
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("showtell ")]
    assert {command[0] for command in commands} == {"bench", "download", "prepare", "features"}
    for command in commands:
        status, output = showtell(*command, "--print-config")
        assert status == 0, output


def test_tests_of_the_dry_run_exist() -> None:
    (line,) = (line for line in run_script("--list", "--dry-run") if "pytest" in line)
    words = shlex.split(line)
    assert Path(words[words.index("-q") + 1]).is_file()
    chosen = words[words.index("-k") + 1].replace("(", " ").replace(")", " ").split()
    source = Path(words[words.index("-q") + 1]).read_text("utf-8")
    assert "test_decoded_batches" in source and "decoded" in chosen


def test_time_limits_leave_the_script_below_seven_minutes(tmp_path) -> None:
    steps = [line for line in run_script("--list", "--coco", str(tmp_path)) if line[0] == "#"]
    limits = [int(line.removesuffix(" s").split()[-1]) for line in steps]
    assert len(limits) == 6 and sum(limits) < 420


def test_unknown_option_prints_the_usage() -> None:
    done = subprocess.run([str(BASH), str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 2 and "--wheels DIR" in done.stdout
