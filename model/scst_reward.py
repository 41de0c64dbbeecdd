"""The option `--scst-reward`: scores and their weights, such as `CIDEr-D=1,METEOR=5`."""

import math

REWARDS = ("CIDEr-D", "Consensus", "METEOR", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")


def parse_reward(reward: str) -> dict[str, float]:
    """Return name of the score → weight.

    Raises:
        ValueError: a name is unknown or given twice, or a weight is not a number above 0.
    """
    weights: dict[str, float] = {}
    for part in reward.split(","):
        name, _, weight = map(str.strip, part.partition("="))
        if name not in REWARDS or name in weights or not 0 < float(weight) < math.inf:
            raise ValueError(part)
        weights[name] = float(weight)
    return weights


def check_reward(reward: str) -> str | None:
    """Return None if `reward` can be parsed, else the rule that it breaks."""
    try:
        parse_reward(reward)
    except ValueError:
        return (
            f"list scores, each with a weight above 0, such as CIDEr-D=1,METEOR=5. The scores are "
            f"{', '.join(REWARDS)}"
        )
    return None
