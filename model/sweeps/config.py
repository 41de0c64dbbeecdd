"""Options of `showtell sweep`."""

from dataclasses import dataclass
from pathlib import Path

from ...pipeline.stage.options import StageConfig, argument, option


@dataclass(frozen=True, kw_only=True)
class SweepConfig(StageConfig):
    """Options of `showtell sweep`."""

    file: Path = argument(
        "TOML file with the tables train (fixed options), grid (lists of values) and search "
        "(ranges of numbers). Its name is the name of the sweep.",
        metavar="FILE",
    )
    workers: int = option(
        1,
        "Runs to train at the same time. They share the cores, the memory for features, and the "
        "GPUs if there are several.",
        at_least=1,
        limit=1000,
        group="Hardware",
    )
    dry_run: bool = option(
        False, "List the runs and the commands that train them, and exit.", group="Output"
    )
