"""Benchmark of `showtell serve`: images/s and latency by clients, beside the captioner alone."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from ...features.config import FeaturesConfig
from ...features.device import keep_freed_memory
from ...model.generation.options import DecodingOptions
from ...model.runs.find import find_run
from ...pipeline.stage.console import print_table
from ...pipeline.stage.errors import ShowTellError
from ...pipeline.stage.signals import signals_blocked
from ...serving.captioner import Captioner
from ...serving.load import load
from ...serving.server.config import ServeConfig
from ...serving.server.serve import require_libraries
from ..config import BenchConfig
from ..extraction import existing_images
from ..http_load import LoadResult, load_server
from ..measurement import Measurement

NUM_IMAGES = 256  # different files that the clients send
# (clients, images per request) with batching, then without.
BATCHED = ((1, 1), (8, 1), (64, 1), (8, 16))
UNBATCHED = ((1, 1), (8, 1), (64, 1))
HEADER = (
    "batches",
    "clients",
    "images/request",
    "requests/s",
    "images/s",
    "p50",
    "p99",
    "of limit",
)

Load = Callable[[int, int], LoadResult]


def measure(config: BenchConfig) -> Measurement:
    """Measure a server with the run of a dataset, on the dataset's own images.

    Raises:
        ShowTellError: a request failed, or the extra `serve` is not installed.
    """
    require_libraries()
    keep_freed_memory()  # as the command does
    captioner = load(find_run(config.data, config.run, config.dataset), data=config.data)
    found = existing_images(FeaturesConfig(data=config.data, dataset=config.dataset))
    images = [found.files.read(name) for name in found.file_names[:NUM_IMAGES]]
    seconds = config.seconds / 2  # there are many measurements
    options = captioner.decoding_options()
    expected, alone = time_captioner(captioner, images, seconds)
    results: dict[tuple[str, int, int], LoadResult] = {}
    shares: dict[str, float] = {}
    for name, max_batch, loads in (("full", 32, BATCHED), ("single", 1, UNBATCHED)):
        with server(captioner, images, options, max_batch, seconds) as (ask, model_seconds):
            for load_of in loads:
                before = model_seconds()
                result = results[name, *load_of] = ask(*load_of)
                shares[f"{name} {load_of}"] = (model_seconds() - before) / result.seconds
    _, alone_after = time_captioner(captioner, images, seconds)
    limit = max(alone, alone_after)  # the machine may have been slower for a while
    for result in results.values():
        if result.failures:
            raise ShowTellError(f"A request failed: {result.failures[0]}.")
    rates = {key: len(result.captions) / result.seconds for key, result in results.items()}
    print_table("serve", table_rows(results, rates, limit), HEADER)
    model_share = shares["full (64, 1)"]
    return Measurement(
        throughput=rates["full", 64, 1],
        unit="images/s",
        limit=limit,
        limited_by="the captioner alone, from image files in batches of 32",
        shares={"model": model_share, "rest": 1 - model_share},
        details={
            "captioner_before": alone,
            "captioner_after": alone_after,
            "captions_unlike_captioner": sum(
                caption != expected[index]
                for result in results.values()
                for index, caption in result.captions
            ),
            **details_of(results, rates),
        },
    )


def time_captioner(
    captioner: Captioner, images: list[bytes], seconds: float
) -> tuple[list[str], float]:
    """Return the captions of the images, and the images/s of the captioner without a server."""

    def run() -> tuple[list[str], float]:
        captioner.caption(images[:32])  # warm-up
        started, count, captions = time.perf_counter(), 0, list[str]()
        while not count or time.perf_counter() - started < seconds:
            captions = captioner.caption(images)
            count += len(images)
        return captions, count / (time.perf_counter() - started)

    # In a thread that ends: OpenMP's threads of this one would slow down those of the server.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@contextmanager
def server(
    captioner: Captioner,
    images: list[bytes],
    options: DecodingOptions,
    max_batch: int,
    seconds: float,
) -> Iterator[tuple[Load, Callable[[], float]]]:
    """Run a server in a thread, with clients in another process.

    Yields:
        A function that loads the server by (clients, images per request), and one that returns the
        seconds that the model has been busy so far.
    """
    from ...serving.server.app import create_app
    from ...serving.server.listen import Server, bind, served_in_thread
    from ...serving.server.metrics import Metrics
    from ...serving.server.service import CaptionService

    config, metrics = ServeConfig(port=0, max_batch=max_batch, timeout=600), Metrics()
    service = CaptionService(captioner, config, options, metrics)
    listener = bind(config.host, config.port)
    address = listener.getsockname()
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context) as pool,
        served_in_thread(Server(create_app(service, config, {}), service, 30.0), listener),
    ):

        def ask(num_clients: int, images_per_request: int) -> LoadResult:
            with signals_blocked():
                task = pool.submit(
                    load_server, address, images, num_clients, images_per_request, seconds
                )
            return task.result()

        ask(1, 1)  # warm-up

        def model_seconds() -> float:
            return metrics.registry.get_sample_value("showtell_batch_seconds_sum") or 0.0

        yield ask, model_seconds


def table_rows(
    results: dict[tuple[str, int, int], LoadResult],
    rates: dict[tuple[str, int, int], float],
    limit: float,
) -> list[tuple[str, ...]]:
    """Return the cells under `HEADER`."""
    return [
        (
            name,
            str(clients),
            str(count),
            f"{len(result.latencies) / result.seconds:.1f}",
            f"{rates[name, clients, count]:.1f}",
            f"{result.percentile(0.5):.3f} s",
            f"{result.percentile(0.99):.3f} s",
            f"{rates[name, clients, count] / limit:.2f}",
        )
        for (name, clients, count), result in results.items()
    ]


def details_of(
    results: dict[tuple[str, int, int], LoadResult], rates: dict[tuple[str, int, int], float]
) -> dict[str, float]:
    """Return the figures of each load by name."""
    details: dict[str, float] = {}
    for (name, clients, count), result in results.items():
        prefix = f"{name}_batches_{clients}_clients_{count}_images"
        details[f"{prefix}_requests_per_second"] = len(result.latencies) / result.seconds
        details[f"{prefix}_images_per_second"] = rates[name, clients, count]
        details[f"{prefix}_p50_s"] = result.percentile(0.5)
        details[f"{prefix}_p99_s"] = result.percentile(0.99)
    return details
