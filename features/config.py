"""Options of `showtell features`, and the hardware options that other commands share with it."""

from dataclasses import dataclass
from pathlib import Path

from ..pipeline.stage.options import DatasetConfig, expand_home, option
from ..pipeline.stage.urls import is_url
from .reading.limits import MAX_PIXELS
from .reading.views import VIEWS

MAX_VIEWS = len(VIEWS)


def device_option() -> str:
    """Declare `--device`."""
    return option(
        "auto",
        "Where to compute: cpu, cuda, cuda:1, ... auto uses the GPU if there is one.",
        group="Hardware",
        affects_result=False,
        metavar="DEVICE",
    )


def precision_option() -> str:
    """Declare `--precision`."""
    return option(
        "auto",
        "Number format of the computation. auto uses bf16 where it is fast, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
        group="Hardware",
    )


def num_workers_option() -> int | None:
    """Declare `--num-workers`."""
    return option(
        None,
        "Workers that decode images: threads on a CPU, processes with a GPU. Default: one per "
        "core.",
        at_least=1,
        group="Hardware",
    )


def max_pixels_option() -> int:
    """Declare `--max-pixels`."""
    return option(
        MAX_PIXELS,
        "Skip images with more pixels than this. Decoding takes up to 18 bytes of memory per "
        "pixel; a pixel of a JPEG 2000 image counts as two.",
        at_least=1,
        group="Hardware",
    )


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(DatasetConfig):
    """Options of `showtell features`."""

    encoder: str = option(
        "resnet50",
        "Any classification network of torchvision, or timm/NAME for any image model of timm.",
        group="Model",
        metavar="NAME",
    )
    weights: str = option(
        "auto",
        "Pretrained weights: auto, a torchvision name (IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT), "
        "caffe, a tag of timm, or a .pth or .safetensors file. auto uses the weights of existing "
        "features, else IMAGENET1K_V1 or timm's weights from the cache or the hub, else caffe "
        "(resnet50 only).",
        group="Model",
        metavar="NAME|FILE",
    )
    image_size: int | None = option(
        None,
        "Side of the square crop in pixels. Default: the size the weights were trained with.",
        at_least=1,
        group="Model",
    )
    views: int = option(
        1,
        "Views to cache per image: the image itself, its mirror image, then four corner crops.",
        at_least=1,
        at_most=MAX_VIEWS,
        group="Model",
    )
    grid: bool = option(
        False, "Also cache the grid of features before pooling, for attention.", group="Model"
    )
    format: str = option(
        "hdf5", "File format of the shards.", choices=("hdf5", "parquet"), group="Output"
    )
    shard_size: int = option(
        1024,
        "Images per shard. An interrupted run loses at most the shards in progress.",
        at_least=1,
        group="Output",
    )
    batch_size: int = option(
        64, "Images per forward pass; each view counts as one.", at_least=1, group="Hardware"
    )
    retry_skipped: bool = option(
        False,
        "Read and encode all skipped images again, and no others. Without it, a run only tries "
        "those again that failed for a passing reason, such as a server that did not answer.",
        group="Repair",
        affects_result=False,
    )
    recompute: list[str] | None = option(
        None,
        "Compute this shard again although it is finished, such as part-00003. Can be repeated.",
        group="Repair",
        affects_result=False,
        metavar="SHARD",
    )
    num_workers: int | None = num_workers_option()
    max_pixels: int = max_pixels_option()
    device: str = device_option()
    precision: str = precision_option()
    engine: str = option(
        "local",
        "What computes the shards: local (this machine) or ray (a Ray cluster).",
        choices=("local", "ray"),
        group="Cluster",
        affects_result=False,
    )
    address: str | None = option(
        None,
        "Ray cluster to use: auto for the one of this machine, or the HOST:PORT of its head node. "
        "Default: start a Ray on this machine.",
        group="Cluster",
        affects_result=False,
        metavar="auto|HOST:PORT",
    )

    store: str | None = option(
        None,
        "Folder or URL, such as s3://bucket/features, that gets a copy of each computed shard. "
        "Shards that it has already are fetched. Workers of Ray that share no folder need it.",
        group="Cluster",
        affects_result=False,
        metavar="DIR|URL",
    )

    def is_recomputed(self, shard_name: str) -> bool:
        """Return whether `--recompute` names a shard, with or without its suffix."""
        return Path(shard_name).stem in {Path(name).stem for name in self.recompute or ()}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.store is not None and not is_url(self.store):
            object.__setattr__(self, "store", str(expand_home(Path(self.store)).absolute()))
        self.require_unused("address", unless=self.engine == "ray", needs="--engine ray")
        if self.weights.startswith("~"):
            object.__setattr__(self, "weights", str(expand_home(Path(self.weights))))
