"""A data folder with evaluated runs, and its report."""

import shutil
from pathlib import Path

import pytest

from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate
from showtell.model.train import train
from showtell.serving.config import ReportConfig
from showtell.serving.report.collect import Report, collect
from showtell.serving.report.page import render_html
from showtell.serving.report.plots import Plot


@pytest.fixture(scope="session")
def evaluated_runs(prepared_grids, tmp_path_factory) -> Path:
    """A data folder with runs `plain` and `soft`, each evaluated, and their ensemble; read-only."""
    data = Path(shutil.copytree(prepared_grids, tmp_path_factory.mktemp("report") / "data"))
    sizes = {"hidden_size": 32, "embed_size": 32, "batch_size": 32, "epochs": 4}
    common = {"data": data, "dataset": "scenes", "learning_rate": 2e-2, "precision": "fp32"}
    train(TrainConfig(run="plain", **common, **sizes))
    train(TrainConfig(run="soft", attention="soft", **common, **sizes))
    options = {"data": data, "num_samples": 0, "precision": "fp32"}
    evaluate(EvalConfig(run=["plain"], **options))
    evaluate(EvalConfig(run=["plain", "soft"], views=2, **options))
    evaluate(EvalConfig(run=["soft"], n_best=3, beam=3, **options))
    return data


@pytest.fixture
def data(evaluated_runs, tmp_path) -> Path:
    """A copy of `evaluated_runs` that a test may write to."""
    return Path(shutil.copytree(evaluated_runs, tmp_path / "data"))


@pytest.fixture(scope="session")
def soft_report(evaluated_runs) -> Report:
    """The report on run `soft`, with two other evaluations."""
    return collect(ReportConfig(data=evaluated_runs, evaluation="soft"))


@pytest.fixture(scope="session")
def soft_page(soft_report) -> bytes:
    """The page of `soft_report`, with its plots."""
    return render_html(soft_report)


@pytest.fixture
def without_plots(monkeypatch) -> None:
    """Draw no plots: they take most of the time, and have tests of their own."""
    monkeypatch.setattr(Plot, "to_svg", lambda self: "<svg></svg>")
    monkeypatch.setattr(Plot, "to_png", lambda self: b"\x89PNG")
