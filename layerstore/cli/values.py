"""Values of options that several commands have, read."""

from __future__ import annotations

import os

from layerstore.cli import output
from layerstore.errors import NotFoundError, UsageError
from layerstore.runtime.attach import DETACH_KEYS, parse_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from layerstore.cli.options import Parsed
    from layerstore.runtime.supervision import Outcome

    T = TypeVar("T")


def exit_code(outcome: Outcome | None) -> int:
    """Of a command that was attached to; None: it runs on."""
    if outcome is None:
        return 0
    if outcome.oom_killed:
        output.note("layerstore: the kernel killed a process of the container for want of memory")
    return outcome.exit_code


def detach_keys(parsed: Parsed) -> bytes:
    keys = parsed.text("detach_keys")
    return DETACH_KEYS if keys is None else parse_keys(keys)


def converted(parsed: Parsed, key: str, convert: Callable[[str], T]) -> T | None:
    text = parsed.text(key)
    return None if text is None else convert(text)


def environment(parsed: Parsed) -> dict[str, str]:
    """Files first, in their order; a name without a value is passed on if we have it."""
    words: list[str] = []
    for path in parsed.texts("env_file"):
        words += _env_file(path)
    words += parsed.texts("env")
    env: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or name.strip() != name:
            raise UsageError(f"{word!r} is not a variable", hint="write NAME=VALUE, or NAME alone")
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def _env_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip("\n").lstrip() for line in file]
    except OSError as error:
        raise NotFoundError(
            f"cannot read the file of variables {path!r}: {error.strerror}", hint="check the path"
        ) from error
    return [line for line in lines if line and not line.startswith("#")]
