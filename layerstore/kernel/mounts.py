"""Mounts through descriptors: overlays of any depth, and what a container's root is made of.

A mount is made detached, given its attributes, and only then attached onto a descriptor that the
caller opened: no path is resolved twice, so nobody can swap a component between check and use.
Needs Linux 5.12 (``mount_setattr``); overlays of kernels before 6.7, which lack ``lowerdir+``, go
through mount(2).
"""

from __future__ import annotations

import errno
import os
import struct

from layerstore.errors import HostError
from layerstore.kernel import numbers
from layerstore.kernel.fs import openat2
from layerstore.kernel.libc import AT_EMPTY_PATH, AT_FDCWD, syscall
from layerstore.kernel.loop import loop_device
from layerstore.kernel.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8

RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
"""MOUNT_ATTR_*: what a mount forbids."""

_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_EMPTY_PATHS = 0x4 | 0x40
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6
_CLOEXEC = 1
_STRING_MAX = 255
_PAGE = 4096


class OverlayMount(Value):
    """What an overlay is made of; nothing is mounted yet.

    The directories may have any name: commas, colons and long paths are taken care of. Without
    ``upperdir`` the overlay is read-only, and one lower directory alone becomes a bind mount.
    """

    lowerdirs_top_down: tuple[Path, ...] = ()
    image: Path | None = None
    """An EROFS image, instead of lower directories."""
    datadirs: tuple[Path, ...] = ()
    """Data-only lowers, below all others: found only by redirects of ``metacopy`` files."""
    upperdir: Path | None = None
    workdir: Path | None = None
    volatile: bool = False
    """No syncing at all: for an upper that is thrown away."""
    userxattr: bool = False
    """``user.overlay.*`` instead of ``trusted.overlay.*``: what a user namespace may write."""
    metacopy: bool = False
    redirect_dir: str | None = None
    index: bool | None = None
    read_only: bool = False
    witness: tuple[bytes, bytes] | None = None
    """A path and the first bytes that reading it must give: wrong options of an image give zeros,
    not errors. Only for a root that nothing has changed yet."""


def mount_overlay(spec: OverlayMount, target: Path | str, *, attributes: int = 0) -> None:
    """Attaches the overlay onto the directory ``target``, in the caller's mount namespace.

    Raises HostError with the kernel's own messages.
    """
    if spec.read_only:
        attributes |= RDONLY
    if spec.upperdir is None and len(spec.lowerdirs_top_down) == 1 and not spec.datadirs:
        mount = clone_tree(os.fsencode(spec.lowerdirs_top_down[0]))
        try:
            set_attributes(mount, attributes | RDONLY)
            attach_at(mount, os.fsencode(target))
        finally:
            os.close(mount)
        return
    try:
        mount = _detached_overlay(spec, attributes)
    except _NoLowerdirPlus:
        mount_overlay_by_option_string(spec, target, attributes=attributes)
        return
    try:
        if spec.witness is not None:
            _check_witness(mount, *spec.witness)
        attach_at(mount, os.fsencode(target))
    finally:
        os.close(mount)


def _check_witness(mount_fd: int, path: bytes, head: bytes) -> None:
    fd = openat2(mount_fd, path, os.O_RDONLY)
    try:
        found = os.read(fd, len(head))
    finally:
        os.close(fd)
    if found != head:
        raise HostError(
            f"the mounted image does not show the content of {os.fsdecode(path)!r}",
            hint="run layerstore fsck --read-data; --driver stacked may work meanwhile",
        )


class _NoLowerdirPlus(Exception):
    """The kernel is older than 6.7."""


def _flags_of(spec: OverlayMount) -> list[tuple[str, str | None]]:
    """The options that are not directories."""
    options: list[tuple[str, str | None]] = []
    if spec.volatile:
        options.append(("volatile", None))
    if spec.userxattr:
        options.append(("userxattr", None))
    if spec.metacopy:
        options.append(("metacopy", "on"))
    if spec.redirect_dir is not None:
        options.append(("redirect_dir", spec.redirect_dir))
    if spec.index is not None:
        options.append(("index", "on" if spec.index else "off"))
    return options


def _detached_overlay(spec: OverlayMount, attributes: int) -> int:
    opened: list[int] = []
    directories: list[tuple[str, Path]] = [("lowerdir+", d) for d in spec.lowerdirs_top_down]
    directories += [("datadir+", d) for d in spec.datadirs]
    options: list[tuple[str, bytes | str | int | None]] = []
    if spec.image is not None:
        opened.append(mount_image(spec.image))
        options.append(("lowerdir+", opened[0]))
    if spec.upperdir is not None:
        directories += [("upperdir", spec.upperdir)]
    if spec.workdir is not None:
        directories += [("workdir", spec.workdir)]
    try:
        for key, directory in directories:
            name = os.fsencode(directory)
            if len(name) > _STRING_MAX:  # fsconfig takes no longer strings
                opened.append(os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                name = b"/proc/self/fd/%d" % opened[-1]
            options.append((key, name))
        return new_filesystem("overlay", [*options, *_flags_of(spec)], attributes)
    except HostError as error:
        if _may_lack_lowerdir_plus(error):
            raise _NoLowerdirPlus from None
        raise
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise _NoLowerdirPlus from None
        raise
    finally:
        for fd in opened:
            os.close(fd)


def _may_lack_lowerdir_plus(error: HostError) -> bool:
    """Before 6.5 it is refused by EINVAL when the mount is created, without a word, or earlier for
    what is no fault: a comma, or more options than a page. Where this guesses wrong, mount(2) fails
    too."""
    refused = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EINVAL
    words = error.details
    return refused and (words is None or "Legacy" in words or "'lowerdir+'" in words)


def mount_overlay_by_option_string(
    spec: OverlayMount, target: Path | str, *, attributes: int = 0
) -> None:
    """mount_overlay for kernels before 6.7, through mount(2).

    The directories are named by their descriptor's number, relative to /proc/self/fd: nothing to
    escape, and a page of options holds hundreds of layers.
    """
    opened: list[int] = []
    where = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def named(directory: Path) -> str:
        opened.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return str(opened[-1])

    try:
        lower = ":".join([named(directory) for directory in spec.lowerdirs_top_down])
        lower += "".join(["::" + named(directory) for directory in spec.datadirs])
        options = ["lowerdir=" + lower]
        if spec.upperdir is not None:
            options.append("upperdir=" + named(spec.upperdir))
        if spec.workdir is not None:
            options.append("workdir=" + named(spec.workdir))
        options += [key if value is None else f"{key}={value}" for key, value in _flags_of(spec)]
        text = ",".join(options).encode()
        if len(text) >= _PAGE:
            raise HostError(
                f"an overlay of {len(spec.lowerdirs_top_down)} layers is too deep for this kernel",
                hint="use Linux 6.7 or newer, or squash the image",
            )
        at = os.fsencode(os.path.abspath(target))
        os.chdir("/proc/self/fd")
        mount(b"overlay", at, b"overlay", attributes, text)
    except OSError as error:
        raise HostError(
            f"cannot mount the overlay: {error.strerror}",
            hint="see the kernel's messages: dmesg | tail",
            details=str(error),
        ) from error
    finally:
        os.fchdir(where)
        for fd in [*opened, where]:
            os.close(fd)


def mount_image(image: Path) -> int:
    """The descriptor of an EROFS image's detached mount: of the file itself, or by a loop device.

    Kernels before 6.12 mount no file, nor does any where the file is on tmpfs or on an overlay.
    """
    try:
        return new_filesystem("erofs", [("source", os.fsencode(image)), ("ro", None)], RDONLY)
    except HostError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOTBLK, errno.EINVAL):
            raise
    with loop_device(image) as device:
        return new_filesystem("erofs", [("source", device), ("ro", None)], RDONLY)


def new_filesystem(
    fstype: str, options: Sequence[tuple[str, bytes | str | int | None]] = (), attributes: int = 0
) -> int:
    """The descriptor of a new, still detached mount.

    A ``None`` as a value marks a flag, a number is a descriptor. The source is the type's name
    unless an option gives one.

    Raises HostError with the kernel's own messages.
    """
    if not any(key == "source" for key, _ in options):
        options = [("source", fstype), *options]
    try:
        context = syscall("fsopen", numbers.FSOPEN, fstype.encode(), _CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise
        raise HostError(
            f"cannot mount {fstype} (fsopen): {error.strerror}",
            hint=f"load its module: modprobe {fstype}" if error.errno == errno.ENODEV else None,
        ) from error
    step = "fsopen"
    try:
        for key, value in options:
            if value is None:
                step = key
                _fsconfig(context, _SET_FLAG, key.encode(), None)
            elif isinstance(value, int):
                step = f"{key}, descriptor {value}"
                _fsconfig(context, _SET_FD, key.encode(), None, value)
            else:
                step = f"{key}={os.fsdecode(value)}"
                _fsconfig(context, _SET_STRING, key.encode(), os.fsencode(value))
        step = "create"
        _fsconfig(context, _CREATE, None, None)
        step = "mount"
        return syscall("fsmount", numbers.FSMOUNT, context, _CLOEXEC, attributes)
    except OSError as error:
        failed = HostError(
            f"cannot mount {fstype} ({step}): {error.strerror}", details=_messages(context)
        )
        failed.__cause__ = error
        raise failed from error
    finally:
        os.close(context)


def _fsconfig(
    context: int, command: int, key: bytes | None, value: bytes | None, aux: int = 0
) -> None:
    syscall("fsconfig", numbers.FSCONFIG, context, command, key, value, aux)


def _messages(context: int) -> str | None:
    """What the kernel wrote about the failure, a line each."""
    lines = []
    while True:
        try:
            lines.append(os.read(context, 4096).decode("utf-8", "replace").strip())
        except OSError:
            return "\n".join(lines) or None


def clone_tree(path: bytes, *, dir_fd: int = AT_FDCWD, recursive: bool = False) -> int:
    """A detached bind mount of what is there. An empty path means ``dir_fd`` itself."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_EMPTY_PATH if not path else 0)
    if recursive:
        flags |= _AT_RECURSIVE
    return syscall("open_tree", numbers.OPEN_TREE, dir_fd, path, flags)


def set_attributes(
    mount_fd: int,
    attributes: int = 0,
    *,
    clear: int = 0,
    private: bool = False,
    recursive: bool = False,
) -> None:
    """The mount forbids what ``attributes`` say; with ``private`` no mount event passes it."""
    how = struct.pack("4Q", attributes, clear, MS_PRIVATE if private else 0, 0)
    flags = AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", numbers.MOUNT_SETATTR, mount_fd, b"", flags, how, len(how))


def attach(mount_fd: int, target_fd: int) -> None:
    """The detached mount covers what the descriptor ``target_fd`` is open on."""
    syscall(
        "move_mount", numbers.MOVE_MOUNT, mount_fd, b"", target_fd, b"", _MOVE_MOUNT_EMPTY_PATHS
    )


def attach_at(mount_fd: int, target: bytes) -> None:
    """The detached mount covers the host path ``target``."""
    at = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        attach(mount_fd, at)
    finally:
        os.close(at)


def bind(source: Path, target: Path, *, read_only: bool = False, recursive: bool = True) -> None:
    """``target`` shows what ``source`` does, both being host paths."""
    tree = clone_tree(os.fsencode(source), recursive=recursive)
    try:
        if read_only:
            set_attributes(tree, RDONLY, recursive=recursive)
        attach_at(tree, os.fsencode(target))
    finally:
        os.close(tree)


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, options: bytes = b"") -> None:
    """mount(2)."""
    syscall("mount", numbers.MOUNT, source, target, fstype, flags, options)


def umount(target: Path | bytes, *, lazily: bool = False) -> None:
    """Nothing covers ``target`` any more; ``lazily`` even while something uses it."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazily else 0)
    syscall("umount2", numbers.UMOUNT2, os.fsencode(target), flags)


def make_private() -> None:
    """Mount events of this namespace reach no other one, nor theirs this one."""
    mount(b"none", b"/", b"none", MS_REC | MS_PRIVATE)


def pivot_into(root_fd: int) -> None:
    """The mount that ``root_fd`` is open on is the root; the old one is detached and gone."""
    os.fchdir(root_fd)
    syscall("pivot_root", numbers.PIVOT_ROOT, b".", b".")
    # The old root now covers the new one at "."; see pivot_root(2), NOTES.
    syscall("umount2", numbers.UMOUNT2, b".", MNT_DETACH)
    os.chdir("/")
