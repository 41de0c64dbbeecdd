"""Turns a config class and a function into a command of the command line.

The fields of the config become options of the command. All commands also have `--config`,
`--print-config`, `--json`, `--quiet` and `--help`.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from .model.config import TrainConfig
from .model.presets import DECODING_PRESETS, TRAIN_PRESETS, apply_preset
from .pipeline.stage.config_file import format_config, read_config_file
from .pipeline.stage.console import output_mode
from .pipeline.stage.options import StageConfig, metavar_of, options_of, spec_of

Config = TypeVar("Config", bound=StageConfig)

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
GENERAL_PANEL = "General"

configs: dict[str, type[StageConfig]] = {}  # command → class of its options


def config_command(
    app: typer.Typer,
    name: str,
    config_class: type[Config],
    *,
    panel: str,
    examples: tuple[str, ...],
) -> Callable[[Callable[[Config], None]], Callable[[Config], None]]:
    """Register a function of a config as a command; the docstring becomes the help.

    Args:
        app: the command line.
        name: name of the command.
        config_class: class of the options.
        panel: title of the panel that lists the command in `showtell --help`.
        examples: arguments to show at the end of the command's help.
    """
    configs[name] = config_class

    def register(stage: Callable[[Config], None]) -> Callable[[Config], None]:
        def run(
            context: typer.Context,
            config_file: Path | None,
            print_config: bool,
            json: bool,
            quiet: bool,
            **values: Any,
        ) -> None:
            config, given = _make_config(config_class, context, values)
            if print_config:
                print(format_config(name, config, given))
                return
            with output_mode(quiet=quiet, json=json):
                stage(config)

        parameters = [inspect.Parameter("context", KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [_option_of(field) for field in options_of(config_class)]
        parameters += _general_options()
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        lines = "".join(f"\n  showtell {name} {arguments}".rstrip() for arguments in examples)
        app.command(
            name,
            cls=Command,
            help=(stage.__doc__ or "").replace("[", r"\["),  # not markup of rich
            epilog=f"\nExamples:{lines}",
            rich_help_panel=panel,
        )(run)
        return stage

    return register


def _make_config(
    config_class: type[Config], context: typer.Context, values: dict[str, Any]
) -> tuple[Config, tuple[str, ...]]:
    """Return the config, and the names of the options that the user has set."""
    sources = {name: context.get_parameter_source(name) for name in values}
    given = tuple(name for name, source in sources.items() if source and source.name != "DEFAULT")
    if values.get("preset") is not None:
        presets = TRAIN_PRESETS if issubclass(config_class, TrainConfig) else DECODING_PRESETS
        values = apply_preset(presets, values["preset"], values, given)
    if any(field.name == "given" for field in fields(config_class)):
        values = values | {"given": given}
    return config_class(**values), given


def _option_of(field: "Field[Any]") -> inspect.Parameter:
    """Return a config field as a Typer option or argument."""
    spec, metavar = spec_of(field), metavar_of(field)
    complete = _completion_of(spec.choices) if spec.choices else None
    info = (
        typer.Argument(help=spec.help, metavar=metavar)
        if spec.positional
        else typer.Option(
            _names_of(field),
            help=spec.help,
            metavar=metavar,
            envvar=spec.envvar,
            autocompletion=complete,
            rich_help_panel=spec.group,
        )
    )
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        field.name, KEYWORD_ONLY, default=default, annotation=Annotated[field.type, info]
    )


def _names_of(field: "Field[Any]") -> str:
    """Return the names of an option, as Typer declares them."""
    # Without a name, Typer 0.27 calls an option by its metavar if that is its name in capitals.
    name = field.name.replace("_", "-")
    return f"--{name}/--no-{name}" if field.type is bool else f"--{name}"


def _completion_of(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Return the function that completes a value of an option in the shell."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _general_options() -> Iterator[inspect.Parameter]:
    """Yield the options that every command has besides those of its config."""
    make = partial(typer.Option, rich_help_panel=GENERAL_PANEL)
    config_file = make(
        "--config",
        help="TOML file with options. Options on the command line win.",
        metavar="FILE",
        is_eager=True,
        callback=_load_config_file,
    )
    yield inspect.Parameter(
        "config_file", KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, config_file]
    )
    flags = {
        "print_config": make(
            "--print-config", help="Print all options as TOML for --config, and exit."
        ),
        "json": make(
            "--json", help="Print the results as JSON to stdout; everything else goes to stderr."
        ),
        "quiet": make("--quiet", "-q", help="Print only results, warnings and errors."),
    }
    for name, info in flags.items():
        yield inspect.Parameter(name, KEYWORD_ONLY, default=False, annotation=Annotated[bool, info])


def _load_config_file(context: typer.Context, path: Path | None) -> None:
    """Make the options in the file defaults: the command line and the environment win."""
    if path is not None and not context.resilient_parsing:
        context.default_map = read_config_file(path, str(context.info_name), configs)


class Command(TyperCommand):
    """A command whose help lists `--help` with the general options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, ready to be shown."""
        return [_tidy(param, GENERAL_PANEL) for param in super().get_params(ctx)]


class Group(TyperGroup):
    """The command line itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options, ready to be shown."""
        return [_tidy(param) for param in super().get_params(ctx)]


def _tidy(param: Any, help_panel: str | None = None) -> Any:
    """Show no type for flags and arguments, and `--help` in a panel of its own."""
    if getattr(param, "is_flag", False):
        param.metavar = ""
    if param.param_type_name == "argument":
        param.display_type_rich = lambda ctx: ""
    if help_panel and param.name == "help":
        param.rich_help_panel = help_panel
    return param
