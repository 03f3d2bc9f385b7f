"""A file as a read-only block device, for as long as something holds it (loop(4))."""

from __future__ import annotations

import errno
import fcntl
import os
from array import array
from contextlib import contextmanager

from layerstore.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
_TRIES = 64


@contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """The device's path. Leaving the block gives it up; a mount made inside keeps it alive."""
    image = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device, path = _configured(image)
    finally:
        os.close(image)
    try:
        yield path
    finally:
        os.close(device)


def _configured(image: int) -> tuple[int, str]:
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"no loop device can be had: {error.strerror}",
            hint="load the kernel module loop, or use --driver stacked",
        ) from error
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # struct loop_config: u32 fd, u32 block size, struct loop_info64 (flags at 52), padding.
            config = array("I", bytes(304))
            config[0], config[1], config[2 + 52 // 4] = image, 4096, _READ_ONLY | _AUTOCLEAR
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
                return device, path
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # else somebody was faster
                    raise
    finally:
        os.close(control)
    raise HostError("no loop device can be had: others take them all", hint="try again")
