"""The interface of an engine: it computes feature shards, on one machine or on many."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path

import torch

from ...pipeline.stage.stopwatch import Stopwatch
from ..config import FeaturesConfig
from ..encoders.network import NetworkInfo
from ..plan import ImageList, ShardJob, Skipped


class Engine(ABC):
    """A network that is ready to compute shards.

    Attributes:
        config: the stage's options, with the precision used.
        device: where the network runs.
    """

    config: FeaturesConfig
    device: torch.device

    @property
    @abstractmethod
    def network(self) -> NetworkInfo:
        """The network without its weights."""

    @abstractmethod
    def compute(
        self,
        images: ImageList,
        jobs: Sequence[ShardJob],
        directory: Path,
        watch: Stopwatch,
    ) -> Generator[tuple[ShardJob, Skipped], None, None]:
        """Compute feature shards and write their files.

        Args:
            images: all images of the dataset.
            jobs: the shards to compute.
            directory: where the shards are written.
            watch: measures the parts of the work.

        Yields:
            Each job with its skipped images, in any order. Its files may still be incomplete; all
                files are complete when the iterator ends.

        Raises:
            ShowTellError: features are not finite, or the disk is full.
        """
