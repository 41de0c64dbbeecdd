"""Benchmark of the ONNX graphs: images/s from pixels to captions, beside torch on the same images.

Both compute in float32 on all cores of the CPU. The images whose captions differ are counted.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...features.config import FeaturesConfig
from ...model.generation.options import DecodingOptions
from ...model.runs.find import find_run
from ...pipeline.captions import read_images
from ...pipeline.layout import IMAGES_PARQUET
from ...serving.captioner import Captioner
from ...serving.load import load, load_encoder
from ...serving.onnx_export import export_graphs
from ...serving.onnx_runtime import OnnxCaptioner, OnnxDecoder, open_graph
from ...serving.results import Caption
from ..config import BenchConfig
from ..extraction import decode_images, existing_images
from ..measurement import Measurement

BATCH_SIZE = 32  # images
MAX_IMAGES = 1000  # read before measuring starts
NUM_SINGLE = 20  # images that are also captioned one at a time
OPTIONS = DecodingOptions(beam=5)

Pixels = NDArray[np.uint8]
P = ParamSpec("P")
T = TypeVar("T")


def measure(config: BenchConfig) -> Measurement:
    """Caption val images with a run, with torch and with its ONNX graphs.

    Raises:
        MissingArtifactError: there is no run, or no val image.
        ConfigError: a library is missing.
    """
    run_dir = find_run(config.data, config.run, config.dataset)
    captioner = load(run_dir, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        graphs = export(captioner, Path(folder))

    def with_torch(pixels: Pixels) -> list[list[Caption]]:
        return captioner.caption_batch(torch.from_numpy(pixels), OPTIONS)

    def with_onnx(pixels: Pixels) -> list[list[Caption]]:
        return graphs.caption_batch(pixels, OPTIONS)

    batches = read_val_images(config, captioner)
    seconds = {"torch": 0.0, "onnx": 0.0}
    num_images = num_different = 0
    for caption in (with_torch, with_onnx):  # warm-up
        caption(batches[0])
    for batch in batches:
        # Both on every batch in turn, so that they meet the same load of the machine.
        theirs, seconds_of_torch = timed(with_torch, batch)
        ours, seconds_of_onnx = timed(with_onnx, batch)
        seconds["torch"] += seconds_of_torch
        seconds["onnx"] += seconds_of_onnx
        num_different += count_different(ours, theirs)
        num_images += len(batch)
        if sum(seconds.values()) > config.seconds:
            break
    first, singles = batches[0], [image[None] for image in batches[0][:NUM_SINGLE]]
    encoding = {
        "torch": timed(captioner.encode, torch.from_numpy(first), 1)[1],
        "onnx": timed(graphs.encode, first)[1],
    }
    rates = {name: num_images / value for name, value in seconds.items()}
    share = min(1.0, encoding["onnx"] / len(first) * rates["onnx"])
    return Measurement(
        throughput=rates["onnx"],
        unit="images/s",
        limit=rates["torch"],
        limited_by="torch on the same images",
        shares={"encoder": share, "decoder": 1 - share},
        details={
            "num_images": num_images,
            "num_different_captions": num_different,
            "encoder_alone": len(first) / encoding["onnx"],
            "encoder_alone_of_torch": len(first) / encoding["torch"],
            "single_image_s": median_seconds(with_onnx, singles),
            "single_image_s_of_torch": median_seconds(with_torch, singles),
        },
    )


def export(captioner: Captioner, folder: Path) -> OnnxCaptioner:
    """Return the captioner's model as ONNX graphs, written to `folder`."""
    backbone = load_encoder(
        captioner.folder, captioner.run, None, torch.device("cpu"), "fp32", fuse=False
    )
    names = export_graphs(backbone, captioner.decoder, folder)
    encoder, decoder = (open_graph(folder / name, 0, ["CPUExecutionProvider"]) for name in names)
    return OnnxCaptioner(
        encoder, OnnxDecoder(decoder), backbone.transform, captioner.vocab, captioner.decoding
    )


def read_val_images(config: BenchConfig, captioner: Captioner) -> Sequence[Pixels]:
    """Return batches of val images, (B, 3, S, S) each.

    Raises:
        MissingArtifactError: no image file exists.
    """
    images = existing_images(FeaturesConfig(data=config.data, dataset=config.dataset))
    val_ids = read_images(config.captions_dir / IMAGES_PARQUET).select("val").tolist()
    positions = np.flatnonzero(np.isin(images.image_ids, val_ids))[:MAX_IMAGES].tolist()
    batches = decode_images(images.select(positions), captioner.backbone.transform, BATCH_SIZE)
    return [np.ascontiguousarray(batch.pixels.numpy()) for batch in batches]


def timed(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> tuple[T, float]:
    """Return the result of a call, and how many seconds it took."""
    started = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - started


def median_seconds(caption: Callable[[Pixels], Any], images: Sequence[Pixels]) -> float:
    """Return the median time to caption one of the images."""
    return float(np.median([timed(caption, image)[1] for image in images]))


def count_different(found: list[list[Caption]], expected: list[list[Caption]]) -> int:
    """Return the number of images whose best captions differ."""
    return sum(ours[0].text != theirs[0].text for ours, theirs in zip(found, expected, strict=True))
