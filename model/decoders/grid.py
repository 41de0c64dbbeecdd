"""What the decoders that read grid features share: centred, projected grid cells.

Letters in shapes: N images, P grid cells, D feature width, W projected width.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .initialization import mean_direction
from .word_decoder import WordDecoder


class GridDecoder(WordDecoder):
    """Base class of decoders that read (N, P, D) grid features.

    A subclass calls `add_grid` in its `__init__`.
    """

    uses_grid = True

    grid_mean: Tensor

    def add_grid(self, width: int) -> None:
        """Add the projection of grid cells to width W, and the mean they are centred on."""
        self.register_buffer("grid_mean", torch.zeros(self.config.feature_dim))
        self.grid_proj = nn.Linear(self.config.feature_dim, width)

    def project_grid(self, features: Tensor) -> Tensor:
        """Normalise, centre and project (N, P, D) grids: (N, P, W), non-negative."""
        directions = F.normalize(features, dim=-1) - self.grid_mean
        values: Tensor = self.dropout(F.relu(self.grid_proj(directions * self.feature_norm)))
        return values

    @torch.no_grad()
    def center_features(self, parts: Iterable[Tensor]) -> None:
        """Store the mean grid cell and the mean pooled grid of (N, P, D) training features."""
        parts = list(parts)
        self.grid_mean.copy_(mean_direction(parts))
        super().center_features(part.mean(1, dtype=torch.float32) for part in parts)
