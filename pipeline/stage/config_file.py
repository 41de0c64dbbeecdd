"""Config files: options of commands in TOML, read by `--config`, written by `--print-config`.

Keys are option names with `-` or `_`; positional arguments go by their field names. A table named
after a command holds options of that command. Keys above all tables hold for every command that
has such an option, or, in a file without tables, for the command at hand:

    dataset = "flickr8k"

    [train]
    batch-size = 64
    attention = "soft"
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .options import Options, options_of, suggest, validate

Fields = Mapping[str, "Field[Any]"]  # name → option


def read_config_file(
    path: Path, command: str, configs: Mapping[str, type[Options]]
) -> dict[str, Any]:
    """Return the options that a config file sets for a command, validated.

    Args:
        path: of the TOML file.
        command: the command that is about to run.
        configs: command → its options, for all commands.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is invalid.
    """
    content = read_toml(path, "--config")
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    shared = {key: value for key, value in content.items() if key not in tables}
    fields = {name: {f.name: f for f in options_of(config)} for name, config in configs.items()}
    for table in tables:
        if table not in configs:
            raise ConfigError(
                f"{path}: [{table}] is not a command of showtell; expected one of "
                f"{', '.join(configs)}.{suggest(table, configs)}"
            )
    values: dict[str, Any] = {}
    for key, value in shared.items():
        is_of_others = bool(tables) and any(_to_name(key) in known for known in fields.values())
        if _to_name(key) in fields[command] or not is_of_others:
            values |= read_option(str(path), key, value, command, fields[command])
    for key, value in tables.get(command, {}).items():
        values |= read_option(f"{path}: [{command}]", key, value, command, fields[command])
    return values


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: of the file.
        option: the option or argument that takes the path, as typed: `--config`.

    Raises:
        ConfigError: the file cannot be read.
    """
    import tomllib  # here, because commands without --config need not wait for it

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # e.g. a number of 5,000 digits
        raise ConfigError(f"{option} {path} is not a TOML file: {error}.") from None


def read_option(where: str, key: str, value: Any, command: str, fields: Fields) -> dict[str, Any]:
    """Return {name: validated value} of one key.

    Args:
        where: the file, and the table if there is one, for errors.
        key: name of the option, with `-` or `_`.
        value: as read from the file.
        command: the command that has the option.
        fields: name → option, for all options that the key may name.

    Raises:
        ConfigError: the key is unknown, or the value is invalid.
    """
    name = _to_name(key)
    if name not in fields:
        raise ConfigError(
            f"{where}: {key!r} is not an option of 'showtell {command}'."
            f"{suggest(key.replace('_', '-'), [name.replace('_', '-') for name in fields])}"
        )
    try:
        return {name: validate(fields[name], value)}
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _to_name(key: str) -> str:
    return key.replace("-", "_")


def format_config(command: str, config: Options, given: Collection[str] = ()) -> str:
    """Return all options of a command as TOML that `read_config_file` reads back.

    Options with their default values are commented out, so that the file keeps working with
    `--preset`, `--init` and `--resume`, which fill in options that are not given.

    Args:
        command: name of the command, which becomes the name of the table.
        config: the options.
        given: options that the user has set; they are written even if they equal the default.
    """
    lines = [f"[{command}]"]
    for declared in options_of(type(config)):
        name, value = declared.name.replace("_", "-"), getattr(config, declared.name)
        is_default = declared.name not in given and value == declared.default
        text = "" if value is None else _format_value(value)
        lines.append(f"{'# ' if is_default else ''}{name} = {text}".rstrip())
    return "\n".join(lines)


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string is a TOML string, except that TOML also escapes the control character DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
