"""The xattrs of an inode in an EROFS image.

Integers are little-endian. The area is directly after the inode's core::

    off  size  xattr area field
      0     4  filter: bit n is clear if there is a name with
               xxh32(name, 0x25BBE08F + prefix) % 32 == n
      4     1  number of shared xattrs
      5     7  zero
     12     …  shared xattrs: u32 offset / 4 of an entry elsewhere in the image; then entries

    off  size  xattr entry field
      0     1  length of the name without its prefix
      1     1  prefix: 1 user., 2 system.posix_acl_access, 3 system.posix_acl_default, 4 trusted.,
               6 security.
      2     2  length of the value
      4     …  name, value, zeros up to a multiple of 4

Names of other namespaces and values over 65535 bytes have no form. ``trusted.overlay.*`` of an
image's own is kept escaped, see ``xattrs``.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from layerstore.formats.checksums import xxh32
from layerstore.formats.entries import Xattrs
from layerstore.formats.xattrs import MAX_VALUE, TRUSTED_OVERLAY, escaped_name

AREA = struct.Struct("<IB7x")
ENTRY = struct.Struct("<BBH")

TRUSTED = 4
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    TRUSTED: b"trusted.",
    6: b"security.",
}
WHOLE_NAMES = (2, 3)
"""These prefixes have nothing after them, the others must."""

FILTER_SEED = 0x25BBE08F
MAX_NAME = 255
MAX_AREA = 12 + 4 * 65534
MAX_SHARED = 127
_LIST_MAX = 65536
"""XATTR_LIST_MAX: what listxattr(2) gives at most."""
_RESERVE = 1024
"""For overlayfs' two xattrs and the shared ones."""

_ZEROS = (b"", b"\0", b"\0\0", b"\0\0\0")


class UnsayableError(Exception):
    """What is wrong with a node; whoever knows its path makes an ErofsError of it."""


def entry(prefix: int, name: bytes, value: bytes) -> bytes:
    start = ENTRY.pack(len(name), prefix, len(value)) + name + value
    return start + _ZEROS[-len(start) & 3]


@lru_cache(4096)
def filter_bit(prefix: int, name: bytes) -> int:
    return 1 << (xxh32(name, FILTER_SEED + prefix) & 31)


def encode(xattrs: Xattrs) -> tuple[tuple[bytes, ...], int]:
    """The entries of an inode's own xattrs, and their bits of its filter."""
    entries = []
    bits = listed = 0
    for name, value in xattrs:
        shown = name.decode("utf-8", "backslashreplace")
        stored = escaped_name(name, TRUSTED_OVERLAY)
        prefix, suffix = _split(stored)
        # Overlayfs lists the bare prefix and then refuses to read it.
        if not prefix or name == TRUSTED_OVERLAY or len(stored) > MAX_NAME or b"\0" in stored:
            raise UnsayableError(f"has the xattr name {shown!r}")
        if len(value) > MAX_VALUE:
            raise UnsayableError(f"has the xattr {shown!r} of {len(value)} bytes")
        entries.append(entry(prefix, suffix, value))
        bits |= filter_bit(prefix, suffix)
        listed += len(stored) + 1
    if len({name for name, _ in xattrs}) != len(xattrs):
        raise UnsayableError("has an xattr twice")
    size = sum(map(len, entries))
    if size > MAX_AREA - _RESERVE or listed > _LIST_MAX - _RESERVE:
        raise UnsayableError(f"has {len(xattrs)} xattrs of {size} bytes")
    return tuple(entries), bits


def _split(name: bytes) -> tuple[int, bytes]:
    """(0, …) if the name is of no namespace."""
    for number, prefix in PREFIXES.items():
        suffix = name[len(prefix) :]
        if name.startswith(prefix) and bool(suffix) is (number not in WHOLE_NAMES):
            return number, suffix
    return 0, name


def decode(image: bytes, at: int) -> tuple[bytes, bytes, bytes]:
    """The entry at an offset of the image: its bytes, name and value. Raises ValueError."""
    if at + ENTRY.size > len(image):
        raise ValueError("an xattr beyond the end")
    length, prefix, value_length = ENTRY.unpack_from(image, at)
    middle = at + ENTRY.size + length
    end = middle + value_length
    suffix, value = image[middle - length : middle], image[middle:end]
    if prefix not in PREFIXES or bool(suffix) is (prefix in WHOLE_NAMES) or b"\0" in suffix:
        raise ValueError(f"an xattr of prefix {prefix} and name {suffix[:80]!r}")
    raw = entry(prefix, suffix, value)
    if raw != image[at : at + len(raw)]:
        raise ValueError("an xattr that is cut short or not padded with zeros")
    return raw, PREFIXES[prefix] + suffix, value
