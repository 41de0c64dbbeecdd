"""Options of `showtell caption`, `export`, `push`, `pull`, `serve` and `report`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..features.config import device_option, max_pixels_option, num_workers_option
from ..model.generation.options import MAX_BEAM, DecodingOptions
from ..pipeline.stage.options import StageConfig, argument, option, options_of, require

# Files with these suffixes are images.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".j2k"),
}
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
MAX_AGAINST = 4  # evaluations in one report besides its own, so that plots stay readable


def check_output(path: Path) -> str | None:
    """Return None if `--output` names a table of captions, else the rule that it breaks."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        return None
    return f"end in {', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]} (stdout: use --json)"


def check_suffix(suffix: str) -> str | None:
    """Return None if `--sidecar` is the suffix of text files, else the rule that it breaks."""
    if not suffix.startswith(".") or "/" in suffix or not suffix.strip(". "):
        return "be a suffix, such as .txt"
    if suffix.lower() in (*IMAGE_SUFFIXES, *TABLE_SUFFIXES):
        return "be the suffix of text files, such as .txt"
    return None


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(DecodingOptions, StageConfig):
    """Options of `showtell caption`."""

    images: list[Path] = argument("Image files, or folders of images.", metavar="IMAGE")
    run: str | None = option(
        None,
        "Run to caption with, by name or folder. Default: the newest, or the built-in model if "
        "there is none.",
        group="Input",
        metavar="RUN",
    )
    model: str | None = option(
        None,
        "Bundle to caption with: a folder made by 'showtell export', the built-in flickr8k, or "
        "hf:USER/NAME from the Hugging Face Hub.",
        group="Input",
        metavar="BUNDLE",
    )
    weights: str | None = option(
        None,
        "File with the encoder's weights, if it was moved after training.",
        group="Input",
        metavar="FILE",
    )
    recursive: bool = option(True, "Search the subfolders of folders.", group="Input")
    output: Path | None = option(
        None,
        "Table to write the captions to, with their probabilities: .jsonl, .csv or .parquet. If it "
        "exists, only images that it lacks are captioned.",
        check=check_output,
        group="Output",
        metavar="FILE",
    )
    sidecar: str | None = option(
        None,
        "Write a text file with this suffix beside each image: with .txt, dog.txt for dog.jpg.",
        check=check_suffix,
        group="Output",
        metavar="SUFFIX",
    )
    if_exists: str = option(
        "skip",
        "What to do with a text file that exists: keep it, replace it, or add the caption as a new "
        "line.",
        choices=("skip", "overwrite", "append"),
        group="Output",
    )
    batch_size: int | None = option(
        None,
        "Images per forward pass; each view counts as one. Default: 32 on a CPU, 256 on a GPU.",
        at_least=1,
        group="Hardware",
    )
    num_workers: int | None = num_workers_option()
    max_pixels: int = max_pixels_option()
    device: str = device_option()
    given: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_both("run", "model")
        self.require_unused(
            "if_exists", unless=self.sidecar is not None, needs="--sidecar, such as --sidecar .txt"
        )


def chosen_decoding(config: "CaptionConfig | ServeConfig") -> dict[str, Any]:
    """Return the decoding options that the user has chosen; the others are the model's."""
    names = [declared.name for declared in options_of(DecodingOptions)]
    return {n: getattr(config, n) for n in names if n in config.given or config.is_set(n)}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StageConfig):
    """Options of `showtell export`."""

    run: str = argument("Run to export.", metavar="RUN")
    output: Path = argument("Folder of the bundle, new or empty.", metavar="OUT")
    half: bool = option(False, "Store the weights in float16, in half the space.", group="Content")
    consensus: bool = option(
        False,
        "Add the features and captions of the training images, for --preset consensus.",
        group="Content",
    )
    onnx: bool = option(
        False,
        "Add the encoder and the decoder as ONNX graphs, for captioning without torch.",
        group="Content",
    )
    weights: str | None = option(
        None,
        "With --onnx, file with the encoder's weights, if it was moved after training.",
        affects_result=False,  # the run names the weights; a file with others is refused
        group="Content",
        metavar="FILE",
    )
    beam: int = option(
        5, "Beam size, unless a caller gives another.", at_least=1, limit=MAX_BEAM, group="Decoding"
    )
    length_penalty: float = option(
        1.0,
        "Length penalty, unless a caller gives another.",
        at_least=0,
        limit=10,
        group="Decoding",
    )
    license: str = option(
        "other",
        "License to name in the model card: an identifier of the Hugging Face Hub, such as mit, or "
        "a name of several words.",
        group="Model card",
        metavar="NAME",
    )
    about: str | None = option(
        None,
        "A paragraph about the model for the model card.",
        group="Model card",
        metavar="TEXT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_unused("weights", unless=self.onnx, needs="--onnx")

    def result_options(self) -> dict[str, Any]:
        """Return the options that determine the content of the bundle, as JSON values."""
        return {k: v for k, v in super().result_options().items() if k != "output"}


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


@dataclass(frozen=True, kw_only=True)
class ReportConfig(StageConfig):
    """Options of `showtell report`."""

    evaluation: str | None = argument(
        "Evaluation to report on: RUN for its newest, RUN/test-beam5, or its folder. Default: the "
        "newest run.",
        metavar="RUN",
        required=False,
    )
    against: list[str] | None = option(
        None,
        "Evaluation to compare with, named like RUN; repeat the option for several. Default: the "
        "newest ones of the same images.",
        group="Input",
        metavar="RUN",
    )
    output: Path | None = option(
        None,
        "File to write. Default: report.html in the folder of the run.",
        group="Output",
        metavar="FILE",
    )
    format: str | None = option(
        None,
        "A page, or Markdown with plots beside it. Default: md if FILE ends in .md, else html.",
        choices=("html", "md"),
        group="Output",
    )
    image_size: int = option(
        320,
        "Longer side of the images in the gallery, in pixels; 0 leaves them out.",
        at_least=0,
        limit=2048,
        group="Output",
    )
    max_images: int = option(
        5000, "Show at most this many images in the gallery.", at_least=1, group="Output"
    )
    device: str = device_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.against or []) <= MAX_AGAINST,
            f"--against can be given {MAX_AGAINST} times, got {len(self.against or [])}.",
        )
        require(
            self.output is None or not self.output.is_dir(),
            f"--output must name a file, but {self.output} is a folder.",
        )

    @property
    def suffix(self) -> str:
        """The format to write: "html" or "md"."""
        is_markdown = self.output is not None and self.output.suffix.lower() == ".md"
        return self.format or ("md" if is_markdown else "html")


# A repository of the Hugging Face Hub, such as `user/flickr8k-gru`.
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def check_repository(name: str) -> str | None:
    """Return None if `name` can name a repository of the Hub, else the rule that it breaks."""
    is_valid = re.fullmatch(REPOSITORY, name, re.ASCII) and len(name) <= 96
    return None if is_valid else "be a name on the Hugging Face Hub, such as user/flickr8k-gru"


@dataclass(frozen=True, kw_only=True)
class PushConfig(StageConfig):
    """Options of `showtell push`."""

    bundle: Path = argument("Bundle to upload, made by 'showtell export'.", metavar="BUNDLE")
    repo: str = argument(
        "Repository on the Hugging Face Hub; created if it does not exist.",
        metavar="USER/NAME",
        check=check_repository,
    )
    private: bool = option(False, "Create a private repository.")
    revision: str | None = option(
        None, "Branch to upload to; created if it does not exist. Default: main.", metavar="BRANCH"
    )
    message: str = option("Upload a showtell bundle", "Message of the commit.", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class PullConfig(StageConfig):
    """Options of `showtell pull`."""

    repo: str = argument(
        "Repository on the Hugging Face Hub.", metavar="USER/NAME", check=check_repository
    )
    output: Path | None = argument(
        "Folder of the bundle. Default: NAME.", metavar="OUT", required=False
    )
    revision: str | None = option(
        None, "Branch, tag or commit to download. Default: the newest.", metavar="REVISION"
    )
