"""Options of `showtell caption`, `export`, `push`, `pull` and `report`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..features.config import (
    device_option,
    max_pixels_option,
    num_workers_option,
    precision_option,
)
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
    precision: str = precision_option()
    given: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_not_both("run", "model")
        self.require_unused(
            "if_exists", unless=self.sidecar is not None, needs="--sidecar, such as --sidecar .txt"
        )


def chosen_decoding(config: StageConfig, given: tuple[str, ...]) -> dict[str, Any]:
    """Return the decoding options that the user has chosen; the others are the model's.

    Args:
        config: options of `showtell caption` or `serve`.
        given: names of the options that the user has set explicitly, even to their defaults.
    """
    names = [declared.name for declared in options_of(DecodingOptions)]
    return {n: getattr(config, n) for n in names if n in given or config.is_set(n)}


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
