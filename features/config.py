"""Options of `showtell features`."""

from dataclasses import dataclass

from ..pipeline.stage.options import (
    DatasetConfig,
    option,
    require,
    require_at_least,
    require_choice,
)

MAX_VIEWS = 6  # as many as features/transform.py knows


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(DatasetConfig):
    """Options of `showtell features`."""

    encoder: str = option("resnet50", "Any torchvision classification network.")
    weights: str = option(
        "IMAGENET1K_V1",
        "A name of torchvision's (IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT), caffe, or a .pth or "
        ".safetensors file.",
    )
    image_size: int | None = option(None, "Side of the crop in pixels; default the weights' own.")
    views: int = option(
        1, "Views of each image, 1 to 6: itself, mirrored, then crops of its four corners."
    )
    grid: bool = option(False, "Also cache what the network sees at each place, before it pools.")
    format: str = option("hdf5", "Shard format: hdf5 or parquet.")
    shard_size: int = option(1024, "Images in one shard, the unit of work that a resume keeps.")
    batch_size: int = option(64, "Images in one pass of the network; each view counts as one.")
    num_workers: int | None = option(
        None, "Threads, or beside a GPU processes, that decode images; default one a core."
    )
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
    precision: str = option(
        "auto",
        "auto, fp32, bf16, fp16 or int8; auto takes bf16 where it is fast. int8 is for ResNets on "
        "CPUs with VNNI: the fastest there, its features a few per cent off.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            1,
            shard_size=self.shard_size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            image_size=self.image_size,
        )
        require(1 <= self.views <= MAX_VIEWS, f"views must be 1 to {MAX_VIEWS}, got {self.views}.")
        require_choice("format", self.format, ("hdf5", "parquet"))
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16", "int8"))
