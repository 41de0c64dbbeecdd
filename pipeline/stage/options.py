"""Declare command-line options as dataclass fields, and validate their values.

A declaration holds everything about one option: default, help text, allowed values, and the panel
of `--help` that shows it. The type of the field is the type of the option: `bool`, `int`, `float`,
`str`, `Path`, a list of those, or any of these with `| None`.
"""

import math
import numbers
import operator
import os
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import date, time
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from .errors import ConfigError

T = TypeVar("T")

PLAIN_NAME = r"[^./\\][^/\\]*"
RESERVED = ("runs", "ensembles", "bench")  # folders beside the datasets in the data folder
MAX_SEED = 2**32 - 1  # the largest seed that every random generator in use accepts

TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
}

METAVARS = {int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}

# Takes a value; returns None if it is valid, else the end of the error "NAME must …": "be even".
Check = Callable[[Any], str | None]


@dataclass(frozen=True, kw_only=True)
class OptionSpec:
    """The declaration of one option.

    Attributes:
        help: the text that `--help` shows.
        choices: the allowed values; empty allows any.
        at_least: smallest allowed number.
        above: the number must be above this one.
        at_most: largest allowed number.
        below: the number must be below this one.
        limit: like `at_most`, far above any useful value; not shown in help.
        check: any other rule about this option alone.
        group: title of the panel that shows the option in `--help`.
        affects_result: whether a new value makes finished work out of date. False for `--device`,
            which does not change results, and for `--features` and `--clip`, where stages compare
            the content of the files instead.
        envvar: environment variable that sets the option.
        positional: whether it is typed without a name, such as `IMAGE`.
        metavar: placeholder for the value in `--help`; also names a positional argument in errors.
    """

    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    limit: float | None = None
    check: Check | None = None
    group: str = "Options"
    affects_result: bool = True
    envvar: str | None = None
    positional: bool = False
    metavar: str | None = None


def option(
    default: T,
    help: str,
    *,
    choices: Collection[str] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    limit: float | None = None,
    check: Check | None = None,
    group: str = "Options",
    affects_result: bool = True,
    envvar: str | None = None,
    metavar: str | None = None,
) -> T:
    """Declare a dataclass field as a command-line option; see `OptionSpec` for the arguments.

    Example:
        batch_size: int = option(128, "Captions per step.", at_least=1, group="Training")
    """
    spec = OptionSpec(
        help=help,
        choices=tuple(choices),
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        limit=limit,
        check=check,
        group=group,
        affects_result=affects_result,
        envvar=envvar,
        metavar=metavar,
    )
    value: T = field(default=default, metadata={"option": spec})
    return value


def argument(help: str, *, metavar: str, required: bool = True, **rules: Any) -> Any:
    """Declare a dataclass field as a positional argument; the default is None if not `required`.

    `rules` are further fields of `OptionSpec`, such as `check`.
    """
    spec = OptionSpec(help=help, metavar=metavar, positional=True, **rules)
    return field(default=MISSING if required else None, metadata={"option": spec})


def options_of(config_class: "type[Options]") -> "list[Field[Any]]":
    """Return the fields of a config class that are options, in order."""
    return [declared for declared in fields(config_class) if "option" in declared.metadata]


def spec_of(declared: "Field[Any]") -> OptionSpec:
    """Return the declaration of an option."""
    spec: OptionSpec = declared.metadata["option"]
    return spec


def typed_name(declared: "Field[Any]") -> str:
    """Return the name of an option as users type it: `--batch-size`, or the metavar `IMAGE`."""
    spec = spec_of(declared)
    return spec.metavar or declared.name if spec.positional else flag(declared.name)


def flag(name: str) -> str:
    """Return the command-line form of a field's name: `batch_size` is `--batch-size`."""
    return f"--{name.replace('_', '-')}"


def value_type(declared: "Field[Any]") -> tuple[Any, bool]:
    """Return the type of an option without `| None`, and whether None is allowed."""
    if isinstance(declared.type, types.UnionType):
        kinds = [kind for kind in get_args(declared.type) if kind is not types.NoneType]
        assert len(kinds) == 1, f"{declared.name} has several types"
        return kinds[0], True
    return declared.type, False


def metavar_of(declared: "Field[Any]") -> str | None:
    """Return how help shows the value of an option: `[gru|lstm|rnn]`, `INTEGER >= 1`, `FILE`.

    It is None for flags, which take no value.
    """
    spec, (kind, _) = spec_of(declared), value_type(declared)
    if spec.metavar is not None or kind is bool:
        return spec.metavar
    if spec.choices:
        return f"[{'|'.join(spec.choices)}]"
    metavar = METAVARS[get_args(kind)[0] if get_origin(kind) is list else kind]
    has_lower = spec.at_least is not None or spec.above is not None
    if spec.at_most is not None or spec.below is not None:
        less = f"<= {spec.at_most}" if spec.at_most is not None else f"< {spec.below}"
        lower = f"{spec.at_least} <= " if spec.at_least is not None else f"{spec.above} < "
        return f"{lower if has_lower else ''}{metavar} {less}"
    if has_lower:
        more = f">= {spec.at_least}" if spec.at_least is not None else f"> {spec.above}"
        return f"{metavar} {more}"
    return metavar


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a `ConfigError` if `value` is not one of `choices`, and suggest the closest one.

    Args:
        name: the option as typed, e.g. `--cell`.
        value: what was given.
        choices: the allowed values.
    """
    if value not in choices:
        expected = f"{name} must be one of {', '.join(choices)}, got {value!r}."
        raise ConfigError(expected + suggest(value, choices))


def suggest(name: str, choices: Collection[str]) -> str:
    """Return ` Did you mean 'gru'?` if one of the choices is close to `name`, else nothing."""
    from difflib import get_close_matches

    by_lower = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def validate(declared: "Field[Any]", value: Any) -> Any:
    """Check a value against the declaration of its option.

    Returns:
        The value in the type of the field. Where the field needs it, text is converted to a path,
        an integer to a float and a single value to a list, for JSON, TOML and Python callers.

    Raises:
        ConfigError: naming the option as users type it.
    """
    name, spec = typed_name(declared), spec_of(declared)
    kind, may_be_none = value_type(declared)
    if value is None and may_be_none:
        return None
    item_kind = get_args(kind)[0] if get_origin(kind) is list else kind
    if item_kind is kind:
        return _validate_one(name, spec, kind, value)
    items = value if isinstance(value, list | tuple) else [value]
    return [_validate_one(name, spec, item_kind, item) for item in items]


def _validate_one(name: str, spec: OptionSpec, kind: type, value: Any) -> Any:
    value = _convert(name, kind, value)
    if spec.choices:
        require_choice(name, value, spec.choices)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _require_in_range(name, spec, value)
    if spec.check is not None and (expected := spec.check(value)):
        raise ConfigError(f"{name} must {expected}, got {show_value(value)}.")
    return value


def show_value(value: Any) -> str:
    """Return a value as written in a config file, for error messages."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(show_value, value))}]"
    if isinstance(value, date | time):
        return value.isoformat()
    return repr(str(value) if isinstance(value, Path) else value)


def _convert(name: str, kind: type, value: Any) -> Any:
    is_bool = isinstance(value, bool)
    if kind is Path and isinstance(value, str | os.PathLike):
        return expand_home(Path(value))
    if kind is int and hasattr(value, "__index__") and not is_bool:
        return operator.index(value)  # also numpy's integers
    if kind is float and isinstance(value, numbers.Real) and not is_bool:
        return float(value)
    if not isinstance(value, kind) or (is_bool and kind is not bool):
        raise ConfigError(f"{name} must be {TYPE_NAMES[kind]}, got {show_value(value)}.")
    return value


def expand_home(path: Path) -> Path:
    """Replace a leading `~` or `~user` by the home folder; shells do not do so in `--data=~/x`."""
    try:
        return path.expanduser()
    except RuntimeError:  # no such user: a file may have this name
        return path


def _require_in_range(name: str, spec: OptionSpec, value: float) -> None:
    if spec.limit is not None and spec.limit < value < math.inf:
        raise ConfigError(f"{name} must be at most {spec.limit}, got {value}.")
    finite = isinstance(value, int) or math.isfinite(value)
    in_range = (
        (spec.at_least is None or value >= spec.at_least)
        and (spec.above is None or value > spec.above)
        and (spec.at_most is None or value <= spec.at_most)
        and (spec.below is None or value < spec.below)
    )
    if finite and in_range:
        return
    expected = [*_describe_range(spec), *([] if finite else ["finite"])]
    raise ConfigError(f"{name} must be {' and '.join(expected)}, got {value}.")


def _describe_range(spec: OptionSpec) -> list[str]:
    names = ("at_least", "above", "at_most", "below")
    bounds = {name.replace("_", " "): getattr(spec, name) for name in names}
    return [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]


def check_plain_name(name: str) -> str | None:
    """Return None for a valid folder name (not empty, no slash, no leading dot), else the rule."""
    return None if re.fullmatch(PLAIN_NAME, name) else "be a name without slashes or a leading dot"


def check_dataset_name(name: str) -> str | None:
    """Return None if `name` can name a dataset's folder, else the rule that it breaks."""
    if name in RESERVED:
        return (
            f"not be {', '.join(RESERVED[:-1])} or {RESERVED[-1]}, which are showtell's own folders"
        )
    return check_plain_name(name)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all groups of options: validates each declared field.

    A subclass with rules between its fields adds them in `__post_init__`, after a call to
    `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        for declared in options_of(type(self)):
            value = validate(declared, getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)

    def is_set(self, name: str) -> bool:
        """Return whether an option differs from its default."""
        (default,) = (f.default for f in fields(self) if f.name == name)
        return bool(getattr(self, name) != default)

    def require_not_both(self, first: str, second: str, reason: str = "") -> None:
        """Raise a `ConfigError` if two options that exclude each other are both set."""
        ending = f": {reason}." if reason else "; give one."
        require(
            not (self.is_set(first) and self.is_set(second)),
            f"{flag(first)} and {flag(second)} exclude each other{ending}",
        )

    def require_unused(self, *names: str, unless: bool, needs: str) -> None:
        """Raise a `ConfigError` if an option is set but has no effect.

        Args:
            names: fields of the options to check.
            unless: True if they have an effect, so that nothing is checked.
            needs: the option that must be given for them to have an effect, as typed.
        """
        given = [flag(name) for name in names if self.is_set(name)]
        verb = "applies" if len(given) == 1 else "apply"
        require(unless or not given, f"{' and '.join(given)} only {verb} with {needs}.")


@dataclass(frozen=True, kw_only=True)
class StageConfig(Options):
    """Options that every command has."""

    data: Path = option(
        Path("data"),
        "Folder with all datasets, features and runs.",
        group="Input",
        envvar="SHOWTELL_DATA",
        metavar="DIR",
    )

    def as_json(self) -> dict[str, Any]:
        """Return the options as JSON values, except `data`: the results do not depend on it."""
        names = {declared.name for declared in options_of(type(self))} - {"data"}
        values = {name: value for name, value in asdict(self).items() if name in names}
        return {name: _json_value(value) for name, value in values.items()}

    def result_options(self) -> dict[str, Any]:
        """Return the options that determine the result, as JSON values.

        Stages compare them to decide whether finished work is up to date.
        """
        names = {f.name for f in options_of(type(self)) if spec_of(f).affects_result}
        return {name: value for name, value in self.as_json().items() if name in names}


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(StageConfig):
    """Options of a command that works on one dataset."""

    dataset: str = option(
        "coco2014",
        "Dataset: coco2014, coco2017, flickr8k, flickr30k, scenes, or a name for your own.",
        check=check_dataset_name,
        group="Input",
        metavar="NAME",
    )

    @property
    def dataset_dir(self) -> Path:
        """`data/<dataset>`."""
        return self.data / self.dataset

    @property
    def captions_dir(self) -> Path:
        """`data/<dataset>/captions`, written by `showtell prepare`."""
        return self.dataset_dir / "captions"
