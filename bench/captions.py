"""Benchmarks of the prepare stage and of the scorers."""

import csv
import json
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from ..model.metrics.caption_scorer import CaptionScorer
from ..model.metrics.meteor import Meteor
from ..model.metrics.official import OfficialScorer
from ..model.metrics.ptb_tokenizer import tokenize_with_java
from ..pipeline.captions import read_images, read_references
from ..pipeline.config import PrepareConfig
from ..pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ..pipeline.prepare import prepare
from ..pipeline.stage.manifest import Manifest
from .config import BenchConfig
from .figures import Figures


def bench_prepare(config: BenchConfig) -> Figures:
    """The whole prepare stage, beside reading and parsing its files and Java's tokenizer."""
    done = Manifest.require(config.captions_dir, "showtell prepare")
    options: dict[str, Any] = done.config | {
        name: Path(value)
        for name in ("source", "karpathy", "table")
        if (value := done.config.get(name) or done.details.get(name))
    }
    files = [Path(name) for name in done.inputs if Path(name).is_file()]
    started = time.perf_counter()
    for path in files:
        parse(path)
    parsing = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as work:
        manifest = prepare(PrepareConfig(**(options | {"data": Path(work)})))
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).image_ids
    written = read_references(config.captions_dir / CAPTIONS_PARQUET, "caption", image_ids)
    captions = [*chain.from_iterable(written.values())]
    started = time.perf_counter()
    tokenize_with_java(captions)
    java = time.perf_counter() - started
    parts = manifest.details["seconds"]
    num_captions = len(captions)
    num_words = len(" ".join(captions).split())
    return Figures(
        throughput=num_captions / manifest.seconds,
        unit="captions/s",
        limit=num_captions / parsing,
        limited_by="reading and parsing its files",
        shares={name: spent / manifest.seconds for name, spent in parts.items()},
        details={
            "words_per_second": num_words / manifest.seconds,
            "words_per_second_of_java_tokenizer": num_words / java,
        },
    )


def parse(path: Path) -> None:
    """Read a file and parse it as plainly as its format allows."""
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    else:
        with path.open(encoding="utf-8", newline="") as file:
            for _ in csv.reader(file):
                pass


def bench_scorers(config: BenchConfig) -> Figures:
    """All official scores of the val images, each captioned by a person, beside METEOR alone."""
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).select("val")
    path = config.captions_dir / CAPTIONS_PARQUET
    written = read_references(path, "caption", image_ids)
    # The first caption of each image plays the machine's, where there are others.
    hypotheses = {image_id: captions[0] for image_id, captions in written.items()}
    references = {image_id: captions[1:] or captions for image_id, captions in written.items()}

    started = time.perf_counter()
    with OfficialScorer(references) as scorer:
        official = scorer.score(hypotheses)
    seconds = time.perf_counter() - started
    tokenized, captions = [*official.references.values()], [*official.hypotheses.values()]
    started = time.perf_counter()
    with Meteor() as meteor:
        meteor.score(meteor.count(tokenized, captions))
    alone = time.perf_counter() - started
    native = CaptionScorer(official.references)
    native.score(official.hypotheses)
    started = time.perf_counter()
    native.score(official.hypotheses)
    again = time.perf_counter() - started
    return Figures(
        throughput=len(hypotheses) / seconds,
        unit="images/s",
        limit=len(hypotheses) / alone,
        limited_by="METEOR's Java alone",
        shares={"METEOR": min(1.0, alone / seconds), "the others": max(0.0, 1 - alone / seconds)},
        details={"seconds": seconds, "seconds_of_native_bleu_rouge_cider": again},
    )
