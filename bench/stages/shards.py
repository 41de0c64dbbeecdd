"""Benchmark of loading cached features: MB/s, beside a sequential read of the same files.

It also measures what the checksums cost: of the pooled features, and of each row of the grids.
"""

import time

import torch

from ...features.store import FeatureStore, find_features
from ...pipeline.stage.checksums import checksum_of_file
from ..config import BenchConfig
from ..limits import time_reading
from ..measurement import Measurement

GRID_ROWS = 1_000


def measure(config: BenchConfig) -> Measurement:
    """Load the pooled features of a dataset, checksums included."""
    directory = find_features(config.dataset_dir, config.features)
    paths = sorted(path for path in directory.glob("part-*") if ".grid" not in path.name)
    num_bytes = sum(path.stat().st_size for path in paths)
    reading_s = time_reading(paths)
    FeatureStore.load(directory)  # imports the library of the shard format
    started = time.perf_counter()
    store = FeatureStore.load(directory)
    loading_s = time.perf_counter() - started
    started = time.perf_counter()
    for path in paths:
        checksum_of_file(path)
    checksum_s = time.perf_counter() - started
    return Measurement(
        throughput=num_bytes / loading_s / 1e6,
        unit="MB/s",
        limit=num_bytes / reading_s / 1e6,
        limited_by="a sequential read of the files",
        shares={
            "read": min(1.0, reading_s / loading_s),
            "check and copy": 1 - reading_s / loading_s,
        },
        details={
            "num_bytes": num_bytes,
            "num_images": len(store.image_ids),
            "checksum_seconds": checksum_s,
            **row_checks(store),
        },
    )


def row_checks(store: FeatureStore) -> dict[str, float]:
    """Measure the first read of grid rows, which verifies them, and the second, which does not.

    Returns:
        Seconds per row: of both, and of the checks, which cover all views of a row. Nothing without
        grid features.
    """
    if store.grids is None:
        return {}
    rows = torch.arange(min(GRID_ROWS, len(store.image_ids)))
    FeatureStore.load(store.directory).gather_grid(rows)  # into the page cache
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        store.gather_grid(rows)
        seconds.append((time.perf_counter() - started) / len(rows))
    first, second = seconds
    return {
        "grid_row_first_read_seconds": first,
        "grid_row_read_seconds": second,
        "grid_row_check_seconds": first - second,
    }
