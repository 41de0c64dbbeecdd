"""Write commands as users type them, for the advice in errors and in manifests."""

import os
import shlex
from dataclasses import Field
from pathlib import Path
from typing import Any

from .options import StageConfig, flag, options_of, spec_of
from .urls import Location

# Options that say where or how a command runs, but not what it makes. The options of a preset are
# filled in already; with the preset, they would replace options that are at their default.
LEFT_OUT = (
    *("data", "device", "num_workers", "resume", "preset"),
    *("retry_skipped", "recompute"),
)


def command_of(stage: str, config: StageConfig) -> str:
    """Return the command that runs a stage with these options, without `showtell` and `--data`.

    Options at their default are left out. Relative paths become absolute.
    """
    words = [stage]
    for declared in options_of(type(config)):
        value = getattr(config, declared.name)
        if declared.name in LEFT_OUT or value == declared.default:
            continue
        words += words_of(declared, value)
    return shlex.join(words)


def words_of(declared: "Field[Any]", value: Any) -> list[str]:
    """Return the words that set an option: `--beam 5`. Relative paths become absolute."""
    name = [] if spec_of(declared).positional else [flag(declared.name)]
    if isinstance(value, bool):
        return [name[0] if value else flag(f"no_{declared.name}")]
    words = list[str]()
    for item in value if isinstance(value, list) else [value]:
        words += [*name, str(item.absolute() if isinstance(item, Path | Location) else item)]
    return words


def command_line(data: Path, *words: object) -> str:
    """Return a command as users type it: quoted, and with `--data` if needed.

    Args:
        data: root of all files.
        words: the command without `showtell`: `"train", "--run", "my run"`.
    """
    return f"showtell {shlex.join(map(str, words))}{data_option(data)}"


def data_option(data: Path) -> str:
    """Return ` --data DIR`, or nothing if commands use that folder without the option."""
    if data.resolve() == Path(os.environ.get("SHOWTELL_DATA") or "data").resolve():
        return ""
    return f" --data {shlex.quote(str(data))}"
