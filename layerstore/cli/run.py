"""``run``, ``create``, ``ps`` and ``rm``: commands that must start fast.

They call the module that the API calls, ``layerstore.run``, without the API, whose other half is
the builder. Nothing here may import Typer; a test says so.
"""

from __future__ import annotations

import os
import time

from layerstore import run as running
from layerstore.cli import output
from layerstore.cli.options import Parsed
from layerstore.cli.values import converted, detach_keys, environment, exit_code
from layerstore.errors import LayerstoreError, UsageError
from layerstore.report.text import age, clipped, escaped, span, table
from layerstore.runtime.limits import Limits, parse_cpus, parse_pids, parse_size, parse_swap
from layerstore.runtime.plan import Tmpfs
from layerstore.runtime.upkeep import HealthCheck, parse_duration, parse_restart
from layerstore.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from layerstore.run import ContainerStatus, RunOptions
    from layerstore.runtime.supervise import Outcome
    from layerstore.settings import Settings

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
_IGNORED_TMPFS_OPTIONS = frozenset(("rw", "nosuid", "nodev", "noexec", ""))
"""What a tmpfs of a container is anyway."""


def execute(command: str, settings: Settings, parsed: Parsed) -> int:
    """The exit code."""
    return COMMANDS[command](settings, parsed)


# -- run -----------------------------------------------------------------------------------------


def _run(settings: Settings, parsed: Parsed) -> int:
    options = run_options(parsed, driver=settings.driver)
    store = Store.open(settings.root)
    if parsed.has("detach"):
        output.say(running.run_detached(store, options).container_id)
        return 0
    outcome: Outcome | None
    if parsed.has("tty"):
        _, outcome = running.run_on_terminal(store, options, detach_keys=detach_keys(parsed))
    else:
        outcome = running.run(store, options)
    return exit_code(outcome)


def _create(settings: Settings, parsed: Parsed) -> int:
    container, _ = running.create(
        Store.open(settings.root), run_options(parsed, driver=settings.driver)
    )
    output.say(container.container_id)
    return 0


def run_options(parsed: Parsed, *, driver: str = "auto") -> RunOptions:
    """Raises UsageError or NotFoundError for values that have no meaning."""
    image, *argv = parsed.arguments
    entrypoint = parsed.text("entrypoint")
    no_new_privs, seccomp = _security(parsed.texts("security_opt"))
    return running.RunOptions(
        image=image,
        argv=tuple(argv),
        entrypoint=None if entrypoint is None else (entrypoint,) if entrypoint else (),
        name=parsed.text("name"),
        env=environment(parsed),
        user=parsed.text("user"),
        workdir=parsed.text("workdir"),
        hostname=parsed.text("hostname"),
        binds=tuple(running.parse_bind(text) for text in parsed.texts("volume")),
        tmpfs=tuple(_tmpfs(text) for text in parsed.texts("tmpfs")),
        network=parsed.text("network") or "none",
        limits=Limits(
            memory=converted(parsed, "memory", parse_size),
            memory_swap=converted(parsed, "memory_swap", parse_swap),
            cpus=converted(parsed, "cpus", parse_cpus),
            pids=converted(parsed, "pids_limit", parse_pids),
        ),
        cap_add=parsed.texts("cap_add"),
        cap_drop=parsed.texts("cap_drop"),
        no_new_privs=no_new_privs,
        seccomp=seccomp,
        read_only=parsed.has("read_only"),
        driver=driver,
        remove=parsed.has("rm"),
        interactive=parsed.has("interactive"),
        terminal=parsed.has("tty"),
        init=parsed.has("init"),
        restart=parse_restart(parsed.text("restart") or "no"),
        stop_signal=parsed.text("stop_signal"),
        stop_timeout_s=converted(parsed, "stop_timeout", parse_duration),
        **_log_options(parsed),
        health=_health(parsed),
        no_health=parsed.has("no_healthcheck"),
    )


def _log_options(parsed: Parsed) -> dict[str, Any]:  # Any: two fields of RunOptions
    found: dict[str, int] = {}
    for text in parsed.texts("log_opt"):
        name, _, value = text.partition("=")
        if name == "max-size":
            found["log_size"] = parse_size(value)
        elif name == "max-file" and value.isascii() and value.isdigit():
            found["log_files"] = int(value)
        else:
            raise UsageError(
                f"{text!r} is not an option of logs", hint="write max-size=16m or max-file=4"
            )
    return found


def _health(parsed: Parsed) -> HealthCheck | None:
    command = parsed.text("health_cmd")
    if command is None:
        for key in ("health_interval", "health_timeout", "health_retries", "health_start_period"):
            if parsed.text(key) is not None:
                raise UsageError(
                    f"--{key.replace('_', '-')} has no meaning without --health-cmd",
                    hint="add --health-cmd",
                )
        return None
    usual = HealthCheck(argv=(b"/bin/sh", b"-c", os.fsencode(command)))
    given = {
        "interval_s": converted(parsed, "health_interval", parse_duration),
        "timeout_s": converted(parsed, "health_timeout", parse_duration),
        "start_period_s": converted(parsed, "health_start_period", parse_duration),
        "retries": converted(parsed, "health_retries", parse_pids),
    }
    return usual.replace(**{name: value for name, value in given.items() if value is not None})


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


def _security(options: tuple[str, ...]) -> tuple[bool, str | None]:
    """(no_new_privs, the seccomp profile). The first is on, as here it is the default."""
    no_new_privs, seccomp = True, None
    for option in options:
        name, _, value = option.replace("=", ":", 1).partition(":")
        if name == "seccomp" and value:
            seccomp = value
        elif name == "no-new-privileges" and (value.lower() or "true") in (*_TRUE, *_FALSE):
            no_new_privs = (value.lower() or "true") in _TRUE
        else:
            raise UsageError(
                f"{option!r} is not a security option",
                hint="no-new-privileges[:BOOL], seccomp=FILE and seccomp=unconfined are there",
            )
    return no_new_privs, seccomp


# -- ps ------------------------------------------------------------------------------------------


def _ps(settings: Settings, parsed: Parsed) -> int:
    store = Store.open(settings.root)
    running.tidy(store)
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
    if state.status in ("running", "paused", "restarting"):
        since = "" if state.started_ns is None else f" {span(now - state.started_ns / 1e9)}"
        remarks = [state.status] if state.status != "running" else []
        remarks += [state.health] if state.health else []
        return f"Up{since}" + (f" ({', '.join(remarks)})" if remarks else "")
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
        "restarts": state.restarts,
        "health": state.health or None,
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


COMMANDS: dict[str, Callable[[Settings, Parsed], int]] = {
    "run": _run,
    "create": _create,
    "ps": _ps,
    "rm": _rm,
}
