"""Recipes: options of `showtell train` that go together, by the name given to `--preset`.

What is given on the command line beside a preset wins over it.
"""

from typing import Any

from .config import require_choice

PRESETS: dict[str, dict[str, Any]] = {
    # Show and Tell on cached views of each image; the running mean of the weights is kept.
    "views": {"views": 4, "ema": 0.998},
    # The same with a look at the 7×7 grid before each word.
    "soft-attention": {"views": 4, "ema": 0.998, "attention": "soft", "attention_size": 128},
    "adaptive-attention": {
        "views": 4,
        "ema": 0.998,
        "attention": "adaptive",
        "attention_size": 128,
    },
    # Self-critical training of a run; the cross-entropy beside it keeps the grammar.
    "self-critical": {
        "scst": True,
        "views": 4,
        "ema": 0.998,
        "epochs": 6,
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "xe_weight": 0.2,
    },
}


def apply_preset(name: str, values: dict[str, Any], given: tuple[str, ...]) -> dict[str, Any]:
    """Fill in the options of a preset.

    Args:
        name: of the preset.
        values: all options.
        given: those that the user has set; they stay.

    Raises:
        ConfigError: there is no such preset.
    """
    require_choice("preset", name, tuple(PRESETS))
    return values | {k: v for k, v in PRESETS[name].items() if k not in given}
