"""Benchmark of loading cached features: MB/s, beside a sequential read of the same files."""

import time

from ...features.store import FeatureStore, find_features
from ..config import BenchConfig
from ..limits import time_reading
from ..measurement import Measurement


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
    return Measurement(
        throughput=num_bytes / loading_s / 1e6,
        unit="MB/s",
        limit=num_bytes / reading_s / 1e6,
        limited_by="a sequential read of the files",
        shares={
            "read": min(1.0, reading_s / loading_s),
            "check and copy": 1 - reading_s / loading_s,
        },
        details={"num_bytes": num_bytes, "num_images": len(store.image_ids)},
    )
