"""Options of `showtell score` and `showtell compare`."""

from dataclasses import dataclass
from pathlib import Path

from ...pipeline.stage.options import MAX_SEED, Options, StageConfig, argument, option, require
from ...pipeline.text.tokenizer import DEFAULT_TOKENIZER, UNITS

TABLE_SUFFIXES = (".csv", ".parquet")


def check_table(path: Path) -> str | None:
    """Return None if `--per-image` names a table, else the rule that it breaks."""
    return None if path.suffix.lower() in TABLE_SUFFIXES else "end in .csv or .parquet"


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(Options):
    """What to compute."""

    tokenizer: str = option(
        DEFAULT_TOKENIZER,
        "How captions become words: ptb (English, as published scores do), unicode (words of other "
        "languages), characters (Chinese, Japanese, Thai).",
        choices=tuple(UNITS),
        group="Scoring",
    )
    spice: bool = option(
        False,
        "Also compute SPICE; needs Java 8 to 14 and Stanford's parser.",
        group="Scoring",
    )
    clip: Path | None = option(
        None,
        "Also compute CLIPScore and RefCLIPScore with the CLIP or SigLIP model that transformers "
        "saved in this folder; needs --images.",
        group="Scoring",
        metavar="DIR",
    )
    images: Path | None = option(
        None,
        "Folder of the images, for --clip.",
        group="Scoring",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            (self.clip is None) == (self.images is None),
            "CLIPScore needs both --clip DIR, the model, and --images DIR, the images.",
        )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoringOptions, StageConfig):
    """Options of `showtell score`."""

    candidates: Path = argument(
        "Captions to score, one for each image: .json, .jsonl, .csv, .parquet or plain text.",
        metavar="CANDIDATES",
    )
    references: list[Path] = argument(
        "Captions by people: one file, or several whose captions are added up. Images without a "
        "candidate are left out.",
        metavar="REFERENCES",
    )
    compare: Path | None = option(
        None,
        "Second file of candidates. Test whether its scores differ significantly from those of "
        "CANDIDATES.",
        group="Input",
        metavar="FILE",
    )
    per_image: Path | None = option(
        None,
        "Write the scores of each image to this table: .csv or .parquet.",
        check=check_table,
        group="Output",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        inputs = {
            path.resolve() for path in (self.candidates, *self.references, self.compare) if path
        }
        require(
            self.per_image is None or self.per_image.resolve() not in inputs,
            f"--per-image {self.per_image} would replace a file of captions. Give another name.",
        )


@dataclass(frozen=True, kw_only=True)
class CompareConfig(StageConfig):
    """Options of `showtell compare`."""

    eval_a: str = argument(
        "First evaluation: its folder, RUN/val-beam3, or RUN if the run has only one.",
        metavar="EVAL_A",
    )
    eval_b: str = argument("Second evaluation, of the same images.", metavar="EVAL_B")
    draws: int = option(
        10_000,
        "Bootstrap samples of the images.",
        at_least=100,
        limit=1_000_000,
        group="Statistics",
    )
    seed: int = option(
        0, "Random seed of the bootstrap.", at_least=0, at_most=MAX_SEED, group="Statistics"
    )
