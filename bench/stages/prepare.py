"""Benchmark of `showtell prepare`: captions/s, beside reading and parsing its files."""

import csv
import json
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from ...model.metrics.ptb_tokenizer import tokenize_with_java
from ...pipeline.captions import read_images, read_references
from ...pipeline.config import PrepareConfig
from ...pipeline.layout import CAPTIONS_PARQUET, IMAGES_PARQUET
from ...pipeline.prepare import prepare
from ...pipeline.stage.artifacts import require_stage
from ...pipeline.stage.manifest import Manifest
from ..config import BenchConfig
from ..measurement import Measurement


def measure(config: BenchConfig) -> Measurement:
    """Measure the whole stage, the parsing of its files, and Java's PTB tokenizer."""
    done = require_stage(config.captions_dir)
    parsing_s = time_parsing([Path(name) for name in done.inputs if Path(name).is_file()])
    with tempfile.TemporaryDirectory() as work:
        manifest = prepare(PrepareConfig(**(options_of(done) | {"data": Path(work)})))
    image_ids = read_images(config.captions_dir / IMAGES_PARQUET).image_ids
    references = read_references(config.captions_dir / CAPTIONS_PARQUET, "caption", image_ids)
    captions = [*chain.from_iterable(references.values())]
    started = time.perf_counter()
    tokenize_with_java(captions)
    java_s = time.perf_counter() - started
    num_captions, num_words = len(captions), len(" ".join(captions).split())
    return Measurement(
        throughput=num_captions / manifest.seconds,
        unit="captions/s",
        limit=num_captions / parsing_s,
        limited_by="reading and parsing its files",
        shares={
            part: seconds / manifest.seconds
            for part, seconds in manifest.details["seconds"].items()
        },
        details={
            "words_per_second": num_words / manifest.seconds,
            "words_per_second_of_java_tokenizer": num_words / java_s,
        },
    )


def options_of(done: Manifest) -> dict[str, Any]:
    """Return the options that a dataset was prepared with."""
    paths = {
        name: value
        for name in ("source", "karpathy", "table")
        if (value := done.config.get(name) or done.details.get(name))
    }
    return done.config | paths


def time_parsing(paths: list[Path]) -> float:
    """Return the time of reading and parsing these files, in seconds."""
    started = time.perf_counter()
    for path in paths:
        parse(path)
    return time.perf_counter() - started


def parse(path: Path) -> None:
    """Read a JSON file, or a CSV file row by row."""
    if path.suffix == ".json":
        json.loads(path.read_bytes())
        return
    with path.open(encoding="utf-8", newline="") as file:
        for _ in csv.reader(file):
            pass
