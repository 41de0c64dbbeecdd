"""Options for decoding captions, shared by `eval`, `caption` and the validation during training."""

from dataclasses import dataclass, replace
from typing import Self, TypedDict

from ...features.config import MAX_VIEWS
from ...pipeline.stage.options import MAX_SEED, Options, flag, option, require
from ..presets import DECODING_PRESETS

# Option → its name in the folder of an evaluation.
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

# Limits far above any useful value, low enough to prevent overflow and too long file names.
MAX_BEAM = 10_000
MAX_TOKENS = 1000

# Default maximum length by the unit of the vocabulary: one word may take several subwords or
# characters.
LENGTH_LIMITS = {"words": 20, "pieces": 30, "characters": 40}


class DecodingKeywords(TypedDict, total=False):
    """The fields of `DecodingOptions` as keyword arguments, for type checkers and editors."""

    preset: str | None
    beam: int
    length_penalty: float
    max_length: int | None
    min_length: int
    no_repeat_ngram: int
    beam_groups: int
    diversity: float
    n_best: int
    views: int
    sample: bool
    top_p: float
    temperature: float
    seed: int
    consensus: int
    consensus_precision: float


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(Options):
    """How captions are found: by beam search, or by sampling."""

    preset: str | None = option(
        None,
        "Recipe that sets several decoding options; options given explicitly win.",
        choices=tuple(DECODING_PRESETS),
        affects_result=False,
        group="Decoding",
    )
    beam: int = option(
        3, "Beam size; 1 is greedy search.", at_least=1, limit=MAX_BEAM, group="Decoding"
    )
    length_penalty: float = option(
        0.7,
        "Exponent a of the score: log-probability / length^a. 0 ranks by log-probability alone.",
        at_least=0,
        limit=10,
        group="Decoding",
    )
    max_length: int | None = option(
        None,
        "Maximum caption length in tokens. Default: 20 words, 30 subwords or 40 characters.",
        at_least=1,
        limit=MAX_TOKENS,
        group="Decoding",
    )
    min_length: int = option(
        1, "Minimum caption length in tokens.", at_least=1, limit=MAX_TOKENS, group="Decoding"
    )
    no_repeat_ngram: int = option(
        0,
        "Never repeat a sequence of this many tokens within a caption; 0 allows repeats.",
        at_least=0,
        limit=MAX_TOKENS,
        group="Decoding",
    )
    beam_groups: int = option(
        1,
        "Number of groups for diverse beam search; --beam must be a multiple of it.",
        at_least=1,
        group="Decoding",
    )
    diversity: float = option(
        0.5,
        "Penalty for a token, per beam of earlier groups that chose it at the same step.",
        at_least=0,
        limit=1e6,
        group="Decoding",
    )
    n_best: int = option(
        1,
        "Captions to return per image, best first.",
        at_least=1,
        limit=MAX_BEAM,
        group="Decoding",
    )
    views: int = option(
        1,
        "Average the predictions over this many views of each image.",
        at_least=1,
        at_most=MAX_VIEWS,
        group="Decoding",
    )
    sample: bool = option(
        False, "Sample captions instead of searching for the most probable.", group="Sampling"
    )
    top_p: float = option(
        1.0,
        "Sample only from the most probable tokens that together have this probability.",
        above=0,
        at_most=1,
        group="Sampling",
    )
    temperature: float = option(
        1.0,
        "Divide the logits by this; below 1 favours probable tokens.",
        above=0,
        limit=1000,
        group="Sampling",
    )
    seed: int = option(
        0,
        "Random seed for sampling.",
        at_least=0,
        at_most=MAX_SEED,
        group="Sampling",
        metavar="INTEGER >= 0",
    )
    consensus: int = option(
        0,
        "Re-rank the candidates by agreement with the captions of this many similar training "
        "images; 0 turns it off.",
        at_least=0,
        limit=10_000,
        group="Re-ranking",
    )
    consensus_precision: float = option(
        0.0,
        "Weight of n-gram precision (BLEU) beside CIDEr-D in --consensus.",
        at_least=0,
        limit=1000,
        group="Re-ranking",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_length is None or self.min_length <= self.max_length,
            f"--min-length {self.min_length} is above --max-length {self.max_length}.",
        )
        require(
            self.beam % self.beam_groups == 0,
            f"--beam must be a multiple of --beam-groups {self.beam_groups}, got {self.beam}.",
        )
        require(
            self.sample or self.n_best <= self.beam,
            f"--n-best must be at most --beam {self.beam}, got {self.n_best}.",
        )
        self.require_not_both("sample", "beam_groups")
        self.require_unused("top_p", "temperature", unless=self.sample, needs="--sample")
        self.require_unused(
            "diversity", unless=self.beam_groups > 1, needs="--beam-groups 2 or more"
        )
        self.require_unused(
            "consensus_precision", unless=self.consensus > 0, needs="--consensus N, such as 1000"
        )
        missing = f"{flag('n_best')} 2" if self.sample else f"{flag('beam')} 2"
        require(
            not self.consensus or self.num_candidates > 1,
            f"--consensus chooses among several captions per image; add {missing} or more.",
        )

    @property
    def num_candidates(self) -> int:
        """Number of captions to search for per image, before re-ranking keeps `n_best`."""
        return self.beam if self.consensus and not self.sample else self.n_best

    @property
    def length_limit(self) -> int:
        """`max_length`, or its default for a vocabulary of words."""
        return LENGTH_LIMITS["words"] if self.max_length is None else self.max_length

    def for_unit(self, unit: str) -> Self:
        """Return these options with `max_length` filled in.

        Args:
            unit: of the vocabulary, "words", "pieces" (subwords) or "characters".

        Raises:
            ConfigError: `min_length` is above that length.
        """
        return replace(self, max_length=self.max_length or LENGTH_LIMITS[unit])

    @property
    def decoding_name(self) -> str:
        """Name of an evaluation's folder: the options that differ from their defaults.

        Examples: `beam3`, `beam5-ngram2`, `sample-top0.9`.
        """
        parts = ["sample" if self.sample else f"beam{self.beam}"]
        for name, short in SHORT_NAMES.items():
            value = getattr(self, name)
            if value != getattr(DecodingOptions, name):
                parts.append(f"{short}{value}")
        if self.beam_groups > 1:
            parts.append(f"diversity{self.diversity}")
        return "-".join(parts)
