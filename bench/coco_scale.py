"""Captions and features with COCO's statistics, drawn from a seed: its size without its data.

113,287 train and 5,000 val images with 566,747 and 25,010 captions, as in Karpathy's split; lengths
as those of real captions; words whose frequencies fall as Zipf's, so that about 9,500 of them occur
five times or more; features of random directions. Only sizes and speeds can be learned from it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from ..features.config import FeaturesConfig
from ..features.plan import list_images
from ..features.shards import FeatureShard, write_shard
from ..pipeline.config import PrepareConfig
from ..pipeline.layout import IMAGES_INPUT
from ..pipeline.prepare import prepare
from ..pipeline.stage.files import write_json
from ..pipeline.stage.manifest import Manifest
from .config import BenchConfig
from .figures import Figures
from .run import DATASET

FEATURES = "resnet50-drawn"
TRAIN_IMAGES, TRAIN_CAPTIONS = 113_287, 566_747
VAL_IMAGES, VAL_CAPTIONS = 5_000, 25_010
VOCAB_SIZE = 9_487  # of the words that are kept
FEATURE_DIM, SHARD_SIZE = 2048, 8192

# Words of a caption → captions of a hundred, after a sample of COCO's train2017.
LENGTHS = {7: 1, 8: 15, 9: 22, 10: 20, 11: 15, 12: 12, 13: 6, 14: 3, 15: 2, 16: 2, 18: 1, 21: 1}
# Zipf and Mandelbrot: the word of rank r occurs in proportion to (r + SHIFT) ** -EXPONENT.
NUM_WORDS, SHIFT, EXPONENT = 28_000, 2.7, 1.525
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]


def bench_draw(config: BenchConfig) -> Figures:
    """Draw the dataset, which the other stages are measured on."""
    started = time.perf_counter()
    draw_coco(config.data)
    seconds = time.perf_counter() - started
    rate = (TRAIN_CAPTIONS + VAL_CAPTIONS) / seconds
    return Figures(
        throughput=rate,
        unit="captions/s",
        limit=rate,
        limited_by="nothing: it is no stage",
        shares={"draw": 1.0},
        details={"seconds": seconds},
    )


def draw_coco(data: Path, scale: float = 1.0, seed: int = 0) -> None:
    """Draw the dataset, prepare it, and write its features; what is there already is kept.

    Args:
        data: root; everything goes to `data/coco-scale`.
        scale: of the numbers of images and captions.
        seed: of all draws.
    """
    path = data / DATASET / "raw" / "dataset.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        images = list(draw_images(scale, np.random.default_rng(seed)))
        write_empty_zips(path.parent, images)
        write_json(path, {"images": images})
    prepare(
        PrepareConfig(
            data=data,
            dataset=DATASET,
            source=path.parent,
            karpathy=path,
            vocab_size=VOCAB_SIZE,
            min_count=None,
        )
    )
    if Manifest.read(data / DATASET / "features" / FEATURES) is None:
        write_features(data, np.random.default_rng(seed + 1))


def draw_images(scale: float, generator: np.random.Generator) -> Iterator[dict[str, object]]:
    """Yield the images with their captions in the layout of Karpathy's dataset_coco.json."""
    words = np.array([spell(rank) for rank in range(NUM_WORDS)])
    weights = (np.arange(1, NUM_WORDS + 1) + SHIFT) ** -EXPONENT
    ends = np.cumsum(weights / weights.sum())
    image_id = 0
    for split, num_images, num_captions in (
        ("train", TRAIN_IMAGES, TRAIN_CAPTIONS),
        ("val", VAL_IMAGES, VAL_CAPTIONS),
    ):
        num_images, num_captions = round(scale * num_images), round(scale * num_captions)
        lengths = generator.choice(
            [*LENGTHS], num_captions, p=np.array([*LENGTHS.values()]) / sum(LENGTHS.values())
        )
        # Not above the last word, whatever the rounding of the sum.
        ranks = np.searchsorted(ends[:-1], generator.random(int(lengths.sum())))
        drawn = np.split(words[ranks], np.cumsum(lengths)[:-1])
        captions = [" ".join(caption).capitalize() + "." for caption in drawn]
        # Five each, and one more for the first images.
        counts = np.full(num_images, num_captions // num_images)
        counts[: num_captions - int(counts.sum())] += 1
        stops = np.cumsum(counts)
        for stop, count in zip(stops.tolist(), counts.tolist(), strict=True):
            image_id += 1
            yield {
                "filepath": f"{split}2014",
                "filename": f"COCO_{split}2014_{image_id:012}.jpg",
                "cocoid": image_id,
                "split": split,
                "sentences": [{"raw": caption} for caption in captions[stop - count : stop]],
            }


def write_empty_zips(folder: Path, images: Sequence[Mapping[str, object]]) -> None:
    """Zips in which each image is an empty file: prepare asks that it be there, not what it is."""
    for parent in sorted({str(image["filepath"]) for image in images}):
        with ZipFile(folder / f"{parent}.zip", "w") as zipped:
            for image in images:
                if image["filepath"] == parent:
                    zipped.writestr(f"{parent}/{image['filename']}", b"")


def spell(rank: int) -> str:
    """A word of its own for each rank, the frequent ones short: `ba`, `be`, …, `baba`, …."""
    word, rank = "", rank + 1
    while rank:
        rank, place = divmod(rank - 1, len(SYLLABLES))
        word = SYLLABLES[place] + word
    return word


def write_features(data: Path, generator: np.random.Generator) -> None:
    """Write features of random directions for all images, as the features stage would."""
    images = list_images(FeaturesConfig(data=data, dataset=DATASET))
    directory = data / DATASET / "features" / FEATURES
    directory.mkdir(parents=True, exist_ok=True)
    fingerprints: dict[str, str] = {}
    for start in range(0, len(images), SHARD_SIZE):
        image_ids = images.image_ids[start : start + SHARD_SIZE]
        name = f"part-{len(fingerprints):05}.h5"
        fingerprints[name] = f"drawn {start}"
        features = draw_features(len(image_ids), generator)
        write_shard(directory / name, FeatureShard(image_ids, features, (), fingerprints[name]))
    Manifest(
        stage="features",
        version=1,
        config={"dataset": DATASET, "encoder": "resnet50", "image_size": None},
        inputs={IMAGES_INPUT: images.sha256, "weights": "drawn"},
        outputs={name: (directory / name).stat().st_size for name in fingerprints},
        counts={
            "num_images": len(images),
            "num_skipped": 0,
            "feature_dim": FEATURE_DIM,
            "num_shards": len(fingerprints),
        },
        details={"weights": "drawn", "transform": "none", "fingerprints": fingerprints},
    ).write(directory)


def draw_features(count: int, generator: np.random.Generator) -> NDArray[np.float16]:
    """(count, D) float16, not negative and mostly small, as what a ReLU leaves."""
    values = generator.standard_exponential((count, FEATURE_DIM), np.float32)
    return (0.45 * values).astype(np.float16)
