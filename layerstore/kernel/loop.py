"""A file as a read-only block device, for as long as something holds it (loop(4))."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from layerstore.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
_TRIES = 64


class loop_device:  # noqa: N801 - contextlib is slow to import
    """The device's path. Leaving the block gives it up; a mount made inside keeps it alive."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> str:
        image = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._device, path = _configured(image)
        finally:
            os.close(image)
        return path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._device)


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
            config = struct.pack("II52xI", image, 4096, _READ_ONLY | _AUTOCLEAR).ljust(304, b"\0")
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
