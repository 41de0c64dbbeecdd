"""Presets: named sets of options that work well together, chosen with `--preset`.

Options given on the command line override those of a preset.
"""

from typing import Any

from ..pipeline.stage.options import require_choice

Presets = dict[str, dict[str, Any]]

# For `showtell eval` and `showtell caption`.
DECODING_PRESETS: Presets = {
    # A wide beam whose candidates are re-ranked; needs `showtell features --views 4`.
    "consensus": {"beam": 50, "length_penalty": 1.0, "views": 4, "consensus": 1000},
}

# For `showtell train`.
TRAIN_PRESETS: Presets = {
    # Show and Tell on several views of each image, with a moving average (EMA) of the weights.
    "views": {"views": 4, "ema": 0.998},
    # The same with attention over the 7×7 grid.
    "soft-attention": {"views": 4, "ema": 0.998, "attention": "soft", "attention_size": 128},
    "adaptive-attention": {
        "views": 4,
        "ema": 0.998,
        "attention": "adaptive",
        "attention_size": 128,
    },
    # A Transformer over the same grid.
    "transformer": {
        "views": 4,
        "ema": 0.998,
        "cell": "transformer",
        "num_layers": 2,
        "dropout": 0.3,
        "learning_rate": 5e-4,
    },
    # Self-critical training of an existing run; some cross-entropy loss keeps captions grammatical.
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
    """Return `values` with the options of a preset filled in.

    Args:
        presets: the presets of the command.
        name: name of the preset.
        values: option → value, for all options.
        given: options that the user has set; they keep their values.

    Raises:
        ConfigError: the preset does not exist.
    """
    require_choice("--preset", name, tuple(presets))
    return values | {k: v for k, v in presets[name].items() if k not in given}
