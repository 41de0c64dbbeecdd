import zlib

import numpy as np
import pytest
import torch

from showtell.features.grids import GridFiles
from showtell.features.store import FeatureStore
from showtell.model.decoders.config import DecoderConfig
from showtell.model.decoders.registry import create_decoder
from showtell.model.training.batches import CaptionBatches
from showtell.model.training.loss import caption_loss
from showtell.pipeline.captions import EncodedCaptions
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.text.vocab import BOS, EOS, PAD

NUM_IMAGES, NUM_CAPTIONS, FEATURE_DIM, NUM_VIEWS = 40, 300, 6, 3


def make_store(image_ids: np.ndarray, tmp_path) -> FeatureStore:
    """A store whose features of view v of image i are all i + v / 4."""
    told = torch.from_numpy(image_ids)[:, None] + torch.arange(NUM_VIEWS) / 4
    views = told.half()[..., None].expand(-1, -1, FEATURE_DIM).contiguous()
    manifest = Manifest(stage="features", version=1, config={}, inputs={}, outputs={})
    grid = np.repeat(views[:, :, None].numpy(), 3, axis=2)
    crcs = np.array([zlib.crc32(row.tobytes()) for row in grid], np.uint32)
    grids = GridFiles((grid,), crcs)
    ids = torch.from_numpy(image_ids)
    return FeatureStore(ids, views, {}, manifest, tmp_path, grids)


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


def make_batches(
    tmp_path, batch_size: int = 16, missing: tuple[int, ...] = (), **options: object
) -> CaptionBatches:
    image_ids = np.array([i * 7 for i in range(NUM_IMAGES) if i not in missing], dtype=np.int64)
    store = make_store(image_ids, tmp_path)
    return CaptionBatches(store, make_captions(), batch_size, torch.device("cpu"), **options)


def rows_of(
    batches: CaptionBatches, seed: int
) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Return (image, inputs, targets) of every caption of an epoch, without padding."""
    return [
        (int(feature.flatten()[0]), tuple(i[t != PAD].tolist()), tuple(t[t != PAD].tolist()))
        for positions in batches.plan_epoch(seed)
        for batch in [batches.gather(positions)]
        for feature, i, t in zip(
            batch.features[batch.image_index], batch.inputs, batch.targets, strict=True
        )
    ]


KINDS = [{}, {"by_image": True}, {"by_image": True, "grid": True}, {"grid": True}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_epoch_has_every_caption_once_with_its_image(tmp_path, options) -> None:
    captions = make_captions()
    expected = []
    for index, image_id in enumerate(captions.image_ids.tolist()):
        words = captions.tokens[captions.offsets[index] : captions.offsets[index + 1]].tolist()
        expected.append((image_id, (BOS, *words), (*words, EOS)))
    batches = make_batches(tmp_path, **options)
    assert sorted(rows_of(batches, seed=3)) == sorted(expected)
    assert len(batches.plan_epoch(3)) == len(batches)


def test_captions_of_images_without_features_are_left_out(tmp_path) -> None:
    rows = rows_of(make_batches(tmp_path, missing=(0, 5)), seed=0)
    assert {0, 35}.isdisjoint(image for image, _, _ in rows)
    captions = make_captions()
    assert len(rows) == (~np.isin(captions.image_ids, (0, 35))).sum()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_order_and_views_depend_only_on_the_seed(tmp_path, options) -> None:
    first, second = (make_batches(tmp_path, **options) for _ in range(2))
    assert rows_of(first, seed=1) == rows_of(second, seed=1)
    assert rows_of(first, seed=1) != rows_of(first, seed=2)
    assert torch.equal(first.draw_views(1), second.draw_views(1))
    assert not torch.equal(first.draw_views(1), first.draw_views(2))


@pytest.mark.parametrize("batch_size", [1, 8, 16, 60])
def test_by_image_batches_hold_whole_images(tmp_path, batch_size: int) -> None:
    batches = make_batches(tmp_path, batch_size, by_image=True)
    seen: list[int] = []
    for positions in batches.plan_epoch(0):
        batch = batches.gather(positions)
        seen += batch.image_rows.tolist()
        assert len(batch.inputs) <= batch_size or len(batch.image_rows) == 1
        assert len(batch.features) == len(batch.image_rows) == len(batch.image_index.unique())
    assert sorted(seen) == sorted(set(seen)) == batches.images.tolist()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_all_views_are_drawn(tmp_path, options) -> None:
    batches = make_batches(tmp_path, **options)
    views = batches.draw_views(5)
    assert views.unique().tolist() == list(range(NUM_VIEWS))
    for positions in batches.plan_epoch(5):
        batch = batches.gather(positions, views)
        # Sorted by length, longest first; ties keep their order.
        ordered = sorted(positions.tolist(), key=lambda i: -batches.lengths[i])
        told = batches.rows[ordered] * 7 + views[ordered] / 4
        assert torch.equal(batch.features.flatten(1)[:, 0][batch.image_index].float(), told)
        assert batch.features.shape[1:] == ((3, FEATURE_DIM) if batches.grid else (FEATURE_DIM,))
    if batches.by_image:
        for row in batches.images:
            assert len(views[batches.rows == row].unique()) == 1


def test_num_views_limits_the_views_drawn(tmp_path) -> None:
    for options in KINDS:
        drawn = make_batches(tmp_path, num_views=2, **options).draw_views(0)
        assert drawn.unique().tolist() == [0, 1]


def test_grids_are_read_from_the_store(tmp_path, monkeypatch) -> None:
    asked = []

    def gather_grid(self: FeatureStore, rows: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        asked.append((rows.tolist(), views.tolist()))
        return torch.zeros(len(rows), 3, FEATURE_DIM).half()

    monkeypatch.setattr(FeatureStore, "gather_grid", gather_grid)
    batches = make_batches(tmp_path, by_image=True, grid=True)
    batch = batches.gather(batches.plan_epoch(0)[0])
    assert asked == [(batch.image_rows.tolist(), [0] * len(batch.image_rows))]  # once per image


def test_batches_hold_captions_of_similar_length(tmp_path) -> None:
    batches = make_batches(tmp_path)
    padded = real = 0
    for positions in batches.plan_epoch(0):
        batch = batches.gather(positions)
        padded, real = padded + batch.targets.numel(), real + len(batch.nonpad)
    assert real / padded > 0.85  # about 0.53 without sorting by length


def test_nonpad_indexes_the_non_padding_targets(tmp_path) -> None:
    batches = make_batches(tmp_path)
    for positions in batches.plan_epoch(0):
        batch = batches.gather(positions)
        expected = (batch.targets.flatten() != PAD).nonzero()[:, 0]
        assert torch.equal(batch.nonpad, expected)


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
    decoder = create_decoder(config).double().eval()
    batches = make_batches(tmp_path)
    positions = torch.arange(10)
    batch = batches.gather(positions)
    together = caption_loss(decoder, batch, label_smoothing=0.1)
    # A caption alone has no padding. The mean of a batch is over tokens, not over captions.
    alone = [batches.gather(positions[i : i + 1]) for i in range(10)]
    losses = [caption_loss(decoder, one, label_smoothing=0.1) * len(one.nonpad) for one in alone]
    expected = torch.stack(losses).sum() / sum(len(one.nonpad) for one in alone)
    torch.testing.assert_close(together, expected)


def test_loss_equals_a_plain_loop(tmp_path) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(
        cell="lstm", feature_dim=FEATURE_DIM, vocab_size=50, embed_size=8, hidden_size=8
    )
    decoder = create_decoder(config).double().eval()
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


WINDOWS = [{}, {"by_image": True}, {"by_image": True, "grid": True}, {"grid": True}]


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_windows_have_every_caption_once_with_its_image(tmp_path, options) -> None:
    plain = make_batches(tmp_path, **options)
    batches = make_batches(tmp_path, window=12, **options)
    assert sorted(rows_of(batches, seed=3)) == sorted(rows_of(plain, seed=3))
    assert rows_of(batches, seed=3) == rows_of(make_batches(tmp_path, window=12, **options), seed=3)
    assert rows_of(batches, seed=3) != rows_of(batches, seed=4)
    assert len(batches.windows) > 1
    assert {len(batches.plan_epoch(seed)) for seed in range(20)} == {len(plain)}


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_one_window_with_all_images_gives_the_batches_of_none(tmp_path, options) -> None:
    plain = make_batches(tmp_path, **options)
    views = plain.draw_views(2)
    for window in (0, NUM_IMAGES):
        batches = make_batches(tmp_path, window=window, **options)
        assert torch.equal(batches.draw_views(2), views)
        plans = zip(plain.plan_epoch(2), batches.plan_epoch(2), strict=True)
        for expected, positions in plans:
            assert torch.equal(expected, positions)
            one, other = plain.gather(expected, views), batches.gather(positions, views)
            for name in ("features", "image_rows", "image_index", "inputs", "targets", "nonpad"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_windows_are_bounded_and_mix_distant_images(tmp_path, options) -> None:
    batches = make_batches(tmp_path, batch_size=10, window=12, **options)
    positions = batches.plan_epoch(0)
    assert torch.equal(torch.cat(batches.windows).sort().values, torch.arange(NUM_CAPTIONS))
    held = []
    for batch in positions:
        batches.gather(batch)
        held.append(batches.reader.window.features.shape)
        assert len(batches.reader.buffer) <= 1.5 * 12
    images = [len(batches.rows[window].unique()) for window in batches.windows]
    assert max(images) <= 1.3 * 12
    # Images of one view each, or all views of an image that several captions draw from.
    num_views = 1 if batches.by_image else NUM_VIEWS
    assert {shape[1] for shape in held} == {num_views}
    spans = [batches.rows[window].max() - batches.rows[window].min() for window in batches.windows]
    assert sum(span > NUM_IMAGES / 2 for span in spans) >= len(spans) - 1


@pytest.mark.parametrize("options", WINDOWS, ids=str)
def test_views_are_drawn_in_windows_too(tmp_path, options) -> None:
    batches = make_batches(tmp_path, window=12, **options)
    views = batches.draw_views(5)
    for positions in batches.plan_epoch(5):
        batch = batches.gather(positions, views)
        ordered = sorted(positions.tolist(), key=lambda i: -batches.lengths[i])
        told = batches.rows[ordered] * 7 + views[ordered] / 4
        assert torch.equal(batch.features.flatten(1)[:, 0][batch.image_index].float(), told)


def test_epoch_that_starts_in_the_middle_reads_only_its_windows(tmp_path, monkeypatch) -> None:
    batches = make_batches(tmp_path, window=12)
    plan = batches.plan_epoch(1)
    reads: list[int] = []
    read_window = CaptionBatches._read_window

    def read(self: CaptionBatches, index: int, *args: object, **options: object) -> object:
        reads.append(index)
        return read_window(self, index, *args, **options)

    monkeypatch.setattr(CaptionBatches, "_read_window", read)
    late = int(batches.window_of[plan[-1][0]])
    batches.gather(plan[-1])
    assert reads == [late] == [len(batches.windows) - 1]
