import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import showtell
from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.features.store import FeatureStore
from showtell.features.torch_datasets import CaptionDataset, ReferenceDataset
from showtell.pipeline.captions import read_captions, read_images, read_references
from showtell.pipeline.datasets.scenes import draw_scenes
from showtell.pipeline.stage.errors import BadShardError, ConfigError, MissingArtifactError
from showtell.pipeline.text.vocab import BOS, EOS, PAD, Vocab


def test_items_are_the_captions_of_a_split_with_their_features(prepared_scenes) -> None:
    folder = prepared_scenes / "scenes"
    dataset = CaptionDataset(str(folder), "train")
    captions_dir = folder / "captions"
    images = read_images(captions_dir / "images.parquet").select("train")
    captions = read_captions(captions_dir / "captions.parquet").select(images)
    store = FeatureStore.find(folder)
    assert len(dataset) == len(captions) > 40
    assert dataset.image_ids.tolist() == captions.image_ids.tolist()
    for index in (0, 7, len(dataset) - 1, -1):
        features, token_ids = dataset[index]
        (row,) = store.rows([captions.image_ids[index]])
        torch.testing.assert_close(features, store.features[row].float(), rtol=0, atol=0)
        stop = captions.offsets[index % len(dataset) + 1]
        words = captions.tokens[captions.offsets[index % len(dataset)] : stop]
        assert token_ids.tolist() == [BOS, *words, EOS]
    assert len(list(dataset)) == len(dataset)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_references_are_the_words_of_each_image(prepared_scenes) -> None:
    folder = prepared_scenes / "scenes"
    dataset = ReferenceDataset(folder, "val")
    images = read_images(folder / "captions/images.parquet").select("val")
    expected = read_references(folder / "captions/captions.parquet", "words", images)
    assert [references for _, references in dataset] == list(expected.values())
    assert dataset.vocab == Vocab.read(str(folder / "captions/vocab.json"))


@pytest.mark.parametrize("grid", [False, True])
def test_loader_with_workers_gives_the_same_batches(prepared_grids, grid: bool) -> None:
    dataset = CaptionDataset(prepared_grids / "scenes", "val", grid=grid)
    plain = DataLoader(dataset, 7, collate_fn=dataset.collate)
    # Workers that are not forked get a pickled dataset.
    sent = ForkingPickler.loads(ForkingPickler.dumps(dataset))
    parallel = DataLoader(sent, 7, collate_fn=dataset.collate, num_workers=2)
    batches = list(plain)
    assert sum(len(batch.lengths) for batch in batches) == len(dataset)
    for batch, other in zip(batches, parallel, strict=True):
        for name in batch._fields:
            assert torch.equal(getattr(batch, name), getattr(other, name))
    features, token_ids, lengths = batches[0]
    assert features.shape == ((7, 4, 512) if grid else (7, 512))
    assert features.dtype == torch.float32 and token_ids.shape == (7, int(lengths.max()))
    for row, length in zip(token_ids, lengths.tolist(), strict=True):
        assert row[0] == BOS and row[length - 1] == EOS and (row[length:] == PAD).all()


def test_references_are_collated_into_lists(prepared_grids) -> None:
    dataset = ReferenceDataset(prepared_grids / "scenes", "test", grid=True)
    for features, references in DataLoader(dataset, 4, collate_fn=dataset.collate, num_workers=1):
        assert features.shape[1:] == (4, 512) and len(features) == len(references)
        assert all(isinstance(text, str) for texts in references for text in texts)


def test_pickled_grids_are_mapped_again_and_verified(grid_scenes) -> None:
    store = FeatureStore.find(grid_scenes / "scenes")
    content = pickle.dumps(store.grids)
    assert len(content) < 2000 + store.grids.crc32.nbytes
    again = pickle.loads(content)
    rows, views = np.arange(5), np.ones(5, np.int64)
    assert np.array_equal(again.gather(rows, views), store.grids.gather(rows, views))
    path = Path(store.grids.maps[0].filename)
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadShardError, match="does not match its checksum"):
        again = pickle.loads(content)
        again.gather(np.arange(len(again.crc32)), np.zeros(len(again.crc32), np.int64))


def test_images_without_features_are_left_out(tmp_path, random_weights) -> None:
    draw_scenes(tmp_path / "scenes/raw", num_train=6, num_val=2, num_test=2)
    from showtell.pipeline.config import PrepareConfig
    from showtell.pipeline.prepare import prepare

    prepare(PrepareConfig(data=tmp_path, dataset="scenes", min_count=1))
    next(tmp_path.glob("scenes/raw/images/*1.jpg")).write_bytes(b"broken")
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 32}
    extract(FeaturesConfig(data=tmp_path, dataset="scenes", **options))
    assert len(ReferenceDataset(tmp_path / "scenes", "train")) == 5


def test_missing_parts_are_named(prepared_scenes, scenes, tmp_path) -> None:
    folder = prepared_scenes / "scenes"
    with pytest.raises(ConfigError, match="split must be one of train, val, test, got 'dev'"):
        CaptionDataset(folder, "dev")
    with pytest.raises(MissingArtifactError, match=r"has no grids\. Run 'showtell features"):
        CaptionDataset(folder, grid=True)
    with pytest.raises(MissingArtifactError, match="Available features: resnet18-random-64"):
        CaptionDataset(folder, features="vgg16")
    with pytest.raises(MissingArtifactError, match="showtell features"):
        ReferenceDataset(tmp_path / "nothing")


def test_features_are_found_by_path_or_name(prepared_scenes) -> None:
    folder = prepared_scenes / "scenes"
    name = "resnet18-random-64"
    stores = [
        FeatureStore.load(str(folder / "features" / name)),
        FeatureStore.find(str(folder)),
        FeatureStore.find(folder, name),
    ]
    assert len({store.sha256 for store in stores}) == 1


def test_names_of_the_package_are_importable() -> None:
    assert showtell.CaptionDataset is CaptionDataset and showtell.PAD == PAD
    assert all(getattr(showtell, name) is not None for name in showtell.__all__)
    assert {*showtell.__all__} <= {*dir(showtell)}
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        showtell.nosuch  # noqa: B018
