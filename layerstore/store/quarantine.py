"""Setting damaged things aside, so that whatever is imported next heals the store."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from layerstore.store.layout import Layout


def set_aside(layout: Layout, path: Path) -> Path:
    """What was at ``path`` is in ``quarantine/``, under its last name and a number."""
    name = path.name
    if layout.objects in path.parents:
        name = path.parent.name + name
    target = layout.folder("quarantine") / f"{name}-{os.urandom(8).hex()}"
    path.rename(target)
    return target


def set_aside_trees(layout: Layout, damaged: Path) -> None:
    """No lower directory has a file that is the inode of ``damaged`` any more.

    They are moved, not removed: a container may be running on one.
    """
    status = damaged.lstat()
    if status.st_nlink == 1 or not stat.S_ISREG(status.st_mode):
        return
    trees = layout.folder("trees")
    for key in os.listdir(trees):
        if _has_inode(trees / key, status.st_ino):
            set_aside(layout, trees / key)


def _has_inode(root: Path, inode: int) -> bool:
    stack = [os.fspath(root)]
    while stack:
        with os.scandir(stack.pop()) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    stack.append(item.path)
                elif item.inode() == inode:
                    return True
    return False
