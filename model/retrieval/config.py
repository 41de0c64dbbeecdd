"""Options of `showtell neighbours`."""

from dataclasses import dataclass

from ...features.config import device_option
from ...pipeline.stage.options import DatasetConfig, option

DEFAULT_NEIGHBOURS = 1000


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(DatasetConfig):
    """Options of `showtell neighbours`."""

    features: str | None = option(
        None,
        "Cached features by which images are similar, such as resnet50-caffe. Default: the newest.",
        group="Input",
        affects_result=False,
        metavar="NAME",
    )
    neighbours: int = option(
        DEFAULT_NEIGHBOURS,
        "Number of similar training images whose captions tell the words of an image.",
        at_least=1,
        limit=100_000,
        group="Retrieval",
        metavar="K",
    )
    device: str = device_option()
