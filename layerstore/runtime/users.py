"""A user's ids, from the root's own tables: bytes that an image's author wrote.

The tables are read through descriptors that can't leave the root, and never by the host's NSS.
"""

from __future__ import annotations

import os

from layerstore.kernel.fs import openat2
from layerstore.kernel.values import Value
from layerstore.runtime.plan import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.runtime.plan import User

_TABLE_MAX = 4 << 20


class Ids(Value):
    """What a process gets."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """Supplementary ones, sorted."""
    home: bytes


def resolve_user(root_fd: int, user: User) -> Ids:
    """The ids that the root's /etc/passwd and /etc/group give; LaunchError for unknown names.

    An id without an entry is itself, with group 0, as with docker.
    """
    passwd = _rows(root_fd, b"etc/passwd", 7)
    row = _find(passwd, user.user)
    if row is None and isinstance(user.user, str):
        raise LaunchError(
            f"no user {user.user!r} in the image's /etc/passwd", hint="use a number, as in -u 1000"
        )
    if row is None:
        uid, gid, home, name = int(user.user), 0, b"/", None
    else:
        uid, gid, home, name = int(row[2]), int(row[3]), row[5] or b"/", row[0]
    if user.group is None:
        groups = _rows(root_fd, b"etc/group", 4) if name else []
        member = {int(g[2]) for g in groups if name in g[3].split(b",")}
        return Ids(uid=uid, gid=gid, groups=tuple(sorted(member | {gid})), home=home)
    if isinstance(user.group, int):
        gid = user.group
    else:
        found = _find(_rows(root_fd, b"etc/group", 4), user.group)
        if found is None:
            raise LaunchError(
                f"no group {user.group!r} in the image's /etc/group",
                hint="use a number, as in -u 1000:1000",
            )
        gid = int(found[2])
    return Ids(uid=uid, gid=gid, groups=(gid,), home=home)


def _find(rows: list[list[bytes]], key: str | int) -> list[bytes] | None:
    for row in rows:
        if (int(row[2]) if isinstance(key, int) else row[0].decode("utf-8", "replace")) == key:
            return row
    return None


def _rows(root_fd: int, path: bytes, width: int) -> list[list[bytes]]:
    """The well-formed rows; the others don't exist, nor do those of a table that isn't there."""
    try:
        fd = openat2(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return []
    try:
        table = os.read(fd, _TABLE_MAX)
    except OSError:  # a directory
        return []
    finally:
        os.close(fd)
    rows = [line.split(b":") for line in table.split(b"\n")]
    return [
        row
        for row in rows
        if len(row) == width and _is_id(row[2]) and (width != 7 or _is_id(row[3]))
    ]


def _is_id(field: bytes) -> bool:
    return field.isdigit() and len(field) <= 10 and int(field) < 2**32 - 1
