"""The short version of `make chaos`: a few faults in every stage, and all of them survived."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos")


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="the faults are a C library for Linux",
)
def test_few_faults_in_every_stage_are_survived(tmp_path: Path) -> None:
    kinds = ("killed", "power cut", "flipped bit")
    command = [sys.executable, CHAOS, "--quick", "--jobs", "1", "--faults", *kinds]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| killed | tried |" in done.stdout and " 0 not survived" in done.stdout
