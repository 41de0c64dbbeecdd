"""Initial weights of a decoder: random, with word vectors, or those of `--init`."""

import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ...features.store import FeatureStore
from ...pipeline.layout import BUILT_IN
from ...pipeline.stage.artifacts import require_manifest
from ...pipeline.stage.command_line import data_option
from ...pipeline.stage.console import print_note
from ...pipeline.stage.errors import MismatchError
from ...pipeline.stage.files import hash_file
from ...pipeline.text.vocab import Vocab
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..decoders.initialization import ROWS_TOGETHER
from ..decoders.registry import create_decoder
from ..decoders.word_vectors import read_word_vectors, set_word_vectors
from ..runs.find import find_model
from ..runs.layout import VOCAB_NAME, weights_path
from ..runs.run import load_run
from .batches import CaptionBatches
from .data import TrainingData, decoder_config
from .remap_words import remap_words

MAX_CENTER_GRIDS = 1000  # grids to average; all of them might not fit into memory


def make_decoder(
    config: TrainConfig, data: TrainingData, batches: CaptionBatches, *, resume: bool = False
) -> Decoder:
    """Create a decoder, on the CPU.

    Args:
        config: the options; `init` and `word_vectors` decide about the weights.
        data: the vocabulary and the features.
        batches: of the training images.
        resume: whether the weights are about to be loaded from a checkpoint.

    Raises:
        MissingArtifactError: the model of `--init` or the file of word vectors does not exist.
        MismatchError: the model of `--init` has changed since the run was started.
    """
    decoder = create_decoder(decoder_config(config, data))
    if resume:
        return decoder
    if config.init is not None:
        load_source(decoder, config, data)
        return decoder
    decoder.center_features(read_images(data.store, batches))
    if config.word_vectors is not None:
        vectors = read_word_vectors(config.word_vectors, data.vocab, config.embed_size)
        set_word_vectors(decoder.get_parameter("embedding.weight"), vectors)
        print_note(
            f"train: {len(vectors):,} of {len(data.vocab):,} words start from "
            f"{config.word_vectors}."
        )
    return decoder


def read_images(store: FeatureStore, batches: CaptionBatches) -> Iterator[Tensor]:
    """Yield the features of the training images part by part; of grids, of some images."""
    images = batches.images
    if batches.grid:
        yield store.gather_grid(images[:: -(-len(images) // MAX_CENTER_GRIDS)])
    else:
        yield from (store.gather(part) for part in images.split(ROWS_TOGETHER))


def load_source(decoder: Decoder, config: TrainConfig, data: TrainingData) -> None:
    """Load the weights of `--init`, with a row for each word of the dataset.

    The mean feature is kept too: the image projection was trained on differences from it.
    """
    assert config.init is not None
    folder = find_model(config.data, config.init)
    if hash_file(weights_path(folder)) != data.inputs["init"]:
        raise MismatchError(
            f"{weights_path(folder)} has changed since the run was started. Train another run with "
            "--run NAME."
        )
    _, vocab, trained = load_run(folder, torch.device("cpu"))
    weights = trained.state_dict()
    if vocab.sha256 != data.vocab.sha256:
        weights, num_known = remap_words(trained, vocab, data.vocab)
        print_note(
            f"train: {num_known:,} of {len(data.vocab.ids):,} {data.vocab.unit} start from "
            f"{config.init}."
        )
        _advise_known_words(config, data, folder, vocab)
    decoder.load_state_dict(weights)


def _advise_known_words(
    config: TrainConfig, data: TrainingData, folder: Path, vocab: Vocab
) -> None:
    """Name the command that keeps words of the source, if validation captions have some of them."""
    is_other = vocab.word_tokenizer != data.vocab.word_tokenizer
    if is_other or "pieces" in (data.vocab.unit, vocab.unit):
        return
    texts = chain.from_iterable(data.val_references.values())
    used = set(chain.from_iterable(text.split(" ") for text in texts))
    lost = used & vocab.ids.keys() - data.vocab.ids.keys()
    command = require_manifest(config.captions_dir).command
    if lost and command:
        known = folder.name if folder.parent == BUILT_IN else str(folder / VOCAB_NAME)
        print_note(
            f"train: {config.init} knows {len(lost):,} more words of the validation captions, such "
            f"as {min(lost)!r}. To keep the words that it knows, run 'showtell {command} "
            f"--known-words {shlex.quote(known)}{data_option(config.data)}'."
        )
