"""What can be done with containers that run: enter, signal, watch, attach.

It needs nothing of a store but the folders of its containers, which it finds by itself, as
``store.containers`` lays them out: opening a store costs more than an ``exec``. ``layerstore.life``
has the same by store and name, and what needs layers. Every call leaves no process, mount, cgroup
or descriptor behind, and asks the kernel each time what is true.
"""

from __future__ import annotations

import os
import time

from layerstore.errors import ConflictError, DamagedError, FormatError, NotFoundError, UsageError
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.inotify import Changes
from layerstore.kernel.process import SIGKILL, parse_signal
from layerstore.kernel.values import Value
from layerstore.runtime import attach as attaching
from layerstore.runtime import deliver, enter, record
from layerstore.runtime import logs as logging
from layerstore.runtime.attach import DETACH_KEYS
from layerstore.runtime.plan import LaunchPlan, parse_user
from layerstore.runtime.state import State, await_free, read_state
from layerstore.runtime.supervision import Outcome
from layerstore.runtime.upkeep import Kept

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerstore.runtime.logs import Line
    from layerstore.runtime.state import StrPath

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LOCK_CHECK_S = 1.0
"""How often a follower looks whether a monitor was killed: that changes no file."""


class ExecOptions(Value):
    """What ``exec`` is asked for; what is None is as it is for the container's first command."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    """Added to the container's."""
    user: str | None = None
    workdir: str | None = None
    interactive: bool = False
    terminal: bool = False


class Process(Value):
    """A process of a container, as the host sees it."""

    pid: int
    ppid: int
    uid: int
    state: str
    cpu_s: float
    resident: int
    """Bytes."""
    command: str


class Stats(Value):
    """What a container uses now; None where nothing here counts it."""

    container_id: str
    name: str
    memory: int | None
    memory_limit: int | None
    cpu_ns: int | None
    """Of all its processors, since its command started."""
    elapsed_ns: int
    """Since its command started."""
    pids: int | None
    read_bytes: int | None
    written_bytes: int | None
    received_bytes: int | None
    """By its network interfaces but the loopback; None if the network is the host's."""
    sent_bytes: int | None


class Found:
    """A container that a user named, and where its things are."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder = folder
        self.name = name
        """As the user said it."""
        self.container_id = os.path.basename(folder)
        self.state_dir = folder + "/state"

    def running(self) -> State:
        """Raises ConflictError if its command does not run."""
        state = read_state(self.state_dir)
        if state.status != "running" or state.pid is None:
            raise ConflictError(
                f"the container {self.name} is not running",
                hint=f"start it with layerstore start {self.name}",
            )
        return state

    def moving(self) -> State:
        """As ``running``; raises ConflictError also if it is paused."""
        state = self.running()
        if Cgroup.of_paths(state.cgroups).is_frozen:
            raise ConflictError(
                f"the container {self.name} is paused",
                hint=f"let it go on with layerstore unpause {self.name}",
            )
        return state

    def kept(self) -> Kept:
        """How it is started and kept. Raises DamagedError."""
        try:
            with open(self.folder + "/launch.json", encoding="utf-8") as file:
                kept = record.parse(file.read())
        except (FileNotFoundError, FormatError):
            kept = None
        if not isinstance(kept, Kept):
            raise DamagedError(
                f"how the container {self.name} is started is not on record, or by another "
                "version of layerstore",
                hint="commit it to an image, and run that",
            )
        return kept


def find(root: StrPath, name: str) -> Found:
    """The container that a user means: a name, an id, or its first digits.

    Raises NotFoundError, UsageError.
    """
    folder = os.fspath(root) + "/containers"
    ids = _listed(folder)
    owner = None
    if "/" not in name:
        try:
            owner = os.readlink(f"{os.fspath(root)}/names/{name}")
        except OSError:
            pass
    matches = [owner] if owner in ids else [i for i in ids if name and i.startswith(name)]
    if len(matches) > 1:
        raise UsageError(f"{name!r} fits {len(matches)} containers", hint="give more digits")
    if not matches:
        raise NotFoundError(
            f"there is no container {name!r}", hint="layerstore ps -a lists the containers"
        )
    return Found(f"{folder}/{matches[0]}", name)


def find_all(root: StrPath) -> list[Found]:
    """Every container, by id."""
    folder = os.fspath(root) + "/containers"
    return [Found(f"{folder}/{container_id}", container_id) for container_id in _listed(folder)]


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


# -- signals -------------------------------------------------------------------------------------


def stop(found: Found, *, timeout_s: float | None = None) -> None:
    """The container has ended: by its stop signal, or by force after its stop timeout.

    It is not restarted. One that does not run stays as it is.
    """
    upkeep = found.kept().upkeep
    patience = upkeep.stop_timeout_s if timeout_s is None else timeout_s
    deliver.end(found.state_dir, upkeep.stop_signal, patience)


def kill(found: Found, signal: str = "KILL") -> None:
    """The container's command got the signal. One that is meant to end it for good, does."""
    number = parse_signal(signal)
    ends = number in (SIGKILL, found.kept().upkeep.stop_signal)
    os.close(deliver.deliver(found.state_dir, found.running(), number, ends=ends))
    if number == SIGKILL:
        await_free(found.state_dir, deliver.END_PATIENCE_S)


def wait(found: Found) -> int | None:
    """The exit code of the container, once it has ended for good; None if nobody saw it end."""
    outcome = attaching.await_outcome(found.state_dir)
    if outcome is not None:
        return outcome.exit_code
    while not await_free(found.state_dir, 3600):
        pass
    return read_state(found.state_dir).exit_code


def pause(found: Found) -> None:
    """Every process of the container stands still. Raises ConflictError, HostError."""
    Cgroup.of_paths(found.moving().cgroups).freeze()


def unpause(found: Found) -> None:
    """The container's processes go on. Raises ConflictError if they do anyway."""
    cgroup = Cgroup.of_paths(found.running().cgroups)
    if not cgroup.is_frozen:
        raise ConflictError(f"the container {found.name} is not paused")
    cgroup.thaw()


# -- enter and attach ----------------------------------------------------------------------------


def execute(
    found: Found, options: ExecOptions, *, stdin: int = 0, stdout: int = 1, stderr: int = 2
) -> Outcome:
    """Runs one more command in the container to its end.

    Raises LaunchError (125, 126, 127) if it did not start, ConflictError if the container does not
    run or is paused.
    """
    state = found.moving()
    return enter.run(_exec_plan(found, options), state, stdin=stdin, stdout=stdout, stderr=stderr)


def execute_detached(found: Found, options: ExecOptions) -> None:
    """As ``execute``, but returns when the command runs; its output is lost."""
    state = found.moving()
    enter.leave_running(_exec_plan(found, options), state)


def _exec_plan(found: Found, options: ExecOptions) -> LaunchPlan:
    if not options.argv:
        raise UsageError("there is no command to run", hint="name one after the container")
    plan = found.kept().plan
    env = dict(plan.env)
    env.update((os.fsencode(name), os.fsencode(value)) for name, value in options.env.items())
    return plan.replace(
        argv=tuple(map(os.fsencode, options.argv)),
        env=tuple(env.items()),
        user=plan.user if options.user is None else parse_user(options.user),
        cwd=plan.cwd if options.workdir is None else os.fsencode(options.workdir),
        interactive=options.interactive,
        terminal=options.terminal,
    )


def attach(
    found: Found,
    *,
    stdin: int | None = 0,
    stdout: int = 1,
    stderr: int = 2,
    detach_keys: bytes = DETACH_KEYS,
) -> Outcome | None:
    """The caller's streams are the command's, until it ends; None if the caller detached."""
    found.running()
    return attaching.attach(
        found.state_dir, stdin=stdin, stdout=stdout, stderr=stderr, detach_keys=detach_keys
    )


# -- watch ---------------------------------------------------------------------------------------


def logs(
    found: Found, *, since: str | None = None, tail: int | None = None, follow: bool = False
) -> Iterator[Line]:
    """(time, stream, text) of what a detached command wrote, oldest first; with ``follow``, until
    it has ended for good.

    ``since`` is a span such as ``10m`` or a time; ``tail`` a number of lines.
    """
    after = b"" if since is None else logging.parse_since(since, time.time_ns())
    return _lines(found, after, tail, follow=follow)


def _lines(found: Found, after: bytes, tail: int | None, *, follow: bool) -> Iterator[Line]:
    folder = found.folder + "/log"
    reader = logging.LogReader(folder)
    # Watched before the first look, so that nothing falls between the two.
    watched = [path for path in (folder, found.state_dir) if os.path.isdir(path)]
    changes = Changes(watched) if follow else None
    try:
        lines = (line for line in reader.read() if line[0] >= after)
        if tail is None:
            yield from lines
        else:
            yield from logging.last_lines(list(lines), tail)
        while changes is not None:
            has_ended = await_free(found.state_dir, 0)
            yield from (line for line in reader.read() if line[0] >= after)
            if has_ended:
                return
            changes.await_any(_LOCK_CHECK_S)
    finally:
        reader.close()
        if changes is not None:
            changes.close()


def top(found: Found) -> list[Process]:
    """The container's processes, by pid."""
    state = found.running()
    if state.cgroups:
        pids = Cgroup.of_paths(state.cgroups).processes()
    else:
        pids = _same_pid_namespace(state.pid or 0)
    processes = []
    for pid in sorted(pids):
        try:
            processes.append(_process(pid))
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            pass
    return processes


def _same_pid_namespace(pid: int) -> list[int]:
    mine = os.readlink(f"/proc/{pid}/ns/pid")
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == mine:
                found.append(int(name))
        except OSError:  # it has ended, or is not ours to look at
            pass
    return found


def _process(pid: int) -> Process:
    folder = f"/proc/{pid}"
    head, _, rest = _content(folder + "/stat").rpartition(b") ")
    fields = rest.split()
    words = _content(folder + "/cmdline").rstrip(b"\0").replace(b"\0", b" ")
    return Process(
        pid=pid,
        ppid=int(fields[1]),
        uid=os.stat(folder).st_uid,
        state=fields[0].decode(),
        cpu_s=(int(fields[11]) + int(fields[12])) / _CLOCK_TICKS,
        resident=int(fields[21]) * _PAGE,
        command=os.fsdecode(words or b"[" + head.partition(b"(")[2] + b"]"),
    )


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def stats(found: Found) -> Stats:
    """One sample. Raises ConflictError if the container does not run."""
    state = found.running()
    usage = Cgroup.of_paths(state.cgroups).usage() if state.cgroups else None
    received, sent = _network_bytes(state.pid or 0)
    return Stats(
        container_id=found.container_id,
        name=_name_of(found),
        memory=usage.memory if usage else None,
        memory_limit=usage.memory_limit if usage else None,
        cpu_ns=usage.cpu_ns if usage else None,
        elapsed_ns=time.time_ns() - (state.started_ns or time.time_ns()),
        pids=usage.pids if usage else None,
        read_bytes=usage.read_bytes if usage else None,
        written_bytes=usage.written_bytes if usage else None,
        received_bytes=received,
        sent_bytes=sent,
    )


def stats_of_all(root: StrPath) -> list[Stats]:
    """One sample of each container that runs."""
    samples = []
    for found in find_all(root):
        try:
            samples.append(stats(found))
        except (ConflictError, FileNotFoundError):  # it does not run, or is gone
            pass
    return samples


def _name_of(found: Found) -> str:
    try:
        return str(record.scan(_content(found.folder + "/config.json").decode())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return found.name


def _network_bytes(pid: int) -> tuple[int, int] | tuple[None, None]:
    try:
        if os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            return None, None
        with open(f"/proc/{pid}/net/dev") as lines:
            rows = [line.replace(":", " ").split() for line in lines][2:]
    except OSError:
        return None, None
    rows = [row for row in rows if row[0] != "lo"]
    return sum(int(row[1]) for row in rows), sum(int(row[9]) for row in rows)
