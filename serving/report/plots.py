"""The plots of a report, drawn by matplotlib: SVG inside the page, or PNG beside a Markdown file.

The page replaces the colors of an SVG by CSS variables, so that plots follow the theme.
"""

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...model.runs.curves import Curve, read_curves
from ...model.runs.layout import LOG_NAME

# Colors of the light theme → CSS variables of the page.
INK, SOFT, LINE, PAPER = "#1c2024", "#60646c", "#d9d9e0", "#fdfdfe"
SERIES = ("#3e63dd", "#e5484d", "#299764", "#ab6400", "#8e4ec6")
CSS_COLORS = {INK: "ink", SOFT: "soft", LINE: "line", PAPER: "paper"} | {
    color: f"series-{i}" for i, color in enumerate(SERIES)
}

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # "$" in a name is a dollar sign
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(color={list(SERIES)})",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}
SIZE = (5.2, 2.9)  # inches; at 72 points an inch, text stays readable at the width of a phone

Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """A plot that has not been drawn yet.

    Attributes:
        name: short name, for files.
        title: its title.
        text: what it shows, for people who cannot see it.
        draw: draws it on the axes of a figure.
        height: in inches.
    """

    name: str
    title: str
    text: str
    draw: Draw = field(repr=False)
    height: float = SIZE[1]

    def to_svg(self) -> str:
        """Draw as an `<svg>` element whose colors are CSS variables."""
        with rc_context({**STYLE, "svg.hashsalt": self.name}):
            content = self._render("svg", metadata={"Date": None, "Creator": None})
        svg = content.decode()
        svg = svg[svg.index("<svg") :]
        # The page scales it, so drop its own size, and the metadata.
        svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        for color, name in CSS_COLORS.items():
            svg = svg.replace(color, f"var(--{name})")
        return svg

    def to_png(self) -> bytes:
        """Draw as the content of a PNG file."""
        with rc_context(STYLE):
            return self._render("png", dpi=150, facecolor=PAPER)

    def _render(self, format: str, **options: object) -> bytes:
        figure = Figure(figsize=(SIZE[0], self.height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        self.draw(axes)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts
            figure.savefig(file, format=format, **options)  # type: ignore[arg-type]
        return file.getvalue()


def find_curves(run_dir: Path) -> dict[str, Curve]:
    """Read the curves of a run; empty if it has no finished epoch, or its log is damaged."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return read_curves(run_dir / LOG_NAME)
    return {}


def display_name(score: str) -> str:
    """Return the name of a score as people write it: `Bleu_4` is BLEU-4."""
    return score.replace("Bleu_", "BLEU-").replace("ROUGE_L", "ROUGE-L")


def shorten(name: str, length: int = 34) -> str:
    """Return a name that fits into a legend. Matplotlib hides names that start with "_"."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= length else f"{name[: length - 1]}…"


def plot_scores(
    names: Sequence[str],
    evaluations: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]],
) -> Plot:
    """Plot scores with their intervals.

    Args:
        names: of the scores.
        evaluations: name of each evaluation, and of its scores (value, low, high), as fractions.
    """

    def draw(axes: Axes) -> None:
        height = 0.7 / len(evaluations)
        for i, (label, scores) in enumerate(evaluations):
            shown = [(row, *scores[name]) for row, name in enumerate(names) if name in scores]
            rows, values, low, high = (np.array(column) for column in zip(*shown, strict=True))
            places = rows + (i - (len(evaluations) - 1) / 2) * height
            axes.hlines(places, 100 * low, 100 * high, color=SERIES[i], linewidth=2, alpha=0.55)
            axes.plot(
                100 * values, places, "o", color=SERIES[i], markersize=4.5, label=shorten(label)
            )
        axes.set_yticks(range(len(names)), [display_name(name) for name in names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        if len(evaluations) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)

    text = f"Scores of {len(evaluations)} evaluations with 95 % intervals, as in the table."
    height = 0.7 + len(names) * (0.16 + 0.1 * len(evaluations)) + 0.12 * len(evaluations)
    return Plot("scores", "Scores with 95 % intervals", text, draw, height)


def plot_training(logs: Mapping[str, Mapping[str, Curve]], best: str) -> list[Plot]:
    """Plot the loss (or the reward) and the validation scores of runs.

    Args:
        logs: name of a run → its curves.
        best: name of the validation score to plot.
    """

    def curves(value: str) -> list[tuple[str, Curve]]:
        return [(run, log[value]) for run, log in logs.items() if value in log]

    def draw_curves(listed: list[tuple[str, Curve]], factor: float, marker: str) -> Draw:
        def draw(axes: Axes) -> None:
            for run, (epochs, values) in listed:
                scaled = factor * np.array(values)
                axes.plot(epochs, scaled, marker, label=shorten(run), markersize=3)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if len(listed) > 1:
                axes.legend()

        return draw

    score = display_name(best)
    kinds = (
        ("loss", "loss", "Training loss", 1.0, "-"),
        ("reward", "reward", "Mean reward of the samples", 1.0, "-"),
        ("validation", f"val_{best}", f"Validation {score}", 100.0, "o-"),
    )
    plots = []
    for name, value, title, factor, marker in kinds:
        if listed := curves(value):
            ends = "; ".join(
                f"{run}: from {factor * values[0]:.2f} to {factor * values[-1]:.2f}"
                for run, (_, values) in listed
            )
            draw = draw_curves(listed, factor, marker)
            plots.append(Plot(name, title, f"{title} over the epochs. {ends}.", draw))
    return plots


def plot_lengths(captions: Counter[int], references: Counter[int]) -> Plot:
    """Plot how many words captions and references have."""
    longest = max((length for length, n in references.items() if n), default=1)
    last = min(max(longest, *captions, 1), 30)  # a few references are very long

    def shares(counts: Counter[int]) -> list[float]:
        inside = [counts[length] for length in range(last)]
        return [100 * n / max(counts.total(), 1) for n in (*inside, counts.total() - sum(inside))]

    def draw(axes: Axes) -> None:
        lengths = np.arange(last + 1)
        axes.bar(lengths, shares(captions), 0.8, color=SERIES[0], label="captions")
        axes.step(lengths, shares(references), where="mid", color=SERIES[1], label="references")
        axes.set_xlabel("words" if longest <= last else f"words; the last bar is {last} or more")
        axes.set_ylabel("%")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="x", visible=False)
        axes.legend()

    text = "Share of captions and of references by their number of words."
    return Plot("lengths", "Length of captions and references", text, draw)


def plot_cider(cider: Sequence[float]) -> Plot:
    """Plot the distribution of CIDEr over the images."""
    values = 100 * np.array(cider)

    def draw(axes: Axes) -> None:
        top = max(10.0, float(np.quantile(values, 0.99)))
        axes.hist(np.minimum(values, top), bins=32, range=(0, top), color=SERIES[0])
        axes.axvline(values.mean(), color=SERIES[1], label=f"mean {values.mean():.1f}")
        axes.axvline(
            np.median(values),
            color=SERIES[1],
            linestyle=":",
            label=f"median {np.median(values):.1f}",
        )
        axes.set_xlabel("CIDEr of an image")
        axes.set_ylabel("images")
        axes.grid(axis="x", visible=False)
        axes.legend()

    text = f"Histogram of CIDEr. Mean {values.mean():.1f}, median {np.median(values):.1f}."
    return Plot("cider", "CIDEr of the images", text, draw)


def plot_confidence(confidence: Sequence[float], cider: Sequence[float]) -> Plot:
    """Plot the mean CIDEr of images from the least to the most confident caption.

    Args:
        confidence: (N,) log-probability per token of each caption.
        cider: (N,) CIDEr of each image.
    """
    order = np.argsort(confidence, kind="stable")
    groups = np.array_split(100 * np.array(cider)[order], min(10, len(order)))
    means = [group.mean() for group in groups]
    errors = [1.96 * group.std() / max(len(group), 1) ** 0.5 for group in groups]

    def draw(axes: Axes) -> None:
        places = np.arange(1, len(groups) + 1)
        axes.errorbar(places, means, errors, color=SERIES[0], fmt="o-", markersize=4, elinewidth=1)
        axes.set_xlabel("tenth of the captions, from least to most confident")
        axes.set_ylabel("mean CIDEr and its 95 % interval")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))

    text = (
        f"Mean CIDEr of the least confident captions: {means[0]:.1f}; of the most confident: "
        f"{means[-1]:.1f}."
    )
    return Plot("confidence", "CIDEr by confidence", text, draw)
