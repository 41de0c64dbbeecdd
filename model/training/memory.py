"""Choose whether all features of a run are held in memory, or a window of them at a time."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...features.grids import grid_shape_of
from ...features.pooled_files import pooled_shape_of
from ...features.store import find_features
from ...pipeline.stage.artifacts import require_manifest
from ...pipeline.stage.console import format_bytes, print_note
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.memory import available_memory, count_local_processes, memory_for_features
from ..config import TrainConfig
from ..decoders.registry import decoder_class
from ..runs.repair import has_started
from .resume import read_config
from .source import is_given
from .windows import SLACK

WINDOWS = 2  # in memory: one is trained on while the next is read
MIN_WINDOW = 64  # images


def choose_window(config: TrainConfig, run_dir: Path, available: int | None = None) -> TrainConfig:
    """Return the options with `window` resolved: None trains from all features in memory.

    A run keeps its window, because the order of its captions depends on it. One line says what was
    chosen and why.

    Args:
        config: of a new run, or of one that may be up to date.
        run_dir: folder of the run.
        available: bytes of memory; default what this machine has available.
    """
    if is_given(config, "window"):
        return config
    if has_started(run_dir) and (saved := read_config(run_dir)) is not None:
        return replace(config, window=saved.train.get("window"))
    with suppress(ShowTellError):  # loading the features raises it again
        directory = find_features(config.dataset_dir, config.features, is_quiet=True)
        num_images, image_bytes = size_of_images(config, directory)
        available = available_memory() if available is None else available
        window = fit_window(num_images, image_bytes, memory_for_features(available))
        config = replace(config, window=window)
        _report(config, num_images, num_images * image_bytes, available)
    return config


def fit_window(num_images: int, image_bytes: int, memory: int) -> int | None:
    """Return how many images a window has if two of them fit into memory; None if all images fit.

    Args:
        num_images: of the features.
        image_bytes: of the features of an image.
        memory: bytes for the features, for all processes of this machine together.
    """
    if num_images * image_bytes <= memory:
        return None
    budget = memory // count_local_processes()
    return _round_down(max(MIN_WINDOW, int(budget / (WINDOWS * SLACK * image_bytes))))


def size_of_images(config: TrainConfig, directory: Path) -> tuple[int, int]:
    """Return the number of images of a features folder, and the bytes of each in memory."""
    counts = require_manifest(directory).counts
    num_images, num_views, width = pooled_shape_of(counts)
    num_views = min(config.views or num_views, num_views)
    grid_shape = grid_shape_of(counts) if decoder_class(config).uses_grid else None
    # Of an image's grids, an epoch uses one view.
    num_values = num_views * width if grid_shape is None else grid_shape[0] * grid_shape[1]
    return num_images, num_values * np.dtype(np.float16).itemsize


def _report(config: TrainConfig, num_images: int, num_bytes: int, available: int) -> None:
    sizes = f"{format_bytes(num_bytes)} of features, {format_bytes(available)} available"
    if config.window is None:
        print_note(f"train: {sizes}: all captions are shuffled together.")
    else:
        print_note(
            f"train: {sizes}: captions are shuffled in windows of {config.window:,} of the "
            f"{num_images:,} images (--window)."
        )


def _round_down(number: int) -> int:
    """Keep two digits of a positive number."""
    step: int = 10 ** max(0, len(str(number)) - 2)
    return number // step * step
