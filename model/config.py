"""Options of `showtell train` and `eval`."""

from dataclasses import dataclass, field
from pathlib import Path

from ..features.config import MAX_VIEWS, device_option, precision_option
from ..pipeline.stage.options import (
    MAX_SEED,
    DatasetConfig,
    StageConfig,
    option,
    require,
)
from .decoders.registry import CELLS, DECODERS, RECURRENT_CELLS, check_hidden_size
from .generation.options import MAX_BEAM, DecodingOptions
from .presets import TRAIN_PRESETS
from .run_name import check_run_name
from .scst_reward import check_reward

# Limits far above any useful value, low enough to prevent overflow.
MAX_SIZE = 16_384
MAX_BATCH_SIZE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DatasetConfig):
    """Options of `showtell train`.

    Attributes:
        given: names of the options that the user has set explicitly, even to their defaults.
    """

    features: str | None = option(
        None,
        "Cached features to train on, such as resnet50-caffe. Default: the newest.",
        group="Input",
        affects_result=False,
        metavar="NAME",
    )
    views: int | None = option(
        None,
        "Number of cached views to draw from at random. Default: all.",
        at_least=1,
        at_most=MAX_VIEWS,
        group="Input",
    )
    neighbours: int = option(
        0,
        "Give the decoder the words that describe this many similar training images; needs "
        "'showtell neighbours'. 0 turns it off.",
        at_least=0,
        limit=100_000,
        group="Input",
        metavar="K",
    )
    extra_captions: Path | None = option(
        None,
        "File with more captions of training images, as for 'showtell score'.",
        group="Input",
        metavar="FILE",
    )
    word_vectors: Path | None = option(
        None,
        "Text file of GloVe or word2vec vectors to initialise the word embeddings.",
        group="Input",
        metavar="FILE",
    )
    init: str | None = option(
        None,
        "Run or bundle to start from: a name, or its folder. Its weights and its decoder are used, "
        "on its dataset or on the one given by --dataset.",
        group="Input",
        metavar="RUN|DIR",
    )
    cell: str = option(
        "gru",
        "Recurrent cell; or transformer: it attends to the grid, which needs 'showtell features "
        "--grid'.",
        choices=CELLS,
        group="Model",
    )
    attention: str = option(
        "none",
        "Attention over the feature grid; needs 'showtell features --grid'.",
        choices=tuple(DECODERS),
        group="Model",
    )
    attention_size: int = option(
        256,
        "Size of the hidden layer that scores grid cells.",
        at_least=1,
        limit=MAX_SIZE,
        group="Model",
    )
    hidden_size: int = option(
        512,
        "Size of the hidden state; of a transformer, the width of its layers, in heads of 64.",
        at_least=1,
        limit=MAX_SIZE,
        group="Model",
    )
    embed_size: int = option(
        512,
        "Size of the word embeddings; projected if --hidden-size differs.",
        at_least=1,
        limit=MAX_SIZE,
        group="Model",
    )
    num_layers: int = option(1, "Number of layers.", at_least=1, limit=100, group="Model")
    image_as: str = option(
        "first-input",
        "Where the image enters the decoder.",
        choices=("first-input", "initial-state"),
        group="Model",
    )
    tie_embeddings: bool = option(
        True,
        "Use the word embeddings as the output layer too; --no-tie-embeddings learns both.",
        group="Model",
    )
    preset: str | None = option(
        None,
        f"Recipe that sets several options: {', '.join(TRAIN_PRESETS)}. Options given explicitly "
        "win.",
        choices=tuple(TRAIN_PRESETS),
        group="Training",
        metavar="NAME",
        affects_result=False,
    )
    epochs: int = option(
        18, "Passes over all captions.", at_least=1, limit=100_000, group="Training"
    )
    batch_size: int = option(
        128, "Captions per step.", at_least=1, limit=MAX_BATCH_SIZE, group="Training"
    )
    learning_rate: float = option(1e-3, "Peak learning rate.", above=0, limit=100, group="Training")
    schedule: str = option(
        "one-cycle",
        "Learning-rate schedule.",
        choices=("one-cycle", "cosine", "constant"),
        group="Training",
    )
    weight_decay: float = option(
        0.01,
        "AdamW's weight decay; applies to matrices only.",
        at_least=0,
        limit=100,
        group="Training",
    )
    grad_clip: float = option(
        5.0, "Maximum gradient norm; 0 turns clipping off.", at_least=0, limit=1e6, group="Training"
    )
    window: int | None = option(
        None,
        "Images whose features are in memory at a time; captions are shuffled within such a window."
        " 0 means all. Default: all if they fit into memory, else as many as fit.",
        at_least=0,
        group="Training",
        metavar="IMAGES",
    )
    dropout: float = option(
        0.5,
        "Dropout on the decoder's inputs and outputs.",
        at_least=0,
        below=1,
        group="Training",
    )
    label_smoothing: float = option(
        0.1,
        "Share of the target probability spread over all words.",
        at_least=0,
        below=1,
        group="Training",
    )
    scheduled_sampling: float = option(
        0.0,
        "Final share of inputs taken from the model's own predictions; it rises linearly from 0.",
        at_least=0,
        below=1,
        group="Training",
    )
    ema: float = option(
        0.0,
        "Decay of a running mean of the weights, which is validated and saved; 0 turns it off.",
        at_least=0,
        below=1,
        group="Training",
    )
    seed: int = option(
        0,
        "Random seed of weights, batches and dropout.",
        at_least=0,
        at_most=MAX_SEED,
        group="Training",
        metavar="INTEGER >= 0",
    )
    scst: bool = option(
        False,
        "Continue training --init RUN with the scores of sampled captions as the reward "
        "(self-critical training).",
        group="Self-critical training",
    )
    scst_reward: str = option(
        "CIDEr-D=1",
        "Scores in the reward and their weights, such as CIDEr-D=1,METEOR=5,Bleu_4=1. Consensus is "
        "the CIDEr-D expected from the references of similar images.",
        check=check_reward,
        group="Self-critical training",
        metavar="NAME=WEIGHT,...",
    )
    scst_samples: int = option(
        5,
        "Captions sampled per image and step.",
        at_least=1,
        limit=1000,
        group="Self-critical training",
    )
    scst_baseline: str = option(
        "mean",
        "Baseline of the reward: the mean of the other samples, or the greedy caption.",
        choices=("mean", "greedy"),
        group="Self-critical training",
    )
    xe_weight: float = option(
        0.0,
        "Weight of the cross-entropy loss beside the reward.",
        at_least=0,
        at_most=1,
        group="Self-critical training",
    )
    monitor: str = option(
        "CIDEr",
        "Validation score that selects the best epoch.",
        choices=("CIDEr", "Bleu_4", "METEOR"),
        group="Validation",
    )
    # Off by default: an annealed learning rate gains most in the last epochs, after any plateau.
    patience: int = option(
        0,
        "Stop after this many epochs without improvement; 0 never stops early.",
        at_least=0,
        group="Validation",
    )
    val_images: int = option(
        5000, "Caption at most this many validation images.", at_least=1, group="Validation"
    )
    val_beam: int = option(
        1, "Beam size of the validation.", at_least=1, limit=MAX_BEAM, group="Validation"
    )
    run: str | None = option(
        None,
        "Name of the run. Default: DATASET-CELL or DATASET-CELL-ATTENTION; with --init, "
        "RUN-tuned or RUN-scst.",
        check=check_run_name,
        group="Output",
        affects_result=False,
        metavar="RUN",
    )
    resume: bool = option(
        False,
        "Continue an interrupted run from its last checkpoint.",
        group="Output",
        affects_result=False,
    )
    save_every_s: float = option(
        300.0,
        "Seconds between checkpoints within an epoch.",
        at_least=0,
        group="Output",
        affects_result=False,
    )
    device: str = device_option()
    precision: str = precision_option()
    given: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.scst or self.init is not None,
            "--scst continues the training of a run; add --init RUN.",
        )
        require(
            not self.scst or self.scst_baseline == "greedy" or self.scst_samples > 1,
            "--scst-baseline mean needs --scst-samples 2 or more, got 1.",
        )
        self.require_not_both("init", "word_vectors", "RUN already has word embeddings")
        self.require_not_both("scst", "scheduled_sampling", "--scst samples whole captions")
        self.require_unused(
            "xe_weight",
            "scst_reward",
            "scst_samples",
            "scst_baseline",
            unless=self.scst,
            needs="--scst --init RUN",
        )
        self.require_unused(
            "attention",
            "attention_size",
            "image_as",
            unless=self.cell in RECURRENT_CELLS,
            needs=f"--cell gru, lstm or rnn, not {self.cell}",
        )
        rule = check_hidden_size(self.cell, self.hidden_size)
        require(rule is None, f"--hidden-size must {rule}, got {self.hidden_size}.")
        has_attention = self.attention != "none"
        self.require_unused(
            "attention_size", unless=has_attention, needs="--attention soft or adaptive"
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DecodingOptions, StageConfig):
    """Options of `showtell eval`."""

    run: list[str] | None = option(
        None,
        "Run to evaluate; repeat the option to average the predictions of several. Default: the "
        "newest.",
        group="Input",
        metavar="RUN",
    )
    dataset: str | None = option(
        None,
        "Without --run, take the newest run of this dataset.",
        group="Input",
        metavar="NAME",
        affects_result=False,
    )
    split: str | None = option(
        None,
        "Split to caption. Default: test if the dataset has one, else val.",
        choices=("train", "val", "test"),
        group="Input",
    )
    pool: bool = option(
        False,
        "Search with each run separately; --consensus then re-ranks all candidates together.",
        group="Re-ranking",
    )
    official: bool = option(
        False,
        "Also run pycocoevalcap's Java scorers, and fail if a score differs by more than 1e-6. "
        "Needs Java; the extra java installs one.",
        group="Scoring",
        affects_result=False,
    )
    spice: bool = option(
        False,
        "Also compute SPICE; needs Java 8 to 14 and Stanford's parser.",
        group="Scoring",
        affects_result=False,
    )
    clip: Path | None = option(
        None,
        "Also compute CLIPScore and RefCLIPScore with the CLIP or SigLIP model that transformers "
        "saved in this folder.",
        group="Scoring",
        affects_result=False,
        envvar="SHOWTELL_CLIP",
        metavar="DIR",
    )
    num_samples: int = option(
        5,
        "Captions to print at the end as examples.",
        at_least=0,
        group="Output",
        affects_result=False,
    )
    report: bool = option(
        False,
        "Also write a report, as 'showtell report' does.",
        group="Output",
        affects_result=False,
    )
    batch_size: int | None = option(
        None,
        "Images decoded together. Default: 500, fewer with wide beams or many samples.",
        at_least=1,
        limit=MAX_BATCH_SIZE,
        group="Hardware",
        affects_result=False,
    )
    device: str = device_option()
    precision: str = precision_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        runs = self.run or []
        twice = sorted({run for run in runs if runs.count(run) > 1})
        require(not twice, f"--run {', '.join(twice)} is given twice.")
        require(
            not self.pool or (self.consensus > 0 and len(runs) > 1),
            "--pool needs several runs and --consensus, which re-ranks their candidates; add "
            "--consensus 1000 and another --run.",
        )

    @property
    def decoding_name(self) -> str:
        """Name of an evaluation's folder, which also tells whether `--pool` was given."""
        return super().decoding_name + ("-pool" if self.pool else "")
