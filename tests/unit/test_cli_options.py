"""The quick parser and the Typer commands take the same words for the same thing."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from layerstore.cli.full import make_app
from layerstore.cli.options import HOT, PS, RM, RUN, Command, Parsed
from layerstore.cli.quick import parse
from layerstore.cli.run import run_options
from layerstore.errors import NotFoundError, UsageError
from layerstore.runtime.plan import Tmpfs

TAKEN = [
    ("run", "busybox"),
    ("run", "--rm", "busybox", "true"),
    ("run", "-it", "busybox", "sh"),
    ("run", "-i", "-t", "--interactive", "busybox"),
    ("run", "-e", "A=B", "--env", "C=D=E", "--env=F", "-eG=H", "-ieI=J", "busybox"),
    ("run", "--memory=1g", "busybox"),
    ("run", "--memory", "1g", "-m2g", "-m", "3g", "busybox"),
    ("run", "-h", "host", "busybox"),
    ("run", "--name", "--rm", "busybox"),
    ("run", "--name", "", "busybox"),
    ("run", "--name=", "busybox"),
    ("run", "-e", "-x", "busybox"),
    ("run", "-e=A", "busybox"),
    ("run", "busybox", "ls", "--all", "-l", "--", "--rm"),
    ("run", "--", "busybox", "--rm"),
    ("run", "--rm", "--", "busybox", "--", "x"),
    ("run", "busybox", "--help"),
    ("run", "-v", "/a:/b", "--tmpfs", "/t", "--cap-drop", "all", "--read-only", "-", "x"),
    ("run", "--security-opt", "no-new-privileges:false", "--pids-limit", "5", "busybox"),
    ("run", "-dit", "--restart", "on-failure:3", "--log-opt", "max-size=1m", "busybox"),
    ("create", "--name", "a", "busybox", "-x"),
    ("exec", "-it", "-w", "/x", "box", "sh", "-c", "ls -t"),
    ("exec", "-d", "box", "-d"),
    ("start", "-ai", "a", "b"),
    ("stop", "-t", "3", "a", "b"),
    ("stop", "-t3", "a"),
    ("kill", "-sUSR1", "a"),
    ("logs", "-ft", "--tail=5", "a"),
    ("logs", "a", "-n", "all"),
    ("attach", "--no-stdin", "--detach-keys", "ctrl-a", "a"),
    ("stats",),
    ("stats", "--no-stream", "a", "b", "--json"),
    ("cp", "-aL", "a:/x", "-"),
    ("ps",),
    ("ps", "-aq"),
    ("ps", "--all", "--json"),
    ("rm", "a", "b"),
    ("rm", "a", "-f", "b"),
    ("rm", "--force", "--", "-f"),
]

REFUSED = [
    ("run",),
    ("run", "--rm"),
    ("run", "--nope", "busybox"),
    ("run", "-x", "busybox"),
    ("run", "-ix", "busybox"),
    ("run", "--rm=true", "busybox"),
    ("run", "--name"),
    ("run", "-e"),
    ("run", "--mem", "1g", "busybox"),
    ("ps", "a"),
    ("ps", "-a", "--", "-q"),
    ("ps", "--format", "x"),
    ("rm",),
    ("rm", "-f"),
    ("rm", "-x", "a"),
    ("exec", "box"),
    ("stop",),
    ("logs", "a", "b"),
    ("cp", "a:/x"),
    ("top", "a", "b"),
    ("kill", "-s"),
]

_ids = " ".join


def by_typer(words: tuple[str, ...]) -> Parsed:
    found = make_app(words[0])(list(words), prog_name="layerstore", standalone_mode=False)
    assert isinstance(found, Parsed)
    return found


@pytest.mark.parametrize("words", TAKEN, ids=_ids)
def test_both_parsers_give_the_same(words: tuple[str, ...]) -> None:
    assert parse(HOT[words[0]], list(words[1:])) == by_typer(words)


@pytest.mark.parametrize("words", REFUSED, ids=_ids)
def test_both_parsers_refuse_the_same(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(HOT[words[0]], list(words[1:]))
    assert caught.value.hint is not None
    assert f"layerstore {words[0]} --help" in caught.value.hint
    with pytest.raises(Exception) as by_click:  # Typer names no base
        by_typer(words)
    assert hasattr(by_click.value, "format_message")


@pytest.mark.parametrize("command", HOT.values(), ids=lambda command: command.name)
def test_both_know_the_same_options(command: Command) -> None:
    root: Any = typer.main.get_command(make_app(command.name))  # Any: Click's, in its own place
    known = {
        (tuple(param.opts), param.is_flag, param.multiple)
        for param in root.commands[command.name].params
        if param.param_type_name == "option"
    }
    assert known == {(o.names, o.metavar is None, o.repeats) for o in command.options}


def test_what_was_given_is_told_apart() -> None:
    assert parse(
        RUN, ["-it", "--name", "a", "--name", "b", "-e", "A=1", "-eB=2", "image", "sh", "-c", "x"]
    ) == Parsed(
        flags=frozenset(("interactive", "tty")),
        values={"name": ("b",), "env": ("A=1", "B=2")},
        arguments=("image", "sh", "-c", "x"),
    )


@pytest.mark.parametrize(
    ("command", "words"),
    [(RUN, ["--help"]), (RUN, ["--rm", "--help"]), (PS, ["-h"]), (RM, ["a", "--help"])],
    ids=["run", "run after an option", "ps short", "rm after an argument"],
)
def test_help_is_asked_for(command: Command, words: list[str]) -> None:
    assert parse(command, words) is None


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UsageError, match="there is no option '--memoory'") as caught:
        parse(RUN, ["--memoory", "1g", "busybox"])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean --memory?")


# -- values --------------------------------------------------------------------------------------


def options(*words: str) -> Any:  # Any: RunOptions, whose fields are compared one by one
    parsed = parse(RUN, [*words, "image"])
    assert parsed is not None
    return run_options(parsed)


def test_limits_are_read_as_docker_reads_them() -> None:
    limits = options("-m", "64m", "--memory-swap", "-1", "--cpus", "1.5", "--pids-limit=7").limits
    assert (limits.memory, limits.memory_swap, limits.cpus, limits.pids) == (64 << 20, -1, 1.5, 7)


def test_variables_come_from_files_then_options_then_the_environment(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").write_text("# comment\n\nA=file\nB=two words \nPASSED\nMISSING\n")
    monkeypatch.setenv("PASSED", "on")
    monkeypatch.delenv("MISSING", raising=False)
    found = options("-e", "A=option", "--env-file", str(tmp_path / "env"), "-e", "MISSING")
    assert found.env == {"A": "option", "B": "two words ", "PASSED": "on"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/t", Tmpfs(target=b"/t")),
        ("/t:size=64k", Tmpfs(target=b"/t", size=64 << 10)),
        ("/t:rw,noexec,mode=0700", Tmpfs(target=b"/t", mode=0o700)),
        ("/t:exec,nosuid", Tmpfs(target=b"/t", is_executable=True)),
    ],
)
def test_a_tmpfs_has_dockers_options(text: str, expected: Tmpfs) -> None:
    assert options("--tmpfs", text).tmpfs == (expected,)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), True),
        (("no-new-privileges",), True),
        (("no-new-privileges=false",), False),
        (("no-new-privileges:false", "no-new-privileges:true"), True),
    ],
    ids=["default", "bare", "equals", "last"],
)
def test_no_new_privileges_can_be_turned_off(given: tuple[str, ...], expected: bool) -> None:
    words = [word for option in given for word in ("--security-opt", option)]
    assert options(*words).no_new_privs is expected


@pytest.mark.parametrize(
    ("given", "expected"), [((), None), (("",), ()), (("sh",), ("sh",))], ids=["no", "empty", "sh"]
)
def test_an_entrypoint_is_one_word(given: tuple[str], expected: tuple[str, ...] | None) -> None:
    words = [word for text in given for word in ("--entrypoint", text)]
    assert options(*words).entrypoint == expected


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("-e", "=x"), UsageError, "'=x' is not a variable"),
        (("--env-file", "/nope"), NotFoundError, "cannot read the file of variables '/nope'"),
        (("--tmpfs", "/t:foo"), UsageError, "'foo' in --tmpfs '/t:foo' is not an option"),
        (("--tmpfs", "/t:mode=9"), UsageError, "'mode=9' in --tmpfs"),
        (("--tmpfs", "t"), UsageError, "'t' is not a place to mount at"),
        (("--security-opt", "label=x"), UsageError, "'label=x' is not a security option"),
        (("--memory", "much"), UsageError, "'much' is not a size"),
        (("--memory", "1"), UsageError, "a memory limit of 1 bytes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_value_without_meaning_is_quoted(
    words: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        options(*words)


def test_what_keeps_a_container_is_read() -> None:
    found = options(
        "--init", "--restart", "on-failure:3", "--stop-signal", "INT", "--stop-timeout", "1m",
        "--log-opt", "max-size=1m", "--log-opt", "max-file=2", "--health-cmd", "true",
        "--health-interval", "1m30s", "--health-retries", "5",
    )  # fmt: skip
    assert found.init
    assert (found.restart.policy, found.restart.tries) == ("on-failure", 3)
    assert (found.stop_signal, found.stop_timeout_s) == ("INT", 60)
    assert (found.log_size, found.log_files) == (1 << 20, 2)
    check = found.health
    assert (check.argv, check.interval_s, check.retries) == ((b"/bin/sh", b"-c", b"true"), 90, 5)
    assert options().health is None


@pytest.mark.parametrize(
    "words",
    [
        ("--restart", "sometimes"), ("--log-opt", "max-size"), ("--log-opt", "tag=x"),
        ("--log-opt", "max-file=x"), ("--health-retries", "3"), ("--stop-timeout", "soon"),
        ("--health-cmd", "x", "--health-interval", "0"),
    ],
    ids=_ids,
)  # fmt: skip
def test_what_keeps_no_container_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        options(*words)
