"""``run``, ``ps`` and ``rm``: commands that must start fast.

They call the module that the API calls, ``layerstore.run``, without the API, whose other half is
the builder. Nothing here may import Typer; a test says so.
"""

from __future__ import annotations

import os
import time

from layerstore import run as running
from layerstore.cli import output
from layerstore.cli.options import Parsed
from layerstore.errors import LayerstoreError, NotFoundError, UsageError
from layerstore.report.text import age, clipped, escaped, span, table
from layerstore.runtime.limits import Limits, parse_cpus, parse_pids, parse_size, parse_swap
from layerstore.runtime.plan import Tmpfs
from layerstore.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

    from layerstore.run import ContainerStatus, RunOptions
    from layerstore.settings import Settings

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_IGNORED_TMPFS_OPTIONS = frozenset(("rw", "nosuid", "nodev", "noexec", ""))
"""What a tmpfs of a container is anyway."""


def execute(command: str, settings: Settings, parsed: Parsed) -> int:
    """The exit code."""
    return _COMMANDS[command](settings, parsed)


# -- run -----------------------------------------------------------------------------------------


def _run(settings: Settings, parsed: Parsed) -> int:
    options = run_options(parsed, driver=settings.driver)
    outcome = running.run(Store.open(settings.root), options)
    if outcome.oom_killed:
        output.note("layerstore: the kernel killed a process of the container for want of memory")
    return outcome.exit_code


def run_options(parsed: Parsed, *, driver: str = "auto") -> RunOptions:
    """Raises UsageError or NotFoundError for values that have no meaning."""
    image, *argv = parsed.arguments
    entrypoint = parsed.text("entrypoint")
    return running.RunOptions(
        image=image,
        argv=tuple(argv),
        entrypoint=None if entrypoint is None else (entrypoint,) if entrypoint else (),
        name=parsed.text("name"),
        env=_environment(parsed),
        user=parsed.text("user"),
        workdir=parsed.text("workdir"),
        hostname=parsed.text("hostname"),
        binds=tuple(running.parse_bind(text) for text in parsed.texts("volume")),
        tmpfs=tuple(_tmpfs(text) for text in parsed.texts("tmpfs")),
        network=parsed.text("network") or "none",
        limits=Limits(
            memory=_converted(parsed, "memory", parse_size),
            memory_swap=_converted(parsed, "memory_swap", parse_swap),
            cpus=_converted(parsed, "cpus", parse_cpus),
            pids=_converted(parsed, "pids_limit", parse_pids),
        ),
        cap_add=parsed.texts("cap_add"),
        cap_drop=parsed.texts("cap_drop"),
        no_new_privs=_no_new_privs(parsed.texts("security_opt")),
        read_only=parsed.has("read_only"),
        driver=driver,
        remove=parsed.has("rm"),
        interactive=parsed.has("interactive"),
        terminal=parsed.has("tty"),
    )


def _converted(parsed: Parsed, key: str, convert: Callable[[str], T]) -> T | None:
    text = parsed.text(key)
    return None if text is None else convert(text)


def _environment(parsed: Parsed) -> dict[str, str]:
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


def _tmpfs(text: str) -> Tmpfs:
    """docker's ``TARGET[:size=…,mode=…,exec]``."""
    target, _, options = text.partition(":")
    size, mode, is_executable = None, 0o1777, False
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name == "size":
            size = parse_size(value)
        elif name == "mode" and value and set(value) <= set("01234567") and len(value) <= 5:
            mode = int(value, 8)
        elif option == "exec":
            is_executable = True
        elif option not in _IGNORED_TMPFS_OPTIONS:
            raise UsageError(
                f"{option!r} in --tmpfs {text!r} is not an option of a tmpfs",
                hint="use size=SIZE, mode=OCTAL or exec, with commas between",
            )
    return Tmpfs(target=os.fsencode(target), size=size, mode=mode, is_executable=is_executable)


def _no_new_privs(options: tuple[str, ...]) -> bool:
    """On, as here it is the default."""
    chosen = True
    for option in options:
        name, _, value = option.replace("=", ":", 1).partition(":")
        value = value.lower() or "true"
        if name != "no-new-privileges" or value not in (*_TRUE, *_FALSE):
            raise UsageError(
                f"{option!r} is not a security option",
                hint="no-new-privileges:true and no-new-privileges:false are there",
            )
        chosen = value in _TRUE
    return chosen


# -- ps ------------------------------------------------------------------------------------------


def _ps(settings: Settings, parsed: Parsed) -> int:
    store = Store.open(settings.root)
    found = [running.status(store, container) for container in store.containers.all()]
    if not parsed.has("all"):
        found = [status for status in found if status.is_running]
    found.sort(key=lambda status: status.container.created, reverse=True)
    if parsed.has("json"):
        output.say_json([status_json(status) for status in found])
    elif parsed.has("quiet"):
        for status in found:
            output.say(status.container.container_id)
    else:
        now = time.time()
        head = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME")
        output.say(table(head, [_row(status, now) for status in found]))
    return 0


def _row(status: ContainerStatus, now: float) -> tuple[str, ...]:
    container = status.container
    return (
        container.container_id,
        container.image_name,
        clipped(escaped(" ".join(container.argv)), output.room(30)),
        age(container.created, now),
        _said(status, now),
        container.name,
    )


def _said(status: ContainerStatus, now: float) -> str:
    """``Up 3 minutes``, ``Exited (0) 2 days ago``, ``Created``."""
    state = status.state
    if state.status == "running":
        since = "" if state.started_ns is None else f" {span(now - state.started_ns / 1e9)}"
        return f"Up{since}"
    if state.status != "exited":
        return state.status.capitalize()
    code = "?" if state.exit_code is None else str(state.exit_code)
    ago = "" if state.finished_ns is None else f" {span(now - state.finished_ns / 1e9)} ago"
    return f"Exited ({code}){ago}" + (" out of memory" if state.oom_killed else "")


def status_json(status: ContainerStatus) -> dict[str, object]:
    container, state = status.container, status.state
    return {
        "container_id": container.container_id,
        "name": container.name,
        "image": container.image_name,
        "image_id": container.image_id,
        "command": list(container.argv),
        "created": container.created,
        "status": state.status,
        "pid": state.pid,
        "exit_code": state.exit_code,
        "oom_killed": state.oom_killed,
        "started": _moment(state.started_ns),
        "finished": _moment(state.finished_ns),
    }


def _moment(ns: int | None) -> str | None:
    return None if ns is None else running.timestamp(ns // 1_000_000_000)


# -- rm ------------------------------------------------------------------------------------------


def _rm(settings: Settings, parsed: Parsed) -> int:
    """Every container that can be removed is; the first failure's exit code."""
    store = Store.open(settings.root)
    code = 0
    for name in parsed.arguments:
        try:
            running.remove(store, name, force=parsed.has("force"))
            output.say(escaped(name))
        except LayerstoreError as error:
            failure = output.complain(error)
            code = code or failure
    return code


_COMMANDS: dict[str, Callable[[Settings, Parsed], int]] = {"run": _run, "ps": _ps, "rm": _rm}
