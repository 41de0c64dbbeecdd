"""Options of `showtell bench`, and the stages that it can measure."""

from dataclasses import dataclass

from ..pipeline.stage.options import (
    DatasetConfig,
    argument,
    check_dataset_name,
    option,
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

# The same for --coco-scale; later stages use what earlier ones wrote.
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

    stages: list[str] | None = argument(
        f"Stages to measure: {', '.join(BENCH_STAGES)}; with --coco-scale: "
        f"{', '.join(COCO_SCALE_STAGES)}. Default: all.",
        metavar="STAGE",
        required=False,
    )
    dataset: str = option(
        "auto",
        "Prepared dataset to use. auto picks the one with the most captions.",
        check=check_dataset_name,
        group="Input",
        metavar="NAME",
    )
    features: str | None = option(
        None,
        "Cached features to use, such as resnet50-caffe. Default: the newest.",
        group="Input",
        metavar="NAME",
    )
    run: str | None = option(
        None,
        "Run to decode with. Default: the newest without attention.",
        group="Input",
        metavar="RUN",
    )
    seconds: float = option(
        10.0, "Approximate time to measure each stage, in seconds.", above=0, group="Measuring"
    )
    coco_scale: bool = option(
        False,
        "Measure on generated captions and features with as many images as COCO.",
        group="Measuring",
    )

    @property
    def known_stages(self) -> dict[str, str]:
        """Stage → the function that measures it."""
        return COCO_SCALE_STAGES if self.coco_scale else BENCH_STAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages or ():
            require_choice("STAGE", stage, tuple(self.known_stages))
