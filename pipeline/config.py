"""The options of every stage: one frozen dataclass each, with the only defaults there are.

They stand together, and away from torch, so that the command line can read them and show the help
of any command at once.
"""

import math
import re
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from .stage.errors import ConfigError

T = TypeVar("T")

PLAIN_NAME = r"[^./\\][^/\\]*"
RESERVED = ("runs", "ensembles", "bench")  # what lies beside the datasets in the data folder

# Decoding options as they stand in the names of folders.
SHORT_NAMES = {
    "length_penalty": "penalty",
    "max_length": "max",
    "min_length": "min",
    "no_repeat_ngram": "ngram",
    "beam_groups": "groups",
    "top_p": "top",
    "temperature": "temperature",
    "seed": "seed",
    "n_best": "nbest",
    "views": "views",
    "consensus": "consensus",
    "consensus_precision": "precision",
}
# Longest captions, by what the vocabulary counts: a word may take several pieces.
LENGTH_LIMITS = {"words": 20, "pieces": 30}
MAX_VIEWS = 6  # as many as features/transform.py knows


def option(default: T, help: str) -> T:
    """Declare a field with its default and the line that `--help` shows for it."""
    value: T = field(default=default, metadata={"help": help})
    return value


def argument(help: str) -> Any:
    """Declare a field that the command line takes by its place, with its line for `--help`."""
    return field(metadata={"help": help, "by_place": True})


def optional_argument(help: str) -> Any:
    """Declare a field like `argument`, which may be left out."""
    return field(default=None, metadata={"help": help, "by_place": True})


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
    """Refuse each given value below `least` or infinite; None passes."""
    for name, value in values.items():
        require(
            value is None or least <= value < math.inf,
            f"{name} must be at least {least:g}{' and finite' * (value == math.inf)}, got {value}.",
        )


def require_above_0(**values: float) -> None:
    """Refuse each given value that is not above 0, or infinite."""
    for name, value in values.items():
        require(
            0 < value < math.inf,
            f"{name} must be above 0{' and finite' * (value == math.inf)}, got {value}.",
        )


def require_fraction(**values: float) -> None:
    """Refuse each given value outside 0 ≤ value < 1."""
    for name, value in values.items():
        require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}.")


def require_seed(seed: int) -> None:
    """Refuse a seed that the generators cannot take, also after sums and products of it."""
    require(0 <= seed < 2**32, f"seed must be 0 to 4294967295, got {seed}.")


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
    vocab: str = option(
        "words", "words, bpe (pieces of words, trained on train), or a local tokenizer.json."
    )
    min_count: int | None = option(
        None, "Keep words seen at least this often in train (default 5, unless --vocab-size)."
    )
    vocab_size: int | None = option(
        None,
        "Keep this many most frequent words of train instead; with bpe, pieces (default 4000).",
    )
    seed: int = option(0, "Draws the splits that the dataset does not bring.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, min_count=self.min_count, vocab_size=self.vocab_size)
        require(
            self.min_count is None or self.vocab_size is None,
            "--min-count and --vocab-size exclude each other; give one.",
        )
        require(
            self.vocab in ("words", "bpe") or self.vocab.endswith(".json"),
            f"vocab must be words, bpe or the path of a tokenizer.json, got {self.vocab!r}.",
        )
        require(
            self.min_count is None or self.vocab == "words",
            "--min-count goes with --vocab words only: pieces of words are kept however rare.",
        )
        require(
            self.vocab_size is None or self.tokenizer is None,
            "--vocab-size goes with --vocab words or bpe: a tokenizer.json has its own pieces.",
        )
        require(
            self.karpathy is None or self.table is None,
            "--karpathy and --table exclude each other; give one.",
        )

    @property
    def tokenizer(self) -> Path | None:
        """The `tokenizer.json` that `vocab` names; None where it names none."""
        return None if self.vocab in ("words", "bpe") else Path(self.vocab)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(DatasetConfig):
    """Options of `showtell features`."""

    encoder: str = option("resnet50", "Any torchvision classification network.")
    weights: str = option(
        "IMAGENET1K_V1",
        "A name of torchvision's (IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT), caffe, or a .pth or "
        ".safetensors file.",
    )
    image_size: int | None = option(None, "Side of the crop in pixels; default the weights' own.")
    views: int = option(
        1, "Views of each image, 1 to 6: itself, mirrored, then crops of its four corners."
    )
    grid: bool = option(False, "Also cache what the network sees at each place, before it pools.")
    format: str = option("hdf5", "Shard format: hdf5 or parquet.")
    shard_size: int = option(1024, "Images in one shard, the unit of work that a resume keeps.")
    batch_size: int = option(64, "Images in one pass of the network; each view counts as one.")
    num_workers: int | None = option(
        None, "Threads, or beside a GPU processes, that decode images; default one a core."
    )
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
    precision: str = option(
        "auto",
        "auto, fp32, bf16, fp16 or int8; auto takes bf16 where it is fast. int8 is for ResNets on "
        "CPUs with VNNI: the fastest there, its features a few per cent off.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(
            1,
            shard_size=self.shard_size,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            image_size=self.image_size,
        )
        require(1 <= self.views <= MAX_VIEWS, f"views must be 1 to {MAX_VIEWS}, got {self.views}.")
        require_choice("format", self.format, ("hdf5", "parquet"))
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16", "int8"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DatasetConfig):
    """Options of `showtell train`."""

    run: str | None = option(
        None,
        "Name of the run; default <dataset>-<cell>, and -<attention>; of --init its name and more.",
    )
    features: str | None = option(
        None, "Cached features to train on, e.g. resnet50-caffe; default the newest."
    )
    resume: bool = option(False, "Go on with a run that was stopped, exactly where it was.")
    preset: str | None = option(
        None,
        "Recipe for the options you do not give: views, soft-attention, adaptive-attention or "
        "self-critical.",
    )
    init: str | None = option(None, "Run whose weights, decoder and features to start from.")
    scst: bool = option(False, "Self-critical training of --init: raises CIDEr-D itself.")
    cell: str = option("gru", "gru, lstm or rnn.")
    attention: str = option("none", "Look at cached grids before each word: none, soft, adaptive.")
    attention_size: int = option(256, "Width of the network that scores the places of a grid.")
    hidden_size: int = option(512, "Width of the recurrent state.")
    embed_size: int = option(512, "Width of the word vectors.")
    num_layers: int = option(1, "Recurrent layers.")
    image_as: str = option("first-input", "Where the image enters: first-input or initial-state.")
    tie_embeddings: bool = option(True, "Use the word vectors as the output layer too.")
    dropout: float = option(0.5, "Dropout on the decoder's inputs and outputs.")
    label_smoothing: float = option(0.1, "Share of the target given to all other words.")
    views: int | None = option(None, "Cached views of each image to draw from; default all.")
    scheduled_sampling: float = option(
        0.0, "Share of inputs, rising up to this, that are drawn from the model's own predictions."
    )
    word_vectors: Path | None = option(
        None, "Text file of GloVe or word2vec vectors to start the words from."
    )
    ema: float = option(0.0, "Validate and keep a running mean of the weights with this decay.")
    scst_samples: int = option(5, "Captions drawn for each image in a step of --scst.")
    scst_baseline: str = option("mean", "Subtracted from a reward: mean of other draws, or greedy.")
    xe_weight: float = option(0.0, "Weight of the cross-entropy beside the loss of --scst.")
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
        if self.word_vectors is not None:
            object.__setattr__(self, "word_vectors", Path(self.word_vectors))  # JSON has text
        require_choice("attention", self.attention, ("none", "soft", "adaptive"))
        require_choice("scst_baseline", self.scst_baseline, ("mean", "greedy"))
        require(
            not self.scst or self.init is not None,
            "--scst goes on from a trained run; name it with --init RUN.",
        )
        require(
            not self.scst or self.scst_baseline == "greedy" or self.scst_samples > 1,
            "--scst-baseline mean needs at least 2 --scst-samples, got 1.",
        )
        require(
            self.init is None or self.word_vectors is None,
            "--init and --word-vectors exclude each other: the words of --init are trained.",
        )
        require(
            not self.scst or not self.scheduled_sampling,
            "--scst and --scheduled-sampling exclude each other: --scst draws whole captions.",
        )
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
            attention_size=self.attention_size,
            views=self.views,
            scst_samples=self.scst_samples,
        )
        require(0 <= self.xe_weight <= 1, f"xe_weight must be 0 to 1, got {self.xe_weight}.")
        require(
            self.scst or not self.xe_weight,
            "--xe-weight is the cross-entropy's share beside --scst; add --scst --init RUN.",
        )
        draws = (self.scst_samples, self.scst_baseline)
        require(
            self.scst or draws == (TrainConfig.scst_samples, TrainConfig.scst_baseline),
            "--scst-samples and --scst-baseline say how --scst draws; add --scst --init RUN.",
        )
        require(
            self.attention != "none" or self.attention_size == TrainConfig.attention_size,
            "--attention-size is that of --attention; add --attention soft or adaptive.",
        )
        require(
            self.views is None or self.views <= MAX_VIEWS,
            f"views must be 1 to {MAX_VIEWS}, got {self.views}.",
        )
        require_at_least(
            0,
            grad_clip=self.grad_clip,
            patience=self.patience,
            weight_decay=self.weight_decay,
            save_every_s=self.save_every_s,
        )
        require_seed(self.seed)
        require_above_0(learning_rate=self.learning_rate)
        require_fraction(dropout=self.dropout, label_smoothing=self.label_smoothing, ema=self.ema)
        require_fraction(scheduled_sampling=self.scheduled_sampling)
        require(
            self.run is None or bool(re.fullmatch(PLAIN_NAME, self.run)),
            f"run must be a plain name, got {self.run!r}.",
        )
        require(
            self.run is None or "+" not in self.run,
            f"run must have no '+', which joins the names of an ensemble's runs, got {self.run!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How captions are found: by beam search, or drawn with `sample`."""

    preset: str | None = option(None, "Recipe for the options you do not give: consensus.")
    beam: int = option(3, "Beam size; 1 is greedy.")
    length_penalty: float = option(0.7, "Score is log-probability / length ** this; 0 is none.")
    max_length: int | None = option(None, "Longest caption; default 20 words or 30 pieces.")
    min_length: int = option(1, "Shortest caption, in tokens.")
    no_repeat_ngram: int = option(0, "No sequence of this many tokens twice in a caption; 0 off.")
    beam_groups: int = option(1, "Split the beam into groups that differ: diverse beam search.")
    diversity: float = option(
        0.5, "What a word costs for each beam of earlier groups that says it."
    )
    sample: bool = option(False, "Draw captions instead of searching for the most probable.")
    top_p: float = option(1.0, "Draw among the likeliest words that hold this much probability.")
    temperature: float = option(1.0, "Below 1 the likely words become likelier to be drawn.")
    seed: int = option(0, "Seed of the draw.")
    n_best: int = option(1, "Captions for each image, best first, each after its log-probability.")
    views: int = option(1, "Views of each image, 1 to 6, whose predictions are averaged.")
    consensus: int = option(
        0, "Choose, of the captions found, the best by what this many similar training images say."
    )
    consensus_precision: float = option(
        0.0, "Weight of BLEU's precision in that choice, beside CIDEr-D: 2 trades some of it."
    )

    def __post_init__(self) -> None:
        require_at_least(
            1,
            beam=self.beam,
            max_length=self.max_length,
            min_length=self.min_length,
            beam_groups=self.beam_groups,
            n_best=self.n_best,
        )
        require(1 <= self.views <= MAX_VIEWS, f"views must be 1 to {MAX_VIEWS}, got {self.views}.")
        require_at_least(
            0,
            length_penalty=self.length_penalty,
            no_repeat_ngram=self.no_repeat_ngram,
            diversity=self.diversity,
            consensus=self.consensus,
            consensus_precision=self.consensus_precision,
        )
        require_seed(self.seed)
        require_above_0(temperature=self.temperature)
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        require(
            self.max_length is None or self.min_length <= self.max_length,
            f"min_length {self.min_length} is above max_length {self.max_length}.",
        )
        require(
            self.beam % self.beam_groups == 0,
            f"beam must be a multiple of beam_groups {self.beam_groups}, got {self.beam}.",
        )
        require(
            self.sample or self.n_best <= self.beam,
            f"n_best must be at most the beam's {self.beam}, got {self.n_best}.",
        )
        require(
            self.sample or (self.top_p == 1 and self.temperature == 1),
            "--top-p and --temperature say how to draw; add --sample.",
        )
        require(
            self.beam_groups > 1 or self.diversity == DecodingOptions.diversity,
            "--diversity is between groups of beams; add --beam-groups 2 or more.",
        )
        require(
            not self.sample or self.beam_groups == 1,
            "--sample and --beam-groups exclude each other; give one.",
        )
        require(
            not self.consensus or self.num_candidates > 1,
            "--consensus chooses among several captions: "
            + ("add --n-best N, the draws." if self.sample else "give --beam 2 or more."),
        )
        require(
            self.consensus > 0 or not self.consensus_precision,
            "--consensus-precision says how to choose; add --consensus 1000.",
        )

    @property
    def num_candidates(self) -> int:
        """Captions to find for each image, of which `n_best` are given."""
        return self.beam if self.consensus and not self.sample else self.n_best

    @property
    def length_limit(self) -> int:
        """`max_length`, or its default for words."""
        return LENGTH_LIMITS["words"] if self.max_length is None else self.max_length

    def for_unit(self, unit: str) -> Self:
        """The same for a vocabulary of "words" or "pieces", whose captions are longer.

        Raises:
            ConfigError: `min_length` is above the limit.
        """
        return replace(self, max_length=self.max_length or LENGTH_LIMITS[unit])

    @property
    def decoding_name(self) -> str:
        """The options in a folder's name: `beam3`, `beam5-ngram2` where one is not the default."""
        parts = ["sample" if self.sample else f"beam{self.beam}"]
        for name, short in SHORT_NAMES.items():
            value = getattr(self, name)
            if value != getattr(DecodingOptions, name):
                parts.append(f"{short}{value}")
        if self.beam_groups > 1:
            parts.append(f"diversity{self.diversity}")
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DecodingOptions, StageConfig):
    """Options of `showtell eval`."""

    run: list[str] | None = option(
        None, "Run to evaluate; default the newest. Give several to average their predictions."
    )
    pool: bool = option(
        False, "Let each run search alone, and --consensus choose among the captions of all."
    )
    dataset: str | None = option(None, "Take runs of this dataset only: without --run its newest.")
    split: str | None = option(
        None, "train, val or test; default test where the dataset has one, else val."
    )
    batch_size: int | None = option(
        None, "Images decoded together; default 500, fewer for wide beams or many draws."
    )
    clip: Path | None = option(None, "Folder of a CLIP as transformers saves it: adds CLIPScore.")
    num_samples: int = option(5, "Captions shown at the end.")
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")
    precision: str = option("auto", "auto, fp32, bf16 or fp16; auto takes bf16 where it is fast.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.run, str):
            object.__setattr__(self, "run", [self.run])
        twice = {run for run in self.run or () if (self.run or []).count(run) > 1}
        require(
            not twice, f"--run {', '.join(sorted(twice))} is given twice: it would count twice."
        )
        require(
            not self.pool or (self.consensus > 0 and len(self.run or ()) > 1),
            "--pool is for --consensus to choose among the captions of several runs; add "
            "--consensus 1000, and a second --run.",
        )
        if self.split is not None:
            require_choice("split", self.split, ("train", "val", "test"))
        require_at_least(1, batch_size=self.batch_size)
        require_at_least(0, num_samples=self.num_samples)
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))

    @property
    def decoding_name(self) -> str:
        """As that of `DecodingOptions`, and whether the runs search alone."""
        return super().decoding_name + ("-pool" if self.pool else "")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(DecodingOptions, StageConfig):
    """Options of `showtell caption`."""

    images: list[Path] = argument("Image files, or folders of them.")
    run: str | None = option(None, "Run to use; default the newest.")
    weights: str | None = option(None, "Where the encoder's weights file is now, if it was moved.")
    device: str = option("auto", "cpu, cuda, cuda:1, …; auto takes the GPU where there is one.")


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


# Stage → the function that measures it, in the package `bench`.
BENCH_STAGES = {
    "prepare": "captions:bench_prepare",
    "features": "caching:bench_features",
    "features-coco": "caching:bench_features_coco",
    "shards": "caching:bench_shards",
    "train": "training:bench_train",
    "decode": "decoding:bench_decode",
    "scorers": "captions:bench_scorers",
}
# The same at COCO's size, in the order in which they build on each other.
COCO_SCALE_STAGES = {
    "draw": "coco_scale:bench_draw",
    "prepare": "captions:bench_prepare",
    "memory": "memory:bench_memory",
    "epoch": "training:bench_epoch",
    "decode": "decoding:bench_decode",
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig(DatasetConfig):
    """Options of `showtell bench`."""

    stages: list[str] | None = optional_argument(
        f"Stages to measure, of {', '.join(BENCH_STAGES)}; with --coco-scale of "
        f"{', '.join(COCO_SCALE_STAGES)}. Default all."
    )
    dataset: str = option("auto", "A prepared dataset; auto takes the one with most captions.")
    features: str | None = option(None, "Which of the dataset's features; default the newest.")
    run: str | None = option(None, "Run to decode with; default the newest without attention.")
    seconds: float = option(10.0, "Roughly how long each stage is measured.")
    coco_scale: bool = option(
        False, "Draw captions and features of COCO's size: prepare, memory, epoch, decode 5,000."
    )

    @property
    def known_stages(self) -> dict[str, str]:
        """Stage → the function that measures it."""
        return COCO_SCALE_STAGES if self.coco_scale else BENCH_STAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages or ():
            require_choice("stage", stage, tuple(self.known_stages))
        require(self.seconds > 0, f"seconds must be above 0, got {self.seconds}.")
