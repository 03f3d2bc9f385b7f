"""The options of the commands that have to start fast, as tables.

A table makes both the quick parser (``cli.quick``), which a command really goes through, and the
Typer command (``cli.hot``), which has the help and the completion. Names and meanings are docker's.
"""

from __future__ import annotations

from layerstore.kernel.values import Value


class Option(Value):
    """An option; its key is its long name."""

    names: tuple[str, ...]
    """The long one last."""
    help: str
    metavar: str | None = None
    """None: it takes no value."""
    repeats: bool = False

    @property
    def key(self) -> str:
        return self.names[-1].removeprefix("--").replace("-", "_")


class Argument(Value):
    """A word that is no option."""

    metavar: str
    help: str
    repeats: bool = False
    is_required: bool = True

    @property
    def key(self) -> str:
        return self.metavar.lower()


class Command(Value):
    """A command's name and everything it takes."""

    name: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...] = ()
    ends_at_argument: bool = False
    """Everything after the first argument belongs to what it runs."""


class Parsed(Value):
    """What was given. Repeated options keep their order; of others the last value counts."""

    flags: frozenset[str] = frozenset()
    values: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - never changed, as Value promises
    arguments: tuple[str, ...] = ()

    def has(self, key: str) -> bool:
        return key in self.flags

    def text(self, key: str) -> str | None:
        """The value of an option that counts once; None if it was not given."""
        given = self.values.get(key)
        return None if given is None else given[-1]

    def texts(self, key: str) -> tuple[str, ...]:
        return self.values.get(key, ())


def _flag(*names: str, say: str) -> Option:
    return Option(names=names, help=say)


def _value(*names: str, is_: str, say: str) -> Option:
    return Option(names=names, metavar=is_, help=say)


def _values(*names: str, is_: str, say: str) -> Option:
    return Option(names=names, metavar=is_, help=say + " Repeatable.", repeats=True)


JSON = _flag("--json", say="Print JSON.")

_CREATE_OPTIONS = (
    _flag("--rm", say="Remove the container when its command ends."),
    _flag("-i", "--interactive", say="Let the command read standard input."),
    _flag("-t", "--tty", say="Give the command a terminal of its own."),
    _value("--name", is_="NAME", say="Name the container."),
    _values("-e", "--env", is_="NAME[=VALUE]", say="Set a variable, or pass on this one."),
    _values("--env-file", is_="FILE", say="Set the variables that a file lists."),
    _value("-w", "--workdir", is_="DIR", say="Start in this directory."),
    _value("-u", "--user", is_="USER[:GROUP]", say="Run as this user: a name or an id."),
    _values("-v", "--volume", is_="SOURCE:TARGET[:ro]", say="Mount a directory of this host."),
    _values("--tmpfs", is_="TARGET[:OPTIONS]", say="Mount an empty file system in memory."),
    _value("-m", "--memory", is_="SIZE", say="Limit memory, such as 512m."),
    _value("--memory-swap", is_="SIZE", say="Limit memory and swap together; -1 for no limit."),
    _value("--cpus", is_="NUMBER", say="Limit processors, such as 1.5."),
    _value("--pids-limit", is_="NUMBER", say="Limit the number of processes."),
    _value("--network", is_="none|host", say="The network that it sees; none by default."),
    _value("-h", "--hostname", is_="NAME", say="Name the host that it sees."),
    _flag("--read-only", say="Mount the container's root read-only."),
    _value("--entrypoint", is_="PROGRAM", say="Replace the image's entrypoint."),
    _values("--cap-add", is_="CAPABILITY", say="Add a capability, or ALL."),
    _values("--cap-drop", is_="CAPABILITY", say="Take a capability away, or ALL."),
    _values(
        "--security-opt", is_="OPTION", say="no-new-privileges[:BOOL], seccomp=FILE|unconfined."
    ),
    _flag("--init", say="Let a small init be process 1: it reaps orphans, and passes signals on."),
    _value("--restart", is_="POLICY", say="no, on-failure[:TRIES], always or unless-stopped."),
    _value("--stop-signal", is_="SIGNAL", say="What stop sends, instead of the image's signal."),
    _value("--stop-timeout", is_="SECONDS", say="How long stop waits before it kills; 10."),
    _values(
        "--log-opt", is_="max-size=SIZE|max-file=NUMBER", say="When logs rotate: 16m, 4 files."
    ),
    _value("--health-cmd", is_="COMMAND", say="A shell command that says whether all is well."),
    _value("--health-interval", is_="TIME", say="How long to wait between two checks; 30s."),
    _value("--health-timeout", is_="TIME", say="How long a check may take; 30s."),
    _value("--health-retries", is_="NUMBER", say="How many failures mean unhealthy; 3."),
    _value("--health-start-period", is_="TIME", say="How long failures do not count; 0s."),
    _flag("--no-healthcheck", say="Do not run the image's health check."),
)
_DETACH_KEYS = _value("--detach-keys", is_="KEYS", say="What detaches; ctrl-p,ctrl-q.")
_IMAGE_AND_COMMAND = (
    Argument(metavar="IMAGE", help="A name or the first digits of an id."),
    Argument(
        metavar="COMMAND", help="Instead of the image's command.",
        repeats=True, is_required=False,
    ),
)  # fmt: skip
_CONTAINER = Argument(metavar="CONTAINER", help="A name or an id.")
_CONTAINERS = Argument(metavar="CONTAINER", help="A name or an id.", repeats=True)
_TIME = _value("-t", "--time", is_="SECONDS", say="Wait so long before killing.")

RUN = Command(
    name="run",
    help="Run a command in a new container.",
    ends_at_argument=True,
    options=(
        _flag("-d", "--detach", say="Print the id, and let the command run on by itself."),
        _DETACH_KEYS,
        *_CREATE_OPTIONS,
    ),
    arguments=_IMAGE_AND_COMMAND,
)

CREATE = Command(
    name="create",
    help="Make a container without starting it.",
    ends_at_argument=True,
    options=_CREATE_OPTIONS,
    arguments=_IMAGE_AND_COMMAND,
)

EXEC = Command(
    name="exec",
    help="Run one more command in a running container.",
    ends_at_argument=True,
    options=(
        _flag("-d", "--detach", say="Let the command run on by itself; its output is lost."),
        _flag("-i", "--interactive", say="Let the command read standard input."),
        _flag("-t", "--tty", say="Give the command a terminal of its own."),
        _values("-e", "--env", is_="NAME[=VALUE]", say="Set a variable, or pass on this one."),
        _values("--env-file", is_="FILE", say="Set the variables that a file lists."),
        _value("-w", "--workdir", is_="DIR", say="Start in this directory."),
        _value("-u", "--user", is_="USER[:GROUP]", say="Run as this user: a name or an id."),
    ),
    arguments=(_CONTAINER, Argument(metavar="COMMAND", help="What to run.", repeats=True)),
)

START = Command(
    name="start",
    help="Start containers that are stopped, with the changes that they made.",
    options=(
        _flag("-a", "--attach", say="Show the output, until the command ends."),
        _flag("-i", "--interactive", say="Attach, and pass standard input on."),
        _DETACH_KEYS,
    ),
    arguments=(_CONTAINERS,),
)

STOP = Command(
    name="stop",
    help="Ask containers to end, and kill those that do not.",
    options=(_TIME,),
    arguments=(_CONTAINERS,),
)

RESTART = Command(
    name="restart",
    help="Stop and start containers.",
    options=(_TIME,),
    arguments=(_CONTAINERS,),
)

KILL = Command(
    name="kill",
    help="Send a signal to the commands of containers.",
    options=(_value("-s", "--signal", is_="SIGNAL", say="Which one; KILL."),),
    arguments=(_CONTAINERS,),
)

WAIT = Command(
    name="wait",
    help="Wait until containers have ended, and print their exit codes.",
    options=(),
    arguments=(_CONTAINERS,),
)

PAUSE = Command(
    name="pause",
    help="Make all processes of containers stand still.",
    options=(),
    arguments=(_CONTAINERS,),
)

UNPAUSE = Command(
    name="unpause",
    help="Let the processes of paused containers go on.",
    options=(),
    arguments=(_CONTAINERS,),
)

ATTACH = Command(
    name="attach",
    help="Make the streams of a detached container those of this command.",
    options=(_flag("--no-stdin", say="Only show the output."), _DETACH_KEYS),
    arguments=(_CONTAINER,),
)

LOGS = Command(
    name="logs",
    help="Print what a detached container wrote.",
    options=(
        _flag("-f", "--follow", say="Go on until it has ended."),
        _value("--since", is_="TIME", say="Leave out what is older: a span (10m) or a time."),
        _value("-n", "--tail", is_="LINES", say="Print only the last ones."),
        _flag("-t", "--timestamps", say="Begin each line with its time."),
    ),
    arguments=(_CONTAINER,),
)

TOP = Command(
    name="top",
    help="List the processes of a container.",
    options=(JSON,),
    arguments=(_CONTAINER,),
)

STATS = Command(
    name="stats",
    help="Print what running containers use, once.",
    options=(_flag("--no-stream", say="Print once, as always."), JSON),
    arguments=(
        Argument(metavar="CONTAINER", help="All that run, by default.", repeats=True,
                 is_required=False),
    ),
)  # fmt: skip

CP = Command(
    name="cp",
    help="Copy files between a container and this host.",
    options=(
        _flag("-a", "--archive", say="Keep owners, and setuid bits."),
        _flag("-L", "--follow-link", say="Copy what a link as the source points to."),
    ),
    arguments=(
        Argument(metavar="SOURCE", help="PATH, or CONTAINER:PATH; /. at its end: what is in it."),
        Argument(metavar="TARGET", help="CONTAINER:PATH, or PATH."),
    ),
)

PS = Command(
    name="ps",
    help="List running containers.",
    options=(
        _flag("-a", "--all", say="List those as well that do not run."),
        _flag("-q", "--quiet", say="Print ids alone."),
        JSON,
    ),
)

RM = Command(
    name="rm",
    help="Remove containers and their writable layers.",
    options=(_flag("-f", "--force", say="Kill what still runs."),),
    arguments=(Argument(metavar="CONTAINER", help="A name or an id.", repeats=True),),
)

HOT = {
    command.name: command
    for command in (
        RUN, EXEC, PS, LOGS, STOP, KILL, RM, CREATE, START, RESTART, WAIT, ATTACH, PAUSE, UNPAUSE,
        TOP, STATS, CP,
    )
}  # fmt: skip
