"""The arithmetic of docs/scale.md: bytes, hours and bottlenecks of large datasets.

`python -m showtell.bench.scale` prints the tables of that page. The rates of a machine are those
measured in docs/performance.md and docs/scale.md. A simulation of workers that fail shows how much
longer than the arithmetic a cluster takes.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from ..pipeline.stage.console import format_bytes
from .gpu_report import table

FEATURE_BYTES = 2048 * 2  # pooled features of a ResNet-50 in float16
GRID_BYTES = 49 * FEATURE_BYTES  # its 7×7 grid
SHARD_SIZE = 1024
NUM_SIMULATIONS = 5

Table = list[tuple[str, ...]]  # the first row is the header


@dataclass(frozen=True)
class DatasetSize:
    """The size of a dataset.

    Attributes:
        name: of the dataset.
        images: number of images.
        captions: number of captions.
        image_bytes: mean size of an image file.
        words: mean number of words of a caption.
        is_small: whether images are stored at about 256×256 pixels, not at 640×480.
    """

    name: str
    images: float
    captions: float
    image_bytes: float
    words: float
    is_small: bool


# Sources: docs/scale.md. The words of LAION's captions are an assumption.
DATASETS = (
    DatasetSize("COCO", 123_287, 616_767, 19e9 / 123_287, 10.4, is_small=False),
    DatasetSize("CC12M", 12.4e6, 12.4e6, 331e9 / 12.4e6, 20.2, is_small=True),
    DatasetSize("LAION-400M", 413e6, 413e6, 10e12 / 413e6, 12.0, is_small=True),
)


@dataclass(frozen=True)
class Machine:
    """What one machine does in a second.

    Attributes:
        name: of the machine.
        cores: number of CPU cores.
        network_images: images through the network (ResNet-50) on its GPU, or its cores.
        decoded_small: images of 224×224 pixels that a core decodes.
        decoded_large: images of 640×480 pixels that a core decodes.
        trained_tokens: tokens of captions that training processes.
        captions_prepared: captions that `prepare` processes.
        input_bytes: read from the storage of the images.
        disk_bytes: read from the disk with the features.
        memory_bytes: size of the memory.
    """

    name: str
    cores: int
    network_images: float
    decoded_small: float
    decoded_large: float
    trained_tokens: float
    captions_prepared: float
    input_bytes: float
    disk_bytes: float
    memory_bytes: float


# Rates of docs/performance.md; disk and network are assumptions, see docs/scale.md.
MACHINES = (
    Machine("2 cores", 2, 50, 863, 293, 555 * 11.5, 46_000, 250e6, 1e9, 24e9),
    Machine("16 cores and an H200", 16, 13_000, 863, 293, 1_490_000, 46_000, 250e6, 3e9, 128e9),
)

# Memory of `prepare` and `features` for each image, of `train` for each caption and its tokens:
# differences between tables of 1 and 10 million rows of bench/scale_prepare.py.
PREPARED_BYTES, LISTED_BYTES, CAPTION_ROW_BYTES, TOKEN_BYTES = 44, 242, 249, 4


def prepare_seconds(data: DatasetSize, machine: Machine) -> dict[str, float]:
    """Return resource → seconds that `prepare` needs of it."""
    return {"one core": data.captions / machine.captions_prepared}


def features_seconds(data: DatasetSize, machine: Machine) -> dict[str, float]:
    """Return resource → seconds that `features` needs of it."""
    decoded = machine.decoded_small if data.is_small else machine.decoded_large
    return {
        "network": data.images / machine.network_images,
        "decoding": data.images / (decoded * machine.cores),
        "input": data.images * data.image_bytes / machine.input_bytes,
    }


def epoch_seconds(data: DatasetSize, machine: Machine) -> dict[str, float]:
    """Return resource → seconds that one epoch of training needs of it."""
    is_resident = resident_bytes(data) < machine.memory_bytes / 2
    return {
        "decoder": data.captions * (data.words + 1) / machine.trained_tokens,
        "disk": 0.0 if is_resident else data.images * FEATURE_BYTES / machine.disk_bytes,
    }


STAGES: dict[str, Callable[[DatasetSize, Machine], dict[str, float]]] = {
    "prepare": prepare_seconds,
    "features": features_seconds,
    "an epoch": epoch_seconds,
}


def resident_bytes(data: DatasetSize) -> float:
    """Return the memory that training needs if all features are in memory."""
    return data.images * FEATURE_BYTES + caption_bytes(data)


def caption_bytes(data: DatasetSize) -> float:
    """Return the memory that training needs to read all captions."""
    return data.captions * (CAPTION_ROW_BYTES + TOKEN_BYTES * (data.words + 2))


def simulate(
    num_jobs: int,
    num_workers: int,
    job_s: float,
    *,
    failures_per_hour: float = 0.0,
    restart_s: float = 60.0,
    seed: int = 0,
) -> float:
    """Simulate workers that take shard jobs from one queue, and may fail.

    A worker that fails loses its job, which another worker takes, and starts again.

    Args:
        num_jobs: number of shards.
        num_workers: number of workers.
        job_s: mean seconds of a job; each takes between half and one and a half of it.
        failures_per_hour: mean number of failures of each worker in an hour.
        restart_s: seconds until a worker that failed takes a job again.
        seed: of all random draws.

    Returns:
        The seconds until the last job is done.
    """
    draw = random.Random(seed)
    free = [0.0] * num_workers  # when each worker takes its next job
    num_left, end_s = num_jobs, 0.0
    while num_left:
        now = heapq.heappop(free)
        needed = job_s * draw.uniform(0.5, 1.5)
        until_failure = draw.expovariate(failures_per_hour / 3600) if failures_per_hour else needed
        if until_failure < needed:
            heapq.heappush(free, now + until_failure + restart_s)
            continue
        num_left -= 1
        end_s = max(end_s, now + needed)
        heapq.heappush(free, now + needed)
    return end_s


def bytes_table() -> Table:
    """Return the rows of the table of sizes."""
    header = ("", *(data.name for data in DATASETS))
    rows: dict[str, Callable[[DatasetSize], str]] = {
        "images": lambda data: f"{data.images / 1e6:,.2f} million",
        "captions": lambda data: f"{data.captions / 1e6:,.2f} million",
        "image files": lambda data: format_bytes(data.images * data.image_bytes),
        "pooled features": lambda data: format_bytes(data.images * FEATURE_BYTES),
        "grid features": lambda data: format_bytes(data.images * GRID_BYTES),
        "memory of `prepare`, as a stream": lambda data: format_bytes(data.images * PREPARED_BYTES),
        "memory of `features` for the list of images": lambda data: format_bytes(
            data.images * LISTED_BYTES
        ),
        "memory of `train` for captions": lambda data: format_bytes(caption_bytes(data)),
        "shards": lambda data: f"{-(-data.images // SHARD_SIZE):,.0f}",
    }
    return [header, *((name, *map(value, DATASETS)) for name, value in rows.items())]


def time_table() -> Table:
    """Return the rows of the table of times: each with its first bottleneck."""
    rows: Table = [("machine", "stage", *(data.name for data in DATASETS))]
    for machine in MACHINES:
        for name, seconds_of in STAGES.items():
            cells = []
            for data in DATASETS:
                seconds = seconds_of(data, machine)
                slowest = max(seconds, key=lambda resource: seconds[resource])
                cells.append(f"{format_time(seconds[slowest])} ({slowest})")
            rows.append((machine.name, name, *cells))
    return rows


def simulation_table() -> Table:
    """Return the rows of the table of simulated workers."""
    rows: Table = [
        ("shards", "workers", "failures per worker and day", "time over shards / workers")
    ]
    for num_jobs, num_workers in ((121, 8), (12_110, 64), (403_321, 256)):
        for per_day in (0, 1, 10):
            job_s = SHARD_SIZE / 1000
            seconds = fmean(
                simulate(num_jobs, num_workers, job_s, failures_per_hour=per_day / 24, seed=seed)
                for seed in range(NUM_SIMULATIONS)
            )
            ratio = seconds / (num_jobs * job_s / num_workers)
            rows.append((f"{num_jobs:,}", str(num_workers), str(per_day), f"{ratio:.3f}"))
    return rows


def format_time(seconds: float) -> str:
    """Return a time with its unit, such as 3.5 days."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def main() -> None:
    """Print the tables."""
    for header, *rows in (bytes_table(), time_table(), simulation_table()):
        print(table(header, rows), end="\n\n")


if __name__ == "__main__":
    main()
