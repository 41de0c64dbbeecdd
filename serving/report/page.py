"""Write a report as one HTML file, or as Markdown with plots beside it."""

import base64
import hashlib
import math
import re
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ... import __version__
from ...model.compare import Difference
from ...model.config import EvalConfig, TrainConfig
from ...pipeline.stage.command_line import data_option
from ...pipeline.stage.console import format_seconds
from ...pipeline.stage.manifest import MANIFEST_NAME
from .collect import Report, ReportImage, changed_options
from .plots import (
    Plot,
    display_name,
    plot_cider,
    plot_confidence,
    plot_lengths,
    plot_scores,
    plot_training,
)
from .results import Results
from .words import WordCount

FOLDER = Path(__file__).parent
NUM_EXAMPLES = 5  # best and worst captions in Markdown
FIRST_SCORES = ("CIDEr", "Bleu_4", "METEOR", "ROUGE_L")  # in the tiles, before all others
SIGNIFICANT = 0.05

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """A score in the table, as text.

    Attributes:
        value: the score × 100.
        low: lower end of its 95 % interval.
        high: upper end.
        difference: to the score in the first row; empty in the first row or if the images differ.
        change: "up" or "down" if the difference is significant, else empty.
        p_value: of the difference.
    """

    value: str
    low: str
    high: str
    difference: str = ""
    change: str = ""
    p_value: str = ""


@dataclass(frozen=True)
class WordList:
    """A table of words.

    Attributes:
        title: what the words have in common.
        text: one line of explanation.
        scope: where the gallery searches for a word of the list.
        header: names of the columns of numbers.
        rows: word → the numbers.
    """

    title: str
    text: str
    scope: str
    header: tuple[str, ...]
    rows: list[tuple[str, tuple[int, ...]]]


def render_html(report: Report) -> bytes:
    """Return the content of the HTML file. It loads nothing from elsewhere."""
    script = (FOLDER / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment(autoescape=True).get_template("page.html.j2")
    html = page.render(
        **_content(report),
        style=Markup((FOLDER / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        gallery=_gallery(report),
        gallery_note=_gallery_note(report),
        has_confidence=any(image.confidence is not None for image in report.images),
    )
    return html.encode("utf-8", "replace")  # a folder's name may not be UTF-8


def render_markdown(report: Report, stem: str) -> tuple[bytes, dict[str, bytes]]:
    """Return the content of the Markdown file, and the name and content of each plot beside it.

    Args:
        report: the report.
        stem: the names of the plots start with it.
    """
    content = _content(report)
    plots: list[Plot] = [
        *content["score_plots"],
        *content["training"],
        *content["caption_plots"],
    ]
    files = {plot.name: f"{stem}-{plot.name}.png" for plot in plots}
    ranked = sorted(report.images, key=lambda image: -image.cider)
    page = _environment(autoescape=False).get_template("page.md.j2")
    text = page.render(
        **content,
        files=files,
        examples=(
            ("Best captions", ranked[:NUM_EXAMPLES]),
            ("Worst captions", ranked[: -NUM_EXAMPLES - 1 : -1]),
        ),
    )
    return text.encode("utf-8", "replace"), {files[plot.name]: plot.to_png() for plot in plots}


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["md"] = escape_markdown
    return environment


def escape_markdown(text: object) -> str:
    """Return text that Markdown and HTML in it show as it is, on one line."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def _content(report: Report) -> dict[str, Any]:
    """Return what both formats show."""
    results = report.results
    names = results.score_names
    first = [name for name in FIRST_SCORES if name in names]
    evaluated = [results, *report.others]
    scores = [(evaluation.name, _scores_of(evaluation)) for evaluation in evaluated]
    tiles = [(display_name(name), _cell(results, name)) for name in [*first, *_rest(names, first)]]
    return {
        "report": report,
        "version": __version__,
        "title": report.title,
        "summary": _summary(report),
        "tiles": [(name, cell.value, cell.low, cell.high) for name, cell in tiles if cell],
        "score_names": [display_name(name) for name in names],
        "score_rows": _score_rows(report, names),
        "score_note": _score_note(report),
        "score_plots": [
            plot_scores(names, scores),
            plot_cider([*results.cider.values()]),
        ],
        "training": plot_training(report.logs, report.monitor),
        "facts": _facts(report),
        "caption_plots": _caption_plots(report),
        "word_lists": _word_lists(report),
        "setup": _setup(report),
    }


def _rest(names: list[str], first: list[str]) -> list[str]:
    """Return the scores that follow those of `first` in the tiles."""
    return [name for name in names if name not in first and not name.startswith("Bleu_")]


def _summary(report: Report) -> str:
    results = report.results
    time = datetime.fromtimestamp((results.folder / MANIFEST_NAME).stat().st_mtime)
    return (
        f"{results.metrics['num_images']:,} {results.split} images of {results.dataset}, evaluated "
        f"on {time:%Y-%m-%d %H:%M}"
    )


def _scores_of(results: Results) -> dict[str, tuple[float, float, float]]:
    metrics = results.metrics
    return {name: (metrics[name], *metrics["intervals"][name]) for name in results.score_names}


def _cell(results: Results, name: str, difference: Difference | None = None) -> Cell | None:
    if name not in results.metrics:
        return None
    value, low, high = (f"{100 * number:.1f}" for number in _scores_of(results)[name])
    if difference is None:
        return Cell(value, low, high)
    gain = difference.score_b - difference.score_a
    change = ("up" if gain > 0 else "down") if difference.p_value < SIGNIFICANT else ""
    arrow = {"up": " ▲", "down": " ▼", "": ""}[change]
    return Cell(
        value, low, high, f"{_signed(100 * gain)}{arrow}", change, f"{difference.p_value:.4f}"
    )


def _signed(value: float) -> str:
    """Return a number with its sign; a difference that rounds to zero has none."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _score_rows(report: Report, names: list[str]) -> list[dict[str, Any]]:
    first = {"name": report.results.name, "cells": [_cell(report.results, name) for name in names]}
    return [first] + [
        {
            "name": other.name,
            "cells": [_cell(other, name, differences.get(name)) for name in names],
        }
        for other, differences in zip(report.others, report.differences, strict=True)
    ]


def _score_note(report: Report) -> str:
    note = "All scores × 100, with 95 % intervals from a bootstrap over the images."
    if any(report.differences):
        note += (
            " Below them, the difference to the first row: ▲ higher and ▼ lower with p < 0.05 "
            "(paired bootstrap). The effect of another training seed is not included."
        )
    if not all(report.differences):
        note += " A row without differences was evaluated on other images."
    if report.results.split == "val":
        note += " The val images also selected the best epoch; report scores on a test split."
    return note


def _facts(report: Report) -> list[tuple[str, str]]:
    words = report.words

    def share(count: int) -> str:
        return f"{count / max(words.num_captions, 1):.0%}"

    used = f"of {words.vocab_size:,} {words.unit} in the vocabulary"
    return [
        (
            f"{words.mean_caption_length:.1f}",
            f"{words.noun} a caption, {words.mean_reference_length:.1f} a reference",
        ),
        (f"{words.num_words_used:,}", f"different {words.noun} used, {used}"),
        (f"{words.num_distinct:,}", f"different captions, {share(words.num_distinct)} of all"),
        (share(words.num_copied), "copied from the train split, word for word"),
        (f"{words.oov_share:.1%}", "of the references' words are not in the vocabulary"),
    ]


def _caption_plots(report: Report) -> list[Plot]:
    plots = [
        plot_lengths(report.words.caption_lengths, report.words.reference_lengths),
    ]
    rated = [(i.confidence, i.cider) for i in report.images if i.confidence is not None]
    if len(rated) >= 10:
        plots.append(plot_confidence(*zip(*rated, strict=True)))
    return plots


def _word_lists(report: Report) -> list[WordList]:
    words = report.words

    def rows(counts: list[WordCount], kind: str) -> list[tuple[str, tuple[int, ...]]]:
        return [(count.word, (getattr(count, kind), count.right)) for count in counts]

    return [
        WordList(
            "Words often missed",
            "Two references or more contain them, the caption does not.",
            "missed",
            ("missed", "right"),
            rows(words.missed, "missed"),
        ),
        WordList(
            "Words often wrong",
            "The caption contains them, no reference does.",
            "wrong",
            ("wrong", "right"),
            rows(words.wrong, "wrong"),
        ),
        WordList(
            "Words outside the vocabulary",
            "The model cannot say them.",
            "references",
            ("in references",),
            [(word, (count,)) for word, count in words.oov_words],
        ),
    ]


def _setup(report: Report) -> list[tuple[str, Rows]]:
    """Return a table for the evaluation, and one for each run."""
    results = report.results
    manifest = results.manifest
    command = f"showtell {manifest.command}{data_option(results.data)}" if manifest.command else ""
    evaluation = {
        "dataset": f"{results.dataset}, {results.split} split",
        "images": f"{results.metrics['num_images']:,}",
        "without features": _count(results.metrics.get("num_images_without_features")),
        "options": _join(changed_options(EvalConfig, manifest.config)),
        "decoding": f"{results.metrics['images_per_second']:,.0f} images/s",
        "command": command,
        "folder": str(results.folder),
    }
    tables = [("Evaluation", evaluation)]
    for name, run in report.runs.items():
        train = report.train[name]
        tables.append(
            (
                f"Run {name}",
                {
                    "decoder": run.decoder.description,
                    "vocabulary": f"{run.decoder.vocab_size:,} entries",
                    "features": run.features,
                    "options": _join(changed_options(TrainConfig, run.train)),
                    "training": "not finished" if train is None else format_seconds(train.seconds),
                    "best epoch": _count(train and train.counts.get("best_epoch")),
                },
            )
        )
    return [(title, [(k, v) for k, v in rows.items() if v]) for title, rows in tables]


def _count(number: object) -> str:
    return str(number) if number else ""


def _join(options: dict[str, str]) -> str:
    return "\n".join(f"{name} {value}" for name, value in options.items()) or "defaults"


def _gallery_note(report: Report) -> str:
    shown, evaluated = len(report.images), report.results.metrics["num_images"]
    note = f"{shown:,} of {evaluated:,} images, evenly spread. " if shown < evaluated else ""
    if any(image.confidence is not None for image in report.images):
        note += "The most surprising captions have the lowest log-probability per token. "
    return f"{note}CIDEr of one image × 100."


def _gallery(report: Report) -> dict[str, Any]:
    """Return what the script of the page needs, as JSON values."""
    return {
        "grid": report.grid,
        "others": [other.name for other in report.others],
        "images": [_image_json(image) for image in report.images],
    }


def _image_json(image: ReportImage) -> dict[str, Any]:
    thumbnail, round3 = image.thumbnail, partial(_rounded, digits=3)
    picture = None
    if thumbnail is not None:
        picture = f"data:image/webp;base64,{base64.b64encode(thumbnail.webp).decode()}"
    return {
        "id": image.image_id,
        "file": image.file_name,
        "caption": image.caption,
        "numWords": image.num_words,
        "cider": _rounded(image.cider, 4) or 0.0,
        "logProb": round3(image.log_prob),
        "confidence": round3(image.confidence),
        "tokens": [
            {
                "text": token.text,
                "logProb": round3(token.log_prob),
                "attention": token.attention,
                "attended": round3(token.attended),
            }
            for token in image.tokens
        ],
        "references": [" ".join(text.split()) for text in image.references],
        "ranked": [
            {"text": r.text, "logProb": round3(r.log_prob), "score": round3(r.score)}
            for r in image.ranked
        ],
        "others": [
            other and {"caption": other[0], "cider": _rounded(other[1], 4)}
            for other in image.others
        ],
        "copied": image.is_copied,
        "picture": picture,
        "width": thumbnail.width if thumbnail else 4,
        "height": thumbnail.height if thumbnail else 3,
        "box": [_rounded(edge, 4) for edge in image.box],
    }


def _rounded(value: float | None, digits: int) -> float | None:
    """Return a rounded number; None for numbers that JSON lacks."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
