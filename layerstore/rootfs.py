"""An image's layers as something that can be mounted: the choice of driver is made here.

``composed`` mounts one EROFS image of the merged tree over the objects themselves: every content
once on disk and in the page cache, one mount however many layers. ``stacked`` gives overlayfs one
lower directory for each layer, and works wherever overlayfs does. What a mount is made of is a
value; nothing is mounted here, but to try what this host can. Whoever mounts holds the image: by a
container's record, a lease, or a ref that it knows to stay.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from layerstore.errors import HostError, LayerstoreError, UsageError
from layerstore.formats.entries import NANOSECOND, Entry, Kind
from layerstore.formats.xattrs import TRUSTED_OVERLAY, USER_OVERLAY, escaped_name
from layerstore.kernel.mounts import OverlayMount, mount_overlay
from layerstore.kernel.namespaces import in_private_mounts
from layerstore.kernel.process import boot_id
from layerstore.names import DiffID, Digest
from layerstore.store.composed import WRITER, composed
from layerstore.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.formats.tree import Tree

COMPOSED = "composed"
STACKED = "stacked"
AUTO = "auto"


def overlay(
    store: Store,
    diff_ids_bottom_up: tuple[DiffID, ...],
    *,
    driver: str,
    upper: Path | None = None,
    work: Path | None = None,
    volatile: bool = False,
    tree: Tree | None = None,
) -> OverlayMount:
    """The root filesystem of a stack; with ``upper`` and ``work`` it can be written.

    ``driver`` is ``composed`` or ``stacked``. ``volatile`` is for an upper directory that is
    thrown away: nothing of it is ever flushed. A new upper directory gets the attributes of the
    root below it. ``tree``, if the caller has it, saves reading the layers.
    """
    is_new = upper is not None and not os.listdir(upper)
    if driver == COMPOSED:
        merged = composed(store, diff_ids_bottom_up, tree)
        if upper is not None and is_new:
            _take_attributes_of(merged.root, upper)
        return OverlayMount(
            image=merged.image,
            datadirs=(store.layout.data_root,),
            upperdir=upper,
            workdir=work,
            volatile=volatile and upper is not None,
            index=False,
            metacopy=True,
            redirect_dir="on",
            witness=merged.witness if is_new or upper is None else None,
        )
    from layerstore.store.trees import lower_directories  # the composed driver needs none of it

    lowers = lower_directories(store, diff_ids_bottom_up)
    if upper is not None and is_new:
        _copy_attributes(lowers[0], upper)
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


# -- the root's own attributes ------------------------------------------------------------------


def _take_attributes_of(node: Entry, upper: Path) -> None:
    """The upper directory's own attributes are what a container sees of ``/``."""
    if os.geteuid() == 0:
        os.chown(upper, node.uid, node.gid)
    os.chmod(upper, node.mode)
    for name, value in node.xattrs:
        os.setxattr(upper, escaped_name(name, TRUSTED_OVERLAY), value)
    os.utime(upper, ns=(node.mtime_ns, node.mtime_ns))


def _copy_attributes(lower: Path, upper: Path) -> None:
    status = lower.stat()
    if os.geteuid() == 0:
        os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)
    prefix = xattr_prefix()
    for name in map(os.fsencode, os.listxattr(lower)):
        # Marks of the lower directory stay there; an image's own names are escaped on both.
        if not name.startswith(prefix) or name.startswith(prefix + b"overlay."):
            os.setxattr(upper, name, os.getxattr(lower, name))
    os.utime(upper, ns=(status.st_mtime_ns, status.st_mtime_ns))


# -- which driver -------------------------------------------------------------------------------


def choose(store: Store, wanted: str = AUTO) -> str:
    """The driver to use here; ``auto`` is composed where that works. Raises HostError, UsageError.

    What works is tried once for each boot, user and store.
    """
    if wanted == STACKED:
        return STACKED
    if wanted not in (AUTO, COMPOSED):
        raise UsageError(f"{wanted!r} is no driver", hint="choose auto, composed or stacked")
    why_not = why_not_composed(store)
    if not why_not:
        return COMPOSED
    if wanted == COMPOSED:
        raise HostError(
            f"the composed driver does not work here: {why_not}",
            hint="leave out --driver: stacked works wherever overlayfs does",
        )
    return STACKED


def why_not_composed(store: Store) -> str:
    """Empty where the composed driver works; else what stands in its way."""
    if os.geteuid() != 0:
        return "only root can mount an EROFS image"
    record = store.layout.folder("derived") / (
        f"driver-{boot_id()}-{os.stat('/proc/self/ns/user').st_ino}-{WRITER}"
    )
    with suppress(FileNotFoundError):
        return record.read_text()
    with store.transaction() as transaction:
        scratch = transaction.stage_directory("probe")
        why_not = _try_composed(scratch)
    for stale in store.layout.folder("derived").glob("driver-*"):
        stale.unlink(missing_ok=True)
    staged = record.with_name(f".{record.name}-{os.getpid()}")
    staged.write_text(why_not)
    staged.rename(record)
    return why_not


def _try_composed(scratch: Path) -> str:
    """Mounts a one-file image over one object, for real, and reads the file back."""
    from layerstore.formats import erofs
    from layerstore.formats.tree import Node, Tree

    content = b"layerstore reads this back through the overlay\n" * 4
    digest = Digest.of(content)
    tree = Tree()
    file = Node(Kind.FILE, 0o644, mtime_ns=NANOSECOND, size=len(content), digest=digest)
    tree.root.children = {b"file": file}
    (scratch / "image").write_bytes(erofs.emit(tree))
    target = scratch / "data" / os.fsdecode(erofs.object_path(digest)).lstrip("/")
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    for name in ("upper", "work", "merged"):
        (scratch / name).mkdir()
    spec = OverlayMount(
        image=scratch / "image",
        datadirs=(scratch / "data",),
        upperdir=scratch / "upper",
        workdir=scratch / "work",
        index=False,
        metacopy=True,
        redirect_dir="on",
        witness=(b"file", content[:64]),
    )

    def attempt() -> str:
        try:
            mount_overlay(spec, scratch / "merged")
            os.chmod(scratch / "merged" / "file", 0o600)
            if (scratch / "merged" / "file").read_bytes() != content:
                return "a changed file's content is not found"
        except (LayerstoreError, OSError) as error:
            return str(error)
        return ""

    return in_private_mounts(attempt)
