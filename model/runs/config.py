"""Options of `showtell runs`."""

from dataclasses import dataclass

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
