"""What a stage starts from: each kind of base becomes layers and a config.

A base that is made (from the host, a tar, mmdebstrap) is one layer, remembered in the build cache
by what it was made from; an image or archive brings its own layers.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from layerstore.archive import stage_archive
from layerstore.cachekey import Recipe, framed
from layerstore.errors import BuildError, NotFoundError
from layerstore.events import Caution, Note, Sink
from layerstore.formats.changes import diff
from layerstore.formats.entries import NANOSECOND, Kind
from layerstore.formats.oci import Json, load_json
from layerstore.formats.streams import CHUNK, Limits, decompressed
from layerstore.formats.tree import Node, Tree
from layerstore.host import debian
from layerstore.host import pieces as host_pieces
from layerstore.names import DiffID, Digest, Platform
from layerstore.snapshot import capture
from layerstore.sources import Context, fingerprint
from layerstore.spec import (
    ArchiveBase,
    Base,
    DebianBase,
    HostBase,
    ImageBase,
    OciBase,
    RootfsBase,
    ScratchBase,
)
from layerstore.store.atomic import Transaction
from layerstore.store.cache import Cache, Record
from layerstore.store.images import Image
from layerstore.store.layers import Stored, stage_entries, stage_tar
from layerstore.store.store import Store


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base, resolved. ``config`` is the OCI config's ``config`` object."""

    diff_ids: tuple[DiffID, ...] = ()
    config: Json = field(default_factory=dict)
    history: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Workshop:
    """What making a base needs."""

    store: Store
    transaction: Transaction
    cache: Cache
    context: Context
    platform: Platform
    epoch: int
    use_cache: bool
    sink: Sink


def resolve(base: Base, shop: Workshop) -> BaseImage:
    """The base's layers are staged or leased. StageBase is the builder's own."""
    match base:
        case ScratchBase():
            return BaseImage()
        case ImageBase(ref):
            return of_image(shop, shop.store.images.find(str(ref)))
        case HostBase(pieces):
            return _host(shop, pieces)
        case RootfsBase(path, digest):
            return _rootfs(shop, path, digest)
        case DebianBase():
            return _debian(shop, base)
        case OciBase(path):
            return _archive(shop, path, None)
        case ArchiveBase(path, digest):
            return _archive(shop, path, digest)
    raise TypeError(f"{type(base).__name__} is no base")


def of_image(shop: Workshop, image: Image) -> BaseImage:
    """The image is leased from here on. Raises NotFoundError if a collector was faster."""
    shop.transaction.lease([image.image_id, *image.diff_ids])
    for diff_id in image.diff_ids:
        if not shop.store.layers.has(diff_id):
            raise NotFoundError(
                f"the image {image.image_id.short} lacks its layer {diff_id.short}",
                hint="import or pull the image again",
            )
    document = load_json(image.raw_config, where=f"image {image.image_id.short}")
    return BaseImage(image.diff_ids, document.get("config") or {}, image.config.history)


def _remembered(shop: Workshop, recipe: Recipe | None) -> DiffID | None:
    record = shop.cache.get(recipe.key) if recipe is not None and shop.use_cache else None
    if record is None or record.diff_id is None:
        return None
    shop.transaction.lease([record.diff_id])
    return record.diff_id if shop.store.layers.is_whole(record.diff_id) else None


def _remember(shop: Workshop, recipe: Recipe | None, stored: Stored, seconds: float) -> None:
    shop.transaction.publish()
    if recipe is not None:
        added = sum(entry.size for entry in stored.entries)
        shop.cache.put(recipe.key, Record(stored.diff_id, len(stored.entries), added, seconds))


def _one_layer(
    shop: Workshop, diff_id: DiffID, title: str, config: Json | None = None
) -> BaseImage:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shop.epoch))
    return BaseImage((diff_id,), config or {}, ({"created": moment, "created_by": title},))


def _host(shop: Workshop, pieces: tuple[str, ...]) -> BaseImage:
    found = host_pieces.collect(pieces)
    for warning in found.warnings:
        shop.sink(Caution(warning, "from: host"))
    title = f"from host: {' '.join(pieces)}"
    config: Json = {"Env": [f"{name}={value}" for name, value in found.env.items()]}
    listing: list[bytes] = []
    for file in found.files:
        content = b"" if file.content is None else file.content
        listing += (file.path, file.kind.encode(), b"%o" % file.mode, file.link, content)
    sources = [os.fsencode(file.source) for file in found.files if file.source is not None]
    stamp = fingerprint(sources)
    recipe = None
    if stamp is not None:
        parts = (("base", "host"), ("files", framed(listing)), ("sources", stamp),
                 ("time", str(shop.epoch)))  # fmt: skip
        recipe = Recipe(parts)
    if (known := _remembered(shop, recipe)) is not None:
        return _one_layer(shop, known, title, config)
    began = time.monotonic()
    stored = _store_host(shop, found)
    _remember(shop, recipe, stored, time.monotonic() - began)
    return _one_layer(shop, stored.diff_id, title, config)


def _store_host(shop: Workshop, found: host_pieces.HostBase) -> Stored:
    editor = Tree().edit()
    mtime_ns = shop.epoch * NANOSECOND
    editor.root.mtime_ns = mtime_ns
    for file in found.files:
        if file.kind == "directory":
            node = Node(Kind.DIRECTORY, file.mode, mtime_ns=mtime_ns)
        elif file.kind == "symlink":
            node = Node(Kind.SYMLINK, 0o777, mtime_ns=mtime_ns, link=file.link)
        else:
            size, digest = _store_host_file(shop, file.source, file.content)
            node = Node(Kind.FILE, file.mode, mtime_ns=mtime_ns, size=size, digest=digest)
        editor.put(file.path, node)
    return stage_entries(shop.transaction, diff(Tree(), editor.finish()))


def _store_host_file(
    shop: Workshop, source: Path | None, content: bytes | None
) -> tuple[int, Digest | None]:
    if source is None:
        content = content or b""
        return len(content), shop.transaction.stage(content) if content else None
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= CHUNK:
            content = file.read()
            return len(content), shop.transaction.stage(content) if content else None
        with shop.transaction.writer() as writer:
            while chunk := file.read(CHUNK):
                writer.write(chunk)
            return size, writer.finish()


def _rootfs(shop: Workshop, path: bytes, digest: Digest | None) -> BaseImage:
    source = shop.context.folder / os.fsdecode(path)
    title = f"from rootfs: {os.fsdecode(path)}"
    shop.context.check(path)
    if source.is_dir():
        if digest is not None:
            raise BuildError(f"{source} is a directory, which has no sha256",
                             hint="leave out sha256")  # fmt: skip
        began = time.monotonic()
        tree = capture(source, Tree(), shop.transaction, xattr_prefix=None)
        stored = stage_entries(shop.transaction, diff(Tree(), tree))
        _remember(shop, None, stored, time.monotonic() - began)
        return _one_layer(shop, stored.diff_id, title)
    recipe = None
    if digest is not None:
        recipe = Recipe((("base", "rootfs"), ("sha256", digest)))
    elif (stamp := fingerprint([os.fsencode(source)])) is not None:
        recipe = Recipe((("base", "rootfs"), ("file", stamp)))
    if (known := _remembered(shop, recipe)) is not None:
        return _one_layer(shop, known, title)
    if digest is not None:
        check_file_digest(source, digest)
    began = time.monotonic()
    stored = stage_tar_file(shop, source)
    _remember(shop, recipe, stored, time.monotonic() - began)
    return _one_layer(shop, stored.diff_id, title)


def stage_tar_file(shop: Workshop, source: Path) -> Stored:
    """The layer of a tar file, compressed or not."""
    limits = Limits()
    with source.open("rb") as file:
        return stage_tar(
            shop.transaction,
            decompressed(file, limits=limits, where=str(source)),
            where=str(source),
            limits=limits,
            warn=lambda text: shop.sink(Caution(text, str(source))),
            need_end=True,
        )


def check_file_digest(path: Path, digest: Digest) -> None:
    """Raises BuildError if the file's bytes are not those that the spec names."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    if hasher.hexdigest() != digest.hex:
        raise BuildError(
            f"{path} has the sha256 {hasher.hexdigest()}, not the one in the spec",
            hint="get the file that the spec means, or correct sha256",
        )


def _debian(shop: Workshop, base: DebianBase) -> BaseImage:
    recipe = Recipe(
        (
            ("base", "debian"),
            ("suite", base.suite),
            ("variant", base.variant),
            ("packages", " ".join(base.packages)),
            ("mirror", base.mirror or ""),
            ("platform", str(shop.platform)),
            ("time", str(shop.epoch)),
        )
    )
    title = f"from debian: {base.suite} ({base.variant})"
    if (known := _remembered(shop, recipe)) is not None:
        return _one_layer(shop, known, title)
    began = time.monotonic()
    made = debian.bootstrap(
        base.suite,
        packages=base.packages,
        variant=base.variant,
        target=shop.transaction.stage_directory("debian") / "root",
        epoch=shop.epoch,
        mirror=base.mirror,
        sink=shop.sink,
    )
    shop.sink(Note(f"importing the Debian {base.suite}"))
    if made.is_dir():
        tree = capture(made, Tree(), shop.transaction, xattr_prefix=None)
        stored = stage_entries(shop.transaction, diff(Tree(), tree))
    else:
        stored = stage_tar_file(shop, made)
    _remember(shop, recipe, stored, time.monotonic() - began)
    return _one_layer(shop, stored.diff_id, title)


def _archive(shop: Workshop, path: bytes, digest: Digest | None) -> BaseImage:
    source = shop.context.folder / os.fsdecode(path)
    shop.context.check(path)
    if digest is not None:
        check_file_digest(source, digest)
    image_id = stage_archive(shop.store, shop.transaction, source, sink=shop.sink)
    shop.transaction.publish()
    return of_image(shop, shop.store.images.get(image_id))
