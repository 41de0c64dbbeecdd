"""How captions are decoded: the options that `eval`, `caption` and validation share."""

from dataclasses import dataclass, replace
from typing import Self

from ...features.config import MAX_VIEWS
from ...pipeline.stage.options import (
    option,
    require,
    require_above_0,
    require_at_least,
    require_seed,
)

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
