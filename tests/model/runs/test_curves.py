import json
from pathlib import Path

import matplotlib.figure
import pytest
from matplotlib.figure import Figure
from PIL import Image

from showtell.model.config import TrainConfig
from showtell.model.runs import curves
from showtell.model.runs.curves import draw_curves, read_curves
from showtell.model.runs.layout import CURVES_NAME, LOG_NAME
from showtell.model.train import train

SIZES = {"hidden_size": 8, "embed_size": 8, "batch_size": 32}


def write_log(run_dir: Path, num_epochs: int, **extra: float) -> None:
    """Write the log of a run with 100 steps per epoch."""
    records: list[dict[str, float]] = []
    for epoch in range(1, num_epochs + 1):
        for step in (100 * epoch - 50, 100 * epoch):
            records.append({"step": step, "loss": 5 / step, "lr": 1e-3} | extra)
        records.append(
            {"step": step, "epoch": epoch, "val_CIDEr": 0.1 * epoch, "val_Bleu_4": 0.02 * epoch}
        )
    run_dir.mkdir()
    (run_dir / LOG_NAME).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(autouse=True)
def curves_are_drawn(monkeypatch) -> None:
    """Draw, unlike in all other tests."""
    monkeypatch.setattr(curves, "draw_curves", draw_curves)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that `draw_curves` makes."""
    figures = list[Figure]()

    class Recorded(Figure):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            figures.append(self)

    monkeypatch.setattr(curves, "Figure", Recorded)
    return figures


def test_values_are_drawn_over_epochs(tmp_path, drawn) -> None:
    write_log(tmp_path / "$r_1$", 3)  # a name that would be a formula
    path = draw_curves(tmp_path / "$r_1$", "CIDEr", 3)
    with Image.open(path) as image:
        assert image.size == (1200, 456)
        image.load()
    loss, scores = drawn[0].axes
    (line,) = loss.get_lines()
    assert list(line.get_xdata()) == [0.5, 1, 1.5, 2, 2.5, 3]
    assert list(line.get_ydata()) == [5 / step for step in (50, 100, 150, 200, 250, 300)]
    cider, bleu, best = scores.get_lines()
    assert cider.get_ydata() == pytest.approx([10, 20, 30]) and cider.get_label() == "CIDEr"
    assert bleu.get_ydata() == pytest.approx([2, 4, 6]) and list(bleu.get_xdata()) == [1, 2, 3]
    assert list(best.get_xdata()) == [3, 3]
    assert "best: epoch 3, CIDEr 30.0" in scores.get_title()
    assert drawn[0].get_suptitle() == "$r_1$"


@pytest.mark.parametrize("lost, best", [(1, "epoch 3, CIDEr 30.0)"), (3, "epoch 3)")])
def test_score_of_the_best_epoch_is_found_in_a_log_with_gaps(tmp_path, drawn, lost, best) -> None:
    run_dir = tmp_path / "r"
    write_log(run_dir, 4)
    lines = (run_dir / LOG_NAME).read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("epoch") != lost]
    (run_dir / LOG_NAME).write_text("".join(kept))
    draw_curves(run_dir, "CIDEr", 3)
    assert drawn[0].axes[1].get_title().endswith(f"(best: {best}")


def test_self_critical_training_shows_the_reward(tmp_path, drawn) -> None:
    write_log(tmp_path / "r", 1, reward=0.7)
    draw_curves(tmp_path / "r", "Bleu_4", 1)
    training = drawn[0].axes[0]
    assert training.get_title() == "Reward"
    assert list(training.get_lines()[0].get_ydata()) == [0.7, 0.7]


def test_training_draws_its_curves_and_says_where(scenes, capsys) -> None:
    config = TrainConfig(data=scenes, dataset="scenes", run="r", epochs=5, patience=1, **SIZES)
    manifest = train(config)
    path = scenes / "runs/r" / CURVES_NAME
    assert str(path) in capsys.readouterr().out
    with Image.open(path) as image:
        image.load()
    assert CURVES_NAME not in manifest.outputs
    num_epochs = manifest.counts["num_epochs"]  # training stops early
    assert len(read_curves(scenes / "runs/r" / LOG_NAME)["val_CIDEr"][0]) == num_epochs < 5


def test_a_drawing_that_fails_is_a_warning(scenes, capsys, monkeypatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    manifest = train(TrainConfig(data=scenes, dataset="scenes", run="r", epochs=1, **SIZES))
    shown = capsys.readouterr()
    assert "curves of" in shown.err and "could not be drawn: no font" in shown.err
    assert manifest.counts["num_epochs"] == 1 and not (scenes / "runs/r" / CURVES_NAME).exists()
