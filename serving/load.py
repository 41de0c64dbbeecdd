"""Load a trained model: a run, a bundle, or the model that comes with showtell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..features.device import choose_device, keep_freed_memory
from ..features.encoders.backbone import Backbone, load_backbone
from ..features.reading.limits import MAX_PIXELS
from ..model.decoders.precision import Precision
from ..model.runs.find import find_model
from ..model.runs.layout import CONFIG_NAME
from ..model.runs.run import RunConfig, load_run
from ..pipeline.stage.artifacts import is_bundle, require_stage
from ..pipeline.stage.errors import MismatchError
from .captioner import Captioner


def load(
    model: str | Path | None = None,
    *,
    data: str | Path = "data",
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Captioner:
    """Load a trained model as a `Captioner`.

    Args:
        model: folder of a bundle or a run, name of a run under `data/runs`, name of a built-in
            model, or `hf:user/name` (`hf:user/name@revision`) for a bundle on the Hugging Face Hub;
            None takes the newest run, or the built-in model if there is no run.
        data: the data folder; used if `model` is not a folder.
        weights: path of the encoder's weights, if the file was moved after training.
        device: cpu, cuda, …; auto uses a GPU if there is one.
        precision: auto, fp32, bf16 or fp16.
        max_pixels: image files with more pixels are refused.

    Raises:
        MissingArtifactError: there is no such model.
        HubError: there is no such model on the Hub, or the Hub cannot be reached.
        WeightsError: the encoder's weights are not available.
        MismatchError: the model was trained with other weights, or needs grid features that the
            encoder does not have.
        DamagedFileError: a file of the model is damaged.
    """
    keep_freed_memory()
    folder = find_model(Path(data), model)
    if not is_bundle(folder) and folder.absolute().parent.name == "runs":
        data = folder.absolute().parents[1]  # data/runs/<run>
    decoder_precision = Precision(precision, choose_device(device))
    config, vocab, decoder = load_run(folder, decoder_precision.device)
    backbone = load_encoder(folder, config, weights, decoder_precision.device, precision)
    if decoder.uses_grid and not backbone.has_grid:
        raise MismatchError(
            f"{folder} needs grid features, which {backbone.name} does not have. Restore the "
            f"original {CONFIG_NAME}."
        )
    return Captioner(
        backbone,
        decoder,
        vocab,
        decoder_precision,
        config,
        folder,
        Path(data),
        dict(decoding_defaults(folder)),
        max_pixels,
    )


def load_encoder(
    folder: Path,
    config: RunConfig,
    weights: str | Path | None,
    device: torch.device,
    precision: str,
    *,
    fuse: bool = True,
) -> Backbone:
    """Load the encoder of a model, and check that it is the one that the model was trained with.

    Args:
        folder: of the model, for errors.
        config: of the model.
        weights: path of the weights; None takes those of the config.
        device: where to compute.
        precision: see `load`.
        fuse: see `Backbone`.

    Raises:
        WeightsError: the weights are not available.
        MismatchError: the weights or the transform are others.
    """
    trained_with = config.backbone
    backbone = load_backbone(
        trained_with["encoder"],
        str(weights or trained_with["weights"]),
        trained_with["image_size"],
        device,
        precision,
        fuse=fuse,
    )
    if backbone.weights_sha256 != trained_with["weights_sha256"]:
        raise MismatchError(
            f"The weights {trained_with['weights']} of {trained_with['encoder']} have SHA-256 "
            f"{backbone.weights_sha256[:12]}, but {folder} was trained with "
            f"{trained_with['weights_sha256'][:12]}. Give the original file with --weights."
        )
    if backbone.transform.describe() != trained_with["transform"]:
        raise MismatchError(
            f"The transform of {backbone.name} is {backbone.transform.describe()}, but "
            f"{folder} was trained with {trained_with['transform']}. Restore the original "
            f"{CONFIG_NAME}."
        )
    return backbone


def decoding_defaults(folder: Path) -> Mapping[str, Any]:
    """Return the decoding options stored in a bundle; none for a run.

    Raises:
        DamagedFileError: the bundle is damaged.
    """
    if not is_bundle(folder):
        return {}
    decoding: dict[str, Any] = require_stage(folder, check_content=False).details["decoding"]
    return decoding
