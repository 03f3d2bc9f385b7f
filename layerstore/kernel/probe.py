"""What this host can do, found out by doing it, and what to do about what it can't.

Mounts happen in a mount namespace of a short-lived child (and a user namespace, for plain users);
nothing stays.
"""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import shutil
import struct
import tempfile
from pathlib import Path

from layerstore.errors import HostError
from layerstore.kernel import cgroups, mounts, namespaces
from layerstore.kernel.mounts import OverlayMount
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FICLONE = 0x40049409
_FLOOR = (5, 12)


class Ability(Value):
    """One thing that layerstore uses where it can."""

    name: str
    is_there: bool
    why: str = ""
    """Why it is missing, or a remark."""
    hint: str = ""
    """What to do about a missing one."""


class HostReport(Value):
    """What a host can do for one user and one directory."""

    kernel: str
    uid: int
    directory: Path
    cgroup_layout: str
    """``v1``, ``v2``, ``hybrid`` (v1 controllers, v2 beside them) or ``none``."""
    controllers: tuple[str, ...]
    abilities: tuple[Ability, ...]

    def __getitem__(self, name: str) -> Ability:
        return next(ability for ability in self.abilities if ability.name == name)


def probe_host(directory: Path) -> HostReport:
    """What this process can do, with a store in ``directory`` (or its nearest existing parent).

    The caller must be single-threaded.
    """
    while not directory.is_dir():
        directory = directory.parent
    kernel = os.uname().release
    layout, controllers = _cgroup_layout()
    is_root = os.geteuid() == 0
    abilities = [
        _kernel_version(kernel),
        *_mount_abilities(directory, is_root=is_root),
        _user_namespaces(),
        _sub_ids(),
        *[_controller(name, controllers, is_root=is_root) for name in ("memory", "cpu", "pids")],
        _reflink(directory),
        _loop(),
        _seccomp(),
    ]
    return HostReport(
        kernel=kernel,
        uid=os.geteuid(),
        directory=directory,
        cgroup_layout=layout,
        controllers=controllers,
        abilities=tuple(abilities),
    )


def _kernel_version(kernel: str) -> Ability:
    numbers = tuple(int(part) for part in kernel.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers >= _FLOOR:
        return Ability(name="kernel", is_there=True, why=kernel)
    return Ability(
        name="kernel",
        is_there=False,
        why=f"Linux {kernel} is older than 5.12, which brought mount_setattr(2)",
        hint="run a newer kernel: containers can't be launched on this one",
    )


# ---- mounts, in a child


def _mount_abilities(directory: Path, *, is_root: bool) -> list[Ability]:
    probes: dict[str, tuple[Callable[[Path], None], str]] = {
        "overlay": (
            _try_userxattr if not is_root else _try_trusted,
            "load it (modprobe overlay), or put the store on ext4, xfs or btrfs",
        ),
        "overlay-userxattr": (_try_userxattr, "use Linux 5.11 or newer for overlays without root"),
        "overlay-lowerdir+": (_try_lowerdir_plus, "use Linux 6.7 or newer for any depth of layers"),
        "erofs-file": (
            _try_erofs,
            "use Linux 6.12 or newer; until then a loop device does"
            if is_root
            else "run as root: plain users may not mount erofs",
        ),
    }
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".probe-", dir=directory))
    except OSError as error:
        why = f"{directory} is not writable: {error.strerror}"
        return [Ability(name=n, is_there=False, why=why, hint=h) for n, (_, h) in probes.items()]
    try:
        failures = _in_child(scratch, {name: probe for name, (probe, _) in probes.items()})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [
        Ability(
            name=name,
            is_there=not failures.get(name, "the probe died"),
            why=failures.get(name, "the probe died"),
            hint=hint if failures.get(name, "x") else "",
        )
        for name, (_, hint) in probes.items()
    ]


def _in_child(scratch: Path, probes: dict[str, Callable[[Path], None]]) -> dict[str, str]:
    """Name → why it failed, or an empty text."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    rootless = os.geteuid() != 0
    try:
        pid, pidfd = namespaces.clone(namespaces.NEWNS | (namespaces.NEWUSER if rootless else 0))
    except OSError as error:
        os.close(write_end)
        os.close(read_end)
        os.close(go_read)
        os.close(go_write)
        return dict.fromkeys(probes, namespaces.explain_refusal(error).brief)
    if pid == 0:
        try:
            os.read(go_read, 1)
            mounts.make_private()
            found = {name: _why_not(probe, scratch) for name, probe in probes.items()}
            os.write(write_end, marshal.dumps(found))
        finally:
            os._exit(0)
    os.close(pidfd)
    os.close(write_end)
    if rootless:
        ids = namespaces.IdMaps(
            uids=(namespaces.IdRange(inside=0, outside=os.geteuid(), count=1),),
            gids=(namespaces.IdRange(inside=0, outside=os.getegid(), count=1),),
            by_helper=False,
        )
        namespaces.write_id_maps(pid, ids)
    os.write(go_write, b"g")
    answer = os.read(read_end, 65536)
    os.waitpid(pid, 0)
    for fd in (read_end, go_read, go_write):
        os.close(fd)
    failures: dict[str, str] = marshal.loads(answer) if answer else {}
    return failures


def _why_not(probe: Callable[[Path], None], scratch: Path) -> str:
    try:
        probe(scratch)
    except HostError as error:
        return error.brief + (f" ({error.details})" if error.details else "")
    except OSError as error:
        return str(error)
    return ""


def _try_trusted(scratch: Path) -> None:
    _try_overlay(scratch, userxattr=False)


def _try_userxattr(scratch: Path) -> None:
    _try_overlay(scratch, userxattr=True)


def _try_overlay(at: Path, *, userxattr: bool) -> None:
    """A file is read through an overlay, another deleted, and a directory replaced."""
    lower, upper, work, merged = (at / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged, lower / "directory"):
        directory.mkdir()
    (lower / "file").write_bytes(b"below")
    spec = OverlayMount(
        lowerdirs_top_down=(lower,), upperdir=upper, workdir=work, userxattr=userxattr
    )
    mounts.mount_overlay(spec, merged)
    try:
        if (merged / "file").read_bytes() != b"below":
            raise OSError(errno.EIO, "an overlay shows wrong content")
        (merged / "file").unlink()
        (merged / "directory").rmdir()
        (merged / "directory").mkdir()
    finally:
        mounts.umount(merged)
        # Here, since only root, in the user namespace, may enter what the kernel left in work.
        for directory in (lower, upper, work, merged):
            shutil.rmtree(directory)


def _try_lowerdir_plus(scratch: Path) -> None:
    options: list[tuple[str, bytes | None]] = [("userxattr", None)]
    for name in ("plus1", "plus2"):
        (scratch / name).mkdir()
        options.append(("lowerdir+", os.fsencode(scratch / name)))
    os.close(mounts.new_filesystem("overlay", options))


def _try_erofs(scratch: Path) -> None:
    image = scratch / "empty.erofs"
    image.write_bytes(_empty_erofs())
    os.close(mounts.new_filesystem("erofs", [("source", os.fsencode(image))]))


def _empty_erofs() -> bytes:
    """An image of an empty directory: superblock at 1024, its inode (compact, inline) at 1280."""
    names = b"..."
    dirents = struct.pack("<QHBB", 40, 24, 2, 0) + struct.pack("<QHBB", 40, 25, 2, 0) + names
    inline_compact = 2 << 1
    inode = struct.pack(
        "<HHHHIIIIHHI", inline_compact, 0, 0o40755, 2, len(dirents), 0, 0, 1, 0, 0, 0
    )
    superblock = struct.pack("<IIIBBHQQIIII", 0xE0F5E1E2, 0, 0, 12, 0, 40, 1, 0, 0, 1, 0, 0)
    return ((bytes(1024) + superblock).ljust(1280, b"\0") + inode + dirents).ljust(4096, b"\0")


# ---- the rest


def _user_namespaces() -> Ability:
    try:
        pid, pidfd = namespaces.clone(namespaces.NEWUSER)
    except OSError as error:
        refusal = namespaces.explain_refusal(error)
        return Ability(
            name="user-namespaces", is_there=False, why=refusal.brief, hint=refusal.hint or ""
        )
    if pid == 0:
        os._exit(0)
    os.close(pidfd)
    os.waitpid(pid, 0)
    return Ability(name="user-namespaces", is_there=True)


def _sub_ids() -> Ability:
    hint = (
        "install newuidmap and newgidmap (Debian: uidmap), and give yourself a range: "
        "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
    )
    if os.geteuid() == 0:
        return Ability(name="sub-ids", is_there=True, why="root needs none")
    missing = [name for name in ("newuidmap", "newgidmap") if not namespaces.find_helper(name)]
    if missing:
        why = f"{' and '.join(missing)} not installed: one uid and gid in rootless containers"
        return Ability(name="sub-ids", is_there=False, why=why, hint=hint)
    for table in ("/etc/subuid", "/etc/subgid"):
        if not namespaces.sub_ids(table, os.geteuid()):
            why = f"{table} has no range for uid {os.geteuid()}: one id in rootless containers"
            return Ability(name="sub-ids", is_there=False, why=why, hint=hint)
    return Ability(name="sub-ids", is_there=True)


def _cgroup_layout() -> tuple[str, tuple[str, ...]]:
    found = cgroups.hierarchies()
    names = tuple(sorted({name for hierarchy in found for name in hierarchy.controllers}))
    if not found:
        return "none", ()
    if found[0].is_v2:
        return "v2", names
    with open("/proc/self/mountinfo") as lines:
        is_hybrid = any(" - cgroup2 " in line for line in lines)
    return ("hybrid" if is_hybrid else "v1"), names


def _controller(name: str, available: tuple[str, ...], *, is_root: bool) -> Ability:
    ability = f"limit-{name}"
    if name not in available:
        return Ability(
            name=ability,
            is_there=False,
            why=f"no {name} cgroup controller is mounted",
            hint=f"boot with cgroup_enable={name}, and mount the cgroup file system",
        )
    if not is_root:
        return Ability(
            name=ability,
            is_there=False,
            why="a plain user may not make cgroups here",
            hint="run as root for limits",
        )
    return Ability(name=ability, is_there=True)


def _reflink(directory: Path) -> Ability:
    try:
        with tempfile.TemporaryFile(dir=directory) as source:
            source.write(bytes(4096))
            source.flush()
            with tempfile.TemporaryFile(dir=directory) as target:
                fcntl.ioctl(target, _FICLONE, source.fileno())
    except OSError as error:
        return Ability(
            name="reflink",
            is_there=False,
            why=f"{directory} can't share content between files: {error.strerror}",
            hint="put the store on xfs or btrfs if many files occur in several layers",
        )
    return Ability(name="reflink", is_there=True)


def _loop() -> Ability:
    path = Path("/dev/loop-control")
    if os.access(path, os.R_OK | os.W_OK):
        return Ability(name="loop", is_there=True)
    if path.exists():
        return Ability(
            name="loop", is_there=False, why=f"{path} is not for this user", hint="run as root"
        )
    return Ability(
        name="loop", is_there=False, why=f"{path} is not there", hint="modprobe loop, as root"
    )


def _seccomp() -> Ability:
    if Path("/proc/sys/kernel/seccomp/actions_avail").exists():
        return Ability(name="seccomp", is_there=True)
    return Ability(
        name="seccomp",
        is_there=False,
        why="this kernel has no seccomp filters",
        hint="use a kernel with CONFIG_SECCOMP_FILTER",
    )
