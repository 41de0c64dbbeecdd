"""Benchmark of the scorers: images/s of all scores, beside pycocoevalcap with Java."""

from ...model.metrics.meteor.meteor import Meteor
from ...model.metrics.official import require_equal_scores, score_with_java
from ...model.metrics.scorer import score_captions
from ...pipeline.captions import read_images, read_references
from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ...pipeline.stage.stopwatch import Stopwatch
from ..config import BenchConfig
from ..measurement import Measurement

NUM_IMAGES = 1000, 5000


def measure(config: BenchConfig) -> Measurement:
    """Score the first human caption of images against the others.

    Raises:
        ScorerError: Java cannot run, or its scores differ from the native ones.
    """
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).image_ids
    details = dict[str, float]()
    Meteor([["a dog"]])  # builds the index, if this machine has none
    for num_images in sorted({min(number, len(image_ids)) for number in NUM_IMAGES}):
        watch, selected = Stopwatch(), image_ids[:num_images]
        captions = read_references(config.captions_dir / CAPTIONS_PARQUET, "caption", selected)
        hypotheses = {image_id: texts[0] for image_id, texts in captions.items()}
        references = {image_id: texts[1:] or texts for image_id, texts in captions.items()}
        with watch.part("native"):
            native = score_captions(references, hypotheses)
        tokenized = [*native.references.values()]
        with watch.part("native METEOR"):
            Meteor(tokenized).count([*native.hypotheses.values()])
        with watch.part("Java"):
            official = score_with_java(references, hypotheses)
        details |= {
            f"{num_images} images, METEOR's pairs": sum(map(len, tokenized)),
            **{f"{num_images} images, s {name}": s for name, s in watch.parts.items()},
            f"{num_images} images, largest difference": require_equal_scores(native, official),
        }
    native_s, meteor_s = watch.parts["native"], watch.parts["native METEOR"]
    return Measurement(
        throughput=num_images / native_s,
        unit="images/s",
        limit=num_images / meteor_s,
        limited_by="METEOR alone",
        shares={
            "METEOR": min(1.0, meteor_s / native_s),
            "words, BLEU, ROUGE_L, CIDEr": max(0.0, 1 - meteor_s / native_s),
        },
        details=details,
    )
