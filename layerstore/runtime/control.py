"""What a monitor tells who asks: a socket in the state directory, and frames on it.

A client says one byte: what it wants. The monitor answers with frames: one byte of kind, four of
length (little-endian), and the payload. A client that attaches is told about the command's input
and gets a copy of its output; every client is told how the container ended. The command's input it
takes from the monitor as a descriptor (``pidfd_getfd``), which only somebody with power over the
monitor can.

The socket's path may be longer than the 107 bytes of an address, so it is named through a
descriptor of the directory.
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.state import StrPath

NAME = "control"
HELLO = b"h"
"""Its payload is ``pid descriptor terminal``: the monitor's, the number there of what the command
reads (-1 if it reads nothing), and 1 if that is a terminal. Sent again after a restart."""
OUTPUT, ERRORS = b"1", b"2"
STARTED = b"s"
"""The command runs; its payload is the pid."""
FAILED = b"f"
"""The command did not start; its payload is a record of what failed."""
ENDED = b"e"
"""The container has ended for good; its payload is a record of the Outcome."""

ATTACH, WAIT = b"a", b"w"
"""What clients ask for."""

_UCRED = struct.Struct("iII")


def frame(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "little") + payload


class Deframer:
    """Frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """(kind, payload) of each frame that is complete now."""
        self._bytes += chunk
        frames = []
        at = 0
        while len(self._bytes) >= at + 5:
            end = at + 5 + int.from_bytes(self._bytes[at + 1 : at + 5], "little")
            if len(self._bytes) < end:
                break
            frames.append((self._bytes[at : at + 1], self._bytes[at + 5 : end]))
            at = end
        self._bytes = self._bytes[at:]
        return frames


def listen(state_dir: StrPath) -> int:
    """The descriptor of the socket on which clients ask, for its owner alone."""
    directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.unlink(NAME, dir_fd=directory)
        except FileNotFoundError:
            pass
        server = _new_socket()
        server.bind(f"/proc/self/fd/{directory}/{NAME}")
        os.chmod(f"/proc/self/fd/{directory}/{NAME}", 0o600)
        server.listen(16)
        server.setblocking(False)
        return server.detach()
    finally:
        os.close(directory)


def accept(listener: int) -> int | None:
    """The descriptor of a client that may ask: one of our user's, or root's. It never blocks."""
    server = _socket.socket(fileno=listener)
    try:
        fd, _ = server._accept()  # type: ignore[attr-defined]
    except OSError:  # it hung up already
        return None
    finally:
        server.detach()
    client = _socket.socket(fileno=fd)
    _, uid, _ = _UCRED.unpack(
        client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    )
    if uid not in (0, os.geteuid()):
        client.close()
        return None
    client.setblocking(False)
    return client.detach()


def connect(state_dir: StrPath, wants: bytes) -> int:
    """The descriptor of a channel to the monitor. Raises OSError if none listens."""
    directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    client = _new_socket()
    try:
        client.connect(f"/proc/self/fd/{directory}/{NAME}")
        client.send(wants)
        return client.detach()
    except BaseException:
        client.close()
        raise
    finally:
        os.close(directory)


def remove(state_dir: StrPath) -> None:
    """Nobody finds the socket any more."""
    try:
        os.unlink(os.fspath(state_dir) + "/" + NAME)
    except FileNotFoundError:
        pass


def pair() -> tuple[int, int]:
    """Two connected descriptors."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    return ours.detach(), theirs.detach()


def end_of_words(fd: int) -> None:
    """The other side reads an end of file once it has read everything."""
    ours = _socket.socket(fileno=fd)
    try:
        ours.shutdown(_socket.SHUT_WR)
    except OSError:  # the other side is gone
        pass
    finally:
        ours.detach()


def _new_socket() -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
