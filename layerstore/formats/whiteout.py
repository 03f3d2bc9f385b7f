"""Whiteout names (image-spec layer.md, "Whiteouts"): names to markers and back.

``.wh.`` is a reserved prefix. ``dir/.wh.name`` hides the lower ``dir/name``,
``dir/.wh..wh..opq`` hides every lower child of ``dir``. Other names with ``.wh..wh.`` are
bookkeeping of aufs and are no part of a tree.
"""

from __future__ import annotations

from layerstore.formats.entries import Entry, Kind

PREFIX = b".wh."
META_PREFIX = b".wh..wh."
OPAQUE_NAME = b".wh..wh..opq"


def read_name(path: bytes) -> Entry | None:
    """The marker that an archive's path is, or None if it is an ordinary or a bookkeeping name.

    Raises ValueError for a reserved name that is neither.
    """
    head, _, name = path.rpartition(b"/")
    for part in head.split(b"/"):
        if part.startswith(PREFIX) and not part.startswith(META_PREFIX):
            raise ValueError("an entry below a whiteout")
    if name == OPAQUE_NAME:
        return Entry(head, Kind.OPAQUE)
    if not name.startswith(PREFIX) or name.startswith(META_PREFIX):
        return None
    hidden = name[len(PREFIX) :]
    if hidden in (b"", b".", b".."):
        raise ValueError("a whiteout of no legal name")
    return Entry(head + b"/" + hidden if head else hidden, Kind.WHITEOUT)


def write_name(marker: Entry) -> bytes:
    """The archive's path of a whiteout or an opaque marker."""
    if marker.kind is Kind.OPAQUE:
        return marker.path + b"/" + OPAQUE_NAME if marker.path else OPAQUE_NAME
    head, _, name = marker.path.rpartition(b"/")
    return head + b"/" + PREFIX + name if head else PREFIX + name


def is_reserved(name: bytes) -> bool:
    """Whether no file of an image may have this name."""
    return name.startswith(PREFIX)
