"""The caller's terminal, and bytes on their way between descriptors."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 65536
_TTY_CHUNK = 4096
_TIOCGPTPEER, _TIOCSPTLCK = 0x5441, 0x40045431
_PTMX = os.makedev(5, 2)
_CC, _IFLAG, _OFLAG, _CFLAG, _LFLAG = 6, 0, 1, 2, 3


class RawMode:
    """The terminal passes every byte on until ``restore``; nothing happens without a terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[int | list[bytes | int]] | None = None
        if not os.isatty(fd):
            return
        self._saved = termios.tcgetattr(fd)
        mode = termios.tcgetattr(fd)
        mode[_IFLAG] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
            | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[_OFLAG] &= ~termios.OPOST
        mode[_CFLAG] = mode[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[_LFLAG] &= ~(
            termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
        )
        mode[_CC][termios.VMIN], mode[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)

    def restore(self) -> None:
        """The terminal is as it was."""
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None


def copy_window_size(source: int, target: int) -> None:
    """The terminal ``target`` is as large as ``source``, if that is one."""
    try:
        size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(target, termios.TIOCSWINSZ, size)
    except OSError:
        pass


def set_window_size(terminal: int, window: tuple[int, int] | None) -> None:
    """The terminal has that many rows and columns; 24 and 80 for None."""
    rows, columns = window or (24, 80)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def window_size(terminal: int) -> tuple[int, int] | None:
    """Rows and columns; None if that is no terminal."""
    try:
        size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return None
    rows, columns, _, _ = struct.unpack("HHHH", size)
    return rows, columns


def open_pty(devpts_fd: int) -> tuple[int, int]:
    """(master, slave) of a new pty of that devpts mount, none of them found by a path."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("ptmx", flags | os.O_NOFOLLOW, dir_fd=devpts_fd)
    if os.fstat(master).st_rdev != _PTMX:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), "ptmx")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    return master, fcntl.ioctl(master, _TIOCGPTPEER, flags)


def take_as_controlling(slave: int) -> None:
    """The caller's session, which has none, is controlled by this terminal."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


class Pump:
    """Copies what ``source`` gives to a descriptor or a callable, when the caller's poll says so.

    Holds at most one chunk, and reads no further before it is written. ``translate`` says what to
    write for a chunk; ``at_end`` is written last; ``owned`` is closed when nothing more is copied.
    """

    def __init__(
        self,
        source: int,
        target: int | Callable[[bytes], object],
        *,
        owned: int = -1,
        at_end: bytes = b"",
        translate: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.source = source
        self.is_open = True
        self._target = target
        self._owned = owned
        self._at_end = at_end
        self._translate = translate
        self._pending = b""
        self._chunk = _TTY_CHUNK if isinstance(target, int) else _CHUNK

    @property
    def waits_for(self) -> tuple[int, bool]:
        """(descriptor, whether to write) that the next ``step`` needs."""
        if self._pending and isinstance(self._target, int):
            return self._target, True
        return self.source, False

    def step(self) -> None:
        """One read or one write, which the poll said does not block."""
        if self._pending:
            self._write()
            return
        try:
            chunk = os.read(self.source, self._chunk)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last slave of a pty is closed
            chunk = b""
        if chunk:
            self._pending = self._translate(chunk) if self._translate else chunk
            if not isinstance(self._target, int):
                self._write()
        elif self._at_end:
            self._pending, self._at_end = self._at_end, b""
        else:
            self.close()

    def _write(self) -> None:
        chunk, self._pending = self._pending, b""
        if not isinstance(self._target, int):
            self._target(chunk)
            return
        try:
            written = os.write(self._target, chunk)
        except BlockingIOError:
            written = 0
        except OSError:  # nobody reads any more
            self.close()
            return
        self._pending = chunk[written:]

    def drain(self) -> None:
        """What the source still holds, now that its last writer is gone, is written."""
        if self.is_open:
            os.set_blocking(self.source, False)
        while self.is_open:
            if self._pending:
                self._write()
                continue
            try:
                self._pending = os.read(self.source, self._chunk)
            except OSError:
                self._pending = b""
            if not self._pending:
                self.close()

    def close(self) -> None:
        """Nothing more is copied."""
        if self.is_open and self._owned >= 0:
            os.close(self._owned)
        self.is_open = False
