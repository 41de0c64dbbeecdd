import numpy as np
import pytest
import torch

from showtell.features.store import FeatureStore
from showtell.model.batches import CaptionBatches
from showtell.model.decoder import Decoder, DecoderConfig
from showtell.model.objective import caption_loss
from showtell.pipeline.captions import EncodedCaptions
from showtell.pipeline.manifest import Manifest
from showtell.pipeline.vocab import BOS, EOS, PAD

NUM_IMAGES, NUM_CAPTIONS, FEATURE_DIM = 40, 300, 6


def make_store(image_ids: np.ndarray, tmp_path) -> FeatureStore:
    """Features that tell their image: row of image i is all i."""
    features = torch.from_numpy(image_ids).half()[:, None].expand(-1, FEATURE_DIM).contiguous()
    manifest = Manifest(stage="features", version=1, config={}, inputs={}, outputs={})
    return FeatureStore(torch.from_numpy(image_ids), features, {}, manifest, tmp_path)


def make_captions(seed: int = 0) -> EncodedCaptions:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 15, NUM_CAPTIONS)
    offsets = np.concatenate([[0], lengths.cumsum()])
    return EncodedCaptions(
        caption_ids=np.arange(NUM_CAPTIONS),
        image_ids=rng.integers(0, NUM_IMAGES, NUM_CAPTIONS) * 7,
        tokens=rng.integers(4, 50, offsets[-1]).astype(np.int32),
        offsets=offsets,
    )


def make_batches(tmp_path, batch_size: int = 16, missing: tuple[int, ...] = ()) -> CaptionBatches:
    image_ids = np.array([i * 7 for i in range(NUM_IMAGES) if i not in missing], dtype=np.int64)
    store = make_store(image_ids, tmp_path)
    return CaptionBatches(store, make_captions(), batch_size, torch.device("cpu"))


def rows_of(
    batches: CaptionBatches, seed: int
) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(image, inputs, targets) of every caption of an epoch, without padding."""
    return [
        (int(feature[0]), tuple(i[t != PAD].tolist()), tuple(t[t != PAD].tolist()))
        for positions in batches.plan_epoch(seed)
        for batch in [batches.gather(positions)]
        for feature, i, t in zip(batch.features, batch.inputs, batch.targets, strict=True)
    ]


def test_epoch_has_every_caption_once_with_its_own_image(tmp_path) -> None:
    captions = make_captions()
    expected = []
    for index, image_id in enumerate(captions.image_ids.tolist()):
        words = captions.tokens[captions.offsets[index] : captions.offsets[index + 1]].tolist()
        expected.append((image_id, (BOS, *words), (*words, EOS)))
    assert sorted(rows_of(make_batches(tmp_path), seed=3)) == sorted(expected)


def test_captions_of_images_without_features_are_left_out(tmp_path) -> None:
    rows = rows_of(make_batches(tmp_path, missing=(0, 5)), seed=0)
    assert {0, 35}.isdisjoint(image for image, _, _ in rows)
    captions = make_captions()
    assert len(rows) == (~np.isin(captions.image_ids, (0, 35))).sum()


def test_order_follows_from_the_seed_alone(tmp_path) -> None:
    first, second = make_batches(tmp_path), make_batches(tmp_path)
    assert rows_of(first, seed=1) == rows_of(second, seed=1)
    assert rows_of(first, seed=1) != rows_of(first, seed=2)


def test_batches_hold_captions_of_similar_length(tmp_path) -> None:
    batches = make_batches(tmp_path)
    padded = real = 0
    for positions in batches.plan_epoch(0):
        batch = batches.gather(positions)
        padded, real = padded + batch.targets.numel(), real + len(batch.real)
    assert real / padded > 0.85  # without buckets about 0.53


def test_real_names_the_targets_that_are_no_padding(tmp_path) -> None:
    batches = make_batches(tmp_path)
    for positions in batches.plan_epoch(0):
        batch = batches.gather(positions)
        expected = (batch.targets.flatten() != PAD).nonzero()[:, 0]
        assert torch.equal(batch.real, expected)


@pytest.mark.parametrize("image_as", ["first-input", "initial-state"])
def test_loss_ignores_padding(tmp_path, image_as: str) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(
        cell="gru",
        feature_dim=FEATURE_DIM,
        vocab_size=50,
        embed_size=8,
        hidden_size=8,
        image_as=image_as,
    )
    decoder = Decoder(config).double().eval()
    batches = make_batches(tmp_path)
    positions = torch.arange(10)
    batch = batches.gather(positions)
    together = caption_loss(decoder, batch, label_smoothing=0.1)
    # Each caption alone has no padding; the batch's mean is over words, not over captions.
    alone = [batches.gather(positions[i : i + 1]) for i in range(10)]
    losses = [caption_loss(decoder, one, label_smoothing=0.1) * len(one.real) for one in alone]
    expected = torch.stack(losses).sum() / sum(len(one.real) for one in alone)
    torch.testing.assert_close(together, expected)


def test_loss_is_the_cross_entropy_of_a_plain_loop(tmp_path) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(
        cell="lstm", feature_dim=FEATURE_DIM, vocab_size=50, embed_size=8, hidden_size=8
    )
    decoder = Decoder(config).double().eval()
    batch = make_batches(tmp_path).gather(torch.arange(5))
    total, count = 0.0, 0
    for feature, inputs, targets in zip(batch.features, batch.inputs, batch.targets, strict=True):
        state = decoder.init_state(feature[None])
        for word, target in zip(inputs, targets, strict=True):
            if target == PAD:
                break
            logits, state = decoder.step(word[None], state)
            total -= float(logits.log_softmax(1)[0, target])
            count += 1
    assert float(caption_loss(decoder, batch)) == pytest.approx(total / count, rel=1e-6)
