"""Load a server with good and bad clients, and check every answer and its memory.

    python tests/chaos/clients.py [NUMBER]

Some clients leave during their upload or while they wait; some send garbage, several images, images
of 50 megapixels, or more than a limit allows. The model is the fake one of the server's tests: its
caption is the color of an image, so that an answer to another request is noticed. Exit status 1: an
answer was lost, wrong or not counted, or something was left behind.
"""

import json
import multiprocessing
import random
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "serving/server"))

Address = tuple[str, int]
Captioned = tuple[bytes, str]  # an image file and its caption

NUM_PROCESSES, CLIENTS_PER_PROCESS = 2, 16
NUM_SAMPLES = 10  # of the memory
MEGAPIXELS_50, COLOR = (10_000, 5_000), (90, 120, 30)

# Kind of request → how often it comes, in percent.
KINDS = {
    "one image": 64,
    "several images": 12,
    "leaves while waiting": 7,
    "leaves during upload": 6,
    "garbage image": 4,
    "garbage body": 3,
    "not HTTP": 1,
    "50 megapixels": 2,
    "too large": 1,
}


class Client:
    """Sends random requests to a server, and counts what happens.

    Args:
        address: of the server.
        large: image files of 50 megapixels with their captions.
        seed: of the requests.
    """

    def __init__(self, address: Address, large: list[Captioned], seed: int) -> None:
        self.address, self.large, self.random = address, large, random.Random(seed)
        self.connection = HTTPConnection(*address, timeout=120)
        self.outcomes: Counter[str] = Counter()

    def run(self, count: int) -> Counter[str]:
        """Send requests, and return how often each outcome came."""
        kinds = self.random.choices(list(KINDS), list(KINDS.values()), k=count)
        for kind in kinds:
            try:
                outcome = getattr(self, kind.replace(" ", "_").replace("50", "fifty").lower())()
            except Exception as error:
                outcome = f"LOST: {error!r}"
                self.connection = HTTPConnection(*self.address, timeout=120)
            self.outcomes[f"{kind}: {outcome}"] += 1
        return self.outcomes

    def draw(self) -> Captioned:
        """An image file of a random color and size, and its caption."""
        from conftest import caption_of, draw

        color = tuple(self.random.randrange(256) for _ in range(3))
        size = (self.random.randrange(1, 600), self.random.randrange(1, 600))
        return draw(color, size, self.random.choice(["PNG", "BMP", "TIFF"])), caption_of(color)

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict]:
        """Send a request, again while the server is full; returns status and answer."""
        while True:
            self.connection.request("POST", "/caption", body, headers or HEADERS)
            response = self.connection.getresponse()
            status, answer = response.status, json.loads(response.read())
            if status != 429:
                return status, answer
            self.outcomes["(full, sent again)"] += 1
            time.sleep(self.random.random())

    def check(self, images: list[Captioned]) -> str:
        status, answer = self.post(form(*(content for content, _ in images)))
        captions = [result.get("caption") for result in answer.get("results", ())]
        return "right" if captions == [caption for _, caption in images] else f"WRONG: {status}"

    def one_image(self) -> str:
        return self.check([self.draw()])

    def several_images(self) -> str:
        return self.check([self.draw() for _ in range(self.random.randrange(2, 17))])

    def fifty_megapixels(self) -> str:
        return self.check([self.random.choice(self.large)])

    def garbage_image(self) -> str:
        (good, caption), (other, _) = self.draw(), self.draw()
        broken = self.random.choice([self.random.randbytes(500), other[: len(other) // 2], b""])
        status, answer = self.post(form(broken, good))
        first, second = answer["results"]
        is_right = status == 200 and "error" in first and second["caption"] == caption
        return "right" if is_right else f"WRONG: {status}"

    def garbage_body(self) -> str:
        kind = self.random.choice([HEADERS, {"Content-Type": "application/json"}, {}])
        status, answer = self.post(self.random.randbytes(self.random.randrange(3000)), kind)
        return "refused" if status in (400, 415, 422) and answer["error"] else f"WRONG: {status}"

    def too_large(self) -> str:
        body = form(bytes(33_000_000))
        chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
        self.connection.request("POST", "/caption", chunks, HEADERS, encode_chunked=True)
        response = self.connection.getresponse()
        response.read()
        return "refused" if response.status in (413, 429) else f"WRONG: {response.status}"

    def not_http(self) -> str:
        with socket.create_connection(self.address, timeout=60) as raw:
            raw.sendall(self.random.randbytes(2000) + b"\r\n\r\n")
            return "refused" if raw.recv(100).startswith(b"HTTP/1.1 400") else "WRONG"

    def leaves_while_waiting(self) -> str:
        images = [self.draw()[0] for _ in range(self.random.choice([1, 1, 8]))]
        with socket.create_connection(self.address, timeout=60) as raw:
            raw.sendall(head(body := form(*images)) + body)
            time.sleep(self.random.random() / 20)
        return "left"

    def leaves_during_upload(self) -> str:
        body = form(self.draw()[0])
        with socket.create_connection(self.address, timeout=60) as raw:
            raw.sendall(head(body) + body[: self.random.randrange(len(body))])
            time.sleep(self.random.random() / 20)
        return "left"


HEADERS = {"Content-Type": "multipart/form-data; boundary=b"}


def form(*images: bytes) -> bytes:
    """The body of a request."""
    part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n%b\r\n'
    return b"".join(part % image for image in images) + b"--b--\r\n"


def head(body: bytes) -> bytes:
    """The start of a request, up to the body."""
    lines = "POST /caption HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"
    return "\r\n".join([*lines, *(": ".join(item) for item in HEADERS.items()), "\r\n"]).encode()


def split(count: int, num_parts: int) -> list[int]:
    """Return parts of almost equal size that add up to `count`."""
    return [count // num_parts + (index < count % num_parts) for index in range(num_parts)]


def run_clients(address: Address, large: list[Captioned], count: int, seed: int) -> Counter[str]:
    """Run clients in threads; each sends its part of `count` requests."""
    clients = [Client(address, large, seed + index) for index in range(CLIENTS_PER_PROCESS)]
    parts = zip(clients, split(count, len(clients)), strict=True)
    threads = [threading.Thread(target=client.run, args=(part,)) for client, part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum((client.outcomes for client in clients), Counter())


def memory_mb() -> float:
    """Memory that this process uses now, in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1000


def main() -> None:
    from conftest import FakeCaptioner, caption_of, draw, run_server

    number = int((sys.argv[1:] or ["10000"])[0])
    outcomes: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    # A JPEG is decoded at a fraction of its size, a PNG as a whole.
    jpeg, png = (draw(COLOR, MEGAPIXELS_50, kind) for kind in ("JPEG", "PNG"))
    with run_server(FakeCaptioner()) as running, ProcessPoolExecutor(2, context) as pool:
        jpeg_caption = running.post(jpeg).json()["results"][0]["caption"]  # JPEG is lossy
        large = [(jpeg, jpeg_caption), (png, caption_of(COLOR))]
        print("requests   seconds   memory")
        started = time.monotonic()
        for sample, size in enumerate(split(number, NUM_SAMPLES)):
            tasks = [
                pool.submit(run_clients, running.address, large, part, 1000 * sample + 100 * index)
                for index, part in enumerate(split(size, NUM_PROCESSES))
            ]
            outcomes += sum((task.result() for task in tasks), Counter())
            done = sum(split(number, NUM_SAMPLES)[: sample + 1])
            print(f"{done:8}  {time.monotonic() - started:8.0f}  {memory_mb():7.0f} MB", flush=True)
        time.sleep(1)
        left = {
            "places": running.service.places.taken,
            "waiting images": len(running.service.queue),
            "connections": len(running.server.server_state.connections),
            "open files": len(list(Path("/proc/self/fd").iterdir())),
        }
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8}  {outcome}")
    print("left behind:", left)
    num_bad = sum(n for outcome, n in outcomes.items() if "LOST" in outcome or "WRONG" in outcome)
    num_counted = sum(n for outcome, n in outcomes.items() if ":" in outcome)
    print(f"{num_counted} of {number} requests were counted, {num_bad} lost or wrong")
    sys.exit(
        num_bad > 0 or num_counted != number or left["places"] > 0 or left["waiting images"] > 0
    )


if __name__ == "__main__":
    main()
