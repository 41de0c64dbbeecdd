"""The file of a sweep: the options of its runs, and their names.

[train]                     # options of `showtell train` that all runs share
dataset = "flickr8k"

[grid]                      # all combinations of these values
attention = ["none", "soft"]
seed = [0, 1, 2]            # scores are averaged over the seeds

[search]                    # numbers to choose by TPE, for each combination of the grid
trials = 20
learning-rate = { low = 1e-4, high = 1e-2, log = true }
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...pipeline.stage.config_file import read_option, read_toml
from ...pipeline.stage.errors import ConfigError
from ...pipeline.stage.options import (
    flag,
    options_of,
    require,
    show_value,
    suggest,
    value_type,
)
from ..config import TrainConfig
from ..presets import TRAIN_PRESETS, apply_preset
from ..run_name import check_run_name
from ..runs.list_runs import read_options

Values = dict[str, Any]  # option of `showtell train` → value

TABLES = ("train", "grid", "search")
OPTIONS = {f.name: f for f in options_of(TrainConfig) if f.name not in ("data", "run", "resume")}
MAX_NAME_BYTES = 200  # of a run; a folder's name may have 255
DIGITS = 3  # significant digits of the numbers that a search chooses


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers to search.

    Attributes:
        low: the smallest.
        high: the largest.
        log: whether to search on a logarithmic scale.
        is_integer: whether the option takes only integers.
    """

    low: float
    high: float
    log: bool
    is_integer: bool

    def round(self, value: float) -> float:
        """Return a number in the range with few digits, because it becomes part of a name."""
        if self.is_integer:
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train.

    Attributes:
        path: of the file.
        data: root of all files.
        fixed: options that all runs share.
        grid: option → values; all combinations are trained.
        search: option → range.
        num_trials: settings to train for each combination of the grid, apart from the seed.
    """

    path: Path
    data: Path
    fixed: Values
    grid: dict[str, list[Any]]
    search: dict[str, Range]
    num_trials: int

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.path.stem

    @property
    def combinations(self) -> list[Values]:
        """All combinations of the grid, apart from the seed."""
        names = [name for name in self.grid if name != "seed"]
        values = itertools.product(*(self.grid[name] for name in names))
        return [dict(zip(names, combination, strict=True)) for combination in values]

    def runs_of(self, setting: Values) -> list[Values]:
        """Return the options of the runs of a setting: one for each seed."""
        seeds = self.grid.get("seed")
        return [setting] if seeds is None else [setting | {"seed": seed} for seed in seeds]

    def run_dir(self, values: Values) -> Path:
        """Return the folder of a run, such as `data/runs/sweep-attention=soft-seed=0`.

        Args:
            values: its options in the grid and the search.
        """
        ordered = [name for name in OPTIONS if name in values]
        parts = [f"{name.replace('_', '-')}={_format(values[name])}" for name in ordered]
        return self.data / "runs" / "-".join([self.name, *parts])

    def train_config(self, values: Values) -> TrainConfig:
        """Return the options of a run, as `showtell train` reads them from the command line.

        Raises:
            ConfigError: the options exclude each other.
        """
        options = self.fixed | values
        given = tuple(options)
        if (preset := options.get("preset")) is not None:
            options = apply_preset(TRAIN_PRESETS, preset, options, given)
        run = self.run_dir(values).name
        try:
            return TrainConfig(data=self.data, run=run, given=given, **options)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {describe(values) or '[train]'}: {error}") from None

    def find_settings(self, combination: Values) -> Iterator[Values]:
        """Yield the settings of earlier runs: what a search chose for a combination of the grid.

        The folder of a run holds its options, so a sweep needs no other record.
        """
        names = [name for name in (*self.grid, *self.search) if name != "seed"]
        found = list[Values]()
        for folder in sorted((self.data / "runs").glob(f"{self.name}-*")):
            if (options := read_options(folder)) is None:
                continue
            setting = {name: options[name] for name in names}
            named = setting | ({"seed": options["seed"]} if "seed" in self.grid else {})
            is_own = self.run_dir(named) == folder and setting.items() >= combination.items()
            inside = (r.low <= setting[name] <= r.high for name, r in self.search.items())
            if is_own and all(inside) and setting not in found:
                found.append(setting)
                yield setting


def describe(values: Values) -> str:
    """Return options as users type them, such as `--attention soft --seed 0`."""
    return " ".join(_describe_one(name, value) for name, value in values.items())


def _describe_one(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {value}"


def _format(value: Any) -> str:
    """Return a value as part of the name of a folder."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.=,-]", "_", text)


def read_plan(path: Path, data: Path) -> Plan:
    """Read the file of a sweep.

    Raises:
        ConfigError: the file, an option, a value or a combination of values is invalid.
    """
    content = read_toml(path, "FILE")
    for table, values in content.items():
        if table not in TABLES or not isinstance(values, dict):
            raise ConfigError(
                f"{path}: {table!r} is not a table of a sweep; expected [train], [grid] and "
                f"[search].{suggest(table, TABLES)}"
            )
    fixed, grid = Values(), dict[str, list[Any]]()
    for key, value in content.get("train", {}).items():
        fixed |= _read_option(path, "train", key, value)
    for key, value in content.get("grid", {}).items():
        grid |= _read_list(path, key, value)
    search = dict(content.get("search", {}))
    num_trials = _read_trials(path, search)
    ranges = dict(pair for key, value in search.items() for pair in _read_range(path, key, value))
    require(bool(grid or ranges), f"{path} has nothing to vary: add [grid] with seed = [0, 1, 2].")
    tables = {"train": fixed.keys(), "grid": grid.keys(), "search": ranges.keys()}
    for first, second in itertools.combinations(tables, 2):
        for name in tables[first] & tables[second]:
            raise ConfigError(f"{path}: {name} is both in [{first}] and in [{second}].")
    plan = Plan(path=path, data=data, fixed=fixed, grid=grid, search=ranges, num_trials=num_trials)
    _require_names(plan)
    return plan


def _read_option(path: Path, table: str, key: str, value: Any) -> Values:
    where = f"{path}: [{table}]"
    if (name := key.replace("-", "_")) in {f.name for f in fields(TrainConfig)} - OPTIONS.keys():
        raise ConfigError(f"{where}: {key} cannot be set: the sweep chooses the name of each run.")
    if table != "train" and name in ("dataset", "monitor"):
        raise ConfigError(f"{where}: {key} belongs in [train]: scores would not be comparable.")
    return read_option(where, key, value, "train", OPTIONS)


def _read_list(path: Path, key: str, value: Any) -> dict[str, list[Any]]:
    """Return {name: values} of a key of the grid."""
    if not isinstance(value, list) or not value:
        raise ConfigError(
            f"{path}: [grid]: {key} must be a list of values, such as "
            f"{key} = [{show_value(value) if not isinstance(value, list) else '0, 1, 2'}]."
        )
    values = [_read_option(path, "grid", key, item) for item in value]
    ((name, _),) = values[0].items()
    return {name: list(dict.fromkeys(item[name] for item in values))}


def _read_trials(path: Path, search: dict[str, Any]) -> int:
    """Remove the number of trials from the search and return it; 1 without a search."""
    if not search:
        return 1
    num_trials = search.pop("trials", None)
    if type(num_trials) is not int or num_trials < 1:
        raise ConfigError(
            f"{path}: [search]: trials must be the number of settings to try, such as trials = 20."
        )
    return num_trials


def _read_range(path: Path, key: str, value: Any) -> Iterator[tuple[str, Range]]:
    """Yield (name, range) of a key of the search."""
    where = f"{path}: [search]: {key}"
    example = f"{key} = {{ low = 1e-4, high = 1e-2, log = true }}"
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{where} must be a range, such as {example}.")
    ((name, low),) = _read_option(path, "search", key, value["low"]).items()
    ((_, high),) = _read_option(path, "search", key, value["high"]).items()
    kind, log = value_type(OPTIONS[name])[0], value.get("log", False)
    require(kind in (int, float) and name != "seed", f"{where} belongs in [grid].")
    require(isinstance(log, bool), f"{where}: log must be true or false, got {show_value(log)}.")
    require(low < high, f"{where}: low must be below high, got {low} and {high}.")
    require(not log or low > 0, f"{where}: low must be above 0 with log = true, got {low}.")
    yield name, Range(low=low, high=high, log=log, is_integer=kind is int)


def _require_names(plan: Plan) -> None:
    """Check the options of all combinations, and that their runs have different names."""
    if (expected := check_run_name(plan.name)) is not None:
        raise ConfigError(f"{plan.path}: the name of a sweep must {expected}.")
    lowest = {name: limits.low for name, limits in plan.search.items()}
    names = set[str]()
    for combination in plan.combinations:
        for values in plan.runs_of(combination | lowest):
            plan.train_config(values)
            name = plan.run_dir(values).name
            require(
                len(name.encode()) <= MAX_NAME_BYTES,
                f"{plan.path}: the name of the run {name} is longer than {MAX_NAME_BYTES} bytes. "
                "Give the file a shorter name, or vary fewer options.",
            )
            require(name not in names, f"{plan.path}: two runs would have the name {name}.")
            names.add(name)
