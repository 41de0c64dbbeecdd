"""Benchmark of the official scorers: images/s of all scores, beside METEOR alone."""

import time

from ...model.metrics.caption_scorer import CaptionScorer
from ...model.metrics.meteor import Meteor
from ...model.metrics.official import OfficialScorer
from ...pipeline.captions import read_images, read_references
from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ..config import BenchConfig
from ..measurement import Measurement


def measure(config: BenchConfig) -> Measurement:
    """Score the first human caption of each val image against the others."""
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).select("val")
    captions = read_references(config.captions_dir / CAPTIONS_PARQUET, "caption", image_ids)
    hypotheses = {image_id: texts[0] for image_id, texts in captions.items()}
    references = {image_id: texts[1:] or texts for image_id, texts in captions.items()}

    started = time.perf_counter()
    with OfficialScorer(references) as scorer:
        official = scorer.score(hypotheses)
    seconds = time.perf_counter() - started
    tokenized, scored = [*official.references.values()], [*official.hypotheses.values()]
    started = time.perf_counter()
    with Meteor() as meteor:
        meteor.score(meteor.count(tokenized, scored))
    meteor_s = time.perf_counter() - started
    native = CaptionScorer(official.references)
    native.score(official.hypotheses)
    started = time.perf_counter()
    native.score(official.hypotheses)
    native_s = time.perf_counter() - started
    return Measurement(
        throughput=len(hypotheses) / seconds,
        unit="images/s",
        limit=len(hypotheses) / meteor_s,
        limited_by="METEOR's Java alone",
        shares={
            "METEOR": min(1.0, meteor_s / seconds),
            "the others": max(0.0, 1 - meteor_s / seconds),
        },
        details={"seconds": seconds, "seconds_of_native_bleu_rouge_cider": native_s},
    )
