"""Commands for containers that run; see ``layerstore.live``, which opens no store for them."""

from __future__ import annotations

import sys

from layerstore import live
from layerstore.cli import output
from layerstore.cli.values import converted, detach_keys, environment, exit_code
from layerstore.errors import LayerstoreError, UsageError
from layerstore.report.text import duration, escaped, size, table
from layerstore.runtime.upkeep import parse_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.cli.options import Parsed
    from layerstore.settings import Settings


def execute(command: str, settings: Settings, parsed: Parsed) -> int:
    """The exit code."""
    return COMMANDS[command](settings, parsed)


def _exec(settings: Settings, parsed: Parsed) -> int:
    name, *argv = parsed.arguments
    options = live.ExecOptions(
        argv=tuple(argv),
        env=environment(parsed),
        user=parsed.text("user"),
        workdir=parsed.text("workdir"),
        interactive=parsed.has("interactive"),
        terminal=parsed.has("tty"),
    )
    found = live.find(settings.root, name)
    if parsed.has("detach"):
        live.execute_detached(found, options)
        return 0
    return live.execute(found, options).exit_code


def _stop(settings: Settings, parsed: Parsed) -> int:
    timeout = converted(parsed, "time", parse_duration)
    return _each(settings, parsed, lambda found: live.stop(found, timeout_s=timeout))


def _kill(settings: Settings, parsed: Parsed) -> int:
    signal = parsed.text("signal") or "KILL"
    return _each(settings, parsed, lambda found: live.kill(found, signal))


def _pause(settings: Settings, parsed: Parsed) -> int:
    return _each(settings, parsed, live.pause)


def _unpause(settings: Settings, parsed: Parsed) -> int:
    return _each(settings, parsed, live.unpause)


def _each(settings: Settings, parsed: Parsed, act: Callable[[live.Found], object]) -> int:
    """Prints the name of each container with which it is done; the first failure's exit code."""
    code = 0
    for name in parsed.arguments:
        try:
            act(live.find(settings.root, name))
            output.say(escaped(name))
        except LayerstoreError as error:
            code = code or output.complain(error)
    return code


def _wait(settings: Settings, parsed: Parsed) -> int:
    for name in parsed.arguments:
        code = live.wait(live.find(settings.root, name))
        output.say("unknown" if code is None else str(code))
    return 0


def _attach(settings: Settings, parsed: Parsed) -> int:
    return exit_code(
        live.attach(
            live.find(settings.root, parsed.arguments[0]),
            stdin=None if parsed.has("no_stdin") else 0,
            detach_keys=detach_keys(parsed),
        )
    )


def _logs(settings: Settings, parsed: Parsed) -> int:
    """The command's standard error goes to ours."""
    tail = parsed.text("tail")
    lines = live.logs(
        live.find(settings.root, parsed.arguments[0]),
        since=parsed.text("since"),
        tail=None if tail in (None, "all") else _number("tail", tail),
        follow=parsed.has("follow"),
    )
    streams = {b"stdout": output.binary(), b"stderr": sys.stderr.buffer}
    at_start = dict.fromkeys(streams, True)
    for moment, stream, text in lines:
        if parsed.has("timestamps") and at_start[stream]:
            text = moment + b" " + text
        at_start[stream] = text.endswith(b"\n")
        streams[stream].write(text)
        if parsed.has("follow"):
            streams[stream].flush()
    return 0


def _number(name: str, text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdigit()):
        raise UsageError(f"{text!r} is not a number of lines", hint=f"write --{name} 10")
    return int(text)


def _top(settings: Settings, parsed: Parsed) -> int:
    found = live.top(live.find(settings.root, parsed.arguments[0]))
    if parsed.has("json"):
        output.say_json([
            {"pid": p.pid, "ppid": p.ppid, "uid": p.uid, "state": p.state, "cpu_seconds": p.cpu_s,
             "resident": p.resident, "command": escaped(p.command)}
            for p in found
        ])  # fmt: skip
        return 0
    rows = [
        (str(p.pid), str(p.ppid), str(p.uid), p.state, duration(p.cpu_s), size(p.resident),
         p.command)
        for p in found
    ]  # fmt: skip
    head = ("PID", "PPID", "UID", "STATE", "CPU TIME", "MEMORY", "COMMAND")
    output.say(table(head, rows, right="rrr rr"))
    return 0


def _stats(settings: Settings, parsed: Parsed) -> int:
    names = parsed.arguments
    if names:
        found = [live.stats(live.find(settings.root, name)) for name in names]
    else:
        found = live.stats_of_all(settings.root)
    if parsed.has("json"):
        output.say_json([_stats_json(sample) for sample in found])
        return 0
    head = ("NAME", "CPU", "MEMORY", "LIMIT", "PROCESSES", "READ", "WRITTEN", "RECEIVED", "SENT")
    output.say(table(head, [_stats_row(sample) for sample in found], right=" rrrrrrrr"))
    return 0


def _stats_json(sample: live.Stats) -> dict[str, object]:
    return {
        "container_id": sample.container_id,
        "name": sample.name,
        "cpu_ns": sample.cpu_ns,
        "elapsed_ns": sample.elapsed_ns,
        "memory": sample.memory,
        "memory_limit": sample.memory_limit,
        "processes": sample.pids,
        "read": sample.read_bytes,
        "written": sample.written_bytes,
        "received": sample.received_bytes,
        "sent": sample.sent_bytes,
    }


def _stats_row(sample: live.Stats) -> tuple[str, ...]:
    """CPU is the share of one processor since the start."""
    share = None if sample.cpu_ns is None else sample.cpu_ns / max(1, sample.elapsed_ns)
    return (
        sample.name,
        "-" if share is None else f"{share:.1%}",
        *("-" if count is None else size(count) for count in (sample.memory, sample.memory_limit)),
        "-" if sample.pids is None else str(sample.pids),
        *(
            "-" if count is None else size(count)
            for count in (
                sample.read_bytes,
                sample.written_bytes,
                sample.received_bytes,
                sample.sent_bytes,
            )
        ),
    )


COMMANDS: dict[str, Callable[[Settings, Parsed], int]] = {
    "exec": _exec,
    "stop": _stop,
    "kill": _kill,
    "wait": _wait,
    "pause": _pause,
    "unpause": _unpause,
    "attach": _attach,
    "logs": _logs,
    "top": _top,
    "stats": _stats,
}
