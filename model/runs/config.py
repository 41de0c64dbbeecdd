"""Options of `showtell runs`, `status` and `verify`."""

from dataclasses import dataclass
from pathlib import Path

from ...pipeline.stage.options import StageConfig, argument, option


@dataclass(frozen=True, kw_only=True)
class RunsConfig(StageConfig):
    """Options of `showtell runs`."""

    names: list[str] | None = argument(
        "Runs to list, such as 'sweep-*'. Default: all.", metavar="NAME...", required=False
    )
    sort: str | None = option(
        None,
        "Column to sort by, such as CIDEr, val_CIDEr or seed: highest first. Default: by name.",
        group="Output",
        metavar="COLUMN",
    )
    csv: str | None = option(
        None, "Write all columns as CSV to this file; - is stdout.", group="Output", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class StatusConfig(StageConfig):
    """Options of `showtell status`."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(StageConfig):
    """Options of `showtell verify`."""

    paths: list[Path] | None = argument(
        "Files or folders to verify, or bundles. Default: everything in the data folder.",
        metavar="PATH...",
        required=False,
    )
