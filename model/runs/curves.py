"""Draw the log of a run as `curves.png`: the training loss, and the scores of each validation."""

import io
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...pipeline.stage.files import write_bytes
from .layout import CURVES_NAME, LOG_NAME

Curve = tuple[list[float], list[float]]  # epochs, values

COLORS = {
    "loss": "tab:blue",
    "reward": "tab:blue",
    "val_CIDEr": "tab:orange",
    "val_Bleu_4": "tab:green",
}
SIZE_INCHES, DPI = (10.0, 3.8), 120
MAX_MARKERS = 40  # more points than these need no markers


def draw_curves(run_dir: Path, monitor: str, best_epoch: int) -> Path:
    """Draw the curves of a run that has finished.

    Args:
        run_dir: folder of the run, with its log.
        monitor: the score that selected the best epoch.
        best_epoch: counted from 1.

    Returns:
        The path of the PNG file.

    Raises:
        OSError, ValueError, LookupError: the log cannot be read.
        StorageError: the file cannot be written.
    """
    curves = read_curves(run_dir / LOG_NAME)
    figure = Figure(SIZE_INCHES, dpi=DPI, layout="constrained")  # without pyplot: no window
    figure.suptitle(run_dir.name, parse_math=False)
    training, validation = figure.subplots(1, 2)
    if "reward" in curves:  # with --scst, the loss is no measure of progress
        _plot(training, "Reward", curves, ("reward",))
    else:
        _plot(training, "Training loss", curves, ("loss",))
    # The log may lack epochs: a damaged line is dropped when a training continues.
    scores = dict(zip(curves["epoch"][1], curves[f"val_{monitor}"][1], strict=True))
    best = f"epoch {best_epoch}"
    if best_epoch in scores:
        best += f", {monitor} {100 * scores[best_epoch]:.1f}"
    title = f"Validation, scores × 100 (best: {best})"
    _plot(validation, title, curves, ("val_CIDEr", "val_Bleu_4"), scale=100)
    validation.axvline(best_epoch, color="gray", linestyle="--", label="best epoch")
    validation.set_ylim(bottom=0)
    validation.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(run_dir / CURVES_NAME, content.getvalue())
    return run_dir / CURVES_NAME


def read_curves(log: Path) -> dict[str, Curve]:
    """Read the curves in `metrics.jsonl`: name of a value → its epochs and values.

    Epochs are fractions: 1.5 is in the middle of the second epoch.
    """
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    (*_, last) = (record for record in records if "epoch" in record)
    curves: dict[str, Curve] = {}
    for record in records:
        for name, value in record.items():
            epochs, values = curves.setdefault(name, ([], []))
            epochs.append(record["step"] * last["epoch"] / last["step"])
            values.append(value)
    return curves


def _plot(
    axes: Axes, title: str, curves: dict[str, Curve], names: tuple[str, ...], scale: float = 1
) -> None:
    """Plot some of the curves over the epochs."""
    for name in names:
        epochs, values = curves[name]
        marker = "." if len(values) <= MAX_MARKERS else ""
        scaled = [scale * value for value in values]
        label = name.removeprefix("val_")
        axes.plot(epochs, scaled, color=COLORS[name], marker=marker, label=label)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.02 * epochs[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
