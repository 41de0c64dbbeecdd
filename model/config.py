"""Options of `showtell train`, `eval` and `compare`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..features.config import MAX_VIEWS
from ..pipeline.stage.options import (
    PLAIN_NAME,
    DatasetConfig,
    StageConfig,
    argument,
    option,
    require,
    require_above_0,
    require_at_least,
    require_choice,
    require_fraction,
    require_seed,
)
from .generation.options import DecodingOptions


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
class CompareConfig(StageConfig):
    """Options of `showtell compare`."""

    eval_a: str = argument("An evaluation: its folder, RUN/val-beam3, or RUN where it has one.")
    eval_b: str = argument("Another evaluation of the same images.")
    draws: int = option(10_000, "Random draws of the images.")
    seed: int = option(0, "Seed of the draws.")

    def __post_init__(self) -> None:
        require_at_least(100, draws=self.draws)
        require_at_least(0, seed=self.seed)
