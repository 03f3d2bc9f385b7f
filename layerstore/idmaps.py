"""Whose a file of an upper directory is in the container that made it."""

from __future__ import annotations

import os

from layerstore.errors import FormatError
from layerstore.formats.tree import Node
from layerstore.kernel.namespaces import IdMaps, IdRange, plan_id_maps
from layerstore.snapshot import SAME_IDS, Ids


def ids() -> Ids:
    """How the ids in the upper directories of this process's containers are to be read."""
    if os.geteuid() == 0:
        return SAME_IDS
    return _RootlessIds(plan_id_maps(os.geteuid(), os.getegid()))


class _RootlessIds:
    """A user's own files are root's inside, or whoever's they are in the image.

    A plain user cannot write lower directories that belong to others, so inside the container all
    files of the image belong to root: what is copied up has not changed its owner.
    """

    def __init__(self, maps: IdMaps) -> None:
        self._maps = maps

    def owner(self, uid: int, gid: int, parent: Node | None) -> tuple[int, int]:
        own_uid = parent.uid if parent is not None and uid == os.geteuid() else None
        own_gid = parent.gid if parent is not None and gid == os.getegid() else None
        return (
            own_uid if own_uid is not None else _inside(self._maps.uids, uid),
            own_gid if own_gid is not None else _inside(self._maps.gids, gid),
        )

    def uid(self, uid: int) -> int:
        return _inside(self._maps.uids, uid)


def _inside(ranges: tuple[IdRange, ...], outside: int) -> int:
    for known in ranges:
        if known.outside <= outside < known.outside + known.count:
            return known.inside + outside - known.outside
    raise FormatError(f"the id {outside} on disk has no name in the container")
