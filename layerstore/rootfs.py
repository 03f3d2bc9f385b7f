"""An image's layers as something that can be mounted: the choice of driver is made here.

The stacked driver gives overlayfs one lower directory for each layer. What a mount is made of is a
value; nothing is mounted here. Whoever mounts holds the image: by a container's record, a lease, or
a ref that it knows to stay.
"""

from __future__ import annotations

import os
from pathlib import Path

from layerstore.formats.xattrs import TRUSTED_OVERLAY, USER_OVERLAY
from layerstore.kernel.mounts import OverlayMount
from layerstore.names import DiffID
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

STACKED = "stacked"


def overlay(
    store: Store,
    diff_ids_bottom_up: tuple[DiffID, ...],
    *,
    upper: Path | None = None,
    work: Path | None = None,
    volatile: bool = False,
) -> OverlayMount:
    """The root filesystem of a stack; with ``upper`` and ``work`` it can be written.

    ``volatile`` is for an upper directory that is thrown away: nothing of it is ever flushed. A
    new upper directory gets the attributes of the root below it.
    """
    lowers = lower_directories(store, diff_ids_bottom_up)
    if upper is not None and not os.listdir(upper):
        _take_root_attributes(lowers[0], upper)
    unprivileged = os.geteuid() != 0
    return OverlayMount(
        lowerdirs_top_down=tuple(lowers),
        upperdir=upper,
        workdir=work,
        volatile=volatile and upper is not None,
        userxattr=unprivileged,
        # Off, or a changed name might be missing from the upper directory (layers reference, 2).
        index=None if unprivileged else False,
        metacopy=False,
        redirect_dir="nofollow",
    )


def xattr_prefix() -> bytes:
    """The namespace of overlayfs' marks in the upper directories that this process mounts."""
    return TRUSTED_OVERLAY if os.geteuid() == 0 else USER_OVERLAY


def _take_root_attributes(lower: Path, upper: Path) -> None:
    """An upper directory's own attributes are what a container sees of ``/``."""
    status = lower.stat()
    if os.geteuid() == 0:
        os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)
    for name in os.listxattr(lower):
        if not os.fsencode(name).startswith((TRUSTED_OVERLAY, USER_OVERLAY)):
            os.setxattr(upper, name, os.getxattr(lower, name))
    os.utime(upper, ns=(status.st_mtime_ns, status.st_mtime_ns))
