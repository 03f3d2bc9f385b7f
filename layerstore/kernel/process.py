"""What the launcher does to processes, its own and others, besides namespaces and capabilities."""

from __future__ import annotations

import os
import select
import struct

from layerstore.errors import UsageError
from layerstore.kernel import numbers
from layerstore.kernel.libc import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable

    from layerstore.kernel.libc import Word
else:  # ``signal`` itself costs 5 ms: it makes enums of these numbers
    import _signal

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CLOSE_RANGE_CLOEXEC = 4
_SFD_CLOEXEC, _SFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_SIGINFO_SIZE = 128

SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM = 1, 2, 3, 9, 15
SIGUSR1, SIGUSR2, SIGWINCH = 10, 12, 28


def prctl(option: int, a: Word = 0, b: Word = 0) -> int:
    """prctl(2)."""
    return syscall("prctl", numbers.PRCTL, option, a, b)


def set_name(name: bytes) -> None:
    """The caller is shown by this name, of at most 15 bytes."""
    prctl(_PR_SET_NAME, name)


def die_with_parent() -> None:
    """The caller is killed when its parent ends. A change of credentials undoes it."""
    prctl(_PR_SET_PDEATHSIG, SIGKILL)


def set_undumpable() -> None:
    """Until it execs, nobody without privileges may trace the caller or follow its /proc."""
    prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """No exec of the caller, or of its children, gains privileges any more."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def leave_keyring() -> None:
    """The caller has a session keyring of its own, where the kernel has keyrings."""
    try:
        syscall("keyctl", numbers.KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError:  # not built in, forbidden by an outer seccomp filter, or over quota
        pass


def close_on_exec_from(first: int) -> None:
    """No descriptor from ``first`` on outlives an exec."""
    syscall("close_range", numbers.CLOSE_RANGE, first, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def close_all_but(kept: Iterable[int]) -> None:
    """Only these descriptors, and 0 to 2, are open."""
    first = 3
    for fd in sorted(kept):
        if fd > first:
            syscall("close_range", numbers.CLOSE_RANGE, first, fd - 1, 0)
        first = max(first, fd + 1)
    syscall("close_range", numbers.CLOSE_RANGE, first, 0xFFFFFFFF, 0)


def reset_signals() -> None:
    """No signal is ignored, so that an exec leaves each with its default action."""
    for signum in range(1, _signal.NSIG):
        if _signal.getsignal(signum) is _signal.SIG_IGN:
            _signal.signal(signum, _signal.SIG_DFL)
    # posix_spawn of glibc leaves its two internal signals ignored, and its sigaction refuses them.
    for signum in (32, 33):
        syscall("rt_sigaction", numbers.RT_SIGACTION, signum, bytes(32), None, 8)


def block_signals(signals: Iterable[int]) -> set[int]:
    """The signals wait to be read; the mask before, for ``restore_signals``."""
    return {int(s) for s in _signal.pthread_sigmask(_signal.SIG_BLOCK, signals)}


def restore_signals(mask: Iterable[int]) -> None:
    """The mask is as given; what waited outside of it arrives now."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def signal_fd(signals: Iterable[int]) -> int:
    """A descriptor from which the blocked signals are read, by ``read_signals``."""
    mask = struct.pack("Q", sum(1 << (signum - 1) for signum in signals))
    flags = _SFD_CLOEXEC | _SFD_NONBLOCK
    return syscall("signalfd4", numbers.SIGNALFD4, -1, mask, len(mask), flags)


def read_signals(fd: int) -> list[int]:
    """The signals that arrived since, in the kernel's order."""
    try:
        infos = os.read(fd, 16 * _SIGINFO_SIZE)
    except BlockingIOError:
        return []
    return [
        int.from_bytes(infos[at : at + 4], "little") for at in range(0, len(infos), _SIGINFO_SIZE)
    ]


def send_signal(pidfd: int, signum: int) -> None:
    """The process gets the signal, if it still is there."""
    try:
        _signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        pass


def open_process(pid: int, started: int | None) -> int | None:
    """A pidfd of the process that started then; None if it has ended, whoever has its pid now."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if started is not None and start_time(pid) == started:
        return pidfd
    os.close(pidfd)
    return None


def has_ended(pidfd: int, timeout_s: float = 0) -> bool:
    """Whether the process has ended, or does so within that time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def parse_signal(text: str) -> int:
    """The number of ``TERM``, ``SIGTERM``, ``15`` or ``RTMIN+3``. Raises UsageError."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and 0 < int(name) < _signal.NSIG:
        return int(name)
    base, plus, offset = name.partition("+")
    number = getattr(_signal, "SIG" + base, None)
    if isinstance(number, int) and number > 0 and (not plus or base == "RTMIN"):
        number = int(number)
        if not plus:
            return number
        if offset.isascii() and offset.isdigit() and number + int(offset) < _signal.NSIG:
            return number + int(offset)
    raise UsageError(
        f"{text!r} is not a signal", hint="write a name, such as TERM or SIGTERM, or a number"
    )


def take_descriptor(pidfd: int, number: int) -> int:
    """A duplicate, close-on-exec, of another process's descriptor."""
    return syscall("pidfd_getfd", numbers.PIDFD_GETFD, pidfd, number, 0)


def start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot: with the pid, its identity. None: no such."""
    stat = _proc(pid, "stat")
    if stat is None:
        return None
    fields = stat.rpartition(b") ")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_killed_by(pid: int, signum: int) -> bool:
    """Whether the process neither catches, ignores nor blocks a signal."""
    status = _proc(pid, "status")
    if status is None:
        return False
    bit = 1 << (signum - 1)
    for line in status.splitlines():
        if line[:7] in (b"SigBlk:", b"SigIgn:", b"SigCgt:") and int(line[7:], 16) & bit:
            return False
    return True


def boot_id() -> str:
    """This boot of the kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _proc(pid: int, name: str) -> bytes | None:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
