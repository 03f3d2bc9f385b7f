"""Control groups, v1, v2 and hybrid, behind one class.

A container has one leaf ``layerstore/<name>`` below what this process sees as the root of each
hierarchy. The parent stays when the last leaf goes: another launch may be about to use it.

Joining decides how fast a launch is: a write to ``cgroup.procs`` waits for an RCU grace period, up
to 18 ms. On v1 the child writes ``0`` to its own ``tasks``; on v2 it is cloned into the leaf.
"""

from __future__ import annotations

import errno
import os
import time

from layerstore.errors import ConflictError, HostError
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ROOT = "/sys/fs/cgroup"
_PARENT = "layerstore"
_USED_V1 = frozenset(("cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio"))
_USED_V2 = ("cpu", "io", "memory", "pids")
CPU_PERIOD_US = 100_000
_STATE = "/freezer.state"
_FREEZE_PATIENCE_S = 5.0
_NO_LIMIT_V1 = 1 << 62

# mknod of anything; null zero full random urandom, tty console ptmx, pts
_ALLOWED_DEVICES = (
    "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
    "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm",
)  # fmt: skip


class Settings(Value):
    """The limits that cgroups enforce; None is no limit."""

    memory: int | None = None
    memory_swap: int | None = None
    """Bytes of memory and swap together; -1 is unlimited; None is as much swap as memory."""
    cpu_quota_us: int | None = None
    """In each 100 ms."""
    pids: int | None = None

    def controllers(self) -> dict[str, str]:
        """What enforces the limits that are set → how users ask for them."""
        wanted = {}
        if self.memory is not None:
            wanted["memory"] = "a memory limit"
        if self.cpu_quota_us is not None:
            wanted["cpu"] = "a CPU limit"
        if self.pids is not None:
            wanted["pids"] = "a limit of processes"
        return wanted


class Usage(Value):
    """What the members of a cgroup use now; None where no controller counts it."""

    memory: int | None
    cpu_ns: int | None
    pids: int | None
    memory_limit: int | None = None
    """Bytes; None also where there is no limit."""
    read_bytes: int | None = None
    """Read from block devices since the container started."""
    written_bytes: int | None = None


class Hierarchy(Value):
    """A mounted cgroup file system. v2 has ``controllers`` as its root enables them."""

    mountpoint: str
    controllers: tuple[str, ...]
    is_v2: bool


def hierarchies() -> tuple[Hierarchy, ...]:
    """Every hierarchy of this host that has controllers; empty where none is mounted."""
    controllers = _read(f"{_ROOT}/cgroup.controllers")
    if controllers is not None:
        return (Hierarchy(mountpoint=_ROOT, controllers=tuple(controllers.split()), is_v2=True),)
    found = {}
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields, _, super_ = line.partition(" - ")
            fstype, _, options = super_.split()
            if fstype == "cgroup":
                where = fields.split()[4].encode().decode("unicode_escape")
                names = tuple(n for n in options.split(",") if n in _KNOWN_V1)
                if names and names not in found:
                    found[names] = Hierarchy(mountpoint=where, controllers=names, is_v2=False)
    return tuple(found.values())


_KNOWN_V1 = frozenset(
    [
        *("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc"),
        *("net_cls", "net_prio", "perf_event", "pids", "rdma"),
    ]
)


_SIGNS = (
    ("memory", "memory.current"), ("memory", "memory.usage_in_bytes"),
    ("pids", "pids.current"), ("cpuacct", "cpuacct.usage"), ("freezer", "freezer.state"),
    ("freezer", "cgroup.freeze"), ("blkio", "blkio.throttle.io_service_bytes"),
    ("io", "io.stat"),
)  # fmt: skip
"""A controller, and a file that its leaves have."""


class Cgroup:
    """A container's leaf in every hierarchy that it needs."""

    def __init__(self, leaves: dict[str, Hierarchy], *, exists: bool) -> None:
        self._leaves = leaves
        self._of = {c: leaf for leaf, h in leaves.items() for c in h.controllers}
        self._made = list(leaves) if exists else []

    @classmethod
    def planned(cls, name: str, settings: Settings) -> Cgroup:
        """What ``make`` will make. Raises HostError for a limit that nothing here enforces."""
        mounted = hierarchies()
        _check_enforceable(mounted, settings)
        leaves = {
            f"{hierarchy.mountpoint}/{_PARENT}/{name}": hierarchy
            for hierarchy in mounted
            if hierarchy.is_v2 or set(hierarchy.controllers) & _USED_V1
        }
        return cls(leaves, exists=False)

    @classmethod
    def create(cls, name: str, settings: Settings) -> Cgroup:
        """New leaves with these limits."""
        cgroup = cls.planned(name, settings)
        cgroup.make(settings)
        return cgroup

    @classmethod
    def of_paths(cls, paths: Iterable[str]) -> Cgroup:
        """The cgroup that another process made."""
        leaves = {}
        for path in paths:
            is_v2 = not os.path.exists(path + "/tasks")
            controllers = tuple(c for c, file in _SIGNS if os.path.exists(f"{path}/{file}"))
            leaves[path] = Hierarchy(mountpoint="", controllers=controllers, is_v2=is_v2)
        return cls(leaves, exists=True)

    def make(self, settings: Settings) -> None:
        """The leaves exist and have these limits; after a failure, none does.

        Raises HostError, ConflictError.
        """
        try:
            for leaf, hierarchy in self._leaves.items():
                _make_leaf(hierarchy, leaf, settings)
                self._made.append(leaf)
            self.set(settings)
            if "devices" in self._of and not self.is_v2:
                self._confine_devices()
        except BaseException:
            self.remove()
            raise

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaves' directories."""
        return tuple(self._leaves)

    @property
    def hierarchies(self) -> tuple[Hierarchy, ...]:
        return tuple(self._leaves.values())

    @property
    def is_made(self) -> bool:
        return bool(self._made)

    @property
    def is_v2(self) -> bool:
        return any(hierarchy.is_v2 for hierarchy in self._leaves.values())

    def open_v2(self) -> int | None:
        """The descriptor, close-on-exec, to clone a child into; None on v1."""
        for leaf, hierarchy in self._leaves.items():
            if hierarchy.is_v2:
                return os.open(leaf, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return None

    def join_v1(self) -> None:
        """The caller, single-threaded, is in every v1 leaf."""
        for leaf, hierarchy in self._leaves.items():
            if not hierarchy.is_v2:
                _write(leaf + "/tasks", "0")

    def attach(self, pid: int) -> None:
        """The process is a member; may take 18 ms."""
        for leaf in self._leaves:
            _write(leaf + "/cgroup.procs", str(pid))

    def set(self, settings: Settings) -> None:
        """The limits that are not None hold from now on."""
        if settings.memory is not None:
            self._set_memory(self._of["memory"], settings.memory, settings.memory_swap)
        if settings.cpu_quota_us is not None:
            leaf = self._of["cpu"]
            if self.is_v2:
                _write(leaf + "/cpu.max", f"{settings.cpu_quota_us} {CPU_PERIOD_US}")
            else:
                _write(leaf + "/cpu.cfs_period_us", str(CPU_PERIOD_US))
                _write(leaf + "/cpu.cfs_quota_us", str(settings.cpu_quota_us))
        if settings.pids is not None:
            _write(self._of["pids"] + "/pids.max", str(settings.pids))

    def _set_memory(self, leaf: str, memory: int, memory_swap: int | None) -> None:
        total = 2 * memory if memory_swap is None else memory_swap
        if self.is_v2:
            _write(leaf + "/memory.max", str(memory))
            file, value = "/memory.swap.max", "max" if total == -1 else str(total - memory)
        else:
            _write(leaf + "/memory.limit_in_bytes", str(memory))
            file, value = "/memory.memsw.limit_in_bytes", str(total)
        try:
            _write(leaf + file, value)
        except FileNotFoundError:
            if memory_swap is not None:
                raise HostError(
                    "this kernel does not account for swap, so it can't limit it",
                    hint="boot with swapaccount=1, or leave --memory-swap out",
                ) from None

    def _confine_devices(self) -> None:
        leaf = self._of["devices"]
        _write(leaf + "/devices.deny", "a")
        for rule in _ALLOWED_DEVICES:
            _write(leaf + "/devices.allow", rule)

    def oom_kills(self) -> int:
        """How many members the kernel killed because the memory limit was reached."""
        leaf = self._of.get("memory")
        if leaf is None:
            return 0
        text = _read(leaf + ("/memory.events" if self.is_v2 else "/memory.oom_control")) or ""
        return next((int(v) for k, v in map(str.split, text.splitlines()) if k == "oom_kill"), 0)

    def usage(self) -> Usage:
        """What the members use now."""
        memory, pids = self._of.get("memory"), self._of.get("pids")
        if self.is_v2:
            leaf = self.paths[0]
            stat = dict(map(str.split, (_read(leaf + "/cpu.stat") or "").splitlines()))
            cpu_us = stat.get("usage_usec")
            words = (_read(leaf + "/io.stat") or "").split()
            io = [word.partition("=")[::2] for word in words]
            return Usage(
                memory=_number(memory, "/memory.current"),
                cpu_ns=None if cpu_us is None else int(cpu_us) * 1000,
                pids=_number(pids, "/pids.current"),
                memory_limit=_limit(memory, "/memory.max"),
                read_bytes=sum(int(value) for key, value in io if key == "rbytes"),
                written_bytes=sum(int(value) for key, value in io if key == "wbytes"),
            )
        blkio = self._of.get("blkio")
        io_lines = (_read(blkio + "/blkio.throttle.io_service_bytes") or "") if blkio else ""
        rows = [line.split() for line in io_lines.splitlines()]
        return Usage(
            memory=_number(memory, "/memory.usage_in_bytes"),
            cpu_ns=_number(self._of.get("cpuacct"), "/cpuacct.usage"),
            pids=_number(pids, "/pids.current"),
            memory_limit=_limit(memory, "/memory.limit_in_bytes"),
            read_bytes=sum(int(row[2]) for row in rows if row[1] == "Read") if blkio else None,
            written_bytes=sum(int(row[2]) for row in rows if row[1] == "Write") if blkio else None,
        )

    def processes(self) -> list[int]:
        """The members' pids."""
        leaf = self._of.get("freezer") or self.paths[0]
        return [int(pid) for pid in (_read(leaf + "/cgroup.procs") or "").split()]

    # ---- freezing

    @property
    def is_frozen(self) -> bool:
        """Whether the members stand still, or are about to."""
        leaf = self._of.get("freezer")
        if leaf is None:
            return False
        if self.is_v2:
            return (_read(leaf + "/cgroup.freeze") or "0").strip() == "1"
        return (_read(leaf + "/freezer.state") or "").strip() in ("FROZEN", "FREEZING")

    def freeze(self) -> None:
        """Every member stands still. Raises HostError if they can't be made to."""
        leaf = self._of.get("freezer")
        if leaf is None:
            raise HostError(
                "this container can't be paused: no freezer cgroup holds its processes",
                hint="run it as root, on a host with the freezer controller; a commit can do "
                "without: --no-pause",
            )
        deadline = time.monotonic() + _FREEZE_PATIENCE_S
        while True:
            # v1 may stay at FREEZING until it is told again, when members fork meanwhile.
            _write(*((leaf + "/cgroup.freeze", "1") if self.is_v2 else (leaf + _STATE, "FROZEN")))
            if self.is_v2:
                done = "frozen 1" in (_read(leaf + "/cgroup.events") or "")
            else:
                done = (_read(leaf + _STATE) or "").strip() == "FROZEN"
            if done:
                return
            if time.monotonic() > deadline:
                self.thaw()
                raise HostError(
                    "the container can't be paused: one of its processes waits for the kernel",
                    hint="try again, or see which one is in state D: layerstore top",
                )
            time.sleep(0.001)

    def thaw(self) -> None:
        """The members go on."""
        leaf = self._of.get("freezer")
        if leaf is not None:
            _write(*((leaf + "/cgroup.freeze", "0") if self.is_v2 else (leaf + _STATE, "THAWED")))

    def kill(self) -> None:
        """Every member is sent SIGKILL, new ones included."""
        for leaf, hierarchy in self._leaves.items():
            if hierarchy.is_v2 and _try_write(leaf + "/cgroup.kill", "1"):
                continue
            # Frozen members can't fork away from the list; on v1 they die when thawed.
            _try_write(leaf + _STATE, "FROZEN")
            for pid in (_read(leaf + "/cgroup.procs") or "").split():
                try:
                    os.kill(int(pid), 9)
                except ProcessLookupError:
                    pass
            _try_write(leaf + _STATE, "THAWED")

    def remove(self) -> None:
        """The leaves are gone, and what still was in them. Raises OSError(EBUSY) after a second."""
        deadline = time.monotonic() + 1
        while self._made:
            pause = 0.0002
            while not _try_rmdir(self._made[-1]):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self._made[-1])
                self.kill()
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            self._made.pop()


def _try_rmdir(path: str) -> bool:
    """Whether the directory is gone; False while it is busy."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _check_enforceable(mounted: tuple[Hierarchy, ...], settings: Settings) -> None:
    available = {controller for hierarchy in mounted for controller in hierarchy.controllers}
    for controller, what in settings.controllers().items():
        if controller not in available:
            raise HostError(
                f"this host can't enforce {what}: no {controller} cgroup controller is available",
                hint=f"enable it (on the kernel command line: cgroup_enable={controller}), "
                "or leave the limit out",
            )


def _make_leaf(hierarchy: Hierarchy, leaf: str, settings: Settings) -> None:
    parent = f"{hierarchy.mountpoint}/{_PARENT}"
    try:
        os.makedirs(parent, exist_ok=True)
        if hierarchy.is_v2:
            wanted = [c for c in _USED_V2 if c in hierarchy.controllers]
            must = settings.controllers()
            for inner in (hierarchy.mountpoint, parent):
                _enable(inner, wanted, must)
        os.mkdir(leaf)
    except FileExistsError:
        raise ConflictError(
            f"the cgroup {leaf} exists already",
            hint="another container has this id, or a killed one left it behind",
        ) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise HostError(
            f"no permission to make the cgroup {leaf}: {error.strerror}",
            hint="run as root, or leave the limits out",
        ) from error


def _enable(directory: str, wanted: list[str], must: dict[str, str]) -> None:
    """The children of a v2 directory have these controllers; those in ``must`` or HostError."""
    file = directory + "/cgroup.subtree_control"
    enabled = (_read(file) or "").split()
    for controller in wanted:
        if controller in enabled:
            continue
        try:
            _write(file, "+" + controller)
        except OSError as error:
            if controller in must:
                raise HostError(
                    f"this host can't enforce {must[controller]}: the {controller} controller "
                    f"can't be enabled in {directory}: {error.strerror}",
                    hint="processes in that cgroup itself, or one above it, keep it: move them "
                    "into a cgroup of their own, or leave the limit out",
                ) from error


def _read(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 65536).decode()
    except OSError:
        return None
    finally:
        os.close(fd)


def _number(directory: str | None, file: str) -> int | None:
    text = None if directory is None else _read(directory + file)
    return None if text is None else int(text)


def _limit(directory: str | None, file: str) -> int | None:
    text = "max" if directory is None else (_read(directory + file) or "max").strip()
    return None if text == "max" or int(text) >= _NO_LIMIT_V1 else int(text)


def _write(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"write({path}, {content!r})") from None
    finally:
        os.close(fd)


def _try_write(path: str, content: str) -> bool:
    try:
        _write(path, content)
    except OSError:
        return False
    return True
