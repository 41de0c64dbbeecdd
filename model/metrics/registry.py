"""The metrics that `showtell eval` and `score` compute beside BLEU, METEOR, ROUGE_L and CIDEr.

A metric that is always computed is a line in `DEFAULT_METRICS`; one that users ask for is a branch
of `choose_metrics` and an option in `EvalConfig`. The interface is in `metric.py`.
"""

from collections.abc import Iterable
from pathlib import Path

from ...pipeline.stage.console import print_warning
from ...pipeline.stage.errors import ScorerError
from ...pipeline.stage.options import require
from ...pipeline.text.tokenizer import DEFAULT_TOKENIZER
from .metric import CaptionSet, Floats, Metric
from .spice import Spice

# Metrics that every evaluation computes. Add yours here.
DEFAULT_METRICS: tuple[Metric, ...] = ()


def choose_metrics(
    tokenizer: str = DEFAULT_TOKENIZER, *, spice: bool = False, clip: Path | None = None
) -> list[Metric]:
    """Return the metrics to compute: the default ones and those that the user asked for.

    Args:
        tokenizer: name of the tokenizer of the captions.
        spice: whether to compute SPICE.
        clip: folder of a saved CLIP model, which adds CLIPScore and RefCLIPScore.

    Raises:
        ConfigError: SPICE is wanted for captions in another language than English.
    """
    metrics = [*DEFAULT_METRICS]
    if spice:
        require(
            tokenizer == DEFAULT_TOKENIZER,
            f"--spice parses English, but the words of the captions are those of --tokenizer "
            f"{tokenizer}. Leave out --spice.",
        )
        metrics.append(Spice())
    if clip is not None:
        from .clip_score import ClipScore, RefClipScore  # here, because they need torch

        clip_score = ClipScore(clip)
        metrics += [clip_score, RefClipScore(clip_score)]
    return metrics


def score_metrics(metrics: Iterable[Metric], captions: CaptionSet) -> dict[str, Floats]:
    """Return the scores of each metric, name → (N,) float64.

    A metric that fails with a `ScorerError` is left out with a warning.
    """
    scores = {}
    for metric in metrics:
        try:
            scores[metric.name] = metric.score(captions)
        except ScorerError as error:
            print_warning(f"{metric.name} is left out: {error}")
    return scores
