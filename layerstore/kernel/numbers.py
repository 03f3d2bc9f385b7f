"""Numbers of the system calls that the launcher makes, on the machines it is written for.

Calls since 5.1 have one number everywhere; older ones differ between x86_64 and the generic table
that aarch64 uses. Another machine needs its column here and its stub in ``execstub``.
"""

from __future__ import annotations

import os
import sys

from layerstore.errors import HostError

MACHINE = os.uname().machine
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(MACHINE if sys.maxsize > 2**32 else "")
if _COLUMN is None:
    raise HostError(
        f"layerstore's system calls are written for 64-bit x86_64 and aarch64, not for {MACHINE}",
        hint="use a 64-bit Python on one of these machines",
    )


def _number(*columns: int) -> int:
    return columns[_COLUMN or 0]


RT_SIGACTION = _number(13, 134)
SOCKET = _number(41, 198)
CAPGET = _number(125, 90)
CAPSET = _number(126, 91)
PIVOT_ROOT = _number(155, 41)
PRCTL = _number(157, 167)
MOUNT = _number(165, 40)
UMOUNT2 = _number(166, 39)
SETHOSTNAME = _number(170, 161)
KEYCTL = _number(250, 219)
UNSHARE = _number(272, 97)
FSTATFS = _number(138, 44)
SETNS = _number(308, 268)
INOTIFY_ADD_WATCH = _number(254, 27)
INOTIFY_INIT1 = _number(294, 26)
SIGNALFD4 = _number(289, 74)
SECCOMP = _number(317, 277)
SYNCFS = _number(306, 267)

OPEN_TREE = 428
MOVE_MOUNT = 429
FSOPEN = 430
FSCONFIG = 431
FSMOUNT = 432
CLONE3 = 435
CLOSE_RANGE = 436
PIDFD_GETFD = 438
MOUNT_SETATTR = 442
