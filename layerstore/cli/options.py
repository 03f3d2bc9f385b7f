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

RUN = Command(
    name="run",
    help="Run a command in a new container.",
    ends_at_argument=True,
    options=(
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
        _values("--security-opt", is_="no-new-privileges[:BOOL]", say="Allow or refuse setuid."),
    ),
    arguments=(
        Argument(metavar="IMAGE", help="A name or the first digits of an id."),
        Argument(
            metavar="COMMAND", help="Instead of the image's command.",
            repeats=True, is_required=False,
        ),
    ),
)  # fmt: skip

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

HOT = {command.name: command for command in (RUN, PS, RM)}
