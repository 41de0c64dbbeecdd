"""Generated captions and features of COCO's size, to measure speed and memory without its data.

As in Karpathy's split: 113,287 train and 5,000 val images with 566,747 and 25,010 captions. Caption
lengths follow COCO's; word frequencies follow Zipf's law, so that about 9,500 words occur five
times or more. Features are random. Everything depends on one seed.
"""

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
from .config import COCO_SCALE_DATASET

FEATURES = "resnet50-drawn"
TRAIN_IMAGES, TRAIN_CAPTIONS = 113_287, 566_747
VAL_IMAGES, VAL_CAPTIONS = 5_000, 25_010
VOCAB_SIZE = 9_487  # words kept
FEATURE_DIM, SHARD_SIZE = 2048, 8192

# Words per caption → percentage of captions, from a sample of COCO's train2017.
LENGTHS = {7: 1, 8: 15, 9: 22, 10: 20, 11: 15, 12: 12, 13: 6, 14: 3, 15: 2, 16: 2, 18: 1, 21: 1}
# Zipf-Mandelbrot law: the word of rank r has a frequency proportional to (r + SHIFT) ** -EXPONENT.
NUM_WORDS, SHIFT, EXPONENT = 28_000, 2.7, 1.525
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]


def features_name(num_views: int = 1) -> str:
    """Return the folder name of the generated features."""
    return FEATURES if num_views == 1 else f"{FEATURES}-{num_views}-views"


def generate(data: Path, scale: float = 1.0, seed: int = 0, *, num_views: int = 1) -> int:
    """Generate, prepare and write the features of `data/coco-scale`, except what already exists.

    Args:
        data: root folder.
        scale: number of images and captions, relative to COCO.
        seed: of all random draws.
        num_views: views of each image.

    Returns:
        The number of captions.
    """
    path = data / COCO_SCALE_DATASET / "raw" / "dataset.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        images = list(generate_images(scale, np.random.default_rng(seed)))
        write_empty_zips(path.parent, images)
        write_json(path, {"images": images})
    manifest = prepare(
        PrepareConfig(
            data=data,
            dataset=COCO_SCALE_DATASET,
            source=str(path.parent),
            karpathy=path,
            vocab_size=VOCAB_SIZE,
            min_count=None,
        )
    )
    directory = data / COCO_SCALE_DATASET / "features" / features_name(num_views)
    if Manifest.read(directory) is None:
        write_features(data, np.random.default_rng(seed + 1), num_views)
    return manifest.counts["num_captions"]


def generate_images(scale: float, generator: np.random.Generator) -> Iterator[dict[str, object]]:
    """Yield images with their captions, in the layout of Karpathy's dataset_coco.json."""
    image_id = 0
    for split, num_images, num_captions in (
        ("train", TRAIN_IMAGES, TRAIN_CAPTIONS),
        ("val", VAL_IMAGES, VAL_CAPTIONS),
    ):
        num_images, num_captions = round(scale * num_images), round(scale * num_captions)
        captions = generate_captions(num_captions, generator)
        # Every image has five captions; the remaining captions go to the first images.
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


def generate_captions(count: int, generator: np.random.Generator) -> list[str]:
    """Return captions with COCO's distribution of lengths and Zipf's of words."""
    words = np.array([spell(rank) for rank in range(NUM_WORDS)])
    weights = (np.arange(1, NUM_WORDS + 1) + SHIFT) ** -EXPONENT
    cumulative = np.cumsum(weights / weights.sum())
    percentages = np.array([*LENGTHS.values()])
    lengths = generator.choice([*LENGTHS], count, p=percentages / percentages.sum())
    # Without the last sum, which rounding may leave below 1, every rank is valid.
    ranks = np.searchsorted(cumulative[:-1], generator.random(int(lengths.sum())))
    split_words = np.split(words[ranks], np.cumsum(lengths)[:-1])
    return [" ".join(caption).capitalize() + "." for caption in split_words]


def write_empty_zips(folder: Path, images: Sequence[Mapping[str, object]]) -> None:
    """Write zip archives with an empty file per image: prepare checks only that it exists."""
    for parent in sorted({str(image["filepath"]) for image in images}):
        with ZipFile(folder / f"{parent}.zip", "w") as archive:
            for image in images:
                if image["filepath"] == parent:
                    archive.writestr(f"{parent}/{image['filename']}", b"")


def spell(rank: int) -> str:
    """Return a distinct word for each rank, frequent ones shorter: `ba`, `be`, …, `baba`, …."""
    word, rank = "", rank + 1
    while rank:
        rank, syllable = divmod(rank - 1, len(SYLLABLES))
        word = SYLLABLES[syllable] + word
    return word


def write_features(data: Path, generator: np.random.Generator, num_views: int = 1) -> None:
    """Write random features of all images, with the files that the features stage writes."""
    images = list_images(FeaturesConfig(data=data, dataset=COCO_SCALE_DATASET))
    directory = data / COCO_SCALE_DATASET / "features" / features_name(num_views)
    directory.mkdir(parents=True, exist_ok=True)
    fingerprints: dict[str, str] = {}
    for start in range(0, len(images), SHARD_SIZE):
        image_ids = images.image_ids[start : start + SHARD_SIZE]
        name = f"part-{len(fingerprints):05}.h5"
        fingerprints[name] = f"drawn {start}"
        features = generate_features(len(image_ids), generator)
        others = [generate_features(len(image_ids), generator) for _ in range(num_views - 1)]
        views = np.stack(others, 1) if others else None
        shard = FeatureShard(image_ids, features, (), fingerprints[name], views)
        write_shard(directory / name, shard)
    Manifest(
        stage="features",
        version=1,
        config={"dataset": COCO_SCALE_DATASET, "encoder": "resnet50", "image_size": None},
        inputs={IMAGES_INPUT: images.sha256, "weights": "drawn"},
        outputs={name: (directory / name).stat().st_size for name in fingerprints},
        counts={
            "num_images": len(images),
            "num_skipped": 0,
            "feature_dim": FEATURE_DIM,
            **({"num_views": num_views} if num_views > 1 else {}),
            "num_shards": len(fingerprints),
        },
        details={"weights": "drawn", "transform": "none", "fingerprints": fingerprints},
    ).write(directory)


def generate_features(count: int, generator: np.random.Generator) -> NDArray[np.float16]:
    """Return (count, D) float16, non-negative and mostly small, like the output of a ReLU."""
    values = generator.standard_exponential((count, FEATURE_DIM), np.float32)
    return (0.45 * values).astype(np.float16)
