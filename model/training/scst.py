"""Self-critical training: sampled captions are rewarded with their own scores, see `reward.py`.

Letters in shapes: N images, S draws of each, R = N·S rows, T tokens, V vocabulary.

Source: Rennie et al. 2017, arXiv:1612.00563; the mean of the other draws as baseline: Luo 2020,
arXiv:2003.09971.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...pipeline.text.vocab import BOS, EOS, PAD, Vocab
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..generation.constraints import NEVER_WRITTEN
from ..generation.options import DecodingOptions
from ..generation.sampling import generate_tokens
from ..kernels.padding import ALIGNMENT, pad_rows, round_rows
from ..retrieval.search import mean_features
from ..scst_reward import parse_reward
from .batches import CaptionBatch
from .data import TrainingData
from .loss import Share, caption_loss, whole
from .reward import Reward


class SelfCriticalLoss:
    """Policy gradient of the reward against a baseline, optionally mixed with cross-entropy.

    Args:
        references: image_id → captions as words joined by spaces, for all training images.
        image_ids: image_id of each row of the feature store.
        vocab: of the decoder.
        config: `scst_reward`, `scst_samples`, `scst_baseline`, `xe_weight` and `label_smoothing`
            are used.
        features: (M, D) of the training images in the order of `references`; only if the reward has
            Consensus.
    """

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        image_ids: Sequence[int],
        vocab: Vocab,
        config: TrainConfig,
        features: Tensor | None = None,
    ) -> None:
        self.reward = Reward(references, parse_reward(config.scst_reward), features)
        self.image_ids, self.vocab, self.config = image_ids, vocab, config
        self.rules = DecodingOptions().for_unit(vocab.unit)  # the same constraints as in decoding
        self.batch_rewards: list[float] = []  # since the last `take_reward`

    @classmethod
    def load(cls, data: TrainingData, images: Tensor, config: TrainConfig) -> "SelfCriticalLoss":
        """Return the loss for a dataset.

        Args:
            data: captions and features.
            images: (M,) int64, rows of the training images in the feature store.
            config: see `SelfCriticalLoss`.
        """
        image_ids = data.store.image_ids.tolist()
        ids = data.store.image_ids[images]
        features = None
        if "Consensus" in parse_reward(config.scst_reward):
            features = mean_features([data.store], ids.numpy(), data.store.num_views)
        references = data.train_references(ids.tolist())
        return cls(references, image_ids, data.vocab, config, features)

    def __call__(self, decoder: Decoder, batch: CaptionBatch, share: Share = whole) -> Tensor:
        """Return the loss of a batch whose captions are grouped by image, a scalar."""
        config, num_images = self.config, len(batch.image_rows)
        use_greedy = config.scst_baseline == "greedy"
        # Without dropout: the captions rewarded are those that decoding would write.
        decoder.eval()
        with torch.no_grad():
            state = decoder.init_state(batch.features, batch.words)
            image_index = torch.arange(num_images, device=batch.image_index.device)
            image_index = image_index.repeat_interleave(config.scst_samples)
            drawn = draw_captions(decoder, state.repeat(image_index), self.rules)
            greedy = draw_captions(decoder, state, self.rules, greedy=True) if use_greedy else None
        decoder.train()
        rewards = self.rewards(batch.image_rows, drawn).view(num_images, -1)
        self.batch_rewards.append(float(rewards.mean()) * share(num_images))
        if greedy is not None:
            advantages = rewards - self.rewards(batch.image_rows, greedy).view(num_images, 1)
        else:
            advantages = rewards - mean_of_others(rewards)
        advantages = advantages.flatten()
        loss = policy_loss(decoder, batch, image_index, drawn, advantages, self.rules, share)
        if config.xe_weight:
            cross_entropy = caption_loss(decoder, batch, config.label_smoothing)
            cross_entropy = cross_entropy * share(len(batch.nonpad))
            loss = (1 - config.xe_weight) * loss + config.xe_weight * cross_entropy
        return loss

    def take_reward(self) -> float:
        """Return the mean reward since the last call; NaN if there was none.

        Of several processes, each returns its share: the mean is their sum.
        """
        reward = float(np.mean(self.batch_rewards)) if self.batch_rewards else float("nan")
        self.batch_rewards.clear()
        return reward

    def rewards(self, image_rows: Tensor, token_ids: Tensor) -> Tensor:
        """Compute the reward of captions.

        Args:
            image_rows: (N,) int64, row of each image in the feature store.
            token_ids: (R, T) int64, the captions of the first image, then of the second, ….

        Returns:
            (R,) float32.
        """
        image_ids = [self.image_ids[row] for row in image_rows.tolist()]
        image_ids = np.repeat(image_ids, len(token_ids) // len(image_ids)).tolist()
        is_cut = (token_ids[:, self.rules.length_limit :] == EOS).any(1).tolist()
        captions = [self.vocab.decode(tokens) for tokens in token_ids.tolist()]
        rewards = self.reward(image_ids, captions, is_cut)
        return torch.from_numpy(rewards).float().to(token_ids.device)


def mean_of_others(rewards: Tensor) -> Tensor:
    """Return, for each draw, the mean reward of the image's other draws: (N, S) → (N, S)."""
    return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def draw_captions(
    decoder: Decoder, state: Any, rules: DecodingOptions, *, greedy: bool = False
) -> Tensor:
    """Write one caption for each row of a state.

    Args:
        decoder: in eval mode.
        state: R rows, each with a memory of its own.
        rules: the constraints on captions.
        greedy: take the most probable token instead of drawing one.

    Returns:
        (R, T) int64, ending with EOS, then PAD; T is at most the maximum length + 1.
    """

    def choose(log_probs: Tensor, rows: Tensor, step: int) -> Tensor:
        if greedy:
            return log_probs.argmax(1)
        return torch.multinomial(log_probs.softmax(1), 1)[:, 0]

    written = generate_tokens(decoder, state, rules, choose, keep_multiple=ALIGNMENT).token_ids
    token_ids = written[:, 0]
    return token_ids[:, : int((token_ids != PAD).sum(1).max())]


def policy_loss(
    decoder: Decoder,
    batch: CaptionBatch,
    image_index: Tensor,
    drawn: Tensor,
    advantages: Tensor,
    rules: DecodingOptions,
    share: Share = whole,
) -> Tensor:
    """Return the mean over all tokens of −advantage · log-probability, a scalar.

    Args:
        decoder: in train mode.
        batch: of N images.
        image_index: (R,) int64, the image of each draw.
        drawn: (R, T) int64, from `draw_captions`.
        advantages: (R,) float32, reward minus baseline of each draw.
        rules: the constraints of the draw; what they forbid has no probability here either.
        share: of the tokens of this process.
    """
    max_length = rules.length_limit
    # An EOS forced at the maximum length was not the decoder's choice.
    is_forced = drawn[:, max_length:] == EOS
    targets = drawn.clone()
    targets[:, max_length:] = targets[:, max_length:].masked_fill(is_forced, PAD)
    lengths, order = (targets != PAD).sum(1).cpu().sort(descending=True, stable=True)
    targets, image_index = targets[order][:, : int(lengths[0])], image_index[order]
    inputs = F.pad(targets, (1, -1), value=BOS)
    outputs = decoder(batch.features, inputs, image_index, lengths, batch.words)
    positions = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    weights = advantages[order][:, None].expand_as(targets)
    # Only the non-padding tokens, as rows.
    nonpad = targets != PAD
    num_tokens = int(lengths.sum())
    num_rows = round_rows(num_tokens)
    outputs, positions, weights = (
        pad_rows(values[nonpad], num_rows) for values in (outputs, positions, weights)
    )
    targets = pad_rows(targets[nonpad], num_rows, PAD)
    logits = decoder.logits(outputs).float()  # (num_rows, V)
    is_forbidden = torch.zeros_like(logits, dtype=torch.bool)
    for token in NEVER_WRITTEN:
        is_forbidden[:, token] = True
    is_forbidden[:, EOS] = positions < rules.min_length
    log_probs = -F.cross_entropy(
        logits.masked_fill(is_forbidden, -torch.inf), targets, ignore_index=PAD, reduction="none"
    )
    return -(weights * log_probs).sum() / num_tokens * share(num_tokens)
