"""The reference of all commands as Markdown, made of what the commands declare.

``python tests/cli_reference.py`` writes it into ``docs/cli.md``, below the marker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from layerstore.cli.full import make_app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
MARKER = "<!-- What follows is written by tests/cli_reference.py. -->\n"


def reference() -> str:
    # Any: Typer's Click is its own in newer versions, and typed in none.
    root: Any = typer.main.get_command(make_app())
    return "".join(_sections(root, "layerstore"))


def _sections(command: Any, path: str) -> Iterator[str]:  # Any: as above
    inner = getattr(command, "commands", None)
    yield f"\n## `{path}`\n\n{_text(command.help)}\n\n"
    usage = [path]
    own = [param for param in command.params if _is_ours(param)]
    arguments = [param for param in own if param.param_type_name == "argument"]
    options = [param for param in own if param.param_type_name == "option"]
    usage += ["[OPTIONS]"] if options else []
    usage += [_usage(argument) for argument in arguments]
    usage += ["COMMAND …"] if inner else []
    yield f"    {' '.join(usage)}\n"
    if own:
        yield "\n| | |\n|---|---|\n"
    for argument in arguments:
        yield f"| `{_cell(argument.metavar)}` | {_cell(argument.help)} |\n"
    for option in options:
        yield f"| {_names(option)} | {_cell(option.help)} |\n"
    for name, found in (inner or {}).items():
        yield from _sections(found, f"{path} {name}")


def _is_ours(param: Any) -> bool:  # Any: as above
    return not {"--install-completion", "--show-completion"} & set(param.opts)


def _usage(argument: Any) -> str:  # Any: as above
    shown = argument.metavar + ("…" if argument.nargs == -1 else "")
    return shown if argument.required else f"[{shown}]"


def _names(option: Any) -> str:  # Any: as above
    names = [f"`{name}`" for name in sorted(option.opts, key=len)]
    if not option.is_flag:
        names[-1] = f"`{max(option.opts, key=len)} {_cell(option.metavar)}`"
    return ", ".join(names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(help_: str) -> str:
    return " ".join(help_.split())


def page() -> str:
    written, marker, _ = PAGE.read_text().partition(MARKER)
    return written + marker + reference()


if __name__ == "__main__":
    sys.path.insert(0, str(PAGE.parents[1]))
    PAGE.write_text(page())
