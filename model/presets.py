"""Recipes: options of a stage that go together, by the name given to its `--preset`.

What is given on the command line beside a preset wins over it.
"""

from typing import Any

from ..pipeline.stage.options import require_choice

Presets = dict[str, dict[str, Any]]

# Of `showtell eval` and `showtell caption`.
DECODING_PRESETS: Presets = {
    # A wide beam, of which similar training images choose; needs `showtell features --views 4`.
    "consensus": {"beam": 50, "length_penalty": 1.0, "views": 4, "consensus": 1000},
}

# Of `showtell train`.
TRAIN_PRESETS: Presets = {
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
        "epochs": 3,
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "xe_weight": 0.2,
    },
}


def apply_preset(
    presets: Presets, name: str, values: dict[str, Any], given: tuple[str, ...]
) -> dict[str, Any]:
    """Fill in the options of a preset.

    Args:
        presets: of the stage.
        name: of the preset.
        values: all options.
        given: those that the user has set; they stay.

    Raises:
        ConfigError: there is no such preset.
    """
    require_choice("preset", name, tuple(presets))
    return values | {k: v for k, v in presets[name].items() if k not in given}
