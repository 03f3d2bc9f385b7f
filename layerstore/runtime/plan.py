"""A launch, decided: everything the launcher needs to know, as one frozen value.

Pure: nothing here touches the host. The caller makes a LaunchPlan, may print ``describe()``, and
hands it to ``supervise.run``.
"""

from __future__ import annotations

import os

from layerstore.errors import LayerstoreError, UsageError
from layerstore.kernel import caps
from layerstore.kernel.values import Value
from layerstore.runtime.limits import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from layerstore.kernel.mounts import OverlayMount

MASKED_PATHS = (
    b"/proc/acpi", b"/proc/asound", b"/proc/interrupts", b"/proc/kcore", b"/proc/keys",
    b"/proc/latency_stats", b"/proc/sched_debug", b"/proc/scsi", b"/proc/timer_list",
    b"/proc/timer_stats", b"/sys/firmware", b"/sys/devices/virtual/powercap",
)  # fmt: skip
"""Covered by nothing. /sys/devices/system/cpu/cpuN/thermal_throttle are found by the launcher."""

READ_ONLY_PATHS = (b"/proc/bus", b"/proc/fs", b"/proc/irq", b"/proc/sys", b"/proc/sysrq-trigger")

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_ID_MAX = 2**32 - 2  # the last one means "no change" to the kernel
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_NAME = _FIRST | frozenset(".-$")


class LaunchError(LayerstoreError):
    """The container did not start: 125, or 126 not executable, 127 not found."""

    exit_code = 125

    def __init__(
        self,
        brief: str,
        *,
        hint: str | None = None,
        details: str | None = None,
        exit_code: int = 125,
    ) -> None:
        super().__init__(brief, hint=hint, details=details)
        self.exit_code = exit_code


class User(Value):
    """Who the command runs as: ids or names of the root's own /etc/passwd and /etc/group.

    Without ``group``, the user's own group, and its supplementary ones.
    """

    user: str | int = 0
    group: str | int | None = None


def parse_user(text: str) -> User:
    """docker's ``-u``: ``name|uid[:group|gid]``; empty is root. Raises UsageError.

    Digits alone are always an id, never a name.
    """
    if not text:
        return User()
    user, colon, group = text.partition(":")
    return User(user=_name_or_id(user, text), group=_name_or_id(group, text) if colon else None)


def _name_or_id(part: str, text: str) -> str | int:
    if part.isascii() and part.isdigit():
        if int(part) > _ID_MAX or len(part) > 10:
            raise UsageError(
                f"the id {part} in the user {text!r} is too large", hint=f"it ends at {_ID_MAX}"
            )
        return int(part)
    if not part or part[0] not in _FIRST or not _NAME.issuperset(part):
        raise UsageError(
            f"{text!r} is not a user",
            hint="write NAME or UID, and :GROUP or :GID after it if you want another group",
        )
    return part


class Bind(Value):
    """A host file or directory that is seen at ``target`` in the container."""

    source: Path
    target: bytes
    read_only: bool = False

    def check(self) -> None:
        _check_target(self.target)


class Tmpfs(Value):
    """An empty file system in memory at ``target``."""

    target: bytes
    size: int | None = None
    """Bytes; None is the kernel's half of the memory."""
    mode: int = 0o1777
    is_executable: bool = False

    def check(self) -> None:
        _check_target(self.target)


def _check_target(target: bytes) -> None:
    parts = [part for part in target.split(b"/") if part]
    shown = os.fsdecode(target)
    if not target.startswith(b"/") or not parts or b".." in parts or b"\0" in target:
        raise UsageError(
            f"{shown!r} is not a place to mount at", hint="write an absolute path, without .."
        )
    if parts[0] == b"proc":
        raise UsageError(
            f"nothing can be mounted at {shown}, inside /proc", hint="choose another place"
        )


class LaunchPlan(Value):
    """One container: what runs, as whom, in which root, with which limits."""

    container_id: str
    argv: tuple[bytes, ...]
    """``argv[0]`` is looked up in the container's PATH unless it has a slash."""
    env: tuple[tuple[bytes, bytes], ...] = ()
    """PATH, HOSTNAME, HOME and, with a terminal, TERM are added where missing."""
    cwd: bytes = b"/"
    """Absolute; made if missing."""
    user: User = User()
    hostname: bytes
    root: OverlayMount
    read_only: bool = False
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    network: str = "none"
    """``none``: only a loopback. ``host``: the host's own."""
    limits: Limits = Limits()
    terminal: bool = False
    """The command has a terminal of its own, of which the caller's becomes a view."""
    interactive: bool = False
    """The command reads the caller's standard input; else it reads nothing."""
    capabilities: frozenset[str] = caps.DEFAULT
    no_new_privs: bool = True
    seccomp: bytes = b""
    """A cBPF program (kernel.seccomp); empty: every system call is allowed."""
    masked_paths: tuple[bytes, ...] = MASKED_PATHS
    read_only_paths: tuple[bytes, ...] = READ_ONLY_PATHS
    shm_size: int = 64 << 20
    state_dir: Path
    """Belongs to the container: state, lock, stubs and generated files are there."""
    init: bool = False
    """A small init is PID 1: it reaps orphans, and passes signals on to the command."""

    def check(self) -> None:
        if not self.argv or not self.argv[0]:
            raise UsageError("there is no command to run", hint="name one after the image")
        if not self.cwd.startswith(b"/"):
            raise UsageError(
                f"the working directory {os.fsdecode(self.cwd)!r} is not absolute",
                hint="start it with a slash",
            )
        if any(b"\0" in text for text in (*self.argv, self.cwd, *sum(self.env, ()))):
            raise UsageError("a NUL byte is in the command, environment or directory")
        if any(not name or b"=" in name for name, _ in self.env):
            raise UsageError("an environment variable has no name, or a name with '='")
        if self.network not in ("none", "host"):
            raise UsageError(
                f"{self.network!r} is not a network", hint="choose --network none or host"
            )
        if not 0 < len(self.hostname) <= 64 or set(self.hostname) & set(b"/\0\n \t"):
            raise UsageError(
                f"{os.fsdecode(self.hostname)!r} is not a host name", hint="use 1 to 64 characters"
            )
        if (
            not self.container_id
            or set(self.container_id) & set("/\0\n")
            or (self.container_id[0] == ".")
        ):
            raise UsageError(f"{self.container_id!r} is not a container id")

    def describe(self) -> dict[str, object]:
        """The plan as JSON has it; bytes as text, where undecodable ones are surrogates."""
        described = _jsonable(self)
        if not isinstance(described, dict):
            raise TypeError(described)
        return described


def _jsonable(value: object) -> object:
    if isinstance(value, Value):
        return {name: _jsonable(getattr(value, name)) for name in value._fields}
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
