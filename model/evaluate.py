"""The eval stage: caption a split with one run or an ensemble, and score the captions.

Each split and decoding has a folder:

    data/runs/<run>/eval/<split>-<decoding>/                one run
    data/ensembles/<run>+<run>…/eval/<split>-<decoding>/    several, sorted by name

<decoding> is `beam<K>` or `sample`, followed by the options that differ from their defaults, such
as `beam5-ngram2`. The files:

    metrics.json
        Bleu_1 … Bleu_4, METEOR, ROUGE_L    float, 0 to 1; METEOR for English captions
        CIDEr                               float, 0 to 10
        SPICE, CLIPScore, RefCLIPScore      float, if they were asked for
        intervals                           each score → [low, high], its 95 % confidence interval
        words_per_caption, distinct_1, …    statistics of the captions, see `metrics/statistics.py`
        num_images                          int, images captioned and scored
        num_images_without_features         int, images of the split that were left out
        images_per_second, decode_seconds, score_seconds    float
    captions.json     COCO's result format: [{"image_id": int, "caption": str}, …]
    nbest.json        with --n-best above 1, the captions of each image, best first:
                      [{"image_id": int, "captions": [{"caption": str, "log_prob": float,
                      "score": float}, …]}, …]
    scores.npz        scores of each image, see `metrics/image_scores.py`
    manifest.json     see `pipeline/stage/manifest.py`
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..features.device import choose_device, keep_freed_memory
from ..pipeline.captions import read_images, read_references
from ..pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ..pipeline.stage.artifacts import read_output, reading
from ..pipeline.stage.checksums import checksums_of
from ..pipeline.stage.command_line import command_of
from ..pipeline.stage.console import (
    format_seconds,
    print_json,
    print_note,
    print_result,
    print_table,
)
from ..pipeline.stage.errors import ConfigError, DamagedFileError, MissingArtifactError
from ..pipeline.stage.files import locked, write_json
from ..pipeline.stage.manifest import Manifest
from ..pipeline.stage.stopwatch import Stopwatch
from ..pipeline.text.tokenizer import DEFAULT_TOKENIZER, UNITS
from ..pipeline.text.vocab import Vocab
from .config import EvalConfig
from .decoders.precision import Precision
from .evaluation.decode import decode_split
from .evaluation.plan import VERSION, Evaluation, plan_evaluation, select_images
from .generation.hypothesis import Hypothesis
from .metrics.bootstrap import format_score, intervals
from .metrics.image_scores import SCORES_NAME, ImageScores
from .metrics.java import find_java
from .metrics.metric import CaptionSet
from .metrics.official import require_equal_scores, score_with_java
from .metrics.registry import score_metrics
from .metrics.scorer import score_captions
from .metrics.statistics import CaptionStatistics, describe_captions, statistics_rows
from .runs.layout import METRICS_NAME

CAPTIONS_NAME, NBEST_NAME = "captions.json", "nbest.json"


def evaluate(config: EvalConfig) -> Manifest:
    """Caption every image of a split and score the captions against its references.

    Raises:
        MissingArtifactError: the run, the split or the features are missing.
        MismatchError: captions, vocabulary or features differ from those of the run, or between
            the runs.
        ConfigError: --official is given for captions in another language than English.
        ScorerError: with --official, Java cannot run or a score differs from pycocoevalcap's.
    """
    evaluation = plan_evaluation(config)
    if config.official:
        _require_java(evaluation)
    manifest = _find_finished(evaluation)
    if manifest is None:  # a finished evaluation needs no lock: its folder may be read-only
        with locked(evaluation.folder):
            manifest = _find_finished(evaluation) or _caption_and_score(evaluation)
    else:
        print_note(f"eval: {evaluation.folder} is up to date.")
    if config.official:
        _compare_with_java(evaluation)
    _show_scores(evaluation)
    _show_samples(evaluation)
    return manifest


def _find_finished(evaluation: Evaluation) -> Manifest | None:
    """Return the manifest of an evaluation if it is up to date and undamaged, else None."""
    folder, manifest = evaluation.folder, Manifest.read(evaluation.folder)
    if manifest is None or not evaluation.is_finished(manifest):
        return None
    try:  # manifests of earlier versions list no checksums
        read_metrics(folder)
        read_captions(folder)
        ImageScores.read(folder / SCORES_NAME)
    except (MissingArtifactError, DamagedFileError):
        return None
    return manifest


def _caption_and_score(evaluation: Evaluation) -> Manifest:
    """Caption the images, score the captions, write all files and return the manifest."""
    watch = Stopwatch()
    keep_freed_memory()
    device = choose_device(evaluation.config.device)
    precision = Precision(evaluation.config.precision, device)
    image_ids = select_images(evaluation)
    captions_path = evaluation.captions_dir / CAPTIONS_PARQUET
    references = read_references(captions_path, "caption", image_ids)
    with watch.part("decode"):
        vocab, found = decode_split(evaluation, image_ids, precision)
    # Written before scoring, so that the captions survive if a scorer fails.
    hypotheses = _write_captions(evaluation, vocab, found)
    with watch.part("score"):
        scored = score_captions(references, hypotheses, evaluation.tokenizer)
        captions = CaptionSet(
            hypotheses,
            scored.hypotheses,
            scored.references,
            evaluation.captions_dir,
            references=references,
        )
        optional = score_metrics(evaluation.metrics, captions)
    images = scored.images.with_means(optional)
    images.write(evaluation.folder / SCORES_NAME)
    _write_metrics(evaluation, images, _describe(evaluation, vocab, found), watch)
    return _write_manifest(evaluation, len(images), optional, watch.seconds)


def _require_java(evaluation: Evaluation) -> None:
    """Check that `--official` can run, before the images are captioned.

    Raises:
        ConfigError: the captions are not in English.
        ScorerError: there is no Java that runs.
    """
    if evaluation.tokenizer != DEFAULT_TOKENIZER:
        raise ConfigError(
            f"--official is for English captions; those of {evaluation.captions_dir} were prepared "
            f"with --tokenizer {evaluation.tokenizer}. Run without --official."
        )
    find_java()


def _compare_with_java(evaluation: Evaluation) -> None:
    """Check that pycocoevalcap gives the evaluation's captions the same scores.

    Raises:
        ScorerError: Java fails, or a score differs.
    """
    hypotheses = read_captions(evaluation.folder)
    image_ids = np.array(list(hypotheses), np.int64)
    references = read_references(evaluation.captions_dir / CAPTIONS_PARQUET, "caption", image_ids)
    gap = require_equal_scores(
        score_captions(references, hypotheses), score_with_java(references, hypotheses)
    )
    print_note(f"pycocoevalcap's scores are equal; the largest difference is {gap:.0e}.")


def _write_captions(
    evaluation: Evaluation, vocab: Vocab, found: dict[int, list[Hypothesis]]
) -> dict[int, str]:
    """Write `captions.json` and `nbest.json`; return image_id → best caption."""
    best = {image_id: vocab.to_text(listed[0].token_ids) for image_id, listed in found.items()}
    results = [{"image_id": image_id, "caption": caption} for image_id, caption in best.items()]
    write_json(evaluation.folder / CAPTIONS_NAME, results)
    if evaluation.config.n_best > 1:
        nbest = [
            {
                "image_id": image_id,
                "captions": [
                    {
                        "caption": vocab.to_text(h.token_ids),
                        "log_prob": h.log_prob,
                        "score": h.score,
                    }
                    for h in hypotheses
                ],
            }
            for image_id, hypotheses in found.items()
        ]
        write_json(evaluation.folder / NBEST_NAME, nbest)
    return best


def _describe(
    evaluation: Evaluation, vocab: Vocab, found: dict[int, list[Hypothesis]]
) -> CaptionStatistics:
    """Compute the statistics of the best captions."""
    train = read_images(evaluation.captions_dir / IMAGES_PARQUET).select("train")
    captions_path = evaluation.captions_dir / CAPTIONS_PARQUET
    references = read_references(captions_path, "words", train)
    return describe_captions(
        [hypotheses[0].token_ids for hypotheses in found.values()],
        vocab,
        set(chain.from_iterable(references.values())),
        evaluation.config.for_unit(vocab.unit).length_limit,
    )


def _write_metrics(
    evaluation: Evaluation,
    images: ImageScores,
    statistics: CaptionStatistics,
    watch: Stopwatch,
) -> None:
    """Write `metrics.json`."""
    decode_seconds = watch.parts["decode"]
    metrics = {
        **images.of_all(),
        "intervals": intervals(images),
        **asdict(statistics),
        "num_images": len(images),
        "num_images_without_features": len(evaluation.image_ids) - len(images),
        "images_per_second": round(len(images) / decode_seconds, 2),
        "decode_seconds": round(decode_seconds, 3),
        "score_seconds": round(watch.parts["score"], 3),
    }
    write_json(evaluation.folder / METRICS_NAME, metrics)


def _write_manifest(
    evaluation: Evaluation, num_images: int, metrics: Iterable[str], seconds: float
) -> Manifest:
    """Write `manifest.json`. It omits metrics that failed, so the next eval tries them again."""
    names = [METRICS_NAME, CAPTIONS_NAME, SCORES_NAME]
    if evaluation.config.n_best > 1:
        names.append(NBEST_NAME)
    return Manifest(
        stage="eval",
        version=VERSION,
        config=evaluation.options,
        inputs=evaluation.inputs_with(metrics),
        outputs={name: (evaluation.folder / name).stat().st_size for name in names},
        checksums=checksums_of(evaluation.folder, names),
        command=command_of(
            "eval", replace(evaluation.config, run=[m.name for m in evaluation.members])
        ),
        counts={"num_images": num_images},
        seconds=round(seconds, 3),
        details={"dataset": evaluation.members[0].run.dataset},
    ).write(evaluation.folder)


def _show_scores(evaluation: Evaluation) -> None:
    """Print the scores with their confidence intervals, and the speed of the evaluation."""
    folder = evaluation.folder
    metrics = read_metrics(folder)
    rows = []
    for name, value in metrics.items():
        if name[0].isupper():  # only the names of scores begin with a capital
            rows.append((name, format_score(value, metrics["intervals"][name])))
    rows += statistics_rows(metrics, UNITS[evaluation.tokenizer])
    rows += [
        ("images", f"{metrics['num_images']:,}"),
        ("decoding", f"{metrics['images_per_second']:,.0f} images/s"),
        ("scoring", format_seconds(metrics["score_seconds"])),
        ("path", str(folder)),
    ]
    run = folder.parents[1].name
    print_table(f"eval {run} {folder.name}", rows)
    print_json({"run": run, "evaluation": folder.name, "path": folder, **metrics})
    if "METEOR" not in metrics:
        print_note(
            "METEOR is left out: it knows only English, and the captions were prepared with "
            f"--tokenizer {evaluation.tokenizer}."
        )
    if evaluation.split == "val":
        print_note("The val images also selected the best epoch; report scores on a test split.")


def _show_samples(evaluation: Evaluation) -> None:
    """Print a few captions, each with one of its references."""
    num_samples = evaluation.config.num_samples
    captions = read_captions(evaluation.folder)
    ids = list(captions)[:: max(len(captions) // max(num_samples, 1), 1)][:num_samples]
    image_ids = np.array(ids, dtype=np.int64)
    references = read_references(evaluation.captions_dir / CAPTIONS_PARQUET, "caption", image_ids)
    images = read_images(evaluation.captions_dir / IMAGES_PARQUET)
    for image_id, file_name in zip(ids, images.find_names(ids), strict=True):
        texts = references[image_id]
        print_result(
            f"{file_name}\n  {captions[image_id]}\n  (one of {len(texts)} references: "
            f"{texts[0].strip()})"
        )


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read `metrics.json`: scores, their intervals, counts and times."""
    content = read_output(folder / METRICS_NAME)
    with reading(folder / METRICS_NAME):
        metrics: dict[str, Any] = json.loads(content)
        shown = ("num_images", "images_per_second", "score_seconds")
        values = [metrics[name] for name in shown] + [
            number
            for name, score in metrics.items()
            if name[0].isupper()
            for number in (score, *map(float, metrics["intervals"][name]))
        ]
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError("some values are not numbers")
    return metrics


def read_captions(folder: Path) -> dict[int, str]:
    """Read `captions.json`: image_id → caption."""
    content = read_output(folder / CAPTIONS_NAME)
    with reading(folder / CAPTIONS_NAME):
        return {int(entry["image_id"]): str(entry["caption"]) for entry in json.loads(content)}
