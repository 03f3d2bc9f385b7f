"""System calls that Python has no name for. The one place that touches ctypes' machinery.

Built on ``_ctypes`` because importing ``ctypes`` costs 3 ms, a fifth of a container's start.
Every argument goes as one machine word: an ``int``, ``bytes`` (its address; NUL-terminated by
CPython) or ``None`` (NULL). What a call reads is packed into bytes by ``struct``; what it writes to
is a ``Memory``. An ``array`` would do for both, but costs 1.5 ms to import.
"""

from __future__ import annotations

import _ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

Word = int | bytes | None


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


# Any: _ctypes' call protocol has no types.
_syscall: Any = _Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall"))  # type: ignore[arg-type]
_syscall.argtypes = (_Long, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer)


def syscall(
    name: str,
    number: int,
    a: Word = 0,
    b: Word = 0,
    c: Word = 0,
    d: Word = 0,
    e: Word = 0,
    f: Word = 0,
) -> int:
    """The call's result; an OSError that names the call and its arguments when it is negative."""
    result: int = _syscall(number, a, b, c, d, e, f)
    if result < 0:
        errno = _ctypes.get_errno()
        shown = ", ".join(repr(word) for word in (a, b, c, d, e, f) if word not in (0, None))
        raise OSError(errno, os.strerror(errno), f"{name}({shown})")
    return result


class Memory:
    """Bytes, zero at first, that a call writes to. Must live as long as the call."""

    def __init__(self, size: int) -> None:
        kind = type("Bytes", (_ctypes.Array,), {"_type_": _Byte, "_length_": size})
        self._bytes = kind()
        self.address = _ctypes.addressof(self._bytes)

    def write(self, content: bytes) -> None:
        """It begins with ``content``."""
        memoryview(self._bytes).cast("B")[: len(content)] = content

    def read(self) -> bytes:
        """What is there now."""
        return bytes(memoryview(self._bytes))


def address(buffer: array[int]) -> int:
    """Where the array's memory is; the array must live as long as the call."""
    return buffer.buffer_info()[0]
