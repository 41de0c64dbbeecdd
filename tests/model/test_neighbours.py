"""`showtell neighbours`, and training, evaluation and captioning with what it finds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from showtell.features.config import FeaturesConfig
from showtell.features.extract import extract
from showtell.features.store import FeatureStore
from showtell.model.config import EvalConfig, TrainConfig
from showtell.model.evaluate import evaluate, read_captions
from showtell.model.neighbours import (
    WORDS_NAME,
    find_neighbours,
    neighbours_dir,
    read_words,
)
from showtell.model.retrieval.config import NeighboursConfig
from showtell.model.retrieval.search import NeighborSearch, mean_features, training_images
from showtell.model.runs.run import load_run
from showtell.model.train import train
from showtell.pipeline.stage.errors import (
    ConfigError,
    DamagedFileError,
    MismatchError,
    MissingArtifactError,
)
from showtell.pipeline.stage.manifest import Manifest
from showtell.pipeline.text.vocab import Vocab
from showtell.serving.config import ExportConfig
from showtell.serving.export import export
from showtell.serving.load import load
from showtell.serving.neighbors import quantize

K = 5
SIZES = {"hidden_size": 16, "embed_size": 16, "batch_size": 32, "epochs": 1, "device": "cpu"}


def config_of(data: Path, **options: object) -> NeighboursConfig:
    return NeighboursConfig(data=data, dataset="scenes", neighbours=K, **options)


def train_config(data: Path, **options: object) -> TrainConfig:
    return TrainConfig(data=data, dataset="scenes", neighbours=K, run="r", **SIZES | options)


def folder_of(data: Path) -> Path:
    return neighbours_dir(data / "scenes", "resnet18-random-64", K)


def store_and_vocab(data: Path) -> tuple[FeatureStore, Vocab]:
    return FeatureStore.find(data / "scenes"), Vocab.read(data / "scenes/captions/vocab.json")


@pytest.fixture(scope="module")
def found(prepared_grids, random_weights, tmp_path_factory) -> Path:
    """A data folder with the words of all images. Copy it before writing.

    In float32, so that the features of an image do not depend on the rest of its batch.
    """
    data = Path(shutil.copytree(prepared_grids, tmp_path_factory.mktemp("neighbours") / "data"))
    options = {"encoder": "resnet18", "weights": str(random_weights), "image_size": 64}
    extract(
        FeaturesConfig(data=data, dataset="scenes", views=2, grid=True, precision="fp32", **options)
    )
    find_neighbours(config_of(data))
    return data


@pytest.fixture
def data(found, tmp_path) -> Path:
    return Path(shutil.copytree(found, tmp_path / "data"))


def test_words_of_every_image_are_written_in_the_order_of_the_features(data) -> None:
    store, vocab = store_and_vocab(data)
    words, _ = read_words(store, K, vocab)
    assert words.token_ids.shape == words.weights.shape
    assert len(words.token_ids) == len(store.image_ids) == 60
    counts = Manifest.load(folder_of(data)).counts
    assert counts["num_images"] == 60 and counts["num_neighbours"] == K


def test_finished_stage_is_up_to_date_until_an_input_changes(data, capsys) -> None:
    find_neighbours(config_of(data))
    assert "is up to date" in capsys.readouterr().out
    path = data / "scenes/captions/vocab.json"
    content = json.loads(path.read_text())
    content["words"] = dict(reversed(content["words"].items()))
    path.write_text(json.dumps(content))
    (data / "scenes/captions/manifest.json").unlink()  # its checksums are of the other vocabulary
    with pytest.raises(MissingArtifactError):
        find_neighbours(config_of(data))


def test_missing_stage_names_its_command(grid_scenes) -> None:
    message = (
        rf"--neighbours {K} needs .*neighbours/resnet18-random-64-{K}, .* Run 'showtell neighbours "
        rf"--dataset scenes --features resnet18-random-64 --neighbours {K} --data .*' first"
    )
    with pytest.raises(MissingArtifactError, match=message):
        train(train_config(grid_scenes))


def test_words_of_another_vocabulary_are_refused(data) -> None:
    store, vocab = store_and_vocab(data)
    with pytest.raises(MismatchError, match=r"computed for other vocab \(.*'showtell neighbours "):
        read_words(store, K, replace(vocab, words=(*vocab.words, "more"), counts=()))


def test_damaged_words_are_named_with_the_repair(data) -> None:
    path = folder_of(data) / WORDS_NAME
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    store, vocab = store_and_vocab(data)
    with pytest.raises(DamagedFileError, match=r"words\.safetensors is damaged.*neighbours --data"):
        read_words(store, K, vocab)


def test_status_and_verify_know_the_stage(data, showtell) -> None:
    status, output = showtell("status", "--data", data)
    assert status == 0
    (line,) = [line for line in output.splitlines() if f"neighbours/resnet18-random-64-{K}" in line]
    assert "done" in line and "60 images" in line
    assert showtell("verify", "--data", data)[0] == 0
    path = folder_of(data) / WORDS_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    status, output = showtell("verify", "--data", data)
    assert status == 1 and "damaged" in output and WORDS_NAME in output
    vocab = data / "scenes/captions/vocab.json"
    vocab.write_text(vocab.read_text() + " ")
    status, output = showtell("status", "--data", data)
    assert "stale" in output or "damaged" in output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm", "image_as": "initial-state", "tie_embeddings": False},
        {"attention": "soft"},
        {"attention": "adaptive", "embed_size": 8},
        {"cell": "transformer", "num_layers": 2, "embed_size": 8},
    ],
)
def test_decoder_with_words_generates_what_it_was_trained_for(data, options) -> None:
    """`forward` over whole captions and `step` token by token give the same logits."""
    train(train_config(data, **options))
    store, vocab = store_and_vocab(data)
    words, _ = read_words(store, K, vocab)
    _, _, decoder = load_run(data / "runs/r", torch.device("cpu"))
    decoder = decoder.double()
    rows = torch.tensor([3, 11, 40])
    features = (store.gather_grid if decoder.uses_grid else store.gather)(rows).double()
    inputs = torch.tensor([[1, 7, 9, 12], [1, 5, 8, 6], [1, 20, 21, 9]])
    with torch.no_grad():
        with_words = decoder.logits(decoder(features, inputs, words=words.take(rows)))
        without = decoder.logits(decoder(features, inputs))
        for given, whole in ((words.take(rows), with_words), (None, without)):
            state = decoder.init_state(features, given)
            for t in range(inputs.shape[1]):
                logits, state = decoder.step(inputs[:, t], state)
                torch.testing.assert_close(logits, whole[:, t])
        # Beams of several images: all continue their own image's words.
        state = decoder.init_state(features, words.take(rows))
        logits, state = decoder.step(inputs[:, 0], state)
        state = state.select(torch.tensor([0, 2]), torch.zeros(2, 3, dtype=torch.long))
        logits, _ = decoder.step(inputs[[0, 2], 1].repeat_interleave(3), state)
        torch.testing.assert_close(logits, with_words[[0, 2], 1].repeat_interleave(3, 0))
    assert not torch.allclose(with_words, without)


def test_training_leaves_out_the_words_of_some_images(data) -> None:
    train(train_config(data))
    _, _, decoder = load_run(data / "runs/r", torch.device("cpu"))
    store, vocab = store_and_vocab(data)
    words, _ = read_words(store, K, vocab)
    rows = torch.zeros(2000, dtype=torch.long)
    torch.manual_seed(0)
    _, outputs = decoder.words.train()(words.take(rows), decoder.embedding.weight)
    is_dropped = (outputs == 0).all(1)
    assert 0.05 < float(is_dropped.float().mean()) < 0.15
    _, outputs = decoder.words.eval()(words.take(rows), decoder.embedding.weight)
    assert not (outputs == 0).all(1).any()


def test_eval_caption_and_bundle_agree(data, random_weights, tmp_path) -> None:
    train(train_config(data, epochs=8, learning_rate=2e-2, dropout=0.0, precision="fp32"))
    evaluate(EvalConfig(data=data, run=["r"], split="test", beam=2, precision="fp32"))
    captions = read_captions(data / "runs/r/eval/test-beam2")
    names = {path.stem: path for path in (data / "scenes/raw/images").iterdir()}
    paths = [names[f"{image_id:06}"] for image_id in captions]
    captioner = load("r", data=data, device="cpu", precision="fp32")
    assert captioner.caption(paths, beam=2) == [*captions.values()]
    export(ExportConfig(data=data, run="r", output=tmp_path / "bundle"))
    bundle = load(tmp_path / "bundle", weights=random_weights, device="cpu", precision="fp32")
    # The bundle holds the features rounded to int8; everything else is the same.
    store, _ = store_and_vocab(data)
    ids = training_images(data / "scenes/captions", [store], "--neighbours")
    rounded, scales = quantize(mean_features([store], ids, store.num_views))
    captioner.retriever.search = NeighborSearch(ids.tolist(), rounded * scales[:, None], K)
    images = [path.read_bytes() for path in paths]
    shutil.rmtree(data / "scenes")  # a bundle has all that it needs
    options = {"beam": 2, "length_penalty": 0.7}
    assert bundle.caption(images, **options) == captioner.caption(images, **options)


def test_captioning_without_the_training_images_warns(data, random_weights, capsys) -> None:
    train(train_config(data))
    images = sorted((data / "scenes/raw/images").iterdir())[:2]
    shutil.rmtree(data / "scenes/features")
    captioner = load("r", data=data, device="cpu")
    capsys.readouterr()
    assert len(captioner.caption(images)) == len(captioner.caption(images)) == 2
    (line,) = capsys.readouterr().err.splitlines()  # once
    assert "captions are worse without the words of similar images" in line
    assert "has no finished features. Run 'showtell features" in line


def test_changed_words_are_refused_by_eval(data) -> None:
    train(train_config(data))
    manifest = Manifest.load(folder_of(data))
    replace(manifest, inputs=manifest.inputs | {"captions.parquet": "other"}).write(folder_of(data))
    with pytest.raises(MismatchError, match=r"neighbours of scenes .* that run r was trained with"):
        evaluate(EvalConfig(data=data, run=["r"]))


def test_self_critical_training_keeps_the_words(data) -> None:
    train(train_config(data))
    options = {"scst": True, "scst_reward": "CIDEr-D=1,Consensus=0.5", "epochs": 1}
    train(TrainConfig(data=data, run="s", init="r", batch_size=32, **options))
    run, _, decoder = load_run(data / "runs/s", torch.device("cpu"))
    assert run.decoder.neighbours == K and decoder.words is not None


def test_onnx_is_refused(data, tmp_path) -> None:
    train(train_config(data))
    config = ExportConfig(data=data, run="r", output=tmp_path / "bundle", onnx=True)
    with pytest.raises(ConfigError, match="--onnx does not support decoders with --neighbours"):
        export(config)
