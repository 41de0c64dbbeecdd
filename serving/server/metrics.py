"""Metrics for Prometheus, one registry per server."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What the server counts and times.

    Attributes:
        requests: answered requests, by route and status.
        request_seconds: from the first byte of a request to the last of its answer, by route.
        in_progress: requests that are being answered.
        images: images of answered requests, by outcome: "captioned", or the code of the error.
        decode_seconds: time to decode and transform an image.
        batch_images: images per batch.
        batch_seconds: time of the model for a batch.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second gauge for each counter, which few people use
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "showtell_requests", "Answered requests.", ("route", "status"), registry=self.registry
        )
        self.request_seconds = Histogram(
            "showtell_request_seconds",
            "Time to answer a request.",
            ("route",),
            registry=self.registry,
            buckets=SECONDS,
        )
        self.in_progress = Gauge(
            "showtell_requests_in_progress", "Requests being answered.", registry=self.registry
        )
        self.images = Counter(
            "showtell_images", "Images by outcome.", ("outcome",), registry=self.registry
        )
        self.decode_seconds = Histogram(
            "showtell_decode_seconds",
            "Time to decode an image.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.batch_images = Histogram(
            "showtell_batch_images",
            "Images per batch.",
            registry=self.registry,
            buckets=BATCH_SIZES,
        )
        self.batch_seconds = Histogram(
            "showtell_batch_seconds",
            "Time of the model for a batch.",
            registry=self.registry,
            buckets=SECONDS,
        )

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read when Prometheus asks."""
        Gauge(name, help, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
