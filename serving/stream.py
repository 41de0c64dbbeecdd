"""Caption many image files: while the model captions a batch, the next ones are decoded."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..features.reading.batches import read_batches, split_into_batches
from ..features.reading.broken_images import MISSING, READ_FAILED
from ..model.generation.options import DecodingOptions
from ..pipeline.images.image_files import ImageFiles
from ..pipeline.stage.stopwatch import Stopwatch
from .captioner import Captioner
from .results import Caption

# Images per batch. On a GPU, larger batches are faster; on a CPU, smaller ones show up sooner.
BATCH_SIZE, GPU_BATCH_SIZE = 32, 256


@dataclass(frozen=True)
class CaptionedImage:
    """An image file with its captions.

    Attributes:
        path: of the file.
        captions: best first; empty if the image is unreadable.
        error: why it is unreadable, as a sentence.
    """

    path: str
    captions: tuple[Caption, ...] = ()
    error: str | None = None


def caption_stream(
    captioner: Captioner,
    paths: Sequence[str],
    options: DecodingOptions,
    *,
    batch_size: int | None = None,
    num_workers: int | None = None,
    watch: Stopwatch | None = None,
) -> Iterator[list[CaptionedImage]]:
    """Yield captioned images in order, in batches.

    Memory use does not grow with the number of images. Closing the iterator stops its workers.

    Args:
        captioner: from `load`.
        paths: of the image files.
        options: how to decode.
        batch_size: images per batch; each view counts as one. The default depends on the device.
        num_workers: decoding workers; default one per core.
        watch: measures the time spent waiting for images (`read`) and in the model (`model`).

    Raises:
        MissingArtifactError: features or captions that `consensus` needs are missing.
        ShowTellError: a decoding process was killed.
    """
    watch = watch or Stopwatch()
    on_gpu = captioner.precision.device.type == "cuda"
    batch_size = batch_size or (GPU_BATCH_SIZE if on_gpu else BATCH_SIZE)
    spans = split_into_batches(0, len(paths), max(1, batch_size // options.views))
    reader = read_batches(
        ImageFiles(Path()),
        np.arange(len(paths)),
        paths,
        captioner.backbone.transform,
        spans,
        num_workers,
        for_gpu=on_gpu and len(spans) > 1,  # processes take seconds to start
        num_views=options.views,
        max_pixels=captioner.max_pixels,
    )
    generator = torch.Generator().manual_seed(options.seed)
    with closing(reader):
        for start, stop in spans:
            with watch.part("read"):
                batch = next(reader)
            with watch.part("model"):
                found = (
                    captioner.caption_batch(batch.pixels, options, generator, details=True)
                    if len(batch.image_ids)
                    else []
                )
            captions = dict(zip(batch.image_ids.tolist(), map(tuple, found), strict=True))
            errors = {i: reading_error(paths[i], reason) for i, reason in batch.skipped}
            yield [
                CaptionedImage(paths[i], captions.get(i, ()), errors.get(i))
                for i in range(start, stop)
            ]


def reading_error(path: str, reason: str) -> str:
    """Return a sentence about an unreadable image.

    Args:
        path: of the image.
        reason: from `ImageBatch.skipped`.
    """
    is_system_error = reason == MISSING or reason.startswith(READ_FAILED)
    return f"{path} {'' if is_system_error else 'is not a readable image: '}{reason}."
