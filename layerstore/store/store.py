"""A store: opened, recovered and handed out as its parts."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from layerstore.errors import HostError, is_full
from layerstore.kernel.fs import fsync_path
from layerstore.store import locks
from layerstore.store.atomic import Transaction, told_of_full_disk
from layerstore.store.containers import Containers
from layerstore.store.deep import remove_tree
from layerstore.store.images import Images
from layerstore.store.layout import (
    BALLAST_BYTES,
    DIRECTORIES,
    Layout,
    check_format,
    emit_format,
)
from layerstore.store.objects import Objects
from layerstore.store.refs import Refs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.store.layers import Layers


class Store:
    """The store at a directory. ``Store.open`` makes it if there is none.

    Opening finishes what a crash left behind; its cost follows the number of dead transactions,
    never the number of objects.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.objects = Objects(layout)
        self._layers: Layers | None = None
        self.refs = Refs(layout)
        self.images = Images(layout, self.refs)
        self.containers = Containers(layout)

    @property
    def layers(self) -> Layers:
        # Loaded when first asked for: a cached root is mounted without reading a layer.
        if self._layers is None:
            from layerstore.store.layers import Layers

            self._layers = Layers(self.layout, self.objects)
        return self._layers

    @classmethod
    def open(cls, root: Path) -> Store:
        """Raises HostError if the directory cannot be used, or its format is newer than this."""
        layout = Layout(root)
        try:
            try:
                raw = layout.format_file.read_bytes()
            except FileNotFoundError:
                _create(layout)
                raw = layout.format_file.read_bytes()
            check_format(raw, root)
            store = cls(layout)
            store.recover()
        except PermissionError as error:
            raise HostError(
                f"the store {root} cannot be used: {error.strerror}",
                hint="become its owner, or choose another with --root DIR or LAYERSTORE_ROOT",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.EROFS, errno.EEXIST):
                raise HostError(
                    f"the store {root} cannot be made: {error.strerror}",
                    hint="choose another with --root DIR or LAYERSTORE_ROOT",
                ) from error
            raise
        return store

    def transaction(self) -> Transaction:
        """A context manager; see ``store.atomic``."""
        return Transaction(self.layout, self.objects)

    def recover(self) -> None:
        """What dead transactions and half-done removals left behind is gone.

        What cannot be removed stays, and is reported: it must not keep anyone from the store.
        """
        leases = self.layout.folder("leases")
        staging = self.layout.folder("tmp")
        trash = self.layout.folder("trash")
        dead = [leases / txid for txid in os.listdir(leases) if not locks.is_held(leases / txid)]
        left = [staging / path.name for path in dead] + dead
        for name in os.listdir(staging):
            path = staging / name
            if not (leases / name).exists() if path.is_dir() else not locks.is_held(path):
                left.append(path)
        left += [trash / name for name in os.listdir(trash)]
        if left:
            with suppress(OSError):
                self.containers.forget_lost_names()
        for path in left:
            with suppress(OSError):
                remove_tree(path)


_OWN_NAMES = {
    *DIRECTORIES, "objects", "gate", "lock", "gc", "ballast", "FORMAT", "FORMAT.new", "lost+found",
}  # fmt: skip
"""What a store that is half made may hold."""


def _create(layout: Layout) -> None:
    """An empty store; FORMAT is written last, so a store that has one is complete."""
    root = layout.root
    with told_of_full_disk(root):
        root.mkdir(0o700, parents=True, exist_ok=True)
        if set(os.listdir(root)) - _OWN_NAMES:
            raise HostError(
                f"{root} is not empty and is no store",
                hint="choose an empty or new directory with --root DIR or LAYERSTORE_ROOT",
            )
        with locks.collecting(root):
            if not layout.format_file.exists():  # else another process was faster
                _fill(layout)


def _fill(layout: Layout) -> None:
    root = layout.root
    for name in DIRECTORIES:
        (root / name).mkdir(0o700, exist_ok=True)
    layout.objects.mkdir(0o700, parents=True, exist_ok=True)
    for prefix in range(256):
        (layout.objects / f"{prefix:02x}").mkdir(0o700, exist_ok=True)
    os.close(locks.open_lock(root / "gc"))
    make_ballast(layout)
    staged = root / "FORMAT.new"
    staged.write_bytes(emit_format())
    fsync_path(staged)
    fsync_path(layout.objects)
    fsync_path(root)
    staged.rename(layout.format_file)
    fsync_path(root)


def make_ballast(layout: Layout) -> None:
    """The file that is given up when the disk is full is there, as far as there is room for it."""
    try:
        fd = os.open(layout.root / "ballast", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if is_full(error):
            return
        raise
    try:
        if os.fstat(fd).st_size < BALLAST_BYTES:
            status = os.fstatvfs(fd)
            if status.f_bavail * status.f_frsize > 4 * BALLAST_BYTES:
                os.posix_fallocate(fd, 0, BALLAST_BYTES)
    except OSError:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def drop_ballast(layout: Layout) -> None:
    """A few MB are free."""
    (layout.root / "ballast").unlink(missing_ok=True)
