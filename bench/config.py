"""Options of `showtell bench`, and the stages that it can measure."""

from dataclasses import dataclass

from ..pipeline.stage.options import (
    DatasetConfig,
    argument,
    check_dataset_name,
    option,
    require,
    require_choice,
)

# Each stage is measured by the file of `stages/` with its name, `-` written as `_`.
BENCH_STAGES = (
    "prepare",
    "features",
    "features-coco",
    "features-tar",
    "workers",
    "ray",
    "shards",
    "train",
    "train-processes",
    "decode",
    "rerank",
    "scorers",
    "serve",
    "onnx",
    "caption",
)

# The same for --coco-scale; later stages use what earlier ones wrote.
COCO_SCALE_STAGES = ("draw", "prepare", "memory", "epoch", "decode", "scst")
COCO_SCALE_DATASET = "coco-scale"


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
        "Run to decode, re-rank or serve with. Default: newest; for the first two, no attention.",
        group="Input",
        metavar="RUN",
    )
    seconds: float = option(
        10.0, "Approximate time to measure each stage, in seconds.", above=0, group="Measuring"
    )
    num_images: int | None = option(
        None,
        "Images for the stage ray. Default: as many as the network alone computes in --seconds.",
        at_least=1,
        group="Measuring",
    )
    coco_scale: bool = option(
        False,
        "Measure on generated captions and features with as many images as COCO.",
        group="Measuring",
    )
    scale: float = option(
        1.0,
        "Size of the data of --coco-scale, relative to COCO.",
        above=0,
        at_most=1,
        group="Measuring",
    )

    @property
    def known_stages(self) -> tuple[str, ...]:
        """Return the stages that can be measured, in order."""
        return COCO_SCALE_STAGES if self.coco_scale else BENCH_STAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages or ():
            require_choice("STAGE", stage, self.known_stages)
        require(
            self.coco_scale or self.scale == 1,
            "--scale is the size of generated data; add --coco-scale.",
        )
