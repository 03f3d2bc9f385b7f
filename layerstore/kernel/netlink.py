"""Netlink, spoken directly: messages, attributes and acknowledgements of a network namespace.

A message is a header (length, type, flags, sequence, port), a fixed part and attributes (length,
type, value, padded to 4 bytes), in the machine's byte order. The kernel answers before the write
returns, so nothing here waits: an answer that is missing is an error. Sockets are plain descriptors
because ``socket`` costs 12 ms to import.

An OSError names the request, and has the kernel's own explanation where it gave one.
"""

from __future__ import annotations

import errno
import os
import struct

from layerstore.kernel import numbers
from layerstore.kernel.libc import syscall
from layerstore.kernel.namespaces import NEWNET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

ROUTE, NETFILTER = 0, 12
"""The protocols: what a socket talks about."""

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400

IPV4, IPV6 = 2, 10

_SETSOCKOPT = {"x86_64": 54, "aarch64": 208}[numbers.MACHINE]
_AF_NETLINK, _SOCK_RAW, _SOL_NETLINK = 16, 3, 270
_CAP_ACK, _EXT_ACK, _STRICT_CHECK = 10, 11, 12
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED, _CAPPED, _ACK_TLVS = 0x10, 0x100, 0x200
_ACK_MESSAGE = 1
_NESTED, _KIND_MASK = 0x8000, 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE = 1 << 16  # the kernel makes no message of a dump longer than 32 KiB
_DUMP_ATTEMPTS = 10

Request = tuple[str, int, int, bytes]
"""How errors name it, its type, its flags, its body."""


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def word(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in the machine's byte order."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, os.fsencode(value) + b"\0")


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Type → value; of repeated ones the last. Raises OSError if the lengths don't add up."""
    found = {}
    offset = 0
    while offset < len(data):
        if len(data) - offset < 4:
            raise _malformed(f"{len(data) - offset} bytes follow the last attribute")
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not 4 <= length <= len(data) - offset:
            raise _malformed(f"an attribute of {length} bytes has {len(data) - offset} left")
        found[kind & _KIND_MASK] = data[offset + 4 : offset + length]
        offset += length + -length % 4
    return found


def parse_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each. Raises OSError if the lengths don't add up."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise _malformed(f"{len(data) - offset} bytes are too short for a header")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise _malformed(f"a message of {length} bytes has {len(data) - offset} left")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + -length % 4


def _malformed(what: str) -> OSError:
    return OSError(errno.EBADMSG, f"the kernel's answer is malformed: {what}")


def parse_error(flags: int, body: bytes) -> tuple[int, str]:
    """(errno, the kernel's explanation or '') of an acknowledgement; errno 0 is success."""
    if len(body) < 4 + _HEADER.size:
        raise _malformed(f"an acknowledgement has {len(body)} bytes")
    code, length = struct.unpack_from("=iI", body)
    if not flags & _ACK_TLVS:
        return -code, ""
    end = 4 + (_HEADER.size if flags & _CAPPED else length + -length % 4)
    message = parse_attributes(body[end:]).get(_ACK_MESSAGE, b"")
    return -code, message.rstrip(b"\0").decode("utf-8", "replace")


def enter_network(netns_fd: int) -> None:
    """The calling thread is in that network namespace."""
    syscall("setns", numbers.SETNS, netns_fd, NEWNET)


def open_network(pid: int) -> int:
    """A descriptor of a process's network namespace, which lives as long as the descriptor."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class InNetwork:
    """``with InNetwork(fd)``: the calling thread, and no other, is in that network namespace."""

    def __init__(self, netns_fd: int) -> None:
        self._netns_fd = netns_fd

    def __enter__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter_network(self._netns_fd)
        except OSError:
            os.close(self._home)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            enter_network(self._home)
        finally:
            os.close(self._home)


def _open_socket(protocol: int, netns_fd: int | None) -> int:
    """A socket belongs for ever to the namespace that it was made in."""
    if netns_fd is not None:
        with InNetwork(netns_fd):
            return _open_socket(protocol, None)
    kind = _SOCK_RAW | os.O_CLOEXEC | os.O_NONBLOCK
    return syscall("socket", numbers.SOCKET, _AF_NETLINK, kind, protocol)


class Netlink:
    """A socket to one part of the kernel, in the caller's network namespace or in another."""

    def __init__(self, protocol: int, *, netns_fd: int | None = None) -> None:
        self._fd = _open_socket(protocol, netns_fd)
        self._sequence = 0
        one = struct.pack("=i", 1)
        options = (_CAP_ACK, _EXT_ACK, *((_STRICT_CHECK,) if protocol == ROUTE else ()))
        for option in options:
            arguments = (self._fd, _SOL_NETLINK, option, one, len(one))
            syscall("setsockopt", _SETSOCKOPT, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def exchange(self, requests: Sequence[Request]) -> None:
        """All are sent at once; returns when each that wants an acknowledgement has a good one.

        Raises OSError for the first that failed; whether others took effect is the protocol's rule.
        """
        names = self._send(requests)
        wanted = {
            sequence
            for sequence, (_, _, flags, _) in zip(names, requests, strict=True)
            if flags & ACK
        }
        failure: OSError | None = None
        while wanted:
            try:
                answers = list(self._receive(names))
            except BlockingIOError:
                break
            for kind, flags, sequence, body in answers:
                if kind != _ERROR:
                    raise _malformed(f"type {kind} acknowledges {names[sequence]}")
                wanted.discard(sequence)
                failure = failure or _failure(names[sequence], flags, body)
        if failure is not None:
            raise failure
        if wanted:
            raise OSError(errno.EPROTO, "the kernel did not answer", names[min(wanted)])

    def call(self, what: str, kind: int, flags: int, body: bytes) -> None:
        """The kernel has done what the message asks for."""
        self.exchange([(what, kind, REQUEST | ACK | flags, body)])

    def ask(self, what: str, kind: int, body: bytes) -> bytes:
        """The body of the one answer."""
        names = self._send([(what, kind, REQUEST, body)])
        for answer, flags, _, content in self._receive(names):
            if answer != _ERROR:
                return content
            failure = _failure(what, flags, content)
            if failure is not None:
                raise failure
        raise OSError(errno.EPROTO, "the kernel did not answer", what)

    def dump(self, what: str, kind: int, body: bytes) -> list[bytes]:
        """The bodies of everything that there is, as it was at one moment."""
        for _ in range(_DUMP_ATTEMPTS):
            bodies = self._dump_once(what, kind, body)
            if bodies is not None:
                return bodies
        raise OSError(errno.EAGAIN, "the list changed faster than it could be read", what)

    def _dump_once(self, what: str, kind: int, body: bytes) -> list[bytes] | None:
        names = self._send([(what, kind, REQUEST | DUMP, body)])
        bodies: list[bytes] = []
        interrupted = False
        while True:
            for answer, flags, _, content in self._receive(names):
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if answer == _ERROR:
                    failure = _failure(what, flags, content)
                    if failure is not None:
                        raise failure
                elif answer == _DONE:
                    if len(content) >= 4 and (code := struct.unpack_from("=i", content)[0]) < 0:
                        raise OSError(-code, os.strerror(-code), what)
                    return None if interrupted else bodies
                else:
                    bodies.append(content)

    def _send(self, requests: Sequence[Request]) -> dict[int, str]:
        names = {}
        messages = []
        for what, kind, flags, body in requests:
            self._sequence += 1
            names[self._sequence] = what
            header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
            messages.append(header + body + bytes(-len(body) % 4))
        try:
            os.write(self._fd, b"".join(messages))
        except OSError as error:
            raise OSError(error.errno, error.strerror, requests[0][0]) from None
        return names

    def _receive(self, names: dict[int, str]) -> Iterator[tuple[int, int, int, bytes]]:
        for message in parse_messages(os.read(self._fd, _RECEIVE)):
            if message[2] in names:  # else it answers a request that was given up after an error
                yield message


def _failure(what: str, flags: int, body: bytes) -> OSError | None:
    code, explanation = parse_error(flags, body)
    if not code:
        return None
    reason = os.strerror(code)
    return OSError(code, f"{reason}: {explanation}" if explanation else reason, what)
