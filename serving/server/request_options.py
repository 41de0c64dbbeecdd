"""The decoding options that a request may set, read from text or JSON, and their JSON schema."""

import re
from collections.abc import Mapping
from dataclasses import Field, replace
from typing import Any

from ...model.generation.options import DecodingOptions
from ...pipeline.stage.errors import ConfigError
from ...pipeline.stage.options import options_of, spec_of, suggest, validate, value_type
from .limits import RequestError

# A preset stands for several options. The weights of consensus are the server's own.
SERVER_OPTIONS = ("preset", "consensus_precision")
REQUEST_OPTIONS = {
    field.name: field for field in options_of(DecodingOptions) if field.name not in SERVER_OPTIONS
}
MAX_LENGTH = 100  # tokens of a caption

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
BOOLEANS = {"true": True, "1": True, "on": True, "false": False, "0": False, "": False}


def read_options(
    defaults: DecodingOptions, given: Mapping[str, Any], max_beam: int
) -> DecodingOptions:
    """Return the decoding options of a request.

    Args:
        defaults: the server's, for those that are not given.
        given: name → value; text, from a form, is converted to the type of the option.
        max_beam: the limit on beams, and on captions per image.

    Raises:
        RequestError: an option is unknown, invalid, or above a limit.
    """
    for name in given:
        if name not in REQUEST_OPTIONS:
            raise RequestError(
                422,
                "unknown_option",
                f"{name!r} is not an option of a request.{suggest(name, REQUEST_OPTIONS)}",
            )
    try:
        values = {name: read_value(REQUEST_OPTIONS[name], given[name]) for name in given}
        options = replace(defaults, **unused_defaults(defaults, values), **values)
    except ConfigError as error:
        raise invalid_option(as_field_names(str(error))) from None
    check_limits(options, defaults, max_beam)
    return options


def unused_defaults(defaults: DecodingOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return new values for the server's options that a request leaves without effect.

    `sample=false`, for example, also turns off the `--temperature` of the server. An option that
    the request itself gives is not changed, so that an error names it if it has no effect.
    """
    values = {name: given.get(name, getattr(defaults, name)) for name in REQUEST_OPTIONS}
    unused = ["top_p", "temperature"] if not values["sample"] else ["beam_groups"]
    if values["beam_groups"] == 1 or "beam_groups" in unused:
        unused.append("diversity")
    if not values["consensus"]:
        unused.append("consensus_precision")
    reset = {name: getattr(DecodingOptions, name) for name in unused}
    if defaults.sample and not values["sample"]:
        reset["n_best"] = min(defaults.n_best, values["beam"])
    return {name: value for name, value in reset.items() if name not in given}


def read_value(field: "Field[Any]", value: Any) -> Any:
    """Return the value of an option, converted from text if it came in a form.

    Raises:
        ConfigError: the value is invalid.
    """
    kind, may_be_none = value_type(field)
    if isinstance(value, str) and may_be_none and not value.strip():
        return None
    return validate(field, from_text(value, kind))


def from_text(value: Any, kind: type) -> Any:
    """Return a text as a number or a boolean; any other value, and any other text, as it is."""
    if not isinstance(value, str):
        return value
    if kind is bool:
        return BOOLEANS.get(value.strip().lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value


def read_flag(name: str, value: Any) -> bool:
    """Return a boolean of a request.

    Raises:
        RequestError: it is something else.
    """
    value = from_text(value, bool)
    if not isinstance(value, bool):
        raise invalid_option(f"{name} must be true or false, got {value!r}.")
    return value


def check_limits(options: DecodingOptions, defaults: DecodingOptions, max_beam: int) -> None:
    """Refuse options that would keep the server busy for too long.

    Raises:
        RequestError: naming the option.
    """
    limits = {
        "beam": max(max_beam, defaults.beam),
        "n_best": max(max_beam, defaults.n_best),
        "max_length": max(MAX_LENGTH, defaults.max_length or 0),
        "min_length": max(MAX_LENGTH, defaults.min_length),
    }
    for name, limit in limits.items():
        value = getattr(options, name)
        if value is not None and value > limit:
            raise invalid_option(f"{name} must be at most {limit} on this server, got {value}.")
    if options.consensus not in (0, defaults.consensus):
        raise invalid_option(
            f"consensus must be 0 or {defaults.consensus} on this server, got {options.consensus}."
            if defaults.consensus
            else "This server does not re-rank: it was started without --consensus."
        )
    if options.consensus and options.views != defaults.views:
        raise invalid_option(f"views must be {defaults.views} with consensus.")


def invalid_option(message: str) -> RequestError:
    """Return the error of an option that cannot be used."""
    return RequestError(422, "invalid_option", message)


def as_field_names(message: str) -> str:
    """Replace the options of a command in an error, `--n-best`, by those of a request, `n_best`."""
    return re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), message)


def schema_of(defaults: DecodingOptions) -> dict[str, Any]:
    """Return name → JSON schema of each option, with the server's defaults."""
    schemas: dict[str, Any] = {}
    for name, field in REQUEST_OPTIONS.items():
        spec, (kind, may_be_none) = spec_of(field), value_type(field)
        kinds = [JSON_TYPES[kind], *(["null"] if may_be_none else [])]
        bounds = {
            "minimum": spec.at_least,
            "exclusiveMinimum": spec.above,
            "maximum": spec.at_most,
            "enum": list(spec.choices) or None,
        }
        schemas[name] = {
            "type": kinds[0] if len(kinds) == 1 else kinds,
            "description": as_field_names(spec.help),
            "default": getattr(defaults, name),
            "x-group": spec.group,
            **{key: bound for key, bound in bounds.items() if bound is not None},
        }
    return schemas
