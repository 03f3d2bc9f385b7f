"""What is known of a container after its launcher is gone, in files of its state directory.

``state.json``  what was last true: replaced by rename
``lock``        held exclusively (flock) by the supervisor for the container's life
``stubs``       what the launcher created in the root, written before it is created
``stopped``     somebody wants the container to end, and not to be restarted

The lock decides: a state that says running, with a free lock, is a supervisor that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from layerstore.errors import ConflictError, is_full
from layerstore.kernel.cgroups import Cgroup
from layerstore.kernel.process import SIGKILL, boot_id, start_time
from layerstore.kernel.values import Value
from layerstore.runtime.record import emit, quoted, scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    StrPath = str | os.PathLike[str]

_LOCK_PATIENCE_S = 0.2


class State(Value):
    """A container's life. Times are nanoseconds since the epoch."""

    status: str = "created"
    """``created``, ``running``, ``restarting`` (between two starts) or ``exited``."""
    boot_id: str = ""
    pid: int | None = None
    pid_started: int | None = None
    """The pid's start in ticks since boot: both together name a process."""
    exit_code: int | None = None
    """None while it runs, and where nobody was there to see it end."""
    oom_killed: bool = False
    created_ns: int = 0
    started_ns: int | None = None
    finished_ns: int | None = None
    cgroups: tuple[str, ...] = ()
    """Directories that ``cleanup_leftovers`` removes."""
    supervisor: int | None = None
    supervisor_started: int | None = None
    is_monitored: bool = False
    """Whether the supervisor has nothing else to do in life."""
    has_init: bool = False
    """Whether the process is an init of ours, which passes every signal on."""
    restarts: int = 0
    health: str = ""
    """``starting``, ``healthy`` or ``unhealthy``, where the container has a health check."""
    is_supervised: bool = False
    """Not recorded: whether the supervisor holds its lock."""


def read_state(state_dir: StrPath) -> State:
    """What is true now, whatever was recorded before a kill or a reboot."""
    if _is_locked(state_dir):
        recorded = last_recorded(state_dir)
        return recorded.replace(is_supervised=recorded.status != "exited")
    return _truth(last_recorded(state_dir))


def _truth(recorded: State) -> State:
    """What a state means while nobody holds the lock."""
    if recorded.status == "exited" or not recorded.boot_id:
        return recorded
    if recorded.boot_id != boot_id():
        return recorded.replace(status="exited", pid=None, cgroups=())
    if recorded.pid is not None and start_time(recorded.pid) == recorded.pid_started:
        return recorded
    return recorded.replace(status="exited", pid=None)


def write_state(state_dir: StrPath, state: State) -> None:
    """Readers see the old state or this one; on a full disk ``last_recorded`` may find it torn."""
    pairs = [
        f"{quoted(name)}: {emit(getattr(state, name))}"
        for name in State._fields
        if name != "is_supervised"
    ]
    _replace(os.fspath(state_dir) + "/state.json", ("{" + ", ".join(pairs) + "}\n").encode())


def _replace(path: str, content: bytes) -> None:
    """Readers see the old content or this one, never a part.

    But on a full disk, where stopping and removing must work, it is written over the old one: who
    reads at that instant, or after a crash then, may find it torn.
    """
    try:
        fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            written = os.write(fd, content)
        finally:
            os.close(fd)
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.replace(path + ".tmp", path)
    except OSError as error:
        if not is_full(error):
            raise
        try:
            os.unlink(path + ".tmp")
        except FileNotFoundError:
            pass
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.pwrite(fd, content, 0) != len(content):
                raise
            os.ftruncate(fd, len(content))
        finally:
            os.close(fd)


def await_free(state_dir: StrPath, timeout_s: float) -> bool:
    """Whether nobody supervises the container, now or within that time."""
    deadline = time.monotonic() + timeout_s
    pause = 0.001
    while _is_locked(state_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(1.5 * pause, 0.02)
    return True


def cleanup_leftovers(state_dir: StrPath) -> State:
    """The truth, once what a killed supervisor left is gone. ConflictError if one is alive."""
    lock = acquire_lock(state_dir)
    try:
        return clear_locked(state_dir)
    finally:
        os.close(lock)


def clear_locked(state_dir: StrPath) -> State:
    """As cleanup_leftovers, for who holds the lock."""
    state = _truth(last_recorded(state_dir))
    if state.status != "exited" and state.pid is not None:
        try:
            os.kill(state.pid, SIGKILL)  # nobody supervises it, and its start time is the recorded
        except ProcessLookupError:
            pass
    if not state.cgroups:
        return state
    Cgroup.of_paths(state.cgroups).remove()
    cleared = state.replace(status="exited", pid=None, cgroups=())
    write_state(state_dir, cleared)
    return cleared


def acquire_lock(state_dir: StrPath) -> int:
    """The descriptor that holds the container's lock; closing it frees it. Raises ConflictError."""
    fd = _open_lock(state_dir)
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            # A reader holds it for microseconds; a supervisor for the container's life.
            if time.monotonic() > deadline:
                os.close(fd)
                raise ConflictError(
                    f"the container of {os.fspath(state_dir)} is running", hint="stop it first"
                ) from None
            time.sleep(0.005)


def _open_lock(state_dir: StrPath) -> int:
    return os.open(
        os.fspath(state_dir) + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )


def _is_locked(state_dir: StrPath) -> bool:
    try:
        fd = os.open(os.fspath(state_dir) + "/lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def last_recorded(state_dir: StrPath) -> State:
    """What state.json says; a fresh State if there is none, or a crash left it torn."""
    try:
        fd = os.open(os.fspath(state_dir) + "/state.json", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return State()
    try:
        text = os.read(fd, 1 << 20).decode("utf-8", "replace")
    finally:
        os.close(fd)
    try:
        fields = scan(text)
        fields["cgroups"] = tuple(fields["cgroups"])
        return State(**fields)
    except (ValueError, TypeError, KeyError):
        return State(status="exited")


def mark_stopped(state_dir: StrPath, signum: int = 0) -> None:
    """The container is not restarted when it ends.

    With ``signum``, a SIGKILL that is about to be sent counts as that signal.
    """
    try:
        _replace(os.fspath(state_dir) + "/stopped", str(signum).encode())
    except OSError as error:
        if not is_full(error):  # it is stopped all the same: what made room for it may restart it
            raise


def stop_mark(state_dir: StrPath) -> int | None:
    """The signal of ``mark_stopped``; None if the container may be restarted."""
    try:
        fd = os.open(os.fspath(state_dir) + "/stopped", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return int(os.read(fd, 16) or b"0")
    finally:
        os.close(fd)


def unmark_stopped(state_dir: StrPath) -> None:
    """The container may be restarted."""
    try:
        os.unlink(os.fspath(state_dir) + "/stopped")
    except FileNotFoundError:
        pass


class Stub(Value):
    """A mount point that the launcher created in the root: no change of the container's."""

    path: bytes
    """Absolute in the root, without symbolic links."""
    kind: str
    """``dir`` or ``file`` (empty)."""
    parent_mtime_ns: int
    """The parent directory's time of modification before."""


def record_stub(stubs_fd: int, stub: Stub) -> None:
    """The stub is on record; create it now. ``stubs_fd`` appends."""
    os.write(stubs_fd, b"%s %d %s\0" % (stub.kind.encode(), stub.parent_mtime_ns, stub.path))


def open_stubs(state_dir: StrPath) -> int:
    """The record, to append to."""
    return os.open(
        os.fspath(state_dir) + "/stubs",
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
        0o644,
    )


def read_stubs(state_dir: StrPath) -> list[Stub]:
    """Every stub that any start of the container recorded, oldest first; some may not exist."""
    try:
        with open(os.fspath(state_dir) + "/stubs", "rb") as file:
            records = file.read().split(b"\0")[:-1]  # what follows the last NUL was not finished
    except FileNotFoundError:
        return []
    stubs = []
    for record in records:
        kind, mtime_ns, path = record.split(b" ", 2)
        stubs.append(Stub(path=path, kind=kind.decode(), parent_mtime_ns=int(mtime_ns)))
    return stubs
