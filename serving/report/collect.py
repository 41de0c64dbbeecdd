"""Everything that a report shows, read from the folders of a run, a dataset and an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...features.reading.transform import Transform
from ...features.reading.views import Box
from ...model.compare import Difference
from ...model.config import EvalConfig, TrainConfig
from ...model.decoders.registry import decoder_class
from ...model.runs.curves import Curve
from ...model.runs.run import RunConfig
from ...pipeline.captions import open_images, read_images, read_references
from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from ...pipeline.stage.console import print_note, print_warning
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.manifest import Manifest
from ...pipeline.stage.options import flag, options_of, spec_of
from ...pipeline.text.vocab import Vocab
from ..config import ReportConfig
from .plots import find_curves
from .results import RankedCaption, Results, choose_evaluation, read_others
from .thumbnails import Thumbnail, encoded_box, make_thumbnails
from .tokens import Token, score_tokens
from .words import WordStatistics, count_words

NOT_OPTIONS = ("run", "split", "precision")  # shown elsewhere in a report, or of no interest


@dataclass(frozen=True)
class ReportImage:
    """One image of the gallery.

    Attributes:
        image_id: of the dataset.
        file_name: relative to the folder of the images.
        caption: the caption of the evaluation.
        cider: CIDEr of the caption.
        log_prob: of the caption, in nats; None if the features are missing.
        num_words: words of the caption.
        num_tokens: words or pieces of the caption, and its end.
        tokens: its tokens and their probabilities; empty if the features are missing.
        references: as people wrote them.
        ranked: the captions in `nbest.json`, best first.
        others: caption and CIDEr in each of the other evaluations; None if it lacks the image.
        is_copied: whether the caption is also a caption in the train split.
        thumbnail: None if the image is unreadable.
        box: the part that the encoder reads: left, top, right, bottom as fractions.
    """

    image_id: int
    file_name: str
    caption: str
    cider: float
    log_prob: float | None
    num_words: int
    num_tokens: int
    tokens: list[Token]
    references: list[str]
    ranked: list[RankedCaption]
    others: list[tuple[str, float] | None]
    is_copied: bool
    thumbnail: Thumbnail | None
    box: Box

    @property
    def confidence(self) -> float | None:
        """Log-probability per token, including the end of the caption."""
        return self.log_prob and self.log_prob / self.num_tokens


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        results: the evaluation.
        others: evaluations of the same images.
        differences: for each of them, score → its difference to `results`.
        images: all images of the gallery, in the order of the evaluation.
        words: statistics of the captions.
        runs: name of each run that decoded → its config.
        train: name → manifest of its training; None if the training is not finished.
        logs: name → the curves of its training.
        grid: rows and columns of the attention; None without attention.
    """

    results: Results
    others: list[Results]
    differences: list[dict[str, Difference]]
    images: list[ReportImage]
    words: WordStatistics
    runs: dict[str, RunConfig]
    train: dict[str, Manifest | None]
    logs: dict[str, dict[str, Curve]]
    grid: tuple[int, int] | None

    @property
    def title(self) -> str:
        """RUN/EVALUATION."""
        return self.results.name

    @property
    def monitor(self) -> str:
        """Name of the validation score that selected the best epoch."""
        return str(next(iter(self.runs.values())).train.get("monitor", "CIDEr"))


def collect(config: ReportConfig) -> Report:
    """Read everything that a report shows.

    Raises:
        MissingArtifactError: the run, its evaluation, or the captions are missing.
        DamagedFileError: a file is damaged.
        MismatchError: an evaluation of `--against` has other images.
    """
    results = Results.read(choose_evaluation(config.data, config.evaluation))
    others = read_others(results, config.against)
    run_dirs = {name: results.data / "runs" / name for name in results.members}
    runs = {name: RunConfig.read(run_dir) for name, run_dir in run_dirs.items()}
    captions_dir = results.data / results.dataset / "captions"
    vocab = Vocab.read(captions_dir / VOCAB_JSON)
    train_captions = _train_captions(captions_dir)
    tokens = _find_tokens(results, vocab, config.device)
    references = read_references(captions_dir / CAPTIONS_PARQUET, "words", [*results.captions])
    return Report(
        results=results,
        others=others,
        differences=[{d.name: d for d in results.compare(other)} for other in others],
        images=_collect_images(config, results, others, tokens, train_captions, runs, vocab),
        words=count_words(
            {i: vocab.words_of(text) for i, text in results.captions.items()},
            references,
            train_captions,
            vocab,
        ),
        runs=runs,
        train={name: Manifest.read(run_dir) for name, run_dir in run_dirs.items()},
        logs={name: find_curves(run_dir) for name, run_dir in run_dirs.items()},
        grid=_grid_of(tokens),
    )


def _find_tokens(results: Results, vocab: Vocab, device: str) -> dict[int, list[Token]]:
    """Return the tokens of each caption; print one warning and return none if it is impossible."""
    try:
        return score_tokens(results, vocab, device)
    except ShowTellError as error:
        print_warning(f"The report shows no probabilities of words: {error}")
        return {}


def _train_captions(captions_dir: Path) -> set[str]:
    """Return the tokenized captions of the train split, words joined by single spaces."""
    image_ids = read_images(captions_dir / IMAGES_PARQUET).select("train")
    references = read_references(captions_dir / CAPTIONS_PARQUET, "words", image_ids)
    return {text for texts in references.values() for text in texts}


def _grid_of(tokens: Mapping[int, list[Token]]) -> tuple[int, int] | None:
    """Return rows and columns of the attention. Grids are square because the crop is."""
    num_cells = max(
        (len(token.attention) for listed in tokens.values() for token in listed), default=0
    )
    side = round(num_cells**0.5)
    return (side, side) if num_cells and side * side == num_cells else None


def _collect_images(
    config: ReportConfig,
    results: Results,
    others: list[Results],
    tokens: Mapping[int, list[Token]],
    train_captions: set[str],
    runs: Mapping[str, RunConfig],
    vocab: Vocab,
) -> list[ReportImage]:
    """Return the images of the gallery with everything that belongs to each."""
    ids = _spread([*results.captions], config.max_images)
    captions_dir = results.data / results.dataset / "captions"
    files, names = open_images(captions_dir, ids)
    references = read_references(captions_dir / CAPTIONS_PARQUET, "caption", ids)
    thumbnails: list[Thumbnail | None] = [None] * len(ids)
    if config.image_size and config.suffix == "html":
        thumbnails = make_thumbnails(files, names, config.image_size)
    transform = Transform(**_transform_of(runs))
    cider, ranked, other_ciders = results.cider, results.read_nbest(), [o.cider for o in others]
    images = []
    for image_id, name, thumbnail in zip(ids, names, thumbnails, strict=True):
        caption, listed = results.captions[image_id], ranked.get(image_id, [])
        words = vocab.words_of(caption)
        log_prob = listed[0].log_prob if listed else None
        if image_id in tokens:
            log_prob = sum(token.log_prob for token in tokens[image_id])
        box = 0.0, 0.0, 1.0, 1.0
        if thumbnail is not None:
            box = encoded_box(transform, thumbnail.width, thumbnail.height)
        pairs = zip(others, other_ciders, strict=True)
        images.append(
            ReportImage(
                image_id=image_id,
                file_name=name,
                caption=caption,
                cider=cider[image_id],
                log_prob=log_prob,
                num_words=len(words),
                num_tokens=len(vocab.encode(words)) + 1,
                tokens=tokens.get(image_id, []),
                references=references[image_id],
                ranked=listed,
                others=[
                    (other.captions[image_id], ciders[image_id]) if image_id in ciders else None
                    for other, ciders in pairs
                ],
                is_copied=" ".join(words) in train_captions,
                thumbnail=thumbnail,
                box=box,
            )
        )
    return images


def _transform_of(runs: Mapping[str, RunConfig]) -> dict[str, Any]:
    """Return the transform of the first run that reads grids, or of the first run."""
    with_grid = [run for run in runs.values() if decoder_class(run.decoder).uses_grid]
    transform: dict[str, Any] = (with_grid or [*runs.values()])[0].backbone["transform"]
    return transform


def _spread(image_ids: list[int], most: int) -> list[int]:
    """Return at most `most` images, evenly spread, and print a note if some are left out."""
    if len(image_ids) <= most:
        return image_ids
    print_note(
        f"The gallery shows {most:,} of {len(image_ids):,} images, evenly spread. Scores and "
        "statistics are those of all images. Show more with --max-images."
    )
    rows = np.linspace(0, len(image_ids) - 1, most).astype(int)
    return [image_ids[row] for row in rows]


def changed_options(
    config_class: type[TrainConfig | EvalConfig], values: Mapping[str, Any]
) -> dict[str, str]:
    """Return the options that differ from their defaults, as typed on the command line."""
    return {
        flag(declared.name): str(values[declared.name])
        for declared in options_of(config_class)
        if declared.name in values
        and declared.name not in NOT_OPTIONS
        and spec_of(declared).affects_result
        and values[declared.name] != declared.default
    }
