"""Options declared as dataclass fields, and the checks on their values."""

import math
import re
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")


PLAIN_NAME = r"[^./\\][^/\\]*"


RESERVED = ("runs", "ensembles", "bench")  # what lies beside the datasets in the data folder


def option(default: T, help: str) -> T:
    """Declare a field with its default and the line that `--help` shows for it."""
    value: T = field(default=default, metadata={"help": help})
    return value


def argument(help: str) -> Any:
    """Declare a field that the command line takes by its place, with its line for `--help`."""
    return field(metadata={"help": help, "by_place": True})


def optional_argument(help: str) -> Any:
    """Declare a field like `argument`, which may be left out."""
    return field(default=None, metadata={"help": help, "by_place": True})


def options_of(config_class: "type[StageConfig]") -> "list[Field[Any]]":
    """The fields of a config that are options, in order."""
    return [declared for declared in fields(config_class) if "help" in declared.metadata]


def require(condition: bool, message: str) -> None:
    """Refuse a value that cannot be.

    Raises:
        ConfigError: with `message`, where `condition` is false.
    """
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of `choices`."""
    require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def require_at_least(least: float, **values: float | None) -> None:
    """Refuse each given value below `least` or infinite; None passes."""
    for name, value in values.items():
        require(
            value is None or least <= value < math.inf,
            f"{name} must be at least {least:g}{' and finite' * (value == math.inf)}, got {value}.",
        )


def require_above_0(**values: float) -> None:
    """Refuse each given value that is not above 0, or infinite."""
    for name, value in values.items():
        require(
            0 < value < math.inf,
            f"{name} must be above 0{' and finite' * (value == math.inf)}, got {value}.",
        )


def require_fraction(**values: float) -> None:
    """Refuse each given value outside 0 ≤ value < 1."""
    for name, value in values.items():
        require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}.")


def require_seed(seed: int) -> None:
    """Refuse a seed that the generators cannot take, also after sums and products of it."""
    require(0 <= seed < 2**32, f"seed must be 0 to 4294967295, got {seed}.")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What every stage has: the root under which all files live."""

    data: Path = option(Path("data"), "Folder that holds datasets, features and runs.")

    def as_json(self) -> dict[str, Any]:
        """The options as JSON values, without `data`, which names a place and not a choice."""
        names = {option.name for option in options_of(type(self))} - {"data"}
        values = {name: value for name, value in asdict(self).items() if name in names}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(StageConfig):
    """A stage that works on one dataset."""

    dataset: str = option(
        "coco2014", "coco2014, coco2017, flickr8k, flickr30k, scenes, or a name of your own."
    )

    @property
    def dataset_dir(self) -> Path:
        """`data/<dataset>`."""
        return self.data / self.dataset

    @property
    def captions_dir(self) -> Path:
        """`data/<dataset>/captions`, written by prepare."""
        return self.dataset_dir / "captions"

    def __post_init__(self) -> None:
        bad = not re.fullmatch(PLAIN_NAME, self.dataset)
        reserved = self.dataset in RESERVED
        require(not reserved, f"dataset cannot be {self.dataset!r}: that folder is showtell's own.")
        require(not bad, f"dataset must be a plain name, got {self.dataset!r}.")
