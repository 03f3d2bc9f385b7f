"""Capabilities: names to numbers, and a process that keeps a few for good."""

from __future__ import annotations

import errno
import struct

from layerstore.errors import UsageError
from layerstore.kernel import numbers
from layerstore.kernel.libc import Memory, syscall
from layerstore.kernel.process import prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NUMBERS = {
    name: number
    for number, name in enumerate(
        (
            "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID",
            "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST",
            "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO",
            "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
            "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
            "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM",
            "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
        )
    )
}  # fmt: skip

DEFAULT = frozenset(
    [
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    ]
)
"""Podman's eleven: docker's without MKNOD, NET_RAW and AUDIT_WRITE."""

_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522


def parse_capability(text: str) -> str:
    """``NET_RAW`` for ``net_raw`` or ``CAP_NET_RAW``. Raises UsageError."""
    name = text.upper().removeprefix("CAP_")
    if name not in NUMBERS:
        raise UsageError(
            f"{text!r} is not a capability", hint="see capabilities(7) for their names"
        )
    return name


def mask_of(names: Iterable[str]) -> int:
    """The bits of these capabilities."""
    return sum(1 << NUMBERS[name] for name in names)


def drop_bounding(kept: int) -> None:
    """No exec gives the caller more than ``kept``. Needs SETPCAP; comes before the user changes."""
    for number in range(64):
        if not kept >> number & 1:
            try:
                prctl(_PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return  # one past the kernel's last


def keep_only(kept: int) -> None:
    """Effective and permitted are what the caller has of ``kept``; nothing is inherited."""
    header = struct.pack("II", _VERSION_3, 0)
    sets = Memory(24)
    syscall("capget", numbers.CAPGET, header, sets.address)
    _, low, _, _, high, _ = struct.unpack("6I", sets.read())
    permitted = (low | high << 32) & kept
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    syscall("capset", numbers.CAPSET, header, struct.pack("6I", low, low, 0, high, high, 0))
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
