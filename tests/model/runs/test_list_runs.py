import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.runs.run import RunConfig
from showtell.model.train import train
from showtell.pipeline.stage.files import write_json

Run = Callable[..., tuple[int, str]]
SIZES: dict[str, Any] = {"hidden_size": 8, "embed_size": 8, "batch_size": 64}


@pytest.fixture(scope="module")
def trained(prepared_scenes, tmp_path_factory) -> Path:
    """A data folder with two runs."""
    data = Path(shutil.copytree(prepared_scenes, tmp_path_factory.mktemp("list") / "data"))
    for run, options in (("b", {"cell": "lstm", "epochs": 2}), ("a", {"epochs": 1, "seed": 3})):
        train(TrainConfig(data=data, dataset="scenes", run=run, **(SIZES | options)))
    return data


@pytest.fixture
def data(trained, tmp_path, scorers) -> Path:
    """A copy with evaluations of `b` and of the ensemble of both."""
    data = Path(shutil.copytree(trained, tmp_path / "data"))
    for run, beam, cider in ((["b"], 1, 0.2), (["b"], 3, 0.4), (["a", "b"], 2, 0.3)):
        evaluate(EvalConfig(data=data, run=run, beam=beam, num_samples=0))
        set_score(data, "+".join(run), f"test-beam{beam}", cider)
    return data


def set_score(data: Path, run: str, evaluation: str, cider: float) -> None:
    """Change the CIDEr of an evaluation, as in a version without checksums."""
    folder = data / ("ensembles" if "+" in run else "runs") / run / "eval" / evaluation
    metrics = json.loads((folder / "metrics.json").read_text()) | {"CIDEr": cider}
    write_json(folder / "metrics.json", metrics)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["outputs"]["metrics.json"] = (folder / "metrics.json").stat().st_size
    del manifest["checksum"]
    manifest["checksums"] = {}
    write_json(folder / "manifest.json", manifest)


def test_names_select_runs_and_ensembles(data, showtell_json, showtell: Run) -> None:
    _, rows = showtell_json("runs", "a*", "x", "--data", data)
    assert [row["run"] for row in rows] == ["a", "a+b"]
    status, output = showtell("runs", "x", "--data", data)
    assert (status, output) == (0, f"{data / 'runs'} has no runs named x.\n")


def test_rows_hold_the_options_that_differ_and_all_scores(data, showtell_json) -> None:
    status, rows = showtell_json("runs", "--data", data)
    assert status == 0
    assert [(row["run"], row["evaluation"], row["CIDEr"]) for row in rows] == [
        ("a", None, None),
        ("b", "test-beam1", 0.2),
        ("b", "test-beam3", 0.4),
        ("a+b", "test-beam2", 0.3),
    ]
    assert all((row["state"], row["dataset"]) == ("done", "scenes") for row in rows)
    a, b = rows[0], rows[1]
    assert (a["cell"], a["seed"], a["epochs"]) == ("gru", 3, 1)
    assert (b["cell"], b["seed"], b["epochs"]) == ("lstm", 0, 2)
    assert "hidden_size" not in a and "run" not in {*a} - {"run"}
    manifest = json.loads((data / "runs/b/manifest.json").read_text())
    assert b["best_epoch"] == manifest["counts"]["best_epoch"] and b["num_epochs"] == 2
    assert b["val_CIDEr"] == manifest["details"]["CIDEr"]
    assert b["num_images"] == 10 and 0 < b["METEOR"] < 1
    assert (rows[3]["cell"], rows[3]["best_epoch"]) == (None, None)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("cider", [0.4, 0.3, 0.2, None]),
        ("--seed", [3, 0, 0, None]),
        ("learning-rate", None),
        ("evaluation", ["test-beam1", "test-beam2", "test-beam3", None]),
    ],
)
def test_rows_are_sorted_best_first(data, run_showtell, column: str, expected: Any) -> None:
    status, output, errors = run_showtell("runs", "--data", data, f"--sort={column}", "--json")
    if expected is None:
        assert status == 1 and "--sort must be one of run, state, dataset, cell, epochs" in errors
        return
    name = {"cider": "CIDEr", "--seed": "seed"}.get(column, column)
    assert [row[name] for row in json.loads(output)] == expected


def test_table_shows_options_as_typed(data, showtell: Run) -> None:
    status, output = showtell("runs", "--data", data, "--sort", "CIDEr")
    assert status == 0
    lines = [line.split() for line in output.splitlines()[1:]]
    assert " ".join(lines[0]) == "run options best epoch val CIDEr evaluation Bleu_4 METEOR CIDEr"
    assert lines[1][0] == "b" and lines[1][-1] == "40.0" and "--cell lstm --epochs 2" in output
    assert lines[4][:5] == ["a", "--epochs", "1", "--seed", "3"]
    status, output = showtell("runs", "--data", data, "--sort", "ROUGE_L")
    assert output.splitlines()[1].split()[-1] == "ROUGE_L"


def test_csv_has_all_columns(data, run_showtell, tmp_path) -> None:
    status, output, _ = run_showtell("runs", "--data", data, "--csv", "-")
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["CIDEr"] for row in rows] == ["", "0.2", "0.4", "0.3"]
    assert rows[1]["cell"] == "lstm" and float(rows[1]["val_CIDEr"]) >= 0
    status, shown, _ = run_showtell("runs", "--data", data, "--csv", tmp_path / "runs.csv")
    assert status == 0 and "4 rows written to" in shown
    assert (tmp_path / "runs.csv").read_text() == output


def test_damaged_and_unfinished_runs_are_listed(data, showtell: Run, showtell_json) -> None:
    (data / "runs/b/eval/test-beam3/metrics.json").write_text("{")
    (data / "runs/b/eval/test-beam1/scores.npz").unlink()
    for name, damage in (("config", "config.json"), ("best", "best.safetensors")):
        shutil.copytree(data / "runs/a", data / "runs" / name)
        (data / "runs" / name / damage).write_bytes(b"{}")
    shutil.copytree(data / "runs/a", data / "runs/stopped")
    (data / "runs/stopped/manifest.json").unlink()
    log = data / "runs/stopped/metrics.jsonl"
    log.write_bytes(b"\0\0\n[]\n" + log.read_bytes() + b'{"step": 9, "lo')
    # As a run of an earlier version.
    values = vars(RunConfig.read(data / "runs/a"))
    train_options = {k: v for k, v in values["train"].items() if k != "scst"}
    old = values | {"decoder": vars(values["decoder"]), "train": train_options}
    shutil.copytree(data / "runs/a", data / "runs/old")
    (data / "runs/old/manifest.json").unlink()
    (data / "runs/old/last.safetensors").unlink()
    write_json(data / "runs/old/config.json", old)
    status, rows = showtell_json("runs", "--data", data)
    assert status == 0
    states = {(row["run"], row["evaluation"]): row["state"] for row in rows}
    assert states["b", "test-beam3"] == "damaged: metrics.json"
    assert states["b", "test-beam1"] == "stale: scores.npz is missing"
    assert states["config", None] == "damaged: config.json"
    assert states["best", None] == "damaged: best.safetensors"
    assert states["stopped", None] == "stopped: continue with --resume"
    assert states["old", None] == "missing"
    stopped = next(row for row in rows if row["run"] == "stopped")
    assert (stopped["best_epoch"], stopped["num_epochs"]) == (1, 1)
    status, output = showtell("runs", "--data", data, "--sort", "state")
    assert status == 0 and "damaged: config.json" in output


def test_without_runs_the_first_command_is_suggested(tmp_path, showtell: Run) -> None:
    status, output = showtell("runs", "--data", tmp_path, "--sort", "CIDEr")
    assert status == 0 and "has no runs. Start with 'showtell train'" in output
