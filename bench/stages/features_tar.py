"""Benchmark of `showtell features` on tar archives, beside the same images in a folder."""

import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...features.device import keep_freed_memory
from ...features.plan import ImageList
from ...pipeline.images.image_files import ImageFiles
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import BenchConfig
from ..extraction import Extraction, decoding_rate, repeat_images
from ..measurement import Measurement

SHARD_SIZE = 128
PER_TAR = 1000  # images
NUM_ROUNDS = 4  # of both sources in turn, so that a change of the machine's speed hits both
NUM_DECODED = 1024


def measure(config: BenchConfig) -> Measurement:
    """Measure the stage, and decoding alone, on the same images in a folder and in tars."""
    keep_freed_memory()
    extraction = Extraction.load(config, config.dataset, SHARD_SIZE)
    transform = extraction.backbone.transform
    rate = extraction.network_rate(config.seconds / 10)
    num_images = SHARD_SIZE * max(1, round(config.seconds / 2 * rate / SHARD_SIZE / NUM_ROUNDS))
    watches = {"folder": Stopwatch(), "tar": Stopwatch()}
    seconds = dict.fromkeys(watches, 0.0)
    decoding = dict.fromkeys(watches, 0.0)
    with tempfile.TemporaryDirectory() as work:
        images = repeat_images(extraction.images, max(num_images, NUM_DECODED))
        sources = write_copies(images, Path(work))
        for number in range(NUM_ROUNDS):
            for kind, copy in sources.items():
                watch, folder = Stopwatch(), Path(work, f"features-{kind}-{number}")
                for _ in extraction.run(copy.part(0, num_images), folder, watch):
                    pass
                seconds[kind], watches[kind] = seconds[kind] + watch.seconds, watch
                decoding[kind] += len(copy) / decoding_rate(copy, transform)
    rates = {kind: NUM_ROUNDS * num_images / spent for kind, spent in seconds.items()}
    return Measurement(
        throughput=rates["tar"],
        unit="images/s",
        limit=rates["folder"],
        limited_by="the same images in a folder",
        shares=watches["tar"].shares(),
        details={
            "num_images": NUM_ROUNDS * num_images,
            **{
                f"decoding_from_{kind}": NUM_ROUNDS * len(images) / spent
                for kind, spent in decoding.items()
            },
        },
    )


def write_copies(images: ImageList, root: Path) -> dict[str, ImageList]:
    """Write the content of each image to a file of its own, and into tar archives."""
    names, members = list[str](), list[tuple[int, int]]()
    (root / "folder").mkdir()
    (root / "tar").mkdir()
    for start in range(0, len(images), PER_TAR):
        archive = f"{start // PER_TAR:05}.tar"
        with tarfile.open(root / "tar" / archive, "w") as tar:
            for number in range(start, min(start + PER_TAR, len(images))):
                path = root / "folder" / f"{number:09}.jpg"
                path.write_bytes(images.files.read(images.file_names[number]))
                tar.add(path, path.name)
        with tarfile.open(root / "tar" / archive) as tar:
            names += [f"{archive}/{member.name}" for member in tar]
            members += [(member.offset_data, member.size) for member in tar]
    files = replace(
        images,
        files=ImageFiles(root / "folder"),
        file_names=[name.rpartition("/")[2] for name in names],
    )
    places = np.array(members, np.int64)
    tars = replace(images, files=ImageFiles(root / "tar"), file_names=names, members=places)
    return {"folder": files, "tar": tars}
