"""Options of `showtell bench`, and its stages."""

from dataclasses import dataclass

from ..pipeline.stage.options import (
    DatasetConfig,
    option,
    optional_argument,
    require,
    require_choice,
)

# Stage → the function that measures it, in the package `bench`.
BENCH_STAGES = {
    "prepare": "captions:bench_prepare",
    "features": "caching:bench_features",
    "features-coco": "caching:bench_features_coco",
    "shards": "caching:bench_shards",
    "train": "training:bench_train",
    "decode": "decoding:bench_decode",
    "scorers": "captions:bench_scorers",
}


# The same at COCO's size, in the order in which they build on each other.
COCO_SCALE_STAGES = {
    "draw": "coco_scale:bench_draw",
    "prepare": "captions:bench_prepare",
    "memory": "memory:bench_memory",
    "epoch": "training:bench_epoch",
    "decode": "decoding:bench_decode",
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig(DatasetConfig):
    """Options of `showtell bench`."""

    stages: list[str] | None = optional_argument(
        f"Stages to measure, of {', '.join(BENCH_STAGES)}; with --coco-scale of "
        f"{', '.join(COCO_SCALE_STAGES)}. Default all."
    )
    dataset: str = option("auto", "A prepared dataset; auto takes the one with most captions.")
    features: str | None = option(None, "Which of the dataset's features; default the newest.")
    run: str | None = option(None, "Run to decode with; default the newest without attention.")
    seconds: float = option(10.0, "Roughly how long each stage is measured.")
    coco_scale: bool = option(
        False, "Draw captions and features of COCO's size: prepare, memory, epoch, decode 5,000."
    )

    @property
    def known_stages(self) -> dict[str, str]:
        """Stage → the function that measures it."""
        return COCO_SCALE_STAGES if self.coco_scale else BENCH_STAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages or ():
            require_choice("stage", stage, tuple(self.known_stages))
        require(self.seconds > 0, f"seconds must be above 0, got {self.seconds}.")
