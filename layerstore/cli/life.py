"""Commands for containers that need their layers; see ``layerstore.life``, which does it."""

from __future__ import annotations

import os

from layerstore import life
from layerstore.cli import output
from layerstore.cli.values import converted, detach_keys, exit_code
from layerstore.errors import LayerstoreError, UsageError
from layerstore.report.text import escaped, shown
from layerstore.runtime.upkeep import parse_duration
from layerstore.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.cli.options import Parsed
    from layerstore.settings import Settings


def execute(command: str, settings: Settings, parsed: Parsed) -> int:
    """The exit code."""
    return COMMANDS[command](settings, parsed)


def _start(settings: Settings, parsed: Parsed) -> int:
    if not (parsed.has("attach") or parsed.has("interactive")):
        return _each(settings, parsed, life.start)
    if len(parsed.arguments) != 1:
        raise UsageError("only one container can be attached to", hint="start the others without")
    return exit_code(
        life.start_attached(
            Store.open(settings.root),
            parsed.arguments[0],
            stdin=0 if parsed.has("interactive") else None,
            detach_keys=detach_keys(parsed),
        )
    )


def _restart(settings: Settings, parsed: Parsed) -> int:
    timeout = converted(parsed, "time", parse_duration)
    return _each(settings, parsed, lambda s, name: life.restart(s, name, timeout_s=timeout))


def _each(settings: Settings, parsed: Parsed, act: Callable[[Store, str], object]) -> int:
    """Prints the name of each container with which it is done; the first failure's exit code."""
    store = Store.open(settings.root)
    code = 0
    for name in parsed.arguments:
        try:
            act(store, name)
            output.say(escaped(name))
        except LayerstoreError as error:
            code = code or output.complain(error)
    return code


def _cp(settings: Settings, parsed: Parsed) -> int:
    source, target = parsed.arguments
    inside, outside = _container_path(source), _container_path(target)
    if (inside is None) == (outside is None):
        raise UsageError(
            "one of source and target must be in a container, and only one",
            hint="write CONTAINER:PATH for it",
        )
    store = Store.open(settings.root)
    how = {"archive": parsed.has("archive"), "follow": parsed.has("follow_link")}
    if inside is not None:
        copied = life.copy_from(store, inside[0], inside[1], os.fsencode(target), **how)
    elif outside is not None:
        copied = life.copy_to(store, outside[0], os.fsencode(source), outside[1], **how)
    for path in copied.skipped:
        output.note(f"layerstore: left out the device or socket {shown(path)}")
    return 0


def _container_path(text: str) -> tuple[str, bytes] | None:
    """(container, absolute path) of ``CONTAINER:PATH``; a path of this host has a slash before."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name or name.startswith("."):
        return None
    return name, os.fsencode(path if path.startswith("/") else "/" + path)


COMMANDS: dict[str, Callable[[Settings, Parsed], int]] = {
    "start": _start,
    "restart": _restart,
    "cp": _cp,
}
