"""The description of a frozen network, which shards and manifests are compared with."""

from dataclasses import dataclass
from typing import Self

from ..reading.transform import Transform
from .backbone import Backbone


@dataclass(frozen=True)
class NetworkInfo:
    """A backbone without its weights; the fields are those of `Backbone`."""

    name: str
    weights_sha256: str
    transform: Transform
    feature_dim: int
    num_cells: int
    grid_dim: int

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """Return the description of a backbone."""
        return cls(
            name=backbone.name,
            weights_sha256=backbone.weights_sha256,
            transform=backbone.transform,
            feature_dim=backbone.feature_dim,
            num_cells=backbone.num_cells,
            grid_dim=backbone.grid_dim,
        )
