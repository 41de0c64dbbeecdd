"""Initial weights of a decoder, and the mean that its features are centred on."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_TOGETHER = 4096


def init_embedding(weight: Tensor) -> None:
    """Fill a (V, W) matrix with random word vectors whose squared length is 1 on average."""
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def init_cell(cell: nn.RNNBase) -> None:
    """Make recurrent matrices orthogonal and biases 0; open the forget gates of an LSTM."""
    size = cell.hidden_size
    for name, parameter in cell.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.detach().split(size):
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
            if isinstance(cell, nn.LSTM) and name.startswith("bias_ih"):
                parameter.detach()[size : 2 * size] = 1.0


def empty_embedding(vocab_size: int, embed_size: int) -> nn.Embedding:
    """Return an `nn.Embedding` that stays uninitialised on the meta device.

    Initialising weights on the meta device makes torch import its compiler, which would add a
    second to the loading of every run.
    """
    weight = torch.empty(vocab_size, embed_size)
    return nn.Embedding(vocab_size, embed_size, _weight=weight if weight.is_meta else None)


def mean_direction(parts: Iterable[Tensor]) -> Tensor:
    """Return the mean of vectors scaled to length 1: parts of (…, D) → (D,) float32.

    Subtracting it leaves what distinguishes an image from the average image.
    """
    sums, count = [], 0
    for part in parts:
        vectors = part.flatten(0, -2)
        count += len(vectors)
        # Float32 copies of all COCO features would take 2 GB.
        sums += [F.normalize(few.float(), dim=-1).sum(0) for few in vectors.split(ROWS_TOGETHER)]
    return torch.stack(sums).sum(0) / count
