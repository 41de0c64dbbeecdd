"""The options of every stage: one frozen dataclass each, with the only defaults there are.

They stand together, and away from torch, so that the command line can read them and show the help
of any command at once.
"""

import re
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")

PLAIN_NAME = r"[^./\\][^/\\]*"
RESERVED = ("runs", "bench")  # what lies beside the datasets in the data folder


def option(default: T, help: str) -> T:
    """Declare a field with its default and the line that `--help` shows for it."""
    value: T = field(default=default, metadata={"help": help})
    return value


def argument(help: str) -> Any:
    """Declare a field that the command line takes by its place, with its line for `--help`."""
    return field(metadata={"help": help, "by_place": True})


def options_of(config_class: "type[StageConfig]") -> "list[Field[Any]]":
    """The fields of a config that are options, in order."""
    return [declared for declared in fields(config_class) if "help" in declared.metadata]


def require(condition: bool, message: str) -> None:
    """Refuse a value that cannot be.

    Raises:
        ConfigError: with `message`, where `condition` is false.
    """
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of `choices`."""
    require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def require_at_least(least: float, **values: float | None) -> None:
    """Refuse each given value below `least`; None passes."""
    for name, value in values.items():
        require(value is None or value >= least, f"{name} must be at least {least:g}, got {value}.")


def require_fraction(**values: float) -> None:
    """Refuse each given value outside 0 ≤ value < 1."""
    for name, value in values.items():
        require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}.")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage has: the root under which all files live."""

    data: Path = option(Path("data"), "Folder that holds datasets, features and runs.")

    def as_json(self) -> dict[str, Any]:
        """The options as JSON values, without `data`, which names a place and not a choice."""
        names = {option.name for option in options_of(type(self))} - {"data"}
        values = {name: value for name, value in asdict(self).items() if name in names}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(StageConfig):
    """A stage that works on one dataset."""

    dataset: str = option(
        "coco2014", "coco2014, coco2017, flickr8k, flickr30k, scenes, or a name of your own."
    )

    @property
    def dataset_dir(self) -> Path:
        """`data/<dataset>`."""
        return self.data / self.dataset

    @property
    def captions_dir(self) -> Path:
        """`data/<dataset>/captions`, written by prepare."""
        return self.dataset_dir / "captions"

    def __post_init__(self) -> None:
        bad = not re.fullmatch(PLAIN_NAME, self.dataset)
        reserved = self.dataset in RESERVED
        require(not reserved, f"dataset cannot be {self.dataset!r}: that folder is showtell's own.")
        require(not bad, f"dataset must be a plain name, got {self.dataset!r}.")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(DatasetConfig):
    """Options of `showtell download`."""

    retries: int = option(5, "Attempts for each archive after the first one fails.")
    timeout_s: float = option(30.0, "Seconds without a byte before an attempt is given up.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, retries=self.retries)
        require(self.timeout_s > 0, f"timeout_s must be above 0, got {self.timeout_s}.")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(DatasetConfig):
    """Options of `showtell prepare`."""

    source: Path | None = option(
        None, "Folder in the dataset's published layout; default data/<dataset>/raw."
    )
    karpathy: Path | None = option(
        None, "Karpathy-split JSON (dataset_coco.json, …) that names images, captions and splits."
    )
    table: Path | None = option(
        None, "CSV, JSONL or Parquet table of file_name, caption[, split] for images of your own."
    )
    min_count: int | None = option(
        None, "Keep words seen at least this often in train (default 5, unless --vocab-size)."
    )
    vocab_size: int | None = option(None, "Keep this many most frequent words of train instead.")
    seed: int = option(0, "Draws the splits that the dataset does not bring.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, min_count=self.min_count, vocab_size=self.vocab_size)
        require(
            self.min_count is None or self.vocab_size is None,
            "--min-count and --vocab-size exclude each other; give one.",
        )
        require(
            self.karpathy is None or self.table is None,
            "--karpathy and --table exclude each other; give one.",
        )


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(DatasetConfig):
    """Options of `showtell features`."""

    encoder: str = option("resnet50", "Any torchvision classification network.")
    weights: str = option(
        "IMAGENET1K_V1",
        "A name of torchvision's (IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT), caffe, or a .pth file.",
    )
    image_size: int | None = option(None, "Side of the crop in pixels; default the weights' own.")
    format: str = option("hdf5", "Shard format: hdf5 or parquet.")
    shard_size: int = option(1024, "Images in one shard, the unit of work that a resume keeps.")
    batch_size: int = option(64, "Images in one pass of the network.")
    num_workers: int | None = option(None, "Threads that decode images; default one for each core.")
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16; auto takes bf16 where it is fast.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            1,
            shard_size=self.shard_size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            image_size=self.image_size,
        )
        require_choice("format", self.format, ("hdf5", "parquet"))
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DatasetConfig):
    """Options of `showtell train`."""

    run: str | None = option(None, "Name of the run; default <dataset>-<cell>.")
    features: str | None = option(
        None, "Cached features to train on, e.g. resnet50-caffe; default the newest."
    )
    resume: bool = option(False, "Go on with a run that was stopped, exactly where it was.")
    cell: str = option("gru", "gru, lstm or rnn.")
    hidden_size: int = option(512, "Width of the recurrent state.")
    embed_size: int = option(512, "Width of the word vectors.")
    num_layers: int = option(1, "Recurrent layers.")
    image_as: str = option("first-input", "Where the image enters: first-input or initial-state.")
    tie_embeddings: bool = option(True, "Use the word vectors as the output layer too.")
    dropout: float = option(0.5, "Dropout on the decoder's inputs and outputs.")
    label_smoothing: float = option(0.1, "Share of the target given to all other words.")
    epochs: int = option(18, "Passes over all captions.")
    batch_size: int = option(128, "Captions in one step.")
    learning_rate: float = option(1e-3, "Peak of the schedule.")
    schedule: str = option("one-cycle", "one-cycle, cosine or constant.")
    weight_decay: float = option(0.01, "AdamW's decay of the matrices.")
    grad_clip: float = option(5.0, "Largest norm of the gradient; 0 clips nothing.")
    monitor: str = option("CIDEr", "Validation score that picks the best epoch: CIDEr or Bleu_4.")
    # Off by default: a schedule that anneals gains most in its last epochs, after any plateau.
    patience: int = option(0, "Stop after this many epochs without a better score; 0 never.")
    val_images: int = option(5000, "At most this many val images are decoded between epochs.")
    val_beam: int = option(1, "Beam size of the validation between epochs.")
    save_every_s: float = option(300.0, "Seconds between checkpoints inside a long epoch.")
    seed: int = option(0, "Seed of the weights, the batches and the dropout.")
    # Not an option: the names of those that the user has set, be it to their default.
    given: tuple[str, ...] = field(default=(), compare=False)
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16; auto takes bf16 where it is fast.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("cell", self.cell, ("gru", "lstm", "rnn"))
        require_choice("image_as", self.image_as, ("first-input", "initial-state"))
        require_choice("schedule", self.schedule, ("one-cycle", "cosine", "constant"))
        require_choice("monitor", self.monitor, ("CIDEr", "Bleu_4"))
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        require_at_least(
            1,
            hidden_size=self.hidden_size,
            embed_size=self.embed_size,
            num_layers=self.num_layers,
            epochs=self.epochs,
            batch_size=self.batch_size,
            val_images=self.val_images,
            val_beam=self.val_beam,
        )
        require_at_least(
            0, grad_clip=self.grad_clip, patience=self.patience, weight_decay=self.weight_decay
        )
        require(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}.")
        require_fraction(dropout=self.dropout, label_smoothing=self.label_smoothing)
        require(
            self.run is None or bool(re.fullmatch(PLAIN_NAME, self.run)),
            f"run must be a plain name, got {self.run!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(StageConfig):
    """Options of `showtell eval`."""

    run: str | None = option(None, "Run to evaluate; default the newest.")
    split: str | None = option(None, "val or test; default test where the dataset has one.")
    beam: int = option(3, "Beam size; 1 is greedy.")
    length_penalty: float = option(0.7, "Score is log-probability / length ** this; 0 is none.")
    max_length: int = option(20, "Longest caption, in words.")
    batch_size: int = option(200, "Images decoded together.")
    clip: Path | None = option(None, "Folder of a CLIP as transformers saves it: adds CLIPScore.")
    num_samples: int = option(5, "Captions shown at the end.")
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16; auto takes bf16 where it is fast.")

    def __post_init__(self) -> None:
        if self.split is not None:
            require_choice("split", self.split, ("train", "val", "test"))
        require_at_least(
            1, beam_size=self.beam, max_length=self.max_length, batch_size=self.batch_size
        )
        require_at_least(0, length_penalty=self.length_penalty, num_samples=self.num_samples)
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))


@dataclass(frozen=True, kw_only=True)
class CompareConfig(StageConfig):
    """Options of `showtell compare`."""

    eval_a: str = argument("An evaluation: its folder, RUN/val-beam3, or RUN where it has one.")
    eval_b: str = argument("Another evaluation of the same images.")
    draws: int = option(10_000, "Random draws of the images.")
    seed: int = option(0, "Seed of the draws.")

    def __post_init__(self) -> None:
        require_at_least(100, draws=self.draws)
        require_at_least(0, seed=self.seed)
