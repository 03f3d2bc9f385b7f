"""A container's view of file systems: what is mounted over its root, in which order.

Runs in the child, in the new mount namespace, before pivot_root. Every mount is made detached and
attached onto a descriptor. /proc, /sys and /dev must be real directories of the root, since what is
done in them afterwards trusts that they are ours.
"""

from __future__ import annotations

import errno
import os
import stat

from layerstore.errors import HostError
from layerstore.kernel import mounts
from layerstore.kernel.fs import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from layerstore.kernel.mounts import NODEV, NOEXEC, NOSUID, RDONLY, attach, clone_tree
from layerstore.runtime.plan import LaunchError, Tmpfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerstore.kernel.cgroups import Hierarchy
    from layerstore.runtime.plan import Bind, LaunchPlan
    from layerstore.runtime.targets import Root

_QUIET = NOSUID | NOEXEC | NODEV
_NULL = os.makedev(1, 3)
_DEVICES = (
    (b"null", 1, 3), (b"zero", 1, 5), (b"full", 1, 7),
    (b"random", 1, 8), (b"urandom", 1, 9), (b"tty", 5, 0),
)  # fmt: skip
_LINKS = (
    (b"ptmx", b"pts/ptmx"), (b"fd", b"/proc/self/fd"), (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"), (b"stderr", b"/proc/self/fd/2"),
)  # fmt: skip
_SYSCTLS = ((b"ping_group_range", b"0 2147483647"), (b"ip_unprivileged_port_start", b"0"))
"""In place of the capabilities NET_RAW, for pings, and NET_BIND_SERVICE, for other users."""
_TTY_GROUP = 5
GENERATED = (b"hosts", b"hostname", b"resolv.conf")
"""Files of the state directory that cover those in /etc."""


class Assembly:
    """A root being furnished. ``devpts_fd`` is the container's own, once mounted."""

    def __init__(self, plan: LaunchPlan, root: Root, *, rootless: bool, maps_tty: bool) -> None:
        self._plan = plan
        self._root = root
        self._rootless = rootless
        self._maps_tty = maps_tty
        self.devpts_fd = -1
        self._dev_fd = -1
        self._proc_device = -1

    def mount_kernel_views(self) -> None:
        """/proc, /sys and /dev are the container's own, and masked."""
        self._mount_proc()
        self._mount_sys()
        self._mount_dev()
        self._mask()

    def mount_cgroups(self, hierarchies: tuple[Hierarchy, ...]) -> None:
        """/sys/fs/cgroup shows the caller's cgroup namespace, which it is in by now."""
        target = self._found_exactly(b"/sys/fs/cgroup")
        if target is None:
            return
        if any(hierarchy.is_v2 for hierarchy in hierarchies):
            self._attach(mounts.new_filesystem("cgroup2", (), _QUIET | RDONLY), target)
        else:
            self._mount_cgroups_v1(target, hierarchies)

    def mount_wanted(self) -> None:
        """What the user asked for is there, after and over the files that every container has."""
        for name in GENERATED:
            self._bind_generated(name)
        wanted: list[Bind | Tmpfs] = [*self._plan.binds, *self._plan.tmpfs]
        for mount in sorted(wanted, key=lambda m: len([p for p in m.target.split(b"/") if p])):
            if isinstance(mount, Tmpfs):
                self._mount_tmpfs(mount)
            else:
                self._bind(mount)

    def forbid_writing(self) -> None:
        """The root itself is read-only; the mounts in it are as they were made."""
        mounts.set_attributes(self._root.fd, RDONLY)

    def _system_directory(self, path: bytes) -> int:
        """Of the path itself, never of where a symbolic link of the image points to."""
        found = self._root.find_or_make(path, directory=True)
        try:
            os.close(self._open_exactly(path))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise LaunchError(
                f"{path.decode()} in the image is or lies behind a symbolic link",
                hint="make it a directory in the image",
            ) from error
        return found

    def _open_exactly(self, path: bytes) -> int:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
        return openat2(self._root.fd, path, os.O_PATH, 0, resolve)

    def _mount_proc(self) -> None:
        proc = mounts.new_filesystem("proc", (), _QUIET)
        self._proc_device = os.stat(proc).st_dev
        if self._plan.network == "none":
            self._set_sysctls(proc)
        self._attach(proc, self._system_directory(b"/proc"))

    def _set_sysctls(self, proc: int) -> None:
        """Of the container's own network, through a procfs that nobody else has seen yet."""
        for name, value in _SYSCTLS:
            fd = openat2(proc, b"sys/net/ipv4/" + name, os.O_WRONLY, 0, RESOLVE_NO_SYMLINKS)
            try:
                os.write(fd, value)
            except OSError:  # ids that a user namespace does not map
                pass
            os.close(fd)

    def _mount_sys(self) -> None:
        target = self._system_directory(b"/sys")
        try:
            sysfs = mounts.new_filesystem("sysfs", (), _QUIET | RDONLY)
        except HostError:
            if not (self._rootless and self._plan.network == "host"):
                raise
            # sysfs shows the network namespace, which is not the container's own.
            sysfs = clone_tree(b"/sys", recursive=True)
            mounts.set_attributes(sysfs, _QUIET | RDONLY, recursive=True)
        self._attach(sysfs, target)

    def _mount_cgroups_v1(self, target: int, cgroups: tuple[Hierarchy, ...]) -> None:
        top = mounts.new_filesystem("tmpfs", [("mode", "755"), ("size", "64k")], _QUIET)
        attach(top, target)
        os.close(target)
        for hierarchy in cgroups:
            name = ",".join(hierarchy.controllers)
            os.mkdir(name, 0o755, dir_fd=top)
            for link in hierarchy.controllers if len(hierarchy.controllers) > 1 else ():
                os.symlink(name, link, dir_fd=top)
            options = [(controller, None) for controller in hierarchy.controllers]
            view = mounts.new_filesystem("cgroup", options, _QUIET | RDONLY)
            self._attach(view, os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=top))
        mounts.set_attributes(top, RDONLY)
        os.close(top)

    def _mount_dev(self) -> None:
        target = self._system_directory(b"/dev")
        size = [("mode", "755"), ("size", "65536k")]
        dev = self._dev_fd = mounts.new_filesystem("tmpfs", size, NOSUID | NOEXEC)
        attach(dev, target)
        os.close(target)
        self._make_devices(dev)
        for name, where in _LINKS:
            os.symlink(where, name, dir_fd=dev)
        options: list[tuple[str, str | None]]
        options = [("newinstance", None), ("ptmxmode", "0666"), ("mode", "0620")]
        if self._maps_tty:
            options.append(("gid", str(_TTY_GROUP)))
        self.devpts_fd = self._mount_in_dev(b"pts", "devpts", options, NOSUID | NOEXEC)
        options = [("mode", "1777"), ("size", str(self._plan.shm_size))]
        os.close(self._mount_in_dev(b"shm", "tmpfs", options, _QUIET))
        os.close(self._mount_in_dev(b"mqueue", "mqueue", [], _QUIET))

    def _mount_in_dev(
        self, name: bytes, fstype: str, options: list[tuple[str, str | None]], attributes: int
    ) -> int:
        os.mkdir(name, 0o755, dir_fd=self._dev_fd)
        made = mounts.new_filesystem(fstype, options, attributes)
        target = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._dev_fd)
        attach(made, target)
        os.close(target)
        return made

    def _make_devices(self, dev: int) -> None:
        for name, major, minor in _DEVICES:
            if not self._rootless:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
                continue
            # A user namespace may not make device nodes that work, but may show the host's.
            target = os.open(name, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o666, dir_fd=dev)
            self._attach(clone_tree(b"/dev/" + name), target)

    def attach_console(self, slave_fd: int) -> None:
        """/dev/console is the container's terminal."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC
        target = os.open(b"console", flags, 0o600, dir_fd=self._dev_fd)
        self._attach(clone_tree(b"", dir_fd=slave_fd), target)

    def _bind_generated(self, name: bytes) -> None:
        source = clone_tree(os.fsencode(self._plan.state_dir) + b"/" + name)
        mounts.set_attributes(source, NOSUID | NODEV | NOEXEC)
        self._attach(source, self._root.find_or_make(b"/etc/" + name, directory=False))

    def _bind(self, bind: Bind) -> None:
        source = os.fsencode(bind.source)
        try:
            tree = clone_tree(source, recursive=True)
        except FileNotFoundError:
            raise LaunchError(
                f"{os.fsdecode(source)} does not exist, so it can't be seen in the container",
                hint="make it first, or correct the -v option",
            ) from None
        is_directory = stat.S_ISDIR(os.stat(tree).st_mode)
        mounts.set_attributes(
            tree,
            NOSUID | NODEV | (RDONLY if bind.read_only else 0),
            private=True,
            recursive=True,
        )
        self._attach(tree, self._target(bind.target, directory=is_directory))

    def _mount_tmpfs(self, tmpfs: Tmpfs) -> None:
        options: list[tuple[str, str | None]] = [("mode", f"{tmpfs.mode:o}")]
        if tmpfs.size is not None:
            options.append(("size", str(tmpfs.size)))
        attributes = NOSUID | NODEV | (0 if tmpfs.is_executable else NOEXEC)
        made = mounts.new_filesystem("tmpfs", options, attributes)
        self._attach(made, self._target(tmpfs.target, directory=True))

    def _target(self, path: bytes, *, directory: bool) -> int:
        target = self._root.find_or_make(path, directory=directory)
        if os.stat(target).st_dev == self._proc_device:
            raise LaunchError(
                f"nothing can be mounted at {os.fsdecode(path)}: in this image it leads into /proc"
            )
        return target

    def _mask(self) -> None:
        empty = -1
        for path in [*self._plan.masked_paths, *self._throttles()]:
            target = self._found_exactly(path)
            if target is None:
                continue
            if not stat.S_ISDIR(os.stat(target).st_mode):
                self._attach(self._null(), target)
            elif empty < 0:
                empty = mounts.new_filesystem("tmpfs", [("size", "0")], _QUIET | RDONLY)
                attach(empty, target)
                os.close(target)
            else:
                self._attach(clone_tree(b"", dir_fd=empty), target)
        for path in self._plan.read_only_paths:
            target = self._found_exactly(path)
            if target is not None:
                view = clone_tree(b"", dir_fd=target, recursive=True)
                mounts.set_attributes(view, RDONLY | _QUIET, recursive=True)
                self._attach(view, target)

    def _found_exactly(self, path: bytes) -> int | None:
        try:
            return self._open_exactly(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise
            return None

    def _throttles(self) -> Iterable[bytes]:
        """Counters of this processor's heat: a side channel. Virtual machines have none."""
        if not os.path.exists("/sys/devices/system/cpu/cpu0/thermal_throttle"):
            return ()
        cpus = range(os.cpu_count() or 1)
        return [b"/sys/devices/system/cpu/cpu%d/thermal_throttle" % cpu for cpu in cpus]

    def _null(self) -> int:
        """A detached mount of /dev/null that is known to be it."""
        null = clone_tree(b"null", dir_fd=self._dev_fd)
        found = os.stat(null)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NULL:
            raise LaunchError("/dev/null in the container is not the null device")
        return null

    def _attach(self, mount_fd: int, target_fd: int) -> None:
        attach(mount_fd, target_fd)
        os.close(mount_fd)
        os.close(target_fd)


def generated_files(plan: LaunchPlan) -> dict[bytes, bytes]:
    """Name in the state directory → content."""
    hosts = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    if plan.network == "host":
        return {
            b"hosts": _content("/etc/hosts") or hosts,
            b"hostname": plan.hostname + b"\n",
            b"resolv.conf": _content("/etc/resolv.conf"),
        }
    return {
        b"hosts": hosts + b"127.0.0.1\t" + plan.hostname + b"\n",
        b"hostname": plan.hostname + b"\n",
        b"resolv.conf": b"",
    }


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
