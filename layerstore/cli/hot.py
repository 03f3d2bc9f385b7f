"""The Typer commands of the tables in ``cli.options``: help and completion.

Who really runs them is ``cli.run``, by way of ``cli.quick``; both parse alike.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from layerstore.cli.options import HOT, Argument, Command, Option, Parsed


def register(app: typer.Typer) -> None:
    """Adds ``run``, ``ps`` and ``rm``."""
    for command in HOT.values():
        app.command(
            command.name,
            help=command.help,
            context_settings={"allow_interspersed_args": not command.ends_at_argument},
        )(_function(command))


def _function(command: Command) -> Callable[..., Parsed]:
    """A function with the command's parameters, which gives what was parsed."""

    # Any: flags are bool, values are str, repeated ones are lists.
    def parsed(**given: Any) -> Parsed:
        arguments: list[str] = []
        for argument in command.arguments:
            value = given[argument.key]
            if argument.repeats:
                arguments += value or ()
            else:
                arguments.append(value)
        values = {
            option.key: tuple(given[option.key]) if option.repeats else (given[option.key],)
            for option in command.options
            if option.metavar is not None and _is_given(option, given[option.key])
        }
        flags = {o.key for o in command.options if o.metavar is None and given[o.key]}
        return Parsed(flags=frozenset(flags), values=values, arguments=tuple(arguments))

    parameters = [_option(option) for option in command.options]
    parameters += [_argument(argument) for argument in command.arguments]
    parsed.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {}
    return parsed


def _is_given(option: Option, value: object) -> bool:
    """Without any, a repeated option is an empty list in some versions and None in others."""
    return bool(value) if option.repeats else value is not None


def _option(option: Option) -> Parameter:
    declared = typer.Option(*option.names, metavar=option.metavar, help=option.help,
                            show_default=False)  # fmt: skip
    if option.metavar is None:
        return _parameter(option.key, Annotated[bool, declared], False)
    return _parameter(option.key, Annotated[_optional(option.repeats), declared], None)


def _argument(argument: Argument) -> Parameter:
    declared = typer.Argument(metavar=argument.metavar, help=argument.help, show_default=False)
    if not argument.is_required:
        return _parameter(argument.key, Annotated[_optional(argument.repeats), declared], None)
    kind = list[str] if argument.repeats else str
    return _parameter(argument.key, Annotated[kind, declared], Parameter.empty)


# Any: types are values here, and so are defaults of every kind.
def _optional(repeats: bool) -> Any:
    return list[str] | None if repeats else str | None


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
