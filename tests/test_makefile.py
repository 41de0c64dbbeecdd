"""The commands of each make target, as `make --dry-run` prints them."""

import os
import re
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
    # Join continued lines and drop the double spaces that an omitted option leaves.
    return re.sub(r"\s*\\\n\s*|  +", " ", done.stdout)


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


def test_paths_with_quotes_and_accents_reach_the_commands() -> None:
    commands = dry_run("prepare", "SOURCE=/Zoé's photos", "DATA=/Zoé's data")
    assert r"SHOWTELL_DATA='/Zoé'\''s data' " in commands
    assert r"--source '/Zoé'\''s photos'" in commands


@pytest.mark.parametrize("folder", ["data", "my data é"])
def test_demo_resumes_a_stopped_training(tmp_path, folder: str) -> None:
    data = tmp_path / folder
    assert "--resume" not in dry_run("demo", f"DATA={data}")
    (data / "runs/demo").mkdir(parents=True)
    (data / "runs/demo/last.safetensors").touch()
    assert "--resume" in dry_run("demo", f"DATA={data}")


def test_flickr8k_recipe_runs_every_stage_in_order(tmp_path) -> None:
    commands = dry_run("flickr8k", "SOURCE=/my/flickr8k", f"DATA={tmp_path}", "ARGS=--split val")
    stages = [
        "showtell prepare --dataset flickr8k --source '/my/flickr8k'",
        "showtell features --dataset flickr8k --weights caffe --views 4 --grid",
        "--features resnet50-caffe --run flickr8k-soft-0 --seed 0 --preset soft-attention",
        "--run flickr8k-sc-0 --seed 0 --preset self-critical --init flickr8k-soft-0",
        "showtell eval --run flickr8k-sc-0 --preset consensus --split val",
    ]
    places = [commands.index(stage) for stage in stages]
    assert places == sorted(places) and "--resume" not in commands


def test_flickr8k_ensemble_trains_three_seeds_and_resumes_a_stopped_one(tmp_path) -> None:
    (tmp_path / "runs/flickr8k-soft-1").mkdir(parents=True)
    (tmp_path / "runs/flickr8k-soft-1/last.safetensors").touch()
    commands = dry_run("flickr8k-ensemble", "SOURCE=/my/flickr8k", f"DATA={tmp_path}")
    for seed in range(3):
        run = f"flickr8k-soft-{seed}"
        assert f"--run {run} --seed {seed}" in commands
        assert f"--run flickr8k-sc-{seed} --seed {seed}" in commands
        assert f"--preset self-critical --init {run}" in commands
    assert commands.count("--resume") == 1
    runs = " ".join(f"--run flickr8k-sc-{seed}" for seed in range(3))
    assert f"eval {runs} --preset consensus --pool --consensus-precision 2" in commands
