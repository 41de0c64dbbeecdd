"""Clients that load a server with requests, in a process of their own.

This file imports nothing but the standard library, so that the process starts fast and the clients
take little of the processors.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection

BOUNDARY = "showtell-bench"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@dataclass
class LoadResult:
    """What the clients measured.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of each request, in seconds.
        captions: (index of the image, its caption) of each answered image.
        failures: (status, body) of each request with another status than 200.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    captions: list[tuple[int, str]] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return the latency that this share of the requests does not exceed, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def load_server(
    address: tuple[str, int],
    images: Sequence[bytes],
    num_clients: int,
    images_per_request: int,
    seconds: float,
) -> LoadResult:
    """Send requests for some seconds; each client sends the next as soon as it has an answer.

    Args:
        address: host and port of the server.
        images: image files, sent in turn.
        num_clients: number of clients.
        images_per_request: number of images of each request.
        seconds: when to send the last request. The answers to all requests are awaited.
    """
    result, started = LoadResult(), time.perf_counter()

    def run(client: int) -> None:
        connection = HTTPConnection(*address, timeout=600)
        first = client * len(images) // num_clients
        while time.perf_counter() - started < seconds:
            indices = [(first + i) % len(images) for i in range(images_per_request)]
            first += images_per_request
            sent = time.perf_counter()
            connection.request("POST", "/caption", form([images[i] for i in indices]), HEADERS)
            response = connection.getresponse()
            body = response.read()
            result.latencies.append(time.perf_counter() - sent)
            if response.status == 200:
                answers = json.loads(body)["results"]
                captions = (answer.get("caption", "") for answer in answers)
                result.captions += zip(indices, captions, strict=True)
            else:
                result.failures.append((response.status, body.decode()))
        connection.close()

    clients = [threading.Thread(target=run, args=(index,)) for index in range(num_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    result.seconds = time.perf_counter() - started
    return result


def form(images: Sequence[bytes]) -> bytes:
    """Return the body of a request with these images."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
    parts = [head.encode() + image + b"\r\n" for image in images]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
