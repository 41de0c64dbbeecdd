"""Benchmark of `showtell features` on COCO's images at full size, from a folder and from a zip."""

import tempfile
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

from ...features.config import FeaturesConfig
from ...features.encoders.caffe import caffe_transform
from ...features.plan import ImageList
from ...pipeline.images.image_files import ImageFiles
from ...pipeline.stage.errors import MissingArtifactError
from ...pipeline.stage.manifest import Manifest
from ..config import BenchConfig
from ..extraction import decoding_rate, existing_images, repeat_images
from ..measurement import Measurement
from .features import measure_on

COCO_DATASETS = ("coco2017", "coco2014", "coco-karpathy")  # images of about 640 × 480 pixels
NUM_FILES, NUM_DECODED = 256, 1024


def measure(config: BenchConfig) -> Measurement:
    """Measure the stage on the first of COCO's datasets that is prepared.

    Raises:
        MissingArtifactError: none is prepared.
    """
    for dataset in COCO_DATASETS:
        if Manifest.read(config.data / dataset / "captions") is not None:
            images = existing_images(FeaturesConfig(data=config.data, dataset=dataset))
            rates = compare_sources(images)
            result = measure_on(config, dataset)
            return replace(result, details=result.details | rates)
    raise MissingArtifactError(
        f"{config.data} holds no prepared COCO dataset. Run 'showtell prepare --dataset coco2017' "
        f"with --source DIR, or after 'showtell download --dataset coco2017'."
    )


def compare_sources(images: ImageList) -> dict[str, float]:
    """Return the decoded images/s from a folder and from zip archives, at 224×224."""
    names = images.file_names[:NUM_FILES]
    rates = {}
    with tempfile.TemporaryDirectory() as work:
        for kind, copy in (("folder", copy_to_folder), ("zip", copy_to_zips)):
            root = Path(work) / kind
            root.mkdir()
            for name in names:
                copy(root, name, images.files.read(name))
            copied = replace(images, files=ImageFiles(root), file_names=names)
            copied = repeat_images(copied, NUM_DECODED)
            rates[f"decoding_from_{kind}"] = decoding_rate(copied, caffe_transform())
    return rates


def copy_to_folder(root: Path, name: str, content: bytes) -> None:
    """Write an image file below `root`."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def copy_to_zips(root: Path, name: str, content: bytes) -> None:
    """Add an image file to the zip archive that is named after its top folder."""
    with ZipFile(root / f"{name.partition('/')[0]}.zip", "a") as archive:
        archive.writestr(name, content)
