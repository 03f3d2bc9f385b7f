"""The one place that writes: transactions that are there whole or not at all.

The protocol, in this order; a crash between any two steps leaves the old state or the new one:

1. Lease: a file made and flock'ed in ``tmp/``, then renamed into ``leases/``. Made in place, a
   collector could take its lock before we do, and think us dead.
2. Stage: everything is written under ``tmp/<txid>/``.
3. Flush: one ``syncfs``, while the objects still have staging names. Flushing after the rename
   leaves empty objects under final names in a crash, and the next import trusts them.
4. Publish: digests are appended to the lease, then looked up, then renamed, under the shared lock.
   The append comes first: it is what makes a hit safe from a collector.
5. Flush the names, hits included: their publisher may not have flushed them yet.
6. Records the same way, then the ref: written, fsync'ed, renamed, directory fsync'ed.

Only then has anything succeeded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from layerstore.errors import HostError, LayerstoreError, NotFoundError, is_full
from layerstore.formats import sparse
from layerstore.formats.entries import Entry, Extents
from layerstore.formats.entries import emit as emit_entries
from layerstore.kernel.fs import fsync_path, syncfs, write_all
from layerstore.names import DiffID, Digest, ImageID, ImageRef
from layerstore.store import locks
from layerstore.store.deep import remove_tree
from layerstore.store.layout import Layout
from layerstore.store.objects import Objects
from layerstore.store.quarantine import set_aside, set_aside_trees

_MANY_FOLDERS = 12
"""More touched folders than this are flushed by one syncfs: 256 fsyncs cost 30 ms here, it 4."""

_FLUSH_BYTES = 24 << 20
"""Staged bytes after which writing begins. One syncfs at the end alone takes 40 % longer here."""

_AT_HAND_EACH = 64 << 10
_AT_HAND_BYTES = 48 << 20
"""Bytes of staged contents that are kept in memory until their layer is hashed."""

_BATCH_OBJECTS = 256
_BATCH_BYTES = 8 << 20

_ZEROS = bytes(64 << 10)


def new_id() -> str:
    """64 random bits in hex: unique without anyone keeping count."""
    return os.urandom(8).hex()


@contextmanager
def told_of_full_disk(root: Path) -> Iterator[None]:
    """A full disk or quota becomes one clear message."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise _full_disk(root) from error
        raise


def _full_disk(root: Path) -> HostError:
    return HostError(
        f"no space left in the store {root}; nothing was changed",
        hint="remove images with layerstore rmi, run layerstore gc, or use another --root",
    )


def _create_locked(folder: Path, name: str, final: Path, content: bytes = b"") -> int:
    """A locked descriptor of the new file ``final``, complete when it gets that name.

    It is made in ``folder``, which ``Store.recover`` clears of files that nobody has locked: one
    that was just made is taken for a dead process's once in a while, and made again.
    """
    staged = folder / name
    while True:
        fd = locks.open_lock(staged)
        try:
            if locks.try_lock(fd):
                write_all(fd, content)
                os.rename(staged, final)
                return fd
            os.close(fd)
        except FileNotFoundError:
            os.close(fd)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            raise


def leases(layout: Layout) -> list[set[str]]:
    """The digests that each running transaction holds.

    Exact while the store lock is held exclusively: nobody adds to a lease then.
    """
    found = []
    folder = layout.folder("leases")
    for txid in os.listdir(folder):
        if locks.is_held(folder / txid):
            with suppress(FileNotFoundError):
                found.append(set((folder / txid).read_text("ascii", "replace").split()))
    return found


def replace_file(layout: Layout, final: Path, content: bytes) -> None:
    """``final`` has this content; a reader sees the old one or this. Nothing is flushed."""
    os.close(_create_locked(layout.folder("tmp"), f"{new_id()}.new", final, content))


class Transaction:
    """Stages objects, layers and images, and publishes them whole. Use ``Store.transaction()``.

    Leaving the block without ``publish`` or after an error leaves nothing behind. The lease
    keeps everything published alive until then, so name it with a ref inside the block.
    """

    def __init__(self, layout: Layout, objects: Objects) -> None:
        self._layout = layout
        self._objects = objects
        self._id = new_id()
        self._staging = layout.folder("tmp") / self._id
        self._batch: dict[Digest, bytes | _Movable] = {}
        self._batch_bytes = 0
        self._leased: set[Digest] = set()
        self._handled: set[Digest] = set()
        self._at_hand: dict[Digest, bytes] = {}
        self._at_hand_bytes = 0
        self._staged: dict[Digest, int] = {}
        self._layers: dict[DiffID, Path] = {}
        self._images: dict[ImageID, Path] = {}
        self._folders: set[str] = set()
        self._published: set[ImageID] = set()
        self._has_failed = False
        self.replaced: list[Digest] = []
        """Objects that were there with a wrong size, and are healed now."""
        self.new_bytes = 0
        """Content bytes that the store did not have."""

    # -- lease -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        layout = self._layout
        with told_of_full_disk(layout.root):
            self._lease = _create_locked(
                layout.folder("tmp"), f"{self._id}.lease", layout.folder("leases") / self._id
            )
            self._fds = [self._lease]
            self._flusher = _Flusher(self._staging)
            try:
                self._staging.mkdir(0o700)
                # Opened before anything is written: syncfs reports only what fails after this.
                self._staging_fd = self._open(self._staging)
                self._objects_fd = self._open(layout.objects)
            except BaseException:
                self._end()
                raise
        return self

    def _open(self, directory: Path) -> int:
        self._fds.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return self._fds[-1]

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._end()
        if is_full(error):
            raise _full_disk(self._layout.root) from error

    def _end(self) -> None:
        self._flusher.stop()
        # What cannot be removed now is removed when the store is opened next: the lease is dead.
        with suppress(OSError):
            remove_tree(self._staging)
        with suppress(OSError):
            (self._layout.folder("leases") / self._id).unlink()
        for fd in reversed(self._fds):
            os.close(fd)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What fails here fails the transaction for good.

        After a failed flush the kernel takes the pages for clean, and the next one "succeeds".
        """
        if self._has_failed:
            raise LayerstoreError("an earlier write of this transaction failed")
        try:
            with told_of_full_disk(self._layout.root):
                yield
        except BaseException:
            self._has_failed = True
            raise

    def lease(self, digests: Iterator[Digest] | list[Digest]) -> None:
        """What has these names is alive until the transaction ends, if it is there now.

        Look things up after this, not before.
        """
        fresh = [digest for digest in digests if digest not in self._leased]
        if fresh:
            with self._whole(), locks.publishing(self._layout.root):
                self._append(fresh)

    def _append(self, digests: list[Digest]) -> None:
        write_all(self._lease, "".join(digest + "\n" for digest in digests).encode())
        self._leased.update(digests)

    # -- objects ---------------------------------------------------------------------------

    def stage(self, content: bytes) -> Digest:
        """The object of this content is, or will be with ``publish``, in the store."""
        digest = Digest("sha256:" + hashlib.sha256(content).hexdigest())
        if digest in self._handled:
            return digest
        self._handled.add(digest)
        self._keep_at_hand(digest, content)
        self._batch[digest] = content
        self._batch_bytes += len(content)
        if len(self._batch) >= _BATCH_OBJECTS or self._batch_bytes >= _BATCH_BYTES:
            self._flush_batch()
        return digest

    def _keep_at_hand(self, digest: Digest, content: bytes) -> None:
        """A layer's tar is hashed once its contents are staged: reading them again costs twice."""
        if len(content) <= _AT_HAND_EACH and self._at_hand_bytes < _AT_HAND_BYTES:
            self._at_hand[digest] = content
            self._at_hand_bytes += len(content)

    def at_hand(self, digest: Digest) -> bytes | None:
        """The content, if it was staged since the last ``publish`` and is still in memory."""
        return self._at_hand.get(digest)

    def take(self, path: bytes, digest: Digest, size: int, content: bytes | None = None) -> None:
        """As ``stage``, for a file that nobody needs any more: it is moved, not copied.

        The caller has hashed it. It is on the store's file system, has one name and no writer.
        """
        if digest in self._handled:
            return
        self._handled.add(digest)
        if content is not None:
            self._keep_at_hand(digest, content)
        self._batch[digest] = _Movable(path, size)
        if len(self._batch) >= _BATCH_OBJECTS:
            self._flush_batch()

    def _flush_batch(self) -> None:
        """Contents that the store lacks are written to staging; hits are leased before that."""
        if not self._batch:
            return
        with self._whole():
            batch, self._batch, self._batch_bytes = self._batch, {}, 0
            with locks.publishing(self._layout.root):
                self._append(list(batch))
                missing = [
                    digest
                    for digest, content in batch.items()
                    if self._size_of(digest) != len(content)
                ]
            for digest in missing:
                content = batch[digest]
                if isinstance(content, _Movable):
                    self._move(content, digest)
                else:
                    self._write(content, digest)
                self._staged[digest] = len(content)
                self.new_bytes += len(content)
                self._flusher.wrote(len(content))
            self._folders.update(digest[7:9] for digest in batch)

    def _write(self, content: bytes, digest: Digest) -> None:
        fd = self._create(digest.hex)
        try:
            write_all(fd, content)
            self._check_size(fd, len(content), digest)
        finally:
            os.close(fd)

    def _move(self, file: _Movable, digest: Digest) -> None:
        """An object has no owner, mode or xattrs of its own."""
        os.rename(file.path, digest.hex, dst_dir_fd=self._staging_fd)
        fd = os.open(
            digest.hex, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._staging_fd
        )
        try:
            for name in os.listxattr(fd):
                with suppress(OSError):  # a label of SELinux stays, and harms nobody
                    os.removexattr(fd, name)
            os.fchmod(fd, 0o444)
            if os.geteuid() == 0:
                os.fchown(fd, 0, 0)
            self._check_size(fd, len(file), digest)
        finally:
            os.close(fd)

    def _size_of(self, digest: Digest) -> int | None:
        try:
            return os.stat(f"{digest[7:9]}/{digest[9:]}", dir_fd=self._objects_fd).st_size
        except FileNotFoundError:
            return None

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(name, flags, 0o444, dir_fd=self._staging_fd)

    def _check_size(self, fd: int, size: int, what: str) -> None:
        # A write that lies about its length is caught here, before anything has a final name.
        if os.fstat(fd).st_size != size:
            raise HostError(f"the file system of {self._layout.root} lost bytes of {what}")

    def writer(self, extents: Extents | None = None, size: int = 0) -> ObjectWriter:
        """For contents too large for memory. With ``extents``: a sparse file of ``size`` bytes."""
        return ObjectWriter(self, self._create(f"part-{new_id()}"), extents, size)

    def _adopt(self, fd: int, digest: Digest, size: int) -> None:
        """A written part becomes the staged object ``digest``, unless there is one already."""
        part = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if digest in self._staged:
            part.unlink()
            return
        self.lease([digest])
        self._handled.add(digest)
        self._folders.add(digest[7:9])
        if self._size_of(digest) == size:
            part.unlink()
            return
        part.rename(self._staging / digest.hex)
        self._staged[digest] = size
        self.new_bytes += size
        self._flusher.wrote(size)

    def open_object(self, digest: Digest) -> int:
        """A read-only descriptor of a staged or published object."""
        if digest in self._batch:
            self._flush_batch()
        if digest in self._staged:
            return os.open(digest.hex, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._staging_fd)
        return self._objects.open(digest)

    # -- records ---------------------------------------------------------------------------

    def create_tarsplit(self) -> int:
        """A descriptor to write the tarsplit of the layer that is staged next."""
        return self._create("tarsplit")

    def stage_layer(self, diff_id: DiffID, entries: list[Entry], *, foreign: bool) -> None:
        """The layer's record; its objects are staged already, its tarsplit too if ``foreign``."""
        tarsplit = self._staging / "tarsplit"
        if diff_id in self._layers:
            tarsplit.unlink(missing_ok=True)
            return
        folder = self._staging / f"layer-{diff_id.hex}"
        with self._whole():
            folder.mkdir(0o700)
            _write_file(folder / "entries", emit_entries(entries))
            if foreign:
                tarsplit.rename(folder / "tarsplit")
        self._layers[diff_id] = folder

    def stage_image(self, config: bytes) -> ImageID:
        """The image with this OCI config; its layers are staged or leased already."""
        image_id = ImageID.of(config)
        if image_id not in self._images:
            path = self._staging / f"image-{image_id.hex}"
            with self._whole():
                _write_file(path, config)
            self._images[image_id] = path
        return image_id

    def publish(self, refs: Mapping[ImageRef, ImageID] | None = None) -> None:
        """Everything staged is durable and has its final name; then the refs point to it.

        May be called several times. When it returns, a power cut loses nothing of it.
        """
        with self._whole():
            self._flush_batch()
            self._at_hand.clear()
            self._at_hand_bytes = 0
            self._flusher.stop()
            if self._staged or self._layers or self._images:
                syncfs(self._staging_fd)
            self._publish_objects()
            self._publish_records()
            if refs:
                self._write_refs(refs)

    def _publish_objects(self) -> None:
        staged, self._staged = self._staged, {}
        if staged:
            with locks.publishing(self._layout.root):
                for digest, size in staged.items():
                    present = self._size_of(digest)
                    if present == size:
                        continue
                    if present is not None:
                        self._keep_damaged(digest)
                    os.rename(
                        digest.hex,
                        f"{digest[7:9]}/{digest[9:]}",
                        src_dir_fd=self._staging_fd,
                        dst_dir_fd=self._objects_fd,
                    )
        folders, self._folders = self._folders, set()
        if len(folders) > _MANY_FOLDERS:
            syncfs(self._staging_fd)
        else:
            for folder in folders:
                fsync_path(self._layout.objects / folder)

    def _publish_records(self) -> None:
        layers, self._layers = self._layers, {}
        images, self._images = self._images, {}
        if layers:
            self.lease(list(layers))
            with locks.publishing(self._layout.root):
                for diff_id, folder in layers.items():
                    self._publish_layer(folder, self._layout.layer(diff_id))
            fsync_path(self._layout.folder("layers"))
        if images:
            self.lease(list(images))
            with locks.publishing(self._layout.root):
                for image_id, path in images.items():
                    path.rename(self._layout.image(image_id))
            fsync_path(self._layout.folder("images"))
            self._published.update(images)

    def _publish_layer(self, staged: Path, final: Path) -> None:
        """One rename. A layer that is there and gives the same tar is kept, another set aside."""
        if final.exists():
            if _gives_the_same(staged, final):
                return
            with suppress(FileNotFoundError):  # somebody else is healing it, too
                set_aside(self._layout, final)
        try:
            staged.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _keep_damaged(self, digest: Digest) -> None:
        """The object that is about to be replaced has a second name in ``quarantine/``.

        Lower directories that have it as a hard link go there as well, and are made again.
        """
        path = self._layout.object(digest)
        with suppress(OSError):
            set_aside_trees(self._layout, path)
            os.link(path, self._layout.folder("quarantine") / f"{digest.hex}-{new_id()}")
        self.replaced.append(digest)

    def _write_refs(self, refs: Mapping[ImageRef, ImageID]) -> None:
        for image_id in set(refs.values()) - self._published:
            if not self._layout.image(image_id).exists():
                raise NotFoundError(f"there is no image {image_id}")
            # Its publisher may not have flushed its name yet.
            fsync_path(self._layout.folder("images"))
        for ref, image_id in refs.items():
            staged = self._staging / "ref"
            _write_file(staged, f"{image_id}\n".encode())
            fsync_path(staged)
            staged.rename(self._layout.ref(ref))
        fsync_path(self._layout.folder("refs"))

    def stage_directory(self, name: str) -> Path:
        """A new directory in staging, for what is moved in whole with one rename."""
        path = self._staging / name
        path.mkdir(0o700)
        return path

    def flush(self) -> None:
        """Everything in staging is on disk."""
        syncfs(self._staging_fd)


class _Movable:
    """A file that can be moved into the store; its length is its size."""

    def __init__(self, path: bytes, size: int) -> None:
        self.path = path
        self._size = size

    def __len__(self) -> int:
        return self._size


class _Flusher:
    """Starts writing to disk while more is staged, in one thread, so that ``publish`` waits less.

    Nothing depends on it: the flush that counts comes after. It has a descriptor of its own,
    because an error of writeback is reported once to each.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._dirty = 0
        self._thread: threading.Thread | None = None

    def wrote(self, size: int) -> None:
        self._dirty += size
        if self._dirty >= _FLUSH_BYTES and (self._thread is None or not self._thread.is_alive()):
            self._dirty = 0
            self.stop()
            self._thread = threading.Thread(target=self._flush, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No thread is left."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _flush(self) -> None:
        with suppress(OSError):
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syncfs(fd)
            finally:
                os.close(fd)


class ObjectWriter:
    """Writes one object of any size to staging, hashing it on the way; zeros become holes."""

    def __init__(
        self, transaction: Transaction, fd: int, extents: Extents | None, size: int
    ) -> None:
        self._transaction = transaction
        self._fd = fd
        self._hasher = hashlib.sha256()
        self._position = 0
        self._size = size if extents is not None else None
        # Ranges still to be filled, the nearest last.
        self._ranges = list(reversed(extents)) if extents is not None else None
        if extents is not None:
            self._hasher.update(sparse.emit_map(size, extents))
            self._position = extents[0][0] if extents else size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        if self._ranges is None:
            self._position = _write_with_holes(self._fd, self._position, chunk)
            return
        view = memoryview(chunk)
        while view:
            offset, length = self._ranges[-1]
            room = offset + length - self._position
            piece = view[:room]
            _pwrite_all(self._fd, piece, self._position)
            self._position += len(piece)
            view = view[room:]
            if self._position == offset + length:
                self._ranges.pop()
                self._position = self._ranges[-1][0] if self._ranges else self._size or 0

    def finish(self) -> Digest:
        """The object is staged. Raises LayerstoreError if a sparse file's data is incomplete."""
        size = self._position if self._size is None else self._size
        if self._ranges:
            raise LayerstoreError("a sparse file ended before its data did")
        os.ftruncate(self._fd, size)
        self._transaction._check_size(self._fd, size, "an object")
        digest = Digest("sha256:" + self._hasher.hexdigest())
        self._transaction._adopt(self._fd, digest, size)
        return digest


def _write_with_holes(fd: int, position: int, chunk: bytes) -> int:
    """The chunk is at ``position``, long runs of zeros left out. The position after it."""
    if _ZEROS not in chunk:
        _pwrite_all(fd, chunk, position)
        return position + len(chunk)
    view = memoryview(chunk)
    step = len(_ZEROS)
    for start in range(0, len(chunk), step):
        piece = view[start : start + step]
        if piece != _ZEROS:
            _pwrite_all(fd, piece, position + start)
    return position + len(chunk)


def _pwrite_all(fd: int, payload: bytes | memoryview, offset: int) -> None:
    view = memoryview(payload)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def _write_file(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, content)
        if os.fstat(fd).st_size != len(content):
            raise HostError(f"the file system lost bytes of {path.name}")
    finally:
        os.close(fd)


def _gives_the_same(staged: Path, final: Path) -> bool:
    """Whether the layer at ``final`` is whole: its entries, and its tarsplit if one is needed.

    Two tarsplits of one tar need not be the same bytes.
    """
    try:
        if (staged / "entries").read_bytes() != (final / "entries").read_bytes():
            return False
    except OSError:
        return False
    from layerstore.store import tarsplit

    split = final / "tarsplit"
    return tarsplit.is_whole(split) if split.exists() else not (staged / "tarsplit").exists()
