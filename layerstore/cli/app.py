"""``layerstore``: finds the command in the words, and the one module that it needs.

What deals with containers is parsed by hand, since Typer alone takes longer to import than a
container to start. Everything else is Typer's, with only the command's own module imported.
"""

from __future__ import annotations

import os
import sys

from layerstore.cli import output
from layerstore.cli.options import HOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.settings import Settings

RUN_FAILED = 125
_BY_RUN = frozenset(("run", "create", "ps", "rm"))
_BY_LIFE = frozenset(("start", "restart", "cp"))
_GLOBAL = ("--root", "--driver")


def main(words: list[str] | None = None) -> int:
    """The console script; its exit code."""
    output.prepare()
    given, rest = split(sys.argv[1:] if words is None else words)
    command = rest[0] if rest else ""
    return output.guarded(
        lambda: _dispatch(given, command, rest), failed=RUN_FAILED if command == "run" else 1
    )


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The values of the options before the command, by name, and the words without them."""
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest[0].partition("=")
        if name not in _GLOBAL or not (equals or len(rest) > 1):
            break
        given[name] = value if equals else rest[1]
        del rest[: 1 if equals else 2]
    return given, rest


def _dispatch(given: dict[str, str], command: str, rest: list[str]) -> int:
    if command in HOT and "_LAYERSTORE_COMPLETE" not in os.environ:
        from layerstore.cli.quick import parse

        parsed = parse(HOT[command], rest[1:])
        if parsed is not None:
            if command in _BY_RUN:
                from layerstore.cli.run import execute
            elif command in _BY_LIFE:
                from layerstore.cli.life import execute
            else:
                from layerstore.cli.live import execute
            return execute(command, _settings(given), parsed)
    if command == "--version":
        from layerstore import __version__

        output.say(f"layerstore {__version__}")
        return 0
    from layerstore.cli.full import parse_and_call

    return parse_and_call(command, rest, lambda: _settings(given))


def _settings(given: dict[str, str]) -> Settings:
    from layerstore.settings import from_env

    environ = dict(os.environ)
    if "--driver" in given:
        environ["LAYERSTORE_DRIVER"] = given["--driver"]
    return from_env(environ, uid=os.geteuid(), root=given.get("--root"))


if __name__ == "__main__":
    sys.exit(main())
