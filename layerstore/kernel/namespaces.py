"""New namespaces, and who is who in a user namespace."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import struct

from layerstore.errors import HostError
from layerstore.kernel import mounts, numbers
from layerstore.kernel.libc import Memory, syscall
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000

_CLONE_PIDFD = 0x00001000
_CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17


def check_single_threaded() -> None:
    """Raises HostError if another thread runs: its locks would stay locked in a raw clone."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise HostError(
            f"a container can't be launched from a process with {threads} threads",
            hint="launch it before starting threads, or from a process of its own",
        )


def clone(flags: int, *, cgroup_fd: int | None = None) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child, which is in the new namespaces.

    Like fork, without Python's and libc's fork handlers: the caller must be single-threaded, and
    the child may only prepare and exec. With ``cgroup_fd``, the child starts in that v2 cgroup.
    """
    pidfd = Memory(4)
    flags |= _CLONE_PIDFD
    if cgroup_fd is None:
        cgroup_fd = 0
    else:
        flags |= _CLONE_INTO_CGROUP
    # flags, pidfd, child_tid, parent_tid, exit_signal, then five of no use here, and the cgroup.
    arguments = struct.pack("11Q", flags, pidfd.address, 0, 0, _SIGCHLD, *(0,) * 5, cgroup_fd)
    pid = syscall("clone3", numbers.CLONE3, arguments, len(arguments))
    return (pid, int.from_bytes(pidfd.read(), "little")) if pid else (0, -1)


def clone_sibling() -> int:
    """The pid of a new child of the caller's parent, 0 in that child.

    It is in the namespaces that the caller joined; the pid is in the caller's own.
    """
    arguments = struct.pack("11Q", _CLONE_PARENT, *(0,) * 10)
    return syscall("clone3", numbers.CLONE3, arguments, len(arguments))


def join(pidfd: int, flags: int) -> None:
    """The caller is in these namespaces of another process; its children, in its pid namespace."""
    syscall("setns", numbers.SETNS, pidfd, flags)


def unshare(flags: int) -> None:
    """The caller is alone in new namespaces of these kinds."""
    syscall("unshare", numbers.UNSHARE, flags)


def set_hostname(name: bytes) -> None:
    """The caller's UTS namespace has that host name."""
    syscall("sethostname", numbers.SETHOSTNAME, name, len(name))


def loopback_up() -> None:
    """127.0.0.1 answers in the caller's network namespace."""
    ipv4, datagram, set_flags, up = 2, 2, 0x8914, 0x1
    fd = syscall("socket", numbers.SOCKET, ipv4, datagram | os.O_CLOEXEC, 0)
    try:
        request = b"lo".ljust(16, b"\0") + up.to_bytes(2, "little") + bytes(22)
        fcntl.ioctl(fd, set_flags, request)
    finally:
        os.close(fd)


class IdRange(Value):
    """``count`` ids from ``inside`` on, in the namespace, are those from ``outside`` on here."""

    inside: int
    outside: int
    count: int


class IdMaps(Value):
    """A user namespace's maps. ``by_helper``: too much for the kernel to let a plain user write."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    by_helper: bool


def plan_id_maps(uid: int, gid: int) -> IdMaps:
    """Root inside is the caller; the sub-ids follow where the user has some and can use them."""
    uids = (IdRange(inside=0, outside=uid, count=1),)
    gids = (IdRange(inside=0, outside=gid, count=1),)
    sub_uids, sub_gids = sub_ids("/etc/subuid", uid), sub_ids("/etc/subgid", uid)
    if not (sub_uids and sub_gids and find_helper("newuidmap") and find_helper("newgidmap")):
        return IdMaps(uids=uids, gids=gids, by_helper=False)
    return IdMaps(uids=_appended(uids, sub_uids), gids=_appended(gids, sub_gids), by_helper=True)


def _appended(
    first: tuple[IdRange, ...], ranges: tuple[tuple[int, int], ...]
) -> tuple[IdRange, ...]:
    inside = 1
    for start, count in ranges:
        first += (IdRange(inside=inside, outside=start, count=count),)
        inside += count
    return first


def sub_ids(table: str, uid: int) -> tuple[tuple[int, int], ...]:
    """(first, count) of each range that ``/etc/subuid`` or ``/etc/subgid`` gives to a user."""
    names = {str(uid).encode()}
    try:
        names.add(pwd.getpwuid(uid).pw_name.encode())
    except KeyError:
        pass
    try:
        with open(table, "rb") as lines:
            rows = [line.strip().split(b":") for line in lines]
    except OSError:
        return ()
    return tuple(
        (int(row[1]), int(row[2]))
        for row in rows
        if len(row) == 3 and row[0] in names and row[1].isdigit() and row[2].isdigit()
    )


def find_helper(name: str) -> str | None:
    """Where the set-user-id program is; its place is the distribution's, not the caller's PATH."""
    for directory in ("/usr/bin/", "/bin/", "/usr/local/bin/"):
        if os.access(directory + name, os.X_OK):
            return directory + name
    return None


def write_id_maps(pid: int, maps: IdMaps) -> None:
    """The user namespace of ``pid`` has its maps; it has had none before."""
    if maps.by_helper:
        helpers = [
            (name, _spawn_helper(name, pid, ranges))
            for name, ranges in (("newuidmap", maps.uids), ("newgidmap", maps.gids))
        ]
        codes = [(name, os.waitstatus_to_exitcode(os.waitpid(p, 0)[1])) for name, p in helpers]
        for name, code in codes:
            if code:
                raise HostError(
                    f"{name} failed with exit code {code}",
                    hint="check that /etc/subuid and /etc/subgid give you ranges that are yours",
                )
        return
    _write(pid, "setgroups", b"deny")
    _write(pid, "uid_map", _map_text(maps.uids))
    _write(pid, "gid_map", _map_text(maps.gids))


def _map_text(ranges: tuple[IdRange, ...]) -> bytes:
    return b"".join(b"%d %d %d\n" % (r.inside, r.outside, r.count) for r in ranges)


def _spawn_helper(name: str, pid: int, ranges: tuple[IdRange, ...]) -> int:
    program = find_helper(name) or name
    numbers_ = _map_text(ranges).decode().split()
    return os.posix_spawn(program, [name, str(pid), *numbers_], {})


def _write(pid: int, name: str, content: bytes) -> None:
    path = f"/proc/{pid}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"write({path}, {content!r})") from None
    finally:
        os.close(fd)


def explain_refusal(error: OSError) -> HostError:
    """Why the kernel refused new namespaces, and what to do about it."""
    hint = "run as root"
    if error.errno in (errno.EPERM, errno.ENOSPC):
        if _sysctl("kernel/unprivileged_userns_clone") == "0":
            hint = "run as root, or: sysctl kernel.unprivileged_userns_clone=1"
        elif _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
            hint = "run as root, or: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        elif error.errno == errno.ENOSPC:
            hint = "raise user.max_user_namespaces and its siblings with sysctl"
    return HostError(f"the kernel refused new namespaces: {error.strerror}", hint=hint)


def _sysctl(name: str) -> str | None:
    try:
        with open("/proc/sys/" + name) as file:
            return file.read().strip()
    except OSError:
        return None


def in_private_mounts(attempt: Callable[[], str]) -> str:
    """What ``attempt`` returns in a child with mounts of its own; nothing that it mounts stays."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = clone(NEWNS)
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if pid == 0:
        try:
            mounts.make_private()
            os.write(write_end, attempt().encode()[:4096])
        finally:
            os._exit(0)
    os.close(pidfd)
    os.close(write_end)
    try:
        answer = os.read(read_end, 4096)
        # An empty answer and a child that died look alike in the pipe, and not in its status.
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(read_end)
    return answer.decode() if os.waitstatus_to_exitcode(status) == 0 else "the attempt died"
