"""The score command: score anyone's captions, without a run and without torch.

`score` is `showtell.score`; `score_files` is the command.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from .. import __version__
from ..pipeline.datasets.caption_files import Captions, merge_captions, read_captions
from ..pipeline.stage.console import (
    print_json,
    print_note,
    print_result,
    print_table,
    print_warning,
)
from ..pipeline.stage.errors import MismatchError
from ..pipeline.stage.files import hash_json
from ..pipeline.text.tokenizer import DEFAULT_TOKENIZER, UNITS
from .compare import Difference, find_differences, show_differences
from .metrics.bootstrap import format_score, intervals
from .metrics.image_scores import ImageScores
from .metrics.metric import CaptionSet
from .metrics.registry import choose_metrics
from .metrics.scorer import score_captions
from .metrics.statistics import TextStatistics, describe_texts, statistics_rows
from .scoring.config import CompareConfig, ScoreConfig, ScoringOptions
from .scoring.images import find_images
from .scoring.pairs import Pairs, pair_captions
from .scoring.per_image import write_table

Source: TypeAlias = str | Path | Mapping[Any, Any] | Sequence[Any]


@dataclass(frozen=True)
class Scores:
    """The scores of N candidates, from `showtell.score`.

    Attributes:
        signature: one line with everything that the scores depend on; report it with them.
        pairs: the candidates and their references, sorted by image.
        images: the counts and scores of each image, in the same order.
        statistics: length and variety of the candidates.
    """

    signature: str
    pairs: Pairs = field(repr=False)
    images: ImageScores = field(repr=False)
    statistics: TextStatistics = field(repr=False)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Score of all images together by pycocoevalcap's names, as fractions."""
        return self.images.of_all()

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % confidence interval of each score."""
        return intervals(self.images)

    @cached_property
    def per_image(self) -> dict[int | str, dict[str, float]]:
        """Scores of each image alone, by its id; an image without an id has its number from 1."""
        columns = {name: values.tolist() for name, values in self.images.of_each().items()}
        rows = zip(*columns.values(), strict=True)
        scores = (dict(zip(columns, row, strict=True)) for row in rows)
        return dict(zip(self.pairs.ids, scores, strict=True))

    @property
    def references(self) -> dict[int | str, tuple[str, ...]]:
        """References of each image that was scored, by its id."""
        return dict(zip(self.pairs.ids, self.pairs.references, strict=True))

    def compare(
        self,
        other: "Scores",
        num_draws: int = CompareConfig.draws,
        seed: int = CompareConfig.seed,
    ) -> list[Difference]:
        """Test by a paired bootstrap whether other candidates score differently.

        Raises:
            MismatchError: the other candidates are of other images, or have other references.
        """
        ids, other_ids = self.pairs.ids, other.pairs.ids
        if in_one := sorted(set(map(str, ids)) ^ set(map(str, other_ids))):
            raise MismatchError(
                f"The candidates to compare are of different images ({len(ids):,} and "
                f"{len(other_ids):,}): image {in_one[0]} is in only one of them. Remove it, or add "
                "its candidate to the other."
            )
        if self.pairs.references != other.pairs.references:
            raise MismatchError("The candidates to compare were scored with different references.")
        return find_differences(self.images, other.images, num_draws, seed)


def score(
    candidates: Source,
    references: Source,
    *,
    tokenizer: str = DEFAULT_TOKENIZER,
    spice: bool = False,
    clip: str | Path | None = None,
    images: str | Path | None = None,
) -> Scores:
    """Score one caption for each image, as pycocoevalcap does.

    Args:
        candidates: id → caption; or a list of captions; or the path of a file, see
            `pipeline/datasets/caption_files.py`.
        references: id → list of captions; or a list of lists, in the order of the candidates; or
            a path, or a list of `Path` objects. Images without a candidate are left out.
        tokenizer: `ptb` for English, `unicode` for words of other languages, or `characters`.
            METEOR is left out with the last two: it knows only English.
        spice: also compute SPICE; needs Java 8 to 14 and Stanford's parser.
        clip: also compute CLIPScore and RefCLIPScore with the CLIP model in this folder.
        images: folder of the images, for CLIPScore.

    Raises:
        ConfigError: there is no such tokenizer, SPICE is wanted in another language, or only one of
            `clip` and `images` is given.
        MissingArtifactError: a file does not exist.
        DatasetError: a file has another layout, or an image has several candidates, no reference
            or an empty one.
        MismatchError: a candidate has no references, or the numbers of lines differ.
        ScorerError: a scorer cannot run.
    """
    options = ScoringOptions(
        tokenizer=tokenizer,
        spice=spice,
        clip=Path(clip) if clip else None,
        images=Path(images) if images else None,
    )
    return _score(read_captions(candidates, "candidates"), _read_references(references), options)


def score_files(config: ScoreConfig) -> None:
    """Score a file of captions, or compare it with another one, and print a table.

    Raises the errors of `score`.
    """
    references = _read_references(config.references)
    files = [path for path in (config.candidates, config.compare) if path is not None]
    results = []
    for path in files:
        candidates = read_captions(path, "candidates")
        results.append(_score(candidates, references, config))
        _print_remarks(candidates, results[-1].pairs)
    first = results[0]
    if config.per_image is not None:
        write_table(config.per_image, first.pairs, first.images)
    document = {
        "candidates": config.candidates,
        "references": config.references,
        "signature": first.signature,
        **first.scores,
        "intervals": first.intervals,
        **asdict(first.statistics),
        "num_images": len(first.pairs),
        "num_images_without_candidate": first.pairs.num_without_candidate,
    }
    if config.compare is None:
        _show(first, config.tokenizer)
    else:
        differences = first.compare(results[1])
        show_differences(files, len(first.pairs), differences, CompareConfig.draws)
        document["compare"] = {
            "candidates": config.compare,
            "num_draws": CompareConfig.draws,
            "scores": differences,
        }
    if "METEOR" not in first.scores:
        print_note(f"METEOR knows only English, so --tokenizer {config.tokenizer} leaves it out.")
    print_result(first.signature)
    print_json(document)


def _read_references(references: Source) -> Captions:
    """Read references from one file, several files, or a Python value."""
    paths = references if isinstance(references, list | tuple) else []
    if paths and all(isinstance(path, Path) for path in paths):
        return merge_captions([read_captions(path, "references") for path in paths])
    return read_captions(references, "references")


def _score(candidates: Captions, references: Captions, options: ScoringOptions) -> Scores:
    """Score the candidates of a source. Raises the errors of `score`."""
    metrics = choose_metrics(options.tokenizer, spice=options.spice, clip=options.clip)
    # Before the long work, because this fails if a metric cannot run.
    fingerprints = {metric.name: hash_json(metric.inputs())[:8] for metric in metrics}
    pairs = pair_captions(candidates, references)
    images = None if options.images is None else find_images(options.images, pairs)
    raw = dict(enumerate(pairs.candidates))
    written = dict(enumerate(pairs.references))
    scored = score_captions(written, raw, options.tokenizer)
    captions = CaptionSet(
        raw, scored.hypotheses, scored.references, images=images, references=written
    )
    optional = {metric.name: metric.score(captions) for metric in metrics}
    signature = _signature(pairs, {"tok": options.tokenizer} | fingerprints)
    statistics = describe_texts([*scored.hypotheses.values()])
    return Scores(signature, pairs, scored.images.with_means(optional), statistics)


def _signature(pairs: Pairs, options: dict[str, str]) -> str:
    """Return one line with everything that the scores of some captions depend on."""
    numbers = [len(texts) for texts in pairs.references]
    low, high = min(numbers), max(numbers)
    parts = {
        "showtell": __version__,
        "images": len(pairs),
        "refs": low if low == high else f"{low}-{high}",
        **options,
    }
    return "|".join(f"{name}:{value}" for name, value in parts.items())


def _print_remarks(candidates: Captions, pairs: Pairs) -> None:
    """Print which images were left out, and which candidates are empty."""
    if pairs.num_without_candidate:
        print_note(
            f"{candidates.source}: {len(pairs):,} images are scored; "
            f"{pairs.num_without_candidate:,} others have references but no candidate."
        )
    empty = [key for key, text in zip(pairs.ids, pairs.candidates, strict=True) if not text.strip()]
    if empty:
        print_warning(
            f"{candidates.source}: {len(empty):,} of {len(pairs):,} candidates are empty and score "
            f"0: image {', '.join(map(str, empty[:3]))}{', …' if len(empty) > 3 else ''}."
        )


def _show(result: Scores, tokenizer: str) -> None:
    """Print the scores with their confidence intervals, and the statistics of the captions."""
    rows = [
        (name, format_score(value, result.intervals[name])) for name, value in result.scores.items()
    ]
    rows += statistics_rows(asdict(result.statistics), UNITS[tokenizer])
    print_table(f"score: {len(result.pairs):,} images", rows)
