"""What `make` would run, read off `make --dry-run`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def dry_run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [str(MAKE), "--dry-run", "--always-make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "SHOWTELL_DATA"} | environment,
    )
    return done.stdout


def test_machine_without_npm_gets_it_as_a_wheel(tmp_path) -> None:
    assert "'.[dev,caffe]'" in dry_run("install", PATH=str(tmp_path))
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\n")
    npm.chmod(0o755)
    assert "'.[dev]'" in dry_run("install", PATH=str(tmp_path))


def test_stages_default_to_coco_2014_and_download_it() -> None:
    commands = dry_run("prepare", "features", "train")
    for stage in ("download", "prepare", "features", "train"):
        assert f"showtell {stage} --dataset coco2014" in commands


def test_variables_reach_the_commands() -> None:
    commands = dry_run(
        "prepare", "train", "DATASET=flickr8k", "SOURCE=/my photos", "RUN=first", "ARGS=--seed 1"
    )
    assert "download" not in commands
    assert "showtell prepare --dataset flickr8k --source '/my photos' --seed 1" in commands
    assert "showtell train --dataset flickr8k --run first --seed 1" in commands


def test_data_folder_comes_from_make_or_from_the_environment() -> None:
    assert "SHOWTELL_DATA='data' " in dry_run("features")
    assert "SHOWTELL_DATA='/big disk' " in dry_run("features", "DATA=/big disk")
    assert "SHOWTELL_DATA='/big disk' " in dry_run("features", SHOWTELL_DATA="/big disk")


def test_demo_goes_on_where_it_was_stopped(tmp_path) -> None:
    assert "--resume" not in dry_run("demo", f"DATA={tmp_path}")
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/last.safetensors").touch()
    assert "--resume" in dry_run("demo", f"DATA={tmp_path}")
