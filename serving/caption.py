"""The command `showtell caption`: caption image files and folders of images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..features.extract import pillow_warnings_ignored
from ..model.generation.options import DecodingOptions
from ..model.runs.find import BUILT_IN, choose_run, find_model
from ..pipeline.stage.artifacts import is_bundle
from ..pipeline.stage.console import print_aside, print_error, print_json, print_result
from ..pipeline.stage.errors import DatasetError
from .captioner import BATCH_SIZE, Captioner
from .config import CaptionConfig, chosen_decoding
from .images import find_images
from .load import load


def caption(config: CaptionConfig) -> int:
    """Caption the images of a config.

    Returns:
        The number of images that could not be read.

    Raises:
        ShowTellError: see `load` and `caption_files`.
    """
    model = config.run or config.model
    folder = find_model(config.data, model)
    if folder.parent == BUILT_IN:
        if model is None:
            print_aside(
                f"Using the built-in model {folder.name}; choose another with --run or --model."
            )
    elif not is_bundle(folder) and model in (None, folder.name):
        choose_run(config.data, model)  # says which, and whether it is finished
    captioner = load(
        folder,
        data=config.data,
        weights=config.weights,
        device=config.device,
        max_pixels=config.max_pixels,
    )
    options = captioner.decoding_options(**chosen_decoding(config))
    return caption_files(captioner, config.images, options)


def caption_files(captioner: Captioner, paths: Iterable[Path], options: DecodingOptions) -> int:
    """Caption image files and print the captions; print an error for each unreadable image.

    Each image gives a line `path: caption`. With `n_best` above 1, it gives the path, then a line
    per caption with its log-probability. With `--json`, the output is a list of
    `{"path": str, "captions": [{"caption": str, "log_prob": float, "score": float}, ...]}`, best
    caption first. For an unreadable image, `captions` is empty and "error" holds the reason.

    Args:
        captioner: from `load`.
        paths: image files or folders, see `find_images`.
        options: how to decode.

    Returns:
        The number of images that could not be read.

    Raises:
        DatasetError: a folder contains no images.
        MissingArtifactError: features or captions that `consensus` needs are missing.
    """
    results: list[dict[str, Any]] = [{"path": p, "captions": []} for p in find_images(paths)]
    generator = torch.Generator().manual_seed(options.seed)
    for start in range(0, len(results), BATCH_SIZE):
        readable: list[tuple[dict[str, Any], NDArray[np.uint8]]] = []
        for result in results[start : start + BATCH_SIZE]:
            try:
                with pillow_warnings_ignored():
                    readable.append((result, captioner.pixels(result["path"], options.views)))
            except DatasetError as error:
                print_error(str(error))
                result["error"] = str(error)
        found = captioner.caption_pixels([pixels for _, pixels in readable], options, generator)
        for (result, _), captions in zip(readable, found, strict=True):
            result["captions"] = [
                {"caption": caption.text, "log_prob": caption.log_prob, "score": caption.score}
                for caption in captions
            ]
            print_result(_describe(result, options.n_best))
    print_json(results)
    return sum("error" in result for result in results)


def _describe(result: dict[str, Any], n_best: int) -> str:
    """Return the lines to print for one captioned image."""
    path, captions = result["path"], result["captions"]
    if n_best == 1:
        return f"{path}: {captions[0]['caption']}"
    lines = (f"  {found['log_prob']:7.2f}  {found['caption']}" for found in captions)
    return "\n".join([f"{path}:", *lines])
