"""The words of similar images as an input of a decoder.

Letters in shapes: N images, S words, E embedding, H hidden, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inputs import Words

DROPOUT = 0.1  # probability that an image is trained without its words


class RetrievedWords(nn.Module):
    """Project the weighted words of each image: once for the image, once for every output.

    The words are summed as word vectors of the decoder. Added to an output, they raise the logits
    of these words, because the output layer usually shares the word vectors.

    In training, the words of some images are dropped as a whole, so that the decoder also works
    without them.

    Args:
        embed_size: E.
        image_size: width of the projected image.
        hidden_size: H.

    Source: after the attributes of You et al. 2016, arXiv:1603.03925, which a detector predicts.
    """

    def __init__(self, embed_size: int, image_size: int, hidden_size: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(embed_size, image_size, bias=False)
        self.output_proj = nn.Linear(embed_size, hidden_size, bias=False)

    def forward(self, words: Words, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and project words.

        Args:
            words: of N images.
            embedding: (V, E), the word vectors.

        Returns:
            image: (N, image_size), to add to the projected image.
            output: (N, H), to add to every output.
        """
        weights = words.weights.to(embedding.dtype)
        if self.training:
            is_kept = torch.rand(len(weights), 1, device=weights.device) >= DROPOUT
            weights = weights * is_kept
        summed = F.embedding_bag(
            words.token_ids.long(), embedding, per_sample_weights=weights, mode="sum"
        )
        return self.image_proj(summed), self.output_proj(summed)
