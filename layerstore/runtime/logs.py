"""What a detached command writes, kept in the text format of the CRI (kubelet and crictl read it).

A line is ``2026-08-01T12:00:00.123456789Z stdout F text``: a time, the stream, and whether the
text is a full line (F) or a part (P) that goes on in the stream's next one. All lines that one read
of a pipe gives have its time. Files are numbered; the last one is written to.
"""

from __future__ import annotations

import os
import time

from layerstore.errors import UsageError, is_full

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.runtime.state import StrPath

    Line = tuple[bytes, bytes, bytes]
    """Time (RFC 3339, UTC, nanoseconds: the texts' order is that of the times), ``stdout`` or
    ``stderr``, and the text, with its newline if the command wrote one here."""

_BLOCK = 1 << 20


class LogWriter:
    """Appends to the log of a directory, and rotates it."""

    def __init__(self, directory: StrPath, *, max_size: int, count: int) -> None:
        """At most ``count`` files of ``max_size`` bytes, or a little more, are kept."""
        self._directory = os.fspath(directory)
        self._max_size = max_size
        self._count = count
        self._second = -1
        self._date = b""
        self._number = max(file_numbers(self._directory), default=1)
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(f"{self._directory}/{self._number}", flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: bytes, chunk: bytes) -> None:
        """The chunk, which is not empty, is in the log; on a full disk it is lost."""
        head = self._now() + b" " + stream
        *full, rest = chunk.split(b"\n")
        text = b""
        if full:
            before = head + b" F "
            # Twice as fast as bytes.replace.
            text = before + (b"\n" + before).join(full) + b"\n"
        if rest:
            text += head + b" P " + rest + b"\n"
        if self._size + len(text) > self._max_size and self._size:
            self._rotate()
        try:
            written = os.write(self._fd, text)
            self._size += written
            if written < len(text):  # the disk is full, or nearly
                self._size += os.write(self._fd, text[written:])
        except OSError as error:
            if not is_full(error):
                raise

    def _now(self) -> bytes:
        seconds, rest = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode()
        return b"%b.%09dZ" % (self._date, rest)

    def _rotate(self) -> None:
        os.close(self._fd)
        self._number += 1
        self._open()
        for number in file_numbers(self._directory)[: -self._count]:
            os.unlink(f"{self._directory}/{number}")

    def close(self) -> None:
        os.close(self._fd)


def timestamp(ns: int) -> bytes:
    """A time as logs have it."""
    seconds, rest = divmod(ns, 1_000_000_000)
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{date}.{rest:09}Z".encode()


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_since(text: str, now_ns: int) -> bytes:
    """The time that ``--since`` means: ``10m``, ``1h30m`` ago, an RFC 3339 time, or an epoch."""
    number = text.replace(".", "", 1)
    if number.isascii() and number.isdigit():
        whole, _, fraction = text.partition(".")
        return timestamp(int(whole or 0) * 1_000_000_000 + int((fraction + "0" * 9)[:9]))
    ago = _parse_span(text)
    if ago is not None:
        return timestamp(max(0, now_ns - ago * 1_000_000_000))
    moment = _parse_moment(text)
    if moment is None:
        raise UsageError(
            f"{text!r} is no time",
            hint="write a span such as 10m or 1h30m, or a time such as 2026-08-01T12:00:00Z",
        )
    return moment


def _parse_span(text: str) -> int | None:
    seconds, digits = 0, ""
    for letter in text:
        if letter.isascii() and letter.isdigit():
            digits += letter
        elif letter in _UNITS and digits:
            seconds, digits = seconds + int(digits) * _UNITS[letter], ""
        else:
            return None
    return seconds if text and not digits else None


def _parse_moment(text: str) -> bytes | None:
    """``2026-08-01[T12:00[:00[.5]]][Z]``, in UTC."""
    stem, _, fraction = text.removesuffix("Z").replace(" ", "T").partition(".")
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        try:
            moment = time.strptime(stem, form)
        except ValueError:
            continue
        if fraction and not (fraction.isascii() and fraction.isdigit()):
            return None
        date = time.strftime("%Y-%m-%dT%H:%M:%S", moment)
        return f"{date}.{(fraction + '0' * 9)[:9]}Z".encode()
    return None


def file_numbers(directory: str) -> list[int]:
    """Of the log's files, oldest first; none if there is no log."""
    try:
        return sorted(int(name) for name in os.listdir(directory) if name.isdigit())
    except FileNotFoundError:
        return []


class LogReader:
    """Reads a log from its oldest line on, and again when there is more."""

    def __init__(self, directory: StrPath) -> None:
        self._directory = os.fspath(directory)
        self._number = 0
        self._fd = -1
        self._rest = b""

    def read(self) -> Iterator[Line]:
        """The lines that are there and have not been read; whole ones only."""
        while True:
            newer = [number for number in file_numbers(self._directory) if number > self._number]
            # Asked first: the file that is read now gets no more lines if there is a newer one.
            if self._fd >= 0:
                yield from self._lines()
            if not newer:
                return
            try:
                fd = os.open(f"{self._directory}/{newer[0]}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # rotated away meanwhile
                continue
            self.close()
            self._fd, self._number = fd, newer[0]

    def _lines(self) -> Iterator[Line]:
        while block := os.read(self._fd, _BLOCK):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                fields = line.split(b" ", 3)
                if len(fields) == 4:  # else a crash or a full disk tore it
                    moment, stream, tag, text = fields
                    yield moment, stream, text + b"\n" if tag == b"F" else text

    def close(self) -> None:
        """No file is open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._rest = -1, b""


def last_lines(lines: list[Line], count: int) -> list[Line]:
    """The last ``count`` full lines, whatever their parts, and what follows unfinished."""
    left = count
    for at in range(len(lines) - 1, -1, -1):
        if lines[at][2].endswith(b"\n") or at == len(lines) - 1:
            left -= 1
            if left < 0:
                return lines[at + 1 :]
    return lines
