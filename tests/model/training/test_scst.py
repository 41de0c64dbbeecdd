import itertools
import random
from collections import Counter
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
import torch
from pycocoevalcap.cider.cider import Cider

from showtell.model.config import TrainConfig
from showtell.model.decoders.base import Decoder
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import DECODERS, create_decoder
from showtell.model.generation.options import DecodingOptions
from showtell.model.training.batches import CaptionBatch
from showtell.model.training.loss import caption_loss
from showtell.model.training.scst import (
    SelfCriticalLoss,
    draw_captions,
    mean_of_others,
    policy_loss,
)
from showtell.pipeline.text.vocab import BOS, EOS, PAD, UNK, build_vocab

RULES = DecodingOptions()
MAX_LENGTH = RULES.length_limit

NUM_IMAGES = 6
IMAGE_IDS = [10 * row for row in range(NUM_IMAGES + 2)]  # two images have no training captions
WORDS = [
    "a",
    "dog",
    "runs",
    "on",
    "grass",
    "the",
    "cat",
    "sits",
    "in",
    "red",
    "house",
    "two",
    "people",
    "play",
    "ball",
]


def make_references() -> dict[int, list[str]]:
    draw = random.Random(0)
    caption = lambda: " ".join(draw.choices(WORDS, k=draw.randint(4, 9)))  # noqa: E731
    return {image_id: [caption() for _ in range(3)] for image_id in IMAGE_IDS[:NUM_IMAGES]}


REFERENCES = make_references()
VOCAB = build_vocab(Counter(" ".join(chain(*REFERENCES.values())).split()), min_count=1)


def make_loss(**options: object) -> SelfCriticalLoss:
    config = TrainConfig(**({"scst": True, "init": "r", "label_smoothing": 0.0} | options))
    return SelfCriticalLoss(REFERENCES, IMAGE_IDS, VOCAB, config)


def make_batch(grid: bool = False) -> CaptionBatch:
    """Return a batch with one caption per image."""
    torch.manual_seed(0)
    captions = [VOCAB.encode(texts[0].split()) for texts in REFERENCES.values()]
    order = sorted(range(NUM_IMAGES), key=lambda i: -len(captions[i]))
    width = len(captions[order[0]]) + 1
    fill = lambda ids: [*ids, *[PAD] * (width - len(ids))]  # noqa: E731
    targets = torch.tensor([fill([*captions[i], EOS]) for i in order])
    return CaptionBatch(
        features=torch.randn((NUM_IMAGES, 4, 6) if grid else (NUM_IMAGES, 6)),
        image_rows=torch.arange(NUM_IMAGES),
        image_index=torch.tensor(order),
        inputs=torch.tensor([fill([BOS, *captions[i]]) for i in order]),
        targets=targets,
        lengths=torch.tensor([len(captions[i]) + 1 for i in order]),
        nonpad=(targets.flatten() != PAD).nonzero()[:, 0],
    )


def drawn_by(decoder: Decoder, batch: CaptionBatch, *, greedy: bool, samples: int = 1):
    image_index = torch.arange(NUM_IMAGES).repeat_interleave(samples)
    with torch.no_grad():
        state = decoder.init_state(batch.features.to(decoder.output_bias.dtype)).repeat(image_index)
        return image_index, draw_captions(decoder, state, RULES, greedy=greedy)


def rewards_of(captions: list[list[str]], rows: torch.Tensor, length: int) -> torch.Tensor:
    ids = [[*VOCAB.encode(words), EOS] for words in captions]
    return make_loss().rewards(
        rows, torch.tensor([[*words, *[PAD] * (length - len(words))] for words in ids])
    )


def cider_d(image_id: int, caption: str) -> float:
    """Return pycocoevalcap's CIDEr-D with EOS as the last word of each reference."""
    references = {i: [f"{text} END" for text in texts] for i, texts in REFERENCES.items()}
    others = {i: texts[:1] for i, texts in references.items()}
    _, scores = Cider().compute_score(references, others | {image_id: [caption]})
    return float(scores[list(REFERENCES).index(image_id)])


def test_reward_equals_pycocoevalcaps_cider_d() -> None:
    draw, rows = random.Random(1), torch.tensor([4, 0, 2])
    image_ids = [IMAGE_IDS[row] for row in rows.repeat_interleave(3).tolist()]
    captions = [
        [*draw.choice(REFERENCES[image_id]).split()[:4], *draw.choices(WORDS, k=2)]
        for image_id in image_ids
    ]
    rewards = rewards_of(captions, rows, 9)
    for reward, image_id, words in zip(rewards, image_ids, captions, strict=True):
        assert reward.item() == pytest.approx(cider_d(image_id, " ".join([*words, "END"])))
    assert rewards.dtype == torch.float32 and rewards.unique().numel() > 3


def test_caption_cut_at_max_length_is_rewarded_without_end() -> None:
    words = (REFERENCES[IMAGE_IDS[1]][0].split() * MAX_LENGTH)[:MAX_LENGTH]
    (reward,) = rewards_of([words], torch.tensor([1]), MAX_LENGTH + 1)
    assert reward.item() == pytest.approx(cider_d(IMAGE_IDS[1], " ".join(words)))


def test_mean_of_others_computed_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    expected = torch.tensor([[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]])
    torch.testing.assert_close(mean_of_others(rewards), expected)


@pytest.mark.parametrize(
    ("cell", "attention"),
    [*itertools.product(("gru", "lstm", "rnn"), DECODERS), ("transformer", "none")],
)
def test_draws_contain_only_words_and_one_end(random_decoder, cell: str, attention: str) -> None:
    decoder = random_decoder(cell=cell, attention=attention, vocab_size=len(VOCAB))
    with torch.no_grad():  # make the forbidden tokens probable
        decoder.output_bias[[PAD, BOS, UNK, EOS]] += 2.0
    batch = make_batch(grid=decoder.uses_grid)
    for greedy in (False, True):
        _, drawn = drawn_by(decoder, batch, greedy=greedy, samples=20)
        ends = (drawn == EOS).float().argmax(1)
        assert ((drawn == EOS).sum(1) == 1).all() and (ends > 0).all()
        before = torch.arange(drawn.shape[1]) < ends[:, None]
        assert not np.isin(drawn[before], [PAD, BOS, UNK]).any()
        behind = torch.arange(drawn.shape[1]) > ends[:, None]
        assert (drawn[behind] == PAD).all()
        assert ends.max() == drawn.shape[1] - 1 <= MAX_LENGTH


def test_finished_draws_leave_the_batch(random_decoder, monkeypatch) -> None:
    decoder = random_decoder(cell="gru", feature_dim=6, vocab_size=len(VOCAB)).eval()
    sizes, step = [], decoder.step

    def counting_step(words, state):
        sizes.append(len(words))
        return step(words, state)

    monkeypatch.setattr(decoder, "step", counting_step)
    _, drawn = drawn_by(decoder, make_batch(), greedy=False, samples=30)
    going = (drawn != PAD).sum(0).tolist()
    assert all(0 <= size - count < 16 for size, count in zip(sizes, going, strict=True))
    assert all(size % 16 == 0 for size in sizes if size < sizes[0])
    assert len({*sizes}) > 2


def test_greedy_draw_takes_the_most_probable_word_up_to_max_length(random_decoder) -> None:
    decoder, batch = random_decoder(vocab_size=len(VOCAB), seed=3), make_batch()
    with torch.no_grad():
        decoder.output_bias[EOS] -= 100
    _, drawn = drawn_by(decoder, batch, greedy=True)
    assert drawn.shape == (NUM_IMAGES, MAX_LENGTH + 1) and (drawn[:, -1] == EOS).all()
    state = decoder.init_state(batch.features)
    words = decoder.start_tokens(NUM_IMAGES)
    for position in range(MAX_LENGTH):
        logits, state = decoder.step(words, state)
        logits[:, [PAD, BOS, UNK]] = -torch.inf
        words = logits.argmax(1)
        assert torch.equal(drawn[:, position], words)


@pytest.mark.parametrize(
    "options", [{}, {"attention": "soft"}, {"cell": "transformer", "num_layers": 2}], ids=str
)
@pytest.mark.parametrize("ends", ["soon", "never"])
def test_policy_gradient_equals_a_plain_loop(random_decoder, options, ends) -> None:
    decoder = random_decoder(vocab_size=len(VOCAB), **options)
    with torch.no_grad():
        decoder.output_bias[EOS] += 1 if ends == "soon" else -100
    batch = make_batch(grid=decoder.uses_grid)
    image_index, drawn = drawn_by(decoder, batch, greedy=False, samples=3)
    advantages = torch.randn(len(drawn)).double()
    policy_loss(
        decoder, batch, image_index, drawn, advantages, DecodingOptions(max_length=MAX_LENGTH)
    ).backward()
    found = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    terms = []
    for image, words, advantage in zip(image_index, drawn, advantages, strict=True):
        state, previous = decoder.init_state(batch.features[image, None]), torch.tensor([BOS])
        for position, word in enumerate(words[words != PAD]):
            if position == MAX_LENGTH:  # the end was forced here
                break
            logits, state = decoder.step(previous, state)
            forbidden = (PAD, BOS, UNK, EOS) if position == 0 else (PAD, BOS, UNK)
            allowed = [i for i in range(len(VOCAB)) if i not in forbidden]
            log_prob = logits[0, word] - logits[0, allowed].exp().sum().log()
            terms.append(-advantage * log_prob)
            previous = word[None]
    torch.stack(terms).mean().backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_training_raises_cider_d(baseline: str) -> None:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "vocab_size": len(VOCAB), "embed_size": 32, "hidden_size": 32}
    decoder = create_decoder(DecoderConfig(cell="gru", dropout=0.0, **sizes))
    loss_of, batch = make_loss(scst_baseline=baseline), make_batch()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)

    def greedy_score() -> float:
        _, drawn = drawn_by(decoder, batch, greedy=True)
        return loss_of.rewards(batch.image_rows, drawn).mean().item()

    def take_steps(loss_of: Callable[[Decoder, CaptionBatch], torch.Tensor], count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss_of(decoder, batch).backward()
            optimizer.step()

    take_steps(caption_loss, 15)  # so that draws get a reward at all
    before = greedy_score()
    take_steps(loss_of, 100)
    assert greedy_score() > before + 1
    assert decoder.training


def test_xe_weight_mixes_in_cross_entropy() -> None:
    sizes = {"feature_dim": 6, "vocab_size": len(VOCAB), "embed_size": 8, "hidden_size": 8}
    decoder, batch = create_decoder(DecoderConfig(cell="gru", dropout=0.0, **sizes)), make_batch()
    losses = []
    for weight in (0.0, 0.25, 1.0):
        torch.manual_seed(1)  # the same draws
        losses.append(make_loss(xe_weight=weight)(decoder, batch).item())
    assert losses[2] == pytest.approx(caption_loss(decoder, batch).item(), rel=1e-6)
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2], rel=1e-5)
