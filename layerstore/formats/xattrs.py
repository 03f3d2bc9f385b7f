"""Which extended attributes a layer carries, and how overlayfs' own ones are kept apart.

overlayfs keeps its marks in ``trusted.overlay.`` or, in user namespaces, ``user.overlay.``. A file
of an image that really has an xattr of that name has it *escaped* wherever overlayfs could read
it: ``trusted.overlay.overlay.X`` (Documentation/filesystems/overlayfs.rst, "Nesting overlayfs").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from layerstore.formats.entries import Kind, Xattrs

XATTR_PREFIX = b"SCHILY.xattr."

TRUSTED_OVERLAY = b"trusted.overlay."
USER_OVERLAY = b"user.overlay."

CAPABILITY = b"security.capability"
ACCESS_ACL = b"system.posix_acl_access"
DEFAULT_ACL = b"system.posix_acl_default"

_NAMESPACES = (b"user.", b"trusted.", b"security.")
_NEVER = frozenset((b"security.selinux", b"security.ima", b"security.evm", b"system.nfs4_acl"))
"""Labels of the host that made them, which mean nothing or something else elsewhere."""

_ESCAPABLE = 255 - len("overlay.")
"""The longest name that can be escaped."""

MAX_VALUE = 65535
"""Linux allows 65536; EROFS has a 16-bit field."""
MAX_LISTED = 64_000
"""Names of one file together: a little below what listxattr(2) gives at most."""
MAX_TOTAL = 256_000
"""Names and values of one file together: a little below what EROFS holds."""


def accepted_xattrs(
    records: Mapping[bytes, bytes], kind: Kind, name: bytes, warn: Callable[[str], None]
) -> Xattrs:
    """The xattrs of an archive's entry that are kept, sorted; what is dropped is warned of.

    Names that overlayfs has for itself are kept like others: a container that makes them has them
    in its layer, so the same tar must mean the same. Whoever writes them to disk escapes them.
    """
    kept = []
    shown = name[-300:].decode("utf-8", "backslashreplace")
    for key, value in sorted(records.items()):
        if not key.startswith(XATTR_PREFIX):
            continue
        xattr = key[len(XATTR_PREFIX) :]
        label = xattr[:300].decode("utf-8", "backslashreplace")
        if xattr in _NEVER:
            continue
        if xattr in (ACCESS_ACL, DEFAULT_ACL):
            # The kernel reads these; what it cannot read would make the file unusable, or the
            # layer impossible to write out.
            if value and _is_acl(value) and _may_have(xattr, kind):
                kept.append((xattr, value))
            elif value:
                warn(f"{shown!r}: the value of {label} is no ACL of such a file and is dropped")
        elif xattr == CAPABILITY and value and not _is_capability(value):
            warn(f"{shown!r}: the value of {label} is no capability and is dropped")
        elif xattr in (TRUSTED_OVERLAY, USER_OVERLAY) or (
            xattr.startswith((TRUSTED_OVERLAY, USER_OVERLAY)) and len(xattr) > _ESCAPABLE
        ):
            warn(f"{shown!r}: the xattr {label} is overlayfs' own and is dropped")
        elif not xattr.startswith(_NAMESPACES) or xattr in _NAMESPACES or len(xattr) > 255:
            warn(f"{shown!r}: the xattr {label} is of no known namespace and is dropped")
        elif len(value) > MAX_VALUE:
            warn(f"{shown!r}: the xattr {label} of {len(value)} bytes is too long and is dropped")
        elif xattr.startswith(b"user.") and kind not in (Kind.FILE, Kind.DIRECTORY):
            warn(f"{shown!r}: {label} is dropped, Linux has user.* on files and directories only")
        elif value:
            kept.append((xattr, value))
    return tuple(kept)


def fits(xattrs: Xattrs) -> bool:
    """Whether a file can have all of them."""
    listed = sum(len(name) + 1 for name, _ in xattrs)
    total = sum(len(name) + len(value) + 8 for name, value in xattrs)
    return listed <= MAX_LISTED and total <= MAX_TOTAL


def _may_have(acl: bytes, kind: Kind) -> bool:
    return kind is Kind.DIRECTORY or (acl == ACCESS_ACL and kind is not Kind.SYMLINK)


_CAPABILITY_SIZES = {1: 12, 2: 20, 3: 24}


def _is_capability(value: bytes) -> bool:
    """As the kernel's get_vfs_caps_from_disk() reads it (linux/capability.h)."""
    return len(value) >= 4 and _CAPABILITY_SIZES.get(value[3]) == len(value)


_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ACL_ORDER = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
_NOBODY = (1 << 32) - 1


def _is_acl(value: bytes) -> bool:
    """As the kernel's posix_acl_valid() has it (linux/posix_acl_xattr.h)."""
    if len(value) % 8 != 4 or value[:4] != b"\x02\0\0\0":
        return False
    tags = []
    for tag, permissions, who in _ACL_ENTRY.iter_unpack(value[4:]):
        if tag not in _ACL_ORDER or permissions > 7:
            return False
        if tag in (_USER, _GROUP) and who == _NOBODY:
            return False
        tags.append(tag)
    once = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER))
    named = _USER in tags or _GROUP in tags
    return once and tags == sorted(tags) and named <= tags.count(_MASK) <= 1


def emitted_xattrs(
    found: Mapping[bytes, bytes], *, overlay_prefix: bytes, uid: Callable[[int], int] = int
) -> Xattrs:
    """The xattrs of a file in an upper directory that its layer carries, sorted.

    Overlayfs' own marks are left out, escaped ones lose one level. ``trusted.*`` is left out: no
    container without CAP_SYS_ADMIN can see it. Empty values are kept: the caller warns of them.
    ``uid`` gives the container's id of an id on disk.
    """
    kept = []
    escaped = overlay_prefix + b"overlay."
    for name, value in found.items():
        if name.startswith(overlay_prefix):
            if not name.startswith(escaped):
                continue
            name = overlay_prefix + name[len(escaped) :]
        elif name.startswith(b"trusted.") or name in _NEVER:
            continue
        elif name == b"security.capability":
            value = _plain_capability(value, uid)
        kept.append((name, value))
    return tuple(sorted(kept))


def _plain_capability(value: bytes, uid: Callable[[int], int]) -> bytes:
    """Version 2 of a capability that counts for the container's root (capabilities(7)).

    Version 3 names a user namespace by the id of its root, which means nothing on another host.
    """
    if len(value) != 24 or value[3] != 3 or uid(int.from_bytes(value[20:], "little")) != 0:
        return value
    return value[:3] + b"\x02" + value[4:20]


def escaped_name(name: bytes, overlay_prefix: bytes) -> bytes:
    """The name under which an image's xattr is written to a directory that overlayfs reads."""
    if name.startswith(overlay_prefix):
        return overlay_prefix + b"overlay." + name[len(overlay_prefix) :]
    return name
