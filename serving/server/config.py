"""Options of `showtell serve`."""

import re
from dataclasses import dataclass, field

from ...features.config import (
    device_option,
    max_pixels_option,
    precision_option,
)
from ...model.generation.options import DecodingOptions
from ...pipeline.stage.options import StageConfig, argument, option, require


def host_of(address: str) -> str | None:
    """Return the host in NAME, NAME:PORT, ADDRESS or [ADDRESS]:PORT in lower case, else None."""
    is_bare = address.count(":") > 1 and not address.startswith("[")  # an IPv6 address
    text = f"[{address}]" if is_bare else address
    found = re.fullmatch(r"([\w.-]+|\[[\da-f:.]+\])(:\d+)?", text.lower(), re.ASCII)
    return found[1].strip("[]") if found else None


def check_host(address: str) -> str | None:
    """Return None if `--allow-host` names a host, else the rule that it breaks."""
    return None if host_of(address) else "be a host name, such as captions.example.org"


def is_loopback(host: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    from ipaddress import ip_address  # here, because `showtell --help` need not wait for it

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(DecodingOptions, StageConfig):
    """Options of `showtell serve`. Decoding options apply to requests that do not set them."""

    model: str | None = argument(
        "Run, by name or folder, folder of a bundle, or hf:USER/NAME from the Hugging Face Hub. "
        "Default: the newest run, or the built-in model if there is none.",
        metavar="MODEL",
        required=False,
    )
    weights: str | None = option(
        None,
        "File with the encoder's weights, if it was moved after training.",
        group="Input",
        metavar="FILE",
    )
    host: str = option(
        "127.0.0.1",
        "Address to listen on. 0.0.0.0 makes the server reachable from other machines.",
        group="Server",
        metavar="ADDRESS",
    )
    port: int = option(
        8000,
        "Port to listen on; 0 picks a free one.",
        at_least=0,
        at_most=65535,
        group="Server",
    )
    token: str | None = option(
        None,
        "Secret that clients must send in the header 'Authorization: Bearer TOKEN'. Better set "
        "the environment variable: other users can see the options of a command.",
        group="Server",
        envvar="SHOWTELL_TOKEN",
        metavar="TOKEN",
    )
    allow_anyone: bool = option(False, "Allow a public --host without a token.", group="Server")
    allow_host: list[str] | None = option(
        None,
        "Further name by which clients address the server, such as that of a proxy. Requests to "
        "other names are then refused.",
        check=check_host,
        group="Server",
        metavar="NAME",
    )
    max_batch: int = option(
        32,
        "Maximum number of images captioned at once, of any requests; 1 turns batching off.",
        at_least=1,
        group="Limits",
    )
    max_queue: int = option(
        256,
        "Maximum number of images in the server, of all requests; further ones are refused.",
        at_least=1,
        group="Limits",
    )
    max_images: int = option(
        64, "Maximum number of images in a request.", at_least=1, group="Limits"
    )
    max_body: int = option(32, "Maximum size of a request, in MB.", at_least=1, group="Limits")
    max_pixels: int = max_pixels_option()
    max_beam: int = option(20, "Maximum beam and n_best of a request.", at_least=1, group="Limits")
    timeout: float = option(
        60.0,
        "Seconds to receive a request, and again to caption its images.",
        above=0,
        group="Limits",
    )
    stop_timeout: float = option(
        30.0,
        "Seconds to finish accepted requests after Ctrl-C or SIGTERM.",
        at_least=0,
        group="Limits",
    )
    num_workers: int | None = option(
        None,
        "Threads that decode images. Default: one per core.",
        at_least=1,
        group="Hardware",
        affects_result=False,
    )
    device: str = device_option()
    precision: str = precision_option()
    given: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_images <= self.max_queue,
            f"--max-images {self.max_images} is above --max-queue {self.max_queue}.",
        )
        hosts = self.allow_host and [host_of(address) or address for address in self.allow_host]
        object.__setattr__(self, "allow_host", hosts)
        token = self.token or ""
        is_valid = token.isascii() and token.isprintable() and " " not in token and len(token) >= 8
        require(
            self.token is None or is_valid,
            "--token must be at least 8 ASCII letters, digits or signs, without spaces. Make one "
            "with 'openssl rand -hex 16'.",
        )
        require(
            self.token is not None or self.allow_anyone or is_loopback(self.host),
            f"--host {self.host} can be reached from other machines. Set a token, as in "
            f"'SHOWTELL_TOKEN=$(openssl rand -hex 16) showtell serve --host {self.host}', or let "
            "everyone in with --allow-anyone.",
        )
