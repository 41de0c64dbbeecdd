"""Load the training data: what `showtell prepare` and `showtell features` have written."""

from dataclasses import dataclass
from pathlib import Path

from ...features.store import FeatureStore, extend_command, find_features, require_views
from ...pipeline.captions import (
    EncodedCaptions,
    ImageTable,
    read_captions,
    read_images,
    read_references,
)
from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET, VOCAB_JSON
from ...pipeline.stage.artifacts import require_stage
from ...pipeline.stage.command_line import command_line
from ...pipeline.stage.console import print_warning
from ...pipeline.stage.errors import ConfigError, MissingArtifactError
from ...pipeline.stage.files import hash_file, require_file
from ...pipeline.text.tokenizer import DEFAULT_TOKENIZER
from ...pipeline.text.vocab import Vocab
from ..config import TrainConfig
from ..decoders.config import DecoderConfig
from ..decoders.inputs import Words
from ..decoders.registry import decoder_class, decoder_option
from ..decoders.word_vectors import FILE_DESCRIPTION
from ..neighbours import read_words
from ..runs.repair import find_config
from ..runs.run import load_run_features
from .extra_captions import add_captions
from .source import load_source_features, source_checksum

NUM_SHOWN = 10  # validation images whose captions TensorBoard shows


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained and validated on.

    Attributes:
        vocab: the vocabulary.
        store: features of the dataset's images.
        captions: encoded captions of the train split.
        val_image_ids: images to caption after each epoch.
        val_references: image_id → its captions as words joined by spaces.
        val_file_names: file names of the first few validation images, to show their captions.
        captions_path: captions.parquet of the dataset.
        inputs: name → sha256 of every file that was read.
        words: of all images in the store; None without `--neighbours`.
    """

    vocab: Vocab
    store: FeatureStore
    captions: EncodedCaptions
    val_image_ids: list[int]
    val_references: dict[int, list[str]]
    val_file_names: list[str]
    captions_path: Path
    inputs: dict[str, str]
    words: Words | None = None

    def train_references(self, image_ids: list[int]) -> dict[int, list[str]]:
        """Return image_id → captions as words joined by spaces, for these images."""
        return read_references(self.captions_path, "words", image_ids)


def load_training_data(config: TrainConfig) -> TrainingData:
    """Read captions, vocabulary and features of a dataset.

    Raises:
        MissingArtifactError: prepare or features has not run, or the train or the val split has no
            image with features.
        MismatchError: the features belong to other images.
    """
    captions_dir, dataset = config.captions_dir, ("--dataset", config.dataset)
    prepared = require_stage(captions_dir)
    store = load_features(config)
    require_features(config, store)
    images = read_images(captions_dir / IMAGES_PARQUET)
    val = images.select("val")
    val = val[store.has(val).numpy()][: config.val_images]
    if not len(val):
        raise MissingArtifactError(
            f"{captions_dir} has no val images with features, so the best epoch could not be "
            f"chosen. Mark some images as 'val', then run "
            f"'{command_line(config.data, 'prepare', *dataset)}' and "
            f"'{command_line(config.data, 'features', *dataset)}' again."
        )
    captions = read_train_captions(config, images, store)
    # The vocabulary first: if several files have changed, an error should name it.
    names = sorted(prepared.outputs, key=lambda name: name != VOCAB_JSON)
    inputs = {name: hash_file(captions_dir / name) for name in names}
    inputs["features"] = store.sha256
    if config.word_vectors is not None:
        require_file(config.word_vectors, "--word-vectors", FILE_DESCRIPTION)
        inputs["word_vectors"] = hash_file(config.word_vectors)
    if config.init is not None:
        inputs["init"] = source_checksum(config)
    vocab = Vocab.read(captions_dir / VOCAB_JSON)
    require_english_for_meteor(config, vocab)
    if config.extra_captions is not None:
        captions = add_captions(captions, config.extra_captions, vocab)
        inputs["extra_captions"] = hash_file(config.extra_captions)
    words = None
    if config.neighbours:
        words, inputs["neighbours"] = read_words(store, config.neighbours, vocab)
    return TrainingData(
        vocab=vocab,
        store=store,
        captions=captions,
        val_image_ids=val.tolist(),
        val_references=read_references(captions_dir / CAPTIONS_PARQUET, "words", val),
        val_file_names=images.find_names(val[:NUM_SHOWN].tolist()),
        captions_path=captions_dir / CAPTIONS_PARQUET,
        inputs=inputs,
        words=words,
    )


def read_train_captions(
    config: TrainConfig, images: ImageTable, store: FeatureStore
) -> EncodedCaptions:
    """Read the captions of the train split; those of images without features are ignored later.

    Raises:
        MissingArtifactError: no image of the train split has features.
    """
    path = config.captions_dir / CAPTIONS_PARQUET
    captions = read_captions(path).select(images.select("train"))
    num_without = int((~store.has(captions.image_ids)).sum())
    if num_without == len(captions):
        command = command_line(config.data, "features", "--dataset", config.dataset)
        raise MissingArtifactError(
            f"{store.directory} has no features of train images; its manifest.json lists the "
            f"reasons. Fix the images, then run '{command}' again."
        )
    if num_without:
        print_warning(f"{num_without:,} train captions are ignored: their images have no features.")
    return captions


def require_english_for_meteor(config: TrainConfig, vocab: Vocab) -> None:
    """Refuse METEOR for captions in other languages than English.

    Raises:
        ConfigError: an option asks for METEOR, and the vocabulary is not in English.
    """
    asks = {"--monitor": config.monitor, "--scst-reward": config.scst_reward}
    for option, value in asks.items():
        if "METEOR" in value and vocab.word_tokenizer != DEFAULT_TOKENIZER:
            raise ConfigError(
                f"{option} {value}: METEOR knows only English, and {config.dataset} was prepared "
                f"with --tokenizer {vocab.word_tokenizer}. Use CIDEr or BLEU."
            )


def load_features(config: TrainConfig) -> FeatureStore:
    """Load the features to train on: those of a resumed run, of the source, or of the dataset."""
    # Windows take all the memory that features may use.
    is_mapped = True if config.window else None
    if config.resume:
        assert config.run is not None
        saved = find_config(config.data / "runs" / config.run)
        return load_run_features(config.data, saved, is_mapped=is_mapped)
    if config.init is not None:
        return load_source_features(config, is_mapped=is_mapped)
    directory = find_features(config.dataset_dir, config.features)
    return FeatureStore.load(directory, is_mapped=is_mapped)


def require_features(config: TrainConfig, store: FeatureStore) -> None:
    """Check that the grids and views that the options need are cached.

    Raises:
        MissingArtifactError: grids or some of the views are missing.
    """
    num_views, uses_grid = config.views or 1, decoder_class(config).uses_grid
    if uses_grid and store.grid_shape is None:
        raise MissingArtifactError(
            f"{store.directory} has no grids, which {decoder_option(config)} needs. Run "
            f"'{extend_command(store, num_views, grid=True)}' first."
        )
    require_views(store, num_views, grid=uses_grid)


def decoder_config(config: TrainConfig, data: TrainingData) -> DecoderConfig:
    """Combine the decoder's options with the sizes of the vocabulary and the features."""
    uses_grid = decoder_class(config).uses_grid
    grid_shape = data.store.grid_shape if uses_grid else None
    return DecoderConfig(
        cell=config.cell,
        feature_dim=grid_shape[1] if grid_shape else data.store.feature_dim,
        vocab_size=len(data.vocab),
        embed_size=config.embed_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        dropout=config.dropout,
        image_as=config.image_as,
        tie_embeddings=config.tie_embeddings,
        attention=config.attention,
        attention_size=config.attention_size,
        neighbours=config.neighbours,
    )
