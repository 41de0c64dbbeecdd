"""Self-critical training: captions that the decoder draws are rewarded with their own CIDEr-D.

Letters in shapes: N images, S draws of each, R = N·S rows, T words, V vocabulary.

The end of a caption counts as its last word, in draws and references alike: otherwise one that
stops in "with a" would lose nothing.

Source: Rennie et al. 2017, arXiv:1612.00563; the mean of the other draws as the baseline after Luo
2020, arXiv:2003.09971.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...pipeline.text.vocab import BOS, EOS, PAD, SPECIALS, Vocab
from ..config import TrainConfig
from ..decoders.decoder import Decoder
from ..decoders.state import DecoderState
from ..generation.constraints import FORBIDDEN, next_log_probs
from ..generation.options import DecodingOptions
from ..kernels.padding import ALIGNMENT, pad_rows, round_rows, staying
from ..metrics.caption_scorer import CaptionScorer
from .batches import CaptionBatch
from .loss import caption_loss


class SelfCriticalLoss:
    """Policy gradient of CIDEr-D with ends against a baseline, beside some cross-entropy or none.

    Args:
        references: image_id → captions as words joined by spaces, of all images of training: the
            document frequencies of the reward are theirs.
        image_ids: image_id of each row of the feature store.
        vocab: of the decoder.
        config: its `scst_samples`, `scst_baseline`, `xe_weight` and `label_smoothing` are read.
    """

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        image_ids: Sequence[int],
        vocab: Vocab,
        config: TrainConfig,
    ) -> None:
        self.scorer = CaptionScorer({i: [*map(ended, texts)] for i, texts in references.items()})
        self.image_ids, self.vocab, self.config = image_ids, vocab, config
        self.rules = DecodingOptions().for_unit(vocab.unit)  # what may be written, as in decoding
        self.seen: list[float] = []  # mean reward of each batch since the last `take_reward`

    def __call__(self, decoder: Decoder, batch: CaptionBatch) -> Tensor:
        """The loss of a batch whose captions are grouped by image, a scalar."""
        config, num_images = self.config, len(batch.rows)
        greedy = config.scst_baseline == "greedy"
        # As in decoding, without dropout: what is rewarded is what the decoder would write.
        decoder.eval()
        with torch.no_grad():
            state = decoder.init_state(batch.features)
            owners = torch.arange(num_images, device=batch.owners.device)
            owners = owners.repeat_interleave(config.scst_samples)
            drawn = draw_captions(decoder, state.take(owners), self.rules, greedy=False)
            best = draw_captions(decoder, state, self.rules, greedy=True) if greedy else None
        decoder.train()
        rewards = self.rewards(batch.rows, drawn).view(num_images, -1)
        self.seen.append(float(rewards.mean()))
        if best is not None:
            advantages = rewards - self.rewards(batch.rows, best).view(num_images, 1)
        else:
            advantages = rewards - mean_of_others(rewards)
        loss = policy_loss(decoder, batch, owners, drawn, advantages.flatten(), self.rules)
        if config.xe_weight:
            cross_entropy = caption_loss(decoder, batch, config.label_smoothing)
            loss = (1 - config.xe_weight) * loss + config.xe_weight * cross_entropy
        return loss

    def take_reward(self) -> float:
        """Mean reward of the draws since the last call; nan where there were none."""
        reward = float(np.mean(self.seen)) if self.seen else float("nan")
        self.seen.clear()
        return reward

    def rewards(self, rows: Tensor, token_ids: Tensor) -> Tensor:
        """CIDEr-D with ends, (R,) float32 from (R, T) words of the (N,) images in turn.

        A caption that was cut at the limit has no end.
        """
        image_ids = [self.image_ids[row] for row in rows.tolist()]
        image_ids = np.repeat(image_ids, len(token_ids) // len(image_ids)).tolist()
        cut = (token_ids[:, self.rules.length_limit :] == EOS).any(1).tolist()
        captions = [self.vocab.decode(words) for words in token_ids.tolist()]
        captions = [text if c else ended(text) for text, c in zip(captions, cut, strict=True)]
        rewards = self.scorer.cider_d(image_ids, captions)
        return torch.from_numpy(rewards).float().to(token_ids.device)


def ended(caption: str) -> str:
    """The caption with its end as a word."""
    return f"{caption} {SPECIALS[EOS]}"


def mean_of_others(rewards: Tensor) -> Tensor:
    """For each draw of an image the mean reward of its other draws: (N, S) → (N, S)."""
    return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def draw_captions(
    decoder: Decoder, state: DecoderState, rules: DecodingOptions, *, greedy: bool
) -> Tensor:
    """Write a caption for each row of the state, word by word.

    Args:
        decoder: in eval mode.
        state: R rows, each with a memory of its own.
        rules: what may be written, and how much of it.
        greedy: take the likeliest word each time instead of drawing one.

    Returns:
        (R, T) int64 words and EOS, PAD behind it; T is at most the limit + 1.
    """
    words = decoder.start_tokens(len(state))
    written = torch.full((len(state), rules.length_limit + 1), PAD, device=words.device)
    going = torch.arange(len(state), device=words.device)
    over = torch.zeros_like(going, dtype=torch.bool)
    for position in range(rules.length_limit + 1):
        logits, state = decoder.step(words, state)
        log_probs = next_log_probs(logits, written[going, :position], rules)
        words = log_probs.argmax(1) if greedy else torch.multinomial(log_probs.softmax(1), 1)[:, 0]
        words = words.masked_fill(over, PAD)
        written[going, position] = words
        over |= words == EOS
        # No work for captions that are over, but for a few.
        kept = staying(over, ALIGNMENT)
        if not len(kept):
            break
        if len(kept) < len(over):
            state = state.select(kept, torch.zeros_like(kept)[:, None])
            words, going, over = words[kept], going[kept], over[kept]
    return written[:, : int((written != PAD).sum(1).max())]


def policy_loss(
    decoder: Decoder,
    batch: CaptionBatch,
    owners: Tensor,
    drawn: Tensor,
    advantages: Tensor,
    rules: DecodingOptions,
) -> Tensor:
    """Mean over all words of −advantage · log-probability, whose gradient is the policy's.

    Args:
        decoder: in train mode.
        batch: of N images.
        owners: (R,) int64, the image of each draw.
        drawn: (R, T) int64 from `draw_captions`.
        advantages: (R,) float32, how much better than the baseline each draw was.
        rules: of the draw: what it could not write has no probability here either.
    """
    max_length = rules.length_limit
    # An end that was forced at the last place was not the decoder's choice.
    forced = drawn[:, max_length:] == EOS
    targets = drawn.clone()
    targets[:, max_length:] = targets[:, max_length:].masked_fill(forced, PAD)
    lengths, order = (targets != PAD).sum(1).cpu().sort(descending=True, stable=True)
    targets, owners = targets[order][:, : int(lengths[0])], owners[order]
    inputs = F.pad(targets, (1, -1), value=BOS)
    outputs = decoder(batch.features, inputs, owners, lengths)
    positions = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    weights = advantages[order][:, None].expand_as(targets)
    real = targets != PAD
    num_words = int(lengths.sum())
    num_rows = round_rows(num_words)
    outputs, positions, weights = (
        pad_rows(values[real], num_rows) for values in (outputs, positions, weights)
    )
    targets = pad_rows(targets[real], num_rows, PAD)
    logits = decoder.logits(outputs).float()  # (words, V)
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    for word in FORBIDDEN:
        forbidden[:, word] = True
    forbidden[:, EOS] = positions < rules.min_length
    log_probs = -F.cross_entropy(
        logits.masked_fill(forbidden, -torch.inf), targets, ignore_index=PAD, reduction="none"
    )
    return -(weights * log_probs).sum() / num_words
