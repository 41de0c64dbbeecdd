"""Initial weights of a decoder: random, with word vectors, or those of `--init`."""

import torch

from ...pipeline.stage.console import print_note
from ..config import TrainConfig
from ..decoders.base import Decoder
from ..decoders.registry import create_decoder
from ..decoders.word_vectors import read_word_vectors, set_word_vectors
from ..runs.run import load_run
from .batches import CaptionBatches
from .data import TrainingData, decoder_config, require_same_inputs

MAX_CENTER_GRIDS = 1000  # grids to average; all of them might not fit into memory


def make_decoder(config: TrainConfig, data: TrainingData, batches: CaptionBatches) -> Decoder:
    """Create a decoder, or load that of `--init`; on the CPU.

    Raises:
        MissingArtifactError: the run of `--init` or the file of word vectors does not exist.
        MismatchError: the run of `--init` was trained with another vocabulary or encoder.
    """
    decoder = create_decoder(decoder_config(config, data))
    if config.init is not None:
        run, _, trained = load_run(config.data / "runs" / config.init, torch.device("cpu"))
        require_same_inputs(run, data)
        decoder.load_state_dict(trained.state_dict())
        return decoder
    images = batches.images
    images = images[:: -(-len(images) // MAX_CENTER_GRIDS)] if batches.grid else images
    decoder.center_features(batches.gather_features(images, torch.zeros_like(images)).cpu())
    if config.word_vectors is not None:
        vectors = read_word_vectors(config.word_vectors, data.vocab, config.embed_size)
        set_word_vectors(decoder.get_parameter("embedding.weight"), vectors)
        print_note(
            f"train: {len(vectors):,} of {len(data.vocab):,} words start from "
            f"{config.word_vectors}."
        )
    return decoder
